//! How memory is taken away from queues that may be using it.
//!
//! ```text
//!   queue                                 control thread
//!   hold:    slot = generation            advance:  generation = new
//!            -- barrier --                is_held:  -- barrier --
//!            generation still the same?             slot older than the new one?
//! ```
//!
//! Each stores, then loads what the other stored: with both barriers at least one of them sees the
//! other. Without either one, a queue goes on in memory that is about to go away. Loom checks that
//! (`tests/loom.rs`), and that both are needed.

use crate::sync::{AtomicU64, Ordering, fence};

/// A queue that holds no snapshot at the moment.
const PARKED: u64 = u64::MAX;

/// The number of the current snapshot.
#[derive(Debug)]
pub struct Generation(AtomicU64);

/// The number of the snapshot that one queue works on.
#[derive(Debug)]
pub struct Slot(AtomicU64);

impl Generation {
    /// Begins at `first`.
    #[must_use]
    pub fn new(first: u64) -> Self {
        Self(AtomicU64::new(first))
    }

    /// The current one.
    #[inline]
    #[must_use]
    pub fn get(&self) -> u64 {
        // Acquire: pairs with `advance`, although snapshots themselves are taken under a lock.
        self.0.load(Ordering::Acquire)
    }

    /// There is a new snapshot.
    pub fn advance(&self, generation: u64) {
        self.0.store(generation, Ordering::Release);
    }
}

impl Slot {
    /// Of a queue that holds nothing.
    #[must_use]
    pub fn parked() -> Self {
        Self(AtomicU64::new(PARKED))
    }

    /// Says that the queue works on `generation`. False if that is not the current one any more:
    /// then nothing of it may be touched.
    #[inline]
    pub fn hold(&self, generation: u64, current: &Generation) -> bool {
        // Release: what was done with the snapshot before is over.
        self.0.store(generation, Ordering::Release);
        // Partner: `is_held`.
        store_load(Barrier::Hold);
        current.get() == generation
    }

    /// Says that nothing is touched any more.
    #[inline]
    pub fn park(&self) {
        // Release: partner is the load in `is_held`.
        self.0.store(PARKED, Ordering::Release);
    }

    /// Whether the queue may be working on a snapshot before `generation`, which was announced.
    #[must_use]
    pub fn is_held(&self, generation: u64) -> bool {
        // Partner: `hold`.
        store_load(Barrier::Look);
        self.0.load(Ordering::Acquire) < generation
    }
}

/// The two barriers, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// Between the queue's store and its load.
    Hold,
    /// Between the control thread's.
    Look,
}

/// Keeps a later load from overtaking an earlier store.
#[inline]
fn store_load(barrier: Barrier) {
    if !is_removed(barrier) {
        fence(Ordering::SeqCst);
    }
}

#[cfg(not(loom))]
#[inline]
const fn is_removed(_: Barrier) -> bool {
    false
}

/// The barrier that a model does without.
#[cfg(loom)]
pub static REMOVED: std::sync::Mutex<Option<Barrier>> = std::sync::Mutex::new(None);

#[cfg(loom)]
fn is_removed(barrier: Barrier) -> bool {
    *REMOVED.lock().unwrap_or_else(std::sync::PoisonError::into_inner) == Some(barrier)
}
