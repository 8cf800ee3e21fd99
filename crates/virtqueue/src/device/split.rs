mod burst;

use mem::ring::{Descriptor, UsedElement};
use mem::sync::{AtomicU16, Ordering};
use mem::{DriverAddress, MemoryMap, Resolver, Table};

use super::flag;
use super::held::Held;
use super::indirect::IndirectReader;
use crate::barrier::Barrier;
use crate::event::{SPLIT_NO_EVENT, split_crossed};
use crate::inflight::{LogMemory, SplitLog, crash_point};
use crate::{Chain, ChainId, QueueError, QueuePosition, QueueSpec, Segment};
use split_header::{ENTRIES, FLAGS, INDEX};

/// Where things are in the available ring and in the used ring's header, in units of 16 bits
/// (VIRTIO 1.4, 2.7.6, 2.7.8).
pub(crate) mod split_header {
    /// Flags.
    pub const FLAGS: usize = 0;
    /// The running index.
    pub const INDEX: usize = 1;
    /// The available ring's first entry.
    pub const ENTRIES: usize = 2;
}

/// The shared memory of a split virtqueue, the same for both sides (VIRTIO 1.4, 2.7).
#[derive(Debug)]
pub(crate) struct SplitTables {
    pub descriptors: Table<Descriptor>,
    /// flags, idx, ring[size], used_event if negotiated.
    pub available: Table<AtomicU16>,
    /// flags, idx.
    pub used_header: Table<AtomicU16>,
    pub used: Table<UsedElement>,
    /// avail_event, behind the used ring, if negotiated.
    pub available_event: Option<Table<AtomicU16>>,
}

impl SplitTables {
    pub(crate) fn resolve(memory: &MemoryMap, spec: &QueueSpec) -> Result<Self, QueueError> {
        let size = usize::from(spec.size);
        let at = spec.addresses;
        let behind = |offset: usize| {
            let address = at.device.0.checked_add(offset as u64);
            address.map(DriverAddress).ok_or(mem::MemoryError::Overflow)
        };
        Ok(Self {
            descriptors: memory.table(at.descriptor, size)?,
            available: memory.table(at.driver, ENTRIES + size + usize::from(spec.event_idx))?,
            used_header: memory.table(at.device, ENTRIES)?,
            used: memory.table(behind(4)?, size)?,
            available_event: match spec.event_idx {
                true => Some(memory.table(behind(4 + 8 * size)?, 1)?),
                false => None,
            },
        })
    }

    /// The driver's wish for the next interrupt: behind the available ring.
    #[inline]
    pub(crate) fn used_event(&self) -> &AtomicU16 {
        &self.available[self.available.len() - 1]
    }
}

/// The device's side of a split virtqueue.
#[derive(Debug)]
pub(super) struct SplitDevice {
    tables: SplitTables,
    mask: u16,
    /// The next available index to take.
    next_available: u16,
    /// The driver's index when we last looked.
    seen_available: u16,
    /// The next used index to write.
    next_used: u16,
    /// The used index the driver can see.
    published: u16,
    /// Used entries published since we last asked whether to interrupt.
    unsignalled: u32,
    indirect: bool,
    held: Held,
    /// Made when the first indirect chain comes.
    reader: Option<Box<IndirectReader>>,
    log: Option<Box<SplitLog>>,
    /// Neither IN_ORDER nor a log: chains are taken and given back without further ado.
    simple: bool,
}

impl SplitDevice {
    pub(super) fn new(memory: &MemoryMap, spec: &QueueSpec) -> Result<Self, QueueError> {
        Ok(Self::from_tables(SplitTables::resolve(memory, spec)?, spec))
    }

    pub(super) fn from_tables(tables: SplitTables, spec: &QueueSpec) -> Self {
        let start = spec.start_at.index();
        // A queue that is taken over may have had chains in flight, so its used index lies behind;
        // where it can't be true (a driver that never cleared its ring) the queue begins at its
        // position.
        let used = u16::from_le(tables.used_header[INDEX].load(Ordering::Acquire));
        let used = if start.wrapping_sub(used) <= spec.size { used } else { start };
        let held = Held::new(spec);
        Self {
            tables,
            mask: spec.size - 1,
            next_available: start,
            seen_available: start,
            next_used: used,
            published: used,
            unsignalled: 0,
            indirect: spec.indirect,
            simple: held.is_unordered(),
            held,
            reader: None,
            log: None,
        }
    }

