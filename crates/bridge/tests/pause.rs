//! A queue that the driver has disabled: its ring may have become anything.
#![allow(clippy::unwrap_used)]

mod rig;

use std::time::Duration;

use bridge::Mode;
use rig::guest::{Guest, POISON, RINGS_BYTES};
use rig::{Bench, Case};
use virtio::{DeviceEvent, Features, VirtioDevice};

fn cases() -> impl Iterator<Item = Case> {
    let rings = [
        Features::NONE,
        Features::EVENT_IDX,
        Features::RING_PACKED,
        Features::RING_PACKED | Features::EVENT_IDX,
    ];
    let modes = [Mode::Translate, Mode::Copy];
    let shared = modes.into_iter().flat_map(move |mode| {
        rings.map(|ring| {
            let mut case = Case::new(mode);
            (case.driver, case.device) = (ring, Features::EVENT_IDX);
            case.begin = 65530;
            case
        })
    });
    let far = [Features::NONE, Features::EVENT_IDX].map(|ring| {
        let mut case = Case::new(Mode::Auto);
        (case.driver, case.remote) = (ring, true);
        case
    });
    shared.chain(far)
}

fn rings(guest: &Guest) -> Vec<u8> {
    let mut bytes = vec![0; RINGS_BYTES as usize];
    guest.own.read(mem::DriverAddress(POISON), &mut bytes).unwrap();
    bytes
}

/// User Mode Linux makes the next ring where the one was that it has disabled. A word about
/// notifications for the old ring then says that it wants no interrupts.
#[test]
fn not_a_byte_of_a_disabled_ring_is_written() {
    for case in cases() {
        let mut bench = Bench::new(&case);
        bench.driver.run(100, |_| ());
        bench.shadow.enable_queue(0, false).unwrap();
        bench.shadow.enable_queue(0, false).unwrap();
        let before = rings(&bench.guest);
        let noise = vec![0x5a; before.len()];
        bench.guest.own.write(mem::DriverAddress(POISON), &noise).unwrap();
        // Whatever wakes a queue up, and the time after which it looks by itself.
        bench.shadow.memory_changed().unwrap();
        bench.driver.kick.signal();
        if let Some(call) = bench.device.setup().call.event() {
            call.signal();
        }
        std::thread::sleep(Duration::from_millis(150));
        assert!(rings(&bench.guest) == noise, "{case:?}");
        bench.guest.own.write(mem::DriverAddress(POISON), &before).unwrap();
        bench.shadow.enable_queue(0, true).unwrap();
        bench.shadow.enable_queue(0, true).unwrap();
        bench.driver.run(100, |_| ());
    }
}

#[test]
fn a_disabled_queue_stops_and_starts_where_it_was() {
    for case in cases() {
        let mut bench = Bench::new(&case);
        for round in 0..10 {
            bench.driver.run(30 + round, |_| ());
            bench.shadow.enable_queue(0, false).unwrap();
            for _ in 0..8 {
                bench.driver.offer();
            }
            bench.driver.publish();
            bench.driver.spec.start_at = bench.shadow.stop_queue(0).unwrap();
            assert!(bench.shadow.stop_queue(0).is_err());
            bench.start();
        }
        bench.driver.run(u64::from(bench.driver.queue.in_flight()), |_| ());
    }
}

#[test]
fn a_device_may_go_and_come_back_while_its_queue_is_disabled() {
    for case in cases() {
        let mut bench = Bench::new(&case);
        bench.driver.run(100, |_| ());
        bench.shadow.enable_queue(0, false).unwrap();
        bench.device.kill();
        assert!(matches!(bench.shadow.control_ready()[..], [DeviceEvent::Gone(_)]));
        bench.device.revive();
        assert_eq!(bench.shadow.control_ready(), [DeviceEvent::Back]);
        bench.shadow.enable_queue(0, true).unwrap();
        bench.driver.run(100, |_| ());
    }
}
