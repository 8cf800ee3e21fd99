use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Counters, more than there usually are threads at work, so that few share one.
const STRIPES: usize = 64;

/// One counter, alone in its pair of cache lines.
#[repr(align(128))]
struct Stripe(AtomicU64);

static STRIPE: [Stripe; STRIPES] = [const { Stripe(AtomicU64::new(0)) }; STRIPES];
static NEXT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static MINE: Cell<usize> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES);
}

/// Notes that a system call is about to be made on a data or control path.
#[inline]
pub(crate) fn note() {
    MINE.with(|mine| STRIPE[mine.get()].0.fetch_add(1, Ordering::Relaxed));
}

/// How many system calls this process has made through this crate: notifications, waits, socket
/// messages and file I/O. What a request costs is the difference between two looks.
#[must_use]
pub fn system_calls() -> u64 {
    STRIPE.iter().map(|stripe| stripe.0.load(Ordering::Relaxed)).sum()
}
