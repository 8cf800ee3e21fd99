//! Nothing is allocated once there were as many chains, and as long ones, as there are ever; what
//! an idle queue has is small.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used)]

mod rig;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use rig::{Rig, area, plain, segment};
use virtqueue::{Chain, RingFormat};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is handed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        BYTES.set(BYTES.get() + layout.size());
        // SAFETY: the caller keeps the same promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the same promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn chains_allocate_nothing() {
    for case in 0..16u8 {
        let bit = |n: u8| case >> n & 1 == 1;
        let mut spec = plain(if bit(0) { RingFormat::Packed } else { RingFormat::Split }, 16);
        (spec.indirect, spec.event_idx, spec.in_order) = (bit(1), bit(2), bit(3));
        let rig = Rig::new(spec);
        let mut driver = rig.driver(Some(area(8, 8)));
        let (mut device, mut resolver) = (rig.device(), rig.resolver());
        let mut chain = Chain::with_capacity(16);
        let (readable, writable) = ([segment(0, 8), segment(8, 8)], [segment(16, 8)]);
        let mut before = 0;
        for round in 0..10_000u32 {
            if round == 2 {
                before = ALLOCATIONS.get();
            }
            while driver.offer(&readable[..1 + round as usize % 2], &writable, round).is_ok() {}
            driver.publish_available();
            let _kick = driver.wants_kick();
            while let Some(id) = device.take(&mut resolver, &mut chain).unwrap() {
                device.give_back(id, 8);
            }
            device.publish_used();
            let _asked = (device.wants_interrupt(), device.arm_kick(), driver.arm_interrupt());
            while driver.take_used().unwrap().is_some() {}
        }
        assert_eq!(ALLOCATIONS.get(), before, "case {case}");
    }
}

#[test]
fn large_queues_that_are_hardly_used_have_little_memory() {
    for format in [RingFormat::Split, RingFormat::Packed] {
        let mut spec = plain(format, 1024);
        spec.indirect = true;
        let rig = Rig::new(spec);
        let (before, mut resolver) = (BYTES.get(), rig.resolver());
        let mut driver = rig.driver(Some(area(64, 128)));
        let (mut device, mut chain) = (rig.device(), Chain::with_capacity(1024));
        for round in 0..100u32 {
            assert!(driver.offer(&[segment(0, 8)], &[segment(8, 8)], round).is_ok());
            driver.publish_available();
            let id = device.take(&mut resolver, &mut chain).unwrap().unwrap();
            device.give_back(id, 8);
            device.publish_used();
            assert_eq!(driver.take_used().unwrap(), Some((round, 8)));
        }
        let bytes = BYTES.get() - before;
        assert!(bytes < 8192, "{format:?}: {bytes} bytes");
    }
}
