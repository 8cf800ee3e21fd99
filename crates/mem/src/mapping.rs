use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock, Weak};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::guard::Guard;
use crate::{MemoryError, Shared, Table};

/// A name for a place in this process that does not say where it is: others had better not know.
#[inline]
pub(crate) fn alias_of(place: NonNull<u8>) -> u64 {
    /// Whole pages below 2^46, so that nothing wraps: places are below 2^47.
    const MASK: u64 = (1 << 46) - (1 << 12);
    static BIAS: OnceLock<u64> = OnceLock::new();
    let bias = BIAS.get_or_init(|| RandomState::new().build_hasher().finish() & MASK);
    place.addr().get() as u64 + bias
}

/// One `mmap` of a file or of anonymous memory, unmapped when the last user lets go.
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
    /// What `munmap` gets: the range widened to whole pages.
    mapped: (NonNull<u8>, usize),
    file: Option<(OwnedFd, u64)>,
    writable: bool,
    guard: Option<Guard>,
}

// SAFETY: the mapping is plain memory reached only through atomics and raw copies; nothing is tied
// to a thread.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `file` from byte `offset`, shared with whoever else has the file.
    ///
    /// The file must be at least `offset + len` bytes long now; if it shrinks later the mapping is
    /// poisoned, see [`Mapping::is_poisoned`]. `offset` need not be page-aligned. Falls back to
    /// read-only if the file can't be written.
    ///
    /// # Errors
    /// [`MemoryError::BeyondFile`], [`MemoryError::TooManyMappings`], or the system's refusal.
    pub fn of_file(file: OwnedFd, offset: u64, len: usize) -> Result<Arc<Self>, MemoryError> {
        let end = offset.checked_add(len as u64).ok_or(MemoryError::Overflow)?;
        let stat = rustix::fs::fstat(&file)?;
        if len == 0 || end > stat.st_size as u64 {
            return Err(MemoryError::BeyondFile { end, size: stat.st_size as u64 });
        }
        Self::map(file, offset, len)
    }

    /// Maps `len` bytes of a device's memory from byte `offset`: a file that says it has no bytes
    /// at all and can be mapped all the same (the IOVA space of a VDUSE device, linux/vduse.h,
    /// VDUSE_IOTLB_GET_FD).
    ///
    /// Which pages exist only the kernel's driver knows, so nothing is checked here: touching one
    /// that is not there poisons the mapping, as for a file that was cut.
    ///
    /// # Errors
    /// [`MemoryError::Overflow`], [`MemoryError::TooManyMappings`], or the system's refusal.
    pub fn of_device_memory(
        file: OwnedFd,
        offset: u64,
        len: usize,
    ) -> Result<Arc<Self>, MemoryError> {
        if len == 0 {
            return Err(MemoryError::BeyondFile { end: offset, size: 0 });
        }
        offset.checked_add(len as u64).ok_or(MemoryError::Overflow)?;
        Self::map(file, offset, len)
    }

    fn map(file: OwnedFd, offset: u64, len: usize) -> Result<Arc<Self>, MemoryError> {
        let page = page_size_of(&file)?;
        let below = (offset % page) as usize;
        let whole = (len + below).next_multiple_of(page as usize);
        let both = ProtFlags::READ | ProtFlags::WRITE;
        let (start, writable) = match map_file(&file, offset - below as u64, whole, both) {
            Ok(start) => (start, true),
            Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => {
                (map_file(&file, offset - below as u64, whole, ProtFlags::READ)?, false)
            }
            Err(error) => return Err(error.into()),
        };
        let guard = Guard::new(start.as_ptr() as usize, whole);
        // SAFETY: below < page <= whole, so the pointer stays inside the mapping just made.
        let base = unsafe { start.add(below) };
        let mapped = (start, whole);
        let mapping = Self { base, len, mapped, file: Some((file, offset)), writable, guard };
        if mapping.guard.is_none() {
            return Err(MemoryError::TooManyMappings);
        }
        Ok(Arc::new(mapping))
    }

    /// Fresh zeroed memory of `len` bytes (rounded up to pages) that can be passed to another
    /// process: a memfd called `name` in `/proc`, sealed so that nobody can shrink it under us.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn new_memfd(name: &str, len: usize) -> Result<Arc<Self>, MemoryError> {
        let len = len.next_multiple_of(rustix::param::page_size());
        let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&fd, len as u64)?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Self::of_file(fd, 0, len)
    }

    /// An address that no other mapping of this process has: where other processes are told that
    /// it is.
    #[must_use]
    pub fn alias(&self) -> u64 {
        alias_of(self.base)
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the mapping has no bytes; never true.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether we may write to it.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Whether the backing file was cut under us: the content is zeros now and the session must
    /// end.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.guard.as_ref().is_some_and(Guard::is_poisoned)
    }

    /// The mapped file and the offset in it of the mapping's first byte.
    #[must_use]
    pub fn file(&self) -> Option<(BorrowedFd<'_>, u64)> {
        self.file.as_ref().map(|(fd, offset)| (fd.as_fd(), *offset))
    }

    /// A table of `len` entries at `offset` bytes.
    ///
    /// # Errors
    /// [`MemoryError::BadTable`] if it does not fit, is misaligned, or the mapping is read-only.
    pub fn table<T: Shared>(
        self: &Arc<Self>,
        offset: usize,
        len: usize,
    ) -> Result<Table<T>, MemoryError> {
        #[cfg(not(loom))]
        return Table::new(self, offset, len)
            .ok_or(MemoryError::BadTable { offset: offset as u64 });
        #[cfg(loom)]
        return Err(MemoryError::BadTable { offset: (offset + len) as u64 });
    }

    /// Where the first byte is in this process, for system calls that want to know.
    #[must_use]
    pub fn address(&self) -> usize {
        self.base.as_ptr() as usize
    }

    /// Pointer to the first byte.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // The guard's slot must be free before the addresses can be reused by another mapping.
        self.guard = None;
        let (start, len) = self.mapped;
        // SAFETY: exactly the range that mmap returned; nobody holds a pointer into it, since every
        // table, span and snapshot keeps or borrows the `Arc` whose last holder we are.
        let result = unsafe { rustix::mm::munmap(start.as_ptr().cast(), len) };
        debug_assert!(result.is_ok(), "munmap of our own mapping");
    }
}

