use std::sync::Arc;

use mem::{Access, DriverAddress, Mapping, MemoryError, MemoryMap, Region};
use virtio::{Features, QueueSetup};
use virtqueue::{IndirectArea, QueueAddresses, QueuePosition, QueueSpec, RingFormat, ring_layout};

use crate::PoolPlace;

/// Where our memory begins in the device's address space if nothing is in the way: above the
/// guest-physical addresses of any machine, below the end of what IOMMUs translate.
const LOWEST: u64 = 1 << 46;

/// Areas begin at pages of this size.
const PAGE_BYTES: usize = 4096;

/// Indirect tables per queue: as many requests of several buffers can be with the device even if
/// each fills the queue.
const TABLES: u16 = 64;

/// Entries of each: a Linux block request has 126 or 254 buffers, a longer chain goes without a
/// table.
const TABLE_ENTRIES: u16 = 128;

/// The memory in which the device finds our rings, indirect tables and pools: one file, so that it
/// takes up one of the device's regions only. What no queue uses is never touched and costs
/// nothing.
#[derive(Debug)]
pub(crate) struct Arena {
    mapping: Arc<Mapping>,
    start: DriverAddress,
    map: Arc<MemoryMap>,
    places: Vec<Place>,
}

/// What belongs to one queue, as offsets.
#[derive(Clone, Copy, Debug)]
struct Place {
    size: u16,
    rings: usize,
    tables: usize,
    pool: usize,
}

/// Where the areas of a ring lie, the driver area first and the descriptors last: of those a queue
/// with little under way uses the first only, which so share a page with the other areas.
struct RingPlaces {
    device: usize,
    descriptor: usize,
    end: usize,
}

impl RingPlaces {
    fn new(format: RingFormat, size: u16) -> Self {
        /// Two lines, which processors fetch together: each side writes areas of its own.
        const APART: usize = 128;
        let layout = ring_layout(format, size);
        let device = layout.driver_bytes.next_multiple_of(APART);
        let descriptor = (device + layout.device_bytes).next_multiple_of(APART);
        Self { device, descriptor, end: descriptor + layout.descriptor_bytes }
    }
}

impl Arena {
    /// Memory for queues of at most these sizes with pools of `pool_bytes` (0 for none), at an
    /// address that is free in
    /// `driver`'s memory.
    pub(crate) fn new(
        sizes: &[u16],
        pool_bytes: usize,
        driver: &MemoryMap,
    ) -> Result<Self, MemoryError> {
        let mut places = Vec::with_capacity(sizes.len());
        let mut end = 0;
        for &size in sizes {
            let rings = end;
            let split = RingPlaces::new(RingFormat::Split, size).end;
            let packed = RingPlaces::new(RingFormat::Packed, size).end;
            let tables = (rings + split.max(packed)).next_multiple_of(PAGE_BYTES);
            let pool =
                (tables + tables_for(size, DriverAddress(0)).bytes()).next_multiple_of(PAGE_BYTES);
            end = pool + pool_bytes;
            places.push(Place { size, rings, tables, pool });
        }
        let mapping = Mapping::new_memfd("viaduct-rings", end.max(PAGE_BYTES))?;
        let start = free_address(driver, mapping.len() as u64)?;
        let region = Self::region_at(&mapping, start)?;
        let map = Arc::new(MemoryMap::new(vec![region])?);
        Ok(Self { mapping, start, map, places })
    }

    fn region_at(mapping: &Arc<Mapping>, start: DriverAddress) -> Result<Region, MemoryError> {
        let len = mapping.len() as u64;
        Region::mapped(start, len, Access::ReadWrite, Arc::clone(mapping), 0)
    }

    /// The region as the device gets it.
    pub(crate) fn region(&self) -> Region {
        self.map.regions()[0].clone()
    }

    /// A map of this memory alone.
    pub(crate) fn map(&self) -> &Arc<MemoryMap> {
        &self.map
    }

    /// The largest size of a queue there is room for.
    pub(crate) fn size(&self, index: u16) -> u16 {
        self.places[usize::from(index)].size
    }

    /// Our ring towards the device for a queue the driver has set up.
    pub(crate) fn ring(
        &self,
        setup: &QueueSetup,
        given: Features,
    ) -> (QueueSpec, Option<IndirectArea>) {
        let packed = given.has(Features::RING_PACKED);
        let format = if packed { RingFormat::Packed } else { RingFormat::Split };
        let most = self.size(setup.index);
        let indirect = given.has(Features::INDIRECT_DESC);
        // Indirect chains of the driver take up a descriptor per buffer in our ring if the device
        // has no tables.
        let unfolds = setup.spec.indirect && !indirect;
        let mut size = if unfolds { most } else { setup.spec.size.min(most) };
        if !packed {
            size = size.checked_next_power_of_two().filter(|&s| s <= most).unwrap_or(most);
        }
        let mut spec = self.spec(setup.index, size, format);
        spec.indirect = indirect;
        spec.event_idx = given.has(Features::EVENT_IDX);
        spec.in_order = given.has(Features::IN_ORDER);
        (spec, indirect.then(|| self.tables(setup.index)))
    }

