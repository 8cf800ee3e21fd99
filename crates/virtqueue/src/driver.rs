//! The driver's side: offer chains to a device, take them back used.

mod ledger;
mod packed;
mod split;

use mem::{DriverAddress, MemoryMap};

use crate::{Burst, ChainId, QueueError, QueuePosition, QueueSpec, RingFormat, Segment};
use ledger::Offer;
use packed::PackedDriver;
use split::SplitDriver;

/// Memory for indirect tables: `tables` tables of `entries` descriptors of 16 bytes, one behind the
/// other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndirectArea {
    /// Address of the first table, aligned to 16 bytes.
    pub at: DriverAddress,
    /// How many tables.
    pub tables: u16,
    /// How many descriptors each has.
    pub entries: u16,
}

impl IndirectArea {
    /// Bytes the tables take up.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        16 * self.tables as usize * self.entries as usize
    }
}

/// A virtqueue seen from the driver. `T` is what the caller wants back with each chain.
///
/// The device's side of the ring is hostile, and the shared rings are only written here, never read
/// back: everything needed to take a chain back, or to offer it again to another device, is in
/// private memory.
#[derive(Debug)]
pub struct DriverQueue<T> {
    ring: Ring<T>,
    spec: QueueSpec,
}

#[derive(Debug)]
enum Ring<T> {
    Split(SplitDriver<T>),
    Packed(PackedDriver<T>),
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

impl<T> DriverQueue<T> {
    /// A queue over rings in `memory`, which no device uses yet: they are initialised. If the
    /// feature was negotiated, chains of two or more segments go into the tables at `indirect`
    /// while there are free ones.
    ///
    /// # Errors
    /// What [`QueueSpec::check`] refuses, and rings that are not in writable, mapped memory.
    pub fn new(
        memory: &MemoryMap,
        spec: &QueueSpec,
        indirect: Option<IndirectArea>,
    ) -> Result<Self, QueueError> {
        spec.check()?;
        if let Some(IndirectArea { at, .. }) = indirect
            && !at.0.is_multiple_of(16)
        {
            let area = "area for indirect tables";
            return Err(QueueError::Misaligned { area, at, alignment: 16 });
        }
        let ring = match spec.format {
            RingFormat::Split => Ring::Split(SplitDriver::new(memory, spec, indirect)?),
            RingFormat::Packed => Ring::Packed(PackedDriver::new(memory, spec, indirect)?),
        };
        Ok(Self { ring, spec: spec.clone() })
    }

    /// Offers a chain. The device sees it after [`DriverQueue::publish_available`].
    ///
    /// # Errors
    /// The context back, if there is no room now. There never is for more than
    /// [`DriverQueue::max_segments`].
    ///
    /// # Panics
    /// If there are no segments.
    #[inline]
    pub fn offer(
        &mut self,
        readable: &[Segment],
        writable: &[Segment],
        context: T,
    ) -> Result<(), T> {
        let offer = Offer { readable, writable, context };
        let segments = offer.segments();
        assert!(segments > 0, "a chain has at least one segment");
        either!(mut self, ring => {
            if !ring.ledger().has_room(segments) {
                return Err(offer.context);
            }
            if ring.ledger().would_use_table(segments) {
                ring.ledger_mut().make(1);
                ring.offer_indirect(offer);
            } else {
                ring.ledger_mut().make(segments);
                ring.offer_direct(offer);
            }
        });
        Ok(())
    }

    /// Offers the chains of a burst, with the contexts that `context` makes of their ids; the burst
    /// is empty afterwards. One chain so costs half of what [`DriverQueue::offer`] costs.
    ///
    /// # Panics
    /// If there is less [`DriverQueue::room`] than chains.
    #[inline]
    pub fn offer_burst(&mut self, burst: &mut Burst, context: impl FnMut(ChainId) -> T) {
        assert!(burst.len() <= self.room(), "a burst is offered where there is room");
        either!(mut self, ring => {
            ring.ledger_mut().make(burst.len());
            ring.offer_burst(burst, context);
        });
    }

    /// How many chains of one segment would be accepted now.
    #[inline]
    #[must_use]
    pub fn room(&self) -> usize {
        either!(self, ring => ring.ledger().free())
    }

    /// Whether a chain of so many segments would be accepted now.
    #[inline]
    #[must_use]
    pub fn room_for(&self, segments: usize) -> bool {
        either!(self, ring => ring.ledger().has_room(segments))
    }

    /// The longest chain that is ever accepted.
    #[must_use]
    pub fn max_segments(&self) -> usize {
        either!(self, ring => ring.ledger().max_segments())
    }

