use std::sync::Arc;

use mem::{DriverAddress, Mapping, MemoryError, Resolver, Span};
use virtqueue::{Chain, Segment};

use crate::pool::{Pool, UNIT_BYTES};
use crate::{Mover, MoverError, Step};

/// Buffers with the device per descriptor of its queue: with indirect descriptors more than the
/// queue is long can be under way.
const CELLS_PER_DESCRIPTOR: usize = 4;

/// No cell.
const NONE: u32 = u32::MAX;

/// Moves the bytes through a pool, which is all the device can reach.
///
/// A chain keeps its shape: each of its buffers gets a block of the pool, so that devices with
/// opinions on where a header ends are served. Coming back, as many bytes are copied as the device
/// says it wrote. Where those go was noted, in private memory, when the chain was taken. What a
/// device claims to have written without writing it is what was in the pool before: bytes of the
/// same driver and the same device.
#[derive(Debug)]
pub struct CopyMover {
    mapping: Arc<Mapping>,
    /// Offset of the pool in the mapping.
    offset: usize,
    /// Address of the pool as the device sees it.
    at: DriverAddress,
    pool: Pool,
    cells: Box<[Cell]>,
    free_cell: u32,
    free_cells: usize,
    /// The device's view of the chain just prepared.
    shown: Box<[Segment]>,
    readable: usize,
    len: usize,
    copied: u64,
}

/// One buffer of a chain that is with the device.
#[derive(Clone, Copy, Debug)]
struct Cell {
    /// The driver's buffer.
    segment: Segment,
    /// First unit of its block in the pool.
    unit: u32,
    /// The chain's next cell, or the next free one.
    next: u32,
    writable: bool,
}

impl CopyMover {
    /// A mover for a queue of `size` descriptors towards the device, with the `bytes` at `offset`
    /// of `mapping`, which the device finds at `at`, for its pool.
    #[must_use]
    pub fn new(
        mapping: Arc<Mapping>,
        offset: usize,
        bytes: usize,
        at: DriverAddress,
        size: u16,
    ) -> Self {
        let count = usize::from(size) * CELLS_PER_DESCRIPTOR;
        let cell = |index: usize| Cell {
            segment: Segment::default(),
            unit: 0,
            next: if index + 1 == count { NONE } else { index as u32 + 1 },
            writable: false,
        };
        Self {
            mapping,
            offset,
            at,
            pool: Pool::new(bytes),
            cells: (0..count).map(cell).collect(),
            free_cell: 0,
            free_cells: count,
            shown: vec![Segment::default(); usize::from(size)].into_boxed_slice(),
            readable: 0,
            len: 0,
            copied: 0,
        }
    }

    /// Blocks for all buffers of the chain, as a list of cells; `None` if there is no room now.
    fn reserve(&mut self, chain: &Chain) -> Result<Option<u32>, MoverError> {
        match self.try_reserve(chain)? {
            // With nothing in use, a chain that fits at all fits when no block is in pieces.
            None if self.pool.make_whole() => self.try_reserve(chain),
            reserved => Ok(reserved),
        }
    }

