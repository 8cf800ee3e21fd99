use mem::DriverAddress;
use mem::ring::PackedDescriptor;
use mem::sync::Ordering;

use super::{Again, LogMemory};
use crate::device::{available_bits, flag, has_bits};
use crate::{PackedPoint, QueueError, Segment};

/// features u64, version, `desc_num`, `free_head`, `old_free_head`, `used_idx`, `old_used_idx` u16,
/// `used_wrap_counter`, `old_used_wrap_counter` u8, padded to 8 bytes.
pub(super) const HEADER_BYTES: usize = 32;
const FREE_HEAD: usize = 12;
const OLD_FREE_HEAD: usize = 14;
/// The last four fields but for the free heads, in one store: a process killed between a position's
/// index and its wrap counter would leave one that never was.
const POSITIONS: usize = 16;

/// inflight u8, padding, next, last, num u16, counter u64, then the descriptor: id, flags u16, len
/// u32, addr u64.
pub(super) const ENTRY_BYTES: usize = 32;
const IN_FLIGHT: usize = 0;
const NEXT: usize = 2;
const LAST: usize = 4;
const COUNT: usize = 6;
const COUNTER: usize = 8;
const ID: usize = 16;
const FLAGS: usize = 18;
const LEN: usize = 20;
const ADDR: usize = 24;

/// The log of a packed queue: a copy of each descriptor in flight, because the ring's may be
/// overwritten by used ones, and a list of free entries.
#[derive(Debug)]
pub(crate) struct PackedLog {
    memory: LogMemory,
    counter: u64,
    free_head: u16,
    /// By buffer id: first and last entry of its chain.
    chains: Box<[(u16, u16)]>,
    /// Ids of chains given back and not published. Their entries must stay as they are until then.
    batch: Vec<u16>,
    /// Private copy of the links between entries.
    next: Box<[u16]>,
    /// The used position that the driver sees, and the one with the batch.
    published: PackedPoint,
    used: PackedPoint,
    /// Chains to take again.
    pub again: Again<LoggedChain>,
}

/// A descriptor as it is kept in the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoggedDescriptor {
    pub segment: Segment,
    /// WRITE and INDIRECT.
    pub flags: u16,
}

/// A chain found in the log.
#[derive(Debug)]
pub(crate) struct LoggedChain {
    pub id: u16,
    pub descriptors: Vec<LoggedDescriptor>,
    counter: u64,
    entries: (u16, u16),
}

fn entry(index: u16, field: usize) -> usize {
    HEADER_BYTES + ENTRY_BYTES * usize::from(index) + field
}

impl PackedLog {
    /// Takes over the log of the queue with this ring, which begins at `start` if the log was never
    /// used. Returns also where the queue stands: the next available and the next used descriptor.
    pub(crate) fn recover(
        memory: LogMemory,
        (start_available, start_used): (PackedPoint, PackedPoint),
        ring: &[PackedDescriptor],
    ) -> Result<(Self, PackedPoint, PackedPoint), QueueError> {
        let size = memory.size;
        let fresh = memory.is_fresh()?;
        let used = match fresh {
            true => start_used,
            false => last_used(&memory, ring)?,
        };
        // Read once: whoever keeps the log may write it at any time.
        let next: Box<[u16]> = (0..size).map(|index| memory.get_u16(entry(index, NEXT))).collect();
        let chains = if fresh { Vec::new() } else { read_chains(&memory, &next)? };
        let slots: usize = chains.iter().map(|chain| chain.descriptors.len()).sum();
        let available = match fresh {
            true => start_available,
            // At most `size`, since no entry belongs to two chains.
            false => used.advanced(slots as u16, size),
        };
        // From here on the last batch is settled, should we be killed again.
        set_positions(&memory, used, used);
        if !fresh {
            make_available(ring, used, slots);
        }
        let mut log = Self {
            counter: chains.last().map_or(0, |chain| chain.counter.wrapping_add(1)),
            // Ends the list: no entry has this number.
            free_head: size,
            chains: vec![(0, 0); size.into()].into_boxed_slice(),
            batch: Vec::new(),
            next,
            published: used,
            used,
            memory,
            again: Again::new(Vec::new(), size),
        };
        let mut is_known = vec![false; size.into()];
        for chain in &chains {
            match is_known.get_mut(usize::from(chain.id)) {
                None => return Err(QueueError::BadInFlightLog("has an id out of range")),
                Some(true) => return Err(QueueError::BadInFlightLog("has one id for two chains")),
                Some(is_known) => *is_known = true,
            }
            log.chains[usize::from(chain.id)] = chain.entries;
        }
        log.link_free(&chains);
        log.memory.set_u16(FREE_HEAD, log.free_head);
        log.memory.set_u16(OLD_FREE_HEAD, log.free_head);
        log.memory.begin();
        log.again = Again::new(chains, size);
        Ok((log, available, used))
    }

