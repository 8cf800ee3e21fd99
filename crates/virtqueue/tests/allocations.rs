//! Nothing is allocated once the queues are made.
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
}

// SAFETY: every call is handed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
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
        let before = ALLOCATIONS.get();
        for round in 0..10_000u32 {
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
