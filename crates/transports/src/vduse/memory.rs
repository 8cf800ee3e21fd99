//! The driver's memory, from the entries of the kernel's translation table.
//!
//! With the kernel's own drivers every entry is of one file in which each address is its own
//! offset. That file is shown as one region, bounce pages that do not exist yet included: they
//! appear when the driver uses them, and the daemon needs no word about it. With vhost-vdpa the
//! entries are of the application's own files.

use std::fs::File;
use std::os::fd::OwnedFd;

use mem::{Access, DriverAddress, FileCache, Mapping, MemoryMap, Region};
use sys::{VduseDevice, VduseIotlbEntry};
use virtio::DeviceError;

/// `VDUSE_IOVA_SIZE` of the kernel's driver: the largest bounce pool and 128 MiB of rings.
const IOVA_BYTES: u64 = (1 << 30) + (128 << 20);
/// Entries looked at: `max_iotlb_entries` of the kernel's driver.
const MAX_ENTRIES: usize = 2048;

/// The memory as it is now.
///
/// # Errors
/// The device is broken, or memory can't be mapped.
pub(super) fn read(node: &VduseDevice) -> Result<MemoryMap, DeviceError> {
    let mut regions = Vec::new();
    let mut files = FileCache::default();
    let mut next = Some(0);
    for _ in 0..MAX_ENTRIES {
        let Some(start) = next else { break };
        let found = node.iotlb_entry(start, u64::MAX);
        let Some(entry) = found.map_err(DeviceError::system("asking for the driver's memory"))?
        else {
            break;
        };
        next = entry.last.checked_add(1).filter(|next| *next > start);
        match place(entry, &mut files)? {
            Place::Window(region) => return Ok(MemoryMap::new(vec![region])?),
            Place::Region(region) => regions.push(region),
        }
    }
    Ok(MemoryMap::new(regions)?)
}

enum Place {
    /// The whole address space is one file.
    Window(Region),
    Region(Region),
}

fn place(entry: VduseIotlbEntry, files: &mut FileCache) -> Result<Place, DeviceError> {
    let VduseIotlbEntry { start, last, offset, writable, fd } = entry;
    let len = last.checked_sub(start).and_then(|len| len.checked_add(1));
    let nonsense = || DeviceError::Refused(format!("no range from {start:#x} to {last:#x}"));
    let len = len.ok_or_else(nonsense)?;
    let access = if writable { Access::ReadWrite } else { Access::Read };
    let file = File::from(fd);
    let metadata =
        file.metadata().map_err(DeviceError::system("looking at the driver's memory"))?;
    let file = OwnedFd::from(file);
    if metadata.len() > 0 {
        let end = offset.checked_add(len).ok_or_else(nonsense)?;
        let mapping = files.map(file, end)?;
        return Ok(Place::Region(Region::mapped(
            DriverAddress(start),
            len,
            access,
            mapping,
            offset,
        )?));
    }
    if is_identity(start, last, offset) && writable {
        let mapping = Mapping::of_device_memory(file, 0, IOVA_BYTES as usize)?;
        let region = Region::mapped(DriverAddress(0), IOVA_BYTES, access, mapping, 0)?;
        return Ok(Place::Window(region));
    }
    let bytes = usize::try_from(len).map_err(|_| nonsense())?;
    let mapping = Mapping::of_device_memory(file, offset, bytes)?;
    Ok(Place::Region(Region::mapped(DriverAddress(start), len, access, mapping, 0)?))
}

/// Whether an address is its own offset here, within what the kernel's driver hands out.
fn is_identity(start: u64, last: u64, offset: u64) -> bool {
    offset == start && last < IOVA_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A memfd without bytes looks as the kernel's file does; with bytes, as an application's.
    fn entry(start: u64, len: u64, offset: u64, file_bytes: u64) -> VduseIotlbEntry {
        let file = tempfile::tempfile().unwrap();
        file.set_len(file_bytes).unwrap();
        let last = start.wrapping_add(len).wrapping_sub(1);
        VduseIotlbEntry { start, last, offset, writable: true, fd: file.into() }
    }

    fn placed(entry: VduseIotlbEntry) -> Result<Place, DeviceError> {
        place(entry, &mut FileCache::default())
    }

    #[test]
    fn one_file_of_its_own_addresses_is_one_region() {
        let Ok(Place::Window(region)) = placed(entry(0x47ff_e000, 0x2000, 0x47ff_e000, 0)) else {
            panic!("not a window");
        };
        assert_eq!((region.start.0, region.len), (0, 0x4800_0000));
    }

    #[test]
    fn where_offsets_differ_each_entry_is_a_region() {
        let Ok(Place::Region(region)) = placed(entry(0x47ff_e000, 0x2000, 0x1000, 0)) else {
            panic!("not a region");
        };
        assert_eq!((region.start.0, region.len), (0x47ff_e000, 0x2000));
        let Ok(Place::Region(region)) = placed(entry(0x8000, 0x2000, 0x8000, 0x10000)) else {
            panic!("an application's file is no window");
        };
        assert_eq!((region.start.0, region.len), (0x8000, 0x2000));
    }

    #[test]
    fn entries_that_make_no_sense_are_refused() {
        assert!(placed(entry(0x2000, 0u64.wrapping_sub(0x1000), 0, 0)).is_err(), "backwards");
        assert!(placed(entry(0x8000, 0x2000, 0xf000, 0x10000)).is_err(), "beyond the file");
        assert!(placed(entry(0, 0x2000, u64::MAX - 0x1000, 0x10000)).is_err(), "wraps around");
    }
}
