use mem::{DriverAddress, MemoryMap};

use crate::{MAX_QUEUE_SIZE, QueueError};

/// How a virtqueue lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RingFormat {
    /// Descriptor table, available ring and used ring (VIRTIO 1.4, 2.7).
    Split,
    /// One ring of descriptors and two event words (VIRTIO 1.4, 2.8).
    Packed,
}

impl std::fmt::Display for RingFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Split => "split",
            Self::Packed => "packed",
        })
    }
}

/// Where the three areas of a virtqueue are, in the driver's address space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueAddresses {
    /// Descriptor area: the descriptor table, or the packed descriptor ring.
    pub descriptor: DriverAddress,
    /// Driver area: the available ring, or the driver's event suppression word.
    pub driver: DriverAddress,
    /// Device area: the used ring, or the device's event suppression word.
    pub device: DriverAddress,
}

/// A place in a packed ring: an index and the wrap counter that goes with it (VIRTIO 1.4, 2.8.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedPoint {
    /// Index of the descriptor, below the queue size.
    pub index: u16,
    /// The wrap counter, 1 on the first lap.
    pub wrap: bool,
}

impl PackedPoint {
    /// The first descriptor on the first lap.
    pub const START: Self = Self { index: 0, wrap: true };

    /// From 15 bits of index and the wrap counter in bit 15, as in event words and positions.
    #[must_use]
    #[inline]
    pub const fn from_bits(bits: u16) -> Self {
        Self { index: bits & 0x7fff, wrap: bits & 0x8000 != 0 }
    }

    /// The inverse of [`PackedPoint::from_bits`].
    #[must_use]
    #[inline]
    pub const fn bits(self) -> u16 {
        self.index | (self.wrap as u16) << 15
    }

    /// The place `by` descriptors on, in a ring of `size`; `by` is at most `size`.
    #[must_use]
    #[inline]
    pub const fn advanced(self, by: u16, size: u16) -> Self {
        // Sizes and indices are at most 32768, so the sum fits.
        let index = self.index + by;
        if index >= size {
            Self { index: index - size, wrap: !self.wrap }
        } else {
            Self { index, wrap: self.wrap }
        }
    }

    /// The place `by` descriptors back, in a ring of `size`; `by` is at most `size`.
    #[must_use]
    #[inline]
    pub const fn retreated(self, by: u16, size: u16) -> Self {
        if self.index >= by {
            Self { index: self.index - by, wrap: self.wrap }
        } else {
            Self { index: self.index + size - by, wrap: !self.wrap }
        }
    }

    /// How many descriptors lie between `self` and the later place `to`, in a ring of `size`.
    #[must_use]
    #[inline]
    pub const fn distance_to(self, to: Self, size: u16) -> u16 {
        if self.wrap == to.wrap {
            to.index.wrapping_sub(self.index)
        } else {
            to.index.wrapping_add(size).wrapping_sub(self.index)
        }
    }
}

/// How far a queue has come, in the bits of vhost-user's VRING_BASE, which is used everywhere here.
///
/// Split: the next available index in bits 0-15. Packed: the next available descriptor in bits 0-14
/// with its wrap counter in bit 15, the next used descriptor in bits 16-30 with its wrap counter in
/// bit 31.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueuePosition(pub u32);

impl QueuePosition {
    /// Where a fresh queue begins.
    #[must_use]
    pub const fn start(format: RingFormat) -> Self {
        match format {
            RingFormat::Split => Self(0),
            RingFormat::Packed => Self::packed(PackedPoint::START, PackedPoint::START),
        }
    }

    /// The position of a split queue whose next available index is `next_available`.
    #[must_use]
    pub const fn split(next_available: u16) -> Self {
        Self(next_available as u32)
    }

    /// The position of a packed queue.
    #[must_use]
    pub const fn packed(available: PackedPoint, used: PackedPoint) -> Self {
        Self(available.bits() as u32 | (used.bits() as u32) << 16)
    }

    /// Next available index of a split queue.
    #[must_use]
    pub const fn index(self) -> u16 {
        self.0 as u16
    }

    /// Next available descriptor of a packed queue.
    #[must_use]
    pub const fn available(self) -> PackedPoint {
        PackedPoint::from_bits(self.0 as u16)
    }

    /// Next used descriptor of a packed queue.
    #[must_use]
    pub const fn used(self) -> PackedPoint {
        PackedPoint::from_bits((self.0 >> 16) as u16)
    }
}

/// Everything that is fixed when a queue starts.
#[derive(Clone, Debug)]
pub struct QueueSpec {
    /// Descriptors in the queue: for split a power of two, at most 32768 for both.
    pub size: u16,
    /// How the queue lies in memory.
    pub format: RingFormat,
    /// Whether VIRTIO_F_INDIRECT_DESC was negotiated.
    pub indirect: bool,
    /// Whether VIRTIO_F_EVENT_IDX was negotiated.
    pub event_idx: bool,
    /// Whether VIRTIO_F_IN_ORDER was negotiated.
    pub in_order: bool,
    /// Where the rings are.
    pub addresses: QueueAddresses,
    /// Where the queue begins.
    pub start_at: QueuePosition,
}

impl QueueSpec {
    /// Checks what can be checked without the memory: size, alignment, position.
    ///
    /// # Errors
    /// [`QueueError::BadSize`], [`QueueError::Misaligned`], [`QueueError::BadPosition`].
    pub fn check(&self) -> Result<(), QueueError> {
        let size = self.size;
        let allowed = match self.format {
            RingFormat::Split => size.is_power_of_two(),
            RingFormat::Packed => size > 0,
        };
        if !allowed || size > MAX_QUEUE_SIZE {
            return Err(QueueError::BadSize { size, format: self.format });
        }
        let layout = crate::ring_layout(self.format, size);
        let areas = [
            ("descriptor area", self.addresses.descriptor, layout.descriptor_alignment),
            ("driver area", self.addresses.driver, layout.driver_alignment),
            ("device area", self.addresses.device, layout.device_alignment),
        ];
        for (area, at, alignment) in areas {
            if !at.0.is_multiple_of(alignment as u64) {
                return Err(QueueError::Misaligned { area, at, alignment });
            }
        }
        if self.format == RingFormat::Packed {
            self.packed_start()?;
        }
        Ok(())
    }

    /// Marks what a device writes of the rings in the dirty log of `map`, if it has one: the device
    /// area, and in a packed queue the descriptors.
    pub fn mark_dirty(&self, map: &MemoryMap) {
        if map.dirty_log().is_none() {
            return;
        }
        let layout = crate::ring_layout(self.format, self.size);
        map.mark_dirty(self.addresses.device, layout.device_bytes as u64);
        if self.format == RingFormat::Packed {
            map.mark_dirty(self.addresses.descriptor, layout.descriptor_bytes as u64);
        }
    }

    /// Where a packed queue begins: the next available and the next used descriptor.
    ///
    /// DPDK sends only the available half and leaves 0 in the other; that is nowhere possible
    /// except when a whole ring of chains is in flight, so it is taken to mean that none is.
    pub(crate) fn packed_start(&self) -> Result<(PackedPoint, PackedPoint), QueueError> {
        let (size, position) = (self.size, self.start_at);
        let (available, mut used) = (position.available(), position.used());
        if used.bits() == 0 && used.distance_to(available, size) >= size {
            used = available;
        }
        let outside = available.index >= size || used.index >= size;
        if outside || used.distance_to(available, size) > size {
            return Err(QueueError::BadPosition { position: position.0, size });
        }
        Ok((available, used))
    }
}
