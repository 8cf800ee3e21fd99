//! Pools that run full, speed limits, and notifications that get lost.
#![allow(clippy::unwrap_used)]

mod rig;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bridge::{MIN_POOL_BYTES, Mode, Observer, RateLimits};
use rig::{Bench, Case};
use virtio::{Features, VirtioDevice};
use virtqueue::Segment;

#[test]
fn a_full_pool_makes_requests_wait_and_all_get_their_turn() {
    for packed in [Features::NONE, Features::RING_PACKED] {
        let mut case = Case::new(Mode::Copy);
        case.options.pool_bytes = MIN_POOL_BYTES;
        case.driver = packed;
        case.size = 256;
        let mut bench = Bench::new(&case);
        // Up to three quarters of the pool each way, at most one and a half in all: most are
        // alone in the pool, and blocks of all sizes get in each other's way.
        bench.driver.max_bytes = 24 << 10;
        bench.driver.max_segments = 8;
        bench.driver.run(1500, |_| ());
        let counters = bench.shadow.counters()[0].snapshot();
        assert!(counters.backpressure > 10 && counters.errors == 0, "{counters:?}");
    }
}

#[test]
fn a_device_without_tables_gets_long_chains_when_it_has_room() {
    for mode in [Mode::Translate, Mode::Copy] {
        let mut case = Case::new(mode);
        case.driver = Features::INDIRECT_DESC;
        case.size = 16;
        let mut bench = Bench::new(&case);
        bench.driver.max_segments = 7;
        bench.driver.run(500, |_| ());
        let counters = bench.shadow.counters()[0].snapshot();
        assert!(counters.backpressure > 0 && counters.errors == 0, "{counters:?}");
    }
}

#[test]
fn requests_keep_to_the_rate() {
    let mut case = Case::new(Mode::Auto);
    case.options.limits = RateLimits { requests_per_second: 500, ..RateLimits::default() };
    let mut bench = Bench::new(&case);
    assert_eq!(bench.shadow.mode(), Mode::Translate);
    let begin = Instant::now();
    bench.driver.run(105, |_| ());
    // 5 are let through at once.
    assert!(begin.elapsed() >= Duration::from_millis(190), "{:?}", begin.elapsed());
    assert!(bench.shadow.counters()[0].snapshot().throttled > 0);
}

#[test]
fn bytes_keep_to_the_rate() {
    let mut case = Case::new(Mode::Copy);
    case.options.limits = RateLimits { bytes_per_second: 4 << 20, ..RateLimits::default() };
    let mut bench = Bench::new(&case);
    let begin = Instant::now();
    bench.driver.run(100, |_| ());
    let counters = bench.shadow.counters()[0].snapshot();
    let seconds = begin.elapsed().as_secs_f64();
    let bytes = counters.bytes_out as f64;
    assert!(bytes / seconds < 1.1 * f64::from(4 << 20), "{bytes} in {seconds}");
}

/// Loses every third notification.
#[derive(Default)]
struct Loser {
    asked: AtomicU32,
    seen: AtomicU32,
}

impl Observer for Loser {
    fn outbound(&self, _: u16, _: u16, readable: &[Segment], _: &[Segment]) {
        assert!(!readable.is_empty());
        self.seen.fetch_add(1, Ordering::Relaxed);
    }

    fn inbound(&self, _: u16, _: u16, _: u32) {
        self.seen.fetch_add(1, Ordering::Relaxed);
    }

    fn lose_kick(&self, _: u16) -> bool {
        self.asked.fetch_add(1, Ordering::Relaxed) % 3 == 2
    }
}

#[test]
fn a_lost_notification_costs_a_tenth_of_a_second() {
    for format in [Features::NONE, Features::RING_PACKED] {
        let loser = Arc::new(Loser::default());
        let mut case = Case::new(Mode::Auto);
        case.options.observer = Some(Arc::clone(&loser) as Arc<dyn Observer>);
        case.device = format | Features::EVENT_IDX;
        case.driver = format | Features::EVENT_IDX;
        let mut bench = Bench::new(&case);
        let begin = Instant::now();
        let mut requests = 0;
        // A device that is awake anyway is not notified, so how many this takes depends.
        while loser.asked.load(Ordering::Relaxed) < 9 {
            // The bridge is woken for nothing now and then, and must not forget what it waits for.
            let (kick, call) = (Arc::clone(&bench.driver.kick), bench.device.setup().call);
            bench.driver.run(1, |_| {
                kick.signal();
                call.signal();
            });
            requests += 1;
        }
        assert!(begin.elapsed() > Duration::from_millis(100), "some were lost");
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
        assert_eq!(loser.seen.load(Ordering::Relaxed), 2 * requests);
    }
}

#[test]
fn a_driver_that_never_notifies_is_looked_at() {
    for remote in [false, true] {
        let mut case = Case::new(Mode::Auto);
        case.remote = remote;
        case.options.limits = RateLimits { bytes_per_second: 1 << 40, ..RateLimits::default() };
        let mut bench = Bench::new(&case);
        bench.driver.spec.start_at = bench.shadow.stop_queue(0).unwrap();
        let setup = virtio::QueueSetup { kick: None, ..bench.setup() };
        bench.shadow.start_queue(setup).unwrap();
        let mut times: Vec<Duration> = (0..50)
            .map(|_| {
                let begin = Instant::now();
                bench.driver.run(1, |_| ());
                begin.elapsed()
            })
            .collect();
        times.sort_unstable();
        // What is looked at only in case a notification was lost takes 100 ms. The middle one,
        // because a machine that does other things may keep any of them waiting.
        assert!(times[25] < Duration::from_millis(50), "{times:?}");
    }
}
