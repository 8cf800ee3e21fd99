//! A hostile driver against our device side: every broken rule is a value, never a panic, and odd
//! but legal rings work. The row numbers are those of the
//! project's table of attacks.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used)]

mod rig;

use mem::{Access, DriverAddress, Mapping, MemoryError, MemoryMap, Region, Resolver};
use rig::raw::{AVAIL, INDIRECT, NEXT, Raw, USED, WRITE};
use rig::{DATA, POISON, REGION_BYTES, Rig, TABLES, plain};
use virtqueue::{
    Chain, ChainId, DeviceQueue, QueueError, QueuePosition, QueueSpec, RingFormat, Segment,
};

/// A device whose driver is this test.
struct Target {
    rig: Rig,
    device: DeviceQueue,
    resolver: Resolver,
    chain: Chain,
}

impl Target {
    fn new(spec: QueueSpec) -> Self {
        let rig = Rig::new(spec);
        let device = rig.device();
        let (resolver, chain) = (rig.resolver(), Chain::with_capacity(rig.spec.size.into()));
        Self { rig, device, resolver, chain }
    }

    /// A split queue of 8 with these descriptors and one head available.
    fn split(descriptors: &[Raw], head: u16) -> Self {
        let mut spec = plain(RingFormat::Split, 8);
        spec.indirect = true;
        let target = Self::new(spec);
        target.rig.raw_descriptors(0, descriptors);
        target.rig.raw_available(0, &[head]);
        target
    }

    /// A packed queue of 7 with these descriptors.
    fn packed(descriptors: &[Raw]) -> Self {
        let mut spec = plain(RingFormat::Packed, 7);
        spec.indirect = true;
        let target = Self::new(spec);
        target.rig.raw_descriptors(0, descriptors);
        target
    }

    fn take(&mut self) -> Result<Option<ChainId>, QueueError> {
        self.device.take(&mut self.resolver, &mut self.chain)
    }

    /// What `take` says, twice: an error does not go away by asking again, and nothing is taken.
    fn error(&mut self) -> QueueError {
        let first = self.take().unwrap_err();
        let second = self.take().unwrap_err();
        assert_eq!(first.to_string(), second.to_string());
        assert_eq!(self.device.in_flight(), 0);
        first
    }

    fn take_one(&mut self) -> (ChainId, Vec<Segment>, Vec<Segment>) {
        let id = self.take().unwrap().expect("a chain");
        (id, self.chain.readable().to_vec(), self.chain.writable().to_vec())
    }
}

macro_rules! assert_error {
    ($target:expr, $pattern:pat) => {{
        let error = $target.error();
        assert!(matches!(error, $pattern), "{error:?}");
    }};
}

/// The table at [`TABLES`] as an indirect descriptor of a split queue.
fn split_indirect(entries: u32, flags: u16) -> Raw {
    (TABLES, 16 * entries, INDIRECT | flags, 0)
}

#[test]
fn rows_1_2_loops_end() {
    let two = [(DATA, 1, NEXT, 1), (DATA, 1, NEXT, 0)];
    assert_error!(Target::split(&two, 0), QueueError::ChainTooLong { limit: 8 });
    assert_error!(Target::split(&[(DATA, 1, NEXT, 0)], 0), QueueError::ChainTooLong { .. });
    // Packed: a ring full of descriptors that all go on, row 41.
    let all: Vec<Raw> = (0..7).map(|i| (DATA, 1, i, AVAIL | NEXT)).collect();
    assert_error!(Target::packed(&all), QueueError::ChainTooLong { limit: 7 });
}

#[test]
fn row_3_heads_beyond_the_table() {
    for head in [8, 9, 32768, 65535] {
        assert_error!(Target::split(&[], head), QueueError::IndexOutOfRange { size: 8, .. });
    }
}

#[test]
fn row_4_next_beyond_the_table() {
    for next in [8, 65535] {
        let target = &mut Target::split(&[(DATA, 1, NEXT, next)], 0);
        assert_error!(target, QueueError::IndexOutOfRange { size: 8, .. });
    }
}

#[test]
fn rows_5_6_the_available_index_jumps_or_goes_back() {
    for (index, start) in [(9, 0), (32768, 0), (65535, 0), (0, 3), (65529, 65530), (3, 65530)] {
        let mut spec = plain(RingFormat::Split, 8);
        spec.start_at = QueuePosition::split(start);
        let mut target = Target::new(spec);
        target.rig.raw_available_index(index);
        assert!(target.device.has_available());
        assert_error!(target, QueueError::AvailableIndexJumped { size: 8, .. });
    }
}

