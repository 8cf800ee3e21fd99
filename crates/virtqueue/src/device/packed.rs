mod burst;
mod cursor;

use mem::ring::PackedDescriptor;
use mem::sync::{AtomicU32, Ordering};
use mem::{DriverAddress, MemoryMap, Resolver, Table};

use super::flag;
use super::held::Held;
use super::indirect::IndirectReader;
use crate::barrier::Barrier;
use crate::event::packed_crossed;
use crate::event::packed_word::{self, Wish};
use crate::inflight::{LogMemory, LoggedDescriptor, PackedLog, crash_point};
use crate::{Chain, ChainId, PackedPoint, QueueError, QueuePosition, QueueSpec, Segment};
use cursor::Cursor;

/// The shared memory of a packed virtqueue, the same for both sides (VIRTIO 1.4, 2.8).
#[derive(Debug)]
pub(crate) struct PackedTables {
    pub ring: Table<PackedDescriptor>,
    /// The driver's event suppression word: when it wants interrupts.
    pub driver_event: Table<AtomicU32>,
    /// The device's event suppression word: when it wants notifications.
    pub device_event: Table<AtomicU32>,
}

impl PackedTables {
    pub(crate) fn resolve(memory: &MemoryMap, spec: &QueueSpec) -> Result<Self, QueueError> {
        Ok(Self {
            ring: memory.table(spec.addresses.descriptor, usize::from(spec.size))?,
            driver_event: memory.table(spec.addresses.driver, 1)?,
            device_event: memory.table(spec.addresses.device, 1)?,
        })
    }
}

/// The AVAIL and USED bits of a descriptor that is available on a lap with this wrap counter
/// (VIRTIO 1.4, 2.8.1).
#[inline]
pub(crate) const fn available_bits(wrap: bool) -> u16 {
    if wrap { flag::AVAIL } else { flag::USED }
}

/// The AVAIL and USED bits of a used descriptor.
#[inline]
pub(crate) const fn used_bits(wrap: bool) -> u16 {
    if wrap { flag::AVAIL | flag::USED } else { 0 }
}

/// Whether flags belong to a descriptor in the state that `bits` stands for.
#[inline]
pub(crate) const fn has_bits(flags: u16, bits: u16) -> bool {
    flags & (flag::AVAIL | flag::USED) == bits
}

/// The device's side of a packed virtqueue.
#[derive(Debug)]
pub(super) struct PackedDevice {
    tables: PackedTables,
    size: u16,
    /// Where the next chain begins.
    available: Cursor,
    /// Where the next used descriptor goes.
    used: Cursor,
    /// Descriptors taken, given back and published so far, modulo 2^32: counters apart, so that
    /// taking and giving back one by one do not wait for each other's result.
    taken: u32,
    given: u32,
    published: u32,
    /// If any are not published, the first of them: its index and the flags it will get.
    unpublished: (u16, u16),
    /// Descriptors published since we last asked whether to interrupt.
    unsignalled: u32,
    event_idx: bool,
    indirect: bool,
    held: Held,
    /// Made when the first indirect chain comes.
    reader: Option<Box<IndirectReader>>,
    log: Option<Box<PackedLog>>,
    /// Neither IN_ORDER nor a log: chains are taken and given back without further ado.
    simple: bool,
}

/// What the walk along a chain found.
struct Walked {
    id: u16,
    slots: u16,
    /// The chain's indirect table.
    table: Option<Segment>,
}

impl PackedDevice {
    pub(super) fn new(memory: &MemoryMap, spec: &QueueSpec) -> Result<Self, QueueError> {
        Self::from_tables(PackedTables::resolve(memory, spec)?, spec)
    }

