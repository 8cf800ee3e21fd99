//! Rings walked with nothing between: one buffer per chain, no notifications, a peer that is
//! trusted. The least that a ring can cost in safe Rust, which is what the library is held against,
//! and the other side of its measurements.

mod accesses;
mod naive;
mod packed;
mod relay;
mod split;
mod vfio_user;

pub use accesses::{Access, AccessCounter, Counts, Offer};
pub use naive::NaiveDisk;
pub use relay::RawRelay;
pub use vfio_user::{Poster, RegisterReader};

use anyhow::Result;
use mem::MemoryMap;
use virtqueue::{QueueSpec, RingFormat};

/// A driver that offers buffers of one length in ring order.
pub enum RawDriver {
    /// On a split ring.
    Split(split::Driver),
    /// On a packed ring.
    Packed(packed::Driver),
}

/// A device that uses up whatever is there.
pub enum RawDevice {
    /// On a split ring.
    Split(split::Device),
    /// On a packed ring.
    Packed(packed::Device),
}

/// The chains a driver offers: descriptor `i` of the ring names `stride * i` bytes from `base` on.
#[derive(Clone, Copy)]
pub struct Buffers {
    /// Address of the first.
    pub base: u64,
    /// From one to the next, in bytes.
    pub stride: u64,
    /// The buffers of each chain: length in bytes, and whether the device writes there.
    pub chain: &'static [(u32, bool)],
}

/// Bits of a descriptor's flags, the same in both formats.
mod flag {
    /// The chain goes on.
    pub const NEXT: u16 = 1;
    /// The device writes this buffer.
    pub const WRITE: u16 = 2;
}

impl Buffers {
    #[inline]
    fn at(&self, slot: u16) -> u64 {
        self.base + self.stride * u64::from(slot)
    }

    /// Flags of buffer `index` of a chain.
    #[inline]
    fn flags(&self, index: usize) -> u16 {
        let next = if index + 1 < self.chain.len() { flag::NEXT } else { 0 };
        let write = if self.chain[index].1 { flag::WRITE } else { 0 };
        next | write
    }
}

impl RawDriver {
    /// The driver's side of the ring of `spec`, at its beginning.
    pub fn new(map: &MemoryMap, spec: &QueueSpec) -> Result<Self> {
        Ok(match spec.format {
            RingFormat::Split => Self::Split(split::Driver::new(map, spec)?),
            RingFormat::Packed => Self::Packed(packed::Driver::new(map, spec)?),
        })
    }

    /// Offers `count` chains, for which there must be room, and publishes them.
    #[inline]
    pub fn offer(&mut self, count: u16, buffers: &Buffers) {
        match self {
            Self::Split(driver) => driver.offer(count, buffers),
            Self::Packed(driver) => driver.offer(count, buffers),
        }
    }

    /// Takes back at most `most` used chains of the shape of `buffers`; returns how many.
    #[inline]
    pub fn take_used(&mut self, most: u16, buffers: &Buffers) -> u16 {
        match self {
            Self::Split(driver) => driver.take_used(most),
            Self::Packed(driver) => driver.take_used(most, buffers.chain.len() as u16),
        }
    }
}

impl RawDevice {
    /// The device's side of the ring of `spec`, at its beginning.
    pub fn new(map: &MemoryMap, spec: &QueueSpec) -> Result<Self> {
        Ok(match spec.format {
            RingFormat::Split => Self::Split(split::Device::new(map, spec)?),
            RingFormat::Packed => Self::Packed(packed::Device::new(map, spec)?),
        })
    }

    /// Uses up at most `most` chains of one buffer each, `look`ing at address and length; returns
    /// how many.
    #[inline]
    pub fn serve(&mut self, most: u16, look: impl FnMut(u64, u32) -> u32) -> u16 {
        match self {
            Self::Split(device) => device.serve(most, look),
            Self::Packed(device) => device.serve(most, look),
        }
    }
}
