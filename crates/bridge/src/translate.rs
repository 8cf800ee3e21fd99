use mem::{DriverAddress, MemoryError, MemoryMap, Resolver};
use virtqueue::{Chain, Segment};

use crate::{Mover, MoverError, Step};

/// Hands the driver's buffers on.
///
/// Each buffer is checked first, so that a device that trusts its driver is not led outside. The
/// map used for that is the one the device has confirmed.
///
/// Mostly the device has the driver's memory at the driver's addresses. A driver behind an IOMMU
/// has addresses that come and go by the thousand, page by page, and a device takes a few regions:
/// it is then given whole files at addresses that stay (see [`crate::aliases`]), and buffers are
/// handed on as pieces of those.
#[derive(Debug, Default)]
pub struct TranslateMover {
    /// During a migration: where the chains that are with the device may be written.
    record: Option<Record>,
    /// For a device that has the memory at other addresses: the last chain in those.
    pieces: Option<Pieces>,
}

#[derive(Debug)]
struct Pieces {
    readable: Vec<Segment>,
    writable: Vec<Segment>,
}

impl TranslateMover {
    /// For a device that has the driver's memory at the same addresses.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A fresh one for a driver with this memory. If it has a dirty log, the driver is being
    /// migrated: the mover marks there what the device may have written, whether the device can do
    /// that itself or not.
    #[must_use]
    pub fn on(map: &MemoryMap) -> Self {
        Self { record: map.dirty_log().map(|_| Record::default()), pieces: None }
    }

    /// For a device that has the memory as aliases; `size` is that of its queue.
    #[must_use]
    pub(crate) fn aliased(size: u16) -> Self {
        let list = || Vec::with_capacity(size.into());
        Self { record: None, pieces: Some(Pieces { readable: list(), writable: list() }) }
    }
}

impl Mover for TranslateMover {
    type Load = Noted;

    #[inline]
    fn is_one_way(&self) -> bool {
        self.record.is_none()
    }

    #[inline]
    fn goes_as_it_is(&self, memory: &Resolver, segment: Segment, writable: bool) -> bool {
        let is_noted = writable && self.record.is_some();
        let is_same = self.pieces.is_none() && !is_noted;
        is_same && memory.is_in_last(segment.addr, segment.len, writable)
    }

    #[inline]
    fn outbound(
        &mut self,
        memory: &mut Resolver,
        chain: &Chain,
    ) -> Result<Step<Noted>, MoverError> {
        if let Some(pieces) = &mut self.pieces {
            fill(&mut pieces.readable, memory, chain.readable(), false)?;
            fill(&mut pieces.writable, memory, chain.writable(), true)?;
            return Ok(Step::Ready(Noted::NOTHING));
        }
        for segment in chain.readable() {
            check(memory, *segment, false)?;
        }
        for segment in chain.writable() {
            check(memory, *segment, true)?;
        }
        let noted = match &mut self.record {
            Some(record) => record.note(chain.writable()),
            None => Noted::NOTHING,
        };
        Ok(Step::Ready(noted))
    }

    #[inline]
    fn segments<'a>(&'a self, chain: &'a Chain) -> (&'a [Segment], &'a [Segment]) {
        match &self.pieces {
            Some(pieces) => (&pieces.readable, &pieces.writable),
            None => (chain.readable(), chain.writable()),
        }
    }

    #[inline]
    fn inbound(&mut self, memory: &mut Resolver, noted: &Noted, _: u32) -> Result<(), MoverError> {
        if let Some(record) = &mut self.record {
            record.mark(memory.map(), noted);
        }
        Ok(())
    }
}

/// Puts the pieces of `buffers` in the device's addresses into `list`, without making it longer
/// than it was made for.
fn fill(
    list: &mut Vec<Segment>,
    memory: &mut Resolver,
    buffers: &[Segment],
    writable: bool,
) -> Result<(), MoverError> {
    list.clear();
    let limit = list.capacity();
    for buffer in buffers {
        let first = list.len();
        let (mut at, mut left) = (buffer.addr, u64::from(buffer.len));
        // Bounded: each region is passed once.
        while left > 0 {
            let span = memory.span(at, left)?;
            if writable && !span.is_writable() {
                return Err(MemoryError::ReadOnly(at).into());
            }
            let (addr, len) = (DriverAddress(span.alias()), span.len() as u32);
            left -= u64::from(len);
            at = DriverAddress(at.0.wrapping_add(len.into()));
            // Pages that follow each other in the file are one piece, as they mostly do.
            if let Some(last) = list[first..].last_mut().filter(|last| ends_at(last, addr)) {
                last.len += len;
            } else if list.len() < limit {
                list.push(Segment { addr, len });
            } else {
                return Err(MoverError::TooManySegments { segments: limit + 1, limit });
            }
        }
    }
    Ok(())
}

