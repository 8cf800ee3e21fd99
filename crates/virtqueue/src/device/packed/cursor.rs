//! Where a side of a packed ring stands.

use super::{available_bits, used_bits};
use crate::PackedPoint;
use crate::device::flag;

/// A [`PackedPoint`] with the AVAIL and USED bits of descriptors there in place of its wrap
/// counter: with each lap both are inverted, whichever state they stand for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor {
    pub(super) index: u16,
    pub(super) bits: u16,
}

impl Cursor {
    pub(super) fn available(point: PackedPoint) -> Self {
        Self { index: point.index, bits: available_bits(point.wrap) }
    }

    pub(super) fn used(point: PackedPoint) -> Self {
        Self { index: point.index, bits: used_bits(point.wrap) }
    }

    pub(super) fn point(self) -> PackedPoint {
        // In both states AVAIL is the wrap counter.
        PackedPoint { index: self.index, wrap: self.bits & flag::AVAIL != 0 }
    }

    /// Goes `by` descriptors on, at most `size`, in a ring of `size`.
    #[inline]
    pub(super) fn advance(&mut self, by: u16, size: u16) {
        // Sizes and indices are at most 32768, so the sum fits.
        self.index += by;
        if self.index >= size {
            self.next_lap(size);
        }
    }

    /// Once in a lap; to choose without a branch would cost every chain more.
    #[cold]
    fn next_lap(&mut self, size: u16) {
        self.index -= size;
        self.bits ^= flag::AVAIL | flag::USED;
    }

    /// Goes `by` descriptors back.
    #[inline]
    pub(super) fn retreat(&mut self, by: u16, size: u16) {
        if self.index < by {
            self.index += size;
            self.bits ^= flag::AVAIL | flag::USED;
        }
        self.index -= by;
    }
}
