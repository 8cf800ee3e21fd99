use mem::ring::PackedDescriptor;
use mem::sync::Ordering;
use mem::{MemoryMap, Table};

use super::IndirectArea;
use super::ledger::{Ledger, NO_TABLE, Offer};
use crate::barrier::Barrier;
use crate::burst::runs;
use crate::device::{PackedTables, available_bits, flag, has_bits, used_bits};
use crate::event::packed_crossed;
use crate::event::packed_word::{self, Wish};
use crate::{Burst, ChainId, PackedPoint, QueueError, QueuePosition, QueueSpec};

/// The driver's side of a packed virtqueue.
#[derive(Debug)]
pub(super) struct PackedDriver<T> {
    tables: PackedTables,
    size: u16,
    /// Where the next chain goes.
    available: PackedPoint,
    /// Where the next used descriptor will appear.
    used: PackedPoint,
    /// Descriptors offered since the last publication.
    offered: u16,
    /// If there are any, the first of them: its index and the flags it will get.
    unpublished: (u16, u16),
    /// Descriptors published since we last asked whether to kick.
    unsignalled: u32,
    event_idx: bool,
    ledger: Ledger<T>,
    indirect: Option<Table<PackedDescriptor>>,
}

impl<T> PackedDriver<T> {
    pub(super) fn new(
        memory: &MemoryMap,
        spec: &QueueSpec,
        area: Option<IndirectArea>,
    ) -> Result<Self, QueueError> {
        let tables = PackedTables::resolve(memory, spec)?;
        let entries = |area: IndirectArea| area.bytes() / 16;
        let indirect = match area.filter(|area| spec.indirect && entries(*area) > 0) {
            Some(area) => Some(memory.table(area.at, entries(area))?),
            None => None,
        };
        Self::from_tables(tables, indirect, spec, area)
    }

    pub(super) fn from_tables(
        tables: PackedTables,
        indirect: Option<Table<PackedDescriptor>>,
        spec: &QueueSpec,
        area: Option<IndirectArea>,
    ) -> Result<Self, QueueError> {
        // Our own ring holds nothing yet, so it begins where descriptors become available, whatever
        // was in flight before.
        let (start, _) = match spec.start_at {
            QueuePosition(0) => (PackedPoint::START, PackedPoint::START),
            _ => spec.packed_start()?,
        };
        let queue = Self {
            tables,
            size: spec.size,
            available: start,
            used: start,
            unpublished: (0, 0),
            offered: 0,
            unsignalled: 0,
            event_idx: spec.event_idx,
            ledger: Ledger::new(spec, area),
            indirect,
        };
        queue.initialise(start);
        Ok(queue)
    }

    /// Puts the ring into the state of a queue on which everything up to `start` was used. No
    /// device is looking yet.
    fn initialise(&self, start: PackedPoint) {
        for (index, descriptor) in self.tables.ring.iter().enumerate() {
            let this_lap = index < usize::from(start.index);
            descriptor.set_flags(used_bits(start.wrap == this_lap), Ordering::Relaxed);
        }
        // Both sides want to be notified.
        self.tables.driver_event[0].store(packed_word::ENABLE.to_le(), Ordering::Relaxed);
        self.tables.device_event[0].store(packed_word::ENABLE.to_le(), Ordering::Release);
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
        let id = self.ledger.first_free();
        let record = self.ledger.record_mut(id);
        (record.addr, record.len) = (segment.addr, segment.len);
        let next_free = record.next;
        let descriptor = &self.tables.ring[usize::from(self.available.index)];
        descriptor.set_addr(segment.addr.0, Ordering::Relaxed);
        descriptor.set_len(segment.len, Ordering::Relaxed);
        descriptor.set_id(id, Ordering::Relaxed);
        self.set_flags_or_wait(if writable { flag::WRITE } else { 0 });
        self.ledger.insert(offer, NO_TABLE, next_free);
    }

    #[inline(never)]
    fn offer_chain(&mut self, offer: Offer<'_, T>) {
        let id = self.ledger.first_free();
        let mut record_index = id;
        let mut left = offer.segments();
        // Copies, which stay in registers.
        let (ring, size) = (&*self.tables.ring, self.size);
        let (mut at, mut offered) = (self.available, self.offered);
        for (segment, writable) in offer.iter() {
            left -= 1;
            let record = self.ledger.record_mut(record_index);
            (record.addr, record.len) = (segment.addr, segment.len);
            record_index = record.next;
            let write = if writable { flag::WRITE } else { 0 };
            let next = if left > 0 { flag::NEXT } else { 0 };
            let descriptor = &ring[usize::from(at.index)];
            descriptor.set_addr(segment.addr.0, Ordering::Relaxed);
            descriptor.set_len(segment.len, Ordering::Relaxed);
            descriptor.set_id(id, Ordering::Relaxed);
            // As in `set_flags_or_wait`.
            let flags = write | next | available_bits(at.wrap);
            if offered == 0 {
                self.unpublished = (at.index, flags);
            } else {
                descriptor.set_flags(flags, Ordering::Relaxed);
            }
            at = at.advanced(1, size);
            offered += 1;
        }
        (self.available, self.offered) = (at, offered);
        self.ledger.insert(offer, NO_TABLE, record_index);
    }

