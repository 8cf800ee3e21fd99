use crate::RingFormat;

/// Sizes and alignments in bytes of a virtqueue's three areas, event words included (VIRTIO 1.4,
/// 2.7 and 2.8.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingLayout {
    /// Size of the descriptor area.
    pub descriptor_bytes: usize,
    /// Size of the driver area.
    pub driver_bytes: usize,
    /// Size of the device area.
    pub device_bytes: usize,
    /// Alignment of the descriptor area.
    pub descriptor_alignment: usize,
    /// Alignment of the driver area.
    pub driver_alignment: usize,
    /// Alignment of the device area.
    pub device_alignment: usize,
}

impl RingLayout {
    /// Bytes for the three areas one behind the other, each aligned, from an address aligned to 16.
    #[must_use]
    pub const fn total_bytes(&self) -> usize {
        self.device_offset() + self.device_bytes
    }

    /// Offset of the driver area when the areas lie one behind the other.
    #[must_use]
    pub const fn driver_offset(&self) -> usize {
        self.descriptor_bytes.next_multiple_of(self.driver_alignment)
    }

    /// Offset of the device area when the areas lie one behind the other.
    #[must_use]
    pub const fn device_offset(&self) -> usize {
        (self.driver_offset() + self.driver_bytes).next_multiple_of(self.device_alignment)
    }
}

/// What a queue of `size` descriptors needs.
#[must_use]
pub const fn ring_layout(format: RingFormat, size: u16) -> RingLayout {
    let size = size as usize;
    match format {
        RingFormat::Split => RingLayout {
            descriptor_bytes: 16 * size,
            driver_bytes: 6 + 2 * size,
            device_bytes: 6 + 8 * size,
            descriptor_alignment: 16,
            driver_alignment: 2,
            device_alignment: 4,
        },
        RingFormat::Packed => RingLayout {
            descriptor_bytes: 16 * size,
            driver_bytes: 4,
            device_bytes: 4,
            descriptor_alignment: 16,
            driver_alignment: 4,
            device_alignment: 4,
        },
    }
}