#[test]
fn row_7_the_available_index_runs_past_65536() {
    let mut target = Target::split(&[(DATA, 1, 0, 0)], 0);
    for n in 0..140_000_u32 {
        target.rig.raw_available(n as u16, &[0]);
        let (id, ..) = target.take_one();
        target.device.give_back(id, 0);
        target.device.publish_used();
        assert!(target.device.wants_interrupt());
    }
    assert_eq!(target.rig.read_u16(target.rig.spec.addresses.device, 2), 140_000_u32 as u16);
}

/// Rows 8 to 11: addresses are only resolved by whoever moves the data; the rules are the map's.
#[test]
fn rows_8_to_11_buffers_in_the_wrong_place() {
    let end = POISON + REGION_BYTES as u64;
    let buffers = [
        (0x1000, 64, false),
        (u64::MAX - 8, 64, false),
        (end - 64, 64, true),
        (end - 64, 65, false),
        (end, 1, false),
    ];
    for (addr, len, good) in buffers {
        for packed in [false, true] {
            let mut target = match packed {
                false => Target::split(&[(addr, len, 0, 0)], 0),
                true => Target::packed(&[(addr, len, 3, AVAIL)]),
            };
            let (id, readable, _) = target.take_one();
            let [segment] = readable[..] else { panic!("one buffer") };
            let mut bytes = vec![0; segment.len as usize];
            assert_eq!(target.rig.map.read(segment.addr, &mut bytes).is_ok(), good);
            target.device.give_back(id, 0);
        }
    }
}

/// A map of two regions that touch in the driver's addresses and are apart in ours.
fn two_regions(border: u64) -> MemoryMap {
    let region = |start: u64, len: u64| {
        let mapping = Mapping::new_memfd("part", len as usize).unwrap();
        Region::mapped(DriverAddress(start), len, Access::ReadWrite, mapping, 0).unwrap()
    };
    let rest = POISON + REGION_BYTES as u64 - border;
    MemoryMap::new(vec![region(POISON, border - POISON), region(border, rest)]).unwrap()
}

#[test]
fn row_13_an_indirect_table_across_regions() {
    for packed in [false, true] {
        let mut spec = plain(if packed { RingFormat::Packed } else { RingFormat::Split }, 8);
        spec.indirect = true;
        let rig = Rig { map: two_regions(TABLES + 0x1000).into(), ..Rig::new(spec) };
        // The border cuts the second entry in half.
        let at = TABLES + 0x1000 - 24;
        let (more, last) = if packed { ((0, 0), (0, WRITE)) } else { ((NEXT, 1), (WRITE, 0)) };
        rig.raw_table(at, &[(DATA, 10, more.0, more.1), (DATA + 64, 20, last.0, last.1)]);
        match packed {
            true => rig.raw_descriptors(0, &[(at, 32, 0, AVAIL | INDIRECT)]),
            false => {
                rig.raw_descriptors(0, &[(at, 32, INDIRECT, 0)]);
                rig.raw_available(0, &[0]);
            }
        }
        let (mut device, mut chain) = (rig.device(), Chain::with_capacity(8));
        let id = device.take(&mut rig.resolver(), &mut chain).unwrap().unwrap();
        assert_eq!(chain.readable(), [Segment { addr: DriverAddress(DATA), len: 10 }]);
        assert_eq!(chain.writable(), [Segment { addr: DriverAddress(DATA + 64), len: 20 }]);
        device.give_back(id, 20);
    }
}

#[test]
fn rows_14_52_53_rings_in_the_wrong_place_or_of_the_wrong_size() {
    let rig = Rig::new(plain(RingFormat::Split, 8));
    let end = POISON + REGION_BYTES as u64;
    for format in [RingFormat::Split, RingFormat::Packed] {
        let refuse = |change: &dyn Fn(&mut QueueSpec)| {
            let mut spec = plain(format, 8);
            spec.event_idx = true;
            change(&mut spec);
            DeviceQueue::new(&rig.map, &spec).unwrap_err()
        };
        let error = refuse(&|spec| spec.addresses.descriptor.0 = end - 16);
        assert!(matches!(error, QueueError::Memory(MemoryError::BadTable { .. })));
        let error = refuse(&|spec| spec.addresses.device.0 = end);
        assert!(matches!(error, QueueError::Memory(MemoryError::Unmapped(_))));
        let error = refuse(&|spec| spec.addresses.driver.0 = 0x1000);
        assert!(matches!(error, QueueError::Memory(MemoryError::Unmapped(_))));
        let error = refuse(&|spec| spec.addresses.descriptor.0 += 8);
        assert!(matches!(error, QueueError::Misaligned { alignment: 16, .. }));
        let error = refuse(&|spec| spec.addresses.device.0 += 2);
        assert!(matches!(error, QueueError::Misaligned { alignment: 4, .. }));
        let error = refuse(&|spec| spec.addresses.driver.0 += 1);
        assert!(matches!(error, QueueError::Misaligned { .. }));
        for size in [0, 32769, 65535] {
            let error = refuse(&|spec| spec.size = size);
            assert!(matches!(error, QueueError::BadSize { .. }));
        }
    }
    let mut spec = plain(RingFormat::Split, 3);
    assert!(matches!(DeviceQueue::new(&rig.map, &spec), Err(QueueError::BadSize { .. })));
    spec.format = RingFormat::Packed;
    spec.start_at = QueuePosition(0x8003_8003);
    assert!(matches!(DeviceQueue::new(&rig.map, &spec), Err(QueueError::BadPosition { .. })));
}

