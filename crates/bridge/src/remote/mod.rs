//! Queues in memory that can't be mapped, only reached by transfers.
//!
//! A round trip takes tens of microseconds and its size hardly matters, so what is counted here is
//! how many a request depends on. For a block request of one page, either way, there are three:
//!
//! ```text
//!   kick ->  1  available index, ring entries, descriptors         (one message batch)
//!            2  the readable buffers of all new chains             -> the device
//!   used ->  3  written buffers, used elements, used index, and
//!               the driver's wish, in this order                   -> interrupt
//! ```
//!
//! Indirect tables, if the driver uses them, come between 1 and 2 and cost a fourth; so it is only
//! offered them where that was asked for. In return more requests fit the ring.
//!
//! Packed rings are not mirrored: both sides write the same descriptors there, and a transfer
//! brings no descriptor whole, so its flags would have to be asked for before the rest.
//!
//! Transfers on one channel reach the memory in order, so only answers that are needed to go on are
//! waited for, and batches overlap: while the data of one is fetched the next index is asked for.

mod chains;
mod mirror;
mod queue;
mod tables;
mod task;
mod transfers;

pub use queue::{RemoteParts, RemoteQueue};
pub(crate) use tables::MAX_INDIRECT_SIZE;
