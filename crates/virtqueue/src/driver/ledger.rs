use mem::DriverAddress;

use super::IndirectArea;
use crate::{QueueError, QueueSpec, Segment};

/// No indirect table.
pub(super) const NO_TABLE: u16 = u16::MAX;

/// What a driver's queue knows of its chains. All of it private: the device can overwrite the
/// shared rings.
///
/// There is a record for each descriptor. In a split queue a record's number is its descriptor's;
/// in a packed queue a chain's buffer id is the number of its first record. With IN_ORDER the
/// records are used in ring order (VIRTIO 1.4, 2.7.9), else the latest freed is used first, because
/// it is in the cache. Then there are only as many as were ever in use at once, since most queues
/// are idle most of the time.
#[derive(Debug)]
pub(super) struct Ledger<T> {
    records: Vec<Record>,
    chains: Vec<Pending<T>>,
    size: u16,
    first_free: u16,
    /// Free descriptors, those without a record among them.
    free: u16,
    in_flight: u16,
    /// Chains offered so far.
    offered: u64,
    in_order: bool,
    /// With IN_ORDER: the head of the chain offered first among those in flight.
    oldest: u16,
    /// With IN_ORDER: the last chain of the batch being taken, and its used length.
    batch: Option<(u16, u32)>,
    tables: TablePool,
}

/// A private copy of a descriptor.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Record {
    pub addr: DriverAddress,
    pub len: u32,
    /// The next of the chain, or of the free records.
    pub next: u16,
}

/// A chain in flight, if there is a context.
#[derive(Debug)]
struct Pending<T> {
    context: Option<T>,
    /// Counts the offers, for IN_ORDER and for offering again in the same order.
    ordinal: u64,
    writable_len: u32,
    segments: u16,
    readable: u16,
    /// The chain's indirect table or [`NO_TABLE`].
    table: u16,
}

impl<T> Pending<T> {
    /// No chain.
    fn idle() -> Self {
        Self {
            context: None,
            ordinal: 0,
            writable_len: 0,
            segments: 0,
            readable: 0,
            table: NO_TABLE,
        }
    }
}

/// Free indirect tables and private copies of those in use.
#[derive(Debug)]
struct TablePool {
    area: IndirectArea,
    /// Segments of the longest chain that goes into a table: no chain may be longer than the queue,
    /// indirect or not (VIRTIO 1.4, 2.7.5.3.1).
    longest: usize,
    free: Box<[u16]>,
    free_len: usize,
    /// For the tables up to the highest that was ever in use.
    copies: Vec<Segment>,
}

/// A chain taken out of the ledger, to be offered again.
pub(super) struct Saved<T> {
    pub readable: Vec<Segment>,
    pub writable: Vec<Segment>,
    pub indirect: bool,
    pub context: T,
}

/// A chain about to be offered.
pub(super) struct Offer<'a, T> {
    pub readable: &'a [Segment],
    pub writable: &'a [Segment],
    pub context: T,
}

impl<T> Offer<'_, T> {
    #[inline]
    pub(super) fn segments(&self) -> usize {
        self.readable.len() + self.writable.len()
    }

    /// The only segment, if there is just one, and whether the device writes it.
    #[inline]
    pub(super) fn single(&self) -> Option<(Segment, bool)> {
        match (self.readable, self.writable) {
            (&[segment], []) => Some((segment, false)),
            ([], &[segment]) => Some((segment, true)),
            _ => None,
        }
    }

    /// The segments with whether the device writes them.
    #[inline]
    pub(super) fn iter(&self) -> impl Iterator<Item = (Segment, bool)> {
        let readable = self.readable.iter().map(|&segment| (segment, false));
        readable.chain(self.writable.iter().map(|&segment| (segment, true)))
    }
}

/// Records there are from the start: a request of a disk has three descriptors.
const FIRST_RECORDS: u16 = 4;

impl<T> Ledger<T> {
    pub(super) fn new(spec: &QueueSpec, area: Option<IndirectArea>) -> Self {
        let size = spec.size;
        let mut ledger = Self {
            records: Vec::new(),
            chains: Vec::new(),
            size,
            first_free: 0,
            free: size,
            in_flight: 0,
            offered: 0,
            in_order: spec.in_order,
            oldest: 0,
            batch: None,
            tables: TablePool::new(area.filter(|_| spec.indirect), size),
        };
        // The order of the ring is that of the records, so all are needed soon.
        ledger.extend(if spec.in_order { size } else { size.min(FIRST_RECORDS) });
        ledger
    }

