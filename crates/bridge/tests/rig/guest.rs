use std::sync::Arc;

use mem::{Access, AddressSpace, DriverAddress, Mapping, MemoryMap, Region};

/// Where the driver's memory begins.
pub const POISON: u64 = 0x7_0000_0000;
/// Rings and indirect tables, at the beginning.
pub const RINGS_BYTES: u64 = 4 << 20;
/// Data, in two regions that touch each other.
pub const DATA: u64 = POISON + RINGS_BYTES;
pub const DATA_BYTES: u64 = 16 << 20;

/// A driver's memory: a region for rings, two adjoining ones for data.
pub struct Guest {
    pub space: Arc<AddressSpace>,
    /// The same, always mapped: how the driver itself sees it.
    pub own: Arc<MemoryMap>,
}

impl Guest {
    pub fn new(_remote: bool) -> Self {
        let rings = Mapping::new_memfd("rings", RINGS_BYTES as usize).unwrap();
        let low = Mapping::new_memfd("low", DATA_BYTES as usize / 2).unwrap();
        let high = Mapping::new_memfd("high", DATA_BYTES as usize / 2).unwrap();
        let region = |start, mapping: &Arc<Mapping>| {
            let len = mapping.len() as u64;
            let start = DriverAddress(start);
            Region::mapped(start, len, Access::ReadWrite, Arc::clone(mapping), 0).unwrap()
        };
        let regions =
            vec![region(POISON, &rings), region(DATA, &low), region(DATA + DATA_BYTES / 2, &high)];
        let map = MemoryMap::new(regions).unwrap();
        let space = Arc::new(AddressSpace::new(map));
        let own = space.current();
        Self { space, own }
    }
}
