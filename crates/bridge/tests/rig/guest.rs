use std::fs::File;
use std::sync::Arc;

use mem::remote::RemoteMemory;
use mem::{Access, AddressSpace, Backing, DriverAddress, Mapping, MemoryMap, Region};

use super::link::FakeRemote;

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
    /// The link, if part of it is behind one.
    pub link: FakeRemote,
}

impl Guest {
    /// Memory that is mapped, or of which the rings and half of the data are behind a link.
    pub fn new(remote: bool) -> Self {
        let rings = Mapping::new_memfd("rings", RINGS_BYTES as usize).unwrap();
        let low = Mapping::new_memfd("low", DATA_BYTES as usize / 2).unwrap();
        let high = Mapping::new_memfd("high", DATA_BYTES as usize / 2).unwrap();
        Self::of([rings, low, high], remote)
    }

    /// Memory in files that can be cut: for the rings, for the lower and the upper half of the
    /// data.
    pub fn on_files() -> (Self, [File; 3]) {
        let lengths = [RINGS_BYTES, DATA_BYTES / 2, DATA_BYTES / 2];
        let files = lengths.map(|len| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(len).unwrap();
            file
        });
        let mappings = files.each_ref().map(|file| {
            let len = file.metadata().unwrap().len() as usize;
            Mapping::of_file(file.try_clone().unwrap().into(), 0, len).unwrap()
        });
        (Self::of(mappings, false), files)
    }

    fn of([rings, low, high]: [Arc<Mapping>; 3], remote: bool) -> Self {
        let region = |start, mapping: &Arc<Mapping>| {
            let len = mapping.len() as u64;
            let start = DriverAddress(start);
            Region::mapped(start, len, Access::ReadWrite, Arc::clone(mapping), 0).unwrap()
        };
        let regions =
            vec![region(POISON, &rings), region(DATA, &low), region(DATA + DATA_BYTES / 2, &high)];
        let own = Arc::new(MemoryMap::new(regions.clone()).unwrap());
        let link = FakeRemote::new(Arc::clone(&own));
        let backing: Arc<dyn RemoteMemory> = Arc::new(link.clone());
        let far = |mut region: Region| {
            region.backing = Backing::Remote(Arc::clone(&backing));
            region
        };
        // The upper half of the data stays mapped, as video memory might.
        let far =
            |region: Region| if region.end() < DATA + DATA_BYTES { far(region) } else { region };
        let shown = if remote { regions.into_iter().map(far).collect() } else { regions };
        let space = Arc::new(AddressSpace::new(MemoryMap::new(shown).unwrap()));
        Self { space, own, link }
    }
}
