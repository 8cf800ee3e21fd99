//! The client's DMA mappings, and the address space made of them.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use mem::remote::RemoteMemory;
use mem::{
    Access, Backing, DriverAddress, FileCache, MAX_REGIONS, Mapping, MemoryError, MemoryMap, Region,
};
use wire::vfio_user::{DmaMap, DmaUnmap, dma_flags};

/// Errnos of the answers to DMA_MAP and DMA_UNMAP (asm-generic/errno-base.h).
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const ENOMEM: u32 = 12;

/// The mappings, in order of address.
///
/// A virtual IOMMU makes tens of thousands of them, one page each; files are mapped once, whole.
#[derive(Debug)]
pub struct DmaMaps {
    maps: BTreeMap<u64, Map>,
    files: FileCache,
    remote: Arc<dyn RemoteMemory>,
    /// Files that turned out not to be the client's memory but a copy of it.
    copies: Vec<Arc<Mapping>>,
    changed: bool,
    removed: bool,
}

#[derive(Clone, Debug)]
struct Map {
    len: u64,
    access: Access,
    file: Option<(Arc<Mapping>, u64)>,
}

impl DmaMaps {
    pub fn new(remote: Arc<dyn RemoteMemory>) -> Self {
        Self {
            maps: BTreeMap::new(),
            files: FileCache::default(),
            remote,
            copies: Vec::new(),
            changed: false,
            removed: false,
        }
    }

    /// DMA_MAP with or without a descriptor. Mapping the very same range again replaces it.
    pub fn map(&mut self, map: &DmaMap, file: Option<OwnedFd>) -> Result<(), u32> {
        let access = match (map.flags & dma_flags::READ, map.flags & dma_flags::WRITE) {
            (0, 0) => return Err(EINVAL),
            (_, 0) => Access::Read,
            _ => Access::ReadWrite,
        };
        if map.size == 0 || map.address.checked_add(map.size).is_none() {
            return Err(EINVAL);
        }
        let same = self.maps.get(&map.address).is_some_and(|old| old.len == map.size);
        if !same && self.overlaps(map.address, map.size) {
            return Err(EINVAL);
        }
        if !same && self.maps.len() >= MAX_REGIONS {
            return Err(ENOSPC);
        }
        let file = match file {
            None => None,
            Some(fd) => {
                let end = map.offset.checked_add(map.size).ok_or(EINVAL)?;
                match self.files.map(fd, end) {
                    Ok(mapping) => Some((mapping, map.offset)),
                    Err(MemoryError::BeyondFile { .. } | MemoryError::Overflow) => {
                        return Err(EINVAL);
                    }
                    Err(error) => {
                        tracing::warn!(address = %DriverAddress(map.address), %error,
                            "mapping guest memory failed");
                        return Err(ENOMEM);
                    }
                }
            }
        };
        self.removed |= same;
        self.changed = true;
        self.maps.insert(map.address, Map { len: map.size, access, file });
        Ok(())
    }

    fn overlaps(&self, start: u64, len: u64) -> bool {
        let before = self.maps.range(..=start).next_back();
        before.is_some_and(|(at, map)| at + map.len > start)
            || self.maps.range(start..start + len).next().is_some()
    }

    /// DMA_UNMAP. Unknown ranges and ranges far beyond anything are fine: QEMU unmaps what it never
    /// mapped. Of a mapping that is only partly in the range, the rest stays.
    pub fn unmap(&mut self, unmap: &DmaUnmap) -> Result<(), u32> {
        if unmap.flags & !dma_flags::UNMAP_ALL != 0 {
            return Err(EINVAL);
        }
        if unmap.flags & dma_flags::UNMAP_ALL != 0 {
            if unmap.address != 0 || unmap.size != 0 {
                return Err(EINVAL);
            }
            self.changed |= !self.maps.is_empty();
            self.removed |= !self.maps.is_empty();
            self.maps.clear();
            return Ok(());
        }
        let Some(last) = unmap.size.checked_sub(1) else { return Err(EINVAL) };
        let last = unmap.address.saturating_add(last);
        let first = self.maps.range(..unmap.address).next_back();
        let first = first.filter(|(at, map)| *at + map.len > unmap.address).map(|(at, _)| *at);
        let inside = (Bound::Included(unmap.address), Bound::Included(last));
        let hit: Vec<u64> =
            first.into_iter().chain(self.maps.range(inside).map(|(at, _)| *at)).collect();
        for at in hit {
            if let Some(map) = self.maps.remove(&at) {
                self.keep_rest(at, &map, unmap.address, last);
                self.changed = true;
                self.removed = true;
            }
        }
        Ok(())
    }

