//! The device's side: take chains the driver made available, give them back used.

mod held;
mod indirect;
mod packed;
mod split;

pub(crate) use packed::{PackedTables, available_bits, has_bits, used_bits};
pub(crate) use split::{SplitTables, split_header};

use mem::{MemoryMap, Resolver};

use crate::{Burst, Chain, ChainId, InFlightLog, QueueError, QueuePosition, QueueSpec, RingFormat};
use packed::PackedDevice;
use split::SplitDevice;

/// Bits of a descriptor's flags, the same in both formats (VIRTIO 1.4, 2.7.5, 2.8.13).
pub(crate) mod flag {
    /// The chain goes on.
    pub const NEXT: u16 = 1;
    /// The device writes this buffer.
    pub const WRITE: u16 = 2;
    /// The buffer is a table of descriptors.
    pub const INDIRECT: u16 = 4;
    /// Packed only: the driver's wrap counter.
    pub const AVAIL: u16 = 1 << 7;
    /// Packed only: the device's wrap counter.
    pub const USED: u16 = 1 << 15;
}

/// A virtqueue seen from the device.
///
/// The driver's side of the ring is hostile: see the crate's documentation. The queue takes as fast
/// as it is asked to; how many chains are in flight at once is bounded by the queue size.
#[derive(Debug)]
pub struct DeviceQueue {
    ring: Ring,
    spec: QueueSpec,
}

#[derive(Debug)]
enum Ring {
    Split(SplitDevice),
    Packed(PackedDevice),
}

macro_rules! either {
    ($self:expr, $ring:ident => $body:expr) => {
        match &$self.ring {
            Ring::Split($ring) => $body,
            Ring::Packed($ring) => $body,
        }
    };
    (mut $self:expr, $ring:ident => $body:expr) => {
        match &mut $self.ring {
            Ring::Split($ring) => $body,
            Ring::Packed($ring) => $body,
        }
    };
}

impl DeviceQueue {
    /// A queue over rings that lie in `memory`.
    ///
    /// # Errors
    /// What [`QueueSpec::check`] refuses, and rings that are not in writable, mapped memory.
    pub fn new(memory: &MemoryMap, spec: &QueueSpec) -> Result<Self, QueueError> {
        spec.check()?;
        let ring = match spec.format {
            RingFormat::Split => Ring::Split(SplitDevice::new(memory, spec)?),
            RingFormat::Packed => Ring::Packed(PackedDevice::new(memory, spec)?),
        };
        Ok(Self { ring, spec: spec.clone() })
    }

    /// Resolves the rings again after the memory map changed; what is in flight stays in flight.
    ///
    /// # Errors
    /// As [`DeviceQueue::new`]; the queue must not be used then until a later call succeeds.
    pub fn rebind(&mut self, memory: &MemoryMap) -> Result<(), QueueError> {
        either!(mut self, ring => ring.rebind(memory, &self.spec))
    }

    /// Keeps a log of the chains in flight from now on, so that another process can go on where
    /// this one is killed. If the log holds chains, [`DeviceQueue::take`] returns them first, in
    /// the order they were taken, and the position is set by the log. To be called before anything
    /// is taken.
    ///
    /// # Errors
    /// [`QueueError::BadInFlightLog`] if it holds what no device would write.
    pub fn attach_log(&mut self, log: InFlightLog) -> Result<(), QueueError> {
        assert!(self.in_flight() == 0, "a log is attached before chains are taken");
        let memory = log.memory_for(self.spec.format, self.spec.size)?;
        either!(mut self, ring => ring.attach_log(memory))
    }

    /// Chains of an attached log that are still to be taken.
    #[must_use]
    pub fn to_take_again(&self) -> usize {
        either!(self, ring => ring.to_take_again())
    }

    /// Takes the next chain, if there is one, and fills `chain` with its buffers. Indirect tables
    /// are read through `memory`; the buffers are not looked at.
    ///
    /// # Errors
    /// [`QueueError::Miss`] changes nothing and may be tried again; any other error means that the
    /// driver broke a rule.
    #[inline]
    pub fn take(
        &mut self,
        memory: &mut Resolver,
        chain: &mut Chain,
    ) -> Result<Option<ChainId>, QueueError> {
        either!(mut self, ring => ring.take(memory, chain))
    }

