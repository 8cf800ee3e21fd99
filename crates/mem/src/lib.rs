//! Shared memory: mappings, address-space snapshots, tables of atomics, spans of bytes.
//!
//! Everything another process or a guest may write at any moment is reached through this crate, and
//! only in two shapes: a [`Table`] of atomics (rings), or a [`Span`] of bytes that can be copied to
//! and from but never borrowed (buffers). An address is resolved once, with all checks, to one of
//! these; after that the code is ordinary safe Rust.
//!
//! What it deliberately lacks: knowledge of virtqueues beyond the memory layout of a ring's
//! entries, and of any transport.
//!
//! Rules that the unsafe code here keeps:
//!
//! 1. no Rust reference to peer-writable bytes, unless the pointee is made of atomics ([`Shared`]);
//! 2. no pointer outlives the [`Mapping`] it points into: tables, spans and snapshots hold or
//!    borrow it;
//! 3. a backing file that shrinks under a mapping raises SIGBUS: the handler of [`guard`] replaces
//!    the mapping with zero pages and marks it [`Mapping::is_poisoned`], so the session ends and
//!    the process does not.

mod address_space;
mod dirty_log;
#[doc(hidden)]
pub mod gate;
pub mod guard;
mod map;
mod mapping;
mod piece;
pub mod remote;
pub mod ring;
mod shared;
mod span;
pub mod sync;
mod table;

pub use address_space::{AddressSpace, MapReader};
pub use dirty_log::DirtyLog;
pub use map::{
    Access, Backing, DriverAddress, MAX_REGIONS, MemoryError, MemoryMap, Region, Resolver,
};
pub use mapping::{FileCache, Mapping};
pub use piece::{Piece, Pieces};
pub use shared::Shared;
pub use span::{OwnedSpan, Span};
pub use table::Table;
