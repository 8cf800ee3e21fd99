//! A queue that is busy makes no system calls: both sides poll, and nobody is notified.
#![allow(clippy::unwrap_used)]

mod relay;

use bridge::{CopyMover, Mover, TranslateMover};
use relay::Relay;
use virtqueue::RingFormat;

const REQUESTS: u64 = 20_000;

/// Alone in its file: the count is of the whole process.
fn count<M: Mover>(what: &str, mut relay: Relay<M>) {
    relay.run(1000);
    let before = sys::system_calls();
    relay.run(REQUESTS);
    let calls = sys::system_calls() - before;
    assert!(calls * 1000 < REQUESTS, "{what}: {calls} system calls for {REQUESTS} requests");
}

#[test]
fn a_busy_queue_makes_none() {
    let formats = [RingFormat::Split, RingFormat::Packed];
    for (driver, device) in formats.into_iter().flat_map(|a| formats.map(|b| (a, b))) {
        let what = format!("{driver:?} to {device:?}");
        count(&what, Relay::new(driver, device, 1500, |_| TranslateMover::new()));
        count(&what, Relay::new(driver, device, 1500, |place| CopyMover::new(place, relay::SIZE)));
    }
}
