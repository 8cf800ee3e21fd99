//! Requests cost no allocation once a queue has seen a few, on whichever thread.
#![allow(clippy::unwrap_used)]

mod rig;

use mem::DriverAddress;
use rig::{Queue, Rig};
use sys::CountingAllocator;
use virtio::Features;
use virtqueue::Segment;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Batches of requests, of which the first ones may allocate.
fn count(mut batch: impl FnMut()) -> u64 {
    (0..100).for_each(|_| batch());
    let before = sys::allocations();
    (0..500).for_each(|_| batch());
    sys::allocations() - before
}

fn segment(at: DriverAddress, offset: u64, len: u32) -> Segment {
    Segment { addr: DriverAddress(at.0 + offset), len }
}

fn answers(queue: &mut Queue, count: usize) {
    queue.publish();
    for _ in 0..count {
        queue.wait();
    }
}

/// Reads in four pieces, writes in three, and flushes, eight at a time.
fn disk(settings: &[(&str, &str)], features: Features) -> u64 {
    let mut rig = Rig::open("blk", settings, features);
    let mut queue = rig.queue(0, 128);
    let headers = [0u8, 1, 4].map(|kind| {
        let at = rig.room(16, 1);
        rig.put(at, &[kind, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0]);
        at
    });
    let data = rig.room(8193, 1);
    count(|| {
        for turn in 0..8u64 {
            let header = segment(headers[turn as usize % 3], 0, 16);
            let (a, b) = (segment(data, 0, 1000), segment(data, 1000, 3096));
            let status = segment(data, 8192, 1);
            match turn % 3 {
                0 => queue.offer(&[header], &[a, b, status], turn),
                1 => queue.offer(&[header, a, b], &[status], turn),
                _ => queue.offer(&[header], &[status], turn),
            }
        }
        answers(&mut queue, 8);
    })
}

fn echo(features: Features) -> u64 {
    let mut rig = Rig::open("net", &[], features);
    let (mut receive, mut transmit) = (rig.queue(0, 32), rig.queue(1, 32));
    let frame = rig.room(1512, 1);
    let buffers: [_; 16] = std::array::from_fn(|_| segment(rig.room(700, 1), 0, 700));
    buffers.iter().for_each(|buffer| receive.offer(&[], &[*buffer], 0));
    receive.publish();
    count(|| {
        for turn in 0..4 {
            transmit.offer(&[segment(frame, 0, 12), segment(frame, 12, 1500)], &[], turn);
        }
        answers(&mut transmit, 4);
        // 1512 bytes in buffers of 700: three a frame.
        for _ in 0..12 {
            receive.wait();
            receive.offer(&[], &[buffers[0]], 0);
        }
        receive.publish();
    })
}

fn entropy(features: Features) -> u64 {
    let mut rig = Rig::open("rng", &[], features);
    let mut queue = rig.queue(0, 32);
    let buffer = rig.room(5000, 1);
    count(|| {
        (0..4).for_each(|turn| queue.offer(&[], &[segment(buffer, 0, 5000)], turn));
        answers(&mut queue, 4);
    })
}

#[test]
fn requests_allocate_nothing() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let path = file.path().to_str().unwrap();
    let ring = Features::VERSION_1 | Features::EVENT_IDX | Features::INDIRECT_DESC;
    for features in [ring, ring | Features::RING_PACKED] {
        for io in ["sync", "uring"] {
            assert_eq!(disk(&[("path", path), ("io", io)], features), 0, "{io}");
        }
        assert_eq!(disk(&[("ram", "1048576")], features), 0);
        assert_eq!(echo(features), 0);
        assert_eq!(entropy(features), 0);
    }
}
