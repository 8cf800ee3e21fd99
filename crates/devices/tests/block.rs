//! The block device as drivers meet it: well-behaved, odd, and hostile ones.
#![allow(clippy::unwrap_used)]

mod rig;

use std::io::Write;

use proptest::prelude::*;
use rig::{Queue, Rig, try_open};
use virtio::config::BlkConfig;
use virtio::{DeviceEvent, Features};

const SECTOR: usize = 512;
const SECTORS: u64 = 2048;
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

const SPLIT: Features = Features::VERSION_1;
const PACKED: Features = Features(Features::VERSION_1.0 | Features::RING_PACKED.0);
const ALL_SPLIT: Features = Features(SPLIT.0 | Features::EVENT_IDX.0 | Features::INDIRECT_DESC.0);
const ALL_PACKED: Features = Features(ALL_SPLIT.0 | Features::RING_PACKED.0);

/// A disk file of noise, and the same noise.
fn disk_file(sectors: u64) -> (tempfile::NamedTempFile, Vec<u8>) {
    let mut noise = vec![0u8; sectors as usize * SECTOR];
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for byte in &mut noise {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        *byte = (state >> 56) as u8;
    }
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&noise).unwrap();
    (file, noise)
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(sector.to_le_bytes());
    bytes
}

fn with(kind: u32, sector: u64, data: &[u8]) -> Vec<u8> {
    [header(kind, sector), data.to_vec()].concat()
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

/// The status alone of a request, after checking that it was the only byte to be written.
fn status(rig: &mut Rig, queue: &mut Queue, request: &[u8]) -> u8 {
    let (answer, written) = rig.ask(queue, request, 1, request.len().max(1));
    assert_eq!(written, 1);
    answer[0]
}

fn read(rig: &mut Rig, queue: &mut Queue, sector: u64, sectors: usize, piece: usize) -> Vec<u8> {
    let (mut answer, written) = rig.ask(queue, &header(IN, sector), sectors * SECTOR + 1, piece);
    assert_eq!(written as usize, answer.len());
    assert_eq!(answer.pop(), Some(OK));
    answer
}

/// Every way to do I/O, with a driver on it.
fn each_way(sectors: u64, more: &[(&str, &str)], test: impl Fn(&mut Rig, &mut Queue, Vec<u8>)) {
    for features in [SPLIT, PACKED, ALL_SPLIT, ALL_PACKED] {
        for io in ["sync", "uring"] {
            let (file, noise) = disk_file(sectors);
            let mut settings = vec![("path", file.path().to_str().unwrap()), ("io", io)];
            settings.extend(more);
            let mut rig = Rig::open("blk", &settings, features);
            let mut queue = rig.queue(0, 64);
            test(&mut rig, &mut queue, noise);
        }
    }
}

#[test]
fn data_goes_both_ways_however_it_is_framed() {
    each_way(SECTORS, &[], |rig, queue, noise| {
        for piece in [1 << 20, 4096, 513, 511, 200] {
            let data: Vec<u8> = (0..4096).map(|at| (at * 7 + piece) as u8).collect();
            let (answer, written) = rig.ask(queue, &with(OUT, 5, &data), 1, piece);
            assert_eq!((answer[0], written), (OK, 1));
            assert_eq!(read(rig, queue, 5, 8, piece), data);
        }
        assert_eq!(read(rig, queue, 13, 100, 4096), noise[13 * SECTOR..113 * SECTOR]);
        assert_eq!(read(rig, queue, SECTORS - 1, 1, 4096), noise[noise.len() - SECTOR..]);
        assert_eq!(status(rig, queue, &header(FLUSH, 0)), OK);
    });
}

#[test]
fn a_header_of_single_bytes_works() {
    each_way(SECTORS, &[], |rig, queue, noise| {
        let mark = rig.mark();
        let header = rig.scatter(&header(IN, 3), 1);
        let writable = rig.scatter(&[0; SECTOR + 1], SECTOR + 1);
        queue.offer(&header, &writable, 1);
        queue.publish();
        assert_eq!(queue.wait(), (1, SECTOR as u32 + 1));
        assert_eq!(rig.gather(&writable)[..SECTOR], noise[3 * SECTOR..4 * SECTOR]);
        rig.release(mark);
    });
}

#[test]
fn what_is_out_of_range_fails_and_the_queue_lives() {
    each_way(SECTORS, &[], |rig, queue, noise| {
        let sector = [0x11; SECTOR];
        let (answer, written) = rig.ask(queue, &header(IN, SECTORS), SECTOR + 1, 4096);
        assert_eq!((written as usize, answer[SECTOR]), (SECTOR + 1, IOERR));
        assert_eq!(answer[..SECTOR], [0; SECTOR], "a failed read brings zeros");
        for start in [SECTORS, u64::MAX, u64::MAX - 7, 1 << 55] {
            assert_eq!(status(rig, queue, &with(OUT, start, &sector)), IOERR);
        }
        assert_eq!(status(rig, queue, &with(OUT, SECTORS - 1, &[1; 2 * SECTOR])), IOERR);
        assert_eq!(status(rig, queue, &with(OUT, 0, &sector[1..])), IOERR, "not whole sectors");
        assert_eq!(status(rig, queue, &header(OUT, 0)[..15]), IOERR, "short header");
        assert_eq!(status(rig, queue, b""), IOERR, "no header");
        assert_eq!(status(rig, queue, &header(0xffff_ffff, 0)), UNSUPP);
        assert_eq!(status(rig, queue, &header(IN, 0)), OK, "no data is no error");
        assert_eq!(read(rig, queue, 0, SECTORS as usize, 1 << 20), noise, "nothing was written");
    });
}

#[test]
fn the_serial_number_comes_as_far_as_there_is_room() {
    each_way(8, &[("serial", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")], |rig, queue, _| {
        let (answer, written) = rig.ask(queue, &header(GET_ID, 0), 21, 6);
        assert_eq!((&answer[..], written), (&b"ABCDEFGHIJKLMNOPQRST\0"[..], 21));
        let (answer, _) = rig.ask(queue, &header(GET_ID, 0), 4, 4);
        assert_eq!(answer, b"ABC\0");
        let (answer, written) = rig.ask(queue, &header(GET_ID, 0), 24, 24);
        assert_eq!((&answer[18..], written), (&b"ST\0\0\0\0"[..], 24));
    });
}

#[test]
fn zeroed_ranges_read_as_zeros_and_bad_ones_change_nothing() {
    each_way(SECTORS, &[], |rig, queue, mut noise| {
        let two = [range(3, 5, 0), range(100, 1, 1)].concat();
        assert_eq!(status(rig, queue, &with(WRITE_ZEROES, 0, &two)), OK);
        noise[3 * SECTOR..8 * SECTOR].fill(0);
        noise[100 * SECTOR..101 * SECTOR].fill(0);
        assert_eq!(read(rig, queue, 0, SECTORS as usize, 1 << 20), noise);
        for (kind, ranges, expected) in [
            (WRITE_ZEROES, [range(0, 1, 0), range(u64::MAX, 2, 0)].concat(), IOERR),
            (WRITE_ZEROES, range(SECTORS - 1, 2, 0), IOERR),
            (WRITE_ZEROES, range(0, u32::MAX, 0), IOERR),
            (WRITE_ZEROES, range(0, 1, 2), UNSUPP),
            (WRITE_ZEROES, range(0, 1, 0)[..15].to_vec(), IOERR),
            (WRITE_ZEROES, Vec::new(), IOERR),
            (WRITE_ZEROES, range(0, 1, 0).repeat(33), IOERR),
            (DISCARD, range(0, 1, 1), UNSUPP),
            (DISCARD, range(u64::MAX - 1, 4, 0), IOERR),
            (DISCARD, [range(0, 8, 0), range(SECTORS, 1, 0)].concat(), IOERR),
        ] {
            assert_eq!(status(rig, queue, &with(kind, 0, &ranges)), expected, "{kind} {ranges:?}");
        }
        assert_eq!(read(rig, queue, 0, SECTORS as usize, 1 << 20), noise);
        assert_eq!(status(rig, queue, &with(DISCARD, 0, &range(0, 8, 0))), OK);
        assert_eq!(read(rig, queue, 8, 100, 1 << 20), noise[8 * SECTOR..108 * SECTOR]);
    });
}

#[test]
fn a_request_without_room_for_a_status_stops_the_queue_alone() {
    let settings = [("ram", "1048576"), ("queues", "2")];
    let mut rig = Rig::open("blk", &settings, SPLIT);
    let (mut bad, mut good) = (rig.queue(0, 16), rig.queue(1, 16));
    let segments = rig.scatter(&header(FLUSH, 0), 16);
    bad.offer(&segments, &[], 1);
    bad.publish();
    assert!(rig.broken(0).contains("status"));
    assert_eq!(status(&mut rig, &mut good, &header(FLUSH, 0)), OK);
    rig.device.stop_queue(0).unwrap();
    rig.device.reset().unwrap();
}

#[test]
fn buffers_outside_memory_stop_the_queue_before_anything_is_done() {
    let (file, noise) = disk_file(16);
    let settings = [("path", file.path().to_str().unwrap())];
    for (addr, len) in [(0x1000, 512), (rig::POISON + 2 * rig::REGION - 1, 2), (u64::MAX - 5, 100)]
    {
        let mut rig = Rig::open("blk", &settings, SPLIT);
        let mut queue = rig.queue(0, 16);
        let mut readable = rig.scatter(&with(OUT, 0, &[1; SECTOR]), 1 << 20);
        readable.push(virtqueue::Segment { addr: mem::DriverAddress(addr), len });
        let writable = rig.scatter(&[9], 1);
        queue.offer(&readable, &writable, 1);
        queue.publish();
        rig.broken(0);
        assert_eq!(std::fs::read(file.path()).unwrap(), noise);
        rig.device.reset().unwrap();
        rig.device.set_memory(&rig.space).unwrap();
        rig.device.accept_features(rig.features).unwrap();
        let mut queue = rig.queue(0, 16);
        assert_eq!(status(&mut rig, &mut queue, &header(FLUSH, 0)), OK, "works after a reset");
    }
}

#[test]
fn a_read_only_disk_refuses_every_change() {
    each_way(16, &[("readonly", "on")], |rig, queue, noise| {
        assert!(rig.features.has(Features::bit(5)) && !rig.features.has(Features::bit(13)));
        for kind in [OUT, WRITE_ZEROES, DISCARD] {
            assert_eq!(status(rig, queue, &with(kind, 0, &range(0, 1, 0).repeat(32))), IOERR);
        }
        assert_eq!(status(rig, queue, &header(FLUSH, 0)), OK);
        assert_eq!(read(rig, queue, 0, 16, 4096), noise);
    });
}

#[test]
fn the_config_says_what_the_disk_is() {
    let settings =
        [("null", "1000000"), ("queues", "4"), ("block-size", "4096"), ("queue-size", "128")];
    let mut rig = Rig::open("blk", &settings, SPLIT);
    let mut bytes = [0; BlkConfig::LEN];
    rig.device.read_config(0, &mut bytes);
    let config = BlkConfig::decode(&bytes);
    assert_eq!(config.capacity, 1_000_000 / 4096 * 8, "whole blocks");
    assert_eq!((config.num_queues, config.blk_size, config.seg_max), (4, 4096, 126));
    assert_eq!((config.writeback, config.physical_block_exp), (1, 0));
    rig.device.write_config(32, &[0]).unwrap();
    rig.device.read_config(32, &mut bytes[..1]);
    assert_eq!(bytes[0], 0);
    assert!(rig.device.write_config(0, &[1; 8]).is_err(), "the capacity is read-only");
    rig.device.read_config(0xffff_fff0, &mut bytes);
    assert_eq!(bytes, [0; BlkConfig::LEN], "beyond the end");
    let refused = |settings: &[(&str, &str)]| try_open("blk", settings).err().unwrap().to_string();
    assert!(refused(&[]).contains("one of path"));
    assert!(refused(&[("ram", "4096"), ("null", "4096")]).contains("one of path"));
    assert!(refused(&[("path", "/dev/null")]).contains("regular file"));
    assert!(refused(&[("ram", "4096"), ("queue-size", "100")]).contains("power of two"));
}

#[test]
fn writes_last_without_a_flush_when_the_driver_asks_for_that() {
    each_way(16, &[], |rig, queue, _| {
        rig.device.write_config(32, &[0]).unwrap();
        assert_eq!(status(rig, queue, &with(OUT, 1, &[5; SECTOR])), OK);
        assert_eq!(read(rig, queue, 1, 1, 4096), [5; SECTOR]);
    });
}

#[test]
fn a_disk_that_grows_is_announced_and_its_new_end_is_usable() {
    let (file, _) = disk_file(16);
    let settings = [("path", file.path().to_str().unwrap()), ("watch", "on")];
    let mut rig = Rig::open("blk", &settings, SPLIT);
    let mut queue = rig.queue(0, 16);
    assert_eq!(status(&mut rig, &mut queue, &with(OUT, 16, &[5; SECTOR])), IOERR);
    file.as_file().set_len(32 * SECTOR as u64).unwrap();
    assert_eq!(rig.event(), DeviceEvent::ConfigChanged);
    let mut capacity = [0; 8];
    rig.device.read_config(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 32);
    assert_eq!(status(&mut rig, &mut queue, &with(OUT, 31, &[5; SECTOR])), OK);
}

#[test]
fn a_disk_cut_short_under_us_fails_requests_with_zeros() {
    for io in ["sync", "uring"] {
        let (file, noise) = disk_file(16);
        let settings = [("path", file.path().to_str().unwrap()), ("io", io)];
        let mut rig = Rig::open("blk", &settings, SPLIT);
        let mut queue = rig.queue(0, 16);
        file.as_file().set_len(4 * SECTOR as u64).unwrap();
        let (answer, written) = rig.ask(&mut queue, &header(IN, 2), 4 * SECTOR + 1, 300);
        assert_eq!(written as usize, 4 * SECTOR + 1);
        assert_eq!(answer[..4 * SECTOR], [0; 4 * SECTOR]);
        assert_eq!(answer[4 * SECTOR], IOERR);
        assert_eq!(read(&mut rig, &mut queue, 0, 4, 300), noise[..4 * SECTOR]);
    }
}

/// So that it can go on while we are at the rest: 16 at a time.
#[test]
fn a_driver_is_shown_what_is_done_before_all_is_done() {
    for features in [SPLIT, PACKED] {
        let mut rig = Rig::open("blk", &[("null", "1048576")], features);
        let mut queue = rig.queue(0, 256);
        let head = rig.scatter(&header(IN, 0), 16);
        let room = rig.scatter(&[0; SECTOR + 1], SECTOR + 1);
        for token in 0..48 {
            queue.offer(&head, &room, token);
        }
        queue.publish();
        let mut left = 48;
        while left > 0 {
            match queue.ring.take_used().unwrap() {
                Some(_) => left -= 1,
                None => std::thread::yield_now(),
            }
        }
        // Nothing is on its way any more.
        rig.device.stop_queue(0).unwrap();
        assert_eq!(queue.interrupts(), 3);
    }
}

/// Passes the wrap of the 16-bit index, with many requests at once, stops in between, and starts
/// where it stopped.
#[test]
fn seventy_thousand_requests_with_stops_in_between() {
    for (features, io) in
        [(ALL_SPLIT, "uring"), (PACKED, "uring"), (SPLIT, "sync"), (ALL_PACKED, "sync")]
    {
        let (file, noise) = disk_file(64);
        let settings = [("path", file.path().to_str().unwrap()), ("io", io)];
        let mut rig = Rig::open("blk", &settings, features);
        let mut queue = rig.queue(0, 64);
        let slots: Vec<_> = (0..16).map(|_| (rig.room(16, 16), rig.room(SECTOR + 1, 1))).collect();
        let segment = |addr, len| virtqueue::Segment { addr, len };
        let mut sectors = [0u64; 16];
        let mut done = 0u64;
        for round in 0..70_000 / 16 {
            for (slot, (head, room)) in slots.iter().enumerate() {
                sectors[slot] = (round * 16 + slot as u64 * 5) % 64;
                rig.put(*head, &header(IN, sectors[slot]));
                queue.offer(
                    &[segment(*head, 16)],
                    &[segment(*room, SECTOR as u32 + 1)],
                    slot as u64,
                );
            }
            queue.publish();
            if round % 500 == 7 {
                queue.spec.start_at = rig.device.stop_queue(0).unwrap();
                rig.start(0, &queue);
            }
            for _ in 0..16 {
                let (slot, written) = queue.wait();
                assert_eq!(written as usize, SECTOR + 1);
                let at = sectors[slot as usize] as usize * SECTOR;
                let data = rig.get(slots[slot as usize].1, SECTOR + 1);
                assert_eq!(data[..SECTOR], noise[at..at + SECTOR]);
                assert_eq!(data[SECTOR], OK);
                done += 1;
            }
        }
        assert_eq!(done, 70_000);
        assert_eq!(virtqueue::lost_chains(), 0);
    }
}

#[test]
fn a_reset_storm_leaves_a_disk_that_works() {
    let (file, _) = disk_file(64);
    let settings = [("path", file.path().to_str().unwrap()), ("io", "uring")];
    let mut rig = Rig::open("blk", &settings, ALL_SPLIT);
    let mark = rig.mark();
    for round in 0..300u64 {
        rig.release(mark);
        let mut queue = rig.queue(0, 64);
        for _ in 0..round % 8 {
            let readable = rig.scatter(&with(OUT, round % 60, &[round as u8; 2048]), 600);
            let writable = rig.scatter(&[9], 1);
            queue.offer(&readable, &writable, 0);
        }
        queue.publish();
        rig.device.reset().unwrap();
        rig.device.accept_features(rig.features).unwrap();
    }
    let mut queue = rig.queue(0, 64);
    assert_eq!(status(&mut rig, &mut queue, &header(FLUSH, 0)), OK);
}

#[derive(Clone, Debug)]
struct Step {
    kind: u32,
    sector: u64,
    sectors: usize,
    piece: usize,
    fill: u8,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let kind =
        prop_oneof![4 => Just(IN), 4 => Just(OUT), 1 => Just(FLUSH), 1 => Just(WRITE_ZEROES)];
    let step = (kind, 0..72u64, 0..12usize, 170..3000usize, any::<u8>()).prop_map(
        |(kind, sector, sectors, piece, fill)| Step { kind, sector, sectors, piece, fill },
    );
    proptest::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_disk_is_an_array_of_sectors(steps in steps(), packed in any::<bool>(), way in 0..3usize) {
        let (file, mut model) = disk_file(64);
        let settings: &[(&str, &str)] = match way {
            0 => &[("path", file.path().to_str().unwrap()), ("io", "sync")],
            1 => &[("path", file.path().to_str().unwrap()), ("io", "uring")],
            _ => &[("ram", "32768")],
        };
        if way == 2 {
            model.fill(0);
        }
        let mut rig = Rig::open("blk", settings, if packed { ALL_PACKED } else { ALL_SPLIT });
        let mut queue = rig.queue(0, 64);
        for Step { kind, sector, sectors, piece, fill } in steps {
            let end = sector as usize + sectors;
            let expected = if kind == FLUSH || end <= 64 { OK } else { IOERR };
            let bytes = sector as usize * SECTOR..end * SECTOR;
            match kind {
                IN => {
                    let (answer, _) =
                        rig.ask(&mut queue, &header(IN, sector), sectors * SECTOR + 1, piece);
                    prop_assert_eq!(answer[sectors * SECTOR], expected);
                    if expected == OK {
                        prop_assert_eq!(&answer[..sectors * SECTOR], &model[bytes]);
                    }
                }
                OUT => {
                    let data: Vec<u8> =
                        (0..sectors * SECTOR).map(|n| (n / 7) as u8 ^ fill).collect();
                    let (answer, _) = rig.ask(&mut queue, &with(OUT, sector, &data), 1, piece);
                    prop_assert_eq!(answer[0], expected);
                    if expected == OK {
                        model[bytes].copy_from_slice(&data);
                    }
                }
                FLUSH => prop_assert_eq!(status(&mut rig, &mut queue, &header(FLUSH, sector)), OK),
                _ => {
                    let range = range(sector, sectors as u32, u32::from(fill & 1));
                    let got = status(&mut rig, &mut queue, &with(WRITE_ZEROES, 0, &range));
                    prop_assert_eq!(got, expected);
                    if expected == OK {
                        model[bytes].fill(0);
                    }
                }
            }
        }
        if way < 2 {
            drop(rig);
            prop_assert_eq!(std::fs::read(file.path()).unwrap(), model);
        }
    }
}
