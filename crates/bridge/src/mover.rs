use mem::{DriverAddress, MemoryError, Resolver};
use virtqueue::{Chain, QueueError, Segment};

/// What becomes of a chain that is to go to the device.
#[derive(Debug)]
pub enum Step<L> {
    /// It can go; [`Mover::segments`] has what the device gets.
    Ready(L),
    /// There is no room for it until others have come back.
    Wait,
}

/// Why a mover can't move a chain.
#[derive(Debug, thiserror::Error)]
pub enum MoverError {
    /// The chain's memory is not as it should be; [`QueueError::Miss`] may pass.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// A transfer from or to the driver's memory failed.
    #[error("a transfer from or to the driver's memory: {0}")]
    Link(#[from] mem::remote::RemoteError),
    /// A file behind the driver's memory was cut short: what is read there now nobody wrote.
    #[error("the file behind the driver's memory was cut short while it was used")]
    Cut,
    /// The chain will never fit.
    #[error("a request of {bytes} bytes needs a larger pool than {pool} bytes")]
    TooLarge {
        /// Bytes the chain needs, rounding included.
        bytes: u64,
        /// Bytes of the whole pool.
        pool: u64,
    },
    /// The chain has more buffers than the device's queue can take.
    #[error("a request of {segments} buffers, where the device's queue takes {limit}")]
    TooManySegments {
        /// Buffers of the chain.
        segments: usize,
        /// Most buffers of a chain towards the device.
        limit: usize,
    },
}

impl From<MemoryError> for MoverError {
    fn from(error: MemoryError) -> Self {
        Self::Queue(error.into())
    }
}

impl MoverError {
    /// The address whose translation is missing, if that is all.
    pub(crate) fn miss(&self) -> Option<DriverAddress> {
        match self {
            Self::Queue(QueueError::Miss(at)) => Some(*at),
            _ => None,
        }
    }
}

/// Brings a chain's bytes to where the device can reach them, and what it wrote back. No method may
/// wait or allocate.
pub trait Mover: Send + 'static {
    /// What the mover keeps with a chain that is with the device; the default value for a chain
    /// that went as it is.
    type Load: Default + Send + 'static;

    /// Whether nothing is left to do when a chain comes back: then [`Mover::inbound`] is left out.
    /// The same for as long as the mover lives.
    #[inline]
    fn is_one_way(&self) -> bool {
        false
    }

    /// Whether the device can have a chain of this one buffer as it is; else [`Mover::outbound`]
    /// looks at it.
    #[inline]
    fn goes_as_it_is(&self, memory: &Resolver, segment: Segment, writable: bool) -> bool {
        let _ = (memory, segment, writable);
        false
    }

    /// Prepares `chain` for the device.
    ///
    /// # Errors
    /// The driver's buffers are not acceptable; nothing is kept of the chain.
    fn outbound(
        &mut self,
        memory: &mut Resolver,
        chain: &Chain,
    ) -> Result<Step<Self::Load>, MoverError>;

    /// The buffers the device gets for the chain just prepared: readable, writable.
    fn segments<'a>(&'a self, chain: &'a Chain) -> (&'a [Segment], &'a [Segment]);

    /// The device has written `written` bytes, no more than there was room for: brings them to the
    /// driver.
    ///
    /// # Errors
    /// The driver's buffers are not there any more. After a miss the same load may be tried again;
    /// after any other error it is released.
    fn inbound(
        &mut self,
        memory: &mut Resolver,
        load: &Self::Load,
        written: u32,
    ) -> Result<(), MoverError>;

    /// Bytes copied since the last call.
    fn take_copied(&mut self) -> u64 {
        0
    }
}
