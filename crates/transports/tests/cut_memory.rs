//! The file behind a driver's memory is cut while a bridge uses it: row 92 of the adversarial
//! table, at both driver ends. The driver's side is told, the device sees nothing, and the next
//! driver is served.
#![allow(clippy::unwrap_used)]

mod served;

use std::fs::File;
use std::time::{Duration, Instant};

use bridge::{BridgeOptions, Mode, Shadow};
use driver::{Access, Direct, Disk, GuestMemory, Operation, PciDevice};
use served::{Served, parameters, ram_disk, transport};
use sys::{Epoll, Interest};
use virtio::{Features, Status, VirtioDevice};

const MEMORY_BYTES: u64 = 1 << 20;
/// Longer than anything takes.
const LIMIT: Duration = Duration::from_secs(20);

/// A disk behind a bridge.
fn bridged(mode: Mode) -> Box<dyn VirtioDevice> {
    let options = BridgeOptions { mode, ..BridgeOptions::default() };
    Box::new(Shadow::new(ram_disk(), "disk", options).unwrap())
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
        let _served = Served::new("vfio-user", &path, bridged(mode));
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
        let _served = Served::new("vhost-user", &path, bridged(mode));
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
