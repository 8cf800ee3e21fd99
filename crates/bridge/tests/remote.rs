//! Queues whose rings and buffers are reached by transfers only.
#![allow(clippy::unwrap_used)]

mod rig;

use std::sync::atomic::Ordering;

use bridge::Mode;
use rig::guest::{DATA, DATA_BYTES};
use rig::{Bench, Case};
use virtio::{DeviceEvent, Features, VirtioDevice};

fn case() -> Case {
    let mut case = Case::new(Mode::Auto);
    case.remote = true;
    case.begin = 65530;
    case
}

#[test]
fn all_features_of_both_sides_go_together() {
    for event_idx in [Features::NONE, Features::EVENT_IDX] {
        for device in [
            Features::NONE,
            Features::RING_PACKED | Features::EVENT_IDX,
            Features::INDIRECT_DESC | Features::EVENT_IDX,
        ] {
            let mut case = case();
            (case.driver, case.device) = (event_idx, device);
            let mut bench = Bench::new(&case);
            assert_eq!(bench.shadow.mode(), Mode::Remote);
            let hidden = Features::INDIRECT_DESC | Features::RING_PACKED;
            assert!((bench.shadow.identity().features & hidden).is_empty());
            bench.driver.run(600, |_| ());
            let counters = bench.shadow.counters()[0].snapshot();
            assert_eq!((counters.chains, counters.completions, counters.errors), (600, 600, 0));
        }
    }
}

#[test]
fn indirect_tables_are_brought_where_they_are_asked_for() {
    for device in [Features::NONE, Features::INDIRECT_DESC | Features::EVENT_IDX] {
        let mut case = case();
        case.options.require = Features::INDIRECT_DESC;
        (case.driver, case.device) = (Features::INDIRECT_DESC | Features::EVENT_IDX, device);
        let guest = rig::guest::Guest::new(true);
        // So narrow that tables come in pieces.
        guest.link.link().max_bytes.store(40, Ordering::Relaxed);
        let mut bench = Bench::with_guest(&case, guest);
        assert!(bench.shadow.identity().features.has(Features::INDIRECT_DESC));
        bench.driver.max_bytes = 300;
        bench.driver.max_segments = 7;
        bench.driver.run(600, |_| ());
        let counters = bench.shadow.counters()[0].snapshot();
        assert_eq!((counters.chains, counters.completions, counters.errors), (600, 600, 0));
        bench.driver.spec.start_at = bench.shadow.stop_queue(0).unwrap();
        bench.start();
        bench.driver.run(100, |_| ());
    }
}

/// How many batches of messages a hundred requests take, one after the other.
fn batches_for_a_hundred(bench: &mut Bench) -> u64 {
    bench.driver.run(50, |_| ());
    let before = bench.guest.link.link().batches.load(Ordering::SeqCst);
    for _ in 0..100 {
        bench.driver.run(1, |_| ());
    }
    bench.guest.link.link().batches.load(Ordering::SeqCst) - before
}

#[test]
fn an_indirect_table_costs_one_round_trip_more() {
    let mut case = case();
    case.options.require = Features::INDIRECT_DESC;
    case.driver = Features::INDIRECT_DESC | Features::EVENT_IDX;
    case.device = Features::EVENT_IDX;
    let mut bench = Bench::new(&case);
    bench.driver.forget_slots_from(DATA + DATA_BYTES / 2);
    let sent = batches_for_a_hundred(&mut bench);
    assert!(sent > 310 && sent <= 410, "{sent} batches for 100 requests");
}

#[test]
fn a_narrow_link_is_as_good() {
    let mut case = case();
    case.size = 256;
    case.driver = Features::EVENT_IDX;
    let guest = rig::guest::Guest::new(true);
    guest.link.link().max_bytes.store(700, Ordering::Relaxed);
    guest.link.link().max_flying.store(3, Ordering::Relaxed);
    let mut bench = Bench::with_guest(&case, guest);
    bench.driver.run(300, |_| ());
}

