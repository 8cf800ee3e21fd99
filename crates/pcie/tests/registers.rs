//! The registers as the specification has them. What hostile drivers do with them is in
//! `hostile_driver.rs`.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::atomic::Ordering;

use driver::GuestMemory;
use mem::DriverAddress;
use pcie::virtio_pci::{Legacy, VirtioPciOptions};
use pcie::{Function, InterruptKind};
use support::direct::{DEVICE, ISR, MODERN, NOTIFY, at};
use support::pattern::Seen;
use support::{Direct, Pattern};
use virtio::{DeviceEvent, DeviceType, Features};
use virtqueue::{DriverQueue, QueueAddresses, QueuePosition, QueueSpec, RingFormat, Segment};

const NEEDS_RESET: u64 = 0x40;
const PLAIN: Features = Features(Features::VERSION_1.0 | Features::RING_RESET.0);

fn modern() -> (Direct, std::sync::Arc<Seen>, GuestMemory) {
    let device = Pattern::new();
    let seen = device.seen();
    let memory = GuestMemory::new(1 << 20).unwrap();
    let mut direct = Direct::new(device, VirtioPciOptions::default());
    direct.plug_memory(&memory);
    (direct, seen, memory)
}

/// A device whose queue 0 runs.
fn running() -> (Direct, std::sync::Arc<Seen>, GuestMemory) {
    let (mut direct, seen, memory) = modern();
    assert_eq!(direct.negotiate(PLAIN), 11);
    direct.enable_queue(0, 16, memory.base().0);
    assert_eq!(direct.set_status(15), 15);
    assert_eq!(seen.started.load(Ordering::SeqCst), 1);
    (direct, seen, memory)
}

#[test]
fn features_that_were_not_offered_are_refused_and_accepted_ones_are_fixed() {
    let (mut direct, _, _memory) = modern();
    assert_eq!(direct.negotiate(PLAIN | Features::bit(60)), 3);
    assert_eq!(direct.negotiate(PLAIN), 11);
    direct.set(at::DRIVER_FEATURE_SELECT, 4, 0);
    direct.set(at::DRIVER_FEATURE, 4, 0xffff_ffff);
    assert_eq!(direct.get(at::DRIVER_FEATURE, 4), 0);
}

#[test]
fn doorbells_are_rung_with_the_data_that_was_agreed_on() {
    let with = Features::NOTIF_CONFIG_DATA | Features::NOTIFICATION_DATA;
    for features in [PLAIN, PLAIN | with] {
        let (mut direct, seen, memory) = modern();
        assert_eq!(direct.negotiate(features), 11);
        direct.enable_queue(1, 16, memory.base().0);
        let data = direct.get(at::QUEUE_NOTIFY_DATA, 2);
        assert_eq!(data, if features == PLAIN { 0 } else { 1 });
        direct.set(at::QUEUE_SELECT, 2, 77);
        assert_eq!(direct.get(at::QUEUE_NOTIFY_DATA, 2), 0, "of no queue");
        assert_eq!(direct.set_status(15), 15);
        let device = *seen.features.lock().unwrap();
        assert!((device & with).is_empty(), "no business of the device's");
        let bells = direct.function.doorbells();
        // A queue that starts is looked at in any case.
        for bell in &bells {
            let _started = bell.event.drain();
        }
        // The data, and where the ring stands: index 7, of which the device may make use.
        direct.write(MODERN, NOTIFY + 4, &(data as u32 | 7 << 16).to_le_bytes());
        assert_eq!([0, 1].map(|index: usize| bells[index].event.drain()), [false, true]);
    }
}

/// Who was there before could read what the next one signals, and so take it away.
#[test]
fn the_next_host_has_doorbells_of_its_own() {
    let (mut direct, _, _memory) = modern();
    let before = direct.function.doorbells();
    direct.function.host_present(false);
    direct.function.host_present(true);
    for (before, after) in before.iter().zip(direct.function.doorbells()) {
        after.event.signal();
        assert!(!before.event.drain());
        assert!(after.event.drain());
    }
}

#[test]
fn the_window_reaches_the_registers() {
    let (mut direct, _, _memory) = modern();
    let window = find_window(&mut direct);
    point_window(&mut direct, window, MODERN, at::STATUS as u32, 1);
    direct.function.config_write(window + 16, &[3]);
    assert_eq!(direct.status(), 3);
    assert_eq!(direct.config(window + 16, 1), [3]);
    point_window(&mut direct, window, MODERN, at::NUM_QUEUES as u32, 2);
    assert_eq!(direct.config(window + 16, 4), [2, 0, 0, 0]);
    point_window(&mut direct, window, MODERN, DEVICE as u32 + 4, 4);
    assert_eq!(direct.config(window + 16, 4), [5, 6, 7, 8]);
}