    pub(super) fn rebind(
        &mut self,
        memory: &MemoryMap,
        spec: &QueueSpec,
    ) -> Result<(), QueueError> {
        self.tables = SplitTables::resolve(memory, spec)?;
        Ok(())
    }

    pub(super) fn attach_log(&mut self, memory: LogMemory) -> Result<(), QueueError> {
        let ring_used = u16::from_le(self.tables.used_header[INDEX].load(Ordering::Acquire));
        let (log, used) = SplitLog::recover(memory, self.next_used, ring_used)?;
        if let Some(used) = used {
            // Whoever restarts us knows the used index at best; what is in flight was taken before.
            (self.next_used, self.published) = (used, used);
            self.next_available = used.wrapping_add(log.again.len() as u16);
            self.seen_available = self.next_available;
        }
        self.held.begin_log();
        self.simple = false;
        self.log = Some(Box::new(log));
        Ok(())
    }

    pub(super) fn to_take_again(&self) -> usize {
        self.log.as_ref().map_or(0, |log| log.again.len())
    }

    /// Takes a chain that the log says was in flight; `read` is as for
    /// [`SplitDevice::take_and`].
    #[cold]
    fn take_again(
        &mut self,
        head: u16,
        read: impl FnOnce(&mut Self, u16) -> Result<u32, QueueError>,
    ) -> Result<Option<ChainId>, QueueError> {
        self.held.check_free(head)?;
        let writable = read(self, head)?;
        self.held.insert(head, writable, 1);
        if let Some(log) = &mut self.log {
            log.again.take(head);
        }
        Ok(Some(ChainId::new(head)))
    }

    #[inline]
    pub(super) fn take(
        &mut self,
        memory: &mut Resolver,
        chain: &mut Chain,
    ) -> Result<Option<ChainId>, QueueError> {
        if !self.simple {
            return self.take_any(memory, chain);
        }
        if self.next_available == self.seen_available && !self.look_again()? {
            return Ok(None);
        }
        match self.take_single(chain) {
            Some(id) => Ok(Some(id)),
            None => self.take_any(memory, chain),
        }
    }

    /// The common case by itself: a chain of one descriptor that we know to be available. Anything
    /// else, right or wrong, is left to [`SplitDevice::take_any`], which reads it afresh.
    #[inline]
    fn take_single(&mut self, chain: &mut Chain) -> Option<ChainId> {
        let head = self.next_head();
        let descriptor = self.tables.descriptors.get(usize::from(head))?;
        let flags = descriptor.flags(Ordering::Relaxed);
        let len = descriptor.len(Ordering::Relaxed);
        if flags & (flag::NEXT | flag::INDIRECT) != 0 || len == 0 {
            return None;
        }
        let segment = Segment { addr: DriverAddress(descriptor.addr(Ordering::Relaxed)), len };
        let write = flags & flag::WRITE != 0;
        if !chain.set_only(segment, write)
            || !self.held.try_insert(head, if write { len } else { 0 })
        {
            return None;
        }
        self.next_available = self.next_available.wrapping_add(1);
        Some(ChainId::new(head))
    }

    /// The head at the next available index.
    #[inline]
    fn next_head(&self) -> u16 {
        let slot = ENTRIES + usize::from(self.next_available & self.mask);
        u16::from_le(self.tables.available[slot].load(Ordering::Relaxed))
    }

    #[inline(never)]
    fn take_any(
        &mut self,
        memory: &mut Resolver,
        chain: &mut Chain,
    ) -> Result<Option<ChainId>, QueueError> {
        chain.clear();
        self.take_and(|queue, head| {
            queue.walk(head, memory, chain)?;
            chain.check_bytes()
        })
    }

