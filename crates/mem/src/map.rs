use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::remote::RemoteMemory;
use crate::{AddressSpace, DirtyLog, Mapping, Shared, Span, Table};

/// Most regions in one address space. A vIOMMU maps page by page; QEMU's default limit is 65535
/// maps.
pub const MAX_REGIONS: usize = 65_535;

/// An address as the driver writes it into descriptors: guest-physical, or an IOVA behind an IOMMU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DriverAddress(pub u64);

impl std::fmt::Display for DriverAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// What the owner of a region lets us do there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read only.
    Read,
    /// Read and write. (Memory that may only be written, which some IOMMUs know, counts as this.)
    ReadWrite,
    /// Read and write, but by us only: no other process is given it.
    Ours,
}

impl Access {
    pub(crate) fn may_write(self) -> bool {
        self != Self::Read
    }
}

/// What went wrong with an address a peer gave, or with memory we tried to map.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// No region holds this address.
    #[error("address {0} is in no memory region")]
    Unmapped(DriverAddress),
    /// There is no translation yet: ask the IOMMU for it, if there is one, and try again with the
    /// next snapshot.
    #[error("address {0} has no translation yet")]
    Miss(DriverAddress),
    /// The region can only be reached by messages.
    #[error("address {0} is in memory that can't be mapped here")]
    NotMappable(DriverAddress),
    /// A table that does not fit its region, is misaligned, or lies in read-only memory.
    #[error(
        "a ring at {offset:#x} does not fit its memory region, is misaligned, or can't be written"
    )]
    BadTable {
        /// Where the table was to start.
        offset: u64,
    },
    /// The owner of the region does not let us write there.
    #[error("address {0} is in memory that can't be written")]
    ReadOnly(DriverAddress),
    /// An address plus a length beyond 2^64.
    #[error("an address range wraps around")]
    Overflow,
    /// A region that overlaps another one.
    #[error("a memory region at {0} overlaps another one")]
    Overlap(DriverAddress),
    /// A mapping beyond the end of its file.
    #[error("a mapping up to byte {end} of a file of {size} bytes")]
    BeyondFile {
        /// End of the wanted range.
        end: u64,
        /// Size of the file.
        size: u64,
    },
    /// More regions than [`MAX_REGIONS`].
    #[error("too many memory regions")]
    TooManyRegions,
    /// More mappings than [`crate::guard::MAX_GUARDED`].
    #[error("too many memory mappings in this process")]
    TooManyMappings,
    /// The system refused.
    #[error("mapping memory failed: {0}")]
    System(#[from] rustix::io::Errno),
}

/// Where a region's bytes are.
#[derive(Clone, Debug)]
pub enum Backing {
    /// In memory mapped here, from `offset` bytes into the mapping.
    Mapped {
        /// The mapping.
        mapping: Arc<Mapping>,
        /// Offset in bytes of the region's first byte.
        offset: usize,
    },
    /// In memory that is reached by transfers to the same addresses.
    Remote(Arc<dyn RemoteMemory>),
}

/// A range of the driver's address space.
#[derive(Clone, Debug)]
pub struct Region {
    /// First address.
    pub start: DriverAddress,
    /// Length in bytes, not 0.
    pub len: u64,
    /// What we may do there.
    pub access: Access,
    /// Where the bytes are.
    pub backing: Backing,
}

impl Region {
    /// The region `[start, start + len)` backed by `mapping` from `offset` on.
    ///
    /// # Errors
    /// [`MemoryError::Overflow`] or [`MemoryError::BeyondFile`] if the range does not fit.
    pub fn mapped(
        start: DriverAddress,
        len: u64,
        access: Access,
        mapping: Arc<Mapping>,
        offset: u64,
    ) -> Result<Self, MemoryError> {
        let end = offset.checked_add(len).ok_or(MemoryError::Overflow)?;
        start.0.checked_add(len).ok_or(MemoryError::Overflow)?;
        let size = mapping.len() as u64;
        if len == 0 || end > size {
            return Err(MemoryError::BeyondFile { end, size });
        }
        let offset = usize::try_from(offset).map_err(|_| MemoryError::Overflow)?;
        Ok(Self { start, len, access, backing: Backing::Mapped { mapping, offset } })
    }

