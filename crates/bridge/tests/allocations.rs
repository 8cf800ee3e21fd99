//! A request costs no allocation.
#![allow(clippy::unwrap_used)]

mod relay;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bridge::{CopyMover, Mover, TranslateMover};
use relay::Relay;
use virtqueue::RingFormat;

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: hands everything on to the system's allocator and only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count<M: Mover>(mut relay: Relay<M>) {
    relay.run(1000);
    let before = COUNT.with(Cell::get);
    relay.run(10_000);
    assert_eq!(COUNT.with(Cell::get) - before, 0);
}

#[test]
fn requests_allocate_nothing() {
    let formats = [RingFormat::Split, RingFormat::Packed];
    for (driver, device) in formats.into_iter().flat_map(|a| formats.map(|b| (a, b))) {
        count(Relay::new(driver, device, 1500, |_| TranslateMover::new()));
        count(Relay::new(driver, device, 1500, |place| CopyMover::new(place, relay::SIZE)));
    }
}
