//! The other side of a ring, written by hand: it can do anything.

use mem::DriverAddress;

use super::Rig;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;
pub const AVAIL: u16 = 1 << 7;
pub const USED: u16 = 1 << 15;

/// A descriptor's 16 bytes: `(addr, len, low, high)`; flags and next when split, id and flags when
/// packed.
pub type Raw = (u64, u32, u16, u16);

fn bytes((addr, len, low, high): Raw) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&low.to_le_bytes());
    bytes[14..].copy_from_slice(&high.to_le_bytes());
    bytes
}

impl Rig {
    /// Writes descriptors one behind the other, into a ring or an indirect table.
    pub fn raw_table(&self, at: u64, descriptors: &[Raw]) {
        for (index, &raw) in descriptors.iter().enumerate() {
            self.write(DriverAddress(at + 16 * index as u64), &bytes(raw));
        }
    }

    /// Writes descriptors of the ring itself, from `first` on.
    pub fn raw_descriptors(&self, first: u16, descriptors: &[Raw]) {
        self.raw_table(self.spec.addresses.descriptor.0 + 16 * u64::from(first), descriptors);
    }

    /// Split: puts heads into the available ring from index `from` on, and the index behind them.
    pub fn raw_available(&self, from: u16, heads: &[u16]) {
        for (index, &head) in heads.iter().enumerate() {
            let slot = from.wrapping_add(index as u16) & (self.spec.size - 1);
            self.write_u16(self.spec.addresses.driver, 4 + 2 * u64::from(slot), head);
        }
        self.raw_available_index(from.wrapping_add(heads.len() as u16));
    }

    /// Split: sets the available index.
    pub fn raw_available_index(&self, index: u16) {
        self.write_u16(self.spec.addresses.driver, 2, index);
    }

    /// Split: puts elements into the used ring from index `from` on and sets the index behind them.
    pub fn raw_used(&self, from: u16, elements: &[(u32, u32)]) {
        let device = self.spec.addresses.device;
        for (index, &(id, len)) in elements.iter().enumerate() {
            let slot = from.wrapping_add(index as u16) & (self.spec.size - 1);
            let at = DriverAddress(device.0 + 4 + 8 * u64::from(slot));
            self.write(at, &id.to_le_bytes());
            self.write(DriverAddress(at.0 + 4), &len.to_le_bytes());
        }
        self.write_u16(device, 2, from.wrapping_add(elements.len() as u16));
    }

    /// Split: the used element at `slot`.
    pub fn read_used(&self, slot: u16) -> (u32, u32) {
        let at = 4 + 8 * u64::from(slot);
        let device = self.spec.addresses.device;
        (self.read_u32(device, at), self.read_u32(device, at + 4))
    }

    /// The descriptor at address `at`.
    pub fn read_raw(&self, at: u64) -> Raw {
        let mut bytes = [0; 16];
        self.map.read(DriverAddress(at), &mut bytes).unwrap();
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let word = |at| u32::from(half(at)) | u32::from(half(at + 2)) << 16;
        let addr = u64::from(word(0)) | u64::from(word(4)) << 32;
        (addr, word(8), half(12), half(14))
    }

    /// Packed: the descriptor at `index` as `(len, id, flags)`.
    pub fn read_packed(&self, index: u16) -> (u32, u16, u16) {
        let at = 16 * u64::from(index);
        let ring = self.spec.addresses.descriptor;
        (self.read_u32(ring, at + 8), self.read_u16(ring, at + 12), self.read_u16(ring, at + 14))
    }
}
