use mem::MemoryMap;
use mem::Table;
use mem::ring::Descriptor;
use mem::sync::Ordering;

use super::IndirectArea;
use super::ledger::{Ledger, NO_TABLE, Offer};
use crate::barrier::Barrier;
use crate::burst::runs;
use crate::device::{SplitTables, flag, split_header};
use crate::event::{SPLIT_NO_EVENT, split_crossed};
use crate::{Burst, ChainId, QueueError, QueuePosition, QueueSpec};

/// The driver's side of a split virtqueue.
#[derive(Debug)]
pub(super) struct SplitDriver<T> {
    tables: SplitTables,
    mask: u16,
    /// The next available index to write.
    next_available: u16,
    /// The available index the device can see.
    published: u16,
    /// Entries published since we last asked whether to kick.
    unsignalled: u32,
    /// The next used index to take.
    next_used: u16,
    /// The device's index when we last looked.
    seen_used: u16,
    ledger: Ledger<T>,
    indirect: Option<Table<Descriptor>>,
}

impl<T> SplitDriver<T> {
    pub(super) fn new(
        memory: &MemoryMap,
        spec: &QueueSpec,
        area: Option<IndirectArea>,
    ) -> Result<Self, QueueError> {
        let tables = SplitTables::resolve(memory, spec)?;
        let entries = |area: IndirectArea| area.bytes() / 16;
        let indirect = match area.filter(|area| spec.indirect && entries(*area) > 0) {
            Some(area) => Some(memory.table(area.at, entries(area))?),
            None => None,
        };
        Ok(Self::from_tables(tables, indirect, spec, area))
    }

    pub(super) fn from_tables(
        tables: SplitTables,
        indirect: Option<Table<Descriptor>>,
        spec: &QueueSpec,
        area: Option<IndirectArea>,
    ) -> Self {
        let start = spec.start_at.index();
        let queue = Self {
            tables,
            mask: spec.size - 1,
            next_available: start,
            published: start,
            unsignalled: 0,
            next_used: start,
            seen_used: start,
            ledger: Ledger::new(spec, area),
            indirect,
        };
        queue.initialise(start);
        queue
    }

    /// Puts the rings into the state of a queue on which all went well up to `start`. No device is
    /// looking yet.
    fn initialise(&self, start: u16) {
        let SplitTables { available, used_header, available_event, .. } = &self.tables;
        for header in [available, used_header] {
            header[split_header::FLAGS].store(0, Ordering::Relaxed);
            header[split_header::INDEX].store(start.to_le(), Ordering::Release);
        }
        if let Some(event) = available_event {
            // Armed on both sides: the first entry of each is wanted.
            event[0].store(start.to_le(), Ordering::Relaxed);
            self.tables.used_event().store(start.to_le(), Ordering::Relaxed);
        }
    }

    #[inline]
    pub(super) fn ledger(&self) -> &Ledger<T> {
        &self.ledger
    }

    pub(super) fn ledger_mut(&mut self) -> &mut Ledger<T> {
        &mut self.ledger
    }

    /// Offers a chain for which there are enough descriptors.
    #[inline]
    pub(super) fn offer_direct(&mut self, offer: Offer<'_, T>) {
        let Some((segment, writable)) = offer.single() else {
            return self.offer_chain(offer);
        };
        let head = self.ledger.first_free();
        let record = self.ledger.record_mut(head);
        (record.addr, record.len) = (segment.addr, segment.len);
        let next_free = record.next;
        let descriptor = &self.tables.descriptors[usize::from(head)];
        descriptor.set_addr(segment.addr.0, Ordering::Relaxed);
        descriptor.set_len(segment.len, Ordering::Relaxed);
        descriptor.set_flags(if writable { flag::WRITE } else { 0 }, Ordering::Relaxed);
        self.ledger.insert(offer, NO_TABLE, next_free);
        self.enqueue(head);
    }

    #[inline(never)]
    fn offer_chain(&mut self, offer: Offer<'_, T>) {
        let descriptors = &*self.tables.descriptors;
        let mut index = self.ledger.first_free();
        let mut left = offer.segments();
        for (segment, writable) in offer.iter() {
            left -= 1;
            let record = self.ledger.record_mut(index);
            (record.addr, record.len) = (segment.addr, segment.len);
            let write = if writable { flag::WRITE } else { 0 };
            let next = if left > 0 { flag::NEXT } else { 0 };
            let descriptor = &descriptors[usize::from(index)];
            descriptor.set_addr(segment.addr.0, Ordering::Relaxed);
            descriptor.set_len(segment.len, Ordering::Relaxed);
            descriptor.set_flags(write | next, Ordering::Relaxed);
            descriptor.set_next(record.next, Ordering::Relaxed);
            index = record.next;
        }
        let head = self.ledger.insert(offer, NO_TABLE, index);
        self.enqueue(head);
    }

