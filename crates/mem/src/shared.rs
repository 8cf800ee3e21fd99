use crate::sync::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

/// A type that may lie in memory which another party writes at any moment.
///
/// # Safety
///
/// Every bit pattern is a valid value, every byte belongs to an atomic, and there is no padding.
/// Then a shared reference to it promises the compiler nothing that a hostile peer could break.
pub unsafe trait Shared: Sync + 'static {}

// SAFETY: an atomic integer accepts every bit pattern and has no padding.
unsafe impl Shared for AtomicU8 {}
// SAFETY: as above.
unsafe impl Shared for AtomicU16 {}
// SAFETY: as above.
unsafe impl Shared for AtomicU32 {}
// SAFETY: as above.
unsafe impl Shared for AtomicU64 {}
