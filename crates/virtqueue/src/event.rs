//! When the other side wants to be notified (VIRTIO 1.4, 2.7.7, 2.7.10, 2.8.14).

use crate::PackedPoint;

/// Flag of the available and the used ring: no notifications, please (VIRTQ_AVAIL_F_NO_INTERRUPT,
/// VIRTQ_USED_F_NO_NOTIFY).
pub(crate) const SPLIT_NO_EVENT: u16 = 1;

/// Whether moving an index by `moved` to `new` passed `event`: the other side asked for a
/// notification when the entry at `event` is published.
///
/// The last published entries are `new - moved ..= new - 1`; `new - event - 1` is how far `event`
/// lies behind the newest.
#[inline]
pub(crate) fn split_crossed(event: u16, new: u16, moved: u32) -> bool {
    u32::from(new.wrapping_sub(event).wrapping_sub(1)) < moved
}

/// The same for packed rings: `moved` descriptors up to `new` in a ring of `size`.
#[inline]
pub(crate) fn packed_crossed(event: PackedPoint, new: PackedPoint, moved: u32, size: u16) -> bool {
    if moved >= u32::from(size) {
        return true;
    }
    if event.index >= size {
        // No descriptor has this index: a hostile or careless peer gets the notification it may
        // have meant.
        return true;
    }
    // `event` lies on this lap or on the one before; a lap ahead is as if it were a lap behind and
    // never crossed.
    let behind = i32::from(new.index) - i32::from(event.index)
        + if event.wrap == new.wrap { 0 } else { i32::from(size) };
    behind >= 1 && behind as u32 <= moved
}

/// Event suppression word of a packed ring: where in the low half, whether in the high half (VIRTIO
/// 1.4, 2.8.14).
pub(crate) mod packed_word {
    use crate::PackedPoint;

    /// RING_EVENT_FLAGS_ENABLE.
    pub const ENABLE: u32 = 0;
    /// RING_EVENT_FLAGS_DISABLE.
    pub const DISABLE: u32 = 1 << 16;
    const DESCRIPTOR: u32 = 2;

    /// Asks for a notification when the descriptor at `point` is published (RING_EVENT_FLAGS_DESC).
    #[inline]
    pub const fn at(point: PackedPoint) -> u32 {
        point.bits() as u32 | DESCRIPTOR << 16
    }

    /// What the other side asked for.
    pub enum Wish {
        Always,
        Never,
        At(PackedPoint),
    }

    /// Reads a word; without VIRTIO_F_EVENT_IDX the DESC value is reserved and counts as ENABLE.
    #[inline]
    pub const fn parse(word: u32, event_idx: bool) -> Wish {
        match word >> 16 & 3 {
            1 => Wish::Never,
            DESCRIPTOR if event_idx => Wish::At(PackedPoint::from_bits(word as u16)),
            _ => Wish::Always,
        }
    }
}
