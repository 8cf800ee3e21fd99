//! Memory and rings for measurements.

use std::sync::Arc;

use anyhow::Result;
use mem::{Access, AddressSpace, DriverAddress, Mapping, MemoryMap, Region};
use virtqueue::{QueueAddresses, QueuePosition, QueueSpec, RingFormat, ring_layout};

/// The first address of the driver's memory: nothing works by mistake with an offset instead.
pub const BASE: u64 = 1 << 32;

/// Memory as a driver would share it, in `regions` regions of equal size, with something between
/// them.
pub struct Guest {
    /// All of it.
    pub mapping: Arc<Mapping>,
    /// The address space that a bridge sees.
    pub space: Arc<AddressSpace>,
    next: u64,
    region_len: u64,
}

impl Guest {
    /// `len` bytes in `regions` regions.
    pub fn new(len: usize, regions: usize) -> Result<Self> {
        let mapping = Mapping::new_memfd("bench", len)?;
        let region_len = (len / regions) as u64;
        let all = (0..regions as u64).map(|index| {
            let start = DriverAddress(BASE + 2 * index * region_len);
            let at = index * region_len;
            Region::mapped(start, region_len, Access::ReadWrite, Arc::clone(&mapping), at)
        });
        let map = MemoryMap::new(all.collect::<Result<_, _>>()?)?;
        // Touched once, so that no window pays for page faults.
        for region in map.regions() {
            map.span(region.start, region.len)?.zero();
        }
        Ok(Self { mapping, space: Arc::new(AddressSpace::new(map)), next: 0, region_len })
    }

    /// The current snapshot.
    pub fn map(&self) -> Arc<MemoryMap> {
        self.space.current()
    }

    /// Address of a free piece of `len` bytes, on a page of its own.
    pub fn allocate(&mut self, len: usize) -> DriverAddress {
        const PAGE: u64 = 4096;
        let len = (len as u64).next_multiple_of(PAGE);
        assert!(len <= self.region_len, "a piece fits into a region");
        if self.next % self.region_len + len > self.region_len {
            self.next = self.next.next_multiple_of(self.region_len);
        }
        let (region, offset) = (self.next / self.region_len, self.next % self.region_len);
        self.next += len;
        assert!(self.next <= self.mapping.len() as u64, "the memory is large enough");
        DriverAddress(BASE + 2 * region * self.region_len + offset)
    }

    /// A queue whose rings lie in this memory.
    pub fn queue(&mut self, format: RingFormat, size: u16) -> QueueSpec {
        let layout = ring_layout(format, size);
        QueueSpec {
            size,
            format,
            indirect: false,
            event_idx: false,
            in_order: false,
            addresses: QueueAddresses {
                descriptor: self.allocate(layout.descriptor_bytes),
                driver: self.allocate(layout.driver_bytes),
                device: self.allocate(layout.device_bytes),
            },
            start_at: QueuePosition::start(format),
        }
    }
}