    /// Offers a chain through an indirect table, one of which is free (VIRTIO 1.4, 2.7.5.3).
    pub(super) fn offer_indirect(&mut self, offer: Offer<'_, T>) {
        let table = self.ledger.fill_table(&offer);
        let segments = offer.segments();
        let first = self.ledger.table_first(table);
        let entries =
            &self.indirect.as_deref().expect("a pool has its memory")[first..][..segments];
        for (at, (entry, (segment, writable))) in entries.iter().zip(offer.iter()).enumerate() {
            let write = if writable { flag::WRITE } else { 0 };
            let next = if at + 1 < segments { flag::NEXT } else { 0 };
            entry.set_addr(segment.addr.0, Ordering::Relaxed);
            entry.set_len(segment.len, Ordering::Relaxed);
            entry.set_flags(write | next, Ordering::Relaxed);
            entry.set_next((at + 1) as u16, Ordering::Relaxed);
        }
        let head = self.ledger.first_free();
        let descriptor = &self.tables.descriptors[usize::from(head)];
        descriptor.set_addr(self.ledger.table_addr(table).0, Ordering::Relaxed);
        descriptor.set_len(16 * segments as u32, Ordering::Relaxed);
        descriptor.set_flags(flag::INDIRECT, Ordering::Relaxed);
        descriptor.set_next(0, Ordering::Relaxed);
        let next_free = self.ledger.record_mut(head).next;
        self.ledger.insert(offer, table, next_free);
        self.enqueue(head);
    }

    /// See [`crate::DriverQueue::offer_burst`].
    #[inline]
    pub(super) fn offer_burst(&mut self, burst: &mut Burst, mut context: impl FnMut(ChainId) -> T) {
        let (descriptors, available) = (&*self.tables.descriptors, &*self.tables.available);
        let (first, count) = (self.next_available & self.mask, burst.len());
        let mut chains = burst.take_all().map(|(id, segment, write)| (segment, write, context(id)));
        for places in runs(first, count, self.mask + 1) {
            let entries = available[split_header::ENTRIES..][places].iter();
            let chains = entries.zip(chains.by_ref());
            self.ledger.insert_singles(chains, |entry, head, segment, writable| {
                let descriptor = &descriptors[usize::from(head)];
                descriptor.set_addr(segment.addr.0, Ordering::Relaxed);
                descriptor.set_len(segment.len, Ordering::Relaxed);
                descriptor.set_flags(if writable { flag::WRITE } else { 0 }, Ordering::Relaxed);
                entry.store(head.to_le(), Ordering::Relaxed);
            });
        }
        self.next_available = self.next_available.wrapping_add(count as u16);
    }

    #[inline]
    fn enqueue(&mut self, head: u16) {
        let slot = split_header::ENTRIES + usize::from(self.next_available & self.mask);
        self.tables.available[slot].store(head.to_le(), Ordering::Relaxed);
        self.next_available = self.next_available.wrapping_add(1);
    }

    #[inline]
    pub(super) fn publish_available(&mut self) {
        let new = self.next_available.wrapping_sub(self.published);
        if new == 0 {
            return;
        }
        // Release: descriptors, ring entries and data before the index (VIRTIO 1.4, 2.7.13.3.1);
        // pairs with the device's barrier after it loads the index.
        let index = &self.tables.available[split_header::INDEX];
        index.store(self.next_available.to_le(), Barrier::PublishAvailable.release());
        self.published = self.next_available;
        self.unsignalled = self.unsignalled.saturating_add(new.into());
    }

    #[inline]
    pub(super) fn wants_kick(&mut self) -> bool {
        let published = std::mem::take(&mut self.unsignalled);
        if published == 0 {
            return false;
        }
        // StoreLoad: the available index before the device's wish; pairs with the fence in its
        // `arm_kick`.
        Barrier::CheckKick.store_load();
        match &self.tables.available_event {
            Some(event) => {
                let event = u16::from_le(event[0].load(Ordering::Relaxed));
                split_crossed(event, self.published, published)
            }
            None => {
                let flags = &self.tables.used_header[split_header::FLAGS];
                u16::from_le(flags.load(Ordering::Relaxed)) & SPLIT_NO_EVENT == 0
            }
        }
    }

