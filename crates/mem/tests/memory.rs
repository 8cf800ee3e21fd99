//! Address spaces, straddling buffers, and files that shrink under a mapping.
#![cfg(not(loom))]

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU16;
use std::time::Duration;

use mem::{
    Access, AddressSpace, Backing, DirtyLog, DriverAddress, FileCache, Mapping, MemoryError,
    MemoryMap, Region,
};

const POISON: u64 = 0x7_0000_0000;

fn region(start: u64, mapping: &Arc<Mapping>, offset: u64, len: u64) -> Region {
    Region::mapped(
        DriverAddress(POISON + start),
        len,
        Access::ReadWrite,
        Arc::clone(mapping),
        offset,
    )
    .expect("fits")
}

#[test]
fn a_buffer_across_two_regions_is_read_in_pieces() {
    let low = Mapping::new_memfd("low", 8192).unwrap();
    let high = Mapping::new_memfd("high", 8192).unwrap();
    let map = MemoryMap::new(vec![region(8192, &high, 0, 8192), region(0, &low, 0, 8192)]).unwrap();
    let pattern: Vec<u8> = (0..200u8).collect();
    map.write(DriverAddress(POISON + 8192 - 100), &pattern).unwrap();
    let mut back = vec![0; 200];
    map.read(DriverAddress(POISON + 8192 - 100), &mut back).unwrap();
    assert_eq!(back, pattern);
    assert_eq!(map.span(DriverAddress(POISON + 8192 - 100), 200).unwrap().len(), 100);
    let mut last = [0; 1];
    map.read(DriverAddress(POISON + 16383), &mut last).unwrap();
    assert!(matches!(
        map.read(DriverAddress(POISON + 16383), &mut [0; 2]),
        Err(MemoryError::Unmapped(_))
    ));
}

#[test]
fn hostile_ranges_are_refused() {
    let memory = Mapping::new_memfd("m", 4096).unwrap();
    let map = MemoryMap::new(vec![region(0, &memory, 0, 4096)]).unwrap();
    assert!(matches!(map.span(DriverAddress(u64::MAX - 5), 100), Err(MemoryError::Unmapped(_))));
    assert!(matches!(map.span(DriverAddress(POISON + 1), u64::MAX), Err(MemoryError::Overflow)));
    assert!(map.table::<AtomicU16>(DriverAddress(POISON + 1), 4).is_err(), "misaligned");
    assert!(map.table::<AtomicU16>(DriverAddress(POISON + 4090), 4).is_err(), "beyond the end");
    assert!(map.table::<AtomicU16>(DriverAddress(POISON), usize::MAX).is_err(), "overflow");
    let overlapping = vec![region(0, &memory, 0, 4096), region(2048, &memory, 0, 4096)];
    assert!(matches!(MemoryMap::new(overlapping), Err(MemoryError::Overlap(_))));
    let wrapping =
        Region::mapped(DriverAddress(u64::MAX - 10), 4096, Access::Read, memory.clone(), 0);
    assert!(matches!(wrapping, Err(MemoryError::Overflow)));
    // A region that nobody checked: spans rely on the map having done so.
    for (offset, error) in [(1, "mapping up to byte 4097"), (usize::MAX, "wraps around")] {
        let backing = Backing::Mapped { mapping: Arc::clone(&memory), offset };
        let unchecked = Region { backing, ..region(0, &memory, 0, 4096) };
        let refused = MemoryMap::new(vec![unchecked]).unwrap_err().to_string();
        assert!(refused.contains(error), "{refused}");
    }
    let fd: OwnedFd = memory.file().unwrap().0.try_clone_to_owned().unwrap();
    assert!(matches!(Mapping::of_file(fd, 1, 4096), Err(MemoryError::BeyondFile { .. })));
}

#[test]
fn a_read_only_region_is_not_written() {
    let memory = Mapping::new_memfd("m", 4096).unwrap();
    let region = Region::mapped(DriverAddress(0), 4096, Access::Read, memory, 0).unwrap();
    let map = MemoryMap::new(vec![region]).unwrap();
    assert!(map.write(DriverAddress(0), b"x").is_err());
    assert!(map.table::<AtomicU16>(DriverAddress(0), 1).is_err());
    let mut byte = [1];
    map.read(DriverAddress(0), &mut byte).unwrap();
    assert_eq!(byte, [0]);
}

#[test]
fn a_file_that_shrinks_poisons_the_mapping_and_not_the_process() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(8192).unwrap();
    let mapping = Mapping::of_file(OwnedFd::from(file.try_clone().unwrap()), 0, 8192).unwrap();
    let map = MemoryMap::new(vec![region(0, &mapping, 0, 8192)]).unwrap();
    let table = map.table::<AtomicU16>(DriverAddress(POISON + 4096), 8).unwrap();
    table[0].store(7, std::sync::atomic::Ordering::Relaxed);
    assert!(!map.is_poisoned());
    let event = mem::guard::event().unwrap();
    let signals = || {
        let mut count = [0; 8];
        rustix::io::read(event, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
    };
    signals();
    file.set_len(0).unwrap();
    assert_eq!(table[0].load(std::sync::atomic::Ordering::Relaxed), 0);
    assert!(map.is_poisoned());
    assert!(signals() > 0, "whoever waits is told");
}

