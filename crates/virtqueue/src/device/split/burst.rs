use super::{ENTRIES, SplitDevice};
use crate::device::flag;
use crate::{Burst, Segment};
use mem::DriverAddress;
use mem::sync::Ordering;

/// Used elements of a cache line.
const LINE: usize = 8;

impl SplitDevice {
    /// Chains that the driver had made available when we last looked.
    #[inline]
    fn ready(&self) -> usize {
        self.seen_available.wrapping_sub(self.next_available).into()
    }

    /// See [`crate::DeviceQueue::take_burst`].
    pub(in crate::device) fn take_burst(&mut self, most: usize, burst: &mut Burst) {
        if self.log.is_some() {
            return;
        }
        let mut ready = self.ready();
        if ready < most {
            // What is wrong there is for `take` to report.
            let _ = self.look_again();
            ready = self.ready();
        }
        let (descriptors, available) = (&self.tables.descriptors, &*self.tables.available);
        let mut at = self.next_available;
        // Bounded by the queue size, which `look_again` held the index against.
        let most = most.min(burst.room()).min(ready);
        for ahead in 0..most as u16 {
            let slot = ENTRIES + usize::from(at.wrapping_add(ahead) & self.mask);
            let head = u16::from_le(available[slot].load(Ordering::Relaxed));
            descriptors.prefetch(head.into(), false);
        }
        for ahead in (0..most as u16).step_by(LINE) {
            let slot = self.next_used.wrapping_add(ahead) & self.mask;
            self.tables.used.prefetch(slot.into(), true);
        }
        for _ in 0..most {
            let slot = ENTRIES + usize::from(at & self.mask);
            let head = u16::from_le(available[slot].load(Ordering::Relaxed));
            let Some(descriptor) = descriptors.get(usize::from(head)) else { break };
            let (flags, len) =
                (descriptor.flags(Ordering::Relaxed), descriptor.len(Ordering::Relaxed));
            let single = flags & (flag::NEXT | flag::INDIRECT) == 0 && len > 0;
            if !single || !self.held.is_free(head) {
                break;
            }
            let writable = flags & flag::WRITE != 0;
            let addr = DriverAddress(descriptor.addr(Ordering::Relaxed));
            self.held.insert_uncounted(head, if writable { len } else { 0 }, 1);
            burst.push(head, Segment { addr, len }, writable);
            at = at.wrapping_add(1);
        }
        self.held.count_inserted(at.wrapping_sub(self.next_available));
        self.next_available = at;
    }

    /// See [`crate::DeviceQueue::give_back_burst`].
    pub(in crate::device) fn give_back_burst(&mut self, burst: &mut Burst, written: &[u32]) {
        let ids = burst.finish(written);
        if self.log.is_some() {
            // Each has an element of its own, and the log sees one after the other.
            return ids
                .iter()
                .zip(written)
                .for_each(|(&id, &len)| self.give_back_in_order(id, len));
        }
        if !self.simple {
            let first = self.give_back_first(ids, written);
            for (&id, &written) in ids.iter().zip(written).skip(first) {
                self.held.finish(id, written);
            }
            return self.write_due();
        }
        let (used, mask) = (&*self.tables.used, self.mask);
        // A copy, which stays in a register.
        let mut next = self.next_used;
        self.held.remove_all(ids, written, |id, written, _| {
            let element = &used[usize::from(next & mask)];
            element.set_id(id.into(), Ordering::Relaxed);
            element.set_len(written, Ordering::Relaxed);
            next = next.wrapping_add(1);
        });
        self.next_used = next;
    }

    /// With IN_ORDER, gives back as many as are the first in flight; returns how many.
    #[inline]
    fn give_back_first(&mut self, ids: &[u16], written: &[u32]) -> usize {
        let (used, mask) = (&*self.tables.used, self.mask);
        let mut next = self.next_used;
        let first = self.held.remove_first(ids, written, |due| {
            let element = &used[usize::from(next & mask)];
            element.set_id(due.id.into(), Ordering::Relaxed);
            element.set_len(due.written, Ordering::Relaxed);
            next = next.wrapping_add(due.chains);
        });
        self.next_used = next;
        first
    }
}
