//! A hostile driver against the registers of a virtio function. The row numbers are those of
//! `docs/adversarial.md`. No register write may panic, reach the device out of order, or show what
//! can't be.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use mem::{Access, DriverAddress, Mapping, MemoryMap, Region};
use pcie::virtio_pci::{Legacy, VirtioPci, VirtioPciOptions};
use pcie::{BarAddress, CompletionQueue, Function, HostPort, InterruptKind, Interrupts, ResetKind};
use support::Pattern;
use support::pattern::Seen;
use sys::EventFd;
use virtio::Features;

/// Added to every address, so that one used without translation can't work by luck.
const POISON: u64 = 0x7_0000_0000;
const MEMORY_BYTES: u64 = 0x1_0000;

const MODERN_BAR: u8 = 4;
const LEGACY_BAR: u8 = 0;
const MSIX_BAR: u8 = 1;
const DEVICE_CONFIG: u64 = 0x2000;
/// Of a vector that does not exist.
const NO_VECTOR: u64 = 0xffff;
const NEEDS_RESET: u64 = 0x40;

/// Registers of the common config: offset and length (VIRTIO 1.4, 4.1.4.3).
type Register = (u64, usize);
const DEVICE_FEATURE_SELECT: Register = (0, 4);
const DEVICE_FEATURE: Register = (4, 4);
const DRIVER_FEATURE_SELECT: Register = (8, 4);
const DRIVER_FEATURE: Register = (12, 4);
const CONFIG_VECTOR: Register = (16, 2);
const STATUS: Register = (20, 1);
const QUEUE_SELECT: Register = (22, 2);
const QUEUE_SIZE: Register = (24, 2);
const QUEUE_VECTOR: Register = (26, 2);
const QUEUE_ENABLE: Register = (28, 2);
const QUEUE_DESCRIPTOR: Register = (32, 8);
const QUEUE_DRIVER: Register = (40, 8);
const QUEUE_DEVICE: Register = (48, 8);
const QUEUE_RESET: Register = (58, 2);

/// A function of two queues, of 64 and 16 descriptors, with memory and an interrupt.
struct Rig {
    function: VirtioPci,
    completions: Arc<CompletionQueue>,
    host: HostPort,
    seen: Arc<Seen>,
}

impl Rig {
    fn new() -> Self {
        Self::with(Legacy::Off)
    }

    fn with(legacy: Legacy) -> Self {
        let device = Pattern::new();
        let seen = device.seen();
        let options = VirtioPciOptions { legacy, ..VirtioPciOptions::default() };
        let mut function = VirtioPci::new(Box::new(device), options).unwrap();
        let host = HostPort::new(Interrupts::new(function.layout().interrupts));
        function.connect(host.clone());
        let mapping = Mapping::new_memfd("driver", MEMORY_BYTES as usize).unwrap();
        let region =
            Region::mapped(DriverAddress(POISON), MEMORY_BYTES, Access::ReadWrite, mapping, 0);
        host.memory.replace(MemoryMap::new(vec![region.unwrap()]).unwrap());
        function.memory_changed();
        Self { function, completions: CompletionQueue::new().unwrap(), host, seen }
    }

    fn read(&mut self, bar: u8, offset: u64, len: usize) -> Vec<u8> {
        let (_, answer) = self.completions.begin(len);
        self.function.read(BarAddress { bar, offset }, answer);
        let mut found = None;
        self.completions.collect(|_, bytes| found = Some(bytes.to_vec()));
        found.expect("registers are answered at once")
    }

    fn write(&mut self, bar: u8, offset: u64, bytes: &[u8]) {
        self.function.write(BarAddress { bar, offset }, bytes);
    }

    fn get(&mut self, (offset, len): Register) -> u64 {
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(&self.read(MODERN_BAR, offset, len));
        u64::from_le_bytes(bytes)
    }

    fn put(&mut self, (offset, len): Register, value: u64) {
        self.write(MODERN_BAR, offset, &value.to_le_bytes()[..len]);
    }

    fn accept(&mut self, features: Features) {
        self.put(STATUS, 1);
        self.put(STATUS, 3);
        for half in [0, 1] {
            self.put(DRIVER_FEATURE_SELECT, half);
            self.put(DRIVER_FEATURE, features.0 >> (32 * half) & 0xffff_ffff);
        }
        self.put(STATUS, 11);
    }

    /// Sets up a queue at `offset` bytes into memory.
    fn queue(&mut self, index: u64, size: u64, offset: u64) {
        self.put(QUEUE_SELECT, index);
        self.put(QUEUE_SIZE, size);
        self.put(QUEUE_DESCRIPTOR, POISON.wrapping_add(offset));
        self.put(QUEUE_DRIVER, POISON.wrapping_add(offset) + 0x400);
        self.put(QUEUE_DEVICE, POISON.wrapping_add(offset) + 0x800);
        self.put(QUEUE_ENABLE, 1);
    }

