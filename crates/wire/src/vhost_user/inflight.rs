//! The shared record of requests in flight ("Inflight I/O tracking"), as offsets and sizes.
//!
//! The area holds one region per queue, one after the other, each aligned to
//! [`REGION_ALIGN`]. This module computes where things are; reading and writing shared memory
//! is somebody else's work.

/// Alignment of each queue's region in bytes. The specification leaves it open; QEMU's library and
/// DPDK both use 64, and an area moves between daemons, so this is part of the format in practice.
pub const REGION_ALIGN: u64 = 64;

/// The only version of a region; 0 means not initialised yet (`QueueRegionSplit.version`).
pub const REGION_VERSION: u16 = 1;

/// Largest number of queues accepted in one area: a queue index has 8 bits in
/// SET_VRING_KICK, so no more can ever be started.
pub const MAX_QUEUES: u16 = 256;

/// Largest queue size accepted (VIRTIO 1.4, 2.7 and 2.8: at most 32768 entries).
pub const MAX_QUEUE_SIZE: u16 = 32768;

/// Offsets in a region's header that both formats share, in bytes.
pub mod region {
    /// `features`, u64, 0 for now.
    pub const FEATURES: u64 = 0;
    /// `version`, u16.
    pub const VERSION: u64 = 8;
    /// `desc_num`, u16: entries that follow, equal to the queue size.
    pub const DESC_NUM: u64 = 10;
}

/// A split ring's region: `QueueRegionSplit` and `DescStateSplit`; offsets in bytes.
pub mod split {
    /// `last_batch_head`, u16: first entry of the batch published last.
    pub const LAST_BATCH_HEAD: u64 = 12;
    /// `used_idx`, u16: the used ring's index after the batch before.
    pub const USED_IDX: u64 = 14;
    /// Where the entries start; also the size of the header.
    pub const ENTRIES: u64 = 16;
    /// Size of one entry.
    pub const ENTRY_LEN: u64 = 16;
    /// In an entry: `inflight`, u8.
    pub const ENTRY_INFLIGHT: u64 = 0;
    /// In an entry: `next`, u16, after 5 bytes of padding.
    pub const ENTRY_NEXT: u64 = 6;
    /// In an entry: `counter`, u64, the order in which heads were taken.
    pub const ENTRY_COUNTER: u64 = 8;
}

/// A packed ring's region: `QueueRegionPacked` and `DescStatePacked`; offsets in bytes.
pub mod packed {
    /// `free_head`, u16.
    pub const FREE_HEAD: u64 = 12;
    /// `old_free_head`, u16.
    pub const OLD_FREE_HEAD: u64 = 14;
    /// `used_idx`, u16.
    pub const USED_IDX: u64 = 16;
    /// `old_used_idx`, u16.
    pub const OLD_USED_IDX: u64 = 18;
    /// `used_wrap_counter`, u8.
    pub const USED_WRAP_COUNTER: u64 = 20;
    /// `old_used_wrap_counter`, u8.
    pub const OLD_USED_WRAP_COUNTER: u64 = 21;
    /// Where the entries start: the fields with their 7 bytes of padding end at 29, and C aligns
    /// the entries, which hold u64 fields, to the next multiple of 8.
    pub const ENTRIES: u64 = 32;
    /// Size of one entry.
    pub const ENTRY_LEN: u64 = 32;
    /// In an entry: `inflight`, u8.
    pub const ENTRY_INFLIGHT: u64 = 0;
    /// In an entry: `next`, u16, after 1 byte of padding.
    pub const ENTRY_NEXT: u64 = 2;
    /// In an entry: `last`, u16.
    pub const ENTRY_LAST: u64 = 4;
    /// In an entry: `num`, u16.
    pub const ENTRY_NUM: u64 = 6;
    /// In an entry: `counter`, u64.
    pub const ENTRY_COUNTER: u64 = 8;
    /// In an entry: `id`, u16.
    pub const ENTRY_ID: u64 = 16;
    /// In an entry: `flags`, u16.
    pub const ENTRY_FLAGS: u64 = 18;
    /// In an entry: `len`, u32.
    pub const ENTRY_LEN_FIELD: u64 = 20;
    /// In an entry: `addr`, u64.
    pub const ENTRY_ADDR: u64 = 24;
}

