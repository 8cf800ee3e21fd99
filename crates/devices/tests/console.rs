//! The console as drivers meet it.
#![allow(clippy::unwrap_used)]

mod rig;

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rig::{LIMIT, Queue, Rig, try_open};
use rustix::fs::OFlags;
use virtio::Features;
use virtio::config::ConsoleConfig;
use virtqueue::Segment;

const ALL_PACKED: Features = Features(
    Features::VERSION_1.0
        | Features::EVENT_IDX.0
        | Features::INDIRECT_DESC.0
        | Features::RING_PACKED.0,
);

/// Posts a buffer for input.
fn post(rig: &mut Rig, queue: &mut Queue, room: usize) -> Segment {
    let buffer = Segment { addr: rig.room(room, 1), len: room as u32 };
    queue.offer(&[], &[buffer], 0);
    queue.publish();
    buffer
}

/// Input up to `len` bytes in all, from one buffer after the other.
fn input(rig: &mut Rig, queue: &mut Queue, mut buffer: Segment, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let written = queue.wait().1 as usize;
        assert!(written > 0);
        bytes.extend(rig.get(buffer.addr, written));
        if bytes.len() >= len {
            return bytes;
        }
        buffer = post(rig, queue, buffer.len as usize);
    }
}

fn connect(path: &Path) -> UnixStream {
    let peer = UnixStream::connect(path).unwrap();
    peer.set_read_timeout(Some(LIMIT)).unwrap();
    peer
}

/// Lets the control side work until `done`.
fn until(rig: &mut Rig, mut done: impl FnMut(&mut Rig) -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done(rig) {
        assert!(Instant::now() < deadline, "it never happened");
        rig.device.control_ready();
        std::thread::yield_now();
    }
}

#[test]
fn a_pseudo_terminal_carries_every_byte_both_ways() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("console");
    let settings = [("pty", "on"), ("link", link.to_str().unwrap())];
    let mut rig = Rig::open("console", &settings, ALL_PACKED);
    let (mut receive, mut transmit) = (rig.queue(0, 16), rig.queue(1, 16));
    let mut terminal = OpenOptions::new().read(true).write(true).open(&link).unwrap();
    let all: Vec<u8> = (0..=255).collect();
    assert_eq!(rig.ask(&mut transmit, &all, 0, 50).1, 0);
    let mut bytes = vec![0; 256];
    terminal.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, all);
    let buffer = post(&mut rig, &mut receive, 100);
    terminal.write_all(&all).unwrap();
    assert_eq!(input(&mut rig, &mut receive, buffer, 256), all);
    rig.device.write_config(8, &[b'!', 0, 0, 0]).unwrap();
    terminal.read_exact(&mut bytes[..1]).unwrap();
    assert_eq!(bytes[0], b'!');
    assert!(rig.device.write_config(0, &[0; 2]).is_err());
    drop(rig);
    assert!(std::fs::symlink_metadata(&link).is_err(), "the link goes with the console");
}

#[test]
fn output_that_nobody_reads_is_lost_after_a_second_and_later_output_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("console");
    let settings = [("pty", "on"), ("link", link.to_str().unwrap())];
    let mut rig = Rig::open("console", &settings, Features::VERSION_1);
    let mut transmit = rig.queue(1, 16);
    let start = Instant::now();
    for _ in 0..20 {
        rig.ask(&mut transmit, &[b'x'; 20_000], 0, 20_000);
    }
    let elapsed = start.elapsed();
    assert!((Duration::from_millis(900)..Duration::from_secs(5)).contains(&elapsed), "{elapsed:?}");
    // What was kept is read; then there is room again.
    let mut options = OpenOptions::new();
    let mut terminal =
        options.read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(&link).unwrap();
    let mut bytes = [0; 4096];
    let mut kept = 0;
    while let Ok(n) = terminal.read(&mut bytes) {
        kept += n;
    }
    assert!(kept > 0);
    rig.ask(&mut transmit, b"the end", 0, 3);
    let mut seen = Vec::new();
    until(&mut rig, |_| {
        if let Ok(n) = terminal.read(&mut bytes) {
            seen.extend(&bytes[..n]);
        }
        seen.ends_with(b"the end")
    });
}

#[test]
fn clients_of_a_socket_come_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console.sock");
    let mut rig = Rig::open("console", &[("socket", path.to_str().unwrap())], Features::VERSION_1);
    let (mut receive, mut transmit) = (rig.queue(0, 16), rig.queue(1, 16));
    rig.ask(&mut transmit, b"nobody sees this", 0, 100);
    let mut client = connect(&path);
    for round in 0..4u8 {
        let buffer = post(&mut rig, &mut receive, 64);
        client.write_all(&[round; 40]).unwrap();
        until(&mut rig, |_| receive.ring.has_used());
        assert_eq!(input(&mut rig, &mut receive, buffer, 40), [round; 40]);
        let long = vec![round; 60_000];
        rig.ask(&mut transmit, &long, 0, 9000);
        let mut bytes = vec![0; long.len()];
        client.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, long);
        // The next one waits for this one to go; who comes third is sent away.
        let next = connect(&path);
        let mut third = connect(&path);
        rig.device.control_ready();
        assert_eq!(third.read(&mut [0]).unwrap(), 0);
        client = next;
    }
}