#[test]
fn row_15_more_bytes_than_32_bits_can_say() {
    let split = [(DATA, u32::MAX, NEXT, 1), (DATA, 2, 0, 0)];
    assert_error!(Target::split(&split, 0), QueueError::TooManyBytes(0x1_0000_0001));
    let packed = [(DATA, u32::MAX, 0, AVAIL | NEXT), (DATA, u32::MAX, 0, AVAIL | WRITE)];
    assert_error!(Target::packed(&packed), QueueError::TooManyBytes(_));
    // One such descriptor alone is within the rule; no memory holds it.
    let (id, readable, _) = Target::split(&[(DATA, u32::MAX, 0, 0)], 0).take_one();
    assert_eq!(readable[0].len, u32::MAX);
    id.abandon();
}

#[test]
fn row_16_zero_length() {
    for addr in [DATA, 0] {
        assert_error!(Target::split(&[(addr, 0, 0, 0)], 0), QueueError::ZeroLength);
        assert_error!(Target::packed(&[(addr, 0, 0, AVAIL)]), QueueError::ZeroLength);
        assert_error!(Target::packed(&[(addr, 0, 0, AVAIL | WRITE)]), QueueError::ZeroLength);
    }
}

#[test]
fn row_17_readable_after_writable() {
    let split = [(DATA, 1, WRITE | NEXT, 1), (DATA, 1, 0, 0)];
    assert_error!(Target::split(&split, 0), QueueError::ReadableAfterWritable);
    let packed = [(DATA, 1, 0, AVAIL | WRITE | NEXT), (DATA, 1, 0, AVAIL)];
    assert_error!(Target::packed(&packed), QueueError::ReadableAfterWritable);
}

#[test]
fn row_20_a_header_of_one_byte_pieces() {
    let mut target = Target::new(plain(RingFormat::Split, 16));
    let pieces: Vec<Raw> = (0..16)
        .map(|i| (DATA + u64::from(i) * 3, 1, if i < 15 { NEXT } else { 0 }, (i + 1) % 16))
        .collect();
    target.rig.raw_descriptors(0, &pieces);
    target.rig.raw_available(0, &[0]);
    let (id, readable, writable) = target.take_one();
    assert_eq!((readable.len(), writable.len()), (16, 0));
    target.device.give_back(id, 0);
}

#[test]
fn row_23_indirect_without_negotiation() {
    let mut target = Target::new(plain(RingFormat::Split, 8));
    target.rig.raw_table(TABLES, &[(DATA, 1, 0, 0)]);
    target.rig.raw_descriptors(0, &[split_indirect(1, 0)]);
    target.rig.raw_available(0, &[0]);
    assert_error!(target, QueueError::IndirectNotNegotiated);
    let mut target = Target::new(plain(RingFormat::Packed, 8));
    target.rig.raw_descriptors(0, &[(TABLES, 16, 0, AVAIL | INDIRECT)]);
    assert_error!(target, QueueError::IndirectNotNegotiated);
}

