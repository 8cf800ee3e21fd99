//! The file behind a driver's memory is cut while a bridge uses it: row 92 of the adversarial
//! table, at both driver ends. The driver's side is told, the device sees nothing, and the next
//! driver is served.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bridge::{BridgeOptions, Mode, Shadow};
use driver::{Access, Direct, Disk, GuestMemory, Operation, PciDevice};
use sys::{Epoll, Interest};
use transports::{TRANSPORTS, Transport};
use virtio::{EndError, Features, Parameters, Status, Stop, Value};

const MEMORY_BYTES: u64 = 1 << 20;
/// Longer than anything takes.
const LIMIT: Duration = Duration::from_secs(20);

fn parameters(settings: &[(&str, &str)]) -> Parameters {
    let value = |text: &str| Value { text: text.to_owned(), number: text.parse().ok(), flag: None };
    let values = settings.iter().map(|(key, text)| ((*key).to_owned(), value(text)));
    Parameters::new(values.collect::<BTreeMap<_, _>>())
}

fn transport(scheme: &str) -> &'static Transport {
    TRANSPORTS.iter().find(|transport| transport.scheme == scheme).unwrap()
}

/// A disk of a mebibyte behind a bridge behind a driver end.
struct Served {
    stop: Stop,
    thread: Option<JoinHandle<Result<(), EndError>>>,
}

impl Served {
    fn new(scheme: &str, path: &Path, mode: Mode) -> Self {
        let text = path.display().to_string();
        let end = transport(scheme).driver_end.unwrap()(parameters(&[("path", &text)])).unwrap();
        let kind = devices::DEVICES.iter().find(|kind| kind.scheme == "blk").unwrap();
        let device = (kind.open)(parameters(&[("ram", "1048576")])).unwrap();
        let options = BridgeOptions { mode, ..BridgeOptions::default() };
        let shadow = Box::new(Shadow::new(device, "disk", options).unwrap());
        let stop = Stop::new().unwrap();
        let asked = stop.clone();
        Self { stop, thread: Some(std::thread::spawn(move || end.serve(shadow, asked))) }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.ask();
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            ended.expect("the end panicked").expect("and ends well");
        }
    }
}

fn memory() -> (File, GuestMemory) {
    let file = tempfile::tempfile().unwrap();
    file.set_len(MEMORY_BYTES).unwrap();
    let memory = GuestMemory::of_file(file.try_clone().unwrap()).unwrap();
    (file, memory)
}

fn open(access: Box<dyn Access>, memory: GuestMemory) -> Disk {
    Disk::open(access, memory, Features::VERSION_1, 1, 4096).unwrap()
}

/// A sector run written and read back.
fn round(disk: &mut Disk, byte: u8) {
    for operation in [Operation::Write, Operation::Read] {
        disk.data(0).copy_from(&[if operation == Operation::Write { byte } else { 0 }; 4096]);
        disk.start(0, operation, 8).unwrap();
        disk.publish();
        while disk.take_done().unwrap().is_none() {
            disk.wait().unwrap();
        }
    }
    let mut back = [0; 4096];
    disk.data(0).copy_to(&mut back);
    assert_eq!(back, [byte; 4096]);
}

/// Cuts the memory while a write is under way that nobody has seen.
fn cut(disk: &mut Disk, file: &File) {
    disk.data(0).copy_from(&[0xcc; 4096]);
    disk.start(0, Operation::Write, 8).unwrap();
    file.set_len(0).unwrap();
    disk.publish();
}

#[test]
fn a_guest_reads_that_its_device_needs_a_reset() {
    for mode in [Mode::Translate, Mode::Copy] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let _served = Served::new("vfio-user", &path, mode);
        let (file, ram) = memory();
        let connection = sys::connect_unix(&path).unwrap();
        let mut disk = open(Box::new(PciDevice::new(connection, &ram, true).unwrap()), ram);
        round(&mut disk, 7);
        cut(&mut disk, &file);
        let deadline = Instant::now() + LIMIT;
        while !disk.access().status().unwrap().has(Status::NEEDS_RESET) {
            assert!(Instant::now() < deadline, "{mode}: nobody noticed");
        }
        drop(disk);
        let (_file, ram) = memory();
        let connection = sys::connect_unix(&path).unwrap();
        let mut disk = open(Box::new(PciDevice::new(connection, &ram, true).unwrap()), ram);
        disk.data(0).copy_from(&[0; 4096]);
        disk.start(0, Operation::Read, 8).unwrap();
        disk.publish();
        while disk.take_done().unwrap().is_none() {
            disk.wait().unwrap();
        }
        let mut back = [0; 4096];
        disk.data(0).copy_to(&mut back);
        assert_eq!(back, [7; 4096], "{mode}: nothing of the cut memory was written");
        round(&mut disk, 9);
    }
}

#[test]
fn a_vhost_user_session_ends() {
    for mode in [Mode::Translate, Mode::Copy] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let _served = Served::new("vhost-user", &path, mode);
        let text = path.display().to_string();
        let device = || transport("vhost-user").device_end.unwrap()(parameters(&[("path", &text)]));
        let (file, ram) = memory();
        let epoll = Epoll::new().unwrap();
        let end = device().unwrap();
        epoll.add(end.control_fd().unwrap(), 0, Interest::Read).unwrap();
        let mut disk = open(Box::new(Direct::new(end, &ram).unwrap()), ram);
        round(&mut disk, 7);
        cut(&mut disk, &file);
        // What is heard here of the session is that the other side ends it.
        let mut ready = Vec::new();
        epoll.wait(&mut ready, Some(LIMIT)).unwrap();
        assert!(!ready.is_empty(), "{mode}: nobody noticed");
        drop(disk);
        let (_file, ram) = memory();
        let mut disk = open(Box::new(Direct::new(device().unwrap(), &ram).unwrap()), ram);
        round(&mut disk, 9);
    }
}
