use std::sync::Arc;

use mem::{Access, DriverAddress, MapReader, MemoryError, MemoryMap, Resolver};
use virtio::{InFlightArea, Notifier, QueueSetup};
use virtqueue::{
    Burst, Chain, ChainId, DeviceQueue, QueueError, QueuePosition, QueueSpec, Segment,
};

use super::cursor::{Cursor, Reader, Writer};
use super::task::Fault;

/// How far the serving of one chain came.
pub(crate) enum Outcome {
    /// Done, with this many bytes written from the start of the device-writable part.
    Done(u32),
    /// Nothing was done and can be done now; the chain stays where it is and comes again.
    Later,
}

/// A running queue and the snapshot of memory it works on.
pub(crate) struct QueueAccess {
    spec: QueueSpec,
    /// `None` as long as the rings' own addresses have no translation.
    queue: Option<DeviceQueue>,
    /// Whether the rings are resolved in the snapshot in use.
    bound: bool,
    chain: Chain,
    /// A chain put aside while others are taken.
    kept: Chain,
    memory: MapReader,
    enabled: bool,
    /// An address had no translation: nothing is taken until there is a new snapshot.
    waiting: bool,
    /// Where to record what is in flight, and the queue's number there.
    record: Option<(Arc<InFlightArea>, u16)>,
}

/// A checked chain's buffers.
pub(crate) struct Buffers<'a> {
    chain: &'a Chain,
    memory: &'a MemoryMap,
}

impl QueueAccess {
    /// The queue that `setup` describes. Rings whose addresses have no translation yet are waited
    /// for.
    pub(crate) fn new(setup: &QueueSetup) -> Result<Self, QueueError> {
        setup.spec.check()?;
        let capacity = usize::from(setup.spec.size);
        let mut access = Self {
            queue: None,
            bound: false,
            chain: Chain::with_capacity(capacity),
            kept: Chain::with_capacity(capacity),
            spec: setup.spec.clone(),
            memory: setup.memory.reader(),
            enabled: true,
            waiting: false,
            record: setup.in_flight.clone().map(|area| (area, setup.index)),
        };
        access.memory.enter();
        let result = access.bind();
        access.memory.leave();
        result.map(|()| access)
    }

    /// Begins a batch; returns whether the rings can be used.
    pub(crate) fn enter(&mut self) -> Result<bool, QueueError> {
        if self.memory.enter() {
            self.bound = false;
            self.waiting = false;
        }
        if !self.bound && !self.waiting {
            self.bind()?;
        }
        Ok(self.bound)
    }

    /// Ends a batch.
    pub(crate) fn leave(&mut self) {
        self.memory.leave();
    }

    fn bind(&mut self) -> Result<(), QueueError> {
        let map = self.memory.resolver().map();
        let result = match &mut self.queue {
            Some(queue) => queue.rebind(map),
            None => start(map, &self.spec, self.record.as_ref()).map(|queue| {
                self.queue = Some(queue);
            }),
        };
        match result {
            Err(QueueError::Miss(at)) => self.miss(at, Access::Read),
            result => {
                self.bound = result.is_ok();
                return result;
            }
        }
        Ok(())
    }

    fn miss(&mut self, at: DriverAddress, wanted: Access) {
        self.waiting = true;
        self.memory.space().report_miss(at, wanted);
    }

    /// Takes the next chain, if there is one; [`QueueAccess::buffers`] are its buffers.
    pub(crate) fn take(&mut self) -> Result<Option<ChainId>, QueueError> {
        let Some(queue) = self.queue.as_mut().filter(|_| self.enabled && !self.waiting) else {
            return Ok(None);
        };
        let resolver = self.memory.resolver();
        let (error, is_taken) = match queue.take(resolver, &mut self.chain) {
            Ok(None) => return Ok(None),
            Ok(Some(id)) => match check(resolver, &self.chain) {
                Ok(()) => return Ok(Some(id)),
                Err(error) => {
                    queue.untake(id);
                    (error.into(), true)
                }
            },
            Err(error) => (error, false),
        };
        match error {
            QueueError::Miss(at) => {
                // What is not a buffer is a table of descriptors, which is read.
                let wanted = if is_taken { self.chain.wants(at) } else { Access::Read };
                self.miss(at, wanted);
                Ok(None)
            }
            error => Err(error),
        }
    }