fn message(rig: &mut Rig, queue: &mut Queue) -> (u32, u16, u16, Vec<u8>) {
    let (bytes, written) = rig.ask(queue, b"", 64, 64);
    let bytes = &bytes[..written as usize];
    let number = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    (u32::from(number(0)), number(4), number(6), bytes[8..].to_vec())
}

fn tell(rig: &mut Rig, queue: &mut Queue, port: u32, event: u16, value: u16) {
    let mut bytes = port.to_le_bytes().to_vec();
    bytes.extend(event.to_le_bytes());
    bytes.extend(value.to_le_bytes());
    rig.ask(queue, &bytes, 0, 3);
}

#[test]
fn ports_have_names_and_are_silent_until_they_are_open() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().to_str().unwrap();
    let settings = [("null", "on"), ("ports", "one:two"), ("port-dir", dir)];
    let mut rig = Rig::open("console", &settings, Features::VERSION_1);
    let mut bytes = [0; ConsoleConfig::LEN];
    rig.device.read_config(0, &mut bytes);
    assert_eq!(ConsoleConfig::decode(&bytes).max_nr_ports, 3);
    let (mut from, mut to) = (rig.queue(2, 16), rig.queue(3, 16));
    let (mut receive, mut transmit) = (rig.queue(6, 16), rig.queue(7, 16));
    tell(&mut rig, &mut to, 0, 0, 1);
    for port in 0..3 {
        assert_eq!(message(&mut rig, &mut from), (port, 1, 0, vec![]));
    }
    for nonsense in [(99, 3, 1), (0, 77, 1), (u32::MAX, 6, 1)] {
        tell(&mut rig, &mut to, nonsense.0, nonsense.1, nonsense.2);
    }
    rig.ask(&mut to, b"short", 0, 5);
    tell(&mut rig, &mut to, 0, 3, 1);
    assert_eq!(message(&mut rig, &mut from), (0, 4, 1, vec![]));
    assert_eq!(message(&mut rig, &mut from), (0, 6, 1, vec![]));
    tell(&mut rig, &mut to, 2, 3, 1);
    assert_eq!(message(&mut rig, &mut from), (2, 7, 1, b"two".to_vec()));
    let mut client = connect(&folder.path().join("two"));
    rig.device.control_ready();
    assert_eq!(message(&mut rig, &mut from), (2, 6, 1, vec![]), "somebody is there");
    let buffer = post(&mut rig, &mut receive, 64);
    client.write_all(b"hello").unwrap();
    rig.ask(&mut transmit, b"from the guest", 0, 4);
    let mut bytes = [0; 14];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"from the guest");
    assert!(!receive.ring.has_used(), "nobody in the guest has the port open");
    tell(&mut rig, &mut to, 2, 6, 1);
    assert_eq!(input(&mut rig, &mut receive, buffer, 5), b"hello");
    post(&mut rig, &mut receive, 64);
    drop(client);
    until(&mut rig, |rig| rig.device.control_ready().is_empty());
    assert_eq!(message_after(&mut rig, &mut from), (2, 6, 0, vec![]), "nobody is there any more");
}

/// A message that the control side still has to write.
fn message_after(rig: &mut Rig, queue: &mut Queue) -> (u32, u16, u16, Vec<u8>) {
    let buffer = Segment { addr: rig.room(64, 1), len: 64 };
    queue.offer(&[], &[buffer], 1);
    queue.publish();
    until(rig, |_| queue.ring.has_used());
    let written = queue.wait().1 as usize;
    let bytes = rig.get(buffer.addr, written);
    let number = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    (u32::from(number(0)), number(4), number(6), bytes[8..].to_vec())
}

#[test]
fn settings_that_do_not_go_together_are_refused() {
    let refused =
        |settings: &[(&str, &str)]| try_open("console", settings).err().unwrap().to_string();
    assert!(refused(&[("pty", "on"), ("null", "on")]).contains("one of"));
    assert!(refused(&[("null", "on"), ("link", "/x")]).contains("one of"));
    assert!(refused(&[("null", "on"), ("ports", "a")]).contains("port-dir"));
    assert!(refused(&[("null", "on"), ("ports", "../a"), ("port-dir", "/")]).contains("letters"));
}
