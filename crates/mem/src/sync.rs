//! The atomics that shared tables are made of: the standard library's, or loom's when a model is
//! being checked.
//!
//! `virtqueue` takes its atomics and fences from here, so that the very code that runs in
//! production is what loom explores under `--cfg loom`.

#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
