//! What a device gets of the memory of a driver behind an IOMMU.
//!
//! ```text
//!   driver's addresses   [p3][p7]    [p1]   ...      pages, mapped and unmapped with each request
//!                          |   \\______|___________
//!   file of its memory   [..p1..p3.............p7.]   whole, at an address that stays
//! ```
//!
//! What the driver unmaps is not taken away from the device: a device that must not see more than a
//! request's pages needs copy mode.

use std::sync::Arc;

use mem::{Access, Backing, DriverAddress, Mapping, MemoryMap, Region};
use virtio::DeviceError;

use crate::Mode;

/// A driver without an IOMMU has its memory in larger pieces than this. Behind one the largest are
/// buffers that stay mapped.
const LARGE_BYTES: u64 = 16 << 20;

/// Whether `driver`'s addresses come and go behind an IOMMU.
///
/// Some transports know. Others see what is mapped: without an IOMMU that is all memory there is,
/// and with one a few pages of it, or none while the driver has not set up its queues.
pub(crate) fn is_paged(driver: &MemoryMap) -> bool {
    if driver.is_translated() {
        return true;
    }
    let is_large = |region: &Region| region.len >= LARGE_BYTES || region.access == Access::Ours;
    let is_mapped = |region: &Region| matches!(region.backing, Backing::Mapped { .. });
    let regions = driver.regions();
    if regions.iter().any(|region| is_large(region) || !is_mapped(region)) {
        return false;
    }
    let covered: u64 = regions.iter().map(|region| region.len).sum();
    let whole: usize = files(driver).iter().map(|file| file.len()).sum();
    regions.is_empty() || covered < whole as u64 / 2
}

/// Whether the device gets aliases of `driver`'s memory in this mode.
pub(crate) fn are_needed(mode: Mode, driver: &MemoryMap) -> bool {
    mode == Mode::Translate && is_paged(driver)
}

/// The files in which `driver`'s memory is and those of `known`, which the device has already, with
/// our own memory.
pub(crate) fn add(driver: &MemoryMap, known: &[Region]) -> Result<MemoryMap, DeviceError> {
    if driver.dirty_log().is_some() {
        let why = "the pages a device writes can't be logged behind an IOMMU: use mode=copy";
        return Err(DeviceError::Refused(why.into()));
    }
    let mut regions = known.to_vec();
    for file in files(driver) {
        let start = DriverAddress(file.alias());
        if !regions.iter().any(|known| known.start == start) {
            let len = file.len() as u64;
            regions.push(Region::mapped(start, len, Access::ReadWrite, Arc::clone(file), 0)?);
        }
    }
    Ok(MemoryMap::new(regions)?)
}

/// How many files `driver`'s memory is in.
pub(crate) fn count(driver: &MemoryMap) -> usize {
    files(driver).len()
}

/// The files, of which a driver has a few, each once.
fn files(driver: &MemoryMap) -> Vec<&Arc<Mapping>> {
    let mut files: Vec<&Arc<Mapping>> = Vec::new();
    for region in driver.regions() {
        if let Backing::Mapped { mapping, .. } = &region.backing
            && region.access != Access::Ours
            && !files.iter().any(|known| Arc::ptr_eq(known, mapping))
        {
            files.push(mapping);
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use mem::{DirtyLog, Mapping};

    use super::*;

    fn page(start: u64, mapping: &Arc<Mapping>, offset: u64) -> Region {
        let start = DriverAddress(start);
        Region::mapped(start, 4096, Access::Read, Arc::clone(mapping), offset).unwrap()
    }

    #[test]
    fn a_file_is_there_once_and_stays() {
        let mapping = Mapping::new_memfd("aliases", 1 << 20).unwrap();
        let pages = vec![page(0x1000, &mapping, 0x3000), page(0x9000, &mapping, 0)];
        let driver = MemoryMap::new(pages).unwrap().translated();
        assert!(are_needed(Mode::Translate, &driver) && !are_needed(Mode::Copy, &driver));
        assert_eq!(count(&driver), 1);
        let map = add(&driver, &[]).unwrap();
        let all: Vec<_> = map.regions().iter().map(|r| (r.start.0, r.len)).collect();
        assert_eq!(all, [(mapping.alias(), 1 << 20)]);
        let unmapped = MemoryMap::default().translated();
        assert_eq!(add(&unmapped, map.regions()).unwrap().regions().len(), 1);
        let log = Mapping::new_memfd("log", 4096).unwrap();
        let logged = driver.logged(Some(DirtyLog::new(&log).unwrap()));
        assert!(add(&logged, &[]).is_err());
    }

    #[test]
    fn an_iommu_shows_in_what_is_mapped() {
        let mapping = Mapping::new_memfd("paged", 1 << 20).unwrap();
        let some = |access, bytes| {
            let start = DriverAddress(0x10_0000);
            let region = Region::mapped(start, bytes, access, Arc::clone(&mapping), 0).unwrap();
            MemoryMap::new(vec![region]).unwrap()
        };
        assert!(is_paged(&MemoryMap::default()));
        assert!(is_paged(&some(Access::ReadWrite, 8192)));
        assert!(!is_paged(&some(Access::ReadWrite, 1 << 20)));
        assert!(!is_paged(&some(Access::Ours, 8192)));
        let large = Mapping::new_memfd("large", 4 * LARGE_BYTES as usize).unwrap();
        let start = DriverAddress(0);
        let part = Region::mapped(start, LARGE_BYTES, Access::ReadWrite, large, 0).unwrap();
        assert!(!is_paged(&MemoryMap::new(vec![part]).unwrap()));
    }
}