    /// Address of the first byte behind the region.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start.0 + self.len
    }

    #[inline]
    pub(crate) fn contains(&self, at: DriverAddress) -> bool {
        at.0.wrapping_sub(self.start.0) < self.len
    }
}

/// An immutable snapshot of an address space. Cheap to share; whatever is resolved through it stays
/// valid as long as it is held, whatever happens to the address space meanwhile.
#[derive(Clone, Debug, Default)]
pub struct MemoryMap {
    /// Sorted by `start`, not overlapping, each within its mapping: as `new` has made sure.
    regions: Vec<Region>,
    generation: u64,
    /// Whether unknown addresses may become known: there is an IOMMU to ask.
    translated: bool,
    dirty_log: Option<Arc<DirtyLog>>,
    /// Whether the address space has a newer snapshot than this one.
    superseded: Arc<AtomicBool>,
}

impl MemoryMap {
    /// A snapshot of these regions, in any order.
    ///
    /// # Errors
    /// [`MemoryError::Overlap`], [`MemoryError::Overflow`] or [`MemoryError::TooManyRegions`].
    pub fn new(mut regions: Vec<Region>) -> Result<Self, MemoryError> {
        if regions.len() > MAX_REGIONS {
            return Err(MemoryError::TooManyRegions);
        }
        regions.sort_by_key(|region| region.start);
        for region in &regions {
            region.start.0.checked_add(region.len).ok_or(MemoryError::Overflow)?;
            if let Backing::Mapped { mapping, offset } = &region.backing {
                // `span_of` relies on it, and whoever fills in a `Region` may err.
                let end = (*offset as u64).checked_add(region.len).ok_or(MemoryError::Overflow)?;
                let size = mapping.len() as u64;
                if end > size {
                    return Err(MemoryError::BeyondFile { end, size });
                }
            }
        }
        if let Some(pair) = regions.windows(2).find(|pair| pair[0].end() > pair[1].start.0) {
            return Err(MemoryError::Overlap(pair[1].start));
        }
        Ok(Self { regions, ..Self::default() })
    }

    /// The same with unknown addresses reported as [`MemoryError::Miss`], for an IOMMU that fills
    /// the map on demand.
    #[must_use]
    pub fn translated(mut self) -> Self {
        self.translated = true;
        self
    }

    /// The same with every write recorded in `log`.
    #[must_use]
    pub fn logged(mut self, log: Option<Arc<DirtyLog>>) -> Self {
        self.dirty_log = log;
        self
    }

    pub(crate) fn at_generation(mut self, generation: u64) -> Self {
        self.generation = generation;
        self.superseded = Arc::default();
        self
    }

    /// Says that there is a newer snapshot.
    pub(crate) fn supersede(&self) {
        // Release: pairs with the load in `unknown`.
        self.superseded.store(true, Ordering::Release);
    }

    /// The regions in order of address.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Counts the changes of the address space; snapshots of the same generation are equal.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether unknown addresses may become known later.
    #[must_use]
    pub fn is_translated(&self) -> bool {
        self.translated
    }

    /// The log of written pages, during a migration.
    #[must_use]
    #[inline]
    pub fn dirty_log(&self) -> Option<&Arc<DirtyLog>> {
        self.dirty_log.as_ref()
    }

    /// Records that `[at, at + len)` was written, if anybody wants to know.
    #[inline]
    pub fn mark_dirty(&self, at: DriverAddress, len: u64) {
        if let Some(log) = &self.dirty_log {
            log.mark(at, len);
        }
    }