fn ends_at(piece: &Segment, at: DriverAddress) -> bool {
    piece.addr.0 + u64::from(piece.len) == at.0
}

/// What the mover keeps with a chain: the number of its note, if there is one.
#[derive(Debug)]
pub struct Noted(u16);

impl Noted {
    const NOTHING: Self = Self(u16::MAX);
}

impl Default for Noted {
    fn default() -> Self {
        Self::NOTHING
    }
}

/// The writable buffers of chains that are with the device. Notes are used again, so that nothing
/// is allocated once there were as many as ever at a time.
#[derive(Debug, Default)]
struct Record {
    notes: Vec<Vec<Segment>>,
    free: Vec<u16>,
}

impl Record {
    fn note(&mut self, writable: &[Segment]) -> Noted {
        if writable.is_empty() {
            return Noted::NOTHING;
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.notes.push(Vec::new());
            // A queue has 32,768 descriptors at most, and a chain in flight takes one.
            (self.notes.len() - 1) as u16
        });
        let note = &mut self.notes[usize::from(number)];
        note.clear();
        note.extend_from_slice(writable);
        Noted(number)
    }

    /// Marks all of the buffers, not only what the device says it wrote: some write more than they
    /// tell.
    fn mark(&mut self, map: &MemoryMap, noted: &Noted) {
        let Some(note) = self.notes.get(usize::from(noted.0)) else { return };
        for segment in note {
            map.mark_dirty(segment.addr, segment.len.into());
        }
        self.free.push(noted.0);
    }
}

/// Checks that all of a buffer is in memory regions, of which it may cross several.
#[inline]
pub(crate) fn check(
    memory: &mut Resolver,
    segment: Segment,
    writable: bool,
) -> Result<(), MoverError> {
    if memory.is_in_last(segment.addr, segment.len, writable) {
        return Ok(());
    }
    check_slowly(memory, segment, writable)
}

/// The same for a buffer that lies elsewhere, or crosses regions.
#[cold]
fn check_slowly(memory: &mut Resolver, segment: Segment, writable: bool) -> Result<(), MoverError> {
    let (mut at, mut left) = (segment.addr, u64::from(segment.len));
    // Bounded: each region is passed once.
    while left > 0 {
        let span = memory.span(at, left)?;
        if writable && !span.is_writable() {
            return Err(MemoryError::ReadOnly(at).into());
        }
        left -= span.len() as u64;
        at = DriverAddress(at.0.wrapping_add(span.len() as u64));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mem::{Access, Mapping, MemoryMap, Region};

    use super::*;

    #[test]
    fn a_buffer_behind_an_iommu_goes_in_few_pieces() {
        let mapping = Mapping::new_memfd("pieces", 8 << 12).unwrap();
        let page = |start: u64, offset: u64, access| {
            let start = DriverAddress(start);
            Region::mapped(start, 4096, access, Arc::clone(&mapping), offset).unwrap()
        };
        let both = Access::ReadWrite;
        let pages =
            vec![page(0x1000, 0x3000, both), page(0x2000, 0x4000, both), page(0x3000, 0, both)];
        let map = MemoryMap::new(pages).unwrap().translated();
        let mut memory = Resolver::new(Arc::new(map));
        let mut list = Vec::with_capacity(2);
        let buffer = |addr, len| Segment { addr: DriverAddress(addr), len };
        fill(&mut list, &mut memory, &[buffer(0x1ff0, 0x1020)], true).unwrap();
        let base = mapping.alias();
        assert_eq!(list, [buffer(base + 0x3ff0, 0x1010), buffer(base, 0x10)]);
        let three = [buffer(0x1000, 1), buffer(0x2000, 1), buffer(0x3000, 1)];
        let error = fill(&mut list, &mut memory, &three, true).unwrap_err();
        assert!(matches!(error, MoverError::TooManySegments { segments: 3, limit: 2 }));
        let error = fill(&mut list, &mut memory, &[buffer(0x3000, 4097)], false).unwrap_err();
        assert_eq!(error.miss(), Some(DriverAddress(0x4000)));
    }
}