    /// Puts back what of the mapping at `at` lies before `first` and behind `last`.
    fn keep_rest(&mut self, at: u64, map: &Map, first: u64, last: u64) {
        if at < first {
            self.maps.insert(at, Map { len: first - at, ..map.clone() });
        }
        let end = at + map.len;
        if end - 1 > last {
            let skip = last + 1 - at;
            let file = map.file.as_ref().map(|(file, offset)| (Arc::clone(file), offset + skip));
            self.maps.insert(last + 1, Map { len: end - (last + 1), file, ..*map });
        }
    }

    /// Whether [`DmaMaps::take_changes`] has something new.
    pub fn is_changed(&self) -> bool {
        self.changed
    }

    /// The address space that the mappings make, and whether something was taken away since the
    /// last time.
    pub fn take_changes(&mut self) -> (MemoryMap, bool) {
        self.changed = false;
        let mut regions: Vec<Region> = Vec::with_capacity(self.maps.len());
        for region in self.maps.iter().filter_map(|(at, map)| self.region(*at, map)) {
            if !regions.last_mut().is_some_and(|last| joined(last, &region)) {
                regions.push(region);
            }
        }
        let map = MemoryMap::new(regions).unwrap_or_else(|error| {
            // Ranges were checked one by one when they came.
            tracing::error!(%error, "the client's mappings do not fit together");
            MemoryMap::default()
        });
        (map, std::mem::take(&mut self.removed))
    }

    fn region(&self, at: u64, map: &Map) -> Option<Region> {
        let start = DriverAddress(at);
        match &map.file {
            Some((file, offset)) if !self.copies.iter().any(|copy| Arc::ptr_eq(copy, file)) => {
                Region::mapped(start, map.len, map.access, Arc::clone(file), *offset).ok()
            }
            _ => {
                let backing = Backing::Remote(Arc::clone(&self.remote));
                Some(Region { start, len: map.len, access: map.access, backing })
            }
        }
    }

    /// The mapping is not the client's memory: from now on it is reached by messages.
    pub fn give_up(&mut self, file: &Arc<Mapping>) {
        self.copies.push(Arc::clone(file));
        self.changed = true;
        self.removed = true;
    }

    /// Address, length, file and offset of every mapping with a file that counts as shared.
    pub fn shared(&self) -> impl Iterator<Item = (u64, u64, &Arc<Mapping>, u64)> {
        self.maps.iter().filter_map(|(at, map)| {
            let (file, offset) = map.file.as_ref()?;
            let is_copy = self.copies.iter().any(|copy| Arc::ptr_eq(copy, file));
            (!is_copy).then_some((*at, map.len, file, *offset))
        })
    }
}

/// Makes `last` longer by `next` if that goes on where it ends, in the address space and in the
/// file. Firmware cuts the first megabyte of a machine into many pieces, an IOMMU everything into
/// pages; devices take few regions.
fn joined(last: &mut Region, next: &Region) -> bool {
    let is_next = match (&last.backing, &next.backing) {
        (
            Backing::Mapped { mapping, offset },
            Backing::Mapped { mapping: next_mapping, offset: next_offset },
        ) => Arc::ptr_eq(mapping, next_mapping) && *offset as u64 + last.len == *next_offset as u64,
        (Backing::Remote(_), Backing::Remote(_)) => true,
        _ => false,
    };
    let joins = is_next && last.end() == next.start.0 && last.access == next.access;
    if joins {
        last.len += next.len;
    }
    joins
}
