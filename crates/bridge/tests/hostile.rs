//! Drivers and devices that break the rules, each through the shadow: the one at fault is stopped,
//! the other never sees the fault, and after a reset all is well.
#![allow(clippy::unwrap_used)]

mod rig;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bridge::Mode;
use mem::{Access, DriverAddress, Mapping, Region, Resolver};
use rig::guest::{DATA, DATA_BYTES, POISON};
use rig::{Bench, Case};
use virtio::{DeviceEvent, Features, QueueSetup, VirtioDevice};
use virtqueue::{Chain, DeviceQueue, QueueSpec};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

const SIZE: u16 = 16;
/// The modes in which rings of ours stand between the two.
const MODES: [Mode; 3] = [Mode::Translate, Mode::Copy, Mode::Remote];
/// Memory that may only be read.
const READ_ONLY: u64 = DATA + 2 * DATA_BYTES;
/// The end of all writable memory.
const END: u64 = DATA + DATA_BYTES;

/// A descriptor: address, length, flags, and `next` or the buffer id.
type Raw = (u64, u32, u16, u16);

fn bytes((addr, len, flags, last): Raw, packed: bool) -> Vec<u8> {
    let (third, fourth) = if packed { (last, flags) } else { (flags, last) };
    let mut bytes = addr.to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend(third.to_le_bytes());
    bytes.extend(fourth.to_le_bytes());
    bytes
}

struct Attack {
    what: &'static str,
    /// The descriptors, from the first on.
    table: Vec<Raw>,
    /// The heads made available.
    heads: Vec<u16>,
    /// The available index.
    index: u16,
    /// Only wrong when the bytes are copied.
    only_copy: bool,
}

fn attack(what: &'static str, table: &[Raw]) -> Attack {
    Attack { what, table: table.to_vec(), heads: vec![0], index: 1, only_copy: false }
}

/// Rows 1-6, 8, 9, 11, 15-17, 23-29 of the adversarial table, for a split ring without INDIRECT.
fn split_attacks() -> Vec<Attack> {
    let ok = (DATA, 64, 0, 0);
    let all: Vec<Raw> = (0..SIZE).map(|i| (DATA, 8, NEXT, (i + 1) % SIZE)).collect();
    let mut attacks = vec![
        attack("two descriptors loop", &[(DATA, 8, NEXT, 1), (DATA, 8, NEXT, 0)]),
        attack("a descriptor loops", &[(DATA, 8, NEXT, 0)]),
        attack("a chain without an end", &all),
        attack("next beyond the table", &[(DATA, 8, NEXT, SIZE)]),
        attack("next far beyond the table", &[(DATA, 8, NEXT, 0xffff)]),
        attack("unmapped", &[(0x1000, 8, 0, 0)]),
        attack("unmapped for writing", &[(0x1000, 8, WRITE, 0)]),
        attack("address without its poison", &[(DATA - POISON, 8, 0, 0)]),
        attack("wraps around", &[(u64::MAX - 3, 8, 0, 0)]),
        attack("wraps around for writing", &[(u64::MAX - 3, 8, WRITE, 0)]),
        attack("past the end", &[(END - 7, 8, 0, 0)]),
        attack("past the end for writing", &[(END - 7, 8, WRITE, 0)]),
        attack("written where only reading is allowed", &[(READ_ONLY, 8, WRITE, 0)]),
        attack("4 GiB", &[(DATA, u32::MAX, 0, 0)]),
        attack("more than 4 GiB", &[(DATA, u32::MAX, NEXT, 1), (DATA, u32::MAX, 0, 0)]),
        attack("no bytes", &[(DATA, 0, 0, 0)]),
        attack("readable after writable", &[(DATA, 8, WRITE | NEXT, 1), (DATA, 8, 0, 0)]),
        attack("indirect though not agreed", &[(DATA, 16, INDIRECT, 0)]),
    ];
    for (what, heads, index) in [
        ("head is the size", vec![SIZE], 1),
        ("head is the largest number", vec![0xffff], 1),
        ("the index jumps", vec![0], SIZE + 1),
        ("the index goes back", vec![0], 0xffff),
        ("one head twice", vec![0, 0], 2),
    ] {
        attacks.push(Attack { what, table: vec![ok], heads, index, only_copy: false });
    }
    let mut large = attack("larger than the pool", &[(DATA, 1 << 20, 0, 0)]);
    large.only_copy = true;
    attacks.push(large);
    attacks
}