    /// Whether some region's backing file was cut under us.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.regions.iter().any(|region| match &region.backing {
            Backing::Mapped { mapping, .. } => mapping.is_poisoned(),
            Backing::Remote(_) => false,
        })
    }

    /// Index of the region that holds `at`.
    #[inline]
    pub(crate) fn find(&self, at: DriverAddress) -> Result<usize, MemoryError> {
        let after = self.regions.partition_point(|region| region.start <= at);
        match after.checked_sub(1).filter(|&index| self.regions[index].contains(at)) {
            Some(index) => Ok(index),
            None => Err(self.unknown(at)),
        }
    }

    /// What is wrong with an address in no region.
    ///
    /// A queue may begin a batch, the driver map a page behind a virtual IOMMU and make it
    /// available, and the queue find it in that same batch. The page is in the next snapshot then,
    /// and the address no fault.
    #[cold]
    fn unknown(&self, at: DriverAddress) -> MemoryError {
        // Acquire: pairs with the store in `supersede`. A driver makes a page available after it
        // was told that it is mapped, which is after that store.
        if self.translated || self.superseded.load(Ordering::Acquire) {
            MemoryError::Miss(at)
        } else {
            MemoryError::Unmapped(at)
        }
    }

    /// The region that holds `at`.
    ///
    /// # Errors
    /// [`MemoryError::Unmapped`] or [`MemoryError::Miss`].
    pub fn region(&self, at: DriverAddress) -> Result<&Region, MemoryError> {
        self.find(at).map(|index| &self.regions[index])
    }

    /// The longest span of at most `len` bytes at `at` that lies in one region. A buffer may cross
    /// into the next region: callers ask again for the rest.
    ///
    /// # Errors
    /// [`MemoryError::Unmapped`], [`MemoryError::Miss`], [`MemoryError::NotMappable`],
    /// [`MemoryError::Overflow`].
    pub fn span(&self, at: DriverAddress, len: u64) -> Result<Span<'_>, MemoryError> {
        self.span_near(&mut 0, at, len)
    }

    /// As [`MemoryMap::span`], and `hint` remembers the region for the next call: consecutive
    /// buffers mostly lie in the same one.
    ///
    /// # Errors
    /// As [`MemoryMap::span`].
    #[inline]
    pub fn span_near(
        &self,
        hint: &mut usize,
        at: DriverAddress,
        len: u64,
    ) -> Result<Span<'_>, MemoryError> {
        match self.regions.get(*hint).and_then(|region| self.span_of(region, at, len)) {
            Some(span) => Ok(span),
            None => self.span_elsewhere(hint, at, len),
        }
    }

    /// The usual case: all of the bytes are in `region`.
    #[inline]
    fn span_of<'m>(&'m self, region: &'m Region, at: DriverAddress, len: u64) -> Option<Span<'m>> {
        let Backing::Mapped { mapping, offset } = &region.backing else { return None };
        let skip = at.0.wrapping_sub(region.start.0);
        if skip >= region.len || len > region.len - skip {
            return None;
        }
        // SAFETY: the region lies in its mapping, which `new` has checked, and the bytes lie in the
        // region; so nothing is beyond the mapping's length, and nothing wraps around.
        let span = unsafe { Span::within(mapping, offset + skip as usize, len as usize) };
        Some(span.with_origin(self, at, region.access.may_write()))
    }

    #[cold]
    #[inline(never)]
    fn span_elsewhere(
        &self,
        hint: &mut usize,
        at: DriverAddress,
        len: u64,
    ) -> Result<Span<'_>, MemoryError> {
        *hint = self.find(at)?;
        let region = &self.regions[*hint];
        if at.0.checked_add(len).is_none() {
            return Err(MemoryError::Overflow);
        }
        let len = len.min(region.len - (at.0 - region.start.0));
        self.span_of(region, at, len).ok_or(MemoryError::NotMappable(at))
    }

    /// A table of `len` entries at `at`, which must lie in one writable region.
    ///
    /// # Errors
    /// As [`MemoryMap::span`], and [`MemoryError::BadTable`].
    pub fn table<T: Shared>(&self, at: DriverAddress, len: usize) -> Result<Table<T>, MemoryError> {
        let region = self.region(at)?;
        let bytes = len.checked_mul(size_of::<T>()).ok_or(MemoryError::Overflow)? as u64;
        let skip = at.0 - region.start.0;
        let Backing::Mapped { mapping, offset } = &region.backing else {
            return Err(MemoryError::NotMappable(at));
        };
        if bytes > region.len - skip || !region.access.may_write() {
            return Err(MemoryError::BadTable { offset: at.0 });
        }
        mapping.table(offset + skip as usize, len)
    }

    /// Copies the bytes at `at` into `into`, across regions.
    ///
    /// # Errors
    /// As [`MemoryMap::span`]; part of the bytes may have been copied.
    pub fn read(&self, at: DriverAddress, into: &mut [u8]) -> Result<(), MemoryError> {
        let mut done = 0;
        while done < into.len() {
            let rest = &mut into[done..];
            let here = DriverAddress(at.0.checked_add(done as u64).ok_or(MemoryError::Overflow)?);
            done += self.span(here, rest.len() as u64)?.copy_to(rest);
        }
        Ok(())
    }

    /// Copies `from` to `at`, across regions.
    ///
    /// # Errors
    /// As [`MemoryMap::span`], and [`MemoryError::BadTable`] for read-only memory; part may have
    /// been written.
    pub fn write(&self, at: DriverAddress, from: &[u8]) -> Result<(), MemoryError> {
        let mut done = 0;
        while done < from.len() {
            let rest = &from[done..];
            let here = DriverAddress(at.0.checked_add(done as u64).ok_or(MemoryError::Overflow)?);
            match self.span(here, rest.len() as u64)?.copy_from(rest) {
                0 => return Err(MemoryError::BadTable { offset: here.0 }),
                n => done += n,
            }
        }
        Ok(())
    }
}