impl std::fmt::Debug for Mapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mapping")
            .field("len", &self.len)
            .field("writable", &self.writable)
            .finish_non_exhaustive()
    }
}

fn map_file(
    file: &OwnedFd,
    offset: u64,
    len: usize,
    protection: ProtFlags,
) -> Result<NonNull<u8>, rustix::io::Errno> {
    let flags = MapFlags::SHARED | MapFlags::NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
    let start =
        unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, protection, flags, file, offset) }?;
    NonNull::new(start.cast()).ok_or(rustix::io::Errno::NOMEM)
}

/// The page size a mapping of `file` must respect: that of the huge page pool for hugetlbfs, else
/// the machine's.
fn page_size_of(file: &OwnedFd) -> Result<u64, MemoryError> {
    /// `HUGETLBFS_MAGIC` of linux/magic.h.
    const HUGETLBFS: u64 = 0x958458f6;
    let stat = rustix::fs::fstatfs(file)?;
    if stat.f_type as u64 == HUGETLBFS {
        Ok(stat.f_bsize as u64)
    } else {
        Ok(rustix::param::page_size() as u64)
    }
}

/// Maps each file once, whole, however many ranges of it a peer registers.
///
/// A virtual IOMMU makes a VMM register tens of thousands of 4 KiB ranges of one file, each with a
/// descriptor of its own; files are told apart by device and inode number.
#[derive(Debug, Default)]
pub struct FileCache {
    files: HashMap<(u64, u64), Weak<Mapping>>,
}

impl FileCache {
    /// The mapping of the whole file, made now or earlier. A file that has grown since is mapped
    /// anew; memory of a device ([`Mapping::of_device_memory`]) always is, up to `end`.
    ///
    /// # Errors
    /// As [`Mapping::of_file`], with `end` the byte after the range the caller wants.
    pub fn map(&mut self, file: OwnedFd, end: u64) -> Result<Arc<Mapping>, MemoryError> {
        let stat = rustix::fs::fstat(&file)?;
        let size = stat.st_size as u64;
        if size == 0 && !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
            let len = usize::try_from(end).map_err(|_| MemoryError::Overflow)?;
            return Mapping::of_device_memory(file, 0, len);
        }
        if end > size {
            return Err(MemoryError::BeyondFile { end, size });
        }
        let key = (stat.st_dev, stat.st_ino);
        if let Some(mapping) = self.files.get(&key).and_then(Weak::upgrade)
            && mapping.len() as u64 >= end
            && !mapping.is_poisoned()
        {
            return Ok(mapping);
        }
        let len = usize::try_from(size).map_err(|_| MemoryError::Overflow)?;
        let mapping = Mapping::of_file(file, 0, len)?;
        self.files.retain(|_, mapping| mapping.strong_count() > 0);
        self.files.insert(key, Arc::downgrade(&mapping));
        Ok(mapping)
    }
}
