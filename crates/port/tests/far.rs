//! A port and a model with a stream between them that is cut, and against ends that say anything.
#![allow(clippy::unwrap_used)]

mod rig;
mod stream;

use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use driver::GuestMemory;
use mem::DriverAddress;
use pcie::BarLayout;
use port::far::{FarError, machine_end, model_end};
use port::{ModelError, PortOptions};
use proptest::prelude::*;
use rig::{
    BASE, COPY, DEADLINE, Habits, Rig, Running, STALL, description, memory, read, until, wait,
    write,
};
use sys::{Connection, EventFd, Listener, Received};
use wire::cosim::{
    AnswerKind, Kind, MemoryChange, Message, Record, RegionShape, RequestKind, Welcome,
};

const ONES: u32 = u32::MAX;

type Ended = Result<(), FarError>;

/// Two ends of a stream, each in its thread.
struct Session {
    stop: Arc<EventFd>,
    wire: TcpStream,
    machine: Option<JoinHandle<Ended>>,
    model: Option<JoinHandle<Ended>>,
}

fn streams() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

/// One end alone, at the port of `models`.
fn machine(models: &Path, stop: &Arc<EventFd>, socket: TcpStream) -> JoinHandle<Ended> {
    let (models, stop) = (models.to_owned(), Arc::clone(stop));
    let socket = Box::new(Connection::new(socket).unwrap());
    std::thread::spawn(move || machine_end(socket, &models, stop.as_fd()))
}

/// One end alone, at a gate for models.
fn model(
    gate: &Arc<Listener>,
    stop: &Arc<EventFd>,
    socket: TcpStream,
    patience: Option<Duration>,
) -> JoinHandle<Ended> {
    let (gate, stop) = (Arc::clone(gate), Arc::clone(stop));
    let socket = Box::new(Connection::new(socket).unwrap());
    std::thread::spawn(move || model_end(socket, &gate, patience, stop.as_fd(), || ()))
}

impl Session {
    fn new(models: &Path, gate: &Arc<Listener>, patience: Option<Duration>) -> Self {
        let stop = Arc::new(EventFd::new().unwrap());
        let (near, far) = streams();
        let wire = near.try_clone().unwrap();
        let machine = machine(models, &stop, near);
        let model = model(gate, &stop, far, patience);
        Self { stop, wire, machine: Some(machine), model: Some(model) }
    }

    /// How both ends ended, which they have to by themselves.
    fn ends(mut self) -> [FarError; 2] {
        [self.machine.take(), self.model.take()]
            .map(|end| end.unwrap().join().unwrap().unwrap_err())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop.signal();
        for end in [self.machine.take(), self.model.take()].into_iter().flatten() {
            let _ = end.join();
        }
    }
}

/// A gate for models, with the folder it is in.
fn gate() -> (tempfile::TempDir, PathBuf, Arc<Listener>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("models");
    let listener = sys::listen_unix(&path).unwrap();
    (folder, path, Arc::new(listener))
}

fn start(path: &Path, rig: &Rig) -> Running {
    let resets = Arc::clone(&rig.resets);
    Running::start(path.to_owned(), move || Habits::new(resets))
}

/// A session whose far model has answered a driver, and then was killed.
fn killed_in_use(rig: &Rig, path: &Path, gate: &Arc<Listener>) -> (Session, driver::Client) {
    let session = Session::new(&rig.models, gate, None);
    let running = start(path, rig);
    let mut driver = rig.driver(&memory(), true);
    until(&mut driver, 0x40, 0);
    running.kill();
    (session, driver)
}

fn patient() -> PortOptions {
    // Two more processes between the driver and the answer.
    PortOptions { deadline: 10 * DEADLINE, ..PortOptions::default() }
}

fn copies(driver: &mut driver::Client, memory: &GuestMemory, event: &EventFd) {
    write(driver, 0, BASE + 0x100);
    for round in 0..20 {
        let to = BASE + 0x1000 + round * 256;
        memory.map().unwrap().write(DriverAddress(to), &[0; 64]).unwrap();
        write(driver, 8, to);
        write(driver, COPY, 1);
        wait(event);
        let mut copied = [0; 64];
        memory.map().unwrap().read(DriverAddress(to), &mut copied).unwrap();
        assert!(copied.iter().enumerate().all(|(n, byte)| *byte == n as u8 ^ 0x5a));
    }
}