    pub(super) fn from_tables(tables: PackedTables, spec: &QueueSpec) -> Result<Self, QueueError> {
        let (mut available, mut used) = spec.packed_start()?;
        // Position 0 is what some drivers say of a fresh ring, and also where a ring stands after
        // an odd number of laps. After a lap some descriptor has been used with wrap counter 1, so
        // its USED bit is set, though perhaps not that of the first one: it may have been in the
        // middle of a chain or of an IN_ORDER batch. In a fresh ring no USED bit is set, whether or
        // not chains were made available there.
        if spec.start_at == QueuePosition(0)
            && tables.ring.iter().all(|d| d.flags(Ordering::Acquire) & flag::USED == 0)
        {
            (available, used) = (PackedPoint::START, PackedPoint::START);
        }
        let held = Held::new(spec);
        Ok(Self {
            tables,
            size: spec.size,
            available: Cursor::available(available),
            used: Cursor::used(used),
            taken: used.distance_to(available, spec.size).into(),
            given: 0,
            published: 0,
            unpublished: (0, 0),
            unsignalled: 0,
            event_idx: spec.event_idx,
            indirect: spec.indirect,
            simple: held.is_unordered(),
            held,
            reader: None,
            log: None,
        })
    }

    pub(super) fn rebind(
        &mut self,
        memory: &MemoryMap,
        spec: &QueueSpec,
    ) -> Result<(), QueueError> {
        self.tables = PackedTables::resolve(memory, spec)?;
        Ok(())
    }

    pub(super) fn attach_log(&mut self, memory: LogMemory) -> Result<(), QueueError> {
        let start = (self.available.point(), self.used.point());
        let (log, available, used) = PackedLog::recover(memory, start, &self.tables.ring)?;
        (self.available, self.used) = (Cursor::available(available), Cursor::used(used));
        let between = used.distance_to(available, self.size);
        self.taken = self.given.wrapping_add(between.into());
        self.held.begin_log();
        self.simple = false;
        self.log = Some(Box::new(log));
        Ok(())
    }

    pub(super) fn to_take_again(&self) -> usize {
        self.log.as_ref().map_or(0, |log| log.again.len())
    }

    /// Takes a chain that the log says was in flight, if there is one: from the log, because its
    /// place in the ring may have been overwritten by used descriptors.
    fn take_again(
        &mut self,
        memory: &mut Resolver,
        chain: &mut Chain,
    ) -> Result<Option<ChainId>, QueueError> {
        let Some(log) = &mut self.log else { return Ok(None) };
        let Some(logged) = log.again.waiting() else { return Ok(None) };
        let (id, slots) = (logged.id, logged.descriptors.len() as u16);
        for LoggedDescriptor { segment, flags } in &logged.descriptors {
            if flags & flag::INDIRECT == 0 {
                chain.push(*segment, flags & flag::WRITE != 0)?;
            } else if slots > 1 || !self.indirect {
                return Err(QueueError::BadInFlightLog("has an indirect table in a chain"));
            } else {
                self.reader.get_or_insert_default().read_packed(
                    memory,
                    *segment,
                    chain,
                    self.size.into(),
                )?;
            }
        }
        self.held.check_free(id)?;
        self.held.insert(id, chain.check_bytes()?, slots);
        log.again.take(id);
        Ok(Some(ChainId::new(id)))
    }

    #[inline]
    pub(super) fn take(
        &mut self,
        memory: &mut Resolver,
        chain: &mut Chain,
    ) -> Result<Option<ChainId>, QueueError> {
        match self.take_single(chain) {
            Some(id) => Ok(Some(id)),
            None if self.simple && !self.has_available() => Ok(None),
            None => self.take_any(memory, chain),
        }
    }

    /// Descriptors between where the next used descriptor goes and where the next chain begins.
    #[inline]
    fn between(&self) -> u32 {
        self.taken.wrapping_sub(self.given)
    }

    /// Descriptors given back since the last publication.
    #[inline]
    fn unseen(&self) -> u32 {
        self.given.wrapping_sub(self.published)
    }

    /// The common case by itself: a chain of one descriptor. Anything else, right or wrong, is left
    /// to [`PackedDevice::take_any`], which reads it afresh.
    #[inline]
    fn take_single(&mut self, chain: &mut Chain) -> Option<ChainId> {
        let Cursor { index, bits } = self.available;
        let descriptor = &self.tables.ring[usize::from(index)];
        // Acquire: as in `take_any`.
        let flags = descriptor.flags(Barrier::SeeAvailable.acquire());
        let single = flag::AVAIL | flag::USED | flag::NEXT | flag::INDIRECT;
        if flags & single != bits || self.between() >= u32::from(self.size) || !self.simple {
            return None;
        }
        let len = descriptor.len(Ordering::Relaxed);
        let segment = Segment { addr: DriverAddress(descriptor.addr(Ordering::Relaxed)), len };
        let id = descriptor.id(Ordering::Relaxed);
        let write = flags & flag::WRITE != 0;
        if len == 0
            || !chain.set_only(segment, write)
            || !self.held.try_insert(id, if write { len } else { 0 })
        {
            return None;
        }
        self.available.advance(1, self.size);
        self.taken = self.taken.wrapping_add(1);
        Some(ChainId::new(id))
    }

