use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use mem::{Access, DriverAddress, Mapping, MemoryMap, Region, Table};
use virtqueue::{DeviceQueue, QueueAddresses, QueueError, QueueSpec, RingFormat, ring_layout};

use super::transfers::{Op, Purpose, Transfers};

/// Flags and index at the start of the available and of the used ring (VIRTIO 1.4, 2.7.6, 2.7.8).
const HEADER_BYTES: u32 = 4;

/// A local copy of a split virtqueue that lies where only transfers reach.
///
/// What the driver writes is brought here before the queue looks at it, what the device writes is
/// taken there afterwards; the queue's code does not know. This is how an FPGA does it too:
///
/// ```text
///   driver's memory                       here                 DeviceQueue
///     avail.flags, idx  -- Index -------> held back until the
///     avail.ring        -- Entries -----> entries are there -> take
///     descriptors       -- Entries ----->
///     used.ring         <- Written ------ <------------------- give_back
///     used.flags, idx   <- Written ------ <------------------- publish_used
///     used_event/flags  -- Wish --------> -------------------> wants_interrupt
///     avail_event       <- Written ------ next to take
/// ```
#[derive(Debug)]
pub(super) struct Mirror {
    mapping: Arc<Mapping>,
    /// The driver's ring, at its own addresses.
    there: QueueSpec,
    /// Offsets of the three areas here.
    available_at: usize,
    used_at: usize,
    /// Behind the areas: where the available header and the event index wait.
    header_at: usize,
    event_at: usize,
    words: Table<AtomicU16>,
    /// The used index the driver has been told.
    told: u16,
}

impl Mirror {
    /// A mirror of the ring that `there` describes, and the queue on it.
    pub(super) fn new(there: &QueueSpec) -> Result<(Self, DeviceQueue), QueueError> {
        there.check()?;
        if there.format != RingFormat::Split {
            return Err(QueueError::BadSize { size: there.size, format: there.format });
        }
        let layout = ring_layout(RingFormat::Split, there.size);
        let header_at = layout.total_bytes().next_multiple_of(8);
        let bytes = header_at + 8;
        let mapping = Mapping::new_memfd("viaduct-mirror", bytes)?;
        let start = DriverAddress(0);
        let len = mapping.len() as u64;
        let region = Region::mapped(start, len, Access::ReadWrite, Arc::clone(&mapping), 0)?;
        let map = MemoryMap::new(vec![region])?;
        let addresses = QueueAddresses {
            descriptor: start,
            driver: DriverAddress(layout.driver_offset() as u64),
            device: DriverAddress(layout.device_offset() as u64),
        };
        let here = QueueSpec { addresses, ..there.clone() };
        let words = mapping.table(0, bytes / 2)?;
        let mirror = Self {
            mapping,
            there: there.clone(),
            available_at: layout.driver_offset(),
            used_at: layout.device_offset(),
            header_at,
            event_at: header_at + HEADER_BYTES as usize,
            words,
            told: there.start_at.index(),
        };
        // Nothing is in flight, so both indices are where the queue goes on.
        mirror.set(mirror.used_at + 2, mirror.told);
        mirror.set(mirror.available_at + 2, mirror.told);
        let queue = DeviceQueue::new(&map, &here)?;
        Ok((mirror, queue))
    }

    fn set(&self, offset: usize, value: u16) {
        // Release: the index after the entries that transfers brought, for the queue to find.
        self.words[offset / 2].store(value.to_le(), Ordering::Release);
    }

    fn get(&self, offset: usize) -> u16 {
        u16::from_le(self.words[offset / 2].load(Ordering::Acquire))
    }

    fn op(&self, purpose: Purpose, address: u64, offset: usize, len: u32) -> Op {
        let write = purpose == Purpose::Written;
        Op { purpose, address, here: (Arc::clone(&self.mapping), offset), len, write }
    }

    /// Asks for the available index, having told the driver from where on it is to notify us; in
    /// this order, so that what comes too late for the one is covered by the other.
    pub(super) fn ask_index(&self, next: u16, transfers: &mut Transfers) {
        if self.there.event_idx {
            self.set(self.event_at, next);
            let behind = HEADER_BYTES as u64 + 8 * u64::from(self.there.size);
            let address = self.there.addresses.device.0 + behind;
            transfers.add(self.op(Purpose::Written, address, self.event_at, 2));
        }
        let address = self.there.addresses.driver.0;
        transfers.add(self.op(Purpose::Index, address, self.header_at, HEADER_BYTES));
    }

    /// Asks for all entries of the available ring and the descriptor table; returns their bytes.
    /// After the index in order, so that what it stands for is complete.
    pub(super) fn ask_entries(&self, transfers: &mut Transfers) -> u32 {
        let size = u32::from(self.there.size);
        let (ring, table) = (2 * size, 16 * size);
        let address = self.there.addresses.driver.0 + u64::from(HEADER_BYTES);
        let offset = self.available_at + HEADER_BYTES as usize;
        transfers.add(self.op(Purpose::Entries, address, offset, ring));
        let address = self.there.addresses.descriptor.0;
        transfers.add(self.op(Purpose::Entries, address, 0, table));
        ring + table
    }

    /// The available index that was brought last.
    pub(super) fn index(&self) -> u16 {
        self.get(self.header_at + 2)
    }

    /// Lets the queue see the index brought last, now that the entries are there.
    pub(super) fn show_index(&self) {
        self.set(self.available_at, self.get(self.header_at));
        self.set(self.available_at + 2, self.index());
    }

    /// Takes what the queue has published to the driver, elements before the index, and asks for
    /// its wish behind that. Returns whether there was anything.
    pub(super) fn tell_used(&mut self, transfers: &mut Transfers) -> bool {
        let to = self.get(self.used_at + 2);
        if to == self.told {
            return false;
        }
        let size = self.there.size;
        let (from, count) = (self.told % size, to.wrapping_sub(self.told).min(size));
        let first = count.min(size - from);
        for (slot, n) in [(from, first), (0, count - first)] {
            let behind = HEADER_BYTES as usize + 8 * usize::from(slot);
            let address = self.there.addresses.device.0 + behind as u64;
            let offset = self.used_at + behind;
            transfers.add(self.op(Purpose::Written, address, offset, 8 * u32::from(n)));
        }
        let address = self.there.addresses.device.0;
        transfers.add(self.op(Purpose::Written, address, self.used_at, HEADER_BYTES));
        let behind = match self.there.event_idx {
            true => HEADER_BYTES as usize + 2 * usize::from(size),
            false => 0,
        };
        let address = self.there.addresses.driver.0 + behind as u64;
        transfers.add(self.op(Purpose::Wish, address, self.available_at + behind, 2));
        self.told = to;
        true
    }
}
