use anyhow::Result;
use mem::ring::PackedDescriptor;
use mem::sync::{AtomicU32, Ordering};
use mem::{MemoryMap, Table};
use virtqueue::{PackedPoint, QueueSpec};

use super::{Buffers, flag};

/// In an event word: no notifications (VIRTIO 1.4, 2.8.10).
const DISABLE: u32 = 1 << 16;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// The shared memory of a packed ring (VIRTIO 1.4, 2.8).
pub struct Ring {
    pub descriptors: Table<PackedDescriptor>,
    pub size: u16,
}

impl Ring {
    pub fn new(map: &MemoryMap, spec: &QueueSpec) -> Result<Self> {
        let descriptors = map.table(spec.addresses.descriptor, usize::from(spec.size))?;
        Ok(Self { descriptors, size: spec.size })
    }

    /// Whether the descriptor at `at` is available.
    #[inline]
    pub fn is_available(&self, at: PackedPoint) -> bool {
        let bits = if at.wrap { AVAIL } else { USED };
        // Acquire: pairs with `set_available`.
        self.bits(at) == bits
    }

    /// Whether the descriptor at `at` is used.
    #[inline]
    pub fn is_used(&self, at: PackedPoint) -> bool {
        let bits = if at.wrap { AVAIL | USED } else { 0 };
        self.bits(at) == bits
    }

    #[inline]
    fn bits(&self, at: PackedPoint) -> u16 {
        let flags = self.descriptors[usize::from(at.index)].flags(Ordering::Acquire);
        flags & (AVAIL | USED)
    }

    #[inline]
    pub fn set_available(&self, at: PackedPoint, flags: u16) {
        let bits = if at.wrap { AVAIL } else { USED };
        // Release: pairs with the load in `bits`.
        self.descriptors[usize::from(at.index)].set_flags(bits | flags, Ordering::Release);
    }

    #[inline]
    pub fn set_used(&self, at: PackedPoint) {
        let bits = if at.wrap { AVAIL | USED } else { 0 };
        self.descriptors[usize::from(at.index)].set_flags(bits, Ordering::Release);
    }

    #[inline]
    pub fn next(&self, at: PackedPoint) -> PackedPoint {
        at.advanced(1, self.size)
    }
}

pub struct Driver {
    ring: Ring,
    available: PackedPoint,
    used: PackedPoint,
    out: u16,
}

impl Driver {
    pub fn new(map: &MemoryMap, spec: &QueueSpec) -> Result<Self> {
        let start = PackedPoint::START;
        map.table::<AtomicU32>(spec.addresses.driver, 1)?[0].store(DISABLE, Ordering::Relaxed);
        Ok(Self { ring: Ring::new(map, spec)?, available: start, used: start, out: 0 })
    }

    #[inline]
    pub fn offer(&mut self, count: u16, buffers: &Buffers) {
        for _ in 0..count {
            let first = self.available;
            for (index, (len, _)) in buffers.chain.iter().enumerate() {
                let at = self.available;
                let descriptor = &self.ring.descriptors[usize::from(at.index)];
                descriptor.set_addr(buffers.at(at.index), Ordering::Relaxed);
                descriptor.set_len(*len, Ordering::Relaxed);
                descriptor.set_id(first.index, Ordering::Relaxed);
                // The chain's first descriptor shows all of it, so it comes last.
                if index > 0 {
                    self.ring.set_available(at, buffers.flags(index));
                }
                self.available = self.ring.next(at);
            }
            self.ring.set_available(first, buffers.flags(0));
        }
        self.out += count;
    }

    #[inline]
    pub fn take_used(&mut self, most: u16, length: u16) -> u16 {
        let mut count = 0;
        while count < most.min(self.out) && self.ring.is_used(self.used) {
            self.used = self.used.advanced(length, self.ring.size);
            count += 1;
        }
        self.out -= count;
        count
    }
}

pub struct Device {
    ring: Ring,
    next: PackedPoint,
}

impl Device {
    pub fn new(map: &MemoryMap, spec: &QueueSpec) -> Result<Self> {
        map.table::<AtomicU32>(spec.addresses.device, 1)?[0].store(DISABLE, Ordering::Relaxed);
        Ok(Self { ring: Ring::new(map, spec)?, next: PackedPoint::START })
    }

    #[inline]
    pub fn serve(&mut self, most: u16, mut look: impl FnMut(u64, u32) -> u32) -> u16 {
        let mut count = 0;
        while count < most && self.ring.is_available(self.next) {
            let first = self.next;
            let mut written = 0;
            let id = loop {
                let descriptor = &self.ring.descriptors[usize::from(self.next.index)];
                let addr = descriptor.addr(Ordering::Relaxed);
                written += look(addr, descriptor.len(Ordering::Relaxed));
                self.next = self.ring.next(self.next);
                if descriptor.flags(Ordering::Relaxed) & flag::NEXT == 0 {
                    break descriptor.id(Ordering::Relaxed);
                }
            };
            let descriptor = &self.ring.descriptors[usize::from(first.index)];
            descriptor.set_id(id, Ordering::Relaxed);
            descriptor.set_len(written, Ordering::Relaxed);
            self.ring.set_used(first);
            count += 1;
        }
        count
    }
}
