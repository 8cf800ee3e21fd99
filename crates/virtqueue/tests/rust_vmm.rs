//! Split rings against rust-vmm's: our driver with its device, its mock driver with our device.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used)]

mod rig;

use std::collections::VecDeque;
use std::fs::File;

use proptest::prelude::*;
use rig::{POISON, REGION_BYTES, Rig, area, plain, segment};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueT};
use virtqueue::{Chain, QueuePosition, QueueSpec, RingFormat, Segment};
use vm_memory::{Address, FileOffset, GuestAddress, GuestMemoryMmap};

/// The rig's memory as the other implementation sees it.
fn other_view(rig: &Rig) -> GuestMemoryMmap {
    let fd = rig.mapping.file().unwrap().0.try_clone_to_owned().unwrap();
    let file = FileOffset::new(File::from(fd), 0);
    let range = (GuestAddress(POISON), REGION_BYTES, Some(file));
    GuestMemoryMmap::from_ranges_with_files([range]).unwrap()
}

fn halves(address: u64) -> (Option<u32>, Option<u32>) {
    (Some(address as u32), Some((address >> 32) as u32))
}

fn their_device(spec: &QueueSpec) -> Queue {
    let mut queue = Queue::new(spec.size).unwrap();
    let (low, high) = halves(spec.addresses.descriptor.0);
    queue.set_desc_table_address(low, high);
    let (low, high) = halves(spec.addresses.driver.0);
    queue.set_avail_ring_address(low, high);
    let (low, high) = halves(spec.addresses.device.0);
    queue.set_used_ring_address(low, high);
    queue.set_event_idx(spec.event_idx);
    queue.set_next_avail(spec.start_at.index());
    queue.set_next_used(spec.start_at.index());
    queue.set_ready(true);
    queue
}

#[test]
fn our_driver_with_their_device() {
    for case in 0..4u8 {
        let mut spec = plain(RingFormat::Split, 16);
        (spec.indirect, spec.event_idx) = (case & 1 == 1, case & 2 == 2);
        spec.start_at = QueuePosition::split(65530);
        let rig = Rig::new(spec);
        let memory = other_view(&rig);
        let mut driver = rig.driver(Some(area(4, 8)));
        let mut device = their_device(&rig.spec);
        assert!(device.is_valid(&memory));
        let all: Vec<Segment> = (0..6).map(|at| segment(at * 64, 1 + at as u32)).collect();
        let (mut next, mut expected) = (0usize, 0usize);
        for round in 0..20_000usize {
            let armed = !device.enable_notification(&memory).unwrap();
            let before = next;
            for _ in 0..1 + round % 5 {
                let (readable, writable) = all[..1 + next % 6].split_at(next % 2);
                if driver.offer(readable, writable, next).is_err() {
                    break;
                }
                next += 1;
            }
            driver.publish_available();
            let kicked = driver.wants_kick();
            assert!(!armed || before == next || kicked, "a lost kick");
            let asleep = !driver.arm_interrupt();
            let mut served = 0;
            while let Some(chain) = device.pop_descriptor_chain(&memory) {
                let (head, context) = (chain.head_index(), expected + served);
                let theirs: Vec<_> = chain.collect();
                let ours = &all[..1 + context % 6];
                assert_eq!(theirs.len(), ours.len());
                for (at, (a, b)) in theirs.iter().zip(ours).enumerate() {
                    assert_eq!((a.addr().raw_value(), a.len()), (b.addr.0, b.len));
                    assert_eq!(a.is_write_only(), at >= context % 2);
                }
                let written = theirs.iter().filter(|d| d.is_write_only()).map(|d| d.len()).sum();
                device.add_used(&memory, head, written).unwrap();
                served += 1;
            }
            let interrupted = device.needs_notification(&memory).unwrap();
            assert!(!asleep || served == 0 || interrupted, "a lost interrupt");
            while let Some((context, written)) = driver.take_used().unwrap() {
                let (_, writable) = all[..1 + context % 6].split_at(context % 2);
                assert_eq!(context, expected);
                assert_eq!(written, writable.iter().map(|s| s.len).sum::<u32>());
                expected += 1;
            }
        }
        assert_eq!((expected, driver.in_flight()), (next, 0));
        assert!(next > 20_000);
    }
}

