//! What a model knows of host memory, and the messages that bring it up to date.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use mem::{Access, Backing, Mapping, MemoryMap, Region};
use wire::cosim::{MAX_FDS, MAX_REGIONS_PER_MESSAGE, MemoryChange, REMOTE_FILE, RegionShape};

/// The memory that a model was told of.
#[derive(Debug, Default)]
pub struct Told {
    regions: BTreeMap<u64, RegionShape>,
    /// Files whose descriptors the model has, with their numbers.
    files: Vec<(u32, Arc<Mapping>)>,
    next_file: u32,
    next_number: u64,
}

/// A message and the descriptors that go with it.
pub type Change = (MemoryChange, Vec<OwnedFd>);

impl Told {
    /// The messages after which the model knows `map`, and nothing else. With `direct` unset it is
    /// told of the addresses alone.
    pub fn changes(&mut self, map: &MemoryMap, direct: bool) -> Vec<Change> {
        let mut wanted = BTreeMap::new();
        let mut fresh = Vec::new();
        for region in map.regions() {
            let shape = self.shape(region, direct, &mut fresh);
            wanted.insert(shape.start, shape);
        }
        let old = std::mem::replace(&mut self.regions, wanted);
        let is_new = |shape: &&RegionShape| old.get(&shape.start) != Some(*shape);
        let is_old = |shape: &&RegionShape| self.regions.get(&shape.start) != Some(*shape);
        let removed: Vec<(u64, u64)> =
            old.values().filter(is_old).map(|shape| (shape.start, shape.len)).collect();
        let added: Vec<RegionShape> = self.regions.values().filter(is_new).copied().collect();
        let mut changes = Vec::new();
        for part in removed.chunks(MAX_REGIONS_PER_MESSAGE) {
            changes.push(self.message(part.to_vec(), Vec::new(), Vec::new()));
        }
        self.add(added, fresh, &mut changes);
        let used: Vec<u32> = self.regions.values().map(|shape| shape.file).collect();
        self.files.retain(|(file, _)| used.contains(file));
        changes
    }

    fn shape(&mut self, region: &Region, direct: bool, fresh: &mut Vec<u32>) -> RegionShape {
        let (start, len) = (region.start.0, region.len);
        let writable = region.access == Access::ReadWrite;
        let remote = RegionShape { start, len, writable, file: REMOTE_FILE, offset: 0 };
        let Backing::Mapped { mapping, offset } = &region.backing else { return remote };
        let Some((_, in_file)) = mapping.file().filter(|_| direct) else { return remote };
        let known = self.files.iter().find(|(_, file)| Arc::ptr_eq(file, mapping));
        let file = match known {
            Some((file, _)) => *file,
            None => {
                let file = self.next_file;
                // Numbers of files that are in use are far behind when this comes round.
                self.next_file = (file + 1) % REMOTE_FILE;
                self.files.push((file, Arc::clone(mapping)));
                fresh.push(file);
                file
            }
        };
        RegionShape { file, offset: in_file + *offset as u64, ..remote }
    }

    /// Messages that add regions, each with the descriptors of the files that come with it.
    fn add(&mut self, added: Vec<RegionShape>, mut fresh: Vec<u32>, changes: &mut Vec<Change>) {
        let mut part: Vec<RegionShape> = Vec::new();
        let mut files: Vec<u32> = Vec::new();
        for shape in added {
            let is_fresh = fresh.contains(&shape.file);
            if part.len() == MAX_REGIONS_PER_MESSAGE || (is_fresh && files.len() == MAX_FDS) {
                let (part, files) = (std::mem::take(&mut part), std::mem::take(&mut files));
                changes.push(self.message(Vec::new(), part, files));
            }
            if is_fresh {
                fresh.retain(|file| *file != shape.file);
                files.push(shape.file);
            }
            part.push(shape);
        }
        if !part.is_empty() {
            changes.push(self.message(Vec::new(), part, files));
        }
    }

    fn message(
        &mut self,
        removed: Vec<(u64, u64)>,
        mut added: Vec<RegionShape>,
        mut files: Vec<u32>,
    ) -> Change {
        let mut fds = Vec::new();
        files.retain(|number| {
            let file = self.files.iter().find(|(file, _)| file == number);
            let fd = file.and_then(|(_, mapping)| mapping.file()?.0.try_clone_to_owned().ok());
            let has_fd = fd.is_some();
            fds.extend(fd);
            if !has_fd {
                // Out of descriptors: what can't be shared goes by messages.
                for shape in added.iter_mut().filter(|shape| shape.file == *number) {
                    shape.file = REMOTE_FILE;
                }
            }
            has_fd
        });
        self.next_number += 1;
        (MemoryChange { number: self.next_number, removed, added, files }, fds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mem::DriverAddress;

    fn map(regions: &[(u64, u64, &Arc<Mapping>, u64)]) -> MemoryMap {
        let region = |&(start, len, mapping, offset): &(u64, u64, &Arc<Mapping>, u64)| {
            let mapping = Arc::clone(mapping);
            Region::mapped(DriverAddress(start), len, Access::ReadWrite, mapping, offset).unwrap()
        };
        MemoryMap::new(regions.iter().map(region).collect()).unwrap()
    }

    #[test]
    fn only_what_changes_is_told() {
        let ram = Mapping::new_memfd("ram", 1 << 20).unwrap();
        let mut told = Told::default();
        let first =
            told.changes(&map(&[(0, 0x1000, &ram, 0), (0x8000, 0x1000, &ram, 0x3000)]), true);
        let [(change, fds)] = &first[..] else { panic!("{first:?}") };
        assert_eq!((change.added.len(), change.files.len(), fds.len()), (2, 1, 1));
        assert_eq!(change.added[1].offset, 0x3000);
        assert!(
            told.changes(&map(&[(0, 0x1000, &ram, 0), (0x8000, 0x1000, &ram, 0x3000)]), true)
                .is_empty()
        );
        let later = told.changes(&map(&[(0x8000, 0x2000, &ram, 0x3000)]), true);
        let [(gone, _), (come, fds)] = &later[..] else { panic!("{later:?}") };
        assert_eq!(gone.removed, [(0, 0x1000), (0x8000, 0x1000)]);
        assert_eq!((come.added.len(), fds.len()), (1, 0), "the file is known already");
        assert_eq!((gone.number, come.number), (2, 3));
    }

    #[test]
    fn many_files_and_regions_are_cut_into_messages() {
        let files: Vec<_> = (0..40).map(|_| Mapping::new_memfd("m", 4096).unwrap()).collect();
        let regions: Vec<_> =
            files.iter().enumerate().map(|(n, m)| (n as u64 * 0x1_0000, 4096, m, 0)).collect();
        let changes = Told::default().changes(&map(&regions), true);
        assert_eq!(changes.iter().map(|(change, _)| change.added.len()).sum::<usize>(), 40);
        assert!(changes.iter().all(|(change, fds)| fds.len() == change.files.len()));
        assert!(changes.iter().all(|(change, _)| change.files.len() <= MAX_FDS));
        let unshared = Told::default().changes(&map(&regions), false);
        assert!(unshared[0].0.added.iter().all(|shape| shape.file == REMOTE_FILE));
        assert!(unshared[0].1.is_empty());
    }
}
