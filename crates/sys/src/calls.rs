use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Places to count at, more than there usually are threads at work, so that few share one.
const STRIPES: usize = 64;

/// One thread's part of a counter, alone in its pair of cache lines.
#[repr(align(128))]
struct Stripe(AtomicU64);

static NEXT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static MINE: Cell<usize> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES);
}

/// A counter that many threads advance without getting in each other's way.
pub(crate) struct Counter([Stripe; STRIPES]);

impl Counter {
    pub(crate) const fn new() -> Self {
        Self([const { Stripe(AtomicU64::new(0)) }; STRIPES])
    }

    #[inline]
    pub(crate) fn note(&self) {
        MINE.with(|mine| self.0[mine.get()].0.fetch_add(1, Ordering::Relaxed));
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.iter().map(|stripe| stripe.0.load(Ordering::Relaxed)).sum()
    }
}

static CALLS: Counter = Counter::new();

/// Notes that a system call is about to be made on a data or control path.
#[inline]
pub(crate) fn note() {
    CALLS.note();
}

/// How many system calls this process has made through this crate: notifications, waits, socket
/// messages and file I/O. What a request costs is the difference between two looks.
#[must_use]
pub fn system_calls() -> u64 {
    CALLS.total()
}
