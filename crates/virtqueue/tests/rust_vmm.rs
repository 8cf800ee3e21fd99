//! Split rings against rust-vmm's: our driver with its device, its mock driver with our device.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used)]

mod rig;

use std::fs::File;

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