    /// Offers a chain through an indirect table, one of which is free (VIRTIO 1.4, 2.8.7).
    pub(super) fn offer_indirect(&mut self, offer: Offer<'_, T>) {
        let table = self.ledger.fill_table(&offer);
        let segments = offer.segments();
        let first = self.ledger.table_first(table);
        let entries =
            &self.indirect.as_deref().expect("a pool has its memory")[first..][..segments];
        for (entry, (segment, writable)) in entries.iter().zip(offer.iter()) {
            entry.set_addr(segment.addr.0, Ordering::Relaxed);
            entry.set_len(segment.len, Ordering::Relaxed);
            entry.set_id(0, Ordering::Relaxed);
            entry.set_flags(if writable { flag::WRITE } else { 0 }, Ordering::Relaxed);
        }
        let id = self.ledger.first_free();
        let descriptor = &self.tables.ring[usize::from(self.available.index)];
        descriptor.set_addr(self.ledger.table_addr(table).0, Ordering::Relaxed);
        descriptor.set_len(16 * segments as u32, Ordering::Relaxed);
        descriptor.set_id(id, Ordering::Relaxed);
        self.set_flags_or_wait(flag::INDIRECT);
        let next_free = self.ledger.record_mut(id).next;
        self.ledger.insert(offer, table, next_free);
    }

    /// Finishes the descriptor at the available position. The device looks at descriptors in ring
    /// order, so holding back the flags of the first until publication holds back all.
    #[inline]
    fn set_flags_or_wait(&mut self, flags: u16) {
        let PackedPoint { index, wrap } = self.available;
        let flags = flags | available_bits(wrap);
        if self.offered == 0 {
            self.unpublished = (index, flags);
        } else {
            self.tables.ring[usize::from(index)].set_flags(flags, Ordering::Relaxed);
        }
        self.available = self.available.advanced(1, self.size);
        self.offered += 1;
    }

    /// See [`crate::DriverQueue::offer_burst`].
    #[inline]
    pub(super) fn offer_burst(&mut self, burst: &mut Burst, mut context: impl FnMut(ChainId) -> T) {
        let mut left = burst.len();
        let mut chains = burst.take_all().map(|(id, segment, write)| (segment, write, context(id)));
        if self.offered == 0 && left > 0 {
            // The first of a publication is held back, so it goes by itself.
            let PackedPoint { index, wrap } = self.available;
            let first = std::iter::once(&self.tables.ring[usize::from(index)]).zip(&mut chains);
            let unpublished = &mut self.unpublished;
            self.ledger.insert_singles(first, |descriptor, id, segment, writable| {
                descriptor.set_addr(segment.addr.0, Ordering::Relaxed);
                descriptor.set_len(segment.len, Ordering::Relaxed);
                descriptor.set_id(id, Ordering::Relaxed);
                let write = if writable { flag::WRITE } else { 0 };
                *unpublished = (index, write | available_bits(wrap));
            });
            self.available = self.available.advanced(1, self.size);
            self.offered = 1;
            left -= 1;
        }
        for places in runs(self.available.index, left, self.size) {
            let count = places.len() as u16;
            let bits = available_bits(self.available.wrap);
            let chains = self.tables.ring[places].iter().zip(chains.by_ref());
            self.ledger.insert_singles(chains, |descriptor, id, segment, writable| {
                descriptor.set_addr(segment.addr.0, Ordering::Relaxed);
                descriptor.set_len(segment.len, Ordering::Relaxed);
                descriptor.set_id(id, Ordering::Relaxed);
                let flags = if writable { flag::WRITE } else { 0 } | bits;
                descriptor.set_flags(flags, Ordering::Relaxed);
            });
            self.available = self.available.advanced(count, self.size);
            self.offered += count;
        }
    }

    #[inline]
    pub(super) fn publish_available(&mut self) {
        if self.offered > 0 {
            let (index, flags) = self.unpublished;
            // Release: all other descriptors, and the data, before these flags (VIRTIO 1.4,
            // 2.8.21.2); pairs with the device's barrier after it finds the descriptor available.
            self.tables.ring[usize::from(index)]
                .set_flags(flags, Barrier::PublishAvailable.release());
            let offered = std::mem::take(&mut self.offered);
            self.unsignalled = self.unsignalled.saturating_add(offered.into());
        }
    }