    /// As a correct driver does it; the device must have been reset.
    fn bring_up(&mut self) {
        self.accept(Features::VERSION_1 | Features::RING_RESET);
        self.queue(0, 16, 0);
        self.put(STATUS, 15);
        assert_eq!(self.get(STATUS), 15);
    }

    fn running(&self) -> u32 {
        self.seen.started.load(Ordering::SeqCst) - self.seen.stopped.load(Ordering::SeqCst)
    }

    /// Whatever happened before, a correct driver is served after a reset.
    fn check_works(&mut self) {
        self.put(STATUS, 0);
        assert_eq!((self.get(STATUS), self.running()), (0, 0));
        self.bring_up();
        assert_eq!(self.running(), 1);
    }
}

#[test]
fn row_46_a_queue_that_runs_can_not_be_moved() {
    let mut rig = Rig::new();
    rig.bring_up();
    let places = [QUEUE_SIZE, QUEUE_DESCRIPTOR, QUEUE_DRIVER, QUEUE_DEVICE, QUEUE_ENABLE];
    let before: Vec<u64> = places.into_iter().map(|place| rig.get(place)).collect();
    for value in [0, 1, 32, 0x40, u64::MAX] {
        places.into_iter().for_each(|place| rig.put(place, value));
        let now: Vec<u64> = places.into_iter().map(|place| rig.get(place)).collect();
        assert_eq!(now, before);
    }
    assert_eq!(rig.running(), 1);
    rig.check_works();
}

#[test]
fn row_47_queues_that_do_not_exist() {
    for index in [2, 3, 0x8000, 0xffff] {
        let mut rig = Rig::new();
        rig.accept(Features::VERSION_1 | Features::RING_RESET);
        rig.queue(index, 16, 0);
        rig.put(QUEUE_VECTOR, 1);
        rig.put(QUEUE_RESET, 1);
        for place in [QUEUE_SIZE, QUEUE_VECTOR, QUEUE_ENABLE, QUEUE_DESCRIPTOR, QUEUE_RESET] {
            assert_eq!(rig.get(place), 0);
        }
        rig.put(STATUS, 15);
        assert_eq!((rig.get(STATUS), rig.running()), (15, 0));
        rig.check_works();
    }
}

#[test]
fn row_48_vectors_that_do_not_exist() {
    let mut rig = Rig::new();
    for vector in [3, 4, 0x7ff, 0xfffe] {
        rig.put(CONFIG_VECTOR, vector);
        rig.put(QUEUE_VECTOR, vector);
        assert_eq!((rig.get(CONFIG_VECTOR), rig.get(QUEUE_VECTOR)), (NO_VECTOR, NO_VECTOR));
        for good in [0, 2] {
            rig.put(QUEUE_VECTOR, good);
            assert_eq!(rig.get(QUEUE_VECTOR), good);
        }
    }
}

#[test]
fn row_49_the_msix_table_at_every_size_and_offset() {
    let mut rig = Rig::new();
    let size = rig.function.layout().bars[usize::from(MSIX_BAR)].size;
    let pending = u64::from(rig.function.layout().interrupts.msix.unwrap().pending);
    for len in [1, 2, 3, 4, 8, 13] {
        for offset in 0..=size - len {
            rig.write(MSIX_BAR, offset, &[0xff; 16][..len as usize]);
            let back = rig.read(MSIX_BAR, offset, len as usize);
            for (at, byte) in (offset..).zip(back) {
                assert!(at < pending || byte == 0, "a pending bit was written");
            }
        }
    }
    rig.check_works();
}

#[test]
fn row_50_status_bits_out_of_order() {
    let mut rig = Rig::new();
    for (writes, shown) in [
        (&[4][..], 0),
        (&[8], 0),
        (&[0x40], 0),
        (&[1, 3, 7], 3),
        (&[1, 3, 15], 3),
        (&[1, 3, 1], 3),
        (&[1, 3, 0x83, 0x8b], 0x83),
        (&[0xff], 0),
    ] {
        rig.put(STATUS, 0);
        writes.iter().for_each(|&status| rig.put(STATUS, status));
        assert_eq!((rig.get(STATUS), rig.running()), (shown, 0), "{writes:?}");
        rig.check_works();
    }
    // Features that were not offered, or none at all.
    for features in [Features(u64::MAX), Features::NONE, Features::VERSION_1 | Features::bit(4)] {
        rig.put(STATUS, 0);
        rig.accept(features);
        assert_eq!(rig.get(STATUS), 3);
        rig.check_works();
    }
}

