//! The entropy device as drivers meet it.
#![allow(clippy::unwrap_used)]

mod rig;

use std::io::Write;
use std::time::Instant;

use rig::{Rig, try_open};
use virtio::Features;

const NONE: &[(&str, &str)] = &[];

#[test]
fn chains_come_back_full_of_random_bytes_in_both_formats() {
    for wanted in [Features::VERSION_1, Features::VERSION_1 | Features::RING_PACKED] {
        let mut rig = Rig::open("rng", NONE, wanted);
        let mut queue = rig.queue(0, 16);
        let (first, written) = rig.ask(&mut queue, &[], 64, 7);
        assert_eq!(written, 64);
        let (second, _) = rig.ask(&mut queue, &[], 64, 64);
        assert_ne!(first, second);
        assert_ne!(first, vec![0xee; 64]);
    }
}

#[test]
fn a_huge_request_gets_64_kib_and_its_length_says_so() {
    let mut rig = Rig::open("rng", NONE, Features::VERSION_1);
    let mut queue = rig.queue(0, 16);
    let (bytes, written) = rig.ask(&mut queue, &[], 1 << 20, 1 << 20);
    assert_eq!(written, 65536);
    assert_eq!(bytes[65536..], vec![0xee; (1 << 20) - 65536]);
}

#[test]
fn a_chain_without_room_comes_back_empty() {
    let mut rig = Rig::open("rng", NONE, Features::VERSION_1);
    let mut queue = rig.queue(0, 16);
    assert_eq!(rig.ask(&mut queue, b"what", 0, 4).1, 0);
}

#[test]
fn a_file_is_read_again_and_again() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    assert!(try_open("rng", &[("path", file.path().to_str().unwrap())]).is_err(), "no bytes");
    file.write_all(b"abc").unwrap();
    let mut rig = Rig::open("rng", &[("path", file.path().to_str().unwrap())], Features::VERSION_1);
    let mut queue = rig.queue(0, 16);
    let (bytes, written) = rig.ask(&mut queue, &[], 8, 3);
    assert_eq!((&bytes[..], written), (&b"bcabcabc"[..], 8));
}

#[test]
fn the_rate_is_kept() {
    let mut rig = Rig::open("rng", &[("rate", "10000")], Features::VERSION_1);
    let mut queue = rig.queue(0, 16);
    let start = Instant::now();
    let mut total = 0;
    while total < 3000 {
        total += u64::from(rig.ask(&mut queue, &[], 500, 500).1);
    }
    // 1000 bytes are there at once, the other 2000 take 0.2 s.
    let elapsed = start.elapsed().as_millis();
    assert!((190..1500).contains(&elapsed), "{elapsed} ms");
}