    /// Takes the next chain for its head alone: what its descriptors say is not looked at.
    #[cold]
    pub(super) fn take_unread(&mut self) -> Result<Option<ChainId>, QueueError> {
        self.take_and(|_, _| Ok(0))
    }

    /// Takes the next chain. `read` is given its head, and says how many bytes may be written.
    #[inline]
    fn take_and(
        &mut self,
        read: impl FnOnce(&mut Self, u16) -> Result<u32, QueueError>,
    ) -> Result<Option<ChainId>, QueueError> {
        if let Some(log) = &self.log
            && let Some(&head) = log.again.waiting()
        {
            return self.take_again(head, read);
        }
        if self.next_available == self.seen_available && !self.look_again()? {
            return Ok(None);
        }
        if let Some(log) = &self.log {
            // The log has an entry for each descriptor, and the driver may not use one again before
            // it has seen it used.
            let (size, to) = (self.mask + 1, self.seen_available);
            if usize::from(self.held.logged()) + log.unpublished() >= usize::from(size) {
                return Err(QueueError::AvailableIndexJumped { from: self.published, to, size });
            }
        }
        let head = self.next_head();
        self.held.check_free(head)?;
        let writable = read(self, head)?;
        self.held.insert(head, writable, 1);
        self.next_available = self.next_available.wrapping_add(1);
        if let Some(log) = &mut self.log {
            log.take(head);
        }
        Ok(Some(ChainId::new(head)))
    }

    /// Reads the driver's index; returns whether there is something new.
    #[inline]
    fn look_again(&mut self) -> Result<bool, QueueError> {
        // Acquire: pairs with the driver's barrier before it stores the index (VIRTIO 1.4,
        // 2.7.13.3.1), so what it wrote to the ring and to the descriptors before is visible.
        let to = self.available_index(Barrier::SeeAvailable.acquire());
        let from = self.next_available;
        if to.wrapping_sub(from) > self.mask + 1 {
            return Err(QueueError::AvailableIndexJumped { from, to, size: self.mask + 1 });
        }
        self.seen_available = to;
        Ok(to != from)
    }

    /// Follows the chain from `head`, each descriptor read once.
    #[inline]
    fn walk(
        &mut self,
        head: u16,
        memory: &mut Resolver,
        chain: &mut Chain,
    ) -> Result<(), QueueError> {
        let descriptors = &*self.tables.descriptors;
        let size = descriptors.len();
        let mut index = head;
        // Bounded by the queue size: a longer chain is a loop (VIRTIO 1.4, 2.7.5.2).
        for _ in 0..size {
            let Some(descriptor) = descriptors.get(usize::from(index)) else {
                let size = size as u32;
                return Err(QueueError::IndexOutOfRange { index: index.into(), size });
            };
            let flags = descriptor.flags(Ordering::Relaxed);
            let addr = DriverAddress(descriptor.addr(Ordering::Relaxed));
            let segment = Segment { addr, len: descriptor.len(Ordering::Relaxed) };
            if flags & (flag::NEXT | flag::INDIRECT) == 0 {
                return chain.push(segment, flags & flag::WRITE != 0);
            }
            if flags & flag::INDIRECT != 0 {
                // WRITE is ignored here; direct descriptors may come before (VIRTIO 1.4,
                // 2.7.5.3.2).
                return match (self.indirect, flags & flag::NEXT) {
                    (false, _) => Err(QueueError::IndirectNotNegotiated),
                    (true, 0) => {
                        self.reader.get_or_insert_default().read_split(memory, segment, chain, size)
                    }
                    _ => Err(QueueError::IndirectInChain),
                };
            }
            chain.push(segment, flags & flag::WRITE != 0)?;
            index = descriptor.next(Ordering::Relaxed);
        }
        Err(QueueError::ChainTooLong { limit: size })
    }

    #[inline]
    pub(super) fn untake(&mut self, id: ChainId) {
        let head = id.finish();
        self.held.undo(head);
        if let Some(log) = &mut self.log
            && log.untake(head)
        {
            return;
        }
        self.next_available = self.next_available.wrapping_sub(1);
    }