fn find_window(direct: &mut Direct) -> u64 {
    let mut at = direct.config(0x34, 1)[0];
    while at != 0 {
        let cap = direct.config(at.into(), 4);
        if cap[0] == 9 && cap[3] == 5 {
            return at.into();
        }
        at = cap[1];
    }
    panic!("no window")
}

fn point_window(direct: &mut Direct, window: u64, bar: u8, offset: u32, len: u32) {
    direct.function.config_write(window + 4, &[bar]);
    direct.function.config_write(window + 8, &offset.to_le_bytes());
    direct.function.config_write(window + 12, &len.to_le_bytes());
}

#[test]
fn row_56_one_queue_is_reset_and_started_again() {
    let (mut direct, seen, memory) = running();
    direct.set(at::QUEUE_RESET, 2, 1);
    assert_eq!(direct.get(at::QUEUE_RESET, 2), 0);
    assert_eq!(direct.get(at::QUEUE_ENABLE, 2), 0);
    assert_eq!(direct.get(at::QUEUE_SIZE, 2), 64);
    assert_eq!(seen.stopped.load(Ordering::SeqCst), 1);
    direct.enable_queue(0, 32, memory.base().0 + 0x4000);
    assert_eq!(seen.started.load(Ordering::SeqCst), 2);
    let starts = seen.start_positions.lock().unwrap();
    assert_eq!(*starts, [QueuePosition(0), QueuePosition(0)], "from the beginning");
}

#[test]
fn a_legacy_driver_starts_a_queue_by_page_number() {
    let device = Pattern::of(DeviceType::NET, &[64, 64]);
    let seen = device.seen();
    let options = VirtioPciOptions { legacy: Legacy::Io, ..VirtioPciOptions::default() };
    let mut direct = Direct::new(device, options);
    // Legacy page numbers have 32 bits: this memory is low.
    let memory = GuestMemory::new(1 << 20).unwrap();
    let low = DriverAddress(0x10_0000);
    let mapping = std::sync::Arc::clone(memory.mapping());
    let region = mem::Region::mapped(low, 1 << 20, mem::Access::ReadWrite, mapping, 0).unwrap();
    direct.host.memory.insert(region).unwrap();
    assert_eq!(direct.config(2, 2), 0x1000u16.to_le_bytes());
    assert_eq!(direct.config(8, 1), [0], "revision of a transitional device");
    assert_eq!(direct.config(0x2e, 2), [1, 0], "the subsystem is the device type");
    direct.write(0, 18, &[1]);
    direct.write(0, 18, &[3]);
    let offered = u32::from_le_bytes(direct.read(0, 0, 4).try_into().unwrap());
    assert_eq!(offered, (Features::INDIRECT_DESC | Features::EVENT_IDX).0 as u32 | 8);
    direct.write(0, 4, &offered.to_le_bytes());
    direct.write(0, 14, &[0, 0]);
    assert_eq!(direct.read(0, 12, 2), [64, 0]);
    let page = (low.0 / 4096) as u32 + 1;
    direct.write(0, 8, &page.to_le_bytes());
    direct.write(0, 18, &[7]);
    assert_eq!(direct.read(0, 18, 1), [7]);
    assert_eq!(seen.started.load(Ordering::SeqCst), 1);
    assert_eq!(seen.features.lock().unwrap().0, offered.into());
    assert_eq!(direct.read(0, 20, 8), [1, 2, 3, 4, 5, 6, 7, 8], "config without MSI-X");
    direct.interrupt(InterruptKind::Msix, 0);
    assert_eq!(direct.read(0, 20, 12), [0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4, 5, 6, 7, 8]);
    direct.write(0, 18, &[0]);
    assert_eq!(seen.stopped.load(Ordering::SeqCst), 1);
}

