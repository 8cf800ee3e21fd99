use std::ops::Range;

use crate::{ChainId, Segment, chain};

/// Most chains in a [`Burst`]: as many as fit the moment between two looks at other queues, and
/// enough that what is done once per burst does not count.
pub const MAX_BURST: usize = 64;

/// Chains of one buffer each, taken and given back many at a time, for devices whose requests are
/// small and alike, as packets are. One chain so costs half of what it costs with
/// [`DeviceQueue::take`](crate::DeviceQueue::take).
///
/// As a [`ChainId`], a burst must not be dropped with chains in it.
#[derive(Debug)]
pub struct Burst {
    ids: [u16; MAX_BURST],
    segments: [Segment; MAX_BURST],
    writable: [bool; MAX_BURST],
    len: usize,
}

impl Default for Burst {
    fn default() -> Self {
        Self::new()
    }
}

impl Burst {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self {
            ids: [0; MAX_BURST],
            segments: [Segment::default(); MAX_BURST],
            writable: [false; MAX_BURST],
            len: 0,
        }
    }

    /// How many chains it holds.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The chains' buffers, in the order they were taken.
    #[must_use]
    #[inline]
    pub fn segments(&self) -> &[Segment] {
        &self.segments[..self.len]
    }

    /// Whether the device may write the buffers; else it may read them.
    #[must_use]
    #[inline]
    pub fn writable(&self) -> &[bool] {
        &self.writable[..self.len]
    }

    /// Puts a chain in of which only the id is of interest, to be given back with others.
    ///
    /// # Panics
    /// If there is no room.
    #[inline]
    pub fn add(&mut self, id: ChainId) {
        self.ids[self.len] = id.finish();
        self.len += 1;
    }

    /// Takes the last chain out.
    #[inline]
    pub fn pop(&mut self) -> Option<ChainId> {
        self.len = self.len.checked_sub(1)?;
        Some(ChainId::new(self.ids[self.len]))
    }

    /// Forgets the chains because their queue is being torn down.
    pub fn abandon(&mut self) {
        self.len = 0;
    }

    /// How many more there is room for.
    #[must_use]
    #[inline]
    pub fn room(&self) -> usize {
        MAX_BURST - self.len
    }

    /// Adds up to `most` chains, for which there is room: as many as `fill` says it has put to the
    /// front of the slices that it gets, of that length. Returns their ids.
    #[inline]
    pub(crate) fn extend(
        &mut self,
        most: usize,
        fill: impl FnOnce(&mut [u16], &mut [Segment], &mut [bool]) -> usize,
    ) -> &[u16] {
        let spare = self.len..self.len + most;
        let (ids, segments) = (&mut self.ids[spare.clone()], &mut self.segments[spare.clone()]);
        let filled = fill(ids, segments, &mut self.writable[spare]);
        self.len += filled;
        &self.ids[self.len - filled..self.len]
    }

    /// All chains with their buffers, and whether the device writes those; the burst is empty from
    /// now on.
    #[inline]
    pub(crate) fn take_all(&mut self) -> impl Iterator<Item = (ChainId, Segment, bool)> {
        let len = std::mem::take(&mut self.len);
        let (ids, segments) = (&self.ids[..len], &self.segments[..len]);
        let buffers = segments.iter().zip(&self.writable[..len]);
        ids.iter().zip(buffers).map(|(&id, (&segment, &w))| (ChainId::new(id), segment, w))
    }

    /// The ids, which count as given back from now on, with so many lengths.
    #[inline]
    pub(crate) fn finish(&mut self, written: &[u32]) -> &[u16] {
        assert!(self.len == written.len(), "a length for every chain");
        let len = std::mem::take(&mut self.len);
        &self.ids[..len]
    }
}

/// The places of `count` entries, at most `size`, from `first` on in a ring of `size`: those up to
/// its end, and those from its beginning. Along each a loop has no end of the ring to think of.
#[inline]
pub(crate) fn runs(first: u16, count: usize, size: u16) -> [Range<usize>; 2] {
    let (first, size) = (usize::from(first), usize::from(size));
    let end = size.min(first + count);
    [first..end, 0..first + count - end]
}

impl Drop for Burst {
    fn drop(&mut self) {
        if self.len > 0 {
            chain::count_lost(self.len);
        }
    }
}