    /// Links all entries that belong to no chain.
    fn link_free(&mut self, chains: &[LoggedChain]) {
        let mut taken = vec![false; self.next.len()];
        for chain in chains {
            let mut at = chain.entries.0;
            for _ in &chain.descriptors {
                taken[usize::from(at)] = true;
                at = self.next[usize::from(at)];
            }
        }
        let free = (0..self.next.len() as u16).rev().filter(|&at| !taken[usize::from(at)]);
        for at in free {
            self.memory.set_u8(entry(at, IN_FLIGHT), 0);
            self.set_next(at, self.free_head);
            self.free_head = at;
        }
    }

    fn set_next(&mut self, at: u16, next: u16) {
        self.next[usize::from(at)] = next;
        self.memory.set_u16(entry(at, NEXT), next);
    }

    /// The chain `id` was taken from the ring: these are its descriptors, at least one.
    pub(crate) fn take(&mut self, id: u16, descriptors: impl Iterator<Item = LoggedDescriptor>) {
        let head = self.free_head;
        let (mut last, mut count) = (head, 0);
        for descriptor in descriptors {
            last = self.free_head;
            count += 1;
            let LoggedDescriptor { segment, flags } = descriptor;
            self.memory.set_u64(entry(last, ADDR), segment.addr.0);
            self.memory.set_u32(entry(last, LEN), segment.len);
            self.memory.set_u16(entry(last, ID), id);
            self.memory.set_u16(entry(last, FLAGS), flags);
            self.free_head = self.next[usize::from(last)];
        }
        self.memory.set_u16(entry(head, LAST), last);
        self.memory.set_u16(entry(head, COUNT), count);
        self.memory.set_u64(entry(head, COUNTER), self.counter);
        self.counter = self.counter.wrapping_add(1);
        self.memory.set_u16(FREE_HEAD, self.free_head);
        self.memory.set_u8(entry(head, IN_FLIGHT), 1);
        self.memory.set_u16(OLD_FREE_HEAD, self.free_head);
        self.chains[usize::from(id)] = (head, last);
    }

    /// A chain goes back to where it was; returns whether that was the log.
    pub(crate) fn untake(&mut self, id: u16) -> bool {
        if self.again.untake(id) {
            return true;
        }
        let head = self.free(id);
        self.memory.set_u8(entry(head, IN_FLIGHT), 0);
        self.memory.set_u16(OLD_FREE_HEAD, self.free_head);
        false
    }

    /// A chain was given back, not yet visible to the driver; the used position will be `used`.
    pub(crate) fn give_back(&mut self, id: u16, used: PackedPoint) {
        self.again.finish(id);
        self.batch.push(id);
        self.used = used;
    }

    /// Puts a chain's entries in front of the free ones.
    fn free(&mut self, id: u16) -> u16 {
        let (head, last) = self.chains[usize::from(id)];
        self.set_next(last, self.free_head);
        self.memory.set_u16(FREE_HEAD, head);
        self.free_head = head;
        head
    }

    /// The driver is about to see the batch.
    pub(crate) fn before_publication(&mut self) {
        for at in 0..self.batch.len() {
            self.free(self.batch[at]);
        }
        set_positions(&self.memory, self.used, self.published);
    }

    /// The driver sees all of the batch.
    pub(crate) fn published(&mut self) {
        for &id in &self.batch {
            let (head, _) = self.chains[usize::from(id)];
            self.memory.set_u8(entry(head, IN_FLIGHT), 0);
        }
        self.batch.clear();
        self.memory.set_u16(OLD_FREE_HEAD, self.free_head);
        self.published = self.used;
        set_positions(&self.memory, self.used, self.used);
    }
}

