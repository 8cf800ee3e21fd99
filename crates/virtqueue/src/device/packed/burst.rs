use super::{Cursor, PackedDevice, has_bits};
use crate::barrier::Barrier;
use crate::burst::runs;
use crate::device::flag;
use crate::{Burst, Segment};
use mem::DriverAddress;
use mem::sync::Ordering;

/// Descriptors of a cache line.
const LINE: usize = 4;

impl PackedDevice {
    /// See [`crate::DeviceQueue::prefetch_burst`].
    #[inline]
    pub(in crate::device) fn prefetch_burst(&mut self, most: usize) {
        let ring = &self.tables.ring;
        let Cursor { index, bits } = self.available;
        let flags = ring[usize::from(index)].flags(Ordering::Relaxed);
        if has_bits(flags, bits) {
            for places in runs(index, most.min(self.room()), self.size) {
                places.step_by(LINE).for_each(|at| ring.prefetch(at, true));
            }
        }
    }

    /// How many chains of one descriptor may be taken before one is given back.
    #[inline]
    fn room(&self) -> usize {
        u32::from(self.size).saturating_sub(self.between()) as usize
    }

    /// See [`crate::DeviceQueue::take_burst`].
    pub(in crate::device) fn take_burst(&mut self, most: usize, burst: &mut Burst) {
        if self.log.is_some() {
            return;
        }
        let end = burst.len().saturating_add(most);
        // Bounded: each round makes an entry.
        while let Some(id) = self.take_known(end - burst.len(), burst)
            && self.held.make(id)
        {}
    }

    /// The same; returns the id at which it ended if there is no entry for that.
    #[inline]
    fn take_known(&mut self, most: usize, burst: &mut Burst) -> Option<u16> {
        let mut unknown = None;
        // Bounded by what is not in flight: a chain may not run into another's descriptors.
        let most = most.min(burst.room()).min(self.room());
        for places in runs(self.available.index, most, self.size) {
            let descriptors = &self.tables.ring[places];
            let bits = self.available.bits;
            let entries = self.held.entries();
            let taken = burst.extend(descriptors.len(), |ids, segments, writable| {
                let spare = ids.iter_mut().zip(segments).zip(writable);
                let mut taken = 0;
                for (descriptor, ((id, segment), write)) in descriptors.iter().zip(spare) {
                    // Acquire: pairs with the driver's barrier before it writes the first
                    // descriptor's flags (VIRTIO 1.4, 2.8.21.2).
                    let flags = descriptor.flags(Barrier::SeeAvailable.acquire());
                    const KIND: u16 = flag::AVAIL | flag::USED | flag::NEXT | flag::INDIRECT;
                    let len = descriptor.len(Ordering::Relaxed);
                    if flags & KIND != bits || len == 0 {
                        break;
                    }
                    *id = descriptor.id(Ordering::Relaxed);
                    *write = flags & flag::WRITE != 0;
                    let Some(entry) = entries.get_mut(usize::from(*id)) else {
                        unknown = Some(*id);
                        break;
                    };
                    if !entry.claim(if *write { len } else { 0 }) {
                        break;
                    }
                    let addr = DriverAddress(descriptor.addr(Ordering::Relaxed));
                    *segment = Segment { addr, len };
                    taken += 1;
                }
                taken
            });
            self.available.advance(taken.len() as u16, self.size);
            self.taken = self.taken.wrapping_add(taken.len() as u32);
            self.held.note_order(taken);
            if taken.len() < descriptors.len() {
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
        let mut done = 0;
        if self.unseen() == 0 && !ids.is_empty() {
            // The first of a publication is held back, so it goes by itself.
            self.give_back_one(ids[0], written[0]);
            done = 1;
        }
        // Up to the end of the ring, and from its beginning.
        for _ in 0..2 {
            done += self.give_back_run(&ids[done..], &written[done..]);
        }
        // Chains of several descriptors seldom come alone: the rest goes one by one.
        let ring = &*self.tables.ring;
        // Copies, which stay in registers.
        let (mut used, mut given, size) = (self.used, self.given, self.size);
        let entries = self.held.entries();
        for (&id, &written) in ids[done..].iter().zip(&written[done..]) {
            let (written, slots) = entries[usize::from(id)].release(written);
            let descriptor = &ring[usize::from(used.index)];
            descriptor.set_id(id, Ordering::Relaxed);
            descriptor.set_len(written, Ordering::Relaxed);
            let flags = used.bits | if written > 0 { flag::WRITE } else { 0 };
            descriptor.set_flags(flags, Ordering::Relaxed);
            used.advance(slots, size);
            given = given.wrapping_add(slots.into());
        }
        (self.used, self.given) = (used, given);
    }

    #[inline]
    fn give_back_one(&mut self, id: u16, written: u32) {
        let (written, slots) = self.held.remove(id, written);
        self.write_used(id, written, slots);
    }

    /// Gives back chains of one descriptor, not the first of a publication, up to the end of the
    /// ring; returns how many.
    #[inline]
    fn give_back_run(&mut self, ids: &[u16], written: &[u32]) -> usize {
        let Cursor { index, bits } = self.used;
        let chains = ids.iter().zip(written);
        let entries = self.held.entries();
        let mut done = 0;
        for (descriptor, (&id, &written)) in
            self.tables.ring[usize::from(index)..].iter().zip(chains)
        {
            let entry = &mut entries[usize::from(id)];
            if !entry.is_single() {
                break;
            }
            let (written, _) = entry.release(written);
            descriptor.set_id(id, Ordering::Relaxed);
            descriptor.set_len(written, Ordering::Relaxed);
            let flags = bits | if written > 0 { flag::WRITE } else { 0 };
            descriptor.set_flags(flags, Ordering::Relaxed);
            done += 1;
        }
        self.used.advance(done, self.size);
        self.given = self.given.wrapping_add(done.into());
        done.into()
    }

    /// With IN_ORDER, gives back as many as are the first in flight; returns how many.
    #[inline]
    fn give_back_first(&mut self, ids: &[u16], written: &[u32]) -> usize {
        let ring = &*self.tables.ring;
        let (mut used, mut given, size) = (self.used, self.given, self.size);
        let (mut unpublished, published) = (self.unpublished, self.published);
        let first = self.held.remove_first(ids, written, |due| {
            let descriptor = &ring[usize::from(used.index)];
            descriptor.set_id(due.id, Ordering::Relaxed);
            descriptor.set_len(due.written, Ordering::Relaxed);
            let flags = used.bits | if due.written > 0 { flag::WRITE } else { 0 };
            if given == published {
                unpublished = (used.index, flags);
            } else {
                descriptor.set_flags(flags, Ordering::Relaxed);
            }
            used.advance(due.slots, size);
            given = given.wrapping_add(due.slots.into());
        });
        (self.used, self.given, self.unpublished) = (used, given, unpublished);
        first
    }
}
