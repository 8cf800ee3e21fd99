use mem::{DriverAddress, MemoryError, MemoryMap, Resolver};
use virtqueue::{Chain, Segment};

use crate::{Mover, MoverError, Step};

/// Hands the driver's buffers on: the device has the driver's memory at the same addresses.
///
/// Each buffer is checked first, so that a device that trusts its driver is not led outside. The
/// map used for that is the one the device has confirmed.
#[derive(Debug, Default)]
pub struct TranslateMover {
    /// During a migration: where the chains that are with the device may be written.
    record: Option<Record>,
}

impl TranslateMover {
    /// A fresh one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A fresh one for a driver with this memory. If it has a dirty log, the driver is being
    /// migrated: the mover marks there what the device may have written, whether the device can do
    /// that itself or not.
    #[must_use]
    pub fn on(map: &MemoryMap) -> Self {
        Self { record: map.dirty_log().map(|_| Record::default()) }
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
        !is_noted && memory.is_in_last(segment.addr, segment.len, writable)
    }

    #[inline]
    fn outbound(
        &mut self,
        memory: &mut Resolver,
        chain: &Chain,
    ) -> Result<Step<Noted>, MoverError> {
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
        (chain.readable(), chain.writable())
    }

    #[inline]
    fn inbound(&mut self, memory: &mut Resolver, noted: &Noted, _: u32) -> Result<(), MoverError> {
        if let Some(record) = &mut self.record {
            record.mark(memory.map(), noted);
        }
        Ok(())
    }
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