    /// Makes records until there are `len`, which are the first to be used.
    fn extend(&mut self, len: u16) {
        let made = self.records.len() as u16;
        let record = |index| Record { next: index + 1, ..Record::default() };
        self.records.extend((made..len).map(record));
        self.records[usize::from(len) - 1].next = self.first_free;
        self.chains.extend((made..len).map(|_| Pending::idle()));
        self.first_free = made;
    }

    /// Sees to it that there are records for `count` descriptors, which are free.
    #[inline]
    pub(super) fn make(&mut self, count: usize) {
        if self.records.len() + usize::from(self.free) < usize::from(self.size) + count {
            self.make_more(count);
        }
    }

    #[cold]
    fn make_more(&mut self, count: usize) {
        let used = usize::from(self.size - self.free);
        let len = (used + count).next_power_of_two().min(self.size.into());
        self.extend(len as u16);
    }

    #[inline]
    pub(super) fn in_flight(&self) -> u16 {
        self.in_flight
    }

    #[inline]
    pub(super) fn is_in_order(&self) -> bool {
        self.in_order
    }

    /// Free descriptors.
    #[inline]
    pub(super) fn free(&self) -> usize {
        self.free.into()
    }

    /// Whether a chain of so many segments goes into an indirect table now.
    #[inline]
    pub(super) fn would_use_table(&self, segments: usize) -> bool {
        segments >= 2 && self.tables.free_len > 0 && segments <= self.tables.longest
    }

    #[inline]
    pub(super) fn has_room(&self, segments: usize) -> bool {
        segments <= usize::from(self.free) || (self.free > 0 && self.would_use_table(segments))
    }

    /// The longest chain that can ever be offered.
    pub(super) fn max_segments(&self) -> usize {
        usize::from(self.size).max(self.tables.longest)
    }

    #[inline]
    pub(super) fn first_free(&self) -> u16 {
        self.first_free
    }

    #[inline]
    pub(super) fn record_mut(&mut self, index: u16) -> &mut Record {
        &mut self.records[usize::from(index)]
    }

    /// Takes a free indirect table and keeps a copy of what will be written there.
    pub(super) fn fill_table(&mut self, offer: &Offer<'_, T>) -> u16 {
        let table = self.tables.pop();
        let copies = self.tables.copies_mut(table);
        for (copy, (segment, _)) in copies.iter_mut().zip(offer.iter()) {
            *copy = segment;
        }
        table
    }

    /// Address of an indirect table.
    pub(super) fn table_addr(&self, table: u16) -> DriverAddress {
        let area = self.tables.area;
        DriverAddress(area.at.0 + u64::from(table) * u64::from(area.entries) * 16)
    }

    /// Number of an indirect table's first entry among all entries of the area.
    pub(super) fn table_first(&self, table: u16) -> usize {
        usize::from(table) * usize::from(self.tables.area.entries)
    }

    /// Notes the chain whose records, from the first free one on, have been filled; `next_free` is
    /// the record behind them.
    #[inline]
    pub(super) fn insert(&mut self, offer: Offer<'_, T>, table: u16, next_free: u16) -> u16 {
        let head = self.first_free;
        let segments = offer.segments() as u16;
        let readable = offer.readable.len() as u16;
        let writable: u64 = offer.writable.iter().map(|segment| u64::from(segment.len)).sum();
        self.first_free = next_free;
        self.free -= if table == NO_TABLE { segments } else { 1 };
        self.in_flight += 1;
        self.offered += 1;
        self.chains[usize::from(head)] = Pending {
            context: Some(offer.context),
            ordinal: self.offered,
            writable_len: u32::try_from(writable).unwrap_or(u32::MAX),
            segments,
            readable,
            table,
        };
        head
    }

