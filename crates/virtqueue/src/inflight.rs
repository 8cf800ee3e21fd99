//! The log of chains in flight that outlives a device process (vhost-user, "Inflight I/O
//! tracking").
//!
//! It lies in a file that the VMM keeps while the device is restarted, so both a VMM and an earlier
//! device may have written anything there: it is read once, when it is attached, and checked. After
//! that it is only written.
//!
//! A process may be killed between any two stores, never within one. So what matters is the order
//! of the stores, which `Release` keeps:
//!
//! ```text
//!   take         entry, then its inflight flag
//!   give_back    entry into the list of the batch
//!   publish      used index or flags in the ring | the batch's inflight flags | the log's position
//!                killed here: nothing happened ^ or here: the batch is done   ^
//! ```

#[cfg(all(test, not(loom)))]
mod crash_tests;
mod packed;
mod split;

use std::sync::Arc;

use mem::sync::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use mem::{Mapping, Table};

use crate::{QueueError, RingFormat};
pub(crate) use packed::{LoggedDescriptor, PackedLog};
pub(crate) use split::SplitLog;

/// The only version of the layout.
const VERSION: u16 = 1;
const VERSION_AT: usize = 8;
const SIZE_AT: usize = 10;
/// Each queue's part of the file begins at a multiple of this; libvhost-user's choice.
const ALIGNMENT: usize = 64;

/// Where one queue's log lies; becomes active with
/// [`DeviceQueue::attach_log`](crate::DeviceQueue::attach_log).
#[derive(Debug)]
pub struct InFlightLog {
    memory: LogMemory,
    format: RingFormat,
}

impl InFlightLog {
    /// Bytes of the log of one queue; logs of several queues lie one behind the other.
    #[must_use]
    pub const fn bytes(format: RingFormat, size: u16) -> usize {
        let (header, entry) = Self::sizes(format);
        (header + entry * size as usize).next_multiple_of(ALIGNMENT)
    }

    const fn sizes(format: RingFormat) -> (usize, usize) {
        match format {
            RingFormat::Split => (split::HEADER_BYTES, split::ENTRY_BYTES),
            RingFormat::Packed => (packed::HEADER_BYTES, packed::ENTRY_BYTES),
        }
    }

    /// The log of a queue of `size` at `offset` bytes into `mapping`. Zeros are an empty log.
    ///
    /// # Errors
    /// If it does not fit there or is not aligned to 8 bytes.
    pub fn new(
        mapping: &Arc<Mapping>,
        offset: usize,
        format: RingFormat,
        size: u16,
    ) -> Result<Self, QueueError> {
        let (header, entry) = Self::sizes(format);
        let bytes = header + entry * usize::from(size);
        let memory = LogMemory {
            bytes: mapping.table(offset, bytes)?,
            halves: mapping.table(offset, bytes / 2)?,
            words: mapping.table(offset, bytes / 4)?,
            longs: mapping.table(offset, bytes / 8)?,
            size,
        };
        Ok(Self { memory, format })
    }

    /// The log's memory, if it is for such a queue.
    pub(crate) fn memory_for(self, format: RingFormat, size: u16) -> Result<LogMemory, QueueError> {
        if self.format != format || self.memory.size != size {
            return Err(QueueError::BadInFlightLog("is for another size or format of queue"));
        }
        Ok(self.memory)
    }
}

/// The log as fields at byte offsets. Every field is always accessed with its own width; they have
/// the machine's byte order.
#[derive(Debug)]
pub(crate) struct LogMemory {
    bytes: Table<AtomicU8>,
    halves: Table<AtomicU16>,
    words: Table<AtomicU32>,
    longs: Table<AtomicU64>,
    size: u16,
}

macro_rules! fields {
    ($($get:ident, $set:ident, $table:ident: $int:ty;)*) => {
        $(
            fn $get(&self, at: usize) -> $int {
                self.$table[at / size_of::<$int>()].load(Ordering::Acquire)
            }

            fn $set(&self, at: usize, value: $int) {
                crash_point();
                // Release: keeps the order of the stores, see the module's drawing.
                self.$table[at / size_of::<$int>()].store(value, Ordering::Release);
            }
        )*
    };
}

impl LogMemory {
    fields! {
        get_u8, set_u8, bytes: u8;
        get_u16, set_u16, halves: u16;
        get_u32, set_u32, words: u32;
        get_u64, set_u64, longs: u64;
    }

    /// Checks the header's version and size, which are at the same place in both layouts; true if
    /// the log was never used.
    fn is_fresh(&self) -> Result<bool, QueueError> {
        match (self.get_u16(VERSION_AT), self.get_u16(SIZE_AT)) {
            (0, _) => Ok(true),
            // Some set the size only later.
            (VERSION, size) if size == self.size || size == 0 => Ok(false),
            (VERSION, _) => Err(QueueError::BadInFlightLog("is for another size of queue")),
            _ => Err(QueueError::BadInFlightLog("has a version other than 1")),
        }
    }

    /// Marks the log as one that is in use, once everything else in it is true.
    fn begin(&self) {
        self.set_u16(SIZE_AT, self.size);
        self.set_u16(VERSION_AT, VERSION);
    }
}

/// A moment between two stores, at which tests let the device die.
#[inline]
pub(crate) fn crash_point() {
    #[cfg(all(test, not(loom)))]
    crash_tests::crash_point();
}

/// Chains that were in flight when the device died, to be taken first, in order.
#[derive(Debug)]
pub(crate) struct Again<C> {
    chains: Vec<C>,
    next: usize,
    /// By id: taken from here, and not given back. Empty if there was nothing to take.
    taken: Box<[bool]>,
}

impl<C> Again<C> {
    fn new(chains: Vec<C>, size: u16) -> Self {
        let ids = if chains.is_empty() { 0 } else { size.into() };
        Self { chains, next: 0, taken: vec![false; ids].into_boxed_slice() }
    }

    /// The next chain to take again.
    pub(crate) fn waiting(&self) -> Option<&C> {
        self.chains.get(self.next)
    }

    pub(crate) fn len(&self) -> usize {
        self.chains.len() - self.next
    }

    /// Notes that the waiting chain was taken as `id`.
    pub(crate) fn take(&mut self, id: u16) {
        self.next += 1;
        self.taken[usize::from(id)] = true;
    }

    /// Puts `id` back if it was taken from here; false if it was not.
    pub(crate) fn untake(&mut self, id: u16) -> bool {
        let taken = self.finish(id);
        self.next -= usize::from(taken);
        taken
    }

    /// Notes that `id` is done; returns whether it was taken from here.
    fn finish(&mut self, id: u16) -> bool {
        self.taken.get_mut(usize::from(id)).is_some_and(std::mem::take)
    }
}