    #[inline(never)]
    fn take_any(
        &mut self,
        memory: &mut Resolver,
        chain: &mut Chain,
    ) -> Result<Option<ChainId>, QueueError> {
        chain.clear();
        if self.to_take_again() > 0 {
            return self.take_again(memory, chain);
        }
        let Cursor { index, bits } = self.available;
        // Acquire: pairs with the driver's barrier before it writes the first descriptor's flags
        // (VIRTIO 1.4, 2.8.21.2), so the whole chain is visible.
        let first = &self.tables.ring[usize::from(index)];
        let flags = first.flags(Barrier::SeeAvailable.acquire());
        if !has_bits(flags, bits) {
            return Ok(None);
        }
        let Walked { id, slots, table } = self.walk(flags, memory, chain)?;
        self.held.check_free(id)?;
        let writable = chain.check_bytes()?;
        self.held.insert(id, writable, slots);
        self.available.advance(slots, self.size);
        self.taken = self.taken.wrapping_add(slots.into());
        if let Some(log) = &mut self.log {
            write_log(log, id, chain, table);
        }
        Ok(Some(ChainId::new(id)))
    }

    /// Follows the chain whose first descriptor has `flags`, each descriptor read once.
    #[inline]
    fn walk(
        &mut self,
        mut flags: u16,
        memory: &mut Resolver,
        chain: &mut Chain,
    ) -> Result<Walked, QueueError> {
        let ring = &*self.tables.ring;
        let mut index = usize::from(self.available.index);
        // Bounded by what is not in flight: a chain may not run into its own or another's
        // descriptors, nor into those that the driver does not know to be given back. (Those may
        // have been taken again one by one, by `take_single`, which keeps no log.)
        let room =
            u32::from(self.size).saturating_sub(self.between()).saturating_sub(self.unseen());
        for slots in 1..=room as u16 {
            let descriptor = &ring[index];
            let addr = DriverAddress(descriptor.addr(Ordering::Relaxed));
            let segment = Segment { addr, len: descriptor.len(Ordering::Relaxed) };
            if flags & flag::INDIRECT != 0 {
                // A chain is either one table or direct descriptors only (VIRTIO 1.4, 2.8.8).
                if !self.indirect {
                    return Err(QueueError::IndirectNotNegotiated);
                }
                if flags & flag::NEXT != 0 || slots > 1 {
                    return Err(QueueError::IndirectInChain);
                }
                let id = descriptor.id(Ordering::Relaxed);
                self.reader.get_or_insert_default().read_packed(
                    memory,
                    segment,
                    chain,
                    usize::from(self.size),
                )?;
                return Ok(Walked { id, slots, table: Some(segment) });
            }
            chain.push(segment, flags & flag::WRITE != 0)?;
            if flags & flag::NEXT == 0 {
                // The last descriptor carries the id of the whole chain (VIRTIO 1.4, 2.8.6).
                let id = descriptor.id(Ordering::Relaxed);
                return Ok(Walked { id, slots, table: None });
            }
            index += 1;
            if index == ring.len() {
                index = 0;
            }
            flags = ring[index].flags(Ordering::Relaxed);
        }
        Err(if self.between() == 0 && self.unseen() == 0 {
            QueueError::ChainTooLong { limit: self.size.into() }
        } else {
            QueueError::ChainOverrun
        })
    }

    #[inline]
    pub(super) fn untake(&mut self, id: ChainId) {
        let id = id.finish();
        let slots = self.held.undo(id);
        if let Some(log) = &mut self.log
            && log.untake(id)
        {
            return;
        }
        self.available.retreat(slots, self.size);
        self.taken = self.taken.wrapping_sub(slots.into());
    }