    /// Lets the device see all chains offered since the last call.
    #[inline]
    pub fn publish_available(&mut self) {
        either!(mut self, ring => ring.publish_available());
    }

    /// Whether the device wants a notification for what was published since the last call.
    #[inline]
    #[must_use]
    pub fn wants_kick(&mut self) -> bool {
        either!(mut self, ring => ring.wants_kick())
    }

    /// Takes back the next used chain, if there is one: its context and the bytes the device says
    /// it wrote, which are at most as many as the chain has room for.
    ///
    /// # Errors
    /// The rule that the device broke; the queue must not be used any more then but to
    /// [`DriverQueue::drain`] or [`DriverQueue::restart`] it.
    #[inline]
    pub fn take_used(&mut self) -> Result<Option<(T, u32)>, QueueError> {
        either!(mut self, ring => ring.take_used())
    }

    /// Takes back up to `most` used chains and hands each to `each`, as [`DriverQueue::take_used`]
    /// does one; returns how many there were.
    ///
    /// # Errors
    /// As [`DriverQueue::take_used`]; the chains before were taken back all the same.
    #[inline]
    pub fn take_used_burst(
        &mut self,
        most: usize,
        each: impl FnMut(T, u32),
    ) -> Result<usize, QueueError> {
        either!(mut self, ring => ring.take_used_burst(most, each))
    }

    /// Asks the device to interrupt us for the next used chain. True if there is one already: then
    /// no interrupt may come, and the caller goes on taking.
    #[inline]
    #[must_use]
    pub fn arm_interrupt(&mut self) -> bool {
        either!(mut self, ring => ring.arm_interrupt())
    }

    /// Tells the device that we are polling. It may interrupt us all the same.
    #[inline]
    pub fn disarm_interrupt(&mut self) {
        either!(mut self, ring => ring.disarm_interrupt());
    }

    /// Whether there is something to take back at this moment, right or wrong.
    #[inline]
    #[must_use]
    pub fn has_used(&self) -> bool {
        either!(self, ring => ring.has_used())
    }

    /// Chains offered and not taken back.
    #[inline]
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        either!(self, ring => ring.ledger().in_flight())
    }

    /// How far the queue has come.
    #[must_use]
    pub fn position(&self) -> QueuePosition {
        either!(self, ring => ring.position())
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

    /// Starts the rings afresh for another device, after the one before died, and offers everything
    /// in flight again, in the order it was offered first and from private copies. The new device
    /// sees it at once. Features, format, size and addresses may be others than before.
    ///
    /// # Errors
    /// As [`DriverQueue::new`], and [`QueueError::RestartTooSmall`]; nothing is changed then.
    pub fn restart(
        &mut self,
        memory: &MemoryMap,
        spec: &QueueSpec,
        indirect: Option<IndirectArea>,
    ) -> Result<(), QueueError> {
        if !either!(self, ring => ring.ledger().fits(spec, indirect)) {
            return Err(QueueError::RestartTooSmall);
        }
        let mut fresh = Self::new(memory, spec, indirect)?;
        for saved in either!(mut self, ring => ring.ledger_mut().take_all()) {
            let (readable, writable) = (&*saved.readable, &*saved.writable);
            let offer = Offer { readable, writable, context: saved.context };
            // As before, in a table or not: another choice might need more descriptors than there
            // are.
            either!(mut fresh, ring => {
                ring.ledger_mut().make(if saved.indirect { 1 } else { offer.segments() });
                match saved.indirect {
                    true => ring.offer_indirect(offer),
                    false => ring.offer_direct(offer),
                }
            });
        }
        fresh.publish_available();
        *self = fresh;
        Ok(())
    }

    /// Hands back the contexts of all chains in flight, in the order they were offered, for
    /// tear-down: the device may still be using the buffers. Afterwards the queue can only be
    /// dropped or restarted.
    pub fn drain(&mut self, mut each: impl FnMut(T)) {
        for saved in either!(mut self, ring => ring.ledger_mut().take_all()) {
            each(saved.context);
        }
    }

    #[cfg(loom)]
    pub(crate) fn of_split(tables: crate::device::SplitTables, spec: &QueueSpec) -> Self {
        let ring = Ring::Split(SplitDriver::from_tables(tables, None, spec, None));
        Self { ring, spec: spec.clone() }
    }

    #[cfg(loom)]
    pub(crate) fn of_packed(tables: crate::device::PackedTables, spec: &QueueSpec) -> Self {
        let ring = PackedDriver::from_tables(tables, None, spec, None).expect("a good position");
        Self { ring: Ring::Packed(ring), spec: spec.clone() }
    }
}