#[test]
fn row_24_lengths_of_indirect_tables() {
    for len in [0, 1, 15, 47, 0xffff_ffff] {
        let target = &mut Target::split(&[(TABLES, len, INDIRECT, 0)], 0);
        assert_error!(target, QueueError::IndirectLength(_));
        let target = &mut Target::packed(&[(TABLES, len, 0, AVAIL | INDIRECT)]);
        assert_error!(target, QueueError::IndirectLength(_));
    }
    // A table that says it is huge: packed chains are as long as their table, split ones end
    // where they end.
    let target = &mut Target::packed(&[(TABLES, 0xffff_fff0, 0, AVAIL | INDIRECT)]);
    assert_error!(target, QueueError::ChainTooLong { .. });
    let target = &mut Target::split(&[(u64::MAX - 100, 0xffff_fff0, INDIRECT, 0)], 0);
    assert_error!(target, QueueError::Memory(MemoryError::Overflow));
    let mut target = Target::split(&[(TABLES, 16 * 65536, INDIRECT, 0)], 0);
    target.rig.raw_table(TABLES, &[(DATA, 1, NEXT, 60_000)]);
    target.rig.raw_table(TABLES + 16 * 60_000, &[(DATA, 1, WRITE, 0)]);
    let (id, readable, writable) = target.take_one();
    assert_eq!((readable.len(), writable.len()), (1, 1));
    target.device.give_back(id, 1);
}

#[test]
fn rows_25_26_27_28_indirect_tables_that_break_rules() {
    let split = |table: &[Raw], descriptor| {
        let target = Target::split(&[descriptor, (DATA, 1, 0, 0)], 0);
        target.rig.raw_table(TABLES, table);
        target
    };
    assert_error!(split(&[(DATA, 1, 0, 0)], split_indirect(1, NEXT)), QueueError::IndirectInChain);
    let nested = [(TABLES, 16, INDIRECT, 0)];
    assert_error!(split(&nested, split_indirect(1, 0)), QueueError::NestedIndirect);
    let own = [(DATA, 1, NEXT, 0)];
    assert_error!(split(&own, split_indirect(1, 0)), QueueError::ChainTooLong { .. });
    let outside = [(DATA, 1, NEXT, 1)];
    let target = &mut split(&outside, split_indirect(1, 0));
    assert_error!(target, QueueError::IndexOutOfRange { index: 1, size: 1 });
    let long: Vec<Raw> = (0..1024).map(|i| (DATA, 1, NEXT, i + 1)).collect();
    assert_error!(split(&long, split_indirect(1024, 0)), QueueError::ChainTooLong { limit: 8 });

    let packed = |table: &[Raw], flags| {
        let len = 16 * table.len() as u32;
        let target = Target::packed(&[(TABLES, len, 0, AVAIL | flags), (DATA, 1, 0, AVAIL)]);
        target.rig.raw_table(TABLES, table);
        target
    };
    let one = [(DATA, 1, 0, 0)];
    assert_error!(packed(&one, INDIRECT | NEXT), QueueError::IndirectInChain);
    assert_error!(packed(&[(TABLES, 16, 0, INDIRECT)], INDIRECT), QueueError::NestedIndirect);
    let long: Vec<Raw> = (0..1024).map(|_| (DATA, 1, 0, 0)).collect();
    assert_error!(packed(&long, INDIRECT), QueueError::ChainTooLong { limit: 7 });
    let behind = [(DATA, 1, 0, AVAIL | NEXT), (TABLES, 16, 0, AVAIL | INDIRECT)];
    assert_error!(Target::packed(&behind), QueueError::IndirectInChain);
}

/// Odd but legal (VIRTIO 1.4, 2.7.5.3.2): direct descriptors, then one table; WRITE on it means
/// nothing.
#[test]
fn direct_descriptors_before_a_table() {
    let direct = (DATA, 5, NEXT, 1);
    let mut target = Target::split(&[direct, split_indirect(2, WRITE)], 0);
    target.rig.raw_table(TABLES, &[(DATA + 8, 6, NEXT, 1), (DATA + 16, 7, WRITE, 0)]);
    let (id, readable, writable) = target.take_one();
    assert_eq!(readable.iter().map(|s| s.len).collect::<Vec<_>>(), [5, 6]);
    assert_eq!(writable.iter().map(|s| s.len).collect::<Vec<_>>(), [7]);
    target.device.give_back(id, 7);
}

#[test]
fn an_indirect_table_without_translation_can_be_tried_again() {
    let mut target = Target::split(&[(0x5000, 16, INDIRECT, 0)], 0);
    let translated = MemoryMap::clone(&target.rig.map).translated();
    target.resolver = Resolver::new(translated.into());
    assert_error!(target, QueueError::Miss(DriverAddress(0x5000)));
    target.rig.raw_descriptors(0, &[(TABLES, 16, INDIRECT, 0)]);
    target.rig.raw_table(TABLES, &[(DATA, 9, 0, 0)]);
    let (id, readable, _) = target.take_one();
    assert_eq!(readable[0].len, 9);
    target.device.give_back(id, 0);
}