    /// The buffers of the chain that was taken last.
    pub(crate) fn buffers(&mut self) -> Buffers<'_> {
        Buffers { chain: &self.chain, memory: self.memory.resolver().map() }
    }

    /// Puts the buffers of the chain that was taken last aside.
    pub(crate) fn keep(&mut self) {
        std::mem::swap(&mut self.chain, &mut self.kept);
    }

    /// The buffers put aside by [`QueueAccess::keep`]. What the driver has unmapped meanwhile is
    /// not reached any more.
    pub(crate) fn kept(&mut self) -> Buffers<'_> {
        Buffers { chain: &self.kept, memory: self.memory.resolver().map() }
    }

    /// Gives a chain back with this many bytes written.
    #[inline]
    pub(crate) fn give_back(&mut self, id: ChainId, written: u32) {
        match &mut self.queue {
            Some(queue) => queue.give_back(id, written),
            None => id.abandon(),
        }
    }

    /// Undoes the latest take.
    pub(crate) fn untake(&mut self, id: ChainId) {
        match &mut self.queue {
            Some(queue) => queue.untake(id),
            None => id.abandon(),
        }
    }

    /// Begins to fetch what the next burst touches of the ring.
    #[inline]
    pub(crate) fn prefetch_burst(&mut self, most: usize) {
        if let Some(queue) = self.queue.as_mut().filter(|_| self.enabled && !self.waiting) {
            queue.prefetch_burst(most);
        }
    }

    /// Takes up to `most` chains of one buffer each. Whether their memory can be reached is not
    /// checked; a chain where it can't is to be untaken, and [`QueueAccess::take`] tells.
    #[inline]
    pub(crate) fn take_burst(&mut self, most: usize, burst: &mut Burst) {
        if let Some(queue) = self.queue.as_mut().filter(|_| self.enabled && !self.waiting) {
            queue.take_burst(most, burst);
        }
    }

    /// Gives a burst back with so many bytes written in each chain.
    #[inline]
    pub(crate) fn give_back_burst(&mut self, burst: &mut Burst, written: &[u32]) {
        match &mut self.queue {
            Some(queue) => queue.give_back_burst(burst, written),
            None => burst.abandon(),
        }
    }

    /// Undoes the latest take of a burst.
    pub(crate) fn untake_last(&mut self, burst: &mut Burst) {
        if let Some(id) = burst.pop() {
            self.untake(id);
        }
    }

    /// Whether the driver has made something available that may be taken.
    pub(crate) fn has_available(&self) -> bool {
        let queue = self.queue.as_ref().filter(|_| self.enabled && !self.waiting);
        queue.is_some_and(DeviceQueue::has_available)
    }

    /// The snapshot of memory in use.
    #[inline]
    pub(crate) fn map(&self) -> &MemoryMap {
        self.memory.map()
    }

    /// Serves up to `budget` chains one by one; returns whether any was done.
    pub(crate) fn each(
        &mut self,
        budget: u32,
        mut serve: impl FnMut(&Buffers<'_>) -> Result<Outcome, Fault>,
    ) -> Result<bool, Fault> {
        for done in 0..budget {
            let Some(id) = self.take()? else { return Ok(done > 0) };
            match serve(&self.buffers()) {
                Ok(Outcome::Done(written)) => self.give_back(id, written),
                Ok(Outcome::Later) => {
                    self.untake(id);
                    return Ok(done > 0);
                }
                Err(fault) => {
                    id.abandon();
                    return Err(fault);
                }
            }
        }
        Ok(true)
    }

    /// Suspends or resumes the taking of chains. The ring of a suspended queue may not even be told
    /// about notifications: User Mode Linux frees a ring when it has disabled it.
    pub(crate) fn enable(&mut self, enabled: bool) {
        self.enabled = enabled;
    }

    /// Shows the driver what was given back, and interrupts it if it wants that.
    pub(crate) fn publish(&mut self, call: &Notifier) {
        if let Some(queue) = &mut self.queue {
            queue.publish_used();
            self.spec.mark_dirty(self.memory.resolver().map());
            if queue.wants_interrupt() {
                call.signal();
            }
        }
    }

    /// Asks the driver for a notification; returns whether there is something to take already.
    pub(crate) fn arm(&mut self) -> bool {
        let stale = self.memory.space().generation() != self.memory.resolver().map().generation();
        if stale {
            return true;
        }
        match &mut self.queue {
            Some(queue) if self.bound && self.enabled && !self.waiting => queue.arm_kick(),
            _ => false,
        }
    }

    /// Tells the driver that notifications are not needed.
    pub(crate) fn disarm(&mut self) {
        if let Some(queue) = self.queue.as_mut().filter(|_| self.bound && self.enabled) {
            queue.disarm_kick();
        }
    }

    /// The queue ends here.
    pub(crate) fn finish(&mut self) -> QueuePosition {
        // Notifications were asked for and called off since it was marked last.
        self.spec.mark_dirty(self.memory.resolver().map());
        self.position()
    }

    /// How far the queue has come.
    fn position(&self) -> QueuePosition {
        self.queue.as_ref().map_or(self.spec.start_at, DeviceQueue::position)
    }

    /// Whether the driver's memory was cut under us, and somebody has met that.
    #[inline]
    pub(crate) fn is_cut(&mut self) -> bool {
        self.memory.is_cut()
    }
}

