use std::alloc::{GlobalAlloc, Layout, System};

use crate::calls::Counter;

static ALLOCATIONS: Counter = Counter::new();

/// The system's allocator, which counts how often it is asked for memory. For a program that
/// measures what a request costs: `#[global_allocator] static ALLOCATOR: CountingAllocator =
/// CountingAllocator;`
#[derive(Debug)]
pub struct CountingAllocator;

// SAFETY: every call is handed on to the system's allocator as it is; counting neither allocates
// nor unwinds.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.note();
        // SAFETY: the caller keeps the same promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.note();
        // SAFETY: the caller keeps the same promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        ALLOCATIONS.note();
        // SAFETY: the caller keeps the same promises.
        unsafe { System.realloc(at, layout, new_size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the same promises.
        unsafe { System.dealloc(at, layout) }
    }
}

/// How often this process has asked for memory, if [`CountingAllocator`] is its allocator; else 0.
#[must_use]
pub fn allocations() -> u64 {
    ALLOCATIONS.total()
}
