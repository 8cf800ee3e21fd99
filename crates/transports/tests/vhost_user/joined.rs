//! Our device end as the peer of our driver end.

use mem::{DirtyLog, DriverAddress, Mapping};
use virtio::{DeviceEvent, DeviceType, Features, Status, VirtioDevice};
use virtqueue::QueuePosition;

use crate::lab::{
    BASE, CONFIG, PROGRESS, Served, WAYS, bridged, memory, parameters, queue, transport, until,
};

fn start(device: &mut dyn VirtioDevice, features: Features) {
    let (_, space) = memory();
    device.set_memory(&space).unwrap();
    device.accept_features(features).unwrap();
    for index in 0..2 {
        device.start_queue(queue(index, &space, features)).unwrap();
    }
    device.set_status(Status(15)).unwrap();
}

#[test]
fn what_the_device_is_arrives_at_the_other_end() {
    let served = Served::new();
    let mut device = served.device_end(&[]);
    assert_eq!(device.identity().device, DeviceType::BLOCK, "guessed from its features");
    assert_eq!(device.identity().queue_sizes.len(), 2);
    assert!(device.identity().features.has(Features::RINGS));
    assert!(!device.identity().features.has(Features::PROTOCOL_FEATURES));
    let mut config = [0; 8];
    device.read_config(0, &mut config);
    assert_eq!(config, CONFIG[..8]);
    device.write_config(32, &[1]).unwrap();
    assert_eq!(served.seen.lock().unwrap().written, [(32, vec![1])]);
}

#[test]
fn queues_start_where_the_driver_has_them_and_stop_where_they_are() {
    for features in [Features::VERSION_1, Features::VERSION_1 | Features::RING_PACKED] {
        let served = Served::new();
        let mut device = served.device_end(&[]);
        start(&mut *device, features);
        {
            let seen = served.seen.lock().unwrap();
            assert_eq!(seen.features, Some(features));
            assert_eq!(seen.statuses.last(), Some(&15));
            let queue = &seen.running[&1];
            assert_eq!(queue.spec.addresses.descriptor, DriverAddress(BASE + 3 * 4096));
            assert_eq!(queue.spec.addresses.device, DriverAddress(BASE + 5 * 4096));
            assert_eq!(queue.spec.start_at, QueuePosition::start(queue.spec.format));
            assert!(queue.kick.as_ref().unwrap().drain(), "a kick follows the start");
        }
        let start = if features.has(Features::RING_PACKED) { 0x8000_8000 } else { 0 };
        assert_eq!(device.stop_queue(1).unwrap(), QueuePosition(start + PROGRESS));
        assert!(device.stop_queue(1).is_err());
        device.reset().unwrap();
        let seen = served.seen.lock().unwrap();
        assert!(seen.running.is_empty());
        assert_eq!(seen.resets, 1);
    }
}

#[test]
fn kicks_and_interrupts_use_the_drivers_own_events() {
    let served = Served::new();
    let mut device = served.device_end(&[]);
    let (_, space) = memory();
    device.set_memory(&space).unwrap();
    device.accept_features(Features::VERSION_1).unwrap();
    let setup = queue(0, &space, Features::VERSION_1);
    device.start_queue(setup.clone()).unwrap();
    let far = served.seen.lock().unwrap().running[&0].clone();
    far.kick.as_ref().unwrap().drain();
    setup.kick.unwrap().signal();
    assert!(far.kick.unwrap().drain());
    setup.call.event().unwrap().drain();
    far.call.signal();
    assert!(setup.call.event().unwrap().drain());
    // The interrupt moves while the queue runs.
    let other = std::sync::Arc::new(sys::EventFd::new().unwrap());
    setup.call.set(Some(std::sync::Arc::clone(&other)));
    device.notifier_changed(0);
    other.drain();
    far.call.signal();
    assert!(other.drain());
}

#[test]
fn notifications_may_be_messages_both_ways() {
    let served = Served::new();
    let mut device = served.device_end(&[("in-band", "on")]);
    let (_, space) = memory();
    device.set_memory(&space).unwrap();
    device.accept_features(Features::VERSION_1).unwrap();
    let setups = [0, 1].map(|index| queue(index, &space, Features::VERSION_1));
    for setup in &setups {
        device.start_queue(setup.clone()).unwrap();
    }
    let far = |index: u16| served.seen.lock().unwrap().running[&index].clone();
    until(|| served.seen.lock().unwrap().running.len() == 2);
    until(|| far(1).kick.unwrap().drain());
    assert!(device.control_ready().is_empty());
    let device = std::cell::RefCell::new(&mut device);
    for round in 0..3 {
        setups[1].kick.as_ref().unwrap().signal();
        until(|| {
            assert!(device.borrow_mut().control_ready().is_empty());
            far(1).kick.unwrap().drain()
        });
        let call = |index: usize| setups[index].call.event().unwrap();
        call(0).drain();
        far(1).call.signal();
        until(|| {
            assert!(device.borrow_mut().control_ready().is_empty());
            call(1).drain()
        });
        assert!(!call(0).drain(), "the other queue's, in round {round}");
    }
    assert_eq!(device.borrow_mut().stop_queue(1).unwrap(), QueuePosition(PROGRESS));
}