    /// A fresh ring towards the device, with no features; its size at most [`Arena::size`].
    fn spec(&self, index: u16, size: u16, format: RingFormat) -> QueueSpec {
        let places = RingPlaces::new(format, size);
        let at = |offset| self.address(self.places[usize::from(index)].rings + offset);
        let addresses = QueueAddresses {
            descriptor: at(places.descriptor),
            driver: at(0),
            device: at(places.device),
        };
        QueueSpec {
            size,
            format,
            indirect: false,
            event_idx: false,
            in_order: false,
            addresses,
            start_at: QueuePosition::start(format),
        }
    }

    /// The queue's indirect tables.
    pub(crate) fn tables(&self, index: u16) -> IndirectArea {
        let place = self.places[usize::from(index)];
        tables_for(place.size, self.address(place.tables))
    }

    /// The queue's pool, of as many bytes as this memory was made for.
    pub(crate) fn pool(&self, index: u16, bytes: usize) -> PoolPlace {
        let offset = self.places[usize::from(index)].pool;
        let at = self.address(offset);
        PoolPlace { mapping: Arc::clone(&self.mapping), offset, bytes, at }
    }

    fn address(&self, offset: usize) -> DriverAddress {
        DriverAddress(self.start.0 + offset as u64)
    }
}

fn tables_for(size: u16, at: DriverAddress) -> IndirectArea {
    IndirectArea { at, tables: size.min(TABLES), entries: size.min(TABLE_ENTRIES) }
}

/// A place for `len` bytes that no region of `map` touches: at [`LOWEST`] or behind the last
/// region, or else in a gap.
fn free_address(map: &MemoryMap, len: u64) -> Result<DriverAddress, MemoryError> {
    let align = |at: u64| at.checked_next_multiple_of(1 << 30);
    let fits = |from: u64, to: u64| from.checked_add(len).is_some_and(|end| end <= to);
    let mut from = LOWEST;
    for region in map.regions() {
        if region.end() <= from {
            continue;
        }
        if fits(from, region.start.0) {
            return Ok(DriverAddress(from));
        }
        match align(region.end()) {
            Some(next) => from = next,
            None => return free_address_below(map, len),
        }
    }
    if fits(from, u64::MAX) { Ok(DriverAddress(from)) } else { free_address_below(map, len) }
}

/// The lowest gap, for a driver with memory at the very top.
fn free_address_below(map: &MemoryMap, len: u64) -> Result<DriverAddress, MemoryError> {
    let mut from: u64 = 1 << 30;
    for region in map.regions() {
        if from.checked_add(len).is_some_and(|end| end <= region.start.0) {
            return Ok(DriverAddress(from));
        }
        let next = region.end().checked_next_multiple_of(1 << 30).ok_or(MemoryError::Overflow)?;
        from = from.max(next);
    }
    Err(MemoryError::Overflow)
}

#[cfg(test)]
mod tests {
    use mem::remote::{RemoteChannel, RemoteError, RemoteMemory};

    use super::*;

    /// Memory that is as large as it is said to be, and nowhere.
    #[derive(Debug)]
    struct Nowhere;

    impl RemoteMemory for Nowhere {
        fn open(&self) -> Result<Box<dyn RemoteChannel>, RemoteError> {
            Err(RemoteError::Closed)
        }
    }

    fn map(ranges: &[(u64, u64)]) -> MemoryMap {
        let region = |&(start, len)| Region {
            start: DriverAddress(start),
            len,
            access: Access::ReadWrite,
            backing: mem::Backing::Remote(Arc::new(Nowhere)),
        };
        MemoryMap::new(ranges.iter().map(region).collect()).unwrap()
    }

    #[test]
    fn our_memory_overlaps_nothing() {
        let top = u64::MAX - (1 << 20);
        for ranges in [
            &[][..],
            &[(0, 1 << 40)],
            &[(LOWEST, 1 << 20)],
            &[(0, 4096), (LOWEST + 4096, 4096), (LOWEST + (2 << 30), 4096)],
            &[(4096, 4096), (top, 1 << 20)],
            &[(LOWEST - 4096, top - LOWEST)],
        ] {
            let map = map(ranges);
            let at = free_address(&map, 1 << 28).unwrap().0;
            let ends = at + (1 << 28);
            assert!(
                map.regions().iter().all(|r| r.end() <= at || r.start.0 >= ends),
                "{ranges:x?}"
            );
        }
    }

    #[test]
    fn queues_have_room_of_their_own() {
        let arena = Arena::new(&[1, 0, 100, 1024], 1 << 20, &MemoryMap::default()).unwrap();
        for (index, size) in [(0, 1), (2, 100), (3, 1024)] {
            for format in [RingFormat::Split, RingFormat::Packed] {
                let (spec, layout) = (arena.spec(index, size, format), ring_layout(format, size));
                let QueueAddresses { descriptor, driver, device } = spec.addresses;
                assert!(driver.0 + layout.driver_bytes as u64 <= device.0);
                assert!(device.0 + layout.device_bytes as u64 <= descriptor.0);
                let end = descriptor.0 + layout.descriptor_bytes as u64;
                assert!(end <= arena.tables(index).at.0);
                assert!(spec.check().is_ok() || !size.is_power_of_two());
            }
            let tables = arena.tables(index);
            assert!(tables.at.0 + tables.bytes() as u64 <= arena.pool(index, 1 << 20).at.0);
        }
        assert!(
            arena.pool(2, 1 << 20).at.0 + (1 << 20)
                <= arena.spec(3, 8, RingFormat::Split).addresses.descriptor.0
        );
    }
}
