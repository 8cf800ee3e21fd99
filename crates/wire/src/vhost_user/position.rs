//! Where a ring stands, as SET_VRING_BASE and GET_VRING_BASE carry it.

/// Lowest bit of the packed available wrap counter in the `num` field ("Vring descriptor indices
/// for packed virtqueues").
const AVAILABLE_WRAP: u32 = 1 << 15;
/// Position of the packed used index in the `num` field (same section).
const USED_SHIFT: u32 = 16;
/// The packed used wrap counter in the `num` field (same section).
const USED_WRAP: u32 = 1 << 31;
/// Width of a packed index, in either half of the `num` field (same section).
const PACKED_INDEX_MASK: u32 = 0x7fff;

/// Position of a ring, in the encoding of the ring's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VringBase {
    /// A split ring: the device continues with this entry of the available ring; where the used
    /// ring continues is read from the ring itself.
    Split {
        /// Free-running index of the next entry of the available ring.
        next_available: u16,
    },
    /// A packed ring: both sides of the position travel in the message.
    Packed {
        /// Index of the next descriptor to be made available, 0 to 32767.
        available_index: u16,
        /// Wrap counter that goes with it; a fresh ring starts with true.
        available_wrap: bool,
        /// Index of the next descriptor to be used, 0 to 32767.
        used_index: u16,
        /// Wrap counter that goes with it; a fresh ring starts with true.
        used_wrap: bool,
    },
}

impl VringBase {
    /// The position of a fresh packed ring: index 0, both wrap counters 1 (0x8000_8000).
    pub const PACKED_START: Self =
        Self::Packed { available_index: 0, available_wrap: true, used_index: 0, used_wrap: true };

    /// Reads the `num` field for a split ring. Bits above 15 are not part of a position and are
    /// ignored, as QEMU's devices do.
    pub fn split(num: u32) -> Self {
        Self::Split { next_available: num as u16 }
    }

    /// Reads the `num` field for a packed ring. Some peers send 0 for a fresh ring, which would be
    /// a position in the middle of a lap: whether to take 0 for a start is the caller's decision.
    pub fn packed(num: u32) -> Self {
        Self::Packed {
            available_index: (num & PACKED_INDEX_MASK) as u16,
            available_wrap: num & AVAILABLE_WRAP != 0,
            used_index: (num >> USED_SHIFT & PACKED_INDEX_MASK) as u16,
            used_wrap: num & USED_WRAP != 0,
        }
    }

    /// The `num` field for this position.
    pub fn num(self) -> u32 {
        match self {
            Self::Split { next_available } => next_available.into(),
            Self::Packed { available_index, available_wrap, used_index, used_wrap } => {
                let wrap = |set, bit| if set { bit } else { 0 };
                u32::from(available_index) & PACKED_INDEX_MASK
                    | wrap(available_wrap, AVAILABLE_WRAP)
                    | (u32::from(used_index) & PACKED_INDEX_MASK) << USED_SHIFT
                    | wrap(used_wrap, USED_WRAP)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_packed_ring_is_what_qemu_sends() {
        assert_eq!(VringBase::PACKED_START.num(), 0x8000_8000);
        assert_eq!(VringBase::packed(0x8000_8000), VringBase::PACKED_START);
    }

    #[test]
    fn packed_halves_do_not_leak_into_each_other() {
        let base = VringBase::packed(0x7fff_8001);
        let expected = VringBase::Packed {
            available_index: 1,
            available_wrap: true,
            used_index: 0x7fff,
            used_wrap: false,
        };
        assert_eq!(base, expected);
        assert_eq!(base.num(), 0x7fff_8001);
    }

    #[test]
    fn split_index_uses_all_sixteen_bits() {
        assert_eq!(VringBase::split(0xfffe), VringBase::Split { next_available: 0xfffe });
        assert_eq!(VringBase::split(0x1_0005).num(), 5);
    }
}