/// Rows 23-28 with INDIRECT agreed; the table is at [`DATA`].
fn indirect_attacks() -> Vec<(&'static str, Raw, Vec<Raw>)> {
    let ok = (DATA + 4096, 8, 0, 0);
    let many: Vec<Raw> = (1..=SIZE + 1).map(|i| (DATA + 4096, 8, NEXT, i)).collect();
    vec![
        ("an empty table", (DATA, 0, INDIRECT, 0), vec![ok]),
        ("not whole descriptors", (DATA, 47, INDIRECT, 0), vec![ok]),
        ("an endless table", (DATA, 0xffff_fff0, INDIRECT, 0), vec![(DATA, 8, NEXT, 0)]),
        ("a table in a chain that goes on", (DATA, 16, INDIRECT | NEXT, 1), vec![ok]),
        ("a table in a table", (DATA, 16, INDIRECT, 0), vec![(DATA, 16, INDIRECT, 0)]),
        ("a loop in a table", (DATA, 32, INDIRECT, 0), vec![(DATA, 8, NEXT, 0)]),
        ("next beyond the table", (DATA, 32, INDIRECT, 0), vec![(DATA, 8, NEXT, 2)]),
        ("longer than the queue", (DATA, 16 * 17, INDIRECT, 0), many),
        ("a table outside memory", (END - 8, 32, INDIRECT, 0), vec![]),
    ]
}

fn bench(mode: Mode, driver: Features) -> (Bench, Case) {
    let mut case = Case::new(mode);
    case.size = SIZE;
    case.driver = driver;
    case.options.pool_bytes = bridge::MIN_POOL_BYTES;
    case.remote = mode == Mode::Remote;
    case.options.require = driver & Features::INDIRECT_DESC;
    let mut bench = Bench::new(&case);
    let mapping = Mapping::new_memfd("ro", 4096).unwrap();
    let at = DriverAddress(READ_ONLY);
    let region = Region::mapped(at, 4096, Access::Read, mapping, 0).unwrap();
    bench.guest.space.insert(region).unwrap();
    bench.shadow.memory_changed().unwrap();
    (bench, case)
}

/// The driver's fault is reported as such, the device has seen nothing, and all works after a
/// reset.
fn expect_broken(bench: &mut Bench, case: &Case, what: &str, allowed: u64) {
    bench.driver.kick.signal();
    let events = bench.events();
    let is_broken = matches!(&events[..], [DeviceEvent::QueueBroken { index: 0, .. }]);
    assert!(is_broken, "{what}: {events:?}");
    let counters = bench.shadow.counters()[0].snapshot();
    assert_eq!(counters.errors, 1, "{what}");
    assert!(counters.chains <= allowed, "{what}");
    assert!(bench.driver.queue.take_used().is_ok(), "{what}");
    bench.begin_again(case);
    bench.driver.max_segments = 2;
    bench.driver.run(5, |_| ());
}

#[test]
fn a_hostile_driver_breaks_its_own_queue_only() {
    for mode in MODES {
        for attack in split_attacks() {
            if attack.only_copy && mode == Mode::Translate {
                continue;
            }
            let (mut bench, case) = bench(mode, Features::NONE);
            let QueueSpec { addresses: at, .. } = bench.driver.spec;
            let map = Arc::clone(&bench.guest.own);
            let table: Vec<u8> = attack.table.iter().flat_map(|d| bytes(*d, false)).collect();
            map.write(at.descriptor, &table).unwrap();
            let heads: Vec<u8> = attack.heads.iter().flat_map(|head| head.to_le_bytes()).collect();
            map.write(DriverAddress(at.driver.0 + 4), &heads).unwrap();
            map.write(DriverAddress(at.driver.0 + 2), &attack.index.to_le_bytes()).unwrap();
            expect_broken(&mut bench, &case, attack.what, attack.heads.len() as u64 - 1);
        }
    }
}