#[test]
fn a_far_model_copies_host_memory_and_a_cut_stream_is_a_model_that_died() {
    let rig = Rig::new(patient);
    let (_folder, path, gate) = gate();
    let mut session = Session::new(&rig.models, &gate, None);
    let mut running = start(&path, &rig);
    let memory = memory();
    let mut driver = rig.driver(&memory, true);
    let event = Arc::new(EventFd::new().unwrap());
    driver.set_interrupts(2, 1, &[Arc::clone(&event)]).unwrap();
    for _ in 0..3 {
        copies(&mut driver, &memory, &event);
        write(&mut driver, 0x40, 0x1234_5678);
        assert_eq!(read(&mut driver, 0x40), 0x1234_5678);
        let mut long = vec![0; 100_000];
        driver.read(2, 3, &mut long).unwrap();
        assert!(long.iter().enumerate().all(|(n, byte)| *byte == (n + 3) as u8));
        session.wire.shutdown(Shutdown::Both).unwrap();
        let [machine, model] = session.ends();
        assert!(matches!(machine, FarError::Gone | FarError::System(_)), "{machine}");
        assert!(matches!(model, FarError::Gone | FarError::System(_)), "{model}");
        assert!(matches!(running.result(), Err(ModelError::Gone)));
        until(&mut driver, 0x40, ONES);
        session = Session::new(&rig.models, &gate, None);
        running = start(&path, &rig);
        until(&mut driver, 0x40, 0);
    }
}

#[test]
fn a_far_model_that_dies_ends_the_session_and_so_does_one_that_takes_nothing() {
    let rig = Rig::new(patient);
    let (_folder, path, gate) = gate();
    let (session, mut driver) = killed_in_use(&rig, &path, &gate);
    let [machine, model] = session.ends();
    assert!(matches!(machine, FarError::Gone | FarError::System(_)), "{machine}");
    assert!(matches!(model, FarError::LocalGone), "{model}");
    until(&mut driver, 0x40, ONES);
    let session = Session::new(&rig.models, &gate, Some(Duration::from_millis(100)));
    let _running = start(&path, &rig);
    until(&mut driver, 0x40, 0);
    // Two seconds, and then something that it does not take meanwhile.
    write(&mut driver, STALL, 200);
    write(&mut driver, 0x40, 1);
    let [_, model] = session.ends();
    assert!(matches!(model, FarError::Stuck(_)), "{model}");
}

#[test]
fn a_card_that_the_machine_maps_can_not_be_far_and_is_told_so() {
    let rig = Rig::new(patient);
    let (_folder, path, gate) = gate();
    let session = Session::new(&rig.models, &gate, None);
    let mapped = BarLayout::memory64(1 << 20).mapped(0, 1 << 20).unwrap();
    let description = description().bar(2, mapped);
    let mut running = Running::start(path, move || Habits::of(&description, Arc::default()));
    let refused = running.result();
    let why = |text: &str| text.contains("has to be on the same machine");
    assert!(matches!(&refused, Err(ModelError::Refused(text)) if why(text)), "{refused:?}");
    assert!(session.ends().iter().all(|end| matches!(end, FarError::Refused(_))));
}

/// A record as it is in the stream.
fn frame<K: Kind>(record: &Record<K>, len: u32, data: &[u8]) -> Vec<u8> {
    let mut record = *record;
    record.data_len = data.len() as u32;
    let words = record.encode().into_iter().flat_map(u64::to_ne_bytes);
    let head = [len.to_ne_bytes(), 16u32.to_ne_bytes()].into_iter().flatten();
    head.chain(words).chain(data.iter().copied()).collect()
}

fn said(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    bytes
}

