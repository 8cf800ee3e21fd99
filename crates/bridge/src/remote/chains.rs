use std::collections::VecDeque;
use std::sync::Arc;

use mem::remote::RemoteMemory;
use mem::{Backing, DriverAddress, Mapping, MemoryError, MemoryMap, Span};
use virtqueue::{ChainId, Segment};

use super::transfers::{Op, Purpose, Transfers};
use crate::MoverError;

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

/// Bytes to bring between the driver's memory and ours.
pub(super) struct Bring {
    /// In the driver's memory.
    there: Segment,
    /// Here.
    here: (Arc<Mapping>, usize),
    purpose: Purpose,
    /// To the driver.
    write: bool,
}

impl Bring {
    /// From the driver.
    pub(super) fn read(there: Segment, here: (Arc<Mapping>, usize), purpose: Purpose) -> Self {
        Self { there, here, purpose, write: false }
    }

    /// To the driver.
    pub(super) fn write(there: Segment, here: (Arc<Mapping>, usize)) -> Self {
        Self { there, here, purpose: Purpose::Written, write: true }
    }
}

/// Brings bytes from or to the driver: by transfers, or at once where its memory happens to be
/// mapped. Returns how many have to be waited for.
pub(super) fn bring(
    map: &MemoryMap,
    memory: &Arc<dyn RemoteMemory>,
    what: Bring,
    transfers: &mut Transfers,
) -> Result<u64, MoverError> {
    let Bring { there, here: (mapping, offset), purpose, write } = what;
    let (mut done, mut waiting) = (0, 0);
    // Bounded: every piece has at least a byte, and crosses to another kind of region.
    while done < u64::from(there.len) {
        let at = address(there, done)?;
        let rest = u64::from(there.len) - done;
        let here = offset + done as usize;
        done += match &map.region(at)?.backing {
            Backing::Mapped { .. } => {
                let span = map.span(at, rest)?;
                let ours = Span::of_mapping(&mapping, here, span.len()).expect("our own memory");
                let copied = match write {
                    false => span.copy_to_span(&ours),
                    true => ours.copy_to_span(&span),
                };
                if copied == 0 {
                    return Err(MemoryError::ReadOnly(at).into());
                }
                copied as u64
            }
            Backing::Remote(_) => {
                let len = remote_run(map, memory, at, rest)?;
                let here = (Arc::clone(&mapping), here);
                transfers.add(Op {
                    purpose,
                    address: at.0,
                    here,
                    len: len as u32,
                    write,
                    value: None,
                });
                waiting += len;
                len
            }
        };
    }
    Ok(waiting)
}

/// Checks that all of a buffer is in memory regions.
pub(super) fn check_known(map: &MemoryMap, segment: Segment) -> Result<(), MoverError> {
    let mut done = 0;
    // Bounded: each region is passed once.
    while done < u64::from(segment.len) {
        let at = address(segment, done)?;
        done += map.region(at)?.end() - at.0;
    }
    Ok(())
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
