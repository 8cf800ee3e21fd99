use mem::{DriverAddress, MemoryError};

use crate::RingFormat;

/// Why a queue can't be started, or which rule of VIRTIO 2.6-2.8 the other side broke.
///
/// After an error other than [`QueueError::Miss`] the queue must be stopped; asking again gives the
/// error again.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The IOMMU has no translation for this address yet; nothing was changed, try again when it
    /// has.
    #[error("address {0} has no translation yet")]
    Miss(DriverAddress),
    /// A ring or an indirect table is not in memory that can be used.
    #[error("{0}")]
    Memory(#[source] MemoryError),

    /// A size the format does not allow.
    #[error(
        "a {format} queue of {size} descriptors: allowed are 1 to 32768, for split a power of two"
    )]
    BadSize {
        /// The size asked for.
        size: u16,
        /// The format asked for.
        format: RingFormat,
    },
    /// An area that is not aligned as VIRTIO 2.7 and 2.8.10 demand.
    #[error("the {area} at {at} is not aligned to {alignment} bytes")]
    Misaligned {
        /// Which area.
        area: &'static str,
        /// Its address.
        at: DriverAddress,
        /// What its address must be a multiple of.
        alignment: usize,
    },
    /// A start position outside the ring.
    #[error("position {position:#x} is not in a packed queue of {size} descriptors")]
    BadPosition {
        /// The position in vhost-user's bits.
        position: u32,
        /// Size of the queue.
        size: u16,
    },

    /// The available index is further ahead than the queue is long, or moved backwards.
    #[error("the available index moved from {from} to {to}, more than the queue size {size}")]
    AvailableIndexJumped {
        /// The next index we expected.
        from: u16,
        /// The index found.
        to: u16,
        /// Size of the queue.
        size: u16,
    },
    /// An index of a descriptor beyond the table it is in.
    #[error("descriptor index {index} is not below {size}")]
    IndexOutOfRange {
        /// The index.
        index: u32,
        /// Entries of the table.
        size: u32,
    },
    /// A chain or buffer id made available while it is in flight.
    #[error("chain {0} was made available again while it is in flight")]
    AvailableTwice(u16),
    /// A chain that loops, or has more descriptors than the queue (VIRTIO 2.7.5.2, 2.7.5.3.1,
    /// 2.8.5).
    #[error("a descriptor chain is longer than the {limit} descriptors allowed, or loops")]
    ChainTooLong {
        /// Most descriptors a chain may have.
        limit: usize,
    },
    /// A packed chain that runs into descriptors still in flight.
    #[error("a descriptor chain runs into descriptors that are in flight")]
    ChainOverrun,
    /// A chain of more than 2^32 bytes (VIRTIO 2.7.5).
    #[error("a descriptor chain holds {0} bytes, more than 2^32")]
    TooManyBytes(u64),
    /// A descriptor of no bytes.
    #[error("a descriptor has length zero")]
    ZeroLength,
    /// A device-readable descriptor behind a device-writable one (VIRTIO 2.7.4.2).
    #[error("a device-readable descriptor follows a device-writable one")]
    ReadableAfterWritable,
    /// INDIRECT without VIRTIO_F_INDIRECT_DESC (VIRTIO 2.7.5.3.1).
    #[error("an indirect descriptor, though the feature was not negotiated")]
    IndirectNotNegotiated,
    /// INDIRECT and NEXT in one descriptor, or among direct ones in a packed chain.
    #[error("an indirect descriptor inside a chain that goes on")]
    IndirectInChain,
    /// INDIRECT inside an indirect table.
    #[error("an indirect descriptor inside an indirect table")]
    NestedIndirect,
    /// An indirect table whose length is 0, not a multiple of 16, or more than the format can use.
    #[error("an indirect table of {0} bytes: not a multiple of 16, empty, or too long")]
    IndirectLength(u32),

    /// The used index is further ahead than there are chains in flight, or moved backwards.
    #[error("the used index moved from {from} to {to} with {in_flight} chains in flight")]
    UsedIndexJumped {
        /// The next index we expected.
        from: u16,
        /// The index found.
        to: u16,
        /// Chains in flight.
        in_flight: u16,
    },
    /// A used id that is not the id of a chain in flight.
    #[error("used id {0} is not in flight")]
    UsedNotInFlight(u32),
    /// A used length greater than the chain's device-writable part.
    #[error("used length {written} of chain {id}, which has room for {writable} bytes")]
    UsedTooLong {
        /// The chain's id.
        id: u16,
        /// The length the device gave.
        written: u32,
        /// The length of its device-writable part.
        writable: u32,
    },
    /// A batch of VIRTIO_F_IN_ORDER that goes beyond the used index.
    #[error("used id {0} ends a batch that goes beyond the used index")]
    UsedOutOfOrder(u16),

    /// A log of chains in flight that can't be what a device wrote.
    #[error("the log of chains in flight {0}")]
    BadInFlightLog(&'static str),
    /// The chains in flight don't fit the queue as it is to be restarted.
    #[error("the chains in flight do not fit the restarted queue")]
    RestartTooSmall,
}

impl From<MemoryError> for QueueError {
    fn from(error: MemoryError) -> Self {
        match error {
            MemoryError::Miss(at) => Self::Miss(at),
            other => Self::Memory(other),
        }
    }
}