impl<'a> Buffers<'a> {
    /// Bytes the device may read.
    pub(crate) fn readable_len(&self) -> u64 {
        self.chain.readable_len()
    }

    /// Bytes the device may write.
    pub(crate) fn writable_len(&self) -> u64 {
        self.chain.writable_len()
    }

    /// The device-readable part.
    pub(crate) fn reader(&self) -> Reader<'a> {
        Reader(Cursor::new(self.memory, self.chain.readable(), self.chain.readable_len()))
    }

    /// The device-writable part.
    pub(crate) fn writer(&self) -> Writer<'a> {
        Writer(Cursor::new(self.memory, self.chain.writable(), self.chain.writable_len()))
    }
}

/// A queue on its rings. Chains that its record says were in flight come first.
fn start(
    map: &MemoryMap,
    spec: &QueueSpec,
    record: Option<&(Arc<InFlightArea>, u16)>,
) -> Result<DeviceQueue, QueueError> {
    let mut queue = DeviceQueue::new(map, spec)?;
    if let Some((area, index)) = record
        && let Some(log) = area.log(*index, spec)?
    {
        queue.attach_log(log)?;
    }
    Ok(queue)
}

/// Makes sure that every byte of the chain can be reached, so that nothing fails half-way through a
/// request.
fn check(memory: &mut Resolver, chain: &Chain) -> Result<(), MemoryError> {
    for segment in chain.readable() {
        check_segment(memory, segment, false)?;
    }
    for segment in chain.writable() {
        check_segment(memory, segment, true)?;
    }
    Ok(())
}

#[inline]
fn check_segment(memory: &mut Resolver, segment: &Segment, write: bool) -> Result<(), MemoryError> {
    let mut at = segment.addr;
    let mut left = u64::from(segment.len);
    // Bounded by the regions the segment crosses: a span is never empty, and `span` refuses ranges
    // that wrap around.
    while left > 0 {
        let span = memory.span(at, left)?;
        if write && !span.is_writable() {
            return Err(MemoryError::BadTable { offset: at.0 });
        }
        at.0 += span.len() as u64;
        left -= span.len() as u64;
    }
    Ok(())
}
