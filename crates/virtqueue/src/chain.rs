use std::sync::atomic::{AtomicU64, Ordering};

use mem::{Access, DriverAddress};

use crate::QueueError;

/// A buffer as a descriptor names it: not checked against any memory yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Address of the first byte.
    pub addr: DriverAddress,
    /// Length in bytes, not 0.
    pub len: u32,
}

/// The buffers of one chain: first those the device reads, then those it writes. Filled by
/// [`DeviceQueue::take`](crate::DeviceQueue::take), again and again, without allocating once there
/// was a chain as long.
#[derive(Debug)]
pub struct Chain {
    /// As many as the longest chain so far had, up to `limit`.
    segments: Vec<Segment>,
    limit: usize,
    len: usize,
    readable: usize,
    /// Bytes of the device-readable part, and of all.
    readable_len: u64,
    bytes: u64,
}

/// Buffers of a chain there is room for from the start: a header, a status and a few pages.
const USUAL_SEGMENTS: usize = 8;

impl Chain {
    /// An empty chain with room for `max_segments`; a queue's size is always enough, since no chain
    /// may be longer.
    #[must_use]
    pub fn with_capacity(max_segments: usize) -> Self {
        // Room for the longest chain there may be is memory that an idle queue would never use.
        let segments = vec![Segment::default(); max_segments.min(USUAL_SEGMENTS)];
        let limit = max_segments;
        Self { segments, limit, len: 0, readable: 0, readable_len: 0, bytes: 0 }
    }

    /// The device-readable buffers.
    #[must_use]
    #[inline]
    pub fn readable(&self) -> &[Segment] {
        &self.segments[..self.readable]
    }

    /// The device-writable buffers.
    #[must_use]
    #[inline]
    pub fn writable(&self) -> &[Segment] {
        &self.segments[self.readable..self.len]
    }

    /// What the buffer at this address is there for.
    #[must_use]
    pub fn wants(&self, at: DriverAddress) -> Access {
        let holds = |buffer: &Segment| at.0.wrapping_sub(buffer.addr.0) < u64::from(buffer.len);
        if self.writable().iter().any(holds) { Access::ReadWrite } else { Access::Read }
    }

    /// Bytes the device may read.
    #[must_use]
    #[inline]
    pub fn readable_len(&self) -> u64 {
        self.readable_len
    }

    /// Bytes the device may write.
    #[must_use]
    #[inline]
    pub fn writable_len(&self) -> u64 {
        self.bytes - self.readable_len
    }

    /// Forgets the buffers.
    #[inline]
    pub fn clear(&mut self) {
        self.len = 0;
        self.readable = 0;
        self.readable_len = 0;
        self.bytes = 0;
    }

    /// Buffers in the chain.
    #[inline]
    pub(crate) fn segments(&self) -> usize {
        self.len
    }

    /// Makes this buffer, which is not empty, the only one; false if there is no room even for it.
    #[inline]
    pub(crate) fn set_only(&mut self, segment: Segment, writable: bool) -> bool {
        let Some(slot) = self.segments.first_mut() else { return false };
        *slot = segment;
        self.bytes = u64::from(segment.len);
        self.len = 1;
        self.readable = usize::from(!writable);
        self.readable_len = if writable { 0 } else { self.bytes };
        true
    }

    /// Appends a buffer after checking what VIRTIO 2.7.4.2 and 2.7.5 say of it.
    #[inline]
    pub(crate) fn push(&mut self, segment: Segment, writable: bool) -> Result<(), QueueError> {
        if segment.len == 0 {
            return Err(QueueError::ZeroLength);
        }
        match self.segments.get_mut(self.len) {
            Some(slot) => *slot = segment,
            None => self.extend(segment)?,
        }
        self.len += 1;
        let is_after_writable = self.bytes > self.readable_len;
        self.bytes += u64::from(segment.len);
        if !writable {
            if is_after_writable {
                return Err(QueueError::ReadableAfterWritable);
            }
            self.readable = self.len;
            self.readable_len = self.bytes;
        }
        Ok(())
    }

    /// Makes room behind the longest chain so far.
    #[cold]
    fn extend(&mut self, segment: Segment) -> Result<(), QueueError> {
        if self.segments.len() == self.limit {
            return Err(QueueError::ChainTooLong { limit: self.limit });
        }
        self.segments.push(segment);
        Ok(())
    }

    /// Length of the writable part, once the whole chain is known to hold 2^32 bytes at most.
    #[inline]
    pub(crate) fn check_bytes(&self) -> Result<u32, QueueError> {
        if self.bytes > 1 << 32 {
            return Err(QueueError::TooManyBytes(self.bytes));
        }
        // A used length has 32 bits, so of exactly 2^32 writable bytes the last can't be reported.
        Ok(u32::try_from(self.writable_len()).unwrap_or(u32::MAX))
    }
}

/// A chain that was taken and must be given back, untaken, or abandoned with its queue.
///
/// Dropping it instead would leave the driver waiting for ever: a panic in debug builds, counted in
/// release builds (see [`lost_chains`]).
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a taken chain must be given back"]
pub struct ChainId(u16);

static LOST: AtomicU64 = AtomicU64::new(0);

/// How many [`ChainId`]s this process dropped without giving them back. Anything but 0 is a bug of
/// ours.
#[must_use]
pub fn lost_chains() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// Counts chains that were dropped.
#[cold]
pub(crate) fn count_lost(chains: usize) {
    LOST.fetch_add(chains as u64, Ordering::Relaxed);
    if cfg!(debug_assertions) && !std::thread::panicking() {
        panic!("a chain was dropped without being given back");
    }
}

impl ChainId {
    #[inline]
    pub(crate) fn new(index: u16) -> Self {
        Self(index)
    }

    /// Index of the chain's head in a split queue, its buffer id in a packed one; below the queue
    /// size, and not shared with any other chain in flight on this queue.
    #[must_use]
    #[inline]
    pub fn index(&self) -> u16 {
        self.0
    }

    /// The same as [`ChainId::index`].
    #[must_use]
    #[inline]
    pub fn head(&self) -> u16 {
        self.0
    }

    /// Forgets the chain because its queue is being torn down.
    #[inline]
    pub fn abandon(self) {
        let _index = self.finish();
    }

    #[inline]
    pub(crate) fn finish(self) -> u16 {
        let index = self.0;
        std::mem::forget(self);
        index
    }
}

impl Drop for ChainId {
    #[cold]
    fn drop(&mut self) {
        count_lost(1);
    }
}
