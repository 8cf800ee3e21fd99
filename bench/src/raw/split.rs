use anyhow::Result;
use mem::ring::{Descriptor, UsedElement};
use mem::sync::{AtomicU16, Ordering};
use mem::{DriverAddress, MemoryMap, Table};
use virtqueue::QueueSpec;

use super::{Buffers, flag};

/// Position of the flags; 1 there asks for no notifications.
const FLAGS: usize = 0;
/// Position of the index in the available ring and in the used ring's header, in 16-bit units.
const INDEX: usize = 1;
/// Position of the first entry.
const ENTRIES: usize = 2;

/// The shared memory of a split ring (VIRTIO 1.4, 2.7).
pub struct Ring {
    pub descriptors: Table<Descriptor>,
    available: Table<AtomicU16>,
    used_header: Table<AtomicU16>,
    used: Table<UsedElement>,
    pub mask: u16,
}

impl Ring {
    pub fn new(map: &MemoryMap, spec: &QueueSpec) -> Result<Self> {
        let size = usize::from(spec.size);
        let at = spec.addresses;
        Ok(Self {
            descriptors: map.table(at.descriptor, size)?,
            available: map.table(at.driver, ENTRIES + size)?,
            used_header: map.table(at.device, 2)?,
            used: map.table(DriverAddress(at.device.0 + 4), size)?,
            mask: spec.size - 1,
        })
    }

    /// Asks the device for no interrupts.
    fn no_interrupts(&self) {
        self.available[FLAGS].store(1, Ordering::Relaxed);
    }

    /// Asks the driver for no notifications.
    fn no_kicks(&self) {
        self.used_header[FLAGS].store(1, Ordering::Relaxed);
    }

    #[inline]
    pub fn available_index(&self) -> u16 {
        // Acquire: pairs with `publish_available` on the other side.
        self.available[INDEX].load(Ordering::Acquire)
    }

    #[inline]
    pub fn available(&self, at: u16) -> u16 {
        self.available[ENTRIES + usize::from(at & self.mask)].load(Ordering::Relaxed)
    }

    #[inline]
    pub fn set_available(&self, at: u16, head: u16) {
        self.available[ENTRIES + usize::from(at & self.mask)].store(head, Ordering::Relaxed);
    }

    #[inline]
    pub fn publish_available(&self, index: u16) {
        // Release: pairs with `available_index`.
        self.available[INDEX].store(index, Ordering::Release);
    }

    #[inline]
    pub fn used_index(&self) -> u16 {
        // Acquire: pairs with `publish_used`.
        self.used_header[INDEX].load(Ordering::Acquire)
    }

    #[inline]
    pub fn used(&self, at: u16) -> (u32, u32) {
        let element = &self.used[usize::from(at & self.mask)];
        (element.id(Ordering::Relaxed), element.len(Ordering::Relaxed))
    }

    #[inline]
    pub fn set_used(&self, at: u16, id: u32, len: u32) {
        let element = &self.used[usize::from(at & self.mask)];
        element.set_id(id, Ordering::Relaxed);
        element.set_len(len, Ordering::Relaxed);
    }

    #[inline]
    pub fn publish_used(&self, index: u16) {
        // Release: pairs with `used_index`.
        self.used_header[INDEX].store(index, Ordering::Release);
    }
}

pub struct Driver {
    ring: Ring,
    available: u16,
    used: u16,
    /// First descriptor of the next chain.
    slot: u16,
}

impl Driver {
    pub fn new(map: &MemoryMap, spec: &QueueSpec) -> Result<Self> {
        let ring = Ring::new(map, spec)?;
        ring.no_interrupts();
        Ok(Self { ring, available: 0, used: 0, slot: 0 })
    }

    #[inline]
    pub fn offer(&mut self, count: u16, buffers: &Buffers) {
        let length = buffers.chain.len() as u16;
        for _ in 0..count {
            if self.slot + length > self.ring.mask + 1 {
                self.slot = 0;
            }
            let head = self.slot;
            for (index, (len, _)) in buffers.chain.iter().enumerate() {
                let descriptor = &self.ring.descriptors[usize::from(self.slot)];
                descriptor.set_addr(buffers.at(self.slot), Ordering::Relaxed);
                descriptor.set_len(*len, Ordering::Relaxed);
                descriptor.set_flags(buffers.flags(index), Ordering::Relaxed);
                self.slot += 1;
                descriptor.set_next(self.slot, Ordering::Relaxed);
            }
            self.ring.set_available(self.available, head);
            self.available = self.available.wrapping_add(1);
        }
        if count > 0 {
            self.ring.publish_available(self.available);
        }
    }

    #[inline]
    pub fn take_used(&mut self, most: u16) -> u16 {
        let count = self.ring.used_index().wrapping_sub(self.used).min(most);
        self.used = self.used.wrapping_add(count);
        count
    }
}

pub struct Device {
    ring: Ring,
    next: u16,
}

impl Device {
    pub fn new(map: &MemoryMap, spec: &QueueSpec) -> Result<Self> {
        let ring = Ring::new(map, spec)?;
        ring.no_kicks();
        Ok(Self { ring, next: 0 })
    }

    #[inline]
    pub fn serve(&mut self, most: u16, mut look: impl FnMut(u64, u32) -> u32) -> u16 {
        let count = self.ring.available_index().wrapping_sub(self.next).min(most);
        for _ in 0..count {
            let head = self.ring.available(self.next);
            let (mut at, mut written) = (head, 0);
            loop {
                let descriptor = &self.ring.descriptors[usize::from(at & self.ring.mask)];
                let addr = descriptor.addr(Ordering::Relaxed);
                written += look(addr, descriptor.len(Ordering::Relaxed));
                if descriptor.flags(Ordering::Relaxed) & flag::NEXT == 0 {
                    break;
                }
                at = descriptor.next(Ordering::Relaxed);
            }
            self.ring.set_used(self.next, head.into(), written);
            self.next = self.next.wrapping_add(1);
        }
        if count > 0 {
            self.ring.publish_used(self.next);
        }
        count
    }
}