#[test]
fn their_driver_with_our_device() {
    let rig = Rig::new(plain(RingFormat::Split, 64));
    let memory = other_view(&rig);
    let driver = MockSplitQueue::create(&memory, GuestAddress(POISON), 64);
    let mut spec = plain(RingFormat::Split, 64);
    spec.addresses.descriptor.0 = driver.desc_table_addr().raw_value();
    spec.addresses.driver.0 = driver.avail_addr().raw_value();
    spec.addresses.device.0 = driver.used_addr().raw_value();
    let rig = Rig { spec, ..rig };
    // Chains of 1 to 6 descriptors: readable ones, then writable ones.
    let lengths = [1usize, 2, 3, 4, 5, 6, 1, 6];
    let mut descriptors = Vec::new();
    for &length in &lengths {
        for at in 0..length {
            let index = descriptors.len() as u16;
            let more = u16::from(at + 1 < length);
            let write = if at >= length / 2 { 2 } else { 0 };
            let addr = segment(u64::from(index) * 64, 0).addr.0;
            let raw = Descriptor::new(addr, 7 + u32::from(index), more | write, index + 1);
            descriptors.push(RawDescriptor::from(raw));
        }
    }
    driver.add_desc_chains(&descriptors, 0).unwrap();
    let (mut device, mut resolver) = (rig.device(), rig.resolver());
    let mut chain = Chain::with_capacity(64);
    let mut first = 0;
    for (count, &length) in lengths.iter().enumerate() {
        let id = device.take(&mut resolver, &mut chain).unwrap().expect("a chain");
        assert_eq!(usize::from(id.head()), first);
        let whole = |at: usize| segment(at as u64 * 64, 7 + at as u32);
        let expected: Vec<Segment> = (first..first + length).map(whole).collect();
        assert_eq!((chain.readable(), chain.writable()), expected.split_at(length / 2));
        device.give_back(id, 7);
        device.publish_used();
        assert_eq!(usize::from(u16::from_le(driver.used().idx().load())), count + 1);
        let element = driver.used().ring().ref_at(count).unwrap().load();
        assert_eq!((element.id() as usize, element.len()), (first, 7));
        first += length;
    }
    assert!(device.take(&mut resolver, &mut chain).unwrap().is_none());
}

/// What happens next.
#[derive(Clone, Debug)]
enum Move {
    /// Our driver offers a chain: the lengths of its buffers, how many of them come first to be
    /// read.
    Offer(Vec<u32>, usize),
    /// Their device takes so many.
    Take(usize),
    /// It gives back so many, the first or the last taken first.
    GiveBack(usize, bool),
    /// Our driver takes what is used.
    Complete,
}

fn any_move() -> impl Strategy<Value = Move> {
    let chain = prop::collection::vec(1..3000_u32, 1..7);
    prop_oneof![
        4 => (chain, 0..7_usize).prop_map(|(lengths, readable)| Move::Offer(lengths, readable)),
        2 => (1..9_usize).prop_map(Move::Take),
        2 => (1..9_usize, any::<bool>()).prop_map(|(count, last)| Move::GiveBack(count, last)),
        2 => Just(Move::Complete),
    ]
}

fn play(spec: QueueSpec, moves: &[Move]) {
    let rig = Rig::new(spec);
    let memory = other_view(&rig);
    let mut driver = rig.driver(Some(area(4, 8)));
    let mut device = their_device(&rig.spec);
    let (mut offered, mut taken) = (VecDeque::new(), VecDeque::new());
    let (mut given, mut next) = (VecDeque::new(), 0_u64);
    let end = [Move::Take(usize::MAX), Move::GiveBack(usize::MAX, false), Move::Complete];
    for step in moves.iter().cycle().take(moves.len() * 8).chain(&end) {
        match step {
            Move::Offer(lengths, readable) => {
                let place = |(at, len): (usize, &u32)| segment((next + at as u64) * 8 % 4096, *len);
                let all: Vec<Segment> = lengths.iter().enumerate().map(place).collect();
                let (before, after) = all.split_at(*readable.min(&all.len()));
                let armed = !device.enable_notification(&memory).unwrap();
                let written: u32 = after.iter().map(|segment| segment.len).sum();
                if driver.offer(before, after, next).is_ok() {
                    driver.publish_available();
                    assert!(driver.wants_kick() || !armed, "a lost kick");
                    let writable = before.len();
                    offered.push_back((next, all, writable, written));
                    next += 1;
                }
            }
            Move::Take(most) => {
                for _ in 0..*most {
                    let Some(chain) = device.pop_descriptor_chain(&memory) else { break };
                    let (context, ours, writable, written) = offered.pop_front().unwrap();
                    let head = chain.head_index();
                    let found: Vec<_> =
                        chain.map(|d| (d.addr().raw_value(), d.len(), d.is_write_only())).collect();
                    let number = |(at, s): (usize, &Segment)| (s.addr.0, s.len, at >= writable);
                    assert_eq!(found, ours.iter().enumerate().map(number).collect::<Vec<_>>());
                    taken.push_back((context, head, written));
                }
            }
            Move::GiveBack(most, last_first) => {
                let asleep = given.is_empty() && !driver.arm_interrupt();
                let count = taken.len().min(*most);
                for _ in 0..count {
                    let back = if *last_first { taken.pop_back() } else { taken.pop_front() };
                    let (context, head, written): (u64, u16, u32) = back.unwrap();
                    device.add_used(&memory, head, written).unwrap();
                    given.push_back((context, written));
                }
                let interrupted = device.needs_notification(&memory).unwrap();
                assert!(!asleep || count == 0 || interrupted, "a lost interrupt");
            }
            Move::Complete => {
                while let Some(used) = driver.take_used().unwrap() {
                    assert_eq!(Some(used), given.pop_front());
                }
                assert!(given.is_empty(), "given back and not seen");
            }
        }
    }
    assert_eq!((driver.in_flight(), offered.len(), taken.len()), (0, 0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 256,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_chains_go_through_their_device(
        bits in 1..7_u32,
        indirect in any::<bool>(),
        event_idx in any::<bool>(),
        start in prop_oneof![Just(0_u16), 65500..=65535_u16],
        moves in prop::collection::vec(any_move(), 1..60),
    ) {
        let mut spec = plain(RingFormat::Split, 1 << bits);
        (spec.indirect, spec.event_idx) = (indirect, event_idx);
        spec.start_at = QueuePosition::split(start);
        play(spec, &moves);
    }
}