#[test]
fn a_full_pool_makes_requests_wait() {
    let mut case = case();
    case.options.pool_bytes = bridge::MIN_POOL_BYTES;
    case.size = 256;
    let mut bench = Bench::new(&case);
    bench.driver.max_bytes = 24 << 10;
    bench.driver.max_segments = 8;
    bench.driver.run(500, |_| ());
    let counters = bench.shadow.counters()[0].snapshot();
    assert!(counters.backpressure > 0 && counters.errors == 0, "{counters:?}");
}

#[test]
fn a_request_depends_on_three_round_trips() {
    let mut case = case();
    case.driver = Features::EVENT_IDX;
    case.device = Features::EVENT_IDX;
    let mut bench = Bench::new(&case);
    // Only buffers behind the link.
    bench.driver.forget_slots_from(DATA + DATA_BYTES / 2);
    let sent = batches_for_a_hundred(&mut bench);
    // Index and entries; data, with the question whether there is more; written bytes and used
    // elements. What comes on top is the look after a tenth of a second of silence.
    assert!(sent <= 310, "{sent} batches for 100 requests");
}

#[test]
fn a_queue_stops_and_starts_where_it_was() {
    for in_order in [Features::NONE, Features::IN_ORDER] {
        let mut case = case();
        (case.driver, case.device) = (in_order | Features::EVENT_IDX, in_order);
        let mut bench = Bench::new(&case);
        for round in 0..20 {
            bench.driver.run(30 + round, |_| ());
            for _ in 0..8 {
                bench.driver.offer();
            }
            bench.driver.publish();
            bench.driver.spec.start_at = bench.shadow.stop_queue(0).unwrap();
            // What was sent last may still be on its way: the link keeps the order.
            bench.start();
        }
        bench.driver.run(u64::from(bench.driver.queue.in_flight()), |_| ());
    }
}

#[test]
fn what_a_stopping_queue_writes_gets_through_a_narrow_link() {
    let mut case = case();
    case.size = 256;
    let guest = rig::guest::Guest::new(true);
    guest.link.link().max_bytes.store(300, Ordering::Relaxed);
    guest.link.link().max_flying.store(70, Ordering::Relaxed);
    let mut bench = Bench::with_guest(&case, guest);
    for _ in 0..30 {
        for _ in 0..30 {
            bench.driver.offer();
        }
        bench.driver.publish();
        bench.driver.wait(std::time::Duration::from_millis(1));
        bench.driver.spec.start_at = bench.shadow.stop_queue(0).unwrap();
        bench.start();
        bench.driver.collect();
    }
    bench.driver.run(u64::from(bench.driver.queue.in_flight()), |_| ());
}

#[test]
fn a_device_killed_under_load_comes_back() {
    let mut case = case();
    (case.driver, case.device) = (Features::EVENT_IDX, Features::EVENT_IDX);
    let mut bench = Bench::new(&case);
    let Bench { shadow, device, driver, .. } = &mut bench;
    let mut next = 50;
    let mut dead = false;
    driver.run(1500, |done| {
        if dead {
            device.revive();
            assert_eq!(shadow.control_ready(), [DeviceEvent::Back]);
            (dead, next) = (false, done + 200);
        } else if done >= next {
            device.kill();
            assert!(matches!(shadow.control_ready()[..], [DeviceEvent::Gone(_)]));
            dead = true;
        }
    });
    assert!(shadow.counters()[0].snapshot().restarts >= 3);
}

#[test]
fn a_transfer_that_fails_breaks_the_queue_and_nothing_else() {
    for after in 1..60 {
        let case = case();
        let mut bench = Bench::new(&case);
        bench.driver.forget_slots_from(DATA + DATA_BYTES / 2);
        bench.guest.link.link().fail_after.store(after, Ordering::SeqCst);
        for _ in 0..12 {
            bench.driver.offer();
        }
        bench.driver.publish();
        let events = bench.events();
        let is_broken = matches!(&events[..], [DeviceEvent::QueueBroken { index: 0, .. }]);
        assert!(is_broken, "{after}: {events:?}");
        bench.begin_again(&case);
        bench.driver.run(20, |_| ());
    }
}