#[test]
fn without_msix_a_used_buffer_raises_the_line_until_the_isr_is_read() {
    let (mut direct, _, memory) = running();
    let line = direct.interrupt(InterruptKind::Intx, 0);
    let spec = QueueSpec {
        size: 16,
        format: RingFormat::Split,
        indirect: false,
        event_idx: false,
        in_order: false,
        addresses: QueueAddresses {
            descriptor: memory.base(),
            driver: DriverAddress(memory.base().0 + 0x1000),
            device: DriverAddress(memory.base().0 + 0x2000),
        },
        start_at: QueuePosition(0),
    };
    let mut ring = DriverQueue::new(&memory.map().unwrap(), &spec, None).unwrap();
    let buffer = Segment { addr: DriverAddress(memory.base().0 + 0x8000), len: 64 };
    for round in 0..3 {
        ring.offer(&[], &[buffer], round).unwrap();
        ring.publish_available();
        direct.write(MODERN, NOTIFY, &[0, 0]);
        // Once for the queue, once for the line's own event.
        direct.function.events_ready();
        direct.function.events_ready();
        assert_eq!(ring.take_used().unwrap(), Some((round, 64)));
        assert!(line.drain(), "the line was raised");
        assert_eq!(direct.read(MODERN, ISR, 1), [1]);
        direct.host.interrupts.mask(InterruptKind::Intx, 0, false).unwrap();
        assert!(!line.drain(), "and lowered by the read");
    }
}

#[test]
fn what_the_device_says_reaches_the_driver() {
    let device = Pattern::new();
    let (seen, say) = (device.seen(), device.say());
    let memory = GuestMemory::new(1 << 20).unwrap();
    let mut direct = Direct::new(device, VirtioPciOptions::default());
    direct.plug_memory(&memory);
    let line = direct.interrupt(InterruptKind::Intx, 0);
    direct.negotiate(PLAIN);
    direct.enable_queue(0, 16, memory.base().0);
    direct.set_status(15);
    let generation = direct.get(at::GENERATION, 1);
    seen.say.lock().unwrap().push(DeviceEvent::ConfigChanged);
    say.signal();
    direct.function.events_ready();
    assert!(line.drain());
    assert_eq!(direct.read(MODERN, ISR, 1), [2]);
    assert_eq!(direct.read(MODERN, ISR, 1), [0], "reading clears it");
    assert_eq!(direct.get(at::GENERATION, 1), generation + 1);
    seen.say.lock().unwrap().push(DeviceEvent::NeedsReset("a test".into()));
    say.signal();
    direct.host.interrupts.mask(InterruptKind::Intx, 0, false).unwrap();
    direct.function.events_ready();
    assert!(line.drain());
    assert_eq!(direct.status(), 15 | NEEDS_RESET);
}

#[test]
fn the_config_of_the_device_is_written_where_it_may_be() {
    let (mut direct, _, _memory) = modern();
    direct.write(MODERN, DEVICE + 1, &[9, 9]);
    direct.write(MODERN, DEVICE + 3, &[9, 9]);
    assert_eq!(direct.read(MODERN, DEVICE, 10), [1, 9, 9, 4, 5, 6, 7, 8, 0, 0]);
}

#[test]
fn a_host_that_comes_back_without_a_reset_finds_the_queue_where_it_was() {
    let (mut direct, seen, _memory) = running();
    direct.function.host_present(false);
    assert_eq!(seen.stopped.load(Ordering::SeqCst), 1);
    direct.function.host_present(true);
    assert_eq!(direct.status(), 15);
    assert_eq!(seen.started.load(Ordering::SeqCst), 2);
}

#[test]
fn a_host_that_comes_back_with_a_reset_finds_no_queue_at_work() {
    let (mut direct, seen, _memory) = running();
    direct.function.host_present(false);
    direct.function.host_present(true);
    assert_eq!(direct.set_status(0), 0);
    assert_eq!(seen.started.load(Ordering::SeqCst), 1, "not even for a moment");
}

#[test]
fn faults_that_were_not_heard_of_before_a_reset_are_over_with_it() {
    let device = Pattern::new();
    let (seen, say) = (device.seen(), device.say());
    let memory = GuestMemory::new(1 << 20).unwrap();
    let mut direct = Direct::new(device, VirtioPciOptions::default());
    direct.plug_memory(&memory);
    assert_eq!(direct.negotiate(PLAIN), 11);
    assert_eq!(direct.set_status(15), 15);
    let generation = direct.get(at::GENERATION, 1);
    seen.say.lock().unwrap().extend([
        DeviceEvent::QueueBroken { index: 0, reason: "a test".into() },
        DeviceEvent::ConfigChanged,
        DeviceEvent::NeedsReset("a test".into()),
    ]);
    say.signal();
    assert_eq!(direct.set_status(0), 0);
    direct.function.events_ready();
    assert_eq!(direct.status(), 0, "the driver waits for this");
    assert_eq!(direct.get(at::GENERATION, 1), generation + 1, "all else is still true");
}
