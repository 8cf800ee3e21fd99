//! System calls per request of a built-in disk that is kept busy.
#![allow(clippy::unwrap_used)]

mod rig;

use mem::DriverAddress;
use rig::Rig;
use virtio::Features;
use virtqueue::Segment;

/// Requests offered at once.
const BATCH: u64 = 64;
const BATCHES: u64 = 500;
/// What a batch may cost: the notification, two wake-ups of the worker with what it does before it
/// sleeps again. On a machine with a processor to spare it costs nothing.
const CALLS_PER_BATCH: u64 = 8;

fn segment(at: DriverAddress, len: u32) -> Segment {
    Segment { addr: at, len }
}

/// Writes to memory, whose driver polls. Alone in its file: the count is of the whole process.
fn count(features: Features) -> u64 {
    let mut rig = Rig::open("blk", &[("ram", "1048576")], features);
    let mut queue = rig.queue(0, 256);
    let (header, data, status) = (rig.room(16, 16), rig.room(4096, 16), rig.room(1, 1));
    rig.put(header, &[1, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0]);
    queue.ring.disarm_interrupt();
    let before = sys::system_calls();
    for _ in 0..BATCHES {
        for token in 0..BATCH {
            let readable = [segment(header, 16), segment(data, 4096)];
            queue.offer(&readable, &[segment(status, 1)], token);
        }
        queue.publish();
        let mut left = BATCH;
        while left > 0 {
            match queue.ring.take_used().unwrap() {
                Some(_) => left -= 1,
                // The worker may need this processor.
                None => std::thread::yield_now(),
            }
        }
    }
    sys::system_calls() - before
}

#[test]
fn a_busy_disk_makes_next_to_none() {
    let ring = Features::VERSION_1 | Features::EVENT_IDX;
    for features in [ring, ring | Features::RING_PACKED] {
        let calls = count(features);
        let most = BATCHES * CALLS_PER_BATCH;
        assert!(calls <= most, "{calls} system calls for {} requests", BATCHES * BATCH);
    }
}