/// `used_idx` and `old_used_idx` with their wrap counters.
fn positions(memory: &LogMemory) -> (PackedPoint, PackedPoint) {
    let [a, b, c, d, wrap, old_wrap, ..] = memory.get_u64(POSITIONS).to_ne_bytes();
    let new = PackedPoint { index: u16::from_ne_bytes([a, b]), wrap: wrap != 0 };
    let old = PackedPoint { index: u16::from_ne_bytes([c, d]), wrap: old_wrap != 0 };
    (new, old)
}

fn set_positions(memory: &LogMemory, new: PackedPoint, old: PackedPoint) {
    let ([a, b], [c, d]) = (new.index.to_ne_bytes(), old.index.to_ne_bytes());
    let bytes = [a, b, c, d, new.wrap.into(), old.wrap.into(), 0, 0];
    memory.set_u64(POSITIONS, u64::from_ne_bytes(bytes));
}

/// Decides whether the last batch was published and returns the used position.
fn last_used(memory: &LogMemory, ring: &[PackedDescriptor]) -> Result<PackedPoint, QueueError> {
    let (new, old) = positions(memory);
    if new.index >= memory.size || old.index >= memory.size {
        return Err(QueueError::BadInFlightLog("has a position out of range"));
    }
    if new == old {
        return Ok(old);
    }
    // Until publication the descriptor in that place is as the driver made it.
    let flags = ring[usize::from(old.index)].flags(Ordering::Acquire);
    if has_bits(flags, available_bits(old.wrap)) {
        return Ok(old);
    }
    // Published: its chains are those between the new head of the free list and the old one.
    let (mut at, old_head) = (memory.get_u16(FREE_HEAD), memory.get_u16(OLD_FREE_HEAD));
    for _ in 0..memory.size {
        if at == old_head {
            break;
        }
        if at >= memory.size {
            return Err(QueueError::BadInFlightLog("has an entry out of range"));
        }
        memory.set_u8(entry(at, IN_FLIGHT), 0);
        at = memory.get_u16(entry(at, NEXT));
    }
    Ok(new)
}

/// Takes back used descriptors of a batch that was never published: behind the first of it they may
/// be written already, and the driver would see them as soon as another one takes the first's
/// place.
fn make_available(ring: &[PackedDescriptor], used: PackedPoint, slots: usize) {
    let size = ring.len() as u16;
    let mut at = used;
    for _ in 0..slots {
        ring[usize::from(at.index)].set_flags(available_bits(at.wrap), Ordering::Relaxed);
        at = at.advanced(1, size);
    }
}

/// The chains marked as in flight, in the order they were taken; `next` links entries.
fn read_chains(memory: &LogMemory, next: &[u16]) -> Result<Vec<LoggedChain>, QueueError> {
    let size = memory.size;
    let mut seen = vec![false; size.into()];
    let marked = (0..size).filter(|&at| memory.get_u8(entry(at, IN_FLIGHT)) != 0);
    let mut chains = Vec::new();
    for head in marked {
        let count = memory.get_u16(entry(head, COUNT));
        if count == 0 || count > size {
            return Err(QueueError::BadInFlightLog("has a chain of no length or too long"));
        }
        let (mut at, mut last, mut descriptors) = (head, head, Vec::new());
        for _ in 0..count {
            match seen.get_mut(usize::from(at)) {
                Some(seen @ false) => *seen = true,
                _ => return Err(QueueError::BadInFlightLog("has entries in two chains")),
            }
            let addr = DriverAddress(memory.get_u64(entry(at, ADDR)));
            let segment = Segment { addr, len: memory.get_u32(entry(at, LEN)) };
            let flags = memory.get_u16(entry(at, FLAGS)) & (flag::WRITE | flag::INDIRECT);
            descriptors.push(LoggedDescriptor { segment, flags });
            last = at;
            at = next[usize::from(at)];
        }
        let id = memory.get_u16(entry(last, ID));
        let counter = memory.get_u64(entry(head, COUNTER));
        chains.push(LoggedChain { id, descriptors, counter, entries: (head, last) });
    }
    chains.sort_by_key(|chain| chain.counter);
    Ok(chains)
}