    #[inline]
    pub(super) fn take_used(&mut self) -> Result<Option<(T, u32)>, QueueError> {
        if self.next_used == self.seen_used && !self.look_again()? {
            return Ok(None);
        }
        let (context, written) = if self.ledger.is_in_order() {
            let (head, written) = self.next_in_order()?;
            (self.ledger.remove(head).0, written)
        } else {
            let (id, written) = self.used_element();
            let (context, written, _) = self.ledger.complete(id, written, true)?;
            (context, written)
        };
        self.next_used = self.next_used.wrapping_add(1);
        Ok(Some((context, written)))
    }

    /// See [`crate::DriverQueue::take_used_burst`].
    #[inline]
    pub(super) fn take_used_burst(
        &mut self,
        most: usize,
        mut each: impl FnMut(T, u32),
    ) -> Result<usize, QueueError> {
        let mut taken = 0;
        if self.ledger.is_in_order() {
            while taken < most
                && let Some((context, written)) = self.take_used()?
            {
                each(context, written);
                taken += 1;
            }
            return Ok(taken);
        }
        if usize::from(self.seen_used.wrapping_sub(self.next_used)) < most {
            self.look_again()?;
        }
        let ready = usize::from(self.seen_used.wrapping_sub(self.next_used)).min(most);
        while taken < ready {
            let first = self.next_used & self.mask;
            let [run, _] = runs(first, ready - taken, self.mask + 1);
            let run_len = run.len();
            let elements = self.tables.used[run].iter();
            let elements =
                elements.map(|e| (e.id(Ordering::Relaxed), e.len(Ordering::Relaxed), true));
            let done = self.ledger.complete_singles(elements, &mut each);
            self.next_used = self.next_used.wrapping_add(done as u16);
            taken += done;
            if done < run_len {
                // Chains of another kind seldom come alone: the rest goes one by one.
                break;
            }
        }
        while taken < ready {
            let (id, written) = self.used_element();
            let (context, written, _) = self.ledger.complete(id, written, true)?;
            self.next_used = self.next_used.wrapping_add(1);
            each(context, written);
            taken += 1;
        }
        Ok(taken)
    }

    /// Reads the device's index; returns whether there is something new.
    #[inline]
    fn look_again(&mut self) -> Result<bool, QueueError> {
        // Acquire: pairs with the device's barrier before it stores the index, so the elements and
        // the data are visible.
        let to = self.used_index(Barrier::SeeUsed.acquire());
        let (from, in_flight) = (self.next_used, self.ledger.in_flight());
        if to.wrapping_sub(from) > in_flight {
            return Err(QueueError::UsedIndexJumped { from, to, in_flight });
        }
        self.seen_used = to;
        Ok(to != from)
    }

    #[inline]
    fn used_element(&self) -> (u32, u32) {
        let element = &self.tables.used[usize::from(self.next_used & self.mask)];
        (element.id(Ordering::Relaxed), element.len(Ordering::Relaxed))
    }

    /// The next chain in order of offering; one element may stand for several (VIRTIO 1.4, 2.7.9).
    #[inline]
    fn next_in_order(&mut self) -> Result<(u16, u32), QueueError> {
        if !self.ledger.in_batch() {
            let (id, written) = self.used_element();
            let (last, written) = self.ledger.check(id, written)?;
            let chains = self.ledger.begin_batch(last, written);
            if chains > u64::from(self.seen_used.wrapping_sub(self.next_used)) {
                return Err(QueueError::UsedOutOfOrder(last));
            }
        }
        Ok(self.ledger.next_of_batch().expect("a batch was begun"))
    }

    #[inline]
    pub(super) fn arm_interrupt(&mut self) -> bool {
        if self.tables.available_event.is_some() {
            self.tables.used_event().store(self.next_used.to_le(), Ordering::Relaxed);
        } else {
            self.tables.available[split_header::FLAGS].store(0, Ordering::Relaxed);
        }
        // StoreLoad: our wish before the device's index; pairs with the fence in its
        // `wants_interrupt`.
        Barrier::AskForInterrupts.store_load();
        self.has_used()
    }

    #[inline]
    pub(super) fn disarm_interrupt(&mut self) {
        // With VIRTIO_F_EVENT_IDX the flags must stay 0; the old event index lies behind and is not
        // passed again soon.
        if self.tables.available_event.is_none() {
            let flags = &self.tables.available[split_header::FLAGS];
            flags.store(SPLIT_NO_EVENT.to_le(), Ordering::Relaxed);
        }
    }

    #[inline]
    pub(super) fn has_used(&self) -> bool {
        self.used_index(Ordering::Acquire) != self.next_used
    }

    #[inline]
    fn used_index(&self, order: Ordering) -> u16 {
        u16::from_le(self.tables.used_header[split_header::INDEX].load(order))
    }

    pub(super) fn position(&self) -> QueuePosition {
        QueuePosition::split(self.next_available)
    }
}
