//! Many chains of one buffer at a time, where nothing has to look at them one by one.

use std::cell::Cell;

use virtqueue::{Burst, MAX_BURST};

use super::QueueBridge;
use crate::fault::Fault;
use crate::{Mover, Request};

thread_local! {
    /// One for all queues of a thread, as it is empty between two polls: most queues are idle, and
    /// it has more than a kilobyte.
    static BURST: Cell<Option<Box<Burst>>> = const { Cell::new(None) };
}

impl<M: Mover> QueueBridge<M> {
    /// Hands chains of one buffer on as they are, as many as come first; adds the bytes the device
    /// reads to `bytes`. What is next, if this is less than `budget`, has to be looked at by
    /// itself.
    #[inline]
    pub(super) fn submit_burst(&mut self, budget: u32, bytes: &mut u64) -> u32 {
        if self.limiter.is_some() || self.parts.ends.observer.is_some() {
            return 0;
        }
        let mut lent = BURST.take().unwrap_or_default();
        let (parts, burst) = (&mut self.parts, &mut *lent);
        let most = parts.device.room().min(budget as usize);
        parts.driver.prefetch_burst(most);
        parts.driver.take_burst(most, burst);
        let memory = parts.memory.resolver();
        let mut good = 0;
        for (&segment, &writable) in burst.segments().iter().zip(burst.writable()) {
            if !parts.mover.goes_as_it_is(memory, segment, writable) {
                break;
            }
            *bytes += if writable { 0 } else { u64::from(segment.len) };
            good += 1;
        }
        while burst.len() > good {
            burst.pop().into_iter().for_each(|id| parts.driver.untake(id));
        }
        let taken = &mut self.taken;
        parts.device.offer_burst(burst, |id| {
            let ordinal = *taken;
            *taken = taken.wrapping_add(1);
            Request { id, ordinal, load: M::Load::default() }
        });
        BURST.set(Some(lent));
        good as u32
    }

    /// Carries what the device has used back to the driver, where nothing else is to be done; adds
    /// the bytes it wrote to `bytes`.
    #[inline]
    pub(super) fn collect_bursts(&mut self, budget: u32, bytes: &mut u64) -> Result<u32, Fault> {
        let mut lent = BURST.take().unwrap_or_default();
        let (parts, burst) = (&mut self.parts, &mut *lent);
        let mut done = 0;
        let mut result = Ok(0);
        // Bounded by what is in flight.
        while done < budget {
            let most = MAX_BURST.min((budget - done) as usize);
            let mut written = [0; MAX_BURST];
            result = parts.device.take_used_burst(most, |request, len| {
                written[burst.len()] = len;
                *bytes += u64::from(len);
                burst.add(request.id);
            });
            let count = burst.len();
            parts.driver.give_back_burst(burst, &written[..count]);
            done += count as u32;
            if !matches!(result, Ok(taken) if taken == most) {
                break;
            }
        }
        BURST.set(Some(lent));
        result.map_err(Fault::Device)?;
        Ok(done)
    }
}