    #[inline]
    pub(super) fn wants_kick(&mut self) -> bool {
        let published = std::mem::take(&mut self.unsignalled);
        if published == 0 {
            return false;
        }
        // StoreLoad: the descriptors before the device's wish; pairs with the fence in its
        // `arm_kick`.
        Barrier::CheckKick.store_load();
        let word = u32::from_le(self.tables.device_event[0].load(Ordering::Relaxed));
        match packed_word::parse(word, self.event_idx) {
            Wish::Always => true,
            Wish::Never => false,
            Wish::At(event) => packed_crossed(event, self.available, published, self.size),
        }
    }

    #[inline]
    pub(super) fn take_used(&mut self) -> Result<Option<(T, u32)>, QueueError> {
        if self.ledger.in_batch() {
            return Ok(self.next_in_order());
        }
        let descriptor = &self.tables.ring[usize::from(self.used.index)];
        // Acquire: pairs with the device's barrier before it writes the flags.
        let flags = descriptor.flags(Barrier::SeeUsed.acquire());
        if !has_bits(flags, used_bits(self.used.wrap)) {
            return Ok(None);
        }
        let id = descriptor.id(Ordering::Relaxed);
        let len = descriptor.len(Ordering::Relaxed);
        // Without WRITE the length is reserved (VIRTIO 1.4, 2.8.5), but there are devices that
        // never set it.
        let sure = flags & flag::WRITE != 0;
        if self.ledger.is_in_order() {
            let len = if sure || self.ledger.check(id.into(), len).is_ok() { len } else { 0 };
            let (last, len) = self.ledger.check(id.into(), len)?;
            self.ledger.begin_batch(last, len);
            return Ok(self.next_in_order());
        }
        let (context, written, slots) = self.ledger.complete(id.into(), len, sure)?;
        self.used = self.used.advanced(slots, self.size);
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
        while taken < most {
            let PackedPoint { index, wrap } = self.used;
            let [run, _] = runs(index, (most - taken).min(self.size.into()), self.size);
            let (length, bits) = (run.len(), used_bits(wrap));
            let used = self.tables.ring[run].iter().map_while(|descriptor| {
                // Acquire: as in `take_used`.
                let flags = descriptor.flags(Barrier::SeeUsed.acquire());
                let (id, len) =
                    (descriptor.id(Ordering::Relaxed), descriptor.len(Ordering::Relaxed));
                has_bits(flags, bits).then_some((id.into(), len, flags & flag::WRITE != 0))
            });
            let done = self.ledger.complete_singles(used, &mut each);
            self.used = self.used.advanced(done as u16, self.size);
            taken += done;
            if done < length {
                break;
            }
        }
        // There are no more, or chains of another kind, which seldom come alone: one by one.
        // Copies, which stay in registers.
        let ring = &*self.tables.ring;
        let (mut at, size) = (self.used, self.size);
        while taken < most {
            let descriptor = &ring[usize::from(at.index)];
            // Acquire: as in `take_used`.
            let flags = descriptor.flags(Barrier::SeeUsed.acquire());
            if !has_bits(flags, used_bits(at.wrap)) {
                break;
            }
            let (id, len) = (descriptor.id(Ordering::Relaxed), descriptor.len(Ordering::Relaxed));
            match self.ledger.complete(id.into(), len, flags & flag::WRITE != 0) {
                Ok((context, written, slots)) => {
                    each(context, written);
                    at = at.advanced(slots, size);
                }
                Err(error) => {
                    self.used = at;
                    return Err(error);
                }
            }
            taken += 1;
        }
        self.used = at;
        Ok(taken)
    }

    /// The next chain of the batch, if there is one.
    fn next_in_order(&mut self) -> Option<(T, u32)> {
        let (id, written) = self.ledger.next_of_batch()?;
        let (context, slots) = self.ledger.remove(id);
        self.used = self.used.advanced(slots, self.size);
        Some((context, written))
    }

    #[inline]
    pub(super) fn arm_interrupt(&mut self) -> bool {
        let word = match self.event_idx {
            true => packed_word::at(self.used),
            false => packed_word::ENABLE,
        };
        self.tables.driver_event[0].store(word.to_le(), Ordering::Relaxed);
        // StoreLoad: our wish before the descriptor's flags; pairs with the fence in the device's
        // `wants_interrupt`.
        Barrier::AskForInterrupts.store_load();
        self.has_used()
    }

    #[inline]
    pub(super) fn disarm_interrupt(&mut self) {
        self.tables.driver_event[0].store(packed_word::DISABLE.to_le(), Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn has_used(&self) -> bool {
        if self.ledger.in_batch() {
            return true;
        }
        let flags = self.tables.ring[usize::from(self.used.index)].flags(Ordering::Acquire);
        has_bits(flags, used_bits(self.used.wrap))
    }

    pub(super) fn position(&self) -> QueuePosition {
        QueuePosition::packed(self.available, self.used)
    }
}