    fn try_reserve(&mut self, chain: &Chain) -> Result<Option<u32>, MoverError> {
        let count = chain.readable().len() + chain.writable().len();
        if count > self.shown.len() {
            let limit = self.shown.len();
            return Err(MoverError::TooManySegments { segments: count, limit });
        }
        if count > self.free_cells {
            return Ok(None);
        }
        let first = self.free_cell;
        let (mut cell, mut done) = (first, 0);
        for (index, segment) in chain.readable().iter().chain(chain.writable()).enumerate() {
            let Some(unit) = self.pool.alloc(segment.len) else {
                self.release_blocks(first, done);
                return self.check_size(chain).map(|()| None);
            };
            let addr = DriverAddress(self.at.0 + unit as u64 * UNIT_BYTES as u64);
            self.shown[index] = Segment { addr, len: segment.len };
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
    fn release(&mut self, first: u32) {
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

    /// Copies the readable buffers of the list into their blocks.
    fn copy_out(&mut self, memory: &mut Resolver, first: u32) -> Result<(), MoverError> {
        let mut cell = first;
        while cell != NONE {
            let Cell { segment, unit, next, writable } = self.cells[cell as usize];
            if writable {
                break;
            }
            let offset = self.offset + unit as usize * UNIT_BYTES;
            let len = segment.len as usize;
            let block = block(&self.mapping, offset, len);
            copy(memory, segment.addr, &block, Way::Out)?;
            self.copied += len as u64;
            cell = next;
        }
        // Where the device writes must be known to exist now: later it could only be an error.
        while cell != NONE {
            let Cell { segment, next, .. } = self.cells[cell as usize];
            check_writable(memory, segment)?;
            cell = next;
        }
        Ok(())
    }

    /// Copies the first `written` bytes of the writable buffers of the list back.
    fn copy_in(
        &mut self,
        memory: &mut Resolver,
        first: u32,
        written: u32,
    ) -> Result<(), MoverError> {
        let (mut cell, mut left) = (first, written);
        while cell != NONE && left > 0 {
            let Cell { segment, unit, next, writable } = self.cells[cell as usize];
            if writable {
                let len = segment.len.min(left);
                let offset = self.offset + unit as usize * UNIT_BYTES;
                let block = block(&self.mapping, offset, len as usize);
                copy(memory, segment.addr, &block, Way::In)?;
                self.copied += u64::from(len);
                left -= len;
            }
            cell = next;
        }
        Ok(())
    }
}

impl Mover for CopyMover {
    type Load = u32;

    #[inline]
    fn outbound(&mut self, memory: &mut Resolver, chain: &Chain) -> Result<Step<u32>, MoverError> {
        let Some(first) = self.reserve(chain)? else { return Ok(Step::Wait) };
        if let Err(error) = self.copy_out(memory, first) {
            self.release(first);
            return Err(error);
        }
        Ok(Step::Ready(first))
    }

    #[inline]
    fn segments<'a>(&'a self, _: &'a Chain) -> (&'a [Segment], &'a [Segment]) {
        self.shown[..self.len].split_at(self.readable)
    }

    #[inline]
    fn inbound(
        &mut self,
        memory: &mut Resolver,
        load: &u32,
        written: u32,
    ) -> Result<(), MoverError> {
        let result = self.copy_in(memory, *load, written);
        if !matches!(&result, Err(error) if error.miss().is_some()) {
            self.release(*load);
        }
        result
    }

    fn take_copied(&mut self) -> u64 {
        std::mem::take(&mut self.copied)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Out,
    In,
}

/// The bytes of a block.
#[inline]
fn block(mapping: &Arc<Mapping>, offset: usize, len: usize) -> Span<'_> {
    Span::of_mapping(mapping, offset, len).expect("blocks lie within the pool")
}

/// Copies between a driver's buffer and the block, which are of the same length; the buffer may
/// cross regions.
#[inline]
fn copy(
    memory: &mut Resolver,
    at: DriverAddress,
    block: &Span<'_>,
    way: Way,
) -> Result<(), MoverError> {
    let mut done = 0;
    // Bounded: each region is passed once.
    while done < block.len() {
        let at = DriverAddress(at.0.checked_add(done as u64).ok_or(MemoryError::Overflow)?);
        let span = memory.span(at, (block.len() - done) as u64)?;
        let rest = block.slice(done, span.len());
        let copied = match way {
            Way::Out => span.copy_to_span(&rest),
            Way::In => rest.copy_to_span(&span),
        };
        if copied == 0 {
            return Err(MemoryError::ReadOnly(at).into());
        }
        done += copied;
    }
    Ok(())
}

/// Whether a buffer is in memory that we may write.
#[inline]
fn check_writable(memory: &mut Resolver, segment: Segment) -> Result<(), MoverError> {
    let mut done = 0;
    // Bounded: each region is passed once.
    while done < u64::from(segment.len) {
        let at = segment.addr.0.checked_add(done).ok_or(MemoryError::Overflow)?;
        let span = memory.span(DriverAddress(at), u64::from(segment.len) - done)?;
        if !span.is_writable() {
            return Err(MemoryError::ReadOnly(DriverAddress(at)).into());
        }
        done += span.len() as u64;
    }
    Ok(())
}