/// Which of the two layouts a region has; it follows the ring's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// [`split`].
    Split,
    /// [`packed`].
    Packed,
}

impl Layout {
    /// Size in bytes of the region of one queue of `queue_size` entries, with its alignment.
    pub fn region_len(self, queue_size: u16) -> u64 {
        let (header, entry) = match self {
            Self::Split => (split::ENTRIES, split::ENTRY_LEN),
            Self::Packed => (packed::ENTRIES, packed::ENTRY_LEN),
        };
        (header + entry * u64::from(queue_size)).next_multiple_of(REGION_ALIGN)
    }

    /// Offset in bytes of a queue's region from the start of the area.
    pub fn region_offset(self, queue: u16, queue_size: u16) -> u64 {
        u64::from(queue) * self.region_len(queue_size)
    }

    /// Size in bytes of an area for `queues` queues of `queue_size` entries, or `None` where a
    /// number is 0 or above [`MAX_QUEUES`] or [`MAX_QUEUE_SIZE`]: a peer asks for these numbers
    /// and must not be able to have gigabytes allocated.
    pub fn area_len(self, queues: u16, queue_size: u16) -> Option<u64> {
        let acceptable =
            (1..=MAX_QUEUES).contains(&queues) && (1..=MAX_QUEUE_SIZE).contains(&queue_size);
        acceptable.then(|| self.region_offset(queues, queue_size))
    }

    /// Offset in bytes of an entry from the start of its queue's region.
    pub fn entry_offset(self, entry: u16) -> u64 {
        match self {
            Self::Split => split::ENTRIES + split::ENTRY_LEN * u64::from(entry),
            Self::Packed => packed::ENTRIES + packed::ENTRY_LEN * u64::from(entry),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both known daemons leave something out of the sum (QEMU's library counts a header of 2
    /// bytes, DPDK a packed header without its C padding); the alignment hides it for every size,
    /// so that areas can be handed from one to the other.
    #[test]
    fn sizes_agree_with_the_other_daemons_for_every_queue_size() {
        for size in 1..=MAX_QUEUE_SIZE {
            let libvhost_user = (16 * u64::from(size) + 2).next_multiple_of(64);
            assert_eq!(Layout::Split.region_len(size), libvhost_user, "split {size}");
            let dpdk = (32 * u64::from(size) + 8 + 6 * 2 + 9).next_multiple_of(64);
            assert_eq!(Layout::Packed.region_len(size), dpdk, "packed {size}");
        }
    }

    #[test]
    fn regions_follow_each_other() {
        assert_eq!(Layout::Split.region_len(128), 2112);
        assert_eq!(Layout::Split.region_offset(3, 128), 3 * 2112);
        assert_eq!(Layout::Split.area_len(4, 128), Some(4 * 2112));
        assert_eq!(Layout::Packed.area_len(1, 256), Some(8256));
    }

    #[test]
    fn unreasonable_areas_have_no_size() {
        assert_eq!(Layout::Split.area_len(0, 128), None);
        assert_eq!(Layout::Split.area_len(1, 0), None);
        assert_eq!(Layout::Split.area_len(257, 128), None);
        assert_eq!(Layout::Packed.area_len(u16::MAX, u16::MAX), None);
    }

    #[test]
    fn entries_stay_inside_their_region() {
        for layout in [Layout::Split, Layout::Packed] {
            let end = layout.entry_offset(256);
            assert!(end <= layout.region_len(256));
            assert!(end > layout.region_len(256) - REGION_ALIGN);
        }
    }
}
