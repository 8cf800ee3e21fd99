use std::collections::VecDeque;
use std::sync::Arc;

use mem::remote::RemoteMemory;
use mem::{Backing, DriverAddress, MemoryError, MemoryMap};
use virtqueue::{ChainId, Segment};

use super::transfers::{Op, Purpose, Transfers};
use crate::MoverError;
use crate::blocks::{Blocks, Cell};

/// A chain taken from the driver whose readable bytes are on their way here.
#[derive(Debug)]
pub(super) struct Fetching {
    pub id: ChainId,
    pub first: u32,
    /// Bytes that have not arrived.
    pub missing: u64,
    pub segments: usize,
}

/// The chains on their way to the device, in order of taking.
#[derive(Debug)]
pub(super) struct Chains {
    list: VecDeque<Fetching>,
    /// Ordinal of the first one.
    ordinal: u32,
}

impl Chains {
    pub(super) fn new(size: u16) -> Self {
        Self { list: VecDeque::with_capacity(size.into()), ordinal: 0 }
    }

    /// The ordinal that the next chain will have.
    pub(super) fn next_ordinal(&self) -> u32 {
        self.ordinal.wrapping_add(self.list.len() as u32)
    }

    pub(super) fn push(&mut self, chain: Fetching) {
        self.list.push_back(chain);
    }

    /// Bytes of the chain with this ordinal have arrived.
    pub(super) fn arrived(&mut self, ordinal: u32, len: u32) {
        if let Some(chain) = self.list.get_mut(ordinal.wrapping_sub(self.ordinal) as usize) {
            chain.missing = chain.missing.saturating_sub(len.into());
        }
    }

    /// The first chain, if it is complete.
    pub(super) fn first_complete(&self) -> Option<&Fetching> {
        self.list.front().filter(|chain| chain.missing == 0)
    }

    pub(super) fn pop_first(&mut self) -> Option<(u32, Fetching)> {
        let chain = self.list.pop_front()?;
        let ordinal = self.ordinal;
        self.ordinal = ordinal.wrapping_add(1);
        Some((ordinal, chain))
    }

    pub(super) fn pop_last(&mut self) -> Option<Fetching> {
        self.list.pop_back()
    }
}

/// Which way bytes go between a driver's buffer and its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// To the block, for the chain with this ordinal.
    Here(u32),
    /// To the driver.
    There,
}

/// Brings the first `len` bytes of a cell from or to the driver: by transfers, or at once where the
/// driver's memory happens to be mapped. Returns the bytes that have to be waited for.
pub(super) fn bring(
    map: &MemoryMap,
    memory: &Arc<dyn RemoteMemory>,
    (blocks, cell): (&Blocks, &Cell),
    len: u32,
    way: Way,
    transfers: &mut Transfers,
) -> Result<u64, MoverError> {
    let (mut done, mut waiting) = (0, 0);
    // Bounded: every piece has at least a byte, and crosses to another kind of region.
    while done < u64::from(len) {
        let at = address(cell.segment, done)?;
        let rest = u64::from(len) - done;
        let piece = match &map.region(at)?.backing {
            Backing::Mapped { .. } => {
                let span = map.span(at, rest)?;
                let block = blocks.block(cell, len).slice(done as usize, span.len());
                let copied = match way {
                    Way::Here(_) => span.copy_to_span(&block),
                    Way::There => block.copy_to_span(&span),
                };
                if copied == 0 {
                    return Err(MemoryError::ReadOnly(at).into());
                }
                copied as u64
            }
            Backing::Remote(_) => {
                let len = remote_run(map, memory, at, rest)?;
                let here = (Arc::clone(blocks.mapping()), blocks.offset(cell) + done as usize);
                let (purpose, write) = match way {
                    Way::Here(ordinal) => (Purpose::Data(ordinal), false),
                    Way::There => (Purpose::Written, true),
                };
                transfers.add(Op { purpose, address: at.0, here, len: len as u32, write });
                waiting += len;
                len
            }
        };
        done += piece;
    }
    Ok(waiting)
}

/// Checks that the device may have all of a buffer written.
pub(super) fn check_writable(map: &MemoryMap, segment: Segment) -> Result<(), MoverError> {
    let mut done = 0;
    // Bounded: each region is passed once.
    while done < u64::from(segment.len) {
        let at = address(segment, done)?;
        let region = map.region(at)?;
        if region.access != mem::Access::ReadWrite {
            return Err(MemoryError::ReadOnly(at).into());
        }
        done += region.end() - at.0;
    }
    Ok(())
}

fn address(segment: Segment, done: u64) -> Result<DriverAddress, MemoryError> {
    segment.addr.0.checked_add(done).map(DriverAddress).ok_or(MemoryError::Overflow)
}

/// How many of `len` bytes from `at` on lie in adjoining regions behind `memory`.
fn remote_run(
    map: &MemoryMap,
    memory: &Arc<dyn RemoteMemory>,
    at: DriverAddress,
    len: u64,
) -> Result<u64, MoverError> {
    let mut run = 0;
    // Bounded: each region is passed once.
    while run < len {
        let here = DriverAddress(at.0.checked_add(run).ok_or(MemoryError::Overflow)?);
        let region = map.region(here)?;
        match &region.backing {
            Backing::Remote(other) if Arc::ptr_eq(other, memory) => run += region.end() - here.0,
            Backing::Remote(_) if run == 0 => return Err(MemoryError::NotMappable(here).into()),
            _ => break,
        }
    }
    Ok(run.min(len))
}