#[test]
fn a_queue_learns_that_memory_was_cut_and_goes_on_with_other_memory() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(4096).unwrap();
    let cut = Mapping::of_file(OwnedFd::from(file.try_clone().unwrap()), 0, 4096).unwrap();
    let whole = Mapping::new_memfd("m", 4096).unwrap();
    let spaces = [&cut, &whole].map(|mapping| {
        let map = MemoryMap::new(vec![region(0, mapping, 0, 4096)]).unwrap();
        Arc::new(AddressSpace::new(map))
    });
    let mut readers = spaces.each_ref().map(AddressSpace::reader);
    file.set_len(0).unwrap();
    assert!(!readers[0].is_cut(), "nobody has met it");
    spaces[0].current().read(DriverAddress(POISON), &mut [0]).unwrap();
    assert!(readers[0].is_cut() && readers[0].is_cut(), "and it stays so");
    assert!(!readers[1].is_cut(), "memory of others is whole");
    assert!(spaces[0].reader().is_cut(), "a queue that starts later is told at once");
    spaces[0].replace(MemoryMap::clone(&spaces[1].current()));
    assert!(readers[0].enter() && !readers[0].is_cut());
    spaces[1].replace(MemoryMap::new(vec![region(0, &cut, 0, 4096)]).unwrap());
    assert!(readers[1].enter() && readers[1].is_cut(), "cut before it came here");
}

#[test]
fn device_memory_needs_no_size_and_poisons_where_no_page_is() {
    let file = tempfile::tempfile().unwrap();
    let fd = || OwnedFd::from(file.try_clone().unwrap());
    assert!(matches!(Mapping::of_file(fd(), 0, 8192), Err(MemoryError::BeyondFile { .. })));
    let mapping = Mapping::of_device_memory(fd(), 0, 8192).unwrap();
    assert_eq!((mapping.len(), mapping.is_writable()), (8192, true));
    let map = MemoryMap::new(vec![region(0, &mapping, 0, 8192)]).unwrap();
    file.set_len(4096).unwrap();
    map.write(DriverAddress(POISON), b"here").unwrap();
    assert!(!map.is_poisoned());
    let mut byte = [1];
    map.read(DriverAddress(POISON + 4096), &mut byte).unwrap();
    assert_eq!((byte, map.is_poisoned()), ([0], true));
    assert!(Mapping::of_device_memory(fd(), 0, 0).is_err());
    assert!(matches!(Mapping::of_device_memory(fd(), u64::MAX, 4096), Err(MemoryError::Overflow)));
}

#[test]
fn one_file_is_mapped_once_however_often_it_comes() {
    let mut cache = FileCache::default();
    let memory = Mapping::new_memfd("ram", 1 << 20).unwrap();
    let copy = || memory.file().unwrap().0.try_clone_to_owned().unwrap();
    let first = cache.map(copy(), 4096).unwrap();
    let second = cache.map(copy(), 1 << 20).unwrap();
    assert!(Arc::ptr_eq(&first, &second));
    assert!(cache.map(copy(), (1 << 20) + 1).is_err());
    let empty = || tempfile::tempfile().unwrap();
    assert!(cache.map(empty().into(), 4096).is_err(), "an empty file is no device");
    let device = std::fs::File::options().read(true).write(true).open("/dev/zero").unwrap();
    assert_eq!(cache.map(device.into(), 8192).unwrap().len(), 8192);
}

#[test]
fn synchronize_waits_for_the_queue_that_still_uses_the_old_map() {
    let memory = Mapping::new_memfd("m", 4096).unwrap();
    let space = Arc::new(AddressSpace::default());
    space.insert(region(0, &memory, 0, 4096)).unwrap();
    let mut reader = space.reader();
    assert!(space.synchronize(Duration::ZERO), "a parked reader holds nobody up");
    reader.enter();
    assert_eq!(space.remove(DriverAddress(POISON), 4096), 1);
    assert!(!space.synchronize(Duration::from_millis(1)), "the reader is still on the old map");
    assert!(reader.resolver().span(DriverAddress(POISON), 1).is_ok());
    assert!(reader.enter(), "the change is noticed");
    assert!(space.synchronize(Duration::ZERO));
    assert!(reader.resolver().span(DriverAddress(POISON), 1).is_err());
}

#[test]
fn writes_are_logged_by_page() {
    let memory = Mapping::new_memfd("m", 16 * 4096).unwrap();
    let bitmap = Mapping::new_memfd("log", 4096).unwrap();
    let space = AddressSpace::default();
    let start =
        Region::mapped(DriverAddress(4096), 15 * 4096, Access::ReadWrite, memory, 0).unwrap();
    space.insert(start).unwrap();
    space.set_dirty_log(Some(DirtyLog::new(&bitmap).unwrap()));
    space.current().write(DriverAddress(3 * 4096 - 1), &[1, 2]).unwrap();
    let mut bits = [0; 2];
    mem::Span::of_mapping(&bitmap, 0, 2).unwrap().copy_to(&mut bits);
    assert_eq!(bits, [0b1100, 0]);
}
