//! The chains of a queue that have their buffers in our pool.

use std::sync::Arc;

use mem::{DriverAddress, Mapping, Span};
use virtqueue::{Chain, Segment};

use crate::MoverError;
use crate::pool::{Pool, UNIT_BYTES};

/// Buffers with the device per descriptor of its queue: with indirect descriptors more than the
/// queue is long can be under way.
const CELLS_PER_DESCRIPTOR: usize = 4;

/// No cell.
const NONE: u32 = u32::MAX;

/// Where a pool lies.
#[derive(Clone, Debug)]
pub struct PoolPlace {
    /// The mapping that holds it, which the device has too.
    pub mapping: Arc<Mapping>,
    /// Offset of its first byte there.
    pub offset: usize,
    /// Its length, a power of two.
    pub bytes: usize,
    /// Its address for the device.
    pub at: DriverAddress,
}

/// Gives every buffer of a chain a block of a pool, and remembers in private memory which is whose.
///
/// A chain's buffers are a list of cells; the number of its first cell stands for the chain.
#[derive(Debug)]
pub(crate) struct Blocks {
    place: PoolPlace,
    pool: Pool,
    /// Grows to `capacity` as more are in use at once, so that an idle queue holds no pages for
    /// them.
    cells: Vec<Cell>,
    capacity: usize,
    free_cell: u32,
    /// Cells that are free, those that have not been made yet among them.
    free_cells: usize,
    /// The device's view of the chain reserved or shown last, in as much room as the longest one
    /// so far took, and `longest` at most.
    shown: Vec<Segment>,
    longest: usize,
    readable: usize,
    len: usize,
}

/// One buffer of a chain that is with the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cell {
    /// The driver's buffer.
    pub segment: Segment,
    /// First unit of its block in the pool.
    unit: u32,
    /// The chain's next cell, or the next free one.
    pub next: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

impl Blocks {
    /// No chains yet, for a queue of `size` descriptors towards the device.
    pub(crate) fn new(place: PoolPlace, size: u16) -> Self {
        let capacity = usize::from(size) * CELLS_PER_DESCRIPTOR;
        Self {
            pool: Pool::new(place.bytes),
            place,
            cells: Vec::new(),
            capacity,
            free_cell: NONE,
            free_cells: capacity,
            shown: Vec::new(),
            longest: size.into(),
            readable: 0,
            len: 0,
        }
    }

    /// Most buffers in use at once.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// A chain's first cell, or the next one; `None` at its end.
    #[inline]
    pub(crate) fn cell(&self, at: u32) -> Option<Cell> {
        self.cells.get(at as usize).copied()
    }

    /// Offset of a cell's block in the mapping.
    #[inline]
    pub(crate) fn offset(&self, cell: &Cell) -> usize {
        self.place.offset + cell.unit as usize * UNIT_BYTES
    }

    /// The mapping that holds the pool.
    pub(crate) fn mapping(&self) -> &Arc<Mapping> {
        &self.place.mapping
    }

