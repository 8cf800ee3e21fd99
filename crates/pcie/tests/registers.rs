//! The registers as the specification has them, and as a hostile driver finds them: rows 46 to 57
//! of the adversarial table.
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
fn row_46_a_running_queue_does_not_move() {
    let (mut direct, seen, memory) = running();
    let before = direct.read(MODERN, at::QUEUE_SELECT, 42);
    for (register, len) in
        [(at::QUEUE_SIZE, 2), (at::QUEUE_DESC, 8), (at::QUEUE_DRIVER, 8), (at::QUEUE_DEVICE, 8)]
    {
        direct.set(register, len, 8);
    }
    direct.set(at::QUEUE_DESC + 4, 4, 0xffff_ffff);
    direct.set(at::QUEUE_ENABLE, 2, 1);
    assert_eq!(direct.read(MODERN, at::QUEUE_SELECT, 42), before);
    assert_eq!(direct.get(at::QUEUE_DESC, 8), memory.base().0);
    assert_eq!(seen.started.load(Ordering::SeqCst), 1, "started once");
}

#[test]
fn row_47_a_queue_that_does_not_exist_reads_as_zero() {
    let (mut direct, _, _memory) = modern();
    direct.negotiate(PLAIN);
    for index in [2, 255, 0xffff] {
        direct.set(at::QUEUE_SELECT, 2, index);
        for (register, len) in [
            (at::QUEUE_SIZE, 2),
            (at::QUEUE_VECTOR, 2),
            (at::QUEUE_ENABLE, 2),
            (at::QUEUE_DESC, 8),
            (at::QUEUE_RESET, 2),
        ] {
            direct.set(register, len, 1);
            assert_eq!(direct.get(register, len), 0, "register {register} of queue {index}");
        }
    }
    assert_eq!(direct.get(at::NUM_QUEUES, 2), 2);
}

#[test]
fn row_48_a_vector_that_does_not_exist_does_not_stick() {
    let (mut direct, _, _memory) = modern();
    for (vector, read) in [(2, 2), (3, 0xffff), (0xfffe, 0xffff), (0, 0), (0xffff, 0xffff)] {
        direct.set(at::CONFIG_VECTOR, 2, vector);
        assert_eq!(direct.get(at::CONFIG_VECTOR, 2), read);
        direct.set(at::QUEUE_VECTOR, 2, vector);
        assert_eq!(direct.get(at::QUEUE_VECTOR, 2), read);
    }
}