    #[inline]
    pub(super) fn give_back(&mut self, id: ChainId, written: u32) {
        let id = id.finish();
        if self.simple {
            let (written, slots) = self.held.remove(id, written);
            self.write_used(id, written, slots);
        } else {
            self.give_back_in_order(id, written);
        }
    }

    /// Writes the next used descriptor, which stands for so many of the ring's.
    #[inline]
    fn write_used(&mut self, id: u16, written: u32, slots: u16) {
        let Cursor { index, bits } = self.used;
        let descriptor = &self.tables.ring[usize::from(index)];
        descriptor.set_id(id, Ordering::Relaxed);
        descriptor.set_len(written, Ordering::Relaxed);
        let flags = bits | if written > 0 { flag::WRITE } else { 0 };
        // The driver looks at used descriptors in ring order, so holding back the first holds back
        // all.
        if self.unseen() == 0 {
            self.unpublished = (index, flags);
        } else {
            descriptor.set_flags(flags, Ordering::Relaxed);
        }
        self.used.advance(slots, self.size);
        self.given = self.given.wrapping_add(slots.into());
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
            self.write_used(due.id, due.written, due.slots);
            if let Some(log) = &mut self.log {
                log.give_back(due.id, self.used.point());
            }
        }
    }

    #[inline]
    pub(super) fn publish_used(&mut self) {
        let unseen = self.unseen();
        if unseen > 0 {
            let (index, flags) = self.unpublished;
            if let Some(log) = &mut self.log {
                log.before_publication();
            }
            crash_point();
            // Release: the other used descriptors, this one's id and length, and the data in the
            // buffers before the flags; pairs with the driver's barrier after it finds the
            // descriptor used.
            self.tables.ring[usize::from(index)].set_flags(flags, Barrier::PublishUsed.release());
            self.published = self.given;
            self.unsignalled = self.unsignalled.saturating_add(unseen);
            if let Some(log) = &mut self.log {
                log.published();
            }
        }
    }

    #[inline]
    pub(super) fn wants_interrupt(&mut self) -> bool {
        let published = std::mem::take(&mut self.unsignalled);
        if published == 0 {
            return false;
        }
        // StoreLoad: the used descriptors before the driver's wish; pairs with the fence in its
        // `arm_interrupt`.
        Barrier::CheckInterrupt.store_load();
        let word = u32::from_le(self.tables.driver_event[0].load(Ordering::Relaxed));
        match packed_word::parse(word, self.event_idx) {
            Wish::Always => true,
            Wish::Never => false,
            Wish::At(event) => packed_crossed(event, self.used.point(), published, self.size),
        }
    }

    #[inline]
    pub(super) fn arm_kick(&mut self) -> bool {
        let word = match self.event_idx {
            true => packed_word::at(self.available.point()),
            false => packed_word::ENABLE,
        };
        self.tables.device_event[0].store(word.to_le(), Ordering::Relaxed);
        // StoreLoad: our wish before the descriptor's flags. Pairs with the fence in the driver's
        // `wants_kick`.
        Barrier::AskForKicks.store_load();
        self.has_available()
    }

    #[inline]
    pub(super) fn disarm_kick(&mut self) {
        self.tables.device_event[0].store(packed_word::DISABLE.to_le(), Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn has_available(&self) -> bool {
        let Cursor { index, bits } = self.available;
        let flags = self.tables.ring[usize::from(index)].flags(Ordering::Acquire);
        has_bits(flags, bits) || self.to_take_again() > 0
    }

    pub(super) fn position(&self) -> QueuePosition {
        QueuePosition::packed(self.available.point(), self.used.point())
    }

    pub(super) fn in_flight(&self) -> u16 {
        self.held.count()
    }
}

/// Notes a chain as it lay in the ring: its buffers, or its table.
#[inline(never)]
fn write_log(log: &mut PackedLog, id: u16, chain: &Chain, table: Option<Segment>) {
    if let Some(segment) = table {
        log.take(id, std::iter::once(LoggedDescriptor { segment, flags: flag::INDIRECT }));
        return;
    }
    let readable = chain.readable().iter().map(|segment| (segment, 0));
    let writable = chain.writable().iter().map(|segment| (segment, flag::WRITE));
    let all = readable.chain(writable);
    log.take(id, all.map(|(&segment, flags)| LoggedDescriptor { segment, flags }));
}