    /// Notes chains of one segment each, for which there is room; tells `place` the id of each, and
    /// where it goes.
    #[inline]
    pub(super) fn insert_singles<P>(
        &mut self,
        chains: impl Iterator<Item = (P, (Segment, bool, T))>,
        mut place: impl FnMut(P, u16, Segment, bool),
    ) {
        // Copies, which stay in registers.
        let (mut id, mut ordinal) = (self.first_free, self.offered);
        let (records, pending) = (&mut *self.records, &mut *self.chains);
        for (at, (segment, writable, context)) in chains {
            place(at, id, segment, writable);
            ordinal += 1;
            pending[usize::from(id)] = Pending {
                context: Some(context),
                ordinal,
                writable_len: if writable { segment.len } else { 0 },
                segments: 1,
                readable: u16::from(!writable),
                table: NO_TABLE,
            };
            let record = &mut records[usize::from(id)];
            (record.addr, record.len) = (segment.addr, segment.len);
            id = record.next;
        }
        let count = (ordinal - self.offered) as u16;
        (self.first_free, self.offered) = (id, ordinal);
        self.free -= count;
        self.in_flight += count;
    }

    /// Takes out the chains that used elements name, up to the first that is not of one segment or
    /// not right; hands contexts and used lengths to `each` and returns how many. As
    /// [`Ledger::complete`] otherwise.
    #[inline]
    pub(super) fn complete_singles(
        &mut self,
        used: impl Iterator<Item = (u32, u32, bool)>,
        mut each: impl FnMut(T, u32),
    ) -> usize {
        // A copy, which stays in a register.
        let mut first_free = self.first_free;
        let (records, pending) = (&mut *self.records, &mut *self.chains);
        let mut done = 0;
        for (id, written, sure) in used {
            let Some(chain) = pending.get_mut(id as usize) else { break };
            let fits = written <= chain.writable_len;
            if (chain.segments, chain.table) != (1, NO_TABLE) || (sure && !fits) {
                break;
            }
            let Some(context) = chain.context.take() else { break };
            records[id as usize].next = first_free;
            first_free = id as u16;
            each(context, if fits { written } else { 0 });
            done += 1;
        }
        self.first_free = first_free;
        self.free += done;
        self.in_flight -= done;
        done.into()
    }

    /// Checks a used id and length as the device wrote them; returns the id, and the length that
    /// counts. Of a chain without room to write a length says nothing: devices are seen to put
    /// there what they have read (vhost-device-console 0.1).
    #[inline]
    pub(super) fn check(&self, id: u32, written: u32) -> Result<(u16, u32), QueueError> {
        let index = usize::try_from(id).unwrap_or(usize::MAX);
        match self.chains.get(index) {
            Some(Pending { context: Some(_), writable_len, .. }) => {
                let (id, writable) = (id as u16, *writable_len);
                if written > writable && writable > 0 {
                    return Err(QueueError::UsedTooLong { id, written, writable });
                }
                Ok((id, written.min(writable)))
            }
            _ => Err(QueueError::UsedNotInFlight(id)),
        }
    }

    /// Takes out the chain that a used element names; returns its context, its used length and how
    /// many ring descriptors it took up. A length that is not `sure` to mean anything counts if it
    /// is possible. Not for IN_ORDER.
    #[inline]
    pub(super) fn complete(
        &mut self,
        id: u32,
        written: u32,
        sure: bool,
    ) -> Result<(T, u32, u16), QueueError> {
        let (head, written) = match self.check(id, written) {
            Ok(checked) => checked,
            Err(QueueError::UsedTooLong { id, .. }) if !sure => (id, 0),
            Err(error) => return Err(error),
        };
        let (context, slots) = self.remove(head);
        Ok((context, written, slots))
    }

    /// Length of a chain's writable part.
    #[inline]
    pub(super) fn writable_len(&self, id: u16) -> u32 {
        self.chains[usize::from(id)].writable_len
    }

    /// Whether a chain is in flight under this id.
    #[inline]
    pub(super) fn is_in_flight(&self, id: u16) -> bool {
        self.chains.get(usize::from(id)).is_some_and(|chain| chain.context.is_some())
    }

    /// With IN_ORDER: whether a batch was begun that is not taken to its end.
    #[inline]
    pub(super) fn in_batch(&self) -> bool {
        self.batch.is_some()
    }

    /// With IN_ORDER: begins a batch that ends with `last`; returns how many chains it has.
    #[inline]
    pub(super) fn begin_batch(&mut self, last: u16, written: u32) -> u64 {
        self.batch = Some((last, written));
        let oldest = self.chains[usize::from(self.oldest)].ordinal;
        self.chains[usize::from(last)].ordinal - oldest + 1
    }

