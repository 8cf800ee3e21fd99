//! Queues stop and start, devices die and come back, memory comes and goes: no request is lost and
//! none is completed twice.
#![allow(clippy::unwrap_used)]

mod rig;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bridge::Mode;
use mem::{Access, DriverAddress, Mapping, MemoryMap, Region};
use rig::guest::{DATA, DATA_BYTES, Guest};
use rig::{Bench, Case};
use virtio::{DeviceError, DeviceEvent, Features, InFlightArea, Sharing, VirtioDevice};

const MODES: [Mode; 2] = [Mode::Translate, Mode::Copy];

fn cases() -> impl Iterator<Item = Case> {
    let formats = [Features::NONE, Features::RING_PACKED];
    let pairs = formats.into_iter().flat_map(move |a| formats.map(|b| (a, b)));
    MODES.into_iter().flat_map(move |mode| {
        pairs.clone().map(move |(driver, device)| {
            let mut case = Case::new(mode);
            case.driver = driver | Features::EVENT_IDX;
            case.device = device | Features::EVENT_IDX;
            case.begin = 65530;
            case
        })
    })
}

#[test]
fn a_device_killed_under_load_comes_back_and_nothing_is_lost() {
    for case in cases() {
        let mut bench = Bench::new(&case);
        let Bench { shadow, device, driver, .. } = &mut bench;
        let mut next = 50;
        let mut dead_since = None;
        driver.run(3000, |done| match dead_since {
            None if done >= next => {
                device.kill();
                let events = shadow.control_ready();
                assert!(matches!(events[..], [DeviceEvent::Gone(_)]), "{events:?}");
                dead_since = Some(0);
            }
            // For a few rounds the driver goes on without a device.
            Some(rounds) if rounds < 3 => dead_since = Some(rounds + 1),
            Some(_) => {
                device.revive();
                assert_eq!(shadow.control_ready(), [DeviceEvent::Back]);
                dead_since = None;
                next = done + 300;
            }
            None => {}
        });
        let restarts = shadow.counters()[0].snapshot().restarts;
        assert!(restarts >= 5, "{restarts}");
        assert_eq!(device.shared.starts.load(Ordering::SeqCst), restarts + 1);
    }
}

#[test]
fn a_bridge_killed_under_load_is_replaced_and_nothing_is_lost() {
    for mut case in cases() {
        for in_order in [Features::NONE, Features::IN_ORDER] {
            case.driver = case.driver | in_order;
            case.device = case.device | in_order;
            let mut bench = Bench::new(&case);
            assert!(bench.shadow.records_in_flight());
            bench.shadow.stop_queue(0).unwrap();
            let mapping = Mapping::new_memfd("in-flight", 1 << 16).unwrap();
            let area = InFlightArea { mapping, queues: 1, queue_size: case.size };
            bench.in_flight = Some(Arc::new(area));
            bench.start();
            let mut replayed = 0;
            for _ in 0..40 {
                let some = bench.driver.dice.below(60);
                bench.driver.run(some, |_| ());
                for _ in 0..bench.driver.dice.below(30) {
                    bench.driver.offer();
                }
                bench.driver.publish();
                for _ in 0..bench.driver.dice.below(400) {
                    std::hint::spin_loop();
                }
                bench.replace_process(&case);
                let served = bench.device.shared.requests.load(Ordering::SeqCst);
                let open = u64::from(bench.driver.queue.in_flight());
                bench.driver.run(open, |_| ());
                replayed += bench.device.shared.requests.load(Ordering::SeqCst) - served;
            }
            assert!(replayed > 40, "{replayed}");
        }
    }
}

#[test]
fn a_device_that_does_not_take_the_drivers_memory_gets_copies() {
    let mut case = Case::new(Mode::Auto);
    case.refuses = true;
    let mut bench = Bench::new(&case);
    assert_eq!(bench.shadow.mode(), Mode::Copy);
    let reason = bench.shadow.reason();
    assert!(reason.contains("does not take the driver's memory (it has no size)"), "{reason}");
    assert_eq!(bench.shadow.sharing(), Sharing::Nothing);
    bench.driver.run(300, |_| ());
    bench.begin_again(&case);
    assert_eq!(bench.shadow.mode(), Mode::Copy, "it is not asked twice");
    bench.driver.run(100, |_| ());
}

#[test]
fn a_queue_without_a_record_goes_on_as_ever() {
    for case in cases() {
        let mut bench = Bench::new(&case);
        let mapping = Mapping::new_memfd("in-flight", 1 << 16).unwrap();
        // A record that ends before this queue.
        let area = InFlightArea { mapping, queues: 0, queue_size: case.size };
        bench.driver.spec.start_at = bench.shadow.stop_queue(0).unwrap();
        bench.in_flight = Some(Arc::new(area));
        bench.start();
        bench.driver.run(100, |_| ());
    }
}

