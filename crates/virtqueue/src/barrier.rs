//! The memory barriers between the two sides, by name.
//!
//! Each has a partner on the other side, and each is needed: a loom test takes them away one by one
//! and must fail. Outside of loom these are plain orderings and fences.

use mem::sync::{Ordering, fence};

/// A barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// Driver: descriptors and data before the available index or flags. Partner: `SeeAvailable`.
    PublishAvailable,
    /// Device: the available index or flags before the descriptors and data.
    SeeAvailable,
    /// Device: used elements and data before the used index or flags. Partner: `SeeUsed`.
    PublishUsed,
    /// Driver: the used index or flags before the elements and data.
    SeeUsed,
    /// Driver: what it published before the device's wish. Partner: `AskForKicks`. Either the
    /// driver sees the wish, or the device sees what was published.
    CheckKick,
    /// Device: its wish before what the driver published.
    AskForKicks,
    /// Device: what it published before the driver's wish. Partner: `AskForInterrupts`.
    CheckInterrupt,
    /// Driver: its wish before what the device published.
    AskForInterrupts,
}

impl Barrier {
    /// The ordering of a store that publishes.
    #[inline]
    pub(crate) fn release(self) -> Ordering {
        if self.is_removed() { Ordering::Relaxed } else { Ordering::Release }
    }

    /// The ordering of a load that looks for what was published.
    #[inline]
    pub(crate) fn acquire(self) -> Ordering {
        if self.is_removed() { Ordering::Relaxed } else { Ordering::Acquire }
    }

    /// Keeps a later load from overtaking an earlier store.
    #[inline]
    pub(crate) fn store_load(self) {
        if !self.is_removed() {
            fence(Ordering::SeqCst);
        }
    }

    #[cfg(not(loom))]
    #[inline]
    const fn is_removed(self) -> bool {
        false
    }

    #[cfg(loom)]
    fn is_removed(self) -> bool {
        crate::model::removed() == Some(self)
    }
}
