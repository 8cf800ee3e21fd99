use mem::{DriverAddress, Resolver};

use super::flag;
use crate::{Chain, QueueError, Segment};

/// Bytes of a descriptor in an indirect table, both formats.
const ENTRY_BYTES: usize = 16;
/// Entries copied at a time: most chains fit, and it is 4 cache lines.
const WINDOW_ENTRIES: usize = 16;

/// Reads indirect tables: a window of the table is copied, checked and used from the copy.
#[derive(Debug)]
pub(super) struct IndirectReader {
    window: [u8; ENTRY_BYTES * WINDOW_ENTRIES],
}

/// A descriptor as copied from a table.
#[derive(Clone, Copy)]
struct Entry {
    addr: u64,
    len: u32,
    /// Flags in split tables, the id in packed ones.
    low: u16,
    /// The next entry in split tables, flags in packed ones.
    high: u16,
}

/// An indirect table: where it is, and how many entries it has.
#[derive(Clone, Copy)]
struct TableAt {
    addr: DriverAddress,
    entries: usize,
}

impl Default for IndirectReader {
    fn default() -> Self {
        Self { window: [0; ENTRY_BYTES * WINDOW_ENTRIES] }
    }
}

impl IndirectReader {
    /// Appends a split table's chain, which starts at entry 0, to `chain`, which may hold `limit`
    /// buffers in the end (VIRTIO 1.4, 2.7.5.3).
    pub(super) fn read_split(
        &mut self,
        memory: &mut Resolver,
        table: Segment,
        chain: &mut Chain,
        limit: usize,
    ) -> Result<(), QueueError> {
        let at = TableAt::check(table)?;
        let mut window = 0..0;
        let mut index = 0;
        let before = chain.segments();
        // Bounded by what the chain may still grow by.
        for _ in before..limit {
            if index >= at.entries {
                let (index, size) = (index as u32, at.entries as u32);
                return Err(QueueError::IndexOutOfRange { index, size });
            }
            if !window.contains(&index) {
                window = index..self.load(memory, at, index)?;
            }
            let entry = self.entry(index - window.start);
            let flags = entry.low;
            if flags & flag::INDIRECT != 0 {
                return Err(QueueError::NestedIndirect);
            }
            let segment = Segment { addr: DriverAddress(entry.addr), len: entry.len };
            chain.push(segment, flags & flag::WRITE != 0)?;
            if flags & flag::NEXT == 0 {
                return Ok(());
            }
            index = usize::from(entry.high);
        }
        Err(QueueError::ChainTooLong { limit })
    }

    /// Appends all entries of a packed table; only WRITE means anything there (VIRTIO 1.4, 2.8.7).
    pub(super) fn read_packed(
        &mut self,
        memory: &mut Resolver,
        table: Segment,
        chain: &mut Chain,
        limit: usize,
    ) -> Result<(), QueueError> {
        let at = TableAt::check(table)?;
        if at.entries > limit {
            return Err(QueueError::ChainTooLong { limit });
        }
        let mut window = 0..0;
        for index in 0..at.entries {
            if index == window.end {
                window = index..self.load(memory, at, index)?;
            }
            let entry = self.entry(index - window.start);
            let flags = entry.high;
            if flags & flag::INDIRECT != 0 {
                return Err(QueueError::NestedIndirect);
            }
            let segment = Segment { addr: DriverAddress(entry.addr), len: entry.len };
            chain.push(segment, flags & flag::WRITE != 0)?;
        }
        Ok(())
    }

    /// Copies entries from `first` on into the window, across regions; returns the entry behind the
    /// last one copied.
    fn load(
        &mut self,
        memory: &mut Resolver,
        table: TableAt,
        first: usize,
    ) -> Result<usize, QueueError> {
        let count = (table.entries - first).min(WINDOW_ENTRIES);
        let bytes = count * ENTRY_BYTES;
        let mut done = 0;
        // Bounded: every span has at least one byte.
        while done < bytes {
            // `check` made sure that the table does not wrap around.
            let at = DriverAddress(table.addr.0 + (first * ENTRY_BYTES + done) as u64);
            let span = memory.span(at, (bytes - done) as u64)?;
            done += span.copy_to(&mut self.window[done..bytes]);
        }
        Ok(first + count)
    }

    fn entry(&self, at: usize) -> Entry {
        let bytes = &self.window[at * ENTRY_BYTES..][..ENTRY_BYTES];
        let (addr, rest) = bytes.split_at(8);
        let (len, rest) = rest.split_at(4);
        let (low, high) = rest.split_at(2);
        Entry {
            addr: u64::from_le_bytes(addr.try_into().expect("8 bytes")),
            len: u32::from_le_bytes(len.try_into().expect("4 bytes")),
            low: u16::from_le_bytes(low.try_into().expect("2 bytes")),
            high: u16::from_le_bytes(high.try_into().expect("2 bytes")),
        }
    }
}

impl TableAt {
    fn check(table: Segment) -> Result<Self, QueueError> {
        let len = table.len as usize;
        if len == 0 || !len.is_multiple_of(ENTRY_BYTES) {
            return Err(QueueError::IndirectLength(table.len));
        }
        if table.addr.0.checked_add(u64::from(table.len)).is_none() {
            return Err(QueueError::Memory(mem::MemoryError::Overflow));
        }
        Ok(Self { addr: table.addr, entries: len / ENTRY_BYTES })
    }
}