/// What is nearly right, and what is not at all.
fn any_frames(kinds: &'static [u16]) -> impl Strategy<Value = Vec<u8>> {
    let record = (any::<prop::sample::Index>(), any::<[u64; 4]>(), any::<[u8; 2]>(), 0..3u32);
    let data = prop::collection::vec(any::<u8>(), 0..64);
    let record = (record, data).prop_map(move |((kind, words, [detail, flags], wrong), data)| {
        let kind = u64::from(*kind.get(kinds));
        let first = data.len() as u64 | kind << 32 | u64::from(detail) << 48;
        let words = [first | u64::from(flags) << 56, words[0] % 4, words[1], words[2] % 70, 0];
        let len = 40 + data.len() as u32 + wrong / 2;
        let head = [len.to_ne_bytes(), 16u32.to_ne_bytes()].concat();
        [head, words.into_iter().flat_map(u64::to_ne_bytes).collect(), data].concat()
    });
    let region = (any::<u64>(), any::<u64>(), any::<bool>(), any::<bool>());
    let change = (1..3u64, prop::collection::vec(region, 0..3)).prop_map(|(number, regions)| {
        let added = regions.into_iter().map(|(start, len, writable, remote)| {
            let file = if remote { wire::cosim::REMOTE_FILE } else { 0 };
            RegionShape { start, len, writable, file, offset: 0 }
        });
        said(&Message::Memory(MemoryChange {
            number,
            added: added.collect(),
            ..MemoryChange::default()
        }))
    });
    let noise = prop::collection::vec(any::<u8>(), 0..64);
    let alive = Just([0u32.to_ne_bytes(), 17u32.to_ne_bytes()].concat());
    let piece = prop_oneof![6 => record, 1 => change, 1 => noise, 2 => alive];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

/// Says `bytes` and closes; what comes back is taken and forgotten.
fn say(socket: TcpStream, bytes: &[u8]) {
    let socket = Connection::new(socket).unwrap();
    let _ = socket.send_all(bytes, &[], Duration::from_secs(5));
    let end = Instant::now() + Duration::from_millis(20);
    let mut taken = [0; 4096];
    while Instant::now() < end && socket.wait_readable(Duration::from_millis(2)).is_ok() {
        match socket.receive(&mut taken, &mut Vec::new()) {
            Ok(Received::Bytes(_)) => {}
            _ => break,
        }
    }
    socket.shutdown();
}

/// An honest Hello, as the model end gets it from a model.
fn hello() -> Vec<u8> {
    let (folder, path, gate) = gate();
    let _running = Running::start(path, || Habits::new(Arc::default()));
    let end = Instant::now() + Duration::from_secs(10);
    let socket = loop {
        assert!(Instant::now() < end);
        sys::wait_for_any(&[gate.as_fd()], Duration::from_secs(1)).unwrap();
        if let Some(socket) = gate.accept().unwrap() {
            break socket;
        }
    };
    let (mut bytes, mut have) = (vec![0; 1 << 16], 0);
    loop {
        socket.wait_readable(Duration::from_secs(10)).unwrap();
        if let Received::Bytes(len) = socket.receive(&mut bytes[have..], &mut Vec::new()).unwrap() {
            have += len;
        }
        let wanted = 8 + u32::from_ne_bytes(bytes[..4].try_into().unwrap()) as usize;
        if have >= wanted {
            drop(folder);
            return bytes[..wanted].to_vec();
        }
    }
}

/// Each makes connections and threads.
fn few() -> ProptestConfig {
    ProptestConfig::with_cases(48)
}

const ANSWERS: &[u16] = &[0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x01];
const REQUESTS: &[u16] = &[0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x81];

#[test]
fn a_machine_withstands_any_far_model() {
    let rig = Rig::new(patient);
    let stop = Arc::new(EventFd::new().unwrap());
    let hello = hello();
    let (_folder, path, gate) = gate();
    // Somebody has to come first, for there to be a port at all.
    let (session, driver) = killed_in_use(&rig, &path, &gate);
    drop(session);
    let driver = std::sync::Mutex::new(driver);
    let heard = any_frames(ANSWERS);
    proptest!(few(), |(bytes in heard, says in any::<bool>())| {
        let (near, far) = streams();
        let end = machine(&rig.models, &stop, near);
        let bytes = if says { [&hello[..], &bytes].concat() } else { bytes };
        say(far, &bytes);
        prop_assert!(end.join().expect("the machine's end panicked").is_err());
        // The port answers, whatever it has heard.
        read(&mut driver.lock().unwrap(), 0x40);
    });
    let _session = Session::new(&rig.models, &gate, None);
    let _running = start(&path, &rig);
    let mut driver = driver.into_inner().unwrap();
    until(&mut driver, 0x40, 0);
    write(&mut driver, 0x40, 77);
    assert_eq!(read(&mut driver, 0x40), 77);
}

#[test]
fn a_model_end_withstands_any_machine() {
    let stop = Arc::new(EventFd::new().unwrap());
    let (_folder, path, gate) = gate();
    let hello = hello();
    let welcome = said(&Message::Welcome(Welcome { area_len: 0, state: 0, mapped: 0 }));
    let heard = any_frames(REQUESTS);
    proptest!(few(), |(bytes in heard, says in any::<bool>())| {
        let (near, far) = streams();
        let end = model(&gate, &stop, near, None);
        let local = sys::connect_unix(&path).unwrap();
        local.send_all(&hello, &[], Duration::from_secs(5)).unwrap();
        let far = Connection::new(far).unwrap();
        // Its Hello, or whatever there is of it.
        far.wait_readable(Duration::from_secs(10)).unwrap();
        let bytes = if says { [&welcome[..], &bytes].concat() } else { bytes };
        let socket = TcpStream::from(far.as_fd().try_clone_to_owned().unwrap());
        say(socket, &bytes);
        prop_assert!(end.join().expect("the model's end panicked").is_err());
    });
}

#[test]
fn records_are_cut_where_they_say() {
    let stop = Arc::new(EventFd::new().unwrap());
    let rig = Rig::new(patient);
    let good = Record::new(AnswerKind::Log);
    for (bytes, expected) in [
        (frame(&good, 39, &[]), "message ends"),
        (frame(&good, 41, &[]), "gone"),
        (frame(&good, u32::MAX, &[]), "larger than the limit"),
        (frame(&Record::new(RequestKind::Write), 40, &[]), "record kind"),
        (frame(&good, 40, &[]), "record before a welcome"),
    ] {
        let (near, far) = streams();
        let end = machine(&rig.models, &stop, near);
        say(far, &bytes);
        let error = end.join().unwrap().unwrap_err().to_string();
        assert!(error.contains(expected), "{error} and not {expected}");
    }
}

#[test]
fn frames_are_the_same_however_they_are_cut() {
    let heard = prop_oneof![any_frames(ANSWERS), any_frames(REQUESTS)];
    proptest!(|(cuts in any::<[u8; 5]>(), bytes in heard)| {
        stream::withstands(&[&cuts[..], &bytes].concat());
    });
}