#[test]
fn row_49_the_msix_table_is_memory_and_pending_bits_are_not() {
    let (mut direct, _, _memory) = modern();
    direct.write(1, 3, &[1, 2, 3]);
    assert_eq!(direct.read(1, 2, 5), [0, 1, 2, 3, 0]);
    let size = direct.function.layout().bars[1].size;
    let pending = u64::from(direct.function.layout().interrupts.msix.unwrap().pending);
    direct.write(1, pending - 1, &[0xff; 9]);
    assert_eq!(direct.read(1, pending - 1, 9), [0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    direct.write(1, size - 1, &[0xff]);
    assert_eq!(direct.read(1, size - 1, 1), [0]);
}

#[test]
fn row_50_the_status_only_goes_the_right_way() {
    let (mut direct, seen, memory) = modern();
    assert_eq!(direct.set_status(4), 0, "DRIVER_OK from nothing");
    direct.set_status(3);
    assert_eq!(direct.set_status(7), 3, "DRIVER_OK without FEATURES_OK");
    assert_eq!(direct.set_status(1), 3, "a bit cleared without a reset");
    assert_eq!(direct.set_status(11), 3, "FEATURES_OK without VERSION_1");
    direct.negotiate(PLAIN);
    direct.enable_queue(0, 16, memory.base().0);
    assert_eq!(direct.set_status(0x8b), 0x8b);
    assert_eq!(direct.set_status(0x8f), 0x8b, "FAILED is final");
    assert_eq!(seen.started.load(Ordering::SeqCst), 0);
    assert_eq!(direct.set_status(0), 0);
    direct.negotiate(PLAIN);
    direct.enable_queue(0, 16, memory.base().0);
    assert_eq!(direct.set_status(15), 15, "works again after a reset");
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
fn row_51_feature_words_beyond_the_second_are_empty() {
    let (mut direct, _, _memory) = modern();
    for select in [2, 3, 0x8000_0000, 0xffff_ffff] {
        direct.set(at::DEVICE_FEATURE_SELECT, 4, select);
        direct.set(at::DRIVER_FEATURE_SELECT, 4, select);
        assert_eq!(direct.get(at::DEVICE_FEATURE, 4), 0);
        direct.set(at::DRIVER_FEATURE, 4, 0xffff_ffff);
        assert_eq!(direct.get(at::DRIVER_FEATURE, 4), 0);
    }
    direct.set(at::DEVICE_FEATURE_SELECT, 4, 1);
    let offered = Features(direct.get(at::DEVICE_FEATURE, 4) << 32);
    assert!(offered.has(Features::ACCESS_PLATFORM | Features::NOTIFICATION_DATA));
}

#[test]
fn row_52_a_size_that_cannot_be_is_not_taken() {
    let (mut direct, _, _memory) = modern();
    direct.negotiate(PLAIN);
    for size in [0, 3, 65, 128, 0x8000, 0xffff] {
        direct.set(at::QUEUE_SIZE, 2, size);
        assert_eq!(direct.get(at::QUEUE_SIZE, 2), 64);
    }
    direct.negotiate(PLAIN | Features::RING_PACKED);
    direct.set(at::QUEUE_SIZE, 2, 3);
    assert_eq!(direct.get(at::QUEUE_SIZE, 2), 3, "packed rings have any size");
}

#[test]
fn row_53_a_ring_that_cannot_be_makes_the_device_need_a_reset() {
    let (mut direct, seen, memory) = modern();
    let config = direct.interrupt(InterruptKind::Msix, 0);
    let base = memory.base().0;
    let end = base + memory.mapping().len() as u64;
    for place in [base + 1, 0, end - 0x100, u64::MAX - 0xfff, !15] {
        direct.negotiate(PLAIN);
        direct.set(at::CONFIG_VECTOR, 2, 0);
        direct.set(at::QUEUE_SELECT, 2, 0);
        for register in [at::QUEUE_DESC, at::QUEUE_DRIVER, at::QUEUE_DEVICE] {
            direct.set(register, 8, place);
        }
        direct.set(at::QUEUE_ENABLE, 2, 1);
        config.drain();
        assert_eq!(direct.set_status(15), 15 | NEEDS_RESET, "rings at {place:#x}");
        assert!(config.drain(), "the driver is told");
    }
    assert_eq!(seen.started.load(Ordering::SeqCst), 0);
    assert_eq!(direct.set_status(0), 0);
}

#[test]
fn row_54_any_width_anywhere_and_a_window_that_points_nowhere() {
    let (mut direct, _, _memory) = modern();
    assert_eq!(direct.config(4095, 9)[1..], [0xff; 8]);
    assert_eq!(direct.config(u64::MAX - 2, 8), [0xff; 8]);
    direct.function.config_write(4090, &[0; 64]);
    direct.function.config_write(u64::MAX, &[0; 64]);
    let window = find_window(&mut direct);
    for (bar, offset, len) in [
        (7, 0, 4),
        (255, 0, 4),
        (4, 0x4000, 4),
        (4, 0x3ffd, 4),
        (4, 0xffff_fffc, 4),
        (4, 2, 4),
        (4, 0, 3),
        (4, 0, 0),
        (4, 0, 0xffff_ffff),
    ] {
        point_window(&mut direct, window, bar, offset, len);
        direct.function.config_write(window + 16, &[1, 0, 0, 0]);
        assert_eq!(direct.config(window + 16, 4), [0; 4], "bar {bar} at {offset:#x}, {len}");
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
fn row_55_and_56_resets_stop_the_queues_first() {
    let (mut direct, seen, memory) = running();
    // Function level reset: bit 15 of Device Control.
    direct.function.config_write(0x48, &[0, 0x80]);
    assert_eq!(seen.stopped.load(Ordering::SeqCst), 1);
    assert_eq!(direct.status(), 0);
    assert_eq!(direct.config(0x48, 2), [0, 0], "reads as done");
    for round in 0..1000 {
        direct.negotiate(PLAIN);
        direct.enable_queue(0, 16, memory.base().0);
        assert_eq!(direct.set_status(15), 15);
        match round % 3 {
            0 => direct.set(at::STATUS, 1, 0),
            1 => direct.reset(),
            // D3hot and back.
            _ => {
                direct.function.config_write(0x80, &[3]);
                direct.function.config_write(0x80, &[0]);
            }
        }
        assert_eq!(direct.status(), 0);
    }
    assert_eq!(seen.started.load(Ordering::SeqCst), 1001);
    assert_eq!(seen.stopped.load(Ordering::SeqCst), 1001);
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
fn row_43_and_57_bells_and_rings_of_queues_that_do_not_exist() {
    let device = Pattern::of(DeviceType::NET, &[64, 64]);
    let options = VirtioPciOptions { legacy: Legacy::Io, ..VirtioPciOptions::default() };
    let mut direct = Direct::new(device, options);
    let memory = GuestMemory::new(1 << 20).unwrap();
    direct.plug_memory(&memory);
    for index in [0u16, 1, 2, 0xffff] {
        direct.write(MODERN, NOTIFY + u64::from(index % 0x400) * 4, &index.to_le_bytes());
        direct.write(0, 16, &index.to_le_bytes());
        direct.write(0, 14, &index.to_le_bytes());
        direct.write(0, 8, &0u32.to_le_bytes());
        assert_eq!(direct.read(0, 8, 4), [0; 4]);
    }
    direct.write(0, 8, &7u32.to_le_bytes());
    assert_eq!(direct.read(0, 8, 4), [0; 4], "queue 0xffff has no address");
    assert_eq!(direct.read(0, 12, 2), [0; 2], "and no size");
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
