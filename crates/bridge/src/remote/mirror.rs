use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use mem::remote::RemoteMemory;
use mem::{Access, DriverAddress, Mapping, MemoryMap, Region, Table};
use virtqueue::{
    DeviceQueue, QueueAddresses, QueueError, QueueSpec, RingFormat, Segment, ring_layout,
};

use super::chains::{Bring, bring, check_known};
use super::tables::{Place, Tables};
use super::transfers::{Op, Purpose, Transfers};
use crate::MoverError;

/// Flags and index at the start of the available and of the used ring (VIRTIO 1.4, 2.7.6, 2.7.8).
const HEADER_BYTES: u32 = 4;

/// Flags of a descriptor (VIRTIO 1.4, 2.7.5).
const NEXT: u16 = 1;
const INDIRECT: u16 = 4;

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
///     indirect tables   -- Tables ------>
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
    pub(super) tables: Tables,
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
        let tables = Tables::new(there.size, there.indirect)?;
        let mirror = Self {
            mapping,
            there: there.clone(),
            available_at: layout.driver_offset(),
            used_at: layout.device_offset(),
            header_at,
            event_at: header_at + HEADER_BYTES as usize,
            words,
            tables,
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
        let here = (Arc::clone(&self.mapping), offset);
        Op { purpose, address, here, len, write, value: None }
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

    /// Asks for the indirect tables of the chains from `next` up to the index brought last, whose
    /// descriptors are here, and makes these lead to where the tables will be. Returns how many
    /// bytes have to be waited for.
    pub(super) fn ask_tables(
        &mut self,
        next: u16,
        map: &MemoryMap,
        memory: &Arc<dyn RemoteMemory>,
        transfers: &mut Transfers,
    ) -> Result<u64, MoverError> {
        let size = self.there.size;
        let count = self.index().wrapping_sub(next);
        if !self.tables.are_allowed() || count > size {
            // An index that jumped is for the queue to find.
            return Ok(0);
        }
        // All is looked up before the first transfer: a translation that is missing leaves things
        // as they were.
        for index in self.tables_from(next, count) {
            if let Some((there, _)) = self.table(index) {
                check_known(map, there)?;
            }
        }
        let mut waiting = 0;
        for index in self.tables_from(next, count) {
            waiting += self.ask_table(index, map, memory, transfers)?;
        }
        Ok(waiting)
    }

    /// The descriptors among those of `count` chains from `next` on that stand for tables.
    ///
    /// Bounded by the queue's size: chains that keep the rules share no descriptor. What others
    /// lead to is brought or not; the queue refuses them.
    fn tables_from(&self, next: u16, count: u16) -> impl Iterator<Item = u16> {
        let size = self.there.size;
        let heads = (0..count).map(move |n| {
            let slot = usize::from(next.wrapping_add(n) % size);
            self.get(self.available_at + HEADER_BYTES as usize + 2 * slot)
        });
        let chains = heads.flat_map(move |head| {
            std::iter::successors(Some(head).filter(|head| *head < size), move |at| {
                let has_next = self.flags(*at) & (INDIRECT | NEXT) == NEXT;
                has_next.then(|| self.get(Self::descriptor(*at) + 14)).filter(|next| *next < size)
            })
        });
        chains.take(size.into()).filter(|at| self.flags(*at) & INDIRECT != 0)
    }

    fn flags(&self, index: u16) -> u16 {
        self.get(Self::descriptor(index) + 12)
    }

    /// The table that a descriptor stands for, and its place here.
    fn table(&self, index: u16) -> Option<(Segment, Place)> {
        let word =
            |n: usize| u64::from(self.get(Self::descriptor(index) + 2 * n)) << (16 * (n % 4));
        let (addr, len) = (word(0) | word(1) | word(2) | word(3), (word(4) | word(5)) as u32);
        let place = self.tables.place(index, len)?;
        Some((Segment { addr: DriverAddress(addr), len: place.segment.len }, place))
    }

    fn ask_table(
        &self,
        index: u16,
        map: &MemoryMap,
        memory: &Arc<dyn RemoteMemory>,
        transfers: &mut Transfers,
    ) -> Result<u64, MoverError> {
        let Some((there, Place { here, segment })) = self.table(index) else { return Ok(0) };
        let waiting = bring(map, memory, Bring::read(there, here, Purpose::Entries), transfers)?;
        let at = Self::descriptor(index);
        for n in 0..4 {
            self.set(at + 2 * n, (segment.addr.0 >> (16 * n)) as u16);
        }
        self.set(at + 8, segment.len as u16);
        self.set(at + 10, (segment.len >> 16) as u16);
        Ok(waiting)
    }

    /// Offset of a descriptor; the table is at the beginning.
    fn descriptor(index: u16) -> usize {
        16 * usize::from(index)
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
        // This index and no later one, which would show elements that are not there yet: there may
        // be another batch before this one is sent.
        let value = Some(u32::from(self.get(self.used_at)) | u32::from(to) << 16);
        let address = self.there.addresses.device.0;
        let header = self.op(Purpose::Written, address, self.used_at, HEADER_BYTES);
        transfers.add(Op { value, ..header });
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

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, BorrowedFd};
    use std::sync::Mutex;

    use mem::Resolver;
    use mem::remote::{OnAnswer, RemoteChannel, RemoteError};
    use virtqueue::{Chain, QueuePosition};

    use super::*;

    type Writes = Arc<Mutex<Vec<(u64, Vec<u8>)>>>;

    /// A link that takes everything and answers nothing.
    struct Mute(Writes, sys::EventFd);

    impl RemoteChannel for Mute {
        fn max_transfer_bytes(&self) -> u32 {
            64
        }

        fn read(&mut self, _: u32, _: u64, _: u32) -> Result<(), RemoteError> {
            Ok(())
        }

        fn write(&mut self, _: u32, at: u64, bytes: &[u8]) -> Result<(), RemoteError> {
            self.0.lock().unwrap().push((at, bytes.to_vec()));
            Ok(())
        }

        fn flush(&mut self) -> Result<(), RemoteError> {
            Ok(())
        }

        fn poll(&mut self, _: &mut OnAnswer<'_>) -> Result<usize, RemoteError> {
            Ok(0)
        }

        fn ready_fd(&self) -> BorrowedFd<'_> {
            self.1.as_fd()
        }
    }

    #[test]
    fn an_index_is_never_ahead_of_its_elements() {
        let at = |offset: u64| DriverAddress(0x7_0000_0000 + offset);
        let spec = QueueSpec {
            size: 4,
            format: RingFormat::Split,
            indirect: false,
            event_idx: false,
            in_order: false,
            addresses: QueueAddresses { descriptor: at(0), driver: at(64), device: at(128) },
            start_at: QueuePosition::split(0),
        };
        let (mut mirror, mut queue) = Mirror::new(&spec).unwrap();
        for head in 0..2 {
            mirror.set(16 * head + 8, 100);
            mirror.set(mirror.available_at + 4 + 2 * head, head as u16);
        }
        mirror.set(mirror.available_at + 2, 2);
        let mut resolver = Resolver::new(Arc::new(MemoryMap::new(Vec::new()).unwrap()));
        let mut chain = Chain::with_capacity(4);
        let writes = Writes::default();
        let channel = Box::new(Mute(Arc::clone(&writes), sys::EventFd::new().unwrap()));
        let mut transfers = Transfers::new(channel, 8);
        // Two batches before anything is sent.
        for _ in 0..2 {
            let id = queue.take(&mut resolver, &mut chain).unwrap().unwrap();
            queue.give_back(id, 0);
            queue.publish_used();
            assert!(mirror.tell_used(&mut transfers));
        }
        transfers.send().unwrap();
        let writes = writes.lock().unwrap();
        let indices = writes.iter().filter(|(at, _)| *at == 0x7_0000_0080);
        let indices: Vec<u8> = indices.map(|(_, bytes)| bytes[2]).collect();
        assert_eq!(indices, [1, 2]);
    }
}