#[test]
fn row_29_the_same_head_twice() {
    // The higher ones have no entry until they are taken.
    for head in [0, 5, 7] {
        let mut target = Target::split(&[(DATA, 1, 0, 0); 8], head);
        let (id, ..) = target.take_one();
        target.rig.raw_available(1, &[head]);
        assert!(matches!(target.take(), Err(QueueError::AvailableTwice(at)) if at == head));
        target.device.give_back(id, 0);
        // Once it is given back the head is free again.
        let (id, ..) = target.take_one();
        target.device.give_back(id, 0);
    }
}

#[test]
fn row_40_packed_flags_and_ids() {
    // Neither bit, or both: not available, so nothing is there.
    for flags in [0, AVAIL | USED, USED] {
        let mut target = Target::packed(&[(DATA, 1, 0, flags)]);
        assert!(!target.device.has_available());
        assert!(target.take().unwrap().is_none());
    }
    for id in [7, 8, 65535] {
        let target = &mut Target::packed(&[(DATA, 1, id, AVAIL)]);
        assert_error!(target, QueueError::IndexOutOfRange { size: 7, .. });
    }
    let mut target = Target::packed(&[(DATA, 1, 3, AVAIL), (DATA, 1, 3, AVAIL)]);
    let (id, ..) = target.take_one();
    assert!(matches!(target.take(), Err(QueueError::AvailableTwice(3))));
    target.device.give_back(id, 0);
}

#[test]
fn row_41_packed_chains_and_the_end_of_the_ring() {
    // A legal chain across the end: 5, 6, 0.
    let mut spec = plain(RingFormat::Packed, 7);
    spec.start_at = QueuePosition(0x8005_8005);
    let mut target = Target::new(spec);
    let raws = [(DATA, 1, 9, AVAIL | NEXT), (DATA, 2, 9, AVAIL | NEXT)];
    target.rig.raw_descriptors(5, &raws);
    target.rig.raw_descriptors(0, &[(DATA, 3, 4, USED | WRITE)]);
    let (id, readable, writable) = target.take_one();
    assert_eq!((id.index(), readable.len(), writable.len()), (4, 2, 1));
    assert_eq!(target.device.position(), QueuePosition(0x8005_0001));
    // Another one that would run into it.
    let raws: Vec<Raw> = (1..5).map(|_| (DATA, 1, 0, USED | NEXT)).collect();
    target.rig.raw_descriptors(1, &raws);
    assert!(matches!(target.take(), Err(QueueError::ChainOverrun)));
    target.device.give_back(id, 3);
    target.device.publish_used();
    assert_eq!(target.rig.read_packed(5), (3, 4, AVAIL | USED | WRITE));
    assert_eq!(target.device.position(), QueuePosition(0x0001_0001));
}

/// DPDK leaves the used half 0, others say 0 of a fresh packed ring; a ring after one lap says 0
/// too.
#[test]
fn packed_positions_as_peers_send_them() {
    for position in [0, 0x8000, 0x8000_8000] {
        let mut spec = plain(RingFormat::Packed, 7);
        spec.start_at = QueuePosition(position);
        let rig = Rig::new(spec);
        rig.raw_descriptors(0, &[(DATA, 1, 0, AVAIL)]);
        let (mut device, mut chain) = (rig.device(), Chain::with_capacity(7));
        let id = device.take(&mut rig.resolver(), &mut chain).unwrap().expect("available");
        device.give_back(id, 0);
        device.publish_used();
        assert_eq!(rig.read_packed(0).2, AVAIL | USED);
        assert_eq!(device.position(), QueuePosition(0x8001_8001));
    }
    // After a lap: what is left there is a used descriptor, then one made available on lap two.
    let mut spec = plain(RingFormat::Packed, 7);
    spec.start_at = QueuePosition(0);
    let rig = Rig::new(spec);
    rig.raw_descriptors(0, &[(DATA, 1, 0, AVAIL | USED)]);
    assert!(!rig.device().has_available());
    rig.raw_descriptors(0, &[(DATA, 1, 0, USED)]);
    assert!(rig.device().has_available());
    // After a lap whose last chain went round the end: the first descriptor was in its middle.
    rig.raw_descriptors(0, &[(DATA, 1, 0, AVAIL)]);
    rig.raw_descriptors(5, &[(DATA, 1, 0, AVAIL | USED)]);
    assert!(!rig.device().has_available());
    // Only the available half of a ring on its first lap.
    let mut spec = plain(RingFormat::Packed, 7);
    spec.start_at = QueuePosition(0x8003);
    assert_eq!(Rig::new(spec).device().position(), QueuePosition(0x8003_8003));
}