    /// With IN_ORDER: the next chain of the batch and its used length; chains before the last count
    /// as completely used (VIRTIO 1.4, 2.7.9, 2.8.9).
    #[inline]
    pub(super) fn next_of_batch(&mut self) -> Option<(u16, u32)> {
        let (last, written) = self.batch?;
        let head = self.oldest;
        if head == last {
            self.batch = None;
            return Some((head, written));
        }
        Some((head, self.writable_len(head)))
    }

    /// Takes out a chain in flight; returns its context and how many ring descriptors it took up.
    #[inline]
    pub(super) fn remove(&mut self, head: u16) -> (T, u16) {
        let chain = &mut self.chains[usize::from(head)];
        let context = chain.context.take().expect("checked to be in flight");
        let slots = match chain.table {
            NO_TABLE => chain.segments,
            table => {
                self.tables.push(table);
                1
            }
        };
        if self.in_order {
            let next = usize::from(head) + usize::from(slots);
            self.oldest = (next % self.records.len()) as u16;
        } else {
            let mut last = head;
            for _ in 1..slots {
                last = self.records[usize::from(last)].next;
            }
            self.records[usize::from(last)].next = self.first_free;
            self.first_free = head;
        }
        self.free += slots;
        self.in_flight -= 1;
        (context, slots)
    }

    /// Whether everything in flight fits a queue made from `spec` and `area`.
    pub(super) fn fits(&self, spec: &QueueSpec, area: Option<IndirectArea>) -> bool {
        let area = area.filter(|_| spec.indirect).unwrap_or_default();
        let longest = usize::from(area.entries.min(spec.size));
        let in_tables = self.chains.iter().filter(|c| c.context.is_some() && c.table != NO_TABLE);
        let fit = in_tables.clone().all(|chain| usize::from(chain.segments) <= longest);
        let slots = self.size - self.free;
        fit && in_tables.count() <= usize::from(area.tables) && slots <= spec.size
    }

    /// Takes out everything, in the order it was offered. Allocates: this is for restarts and
    /// tear-down.
    pub(super) fn take_all(&mut self) -> Vec<Saved<T>> {
        let mut heads: Vec<u16> = (0..self.chains.len() as u16).collect();
        heads.retain(|&head| self.is_in_flight(head));
        heads.sort_unstable_by_key(|&head| self.chains[usize::from(head)].ordinal);
        self.batch = None;
        heads.into_iter().map(|head| self.save(head)).collect()
    }

    fn save(&mut self, head: u16) -> Saved<T> {
        let Pending { segments, readable, table, .. } = self.chains[usize::from(head)];
        let mut all = Vec::with_capacity(segments.into());
        if table == NO_TABLE {
            let mut index = head;
            for _ in 0..segments {
                let record = self.records[usize::from(index)];
                all.push(Segment { addr: record.addr, len: record.len });
                index = record.next;
            }
        } else {
            all.extend_from_slice(&self.tables.copies_mut(table)[..usize::from(segments)]);
        }
        let writable = all.split_off(readable.into());
        let (context, _) = self.remove(head);
        Saved { readable: all, writable, indirect: table != NO_TABLE, context }
    }
}

impl TablePool {
    fn new(area: Option<IndirectArea>, size: u16) -> Self {
        let mut area = area.unwrap_or_default();
        // Each table in use needs a descriptor.
        area.tables = area.tables.min(size);
        let has_room = area.tables > 0 && area.entries > 0;
        Self {
            area,
            longest: if has_room { area.entries.min(size).into() } else { 0 },
            free: (0..area.tables).rev().collect(),
            free_len: area.tables.into(),
            copies: Vec::new(),
        }
    }

    fn pop(&mut self) -> u16 {
        self.free_len -= 1;
        let table = self.free[self.free_len];
        let end = (usize::from(table) + 1) * usize::from(self.area.entries);
        if end > self.copies.len() {
            self.copies.resize(end, Segment::default());
        }
        table
    }

    fn push(&mut self, table: u16) {
        self.free[self.free_len] = table;
        self.free_len += 1;
    }

    fn copies_mut(&mut self, table: u16) -> &mut [Segment] {
        let entries = usize::from(self.area.entries);
        &mut self.copies[usize::from(table) * entries..][..entries]
    }
}