    /// Takes the next chain without a look at its descriptors, to give it back with nothing
    /// written: the driver is to have it again though somebody has spoilt what they say.
    ///
    /// Only split rings tell of a chain without them; with a packed one there is nothing to take.
    ///
    /// # Errors
    /// As [`DeviceQueue::take`], of the available ring or the log.
    pub fn take_unread(&mut self) -> Result<Option<ChainId>, QueueError> {
        match &mut self.ring {
            Ring::Split(ring) => ring.take_unread(),
            Ring::Packed(_) => Ok(None),
        }
    }

    /// Takes up to `most` chains of one buffer each into `burst`, which may hold some already.
    ///
    /// Ends before the first chain that is anything else, and takes nothing while a log of chains
    /// in flight is kept: then, as when there is nothing to take, [`DeviceQueue::take`] tells more.
    #[inline]
    pub fn take_burst(&mut self, most: usize, burst: &mut Burst) {
        either!(mut self, ring => ring.take_burst(most, burst));
    }

    /// Begins to fetch into the cache what taking the next `most` chains in a burst reads and what
    /// giving them back writes. For a caller whose driver is on another processor: there the lines
    /// are then fetched at the same time. Where they are in the cache this only costs.
    #[inline]
    pub fn prefetch_burst(&mut self, most: usize) {
        either!(mut self, ring => ring.prefetch_burst(most));
    }

    /// Undoes the most recent take, so that the next one takes the same chain again. Several can be
    /// undone in reverse order.
    #[inline]
    pub fn untake(&mut self, id: ChainId) {
        either!(mut self, ring => ring.untake(id));
    }

    /// Gives a chain back to the driver with `written` bytes in its device-writable part, which are
    /// known to be written: the driver may read as many. It sees it after
    /// [`DeviceQueue::publish_used`].
    ///
    /// With VIRTIO_F_IN_ORDER, chains given back early wait in private memory for those before
    /// them.
    #[inline]
    pub fn give_back(&mut self, id: ChainId, written: u32) {
        either!(mut self, ring => ring.give_back(id, written));
    }

    /// Gives a burst back, with `written` bytes in each of its chains; the burst is empty
    /// afterwards.
    ///
    /// # Panics
    /// If there are not as many lengths as chains.
    #[inline]
    pub fn give_back_burst(&mut self, burst: &mut Burst, written: &[u32]) {
        either!(mut self, ring => ring.give_back_burst(burst, written));
    }

    /// Lets the driver see all chains given back since the last call.
    #[inline]
    pub fn publish_used(&mut self) {
        either!(mut self, ring => ring.publish_used());
    }

    /// Whether the driver wants an interrupt for what was published since the last call.
    #[inline]
    #[must_use]
    pub fn wants_interrupt(&mut self) -> bool {
        either!(mut self, ring => ring.wants_interrupt())
    }

    /// Asks the driver to notify us of the next chain. True if there is one already: then no
    /// notification may come, and the caller goes on taking.
    #[inline]
    #[must_use]
    pub fn arm_kick(&mut self) -> bool {
        either!(mut self, ring => ring.arm_kick())
    }

    /// Tells the driver that we are polling. It may notify us all the same.
    #[inline]
    pub fn disarm_kick(&mut self) {
        either!(mut self, ring => ring.disarm_kick());
    }

    /// Whether there is something to take at this moment, right or wrong.
    #[inline]
    #[must_use]
    pub fn has_available(&self) -> bool {
        either!(self, ring => ring.has_available())
    }

    /// How far the queue has come.
    #[must_use]
    pub fn position(&self) -> QueuePosition {
        either!(self, ring => ring.position())
    }

    /// Chains taken and not given back. Looks at all there can be.
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        either!(self, ring => ring.in_flight())
    }

    /// Descriptors in the queue.
    #[inline]
    #[must_use]
    pub fn size(&self) -> u16 {
        self.spec.size
    }

    /// What the queue was made from.
    #[must_use]
    pub fn spec(&self) -> &QueueSpec {
        &self.spec
    }

    #[cfg(loom)]
    pub(crate) fn of_split(tables: SplitTables, spec: &QueueSpec) -> Self {
        let ring = Ring::Split(SplitDevice::from_tables(tables, spec));
        Self { ring, spec: spec.clone() }
    }

    #[cfg(loom)]
    pub(crate) fn of_packed(tables: PackedTables, spec: &QueueSpec) -> Self {
        let ring = PackedDevice::from_tables(tables, spec).expect("a good position");
        Self { ring: Ring::Packed(ring), spec: spec.clone() }
    }
}
