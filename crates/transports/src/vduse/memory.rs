//! The driver's memory, from the entries of the kernel's translation table.
//!
//! With the kernel's own drivers every entry is of one file in which each address is its own
//! offset. That file is shown as one region, bounce pages that do not exist yet included: they
//! appear when the driver uses them, and the daemon needs no word about it. With vhost-vdpa the
//! entries are of the application's own files.
//!
//! A daemon that only needs the buffers gets no such file, which some refuse since it has no size,
//! but a memfd that the kernel was told to copy through in place of pages of its own ([`Pool`]).

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use mem::{Access, DriverAddress, FileCache, Mapping, MemoryMap, Region};
use sys::{VduseDevice, VduseIotlbEntry};
use virtio::DeviceError;

/// `VDUSE_IOVA_SIZE` of the kernel's driver: the largest bounce pool and 128 MiB of rings.
const IOVA_BYTES: u64 = (1 << 30) + (128 << 20);
/// Entries looked at: `max_iotlb_entries` of the kernel's driver.
const MAX_ENTRIES: usize = 2048;

/// How the kernel's file is shown.
#[derive(Clone, Debug)]
pub(super) enum Pool {
    /// As it is, for whoever works on the rings.
    Kernels,
    /// The driver's buffers are in this memfd from address 0 on; the rest is ours only.
    Registered(Arc<Mapping>),
    /// To nobody but us.
    Hidden,
}

impl Pool {
    /// Has the kernel copy through a memfd of `bytes`; `None` if it is too early: the kernel has
    /// no pool before the driver's first request.
    ///
    /// # Errors
    /// It can't be had, mostly because so much memory can't be locked.
    pub(super) fn register(node: &VduseDevice, bytes: u64) -> Result<Option<Self>, DeviceError> {
        let attempt = || {
            let kib = bytes >> 10;
            DeviceError::system(format!(
                "locking {kib} KiB of memory for the pool (raise `ulimit -l` or LimitMEMLOCK= to \
                 that, or make bounce-size= smaller)"
            ))
        };
        sys::raise_lock_limit(bytes);
        let pool = Mapping::new_memfd("viaduct-pool", bytes as usize)?;
        match node.register_pool(&pool) {
            Ok(()) => Ok(Some(Self::Registered(pool))),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(None),
            Err(error) => Err(attempt()(error)),
        }
    }

    /// The regions of the kernel's file.
    fn regions(&self, window: &Arc<Mapping>) -> Result<Vec<Region>, DeviceError> {
        let (from, access, mut regions) = match self {
            Self::Kernels => (0, Access::ReadWrite, Vec::new()),
            Self::Hidden => (0, Access::Ours, Vec::new()),
            Self::Registered(pool) => {
                let (len, both) = (pool.len() as u64, Access::ReadWrite);
                let buffers = Region::mapped(DriverAddress(0), len, both, Arc::clone(pool), 0)?;
                (len, Access::Ours, vec![buffers])
            }
        };
        let rest = IOVA_BYTES.saturating_sub(from);
        let window = Arc::clone(window);
        regions.push(Region::mapped(DriverAddress(from), rest, access, window, from)?);
        Ok(regions)
    }
}

/// The memory as it is now.
///
/// # Errors
/// The device is broken, or memory can't be mapped.
pub(super) fn read(node: &VduseDevice, pool: &Pool) -> Result<MemoryMap, DeviceError> {
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
            Place::Window(window) => return Ok(MemoryMap::new(pool.regions(&window)?)?),
            Place::Region(region) => regions.push(region),
        }
    }
    Ok(MemoryMap::new(regions)?)
}

/// Whether there is memory of the kernel's own drivers, and not an application's.
pub(super) fn is_kernels(node: &VduseDevice) -> Result<bool, DeviceError> {
    let found = node.iotlb_entry(0, u64::MAX);
    let entry = found.map_err(DeviceError::system("asking for the driver's memory"))?;
    let Some(entry) = entry else { return Ok(false) };
    let metadata = File::from(entry.fd).metadata();
    Ok(metadata.map_err(DeviceError::system("looking at the driver's memory"))?.len() == 0)
}

enum Place {
    /// The whole address space is one file.
    Window(Arc<Mapping>),
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
        return Ok(Place::Window(mapping));
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
        let Ok(Place::Window(window)) = placed(entry(0x47ff_e000, 0x2000, 0x47ff_e000, 0)) else {
            panic!("not a window");
        };
        let shown = |pool: Pool| {
            let regions = pool.regions(&window).unwrap();
            let tell = |region: &Region| (region.start.0, region.len, region.access);
            regions.iter().map(tell).collect::<Vec<_>>()
        };
        assert_eq!(shown(Pool::Kernels), [(0, 0x4800_0000, Access::ReadWrite)]);
        assert_eq!(shown(Pool::Hidden), [(0, 0x4800_0000, Access::Ours)]);
        let pool = Mapping::new_memfd("pool", 1 << 20).unwrap();
        let two = [(0, 1 << 20, Access::ReadWrite), (1 << 20, 0x47f0_0000, Access::Ours)];
        assert_eq!(shown(Pool::Registered(pool)), two);
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