/// A transitional device has two sets of registers; what was settled through one is not changed
/// through the other.
#[test]
fn row_50_both_register_files_at_once() {
    const LEGACY_FEATURES: u64 = 4;
    const LEGACY_STATUS: u64 = 18;
    let mut rig = Rig::with(Legacy::Io);
    let modern = Features::VERSION_1 | Features::EVENT_IDX;
    rig.accept(modern);
    rig.write(LEGACY_BAR, LEGACY_FEATURES, &8u32.to_le_bytes());
    rig.put(DRIVER_FEATURE_SELECT, 0);
    assert_eq!(rig.get(DRIVER_FEATURE), modern.0 & 0xffff_ffff);
    // A driver that begins as a legacy one and starts without any features accepted.
    rig.put(STATUS, 0);
    rig.write(LEGACY_BAR, LEGACY_STATUS, &[1]);
    rig.put(STATUS, 3);
    rig.queue(0, 16, 0);
    rig.put(STATUS, 7);
    assert_eq!(rig.running(), 1);
    assert_eq!(*rig.seen.features.lock().unwrap(), Features::NONE);
    // Its features and status are settled now.
    rig.put(DRIVER_FEATURE, 8);
    assert_eq!(rig.get(DRIVER_FEATURE), 0);
    rig.put(STATUS, 15);
    assert_eq!(rig.get(STATUS), 7);
    rig.check_works();
}

#[test]
fn row_51_feature_words_beyond_the_second() {
    let mut rig = Rig::new();
    for select in [2, 3, 4, 0x8000_0000, 0xffff_ffff] {
        rig.put(DEVICE_FEATURE_SELECT, select);
        assert_eq!(rig.get(DEVICE_FEATURE), 0);
        rig.put(DRIVER_FEATURE_SELECT, select);
        rig.put(DRIVER_FEATURE, 0xffff_ffff);
        assert_eq!(rig.get(DRIVER_FEATURE), 0);
    }
    rig.check_works();
}

#[test]
fn row_52_sizes_that_a_queue_can_not_have() {
    for packed in [false, true] {
        for size in [0, 3, 65, 0x8000, 0xffff] {
            let mut rig = Rig::new();
            let format = if packed { Features::RING_PACKED } else { Features::NONE };
            rig.accept(Features::VERSION_1 | format);
            rig.queue(0, size, 0);
            rig.put(STATUS, 15);
            let shown = rig.get(QUEUE_SIZE);
            assert!(shown <= 64 && (packed || shown.is_power_of_two() || shown == 0));
            // Refused as a size, or as a queue: never started as asked.
            let is_good = packed && size == 3;
            let started = rig.running() == 1;
            assert!(if is_good { shown == 3 && started } else { shown != size || !started });
            rig.check_works();
        }
    }
}

#[test]
fn row_53_rings_where_they_can_not_be() {
    let places =
        [8, 1, MEMORY_BYTES, MEMORY_BYTES - 16, u64::MAX - POISON - 15, 0u64.wrapping_sub(POISON)];
    for packed in [false, true] {
        for place in places {
            let mut rig = Rig::new();
            let interrupt = Arc::new(EventFd::new().unwrap());
            let event = Some(Arc::clone(&interrupt));
            rig.host.interrupts.connect(InterruptKind::Msix, 0, event).unwrap();
            rig.function.interrupts_changed();
            rig.put(CONFIG_VECTOR, 0);
            let format = if packed { Features::RING_PACKED } else { Features::NONE };
            rig.accept(Features::VERSION_1 | format);
            rig.put(QUEUE_SELECT, 0);
            rig.put(QUEUE_SIZE, 16);
            let at = POISON.wrapping_add(place);
            for area in [QUEUE_DESCRIPTOR, QUEUE_DRIVER, QUEUE_DEVICE] {
                rig.put(area, at);
            }
            rig.put(QUEUE_ENABLE, 1);
            rig.put(STATUS, 15);
            assert_eq!(rig.get(STATUS), 15 | NEEDS_RESET, "at {at:#x}");
            assert!(interrupt.drain(), "the driver was not told");
            assert_eq!(rig.running(), 0);
            rig.check_works();
        }
    }
}

#[test]
fn row_54_the_configuration_space_and_its_window() {
    let mut rig = Rig::new();
    let mut bytes = [0xaa; 16];
    for at in [0, 60, 0xff, 0x100, 0xffc, 0xfff, 0x1000, u64::MAX - 3, u64::MAX] {
        for len in [1, 2, 3, 4, 8, 16] {
            rig.function.config_read(at, &mut bytes[..len]);
            rig.function.config_write(at, &[0xff; 16][..len]);
        }
    }
    rig.function.reset(ResetKind::Machine);
    let window = capability(&mut rig, 5);
    for (bar, offset, len) in [
        (0u8, 0u32, 4u32),
        (3, 0, 4),
        (6, 0, 4),
        (255, 0, 4),
        (4, 0x3ffe, 4),
        (4, u32::MAX, 4),
        (4, 0, 0),
        (4, 0, 3),
        (4, 0, 5),
        (4, 2, 4),
    ] {
        rig.function.config_write(window + 4, &[bar]);
        rig.function.config_write(window + 8, &offset.to_le_bytes());
        rig.function.config_write(window + 12, &len.to_le_bytes());
        rig.function.config_write(window + 16, &[0xff; 4]);
        let mut shown = [0xaa; 4];
        rig.function.config_read(window + 16, &mut shown);
        assert_eq!(shown, [0; 4], "bar {bar} at {offset:#x}, {len} bytes");
    }
    assert_eq!(rig.read(MODERN_BAR, DEVICE_CONFIG + 8, 64), [0; 64]);
    rig.check_works();
}