    /// The first `len` bytes of a cell's block.
    #[inline]
    pub(crate) fn block(&self, cell: &Cell, len: u32) -> Span<'_> {
        let span = Span::of_mapping(&self.place.mapping, self.offset(cell), len as usize);
        span.expect("blocks lie within the pool")
    }

    /// The device's view of the chain reserved or shown last.
    #[inline]
    pub(crate) fn shown(&self) -> (&[Segment], &[Segment]) {
        self.shown[..self.len].split_at(self.readable)
    }

    /// Makes a chain reserved earlier the one that is shown.
    pub(crate) fn show(&mut self, first: u32) {
        (self.readable, self.len) = (0, 0);
        let mut at = first;
        while let Some(cell) = self.cell(at) {
            self.make_shown(self.len + 1);
            self.shown[self.len] = Segment { addr: self.address(cell.unit), len: cell.segment.len };
            self.len += 1;
            self.readable += usize::from(!cell.writable);
            at = cell.next;
        }
    }

    #[inline]
    fn address(&self, unit: u32) -> DriverAddress {
        DriverAddress(self.place.at.0 + unit as u64 * UNIT_BYTES as u64)
    }

    /// Blocks for all buffers of the chain, as a list of cells; `None` if there is no room now.
    #[inline]
    pub(crate) fn reserve(&mut self, chain: &Chain) -> Result<Option<u32>, MoverError> {
        match self.try_reserve(chain)? {
            // With nothing in use, a chain that fits at all fits when no block is in pieces.
            None if self.pool.make_whole() => self.try_reserve(chain),
            reserved => Ok(reserved),
        }
    }

    fn try_reserve(&mut self, chain: &Chain) -> Result<Option<u32>, MoverError> {
        let count = chain.readable().len() + chain.writable().len();
        if count > self.longest {
            let limit = self.longest;
            return Err(MoverError::TooManySegments { segments: count, limit });
        }
        if count > self.free_cells {
            return Ok(None);
        }
        self.make_cells(count);
        self.make_shown(count);
        let first = self.free_cell;
        let (mut cell, mut done) = (first, 0);
        for (index, segment) in chain.readable().iter().chain(chain.writable()).enumerate() {
            let Some(unit) = self.pool.alloc(segment.len) else {
                self.release_blocks(first, done);
                return self.check_size(chain).map(|()| None);
            };
            self.shown[index] = Segment { addr: self.address(unit), len: segment.len };
            let entry = &mut self.cells[cell as usize];
            entry.segment = *segment;
            entry.unit = unit;
            entry.writable = index >= chain.readable().len();
            cell = entry.next;
            done += 1;
        }
        self.take_cells(first, count, cell);
        self.readable = chain.readable().len();
        self.len = count;
        Ok(Some(first))
    }

    /// Makes room to show a chain of `count` buffers.
    #[inline]
    fn make_shown(&mut self, count: usize) {
        if self.shown.len() < count {
            self.shown.resize(count, Segment::default());
        }
    }

    /// Sees to it that the list of free cells has `count`, of which there are that many.
    #[inline]
    fn make_cells(&mut self, count: usize) {
        let mut listed = self.free_cells - (self.capacity - self.cells.len());
        while listed < count {
            let next = std::mem::replace(&mut self.free_cell, self.cells.len() as u32);
            let segment = Segment::default();
            self.cells.push(Cell { segment, unit: 0, next, writable: false });
            listed += 1;
        }
    }

    /// Cuts the first `count` free cells off: the last of them ends the list that begins with
    /// `first`.
    fn take_cells(&mut self, first: u32, count: usize, rest: u32) {
        let mut last = first;
        for _ in 1..count {
            last = self.cells[last as usize].next;
        }
        self.cells[last as usize].next = NONE;
        self.free_cell = rest;
        self.free_cells -= count;
    }

    /// Gives the blocks of the first `count` cells of a list back.
    fn release_blocks(&mut self, first: u32, count: usize) {
        let mut cell = first;
        for _ in 0..count {
            let Cell { unit, next, .. } = self.cells[cell as usize];
            self.pool.free(unit);
            cell = next;
        }
    }

    /// Gives a chain's cells and blocks back.
    pub(crate) fn release(&mut self, first: u32) {
        let mut cell = first;
        // Bounded: a list has as many cells as its chain had buffers.
        while cell != NONE {
            let Cell { unit, next, .. } = self.cells[cell as usize];
            self.pool.free(unit);
            self.cells[cell as usize].next = self.free_cell;
            self.free_cell = cell;
            self.free_cells += 1;
            cell = next;
        }
    }

    /// Whether the chain fits a pool with nothing else in it.
    fn check_size(&self, chain: &Chain) -> Result<(), MoverError> {
        let all = chain.readable().iter().chain(chain.writable());
        let bytes = all.map(|segment| Pool::rounded(segment.len)).sum();
        let pool = self.pool.bytes();
        if bytes > pool { Err(MoverError::TooLarge { bytes, pool }) } else { Ok(()) }
    }
}
