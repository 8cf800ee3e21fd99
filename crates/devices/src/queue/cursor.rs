use mem::{DriverAddress, MemoryMap, Span};
use virtqueue::Segment;

/// A place in a list of buffers that were checked against `map`; buffers may be cut anywhere
/// (VIRTIO 1.4, 2.7.4).
#[derive(Clone, Copy)]
pub(crate) struct Cursor<'a> {
    map: &'a MemoryMap,
    segments: &'a [Segment],
    /// Bytes of the first segment that lie behind us.
    offset: u32,
    left: u64,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(map: &'a MemoryMap, segments: &'a [Segment], len: u64) -> Self {
        Self { map, segments, offset: 0, left: len }
    }

    /// Bytes from here to the end.
    #[inline]
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// The next bytes that lie together, and moves behind them; `None` at the end.
    #[inline]
    pub(crate) fn next_span(&mut self) -> Option<Span<'a>> {
        let (first, rest) = self.segments.split_first()?;
        if self.left == 0 {
            return None;
        }
        let at = DriverAddress(first.addr.0 + u64::from(self.offset));
        let wanted = u64::from(first.len - self.offset).min(self.left);
        let span = self.map.span(at, wanted).ok()?;
        let got = span.len() as u64;
        self.left -= got;
        // At most `first.len - offset`, so the sum fits.
        self.offset += got as u32;
        if self.offset == first.len {
            self.segments = rest;
            self.offset = 0;
        }
        Some(span)
    }

    /// Moves over `len` bytes, or to the end.
    pub(crate) fn skip(&mut self, len: u64) {
        let mut skip = len.min(self.left);
        self.left -= skip;
        while let Some((first, rest)) = self.segments.split_first() {
            let here = u64::from(first.len - self.offset);
            if skip < here {
                self.offset += skip as u32;
                return;
            }
            skip -= here;
            self.segments = rest;
            self.offset = 0;
        }
    }

    /// Ends `len` bytes from here, if it does not end before.
    pub(crate) fn limit(&mut self, len: u64) {
        self.left = self.left.min(len);
    }
}

/// Reads the device-readable part of a chain from front to back.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a>(pub(crate) Cursor<'a>);

impl<'a> Reader<'a> {
    /// Bytes not read yet.
    pub(crate) fn left(&self) -> u64 {
        self.0.left()
    }

    /// Reads into `into`, as much as there is; returns how much.
    pub(crate) fn read(&mut self, into: &mut [u8]) -> usize {
        let mut part = self.0;
        part.limit(into.len() as u64);
        let mut done = 0;
        while let Some(span) = part.next_span() {
            done += span.copy_to(&mut into[done..]);
        }
        self.0.skip(done as u64);
        done
    }

    /// Reads `N` bytes; `None`, and moves to the end, if there are fewer.
    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        (self.read(&mut bytes) == N).then_some(bytes)
    }

    /// What lies ahead, for I/O straight from the driver's memory.
    pub(crate) fn cursor(&self) -> Cursor<'a> {
        self.0
    }
}

/// Writes the device-writable part of a chain from front to back.
#[derive(Clone, Copy)]
pub(crate) struct Writer<'a>(pub(crate) Cursor<'a>);

impl<'a> Writer<'a> {
    /// Bytes that still fit.
    pub(crate) fn left(&self) -> u64 {
        self.0.left()
    }

    /// Writes `from`, as much as fits; returns how much.
    pub(crate) fn write(&mut self, from: &[u8]) -> usize {
        let mut part = self.0;
        part.limit(from.len() as u64);
        let mut done = 0;
        while let Some(span) = part.next_span() {
            done += span.copy_from(&from[done..]);
        }
        self.0.skip(done as u64);
        done
    }

    /// Writes zeros over what is left.
    pub(crate) fn zero(&mut self) {
        while let Some(span) = self.0.next_span() {
            span.zero();
        }
    }

    /// Moves over `len` bytes without writing them.
    pub(crate) fn skip(&mut self, len: u64) {
        self.0.skip(len);
    }

    /// Ends `len` bytes from here, if it does not end before.
    pub(crate) fn limit(&mut self, len: u64) {
        self.0.limit(len);
    }

    /// What lies ahead, for I/O straight into the driver's memory.
    pub(crate) fn cursor(&self) -> Cursor<'a> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mem::{Access, Mapping, Region};

    use super::*;

    const POISON: u64 = 0x7_0000_0000;

    fn memory() -> MemoryMap {
        let region = |at: u64| {
            let mapping: Arc<Mapping> = Mapping::new_memfd("m", 4096).unwrap();
            Region::mapped(DriverAddress(POISON + at), 4096, Access::ReadWrite, mapping, 0).unwrap()
        };
        MemoryMap::new(vec![region(0), region(4096)]).unwrap()
    }

    fn segment(at: u64, len: u32) -> Segment {
        Segment { addr: DriverAddress(POISON + at), len }
    }

    #[test]
    fn buffers_cut_anywhere_are_one_stream() {
        let map = memory();
        // One byte each, backwards, and one that crosses from region to region.
        let mut segments: Vec<Segment> = (0..16).rev().map(|at| segment(at, 1)).collect();
        segments.push(segment(4000, 200));
        let mut writer = Writer(Cursor::new(&map, &segments, 216));
        let pattern: Vec<u8> = (0..=255).collect();
        assert_eq!(writer.write(&pattern[..7]), 7);
        assert_eq!(writer.write(&pattern[7..]), 209);
        assert_eq!((writer.left(), writer.write(b"x")), (0, 0));
        let mut reader = Reader(Cursor::new(&map, &segments, 216));
        assert_eq!(reader.array::<16>().unwrap()[..], pattern[..16]);
        let mut cursor = reader.cursor();
        let lens: Vec<usize> = std::iter::from_fn(|| cursor.next_span().map(|s| s.len())).collect();
        assert_eq!(lens, [96, 104]);
        let mut rest = [0; 300];
        assert_eq!(reader.read(&mut rest), 200);
        assert_eq!(rest[..200], pattern[16..216]);
        assert_eq!(reader.array::<1>(), None);
    }

    #[test]
    fn a_part_in_the_middle_can_be_addressed() {
        let map = memory();
        let segments = [segment(10, 5), segment(4090, 20), segment(100, 5)];
        let mut writer = Writer(Cursor::new(&map, &segments, 30));
        writer.skip(12);
        writer.limit(10);
        assert_eq!(writer.write(&[7; 100]), 10);
        let mut all = [0; 30];
        Reader(Cursor::new(&map, &segments, 30)).read(&mut all);
        let expected: Vec<u8> =
            (0..30).map(|at| if (12..22).contains(&at) { 7 } else { 0 }).collect();
        assert_eq!(all[..], expected);
    }
}