#[test]
fn hostile_indirect_tables_are_refused() {
    for mode in MODES {
        for (what, descriptor, table) in indirect_attacks() {
            let (mut bench, case) = bench(mode, Features::INDIRECT_DESC);
            let at = bench.driver.spec.addresses;
            let map = Arc::clone(&bench.guest.own);
            let table: Vec<u8> = table.iter().flat_map(|d| bytes(*d, false)).collect();
            map.write(DriverAddress(DATA), &table).unwrap();
            map.write(at.descriptor, &bytes(descriptor, false)).unwrap();
            map.write(DriverAddress(at.driver.0 + 2), &1u16.to_le_bytes()).unwrap();
            expect_broken(&mut bench, &case, what, 0);
        }
    }
}

#[test]
fn hostile_packed_rings_are_refused() {
    let ring: Vec<Raw> = (0..SIZE).map(|_| (DATA, 8, AVAIL | NEXT, 0)).collect();
    for mode in [Mode::Translate, Mode::Copy] {
        for (what, table) in [
            ("an id beyond the ring", vec![(DATA, 8, AVAIL, SIZE)]),
            ("a chain all round the ring", ring.clone()),
            ("one id twice", vec![(DATA, 8, AVAIL, 3), (DATA, 8, AVAIL, 3)]),
            ("unmapped", vec![(0x1000, 8, AVAIL, 0)]),
            ("no bytes", vec![(DATA, 0, AVAIL, 0)]),
            ("indirect though not agreed", vec![(DATA, 16, AVAIL | INDIRECT, 0)]),
        ] {
            let (mut bench, case) = bench(mode, Features::RING_PACKED);
            let at = bench.driver.spec.addresses.descriptor;
            let bytes: Vec<u8> = table.iter().flat_map(|d| bytes(*d, true)).collect();
            bench.guest.own.write(at, &bytes).unwrap();
            expect_broken(&mut bench, &case, what, table.len() as u64 - 1);
        }
    }
}

#[test]
fn a_buffer_up_to_the_last_byte_is_fine() {
    for mode in MODES {
        let (mut bench, _) = bench(mode, Features::NONE);
        let at = bench.driver.spec.addresses;
        let map = Arc::clone(&bench.guest.own);
        let table: Vec<u8> = [(END - 8, 8, 0, 0)].iter().flat_map(|d| bytes(*d, false)).collect();
        map.write(at.descriptor, &table).unwrap();
        map.write(DriverAddress(at.driver.0 + 2), &1u16.to_le_bytes()).unwrap();
        bench.driver.kick.signal();
        let used = DriverAddress(at.device.0 + 2);
        bench.driver.wait(rig::LIMIT);
        let mut index = [0; 2];
        map.read(used, &mut index).unwrap();
        assert_eq!(u16::from_le_bytes(index), 1);
        assert_eq!(bench.device.shared.requests.load(Ordering::SeqCst), 1);
    }
}

