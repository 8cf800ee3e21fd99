//! Memory that can't be mapped, only asked for: by messages to whoever owns it, or by transactions
//! on a bus.
//!
//! A region of a [`MemoryMap`](crate::MemoryMap) may be backed by a [`RemoteMemory`]. Each queue
//! opens a channel of its own, submits several transfers, and collects the answers without ever
//! waiting: a round trip is tens of microseconds, so what matters is how many of them a request
//! needs, not how many bytes each one moves.

use std::fmt::Debug;
use std::os::fd::BorrowedFd;

/// Why a transfer could not be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RemoteError {
    /// The owner of the memory refused this address range.
    #[error("the other side refused the transfer (errno {0})")]
    Refused(i32),
    /// The link to the owner is gone; every transfer in flight is lost.
    #[error("the link to the other side's memory is closed")]
    Closed,
    /// More transfers in flight than the link allows; collect some first.
    #[error("too many transfers in flight")]
    Busy,
    /// The answer did not come in time.
    #[error("the other side did not answer a memory transfer in time")]
    TimedOut,
}

/// Memory in another machine or process that can only be reached by transfers.
pub trait RemoteMemory: Send + Sync + Debug {
    /// Opens a channel whose answers come back to it alone.
    ///
    /// # Errors
    /// [`RemoteError::Closed`] when the link is gone.
    fn open(&self) -> Result<Box<dyn RemoteChannel>, RemoteError>;
}

/// Receives a transfer's tag and the bytes read (none for a write), or why it failed.
pub type OnAnswer<'a> = dyn FnMut(u32, Result<&[u8], RemoteError>) + 'a;

/// One queue's way to a [`RemoteMemory`].
///
/// Transfers reach the memory in the order in which they were flushed, those of one channel in
/// order of submission, also after it was closed: a queue that starts again finds what it wrote
/// before it stopped. Answers may come in any order.
pub trait RemoteChannel: Send {
    /// Largest transfer in bytes; longer ones must be split by the caller.
    fn max_transfer_bytes(&self) -> u32;

    /// Queues a read of `len` bytes at `address`; the answer carries `tag`.
    ///
    /// # Errors
    /// [`RemoteError::Busy`] when too many are in flight, [`RemoteError::Closed`] when the link is
    /// gone.
    fn read(&mut self, tag: u32, address: u64, len: u32) -> Result<(), RemoteError>;

    /// Queues a write of `bytes` at `address`; the acknowledgement carries `tag`.
    ///
    /// # Errors
    /// As [`RemoteChannel::read`].
    fn write(&mut self, tag: u32, address: u64, bytes: &[u8]) -> Result<(), RemoteError>;

    /// Sends what was queued.
    ///
    /// # Errors
    /// [`RemoteError::Closed`] when the link is gone.
    fn flush(&mut self) -> Result<(), RemoteError>;

    /// Hands each answer that has arrived to `done` (the bytes read, or none for a write) and
    /// returns how many there were.
    ///
    /// # Errors
    /// [`RemoteError::Closed`] when the link is gone; a refused transfer is reported to `done`.
    fn poll(&mut self, done: &mut OnAnswer<'_>) -> Result<usize, RemoteError>;

    /// Becomes readable when there are answers to collect.
    fn ready_fd(&self) -> BorrowedFd<'_>;
}
