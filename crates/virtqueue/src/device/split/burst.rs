use super::{ENTRIES, SplitDevice};
use crate::burst::runs;
use crate::device::flag;
use crate::{Burst, Segment};
use mem::DriverAddress;
use mem::sync::Ordering;

/// Used elements of a cache line.
const LINE: usize = 8;

impl SplitDevice {
    /// Chains that the driver has made available, up to `most` if known to be so many.
    #[inline]
    fn ready(&mut self, most: usize) -> usize {
        let ready = |queue: &Self| queue.seen_available.wrapping_sub(queue.next_available).into();
        if ready(self) < most {
            // What is wrong there is for `take` to report.
            let _ = self.look_again();
        }
        most.min(ready(self))
    }

    /// See [`crate::DeviceQueue::prefetch_burst`].
    #[inline]
    pub(in crate::device) fn prefetch_burst(&mut self, most: usize) {
        let ready = self.ready(most);
        let size = self.mask + 1;
        for places in runs(self.next_available & self.mask, ready, size) {
            for head in &self.tables.available[ENTRIES..][places] {
                let head = u16::from_le(head.load(Ordering::Relaxed));
                self.tables.descriptors.prefetch(head.into(), false);
            }
        }
        for places in runs(self.next_used & self.mask, ready, size) {
            places.step_by(LINE).for_each(|at| self.tables.used.prefetch(at, true));
        }
    }

    /// See [`crate::DeviceQueue::take_burst`].
    pub(in crate::device) fn take_burst(&mut self, most: usize, burst: &mut Burst) {
        if self.log.is_some() {
            return;
        }
        let end = burst.len().saturating_add(most);
        // Bounded: each round makes an entry.
        while let Some(head) = self.take_known(end - burst.len(), burst)
            && self.held.make(head)
        {}
    }

    /// The same; returns the head at which it ended if there is no entry for that.
    #[inline]
    fn take_known(&mut self, most: usize, burst: &mut Burst) -> Option<u16> {
        let mut unknown = None;
        // Bounded by the queue size, which `look_again` held the index against.
        let ready = self.ready(most.min(burst.room()));
        for places in runs(self.next_available & self.mask, ready, self.mask + 1) {
            let heads = &self.tables.available[ENTRIES..][places];
            let (descriptors, entries) = (&*self.tables.descriptors, self.held.entries());
            let taken = burst.extend(heads.len(), |ids, segments, writable| {
                let spare = ids.iter_mut().zip(segments).zip(writable);
                let mut taken = 0;
                for (head, ((id, segment), write)) in heads.iter().zip(spare) {
                    *id = u16::from_le(head.load(Ordering::Relaxed));
                    let head = usize::from(*id);
                    let Some(entry) = entries.get_mut(head) else {
                        unknown = Some(*id);
                        break;
                    };
                    let Some(descriptor) = descriptors.get(head) else { break };
                    let flags = descriptor.flags(Ordering::Relaxed);
                    let len = descriptor.len(Ordering::Relaxed);
                    *write = flags & flag::WRITE != 0;
                    if flags & (flag::NEXT | flag::INDIRECT) != 0
                        || len == 0
                        || !entry.claim(if *write { len } else { 0 })
                    {
                        break;
                    }
                    let addr = DriverAddress(descriptor.addr(Ordering::Relaxed));
                    *segment = Segment { addr, len };
                    taken += 1;
                }
                taken
            });
            self.next_available = self.next_available.wrapping_add(taken.len() as u16);
            self.held.note_order(taken);
            if taken.len() < heads.len() {
                break;
            }
        }
        unknown
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
        let entries = self.held.entries();
        let mut left = (ids, written);
        for places in runs(self.next_used & self.mask, ids.len(), self.mask + 1) {
            let elements = &self.tables.used[places];
            let chains = left.0.iter().zip(left.1);
            for (element, (&id, &written)) in elements.iter().zip(chains) {
                let (written, _) = entries[usize::from(id)].release(written);
                element.set_id(id.into(), Ordering::Relaxed);
                element.set_len(written, Ordering::Relaxed);
            }
            left = (&left.0[elements.len()..], &left.1[elements.len()..]);
        }
        self.next_used = self.next_used.wrapping_add(ids.len() as u16);
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