/// What a device may do wrong, given the id of the only chain in flight and its writable length.
/// What is wrong, the used elements, the used index.
type DeviceAttack = (&'static str, Vec<(u32, u32)>, u16);

fn device_attacks(id: u32, writable: u32) -> Vec<DeviceAttack> {
    vec![
        ("an id beyond the queue", vec![(u32::from(SIZE), 0)], 1),
        ("a huge id", vec![(u32::MAX, 0)], 1),
        ("an id that is not in flight", vec![(id ^ 1, 0)], 1),
        ("an id twice", vec![(id, 0), (id, 0)], 2),
        ("more than there is room for", vec![(id, writable + 1)], 1),
        ("4 GiB", vec![(id, u32::MAX)], 1),
        ("the index jumps", vec![(id, 0)], 9),
        ("the index goes back", vec![(id, 0)], 0xffff),
    ]
}

/// Has the driver offer a chain; what the passive device was told of its queue, and how many bytes
/// it may write.
fn one_chain(bench: &mut Bench) -> (QueueSetup, u32) {
    bench.driver.max_bytes = 40;
    assert!(bench.driver.offer());
    bench.driver.publish();
    let setup = bench.device.setup();
    bench.wait_for_kick();
    let memory = setup.memory.current();
    let mut device = DeviceQueue::new(&memory, &setup.spec).unwrap();
    let mut chain = Chain::with_capacity(setup.spec.size.into());
    let taken = device.take(&mut Resolver::new(memory), &mut chain).unwrap();
    taken.unwrap().abandon();
    let writable = chain.writable_len() as u32;
    assert!(writable > 0, "the chains of this test can be written to");
    (setup, writable)
}

#[test]
fn the_driver_never_sees_a_faulty_device() {
    for mode in MODES {
        for driver in [Features::NONE, Features::RING_PACKED] {
            if mode == Mode::Remote && driver == Features::RING_PACKED {
                continue;
            }
            for attack in 0..device_attacks(0, 0).len() {
                let mut case = Case::new(mode);
                (case.size, case.driver, case.passive) = (SIZE, driver, true);
                case.remote = mode == Mode::Remote;
                let mut bench = Bench::new(&case);
                let (setup, writable) = one_chain(&mut bench);
                let (what, elements, index) = device_attacks(0, writable).remove(attack);
                let (at, map) = (setup.spec.addresses.device, setup.memory.current());
                let table: Vec<u8> = elements
                    .iter()
                    .flat_map(|(id, len)| [id.to_le_bytes(), len.to_le_bytes()].concat())
                    .collect();
                map.write(DriverAddress(at.0 + 4), &table).unwrap();
                map.write(DriverAddress(at.0 + 2), &index.to_le_bytes()).unwrap();
                setup.call.signal();
                let events = bench.events();
                assert!(matches!(events[..], [DeviceEvent::NeedsReset(_)]), "{what}: {events:?}");
                let seen = bench.driver.queue.take_used().unwrap();
                // Only what was right before the fault may have come through.
                assert!(seen.is_none_or(|(_, len)| len == 0 && elements.len() == 2), "{what}");
                bench.device.shared.state.lock().unwrap().passive = false;
                bench.begin_again(&case);
                bench.driver.run(20, |_| ());
            }
        }
    }
}

#[test]
fn a_packed_device_that_lies_is_found_out() {
    for (what, id, len) in [("beyond", SIZE, 0), ("not in flight", 5, 0), ("too long", 0, 1)] {
        let mut case = Case::new(Mode::Copy);
        (case.size, case.passive, case.device) = (SIZE, true, Features::RING_PACKED);
        case.options.device_format = Some(virtqueue::RingFormat::Packed);
        let mut bench = Bench::new(&case);
        let (setup, writable) = one_chain(&mut bench);
        let len = if len > 0 { writable + len } else { 0 };
        let descriptor = bytes((DATA, len, AVAIL | USED | WRITE, id), true);
        setup.memory.current().write(setup.spec.addresses.descriptor, &descriptor).unwrap();
        setup.call.signal();
        let events = bench.events();
        assert!(matches!(events[..], [DeviceEvent::NeedsReset(_)]), "{what}: {events:?}");
        assert!(bench.driver.queue.take_used().unwrap().is_none(), "{what}");
    }
}

#[test]
fn storms_of_notifications_are_harmless() {
    let mut bench = Bench::new(&Case::new(Mode::Copy));
    let setup = bench.device.setup();
    for _ in 0..20_000 {
        bench.driver.kick.signal();
        setup.call.signal();
    }
    bench.driver.run(100, |_| {
        bench_storm(&setup);
    });
    assert_eq!(bench.shadow.counters()[0].snapshot().completions, 100);
}

fn bench_storm(setup: &virtio::QueueSetup) {
    for _ in 0..100 {
        setup.call.signal();
    }
}

#[test]
fn the_device_reaches_only_the_pool_in_copy_mode() {
    let mut bench = Bench::new(&Case::new(Mode::Copy));
    bench.driver.run(50, |_| ());
    let map = bench.device.setup().memory.current();
    assert_eq!(map.regions().len(), 1);
    assert!(map.span(DriverAddress(DATA), 1).is_err());
    assert!(map.span(DriverAddress(POISON), 1).is_err());
}
