use anyhow::Result;
use mem::ring::PackedDescriptor;
use mem::sync::Ordering;
use mem::{MemoryMap, Table};
use virtqueue::{PackedPoint, QueueSpec};

use super::Buffers;

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
    pub fn set_available(&self, at: PackedPoint) {
        let bits = if at.wrap { AVAIL } else { USED };
        // Release: pairs with the load in `bits`.
        self.descriptors[usize::from(at.index)].set_flags(bits, Ordering::Release);
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
        Ok(Self { ring: Ring::new(map, spec)?, available: start, used: start, out: 0 })
    }

    #[inline]
    pub fn offer(&mut self, count: u16, buffers: &Buffers) {
        for _ in 0..count {
            let at = self.available;
            let descriptor = &self.ring.descriptors[usize::from(at.index)];
            descriptor.set_addr(buffers.at(at.index), Ordering::Relaxed);
            descriptor.set_len(buffers.len, Ordering::Relaxed);
            descriptor.set_id(at.index, Ordering::Relaxed);
            self.ring.set_available(at);
            self.available = self.ring.next(at);
        }
        self.out += count;
    }

    #[inline]
    pub fn take_used(&mut self, most: u16) -> u16 {
        let mut count = 0;
        while count < most.min(self.out) && self.ring.is_used(self.used) {
            self.used = self.ring.next(self.used);
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
        Ok(Self { ring: Ring::new(map, spec)?, next: PackedPoint::START })
    }

    #[inline]
    pub fn serve(&mut self, most: u16, mut look: impl FnMut(u64, u32)) -> u16 {
        let mut count = 0;
        while count < most && self.ring.is_available(self.next) {
            let descriptor = &self.ring.descriptors[usize::from(self.next.index)];
            look(descriptor.addr(Ordering::Relaxed), descriptor.len(Ordering::Relaxed));
            descriptor.set_len(0, Ordering::Relaxed);
            self.ring.set_used(self.next);
            self.next = self.ring.next(self.next);
            count += 1;
        }
        count
    }
}
