//! Memory, rings and bridges between them for measurements.

use std::sync::Arc;

use anyhow::{Context, Result};
use bridge::{BridgeParts, CopyMover, Ends, Mover, PoolPlace, QueueBridge, RateLimits};
use mem::{Access, AddressSpace, DriverAddress, Mapping, MemoryMap, Region, Span};
use sys::EventFd;
use virtio::{EventSource, Notifier};
use virtqueue::{
    DeviceQueue, DriverQueue, QueueAddresses, QueuePosition, QueueSpec, RingFormat, ring_layout,
};

/// The first address of the driver's memory: nothing works by mistake with an offset instead.
pub const BASE: u64 = 1 << 32;

/// Where the pool of a copying bridge appears to the device.
pub const POOL: u64 = 0x0700_0000_0000;

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

    /// A bridge from the ring `a` to the ring `b`, which both lie in this memory; nobody is
    /// notified.
    pub fn bridge<M: Mover>(
        &self,
        a: &QueueSpec,
        b: &QueueSpec,
        mover: M,
    ) -> Result<QueueBridge<M>> {
        let (map, (events, _source)) = (self.map(), EventSource::new()?);
        Ok(QueueBridge::new(BridgeParts {
            ends: Ends {
                index: 0,
                name: "bench".into(),
                kick: None,
                call: Notifier::none(),
                device_kick: Arc::new(EventFd::new()?),
                device_call: Arc::new(EventFd::new()?),
                observer: None,
                counters: Arc::default(),
                events,
            },
            driver: DeviceQueue::new(&map, a)?,
            memory: self.space.reader(),
            device: DriverQueue::new(&map, b, None)?,
            device_memory: map,
            mover,
            limits: RateLimits::default(),
        }))
    }
}

/// Copies through a pool of its own, for a queue of `size`.
pub fn copy_mover(size: u16) -> Result<CopyMover> {
    let bytes = bridge::DEFAULT_POOL_BYTES;
    let pool = Mapping::new_memfd("pool", bytes)?;
    Span::of_mapping(&pool, 0, bytes).context("the whole pool")?.zero();
    let place = PoolPlace { mapping: pool, offset: 0, bytes, at: DriverAddress(POOL) };
    Ok(CopyMover::new(place, size))
}