#[test]
fn a_record_that_is_nonsense_is_refused() {
    for case in cases() {
        let mut bench = Bench::new(&case);
        bench.driver.spec.start_at = bench.shadow.stop_queue(0).unwrap();
        let mapping = Mapping::new_memfd("in-flight", 1 << 16).unwrap();
        mapping.table::<std::sync::atomic::AtomicU8>(8, 1).unwrap()[0].store(9, Ordering::SeqCst);
        let area = InFlightArea { mapping, queues: 1, queue_size: case.size };
        bench.in_flight = Some(Arc::new(area));
        assert!(bench.shadow.start_queue(bench.setup()).is_err());
        let starts = bench.device.shared.starts.load(Ordering::SeqCst);
        assert_eq!(starts, 1, "the device never hears of such a queue");
    }
}

#[test]
fn a_queue_stops_and_starts_where_it_was() {
    for mut case in cases() {
        for in_order in [Features::NONE, Features::IN_ORDER] {
            case.driver = case.driver | in_order;
            case.device = case.device | in_order;
            let mut bench = Bench::new(&case);
            for round in 0..20 {
                bench.driver.run(30 + round, |_| ());
                for _ in 0..8 {
                    bench.driver.offer();
                }
                bench.driver.publish();
                let position = bench.shadow.stop_queue(0).unwrap();
                assert!(matches!(bench.shadow.stop_queue(0), Err(DeviceError::NoSuchQueue(0))));
                bench.driver.spec.start_at = position;
                bench.start();
            }
            bench.driver.run(u64::from(bench.driver.queue.in_flight()), |_| ());
        }
    }
}

#[test]
fn a_queue_can_be_started_and_stopped_without_a_device() {
    for case in cases() {
        let mut bench = Bench::new(&case);
        bench.driver.run(10, |_| ());
        bench.device.kill();
        bench.shadow.control_ready();
        for _ in 0..5 {
            bench.driver.offer();
        }
        bench.driver.publish();
        bench.driver.spec.start_at = bench.shadow.stop_queue(0).unwrap();
        bench.start();
        bench.device.revive();
        assert_eq!(bench.shadow.control_ready(), [DeviceEvent::Back]);
        bench.driver.run(20, |_| ());
    }
}

/// The guest's regions without, or with, the last one.
fn regions(guest: &Guest, all: bool) -> Vec<Region> {
    let regions = guest.own.regions();
    regions[..regions.len() - usize::from(!all)].to_vec()
}

#[test]
fn memory_comes_and_goes_while_the_queue_runs() {
    for case in cases() {
        let mut bench = Bench::new(&case);
        let Bench { guest, shadow, driver, device, .. } = &mut bench;
        // The driver keeps to the lower half of its data.
        driver.forget_slots_from(DATA + DATA_BYTES / 2);
        let mut all = true;
        driver.run(1000, |done| {
            if done % 20 == 0 {
                all = !all;
                guest.space.replace(MemoryMap::new(regions(guest, all)).unwrap());
                shadow.memory_changed().unwrap();
                let seen = device.setup().memory.current().regions().len();
                let expected =
                    if case.options.mode == Mode::Translate { 3 + usize::from(all) } else { 1 };
                assert_eq!(seen, expected);
            }
        });
    }
}

#[test]
fn a_missing_translation_is_asked_for_and_waited_for() {
    for case in cases() {
        let guest = Guest::new(false);
        let everything = guest.own.regions().to_vec();
        // Only the rings are known at first.
        let rings = MemoryMap::new(vec![everything[0].clone()]).unwrap().translated();
        guest.space.replace(rings);
        let (send, misses) = std::sync::mpsc::channel();
        guest.space.set_miss_handler(move |at, _| send.send(at).unwrap());
        let mut bench = Bench::with_guest(&case, guest);
        let Bench { guest, shadow, driver, .. } = &mut bench;
        let space = Arc::clone(&guest.space);
        let mut most = 0;
        driver.run(200, |_| {
            let asked: BTreeSet<_> = misses.try_iter().collect();
            most = most.max(asked.len());
            for DriverAddress(at) in asked {
                let known = space.current();
                let region = everything.iter().find(|r| r.start.0 <= at && at < r.end()).unwrap();
                if known.region(region.start).is_err() {
                    space.insert(region.clone()).unwrap();
                }
                shadow.memory_changed().unwrap();
            }
        });
        let counters = shadow.counters()[0].snapshot();
        assert!(counters.misses > 0 && counters.errors == 0, "{counters:?}");
        assert!(most > 1, "all buffers of a request are asked for at once");
    }
}

#[test]
fn our_memory_makes_way_for_the_drivers() {
    let mut bench = Bench::new(&Case::new(Mode::Translate));
    let ours = bench.device.setup().spec.addresses.descriptor;
    bench.shadow.stop_queue(0).unwrap();
    let mapping = Mapping::new_memfd("late", 1 << 20).unwrap();
    let region = Region::mapped(ours, 1 << 20, Access::ReadWrite, mapping, 0).unwrap();
    bench.guest.space.insert(region).unwrap();
    bench.shadow.memory_changed().unwrap();
    bench.start();
    assert_ne!(bench.device.setup().spec.addresses.descriptor, ours);
    bench.driver.run(100, |_| ());
}
