use std::marker::PhantomData;
use std::ptr::NonNull;

use crate::span::prefetch_line;
use crate::{Backing, DriverAddress, Mapping, MemoryMap};

/// A [`Span`](crate::Span) for small packets, of which many are held at once: all of a buffer, in
/// one region, in memory whose writes nobody logs.
#[derive(Clone, Copy)]
pub struct Piece<'m> {
    base: NonNull<u8>,
    len: u32,
    writable: bool,
    _memory: PhantomData<&'m Mapping>,
}

/// Where [`Piece`]s of one memory map are cut from: the region hit last, resolved once for many of
/// them.
#[derive(Clone, Copy)]
pub struct Pieces<'m> {
    map: &'m MemoryMap,
    start: u64,
    /// 0 as long as none was hit.
    len: u64,
    base: NonNull<u8>,
    writable: bool,
}

impl MemoryMap {
    /// Pieces of this memory.
    #[must_use]
    #[inline]
    pub fn pieces(&self) -> Pieces<'_> {
        Pieces { map: self, start: 0, len: 0, base: NonNull::dangling(), writable: false }
    }
}

impl<'m> Pieces<'m> {
    /// The `len` bytes at `at`; `None` if they are not all in one mapped region, or if writes are
    /// logged: then [`MemoryMap::span`] tells more.
    #[inline]
    #[must_use]
    pub fn piece(&mut self, at: DriverAddress, len: u32) -> Option<Piece<'m>> {
        if at.0.wrapping_sub(self.start) >= self.len {
            self.look_up(at)?;
        }
        let skip = at.0.wrapping_sub(self.start);
        if u64::from(len) > self.len - skip {
            return None;
        }
        // SAFETY: skip + len <= self.len, checked above, and so many bytes are mapped at `base`:
        // see `look_up`.
        let base = unsafe { self.base.add(skip as usize) };
        Some(Piece { base, len, writable: self.writable, _memory: PhantomData })
    }

    /// Turns to the region that holds `at`.
    #[cold]
    fn look_up(&mut self, at: DriverAddress) -> Option<()> {
        let region = &self.map.regions()[self.map.find(at).ok()?];
        let Backing::Mapped { mapping, offset } = &region.backing else { return None };
        let whole = offset.checked_add(usize::try_from(region.len).ok()?)? <= mapping.len();
        if !whole || self.map.dirty_log().is_some() {
            return None;
        }
        // SAFETY: offset + region.len <= mapping.len(), checked above.
        self.base = unsafe { mapping.base().add(*offset) };
        (self.start, self.len) = (region.start.0, region.len);
        self.writable = mapping.is_writable() && region.access.may_write();
        Some(())
    }
}

impl Piece<'_> {
    /// Whether the owner of the memory lets us write to it.
    #[must_use]
    #[inline]
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// As [`Span::prefetch`](crate::Span::prefetch).
    #[inline]
    pub fn prefetch(&self, write: bool) {
        const LINE: u32 = 64;
        for offset in [0, LINE] {
            if offset < self.len {
                // SAFETY: offset < len, so the pointer stays inside the piece.
                let line = unsafe { self.base.add(offset as usize) };
                prefetch_line(line.as_ptr(), write);
            }
        }
    }

    /// The first `N` bytes.
    ///
    /// # Panics
    /// If there are fewer.
    #[must_use]
    #[inline]
    pub fn first<const N: usize>(&self) -> [u8; N] {
        assert!(N <= self.len as usize, "the piece is long enough");
        // SAFETY: N readable bytes at `base`; an array of bytes needs no alignment.
        unsafe { self.base.cast::<[u8; N]>().read_unaligned() }
    }

    /// Writes `head`, and behind it what this piece has at the same place, to `to`; as many bytes
    /// in all as this piece has.
    ///
    /// # Panics
    /// If `to` is shorter or can't be written, or this piece is shorter than the head.
    #[inline]
    pub fn copy_behind<const N: usize>(&self, head: [u8; N], to: &Piece<'_>) {
        let len = self.len as usize;
        assert!(N <= len && self.len <= to.len && to.writable, "a head and room for all");
        // SAFETY: N <= len, so the pointer stays within the piece or one past its end.
        let from = unsafe { self.base.add(N) };
        // SAFETY: N <= len <= to.len.
        let behind = unsafe { to.base.add(N) };
        // SAFETY: len - N readable bytes and as many writable ones.
        unsafe { copy(from.as_ptr(), behind.as_ptr(), len - N) };
        // SAFETY: N writable bytes; an array of bytes needs no alignment.
        unsafe { to.base.cast::<[u8; N]>().write_unaligned(head) };
    }
}

