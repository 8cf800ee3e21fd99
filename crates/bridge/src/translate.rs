use mem::{DriverAddress, MemoryError, Resolver};
use virtqueue::{Chain, Segment};

use crate::{Mover, MoverError, Step};

/// Hands the driver's buffers on: the device has the driver's memory at the same addresses.
///
/// Each buffer is checked first, so that a device that trusts its driver is not led outside. The
/// map used for that is the one the device has confirmed.
#[derive(Debug, Default)]
pub struct TranslateMover(());

impl TranslateMover {
    /// A fresh one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Mover for TranslateMover {
    type Load = ();

    const ONE_WAY: bool = true;

    #[inline]
    fn goes_as_it_is(&self, memory: &Resolver, segment: Segment, writable: bool) -> bool {
        memory.is_in_last(segment.addr, segment.len, writable)
    }

    #[inline]
    fn outbound(&mut self, memory: &mut Resolver, chain: &Chain) -> Result<Step<()>, MoverError> {
        for segment in chain.readable() {
            check(memory, *segment, false)?;
        }
        for segment in chain.writable() {
            check(memory, *segment, true)?;
        }
        Ok(Step::Ready(()))
    }

    #[inline]
    fn segments<'a>(&'a self, chain: &'a Chain) -> (&'a [Segment], &'a [Segment]) {
        (chain.readable(), chain.writable())
    }

    #[inline]
    fn inbound(&mut self, _: &mut Resolver, (): &(), _: u32) -> Result<(), MoverError> {
        Ok(())
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
