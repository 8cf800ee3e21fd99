use super::{PackedDevice, available_bits, has_bits, used_bits};
use crate::device::flag;
use crate::{Burst, Segment};
use mem::DriverAddress;
use mem::sync::Ordering;

/// Descriptors of a cache line.
const LINE: usize = 4;

impl PackedDevice {
    /// See [`crate::DeviceQueue::take_burst`].
    pub(in crate::device) fn take_burst(&mut self, most: usize, burst: &mut Burst) {
        if self.log.is_some() {
            return;
        }
        let ring = &self.tables.ring;
        let mut at = self.available;
        let mut taken = 0;
        // Bounded by what is not in flight: a chain may not run into another's descriptors.
        let free = usize::from(self.size - self.taken);
        // Most likely all will be written soon, as used.
        let flags = ring[usize::from(at.index)].flags(Ordering::Relaxed);
        if has_bits(flags, available_bits(at.wrap)) {
            for ahead in (LINE..most.min(free)).step_by(LINE) {
                ring.prefetch(usize::from(at.advanced(ahead as u16, self.size).index), true);
            }
        }
        for _ in 0..most.min(burst.room()).min(free) {
            let descriptor = &ring[usize::from(at.index)];
            // Acquire: pairs with the driver's barrier before it writes the first descriptor's
            // flags (VIRTIO 1.4, 2.8.21.2).
            let flags = descriptor.flags(Ordering::Acquire);
            let wanted = flag::NEXT | flag::INDIRECT;
            if !has_bits(flags, available_bits(at.wrap)) || flags & wanted != 0 {
                break;
            }
            let (id, len) = (descriptor.id(Ordering::Relaxed), descriptor.len(Ordering::Relaxed));
            if len == 0 || !self.held.is_free(id) {
                break;
            }
            let writable = flags & flag::WRITE != 0;
            let addr = DriverAddress(descriptor.addr(Ordering::Relaxed));
            self.held.insert_uncounted(id, if writable { len } else { 0 }, 1);
            burst.push(id, Segment { addr, len }, writable);
            at = at.advanced(1, self.size);
            taken += 1;
        }
        self.available = at;
        self.taken += taken;
        self.held.count_inserted(taken);
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
        let ring = &*self.tables.ring;
        // Copies, which stay in registers.
        let (mut used, mut given, size) = (self.used, self.given, self.size);
        let mut unpublished = self.unpublished;
        self.held.remove_all(ids, written, |id, written, slots| {
            let descriptor = &ring[usize::from(used.index)];
            descriptor.set_id(id, Ordering::Relaxed);
            descriptor.set_len(written, Ordering::Relaxed);
            let flags = used_bits(used.wrap) | if written > 0 { flag::WRITE } else { 0 };
            // As in `write_used`: holding back the first holds back all.
            if given == 0 {
                unpublished = (used.index, flags);
            } else {
                descriptor.set_flags(flags, Ordering::Relaxed);
            }
            used = used.advanced(slots, size);
            given += slots;
        });
        self.taken -= given - self.given;
        (self.used, self.given, self.unpublished) = (used, given, unpublished);
    }

    /// With IN_ORDER, gives back as many as are the first in flight; returns how many.
    #[inline]
    fn give_back_first(&mut self, ids: &[u16], written: &[u32]) -> usize {
        let ring = &*self.tables.ring;
        let (mut used, mut given, size) = (self.used, self.given, self.size);
        let mut unpublished = self.unpublished;
        let first = self.held.remove_first(ids, written, |due| {
            let descriptor = &ring[usize::from(used.index)];
            descriptor.set_id(due.id, Ordering::Relaxed);
            descriptor.set_len(due.written, Ordering::Relaxed);
            let flags = used_bits(used.wrap) | if due.written > 0 { flag::WRITE } else { 0 };
            if given == 0 {
                unpublished = (used.index, flags);
            } else {
                descriptor.set_flags(flags, Ordering::Relaxed);
            }
            used = used.advanced(due.slots, size);
            given += due.slots;
        });
        self.taken -= given - self.given;
        (self.used, self.given, self.unpublished) = (used, given, unpublished);
        first
    }
}
