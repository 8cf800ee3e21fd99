//! What a port records, replayed to models that are the same and that are not.
#![allow(clippy::unwrap_used)]

mod rig;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use driver::GuestMemory;
use mem::DriverAddress;
use port::PortOptions;
use port::trace::{Outcome, Recorder, ReplayError, Trace, difference, replay};
use rig::{COPY, Habits, Rig, Running, description, read, write};
use sys::{Epoll, EventFd, Interest};

const BASE: u64 = 0x1c00_0000_0000;

fn wait(event: &EventFd) {
    let epoll = Epoll::new().unwrap();
    epoll.add(event, 0, Interest::Read).unwrap();
    epoll.wait(&mut Vec::new(), Some(Duration::from_secs(10))).unwrap();
    assert!(event.drain(), "no interrupt");
}

/// Drives a model that is recorded; the recording.
fn recorded(folder: &Path, shift: u64) -> Trace {
    let path = folder.join(format!("trace-{shift}"));
    let file = path.clone();
    let rig = Rig::new(move || PortOptions {
        recorder: Some(Recorder::create(&file, 1 << 20).unwrap()),
        ..PortOptions::default()
    });
    let _model = rig.model();
    let memory = GuestMemory::new(1 << 20).unwrap();
    memory.map().unwrap().write(DriverAddress(BASE + 0x100 + shift), &[0x5a; 64]).unwrap();
    let mut driver = rig.driver(&memory, true);
    assert_eq!(read(&mut driver, 0x40), 0);
    let event = Arc::new(EventFd::new().unwrap());
    driver.set_interrupts(2, 1, &[Arc::clone(&event)]).unwrap();
    write(&mut driver, 0, BASE + 0x100 + shift);
    for round in 0..20 {
        let to = BASE + 0x1000 + shift + round * 64;
        write(&mut driver, 8, to);
        write(&mut driver, COPY, 1);
        wait(&event);
        assert_eq!(read(&mut driver, 8), to as u32);
        let mut copied = [0; 64];
        memory.map().unwrap().read(DriverAddress(to), &mut copied).unwrap();
        assert_eq!(copied, [0x5a; 64]);
    }
    drop(driver);
    drop(rig);
    Trace::decode(&std::fs::read(path).unwrap()).unwrap()
}

fn replayed(
    folder: &Path,
    trace: &Trace,
    make: impl FnOnce() -> Habits + Send + 'static,
) -> Result<Outcome, ReplayError> {
    let path = folder.join("m");
    let gate = sys::listen_unix(&path).unwrap();
    let _model = Running::start(path, make);
    replay(trace, gate, Duration::from_secs(10), EventFd::new().unwrap())
}

#[test]
fn a_model_is_compared_with_what_it_did_before() {
    let folder = tempfile::tempdir().unwrap();
    let trace = recorded(folder.path(), 0);
    assert_eq!(trace.torn, 0);
    let same = replayed(folder.path(), &trace, || Habits::new(Arc::default())).unwrap();
    let Outcome::Same { told, compared } = same else { panic!("{same:?}") };
    assert!(told > 60 && compared > 60, "{told} {compared}");
    let other = || Habits::new(Arc::default()).with_register(0x40, 7);
    let differs = replayed(folder.path(), &trace, other).unwrap();
    let Outcome::Differs { then, now, .. } = differs else { panic!("{differs:?}") };
    assert!(then.ends_with("gets 00000000") && now.ends_with("gets 07000000"), "{then}, {now}");
}

#[test]
fn another_card_is_not_compared() {
    let folder = tempfile::tempdir().unwrap();
    let trace = recorded(folder.path(), 0);
    let other = || Habits::of(&description().msi(4), Arc::default());
    let refused = replayed(folder.path(), &trace, other);
    assert!(matches!(refused, Err(ReplayError::Other(_))), "{refused:?}");
}

#[test]
fn two_runs_of_a_driver_differ_in_addresses_only() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (recorded(folder.path(), 0), recorded(folder.path(), 0x4000));
    let steps = difference(&one, &other).unwrap();
    assert!(steps > 100, "{steps}");
}

#[test]
fn a_recording_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace");
    let file = path.clone();
    let rig = Rig::new(move || PortOptions {
        recorder: Some(Recorder::create(&file, 20 << 10).unwrap()),
        ..PortOptions::default()
    });
    let _model = rig.model();
    let mut driver = rig.driver(&GuestMemory::new(1 << 20).unwrap(), true);
    for value in 0..2000 {
        write(&mut driver, 0x40, value);
        assert_eq!(read(&mut driver, 0x40), value as u32);
    }
    let bytes = std::fs::read(path).unwrap();
    assert!(bytes.len() > 15 << 10 && bytes.len() <= 20 << 10, "{}", bytes.len());
    assert_eq!(Trace::decode(&bytes).unwrap().torn, 0);
}