/// A snapshot with a memory of the last region hit: one queue's view of the address space.
///
/// Consecutive buffers mostly lie in the same region, so the number of regions does not matter.
#[derive(Debug)]
pub struct Resolver {
    map: Arc<MemoryMap>,
    last: usize,
}

impl Resolver {
    /// Resolves through `map`.
    #[must_use]
    pub fn new(map: Arc<MemoryMap>) -> Self {
        Self { map, last: 0 }
    }

    /// The snapshot in use.
    #[must_use]
    #[inline]
    pub fn map(&self) -> &Arc<MemoryMap> {
        &self.map
    }

    /// Takes up the current snapshot of `space` if it has changed; returns whether it had.
    #[inline]
    pub fn refresh(&mut self, space: &AddressSpace) -> bool {
        if space.generation() == self.map.generation() {
            return false;
        }
        self.map = space.current();
        self.last = 0;
        true
    }

    /// Whether `[at, at + len)` lies in the region that was hit last, and may be written if that is
    /// wanted: the usual case of a check, for a few instructions. False says nothing.
    #[inline]
    #[must_use]
    pub fn is_in_last(&self, at: DriverAddress, len: u32, writable: bool) -> bool {
        self.map.regions.get(self.last).is_some_and(|region| {
            let skip = at.0.wrapping_sub(region.start.0);
            skip < region.len
                && u64::from(len) <= region.len - skip
                && (!writable || region.access.may_write())
                && matches!(region.backing, Backing::Mapped { .. })
        })
    }

    /// As [`MemoryMap::span`].
    ///
    /// # Errors
    /// As [`MemoryMap::span`].
    #[inline]
    pub fn span(&mut self, at: DriverAddress, len: u64) -> Result<Span<'_>, MemoryError> {
        self.map.span_near(&mut self.last, at, len)
    }
}
