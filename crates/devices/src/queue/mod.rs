//! What every built-in device shares: a device is its [`Model`] and what its queues do, which is
//! [`Serve`].
//!
//! ```text
//!   control thread                      worker thread
//!   BuiltIn<M: Model>  -- handle -->    QueueTask<S: Serve>
//!     features, config, start, stop       rings, memory snapshots, notifications, faults
//!     M: what the device is               S: what a request means
//! ```
//!
//! A chain that reaches [`Serve`] is well formed, and all of its buffers can be reached, so that
//! reading and writing them can't fail: [`QueueAccess::take`] has checked them against the snapshot
//! in use.

mod access;
mod built_in;
mod cursor;
mod task;

pub(crate) use access::{Buffers, Outcome, QueueAccess};
pub(crate) use built_in::{BuiltIn, Model, RINGS};
pub(crate) use cursor::{Cursor, Reader, Writer};
pub(crate) use task::{Fault, Serve};