#[test]
fn announcements_and_packet_sizes_hop_to_the_last_device() {
    for mode in WAYS {
        let card = Served::net();
        let device = bridged(card.device_end(&[("type", "net")]), mode);
        let middle = Served::around(device);
        let mut front = middle.device_end(&[("type", "net")]);
        let network = front.network().expect("a network card");
        assert!(network.can_announce() && network.can_set_mtu(), "{mode:?}");
        network.announce([2, 0, 0, 0, 0, 9]).unwrap();
        network.set_mtu(1400).unwrap();
        // What the last one refuses is refused here.
        assert!(network.set_mtu(9001).is_err(), "{mode:?}");
        let seen = card.seen.lock().unwrap();
        assert_eq!((&seen.announced[..], &seen.mtus[..]), (&[[2, 0, 0, 0, 0, 9]][..], &[1400][..]));
    }
    let disk = Served::new();
    assert!(disk.device_end(&[]).network().is_none());
}

#[test]
fn a_config_change_travels_to_the_driver() {
    let served = Served::new();
    let mut device = served.device_end(&[]);
    served.events.send(DeviceEvent::ConfigChanged);
    let device = std::cell::RefCell::new(&mut device);
    until(|| device.borrow_mut().control_ready().contains(&DeviceEvent::ConfigChanged));
}

#[test]
fn the_next_driver_begins_afresh() {
    let served = Served::new();
    for _ in 0..3 {
        let mut device = served.device_end(&[]);
        start(&mut *device, Features::VERSION_1);
        drop(device);
        until(|| served.seen.lock().unwrap().features.is_none());
        assert!(served.seen.lock().unwrap().running.is_empty());
    }
    assert_eq!(served.seen.lock().unwrap().resets, 3);
}

#[test]
fn a_probe_tells_everything_and_starts_nothing() {
    let served = Served::new();
    let path = served.path.display().to_string();
    let found = transport().probe.unwrap()(parameters(&[("path", &path)])).unwrap();
    assert_eq!(found.device, Some(DeviceType::BLOCK));
    assert!(found.features.has(Features::RINGS | Features::PROTOCOL_FEATURES));
    assert_eq!((found.queues, found.memory_slots), (Some(2), 509));
    assert_eq!(found.config[..60], CONFIG);
    for name in ["MQ", "REPLY_ACK", "CONFIG", "STATUS", "CONFIGURE_MEM_SLOTS", "LOG_SHMFD"] {
        assert!(found.protocol_features.iter().any(|known| known == name), "{found:?}");
    }
    assert!(served.seen.lock().unwrap().features.is_none());
}

#[test]
fn the_record_of_requests_in_flight_reaches_the_queues() {
    let served = Served::new();
    let mut device = served.device_end(&[]);
    start(&mut *device, Features::VERSION_1);
    let area = served.seen.lock().unwrap().running[&1].in_flight.clone().unwrap();
    assert_eq!((area.queues, area.queue_size), (2, 256));
    assert!(area.mapping.len() >= 2 * (16 + 256 * 16));
    assert!(device.records_in_flight());
}

#[test]
fn a_migration_reaches_the_device_and_its_marks_come_back() {
    const PAGE: u64 = 4096;
    let served = Served::new();
    let mut device = served.device_end(&[]);
    assert!(device.reach().records_writes);
    let (_, space) = memory();
    device.set_memory(&space).unwrap();
    device.accept_features(Features::VERSION_1).unwrap();
    device.start_queue(queue(0, &space, Features::VERSION_1)).unwrap();
    let marked = |log: &std::sync::Arc<Mapping>, page: u64| {
        let mut byte = [0];
        mem::Span::of_mapping(log, (page / 8) as usize, 1).unwrap().copy_to(&mut byte);
        byte[0] & 1 << (page % 8) != 0
    };
    let bytes = ((BASE + (2 << 20)) / PAGE / 8) as usize;
    let at = DriverAddress(BASE + 7 * PAGE);
    // Another log takes the place of the first, as when memory is added meanwhile.
    for _ in 0..2 {
        let log = Mapping::new_memfd("log", bytes).unwrap();
        space.set_dirty_log(Some(DirtyLog::new(&log).unwrap()));
        device.memory_changed().unwrap();
        {
            let seen = served.seen.lock().unwrap();
            let far = seen.running[&0].memory.current();
            far.mark_dirty(at, 1);
            // It was stopped and started where it was, once.
            assert_eq!(seen.running[&0].spec.start_at, QueuePosition(PROGRESS));
            assert!(!seen.features.unwrap().has(Features::LOG_ALL), "no bit of the device's");
        }
        assert!(marked(&log, at.0 / PAGE) && !marked(&log, at.0 / PAGE + 1));
    }
    space.set_dirty_log(None);
    device.memory_changed().unwrap();
    let seen = served.seen.lock().unwrap();
    assert!(seen.running[&0].memory.current().dirty_log().is_none());
}

#[test]
fn a_guest_behind_an_iommu_is_not_migrated() {
    let served = Served::with(&[("iommu", "on")]);
    let device = served.device_end(&[]);
    assert!(!device.reach().records_writes);
}

#[test]
fn ring_addresses_are_the_other_processes_and_translated() {
    let served = Served::new();
    let (_peer, _file) = crate::hostile_driver::Peer::running(&served);
    let seen = served.seen.lock().unwrap();
    assert_eq!(seen.running[&0].spec.addresses.descriptor, DriverAddress(BASE));
    assert_eq!(seen.running[&0].spec.addresses.device, DriverAddress(BASE + 2 * 4096));
}
