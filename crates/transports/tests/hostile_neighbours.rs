//! A thousand hostile connections to two ends of a process cost the third end nothing, leave
//! nothing behind, and then a correct driver is served. Alone in this file because it counts what
//! the whole process has.
#![allow(clippy::unwrap_used)]

mod served;

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use driver::{Access, Direct, Disk, GuestMemory, Operation, PciDevice};
use served::{Served, parameters, ram_disk, transport};
use sys::{Connection, EventFd};
use virtio::Features;

/// A correct peer is served within this time, whatever happens beside it or happened before.
const SERVED: Duration = Duration::from_secs(1);
/// What may have grown after a thousand connections.
const MORE_FILES: usize = 8;
const MORE_BYTES: usize = 1 << 20;
const CONNECTIONS: u32 = 1000;
/// Connections before the first count, after which buffers have the size they need.
const WARM_UP: u32 = 100;

fn disk(scheme: &str, path: &Path) -> Disk {
    let memory = GuestMemory::new(1 << 20).unwrap();
    let access: Box<dyn Access> = match scheme {
        "vfio-user" => {
            let connection = sys::connect_unix(path).unwrap();
            Box::new(PciDevice::new(connection, &memory, true).unwrap())
        }
        _ => {
            let text = path.display().to_string();
            let open = transport(scheme).device_end.unwrap();
            let device = open(parameters(&[("path", &text)])).unwrap();
            Box::new(Direct::new(device, &memory).unwrap())
        }
    };
    Disk::open(access, memory, Features::VERSION_1 | Features::EVENT_IDX, 1, 4096).unwrap()
}

/// One sector run written and read back.
fn round(disk: &mut Disk, byte: u8) {
    for operation in [Operation::Write, Operation::Read] {
        let bytes = if operation == Operation::Write { [byte; 4096] } else { [0; 4096] };
        disk.data(0).copy_from(&bytes);
        disk.start(0, operation, 8 * u64::from(byte % 16)).unwrap();
        disk.publish();
        while disk.take_done().unwrap().is_none() {
            disk.wait().unwrap();
        }
    }
    let mut back = [0; 4096];
    disk.data(0).copy_to(&mut back);
    assert_eq!(back, [byte; 4096]);
}

/// Nonsense that begins like the protocol, with descriptors; the same for the same number.
fn attack(scheme: &str, path: &Path, number: u32) {
    let mut seed = number.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        seed >> 16
    };
    let mut stream = UnixStream::connect(path).unwrap();
    let client = Connection::new(stream.try_clone().unwrap()).unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let event = EventFd::new().unwrap();
    for message in 0..8 {
        let (kind, len) = (next() % 40 + 1, 4 * (next() % 12));
        let header: Vec<u8> = match (scheme, message) {
            // A greeting without capabilities, so that more than the greeting is reached.
            ("vfio-user", 0) => words(&[1 << 16, 20, 0, 0, 0]),
            ("vfio-user", _) => words(&[(kind % 19) << 16, 16 + len, 0, 0]),
            (_, 0) => words(&[2, 1, 8, 0x4000_0000, 1]),
            _ => words(&[kind, 9, len]),
        };
        let body: Vec<u8> = (0..len).map(|_| (next() % 7) as u8).collect();
        let fds = vec![event.as_fd(); if next() % 4 == 0 { (next() % 9) as usize } else { 0 }];
        let body = if message == 0 { &[][..] } else { &body };
        // It may have hung up long ago.
        if client.send_all(&[&header, body].concat(), &fds, SERVED).is_err() {
            break;
        }
    }
    if number.is_multiple_of(3) {
        let _ = stream.write_all(&[1, 0, 0]);
    }
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = stream.read_to_end(&mut Vec::new());
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Bytes of memory that are resident.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn a_thousand_hostile_connections_cost_the_others_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let attacked = [("vfio-user", path("a")), ("vhost-user", path("b"))];
    let _ends = attacked.each_ref().map(|(scheme, path)| Served::new(scheme, path, ram_disk()));
    let _good = Served::new("vfio-user", &path("c"), ram_disk());
    let over = Arc::new(AtomicBool::new(false));
    let (is_over, place) = (Arc::clone(&over), path("c"));
    let neighbour = std::thread::spawn(move || {
        let mut disk = disk("vfio-user", &place);
        let (mut rounds, mut slowest) = (0_u64, Duration::ZERO);
        while !is_over.load(Ordering::Relaxed) {
            let begun = Instant::now();
            round(&mut disk, rounds as u8);
            slowest = slowest.max(begun.elapsed());
            rounds += 1;
        }
        (rounds, slowest)
    });
    for (scheme, path) in &attacked {
        (0..WARM_UP).for_each(|number| attack(scheme, path, number));
        let before = (open_files(), resident());
        (0..CONNECTIONS).for_each(|number| attack(scheme, path, number));
        let begun = Instant::now();
        let mut disk = disk(scheme, path);
        round(&mut disk, 7);
        assert!(begun.elapsed() < SERVED, "{scheme}: served after {:?}", begun.elapsed());
        drop(disk);
        // One connection more tells that the end of the good one was noticed.
        attack(scheme, path, 0);
        let after = (open_files(), resident());
        assert!(after.0 <= before.0 + MORE_FILES, "{scheme}: files {before:?} {after:?}");
        assert!(after.1 <= before.1 + MORE_BYTES, "{scheme}: bytes {before:?} {after:?}");
    }
    over.store(true, Ordering::Relaxed);
    let (rounds, slowest) = neighbour.join().expect("the neighbour failed");
    assert!(rounds > 10 && slowest < SERVED, "{rounds} rounds, the slowest {slowest:?}");
}