/// Copies `len` bytes, which may overlap. Up to 128 of them in line: the call of a library function
/// costs as much as the copy.
///
/// # Safety
/// `len` bytes at `from` are readable and at `to` writable.
#[inline]
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    const BLOCK: usize = 32;
    type Block = [u8; BLOCK];
    if !(2 * BLOCK..=4 * BLOCK).contains(&len) {
        // SAFETY: as the caller promises.
        return unsafe { std::ptr::copy(from, to, len) };
    }
    let places = [0, BLOCK, len - 2 * BLOCK, len - BLOCK];
    // All loads before all stores, so that overlapping does no harm.
    let blocks: [Block; 4] = places.map(|place| {
        // SAFETY: place + BLOCK <= len, as len is at least two blocks.
        let at = unsafe { from.add(place) };
        // SAFETY: BLOCK readable bytes, which need no alignment.
        unsafe { at.cast::<Block>().read_unaligned() }
    });
    for (place, block) in places.into_iter().zip(blocks) {
        // SAFETY: as above.
        let at = unsafe { to.add(place) };
        // SAFETY: BLOCK writable bytes, which need no alignment.
        unsafe { at.cast::<Block>().write_unaligned(block) };
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Access, Region};

    const BASE: u64 = 0x7_0000_0000;

    fn map(access: Access) -> MemoryMap {
        let mapping = Mapping::new_memfd("piece", 8192).unwrap();
        let first =
            Region::mapped(DriverAddress(BASE), 4096, access, Arc::clone(&mapping), 0).unwrap();
        let second =
            Region::mapped(DriverAddress(BASE + 4096), 4096, Access::Read, mapping, 4096).unwrap();
        MemoryMap::new(vec![first, second]).unwrap()
    }

    #[test]
    fn frames_of_every_length_arrive_behind_another_head() {
        let map = map(Access::ReadWrite);
        for len in 4..300u32 {
            let bytes: Vec<u8> = (0..len).map(|at| (at * 7 + len) as u8).collect();
            map.write(DriverAddress(BASE + 1), &bytes).unwrap();
            map.write(DriverAddress(BASE + 2001), &[0xee; 310]).unwrap();
            let mut pieces = map.pieces();
            let from = pieces.piece(DriverAddress(BASE + 1), len).unwrap();
            let to = pieces.piece(DriverAddress(BASE + 2001), len + 3).unwrap();
            assert_eq!(from.first::<4>(), bytes[..4]);
            from.copy_behind([1, 2, 3, 4], &to);
            let mut found = vec![0; len as usize + 3];
            map.read(DriverAddress(BASE + 2001), &mut found).unwrap();
            assert_eq!(found[..4], [1, 2, 3, 4]);
            assert_eq!(found[4..len as usize], bytes[4..]);
            assert_eq!(found[len as usize..], [0xee; 3], "nothing behind");
        }
    }

    #[test]
    fn a_piece_lies_in_one_region_and_knows_what_is_allowed() {
        let map = map(Access::Read);
        let mut pieces = map.pieces();
        assert!(pieces.piece(DriverAddress(5), 0).is_none());
        assert!(pieces.piece(DriverAddress(BASE + 4000), 97).is_none());
        assert!(pieces.piece(DriverAddress(BASE + 8190), 3).is_none());
        assert!(pieces.piece(DriverAddress(5), 3).is_none());
        assert!(pieces.piece(DriverAddress(u64::MAX), 3).is_none());
        assert!(!pieces.piece(DriverAddress(BASE + 4000), 96).unwrap().is_writable());
        assert!(pieces.piece(DriverAddress(BASE + 4096), 4096).is_some());
        assert!(pieces.piece(DriverAddress(BASE + 8192), 1).is_none());
    }
}