/// Offset of the vendor capability of this type.
fn capability(rig: &mut Rig, cfg_type: u8) -> u64 {
    let mut at = [0; 1];
    rig.function.config_read(0x34, &mut at);
    // As many as fit the space.
    for _ in 0..48 {
        let mut head = [0; 4];
        rig.function.config_read(at[0].into(), &mut head);
        if head[0] == 9 && head[3] == cfg_type {
            return at[0].into();
        }
        at[0] = head[1];
    }
    panic!("no such capability");
}

#[test]
fn row_55_function_resets_stop_the_queues_first() {
    let mut rig = Rig::new();
    for kind in [ResetKind::Function, ResetKind::Machine] {
        rig.bring_up();
        rig.function.reset(kind);
        assert_eq!((rig.get(STATUS), rig.running()), (0, 0));
    }
    // The same by the driver, wherever in the space the bit for it is.
    rig.bring_up();
    let writes = (0..0x100).map(|at| rig.function.config_write(at, &[0xff]).reset);
    assert!(writes.fold(false, |sum, reset| sum | reset), "no function level reset");
    assert_eq!(rig.running(), 0);
    rig.function.reset(ResetKind::Machine);
    rig.check_works();
}

#[test]
fn row_56_storms_of_resets() {
    let mut rig = Rig::new();
    let fds = open_files();
    for round in 0..1000 {
        rig.bring_up();
        if round % 2 == 0 {
            rig.put(QUEUE_SELECT, 0);
            rig.put(QUEUE_RESET, 1);
            assert_eq!((rig.get(QUEUE_RESET), rig.get(QUEUE_ENABLE), rig.running()), (0, 0, 0));
            rig.queue(0, 8, 0x1000);
            assert_eq!(rig.running(), 1);
        }
        rig.put(STATUS, 0);
        assert_eq!((rig.get(STATUS), rig.running()), (0, 0));
    }
    // The other tests of this process open some files too; a leak would be a thousand.
    assert!(open_files() <= fds + 200);
    rig.check_works();
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn row_57_legacy_queues_that_do_not_exist() {
    const QUEUE_ADDRESS: u64 = 8;
    const LEGACY_QUEUE_SIZE: u64 = 12;
    const LEGACY_QUEUE_SELECT: u64 = 14;
    for legacy in [Legacy::Io, Legacy::Memory] {
        let mut rig = Rig::with(legacy);
        rig.write(LEGACY_BAR, 18, &[1]);
        rig.write(LEGACY_BAR, 18, &[3]);
        for index in [2u16, 0xff, 0xffff] {
            rig.write(LEGACY_BAR, LEGACY_QUEUE_SELECT, &index.to_le_bytes());
            assert_eq!(rig.read(LEGACY_BAR, LEGACY_QUEUE_SIZE, 2), [0, 0]);
            for page in [1u32, 0x70_0000, u32::MAX, 0] {
                rig.write(LEGACY_BAR, QUEUE_ADDRESS, &page.to_le_bytes());
                assert_eq!(rig.read(LEGACY_BAR, QUEUE_ADDRESS, 4), [0; 4]);
            }
        }
        // The size is not the driver's to choose, and 0 takes a queue away that is not there.
        rig.write(LEGACY_BAR, LEGACY_QUEUE_SELECT, &[0, 0]);
        rig.write(LEGACY_BAR, LEGACY_QUEUE_SIZE, &[0, 0]);
        assert_eq!(rig.read(LEGACY_BAR, LEGACY_QUEUE_SIZE, 2), [64, 0]);
        rig.write(LEGACY_BAR, QUEUE_ADDRESS, &[0; 4]);
        rig.check_works();
    }
}

#[test]
fn row_43_doorbells_of_nothing() {
    let mut rig = Rig::new();
    rig.bring_up();
    for _ in 0..1000 {
        for offset in (0x3000..0x4000).step_by(4) {
            rig.write(MODERN_BAR, offset, &[0, 0]);
        }
    }
    assert_eq!(rig.get(STATUS), 15);
    rig.check_works();
}