    #[inline]
    pub(super) fn give_back(&mut self, id: ChainId, written: u32) {
        let id = id.finish();
        if self.simple {
            let (written, _) = self.held.remove(id, written);
            self.write_used(id, written, 1);
        } else {
            self.give_back_in_order(id, written);
        }
    }

    /// Writes the next used element, which stands for so many chains.
    #[inline]
    fn write_used(&mut self, id: u16, written: u32, chains: u16) {
        let element = &self.tables.used[usize::from(self.next_used & self.mask)];
        element.set_id(id.into(), Ordering::Relaxed);
        element.set_len(written, Ordering::Relaxed);
        self.next_used = self.next_used.wrapping_add(chains);
    }

    /// With IN_ORDER or a log.
    #[inline(never)]
    fn give_back_in_order(&mut self, id: u16, written: u32) {
        self.held.finish(id, written);
        self.write_due();
    }

    /// Writes the used elements that are due with IN_ORDER or a log.
    fn write_due(&mut self) {
        while let Some(due) = self.held.next_due() {
            self.write_used(due.id, due.written, due.chains);
            if let Some(log) = &mut self.log {
                log.give_back(due.id);
            }
        }
    }

    #[inline]
    pub(super) fn publish_used(&mut self) {
        let new = self.next_used.wrapping_sub(self.published);
        if new == 0 {
            return;
        }
        crash_point();
        // Release: the elements, and the data written to the buffers, before the index (VIRTIO 1.4,
        // 2.7.8.2); pairs with the driver's barrier after it loads the index.
        self.tables.used_header[INDEX]
            .store(self.next_used.to_le(), Barrier::PublishUsed.release());
        self.published = self.next_used;
        if let Some(log) = &mut self.log {
            log.published(self.next_used);
        }
        self.unsignalled = self.unsignalled.saturating_add(new.into());
    }

    #[inline]
    pub(super) fn wants_interrupt(&mut self) -> bool {
        let published = std::mem::take(&mut self.unsignalled);
        if published == 0 {
            return false;
        }
        // StoreLoad: the used index before the driver's wish. Pairs with the fence in its
        // `arm_interrupt`: either we see its new wish here, or it sees our new index there.
        Barrier::CheckInterrupt.store_load();
        if self.tables.available_event.is_some() {
            let event = u16::from_le(self.tables.used_event().load(Ordering::Relaxed));
            split_crossed(event, self.published, published)
        } else {
            let flags = u16::from_le(self.tables.available[FLAGS].load(Ordering::Relaxed));
            flags & SPLIT_NO_EVENT == 0
        }
    }

    #[inline]
    pub(super) fn arm_kick(&mut self) -> bool {
        match &self.tables.available_event {
            Some(event) => event[0].store(self.next_available.to_le(), Ordering::Relaxed),
            None => self.tables.used_header[FLAGS].store(0, Ordering::Relaxed),
        }
        // StoreLoad: our wish before the driver's index. Pairs with the fence in its `wants_kick`.
        Barrier::AskForKicks.store_load();
        self.has_available()
    }

    #[inline]
    pub(super) fn disarm_kick(&mut self) {
        // With VIRTIO_F_EVENT_IDX the flags must stay 0; the old event index lies behind and is not
        // passed again soon.
        if self.tables.available_event.is_none() {
            self.tables.used_header[FLAGS].store(SPLIT_NO_EVENT.to_le(), Ordering::Relaxed);
        }
    }

    #[inline]
    pub(super) fn has_available(&self) -> bool {
        self.available_index(Ordering::Acquire) != self.next_available || self.to_take_again() > 0
    }

    #[inline]
    fn available_index(&self, order: Ordering) -> u16 {
        u16::from_le(self.tables.available[INDEX].load(order))
    }

    pub(super) fn position(&self) -> QueuePosition {
        QueuePosition::split(self.next_available)
    }

    pub(super) fn in_flight(&self) -> u16 {
        self.held.count()
    }
}
