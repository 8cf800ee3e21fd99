use mem::{DriverAddress, MemoryError, Resolver, Span};
use virtqueue::{Chain, Segment};

use crate::blocks::Blocks;
use crate::translate::check;
use crate::{Mover, MoverError, PoolPlace, Step};

/// Moves the bytes through a pool, which is all the device can reach.
///
/// A chain keeps its shape: each of its buffers gets a block of the pool, so that devices with
/// opinions on where a header ends are served. Coming back, as many bytes are copied as the device
/// says it wrote. Where those go was noted, in private memory, when the chain was taken. What a
/// device claims to have written without writing it is what was in the pool before: bytes of the
/// same driver and the same device.
#[derive(Debug)]
pub struct CopyMover {
    blocks: Blocks,
    copied: u64,
}

impl CopyMover {
    /// A mover with this pool, for a queue of `size` descriptors towards the device.
    #[must_use]
    pub fn new(place: PoolPlace, size: u16) -> Self {
        Self { blocks: Blocks::new(place, size), copied: 0 }
    }

    /// Copies the readable buffers of the chain into their blocks.
    fn copy_out(&mut self, memory: &mut Resolver, first: u32) -> Result<(), MoverError> {
        let mut at = first;
        while let Some(cell) = self.blocks.cell(at) {
            let len = cell.segment.len;
            if cell.writable {
                // Must be known to exist now: later it could only be an error.
                check(memory, cell.segment, true)?;
            } else {
                copy(memory, cell.segment.addr, &self.blocks.block(&cell, len), Way::Out)?;
                self.copied += u64::from(len);
            }
            at = cell.next;
        }
        Ok(())
    }

    /// Copies the first `written` bytes of the writable buffers of the chain back.
    fn copy_in(
        &mut self,
        memory: &mut Resolver,
        first: u32,
        written: u32,
    ) -> Result<(), MoverError> {
        let (mut at, mut left) = (first, written);
        while let Some(cell) = self.blocks.cell(at).filter(|_| left > 0) {
            if cell.writable {
                let len = cell.segment.len.min(left);
                copy(memory, cell.segment.addr, &self.blocks.block(&cell, len), Way::In)?;
                self.copied += u64::from(len);
                left -= len;
            }
            at = cell.next;
        }
        Ok(())
    }
}

impl Mover for CopyMover {
    type Load = u32;

    #[inline]
    fn outbound(&mut self, memory: &mut Resolver, chain: &Chain) -> Result<Step<u32>, MoverError> {
        let Some(first) = self.blocks.reserve(chain)? else { return Ok(Step::Wait) };
        if let Err(error) = self.copy_out(memory, first) {
            self.blocks.release(first);
            return Err(error);
        }
        Ok(Step::Ready(first))
    }

    #[inline]
    fn segments<'a>(&'a self, _: &'a Chain) -> (&'a [Segment], &'a [Segment]) {
        self.blocks.shown()
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
            self.blocks.release(*load);
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
