//! The capabilities that most functions have, as bytes and write masks.

use super::{ConfigSpace, capability_id};
use crate::layout::LayoutError;

/// What kind of PCI Express function it is (PCIe 7.5.3.2, Device/Port Type).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PcieKind {
    /// An endpoint.
    Endpoint,
    /// An endpoint that may need I/O ports.
    LegacyEndpoint,
}

/// The PCI Express capability, version 2 (PCIe 7.5.3): FLR, one 2.5 GT/s lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PcieCapability {
    /// The kind of function.
    pub kind: PcieKind,
    /// Whether it offers function level reset.
    pub flr: bool,
}

impl PcieCapability {
    /// Offset in the capability of the byte that initiates a function level reset: the upper one of
    /// Device Control.
    pub const FLR_BYTE: usize = 9;
    /// Its bit there.
    pub const FLR_BIT: u8 = 0x80;
    /// Offset in the capability of Device Status.
    pub const DEVICE_STATUS: usize = 10;
    /// Its bits that tell of errors: correctable, non-fatal, fatal, unsupported request.
    pub const ERRORS: u8 = 0x0f;
    /// Non-Fatal Error Detected among them.
    pub const NON_FATAL: u8 = 1 << 1;
    /// Unsupported Request Detected among them.
    pub const UNSUPPORTED: u8 = 1 << 3;
    /// Size in bytes without the id and the link.
    const BODY: usize = 58;

    /// Appends the capability to `config`.
    ///
    /// # Errors
    /// [`LayoutError::ConfigFull`].
    pub fn add_to(self, config: &mut ConfigSpace) -> Result<usize, LayoutError> {
        let mut body = [0; Self::BODY];
        let mut mask = [0; Self::BODY];
        let kind = match self.kind {
            PcieKind::Endpoint => 0,
            PcieKind::LegacyEndpoint => 1,
        };
        // Offsets below are those of the specification less the two bytes of id and link.
        body[0..2].copy_from_slice(&(2u16 | kind << 4).to_le_bytes());
        // Device Capabilities: role-based error reporting, FLR.
        let device = 1u32 << 15 | u32::from(self.flr) << 28;
        body[2..6].copy_from_slice(&device.to_le_bytes());
        // Device Control: everything but FLR, which reads as 0.
        mask[6..8].copy_from_slice(&0x7fffu16.to_le_bytes());
        // Link Capabilities and Link Status: 2.5 GT/s, x1.
        body[10..14].copy_from_slice(&0x11u32.to_le_bytes());
        mask[14..16].copy_from_slice(&0x00c3u16.to_le_bytes());
        body[16..18].copy_from_slice(&0x11u16.to_le_bytes());
        // Device Control 2: completion timeout, and the rest that does nothing here.
        mask[38..40].copy_from_slice(&0x001fu16.to_le_bytes());
        let at = config.add_capability(capability_id::PCI_EXPRESS, &body, &mask)?;
        config.allow_clearing(at + Self::DEVICE_STATUS, &[Self::ERRORS]);
        Ok(at)
    }
}

/// The MSI capability with 64-bit addresses (PCIe 7.7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// Vectors: 1, 2, 4, 8, 16 or 32.
    pub vectors: u8,
}

impl Msi {
    /// Appends the capability to `config`.
    ///
    /// # Errors
    /// [`LayoutError::ConfigFull`], [`LayoutError::BadVectors`].
    pub fn add_to(self, config: &mut ConfigSpace) -> Result<usize, LayoutError> {
        if !self.vectors.is_power_of_two() || self.vectors > 32 {
            return Err(LayoutError::BadVectors(self.vectors.into()));
        }
        let control = 1u16 << 7 | (self.vectors.trailing_zeros() as u16) << 1;
        let mut body = [0; 12];
        body[..2].copy_from_slice(&control.to_le_bytes());
        // Control: enable and the number of vectors in use; then address, upper address, data.
        let mask = [0x71, 0, 0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        config.add_capability(capability_id::MSI, &body, &mask)
    }
}

/// The MSI-X capability (PCIe 7.7.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msix {
    /// Vectors, 1 to 2048.
    pub vectors: u16,
    /// BAR that holds the table and the pending bits.
    pub bar: u8,
    /// Offset in bytes of the table, a multiple of 8.
    pub table: u32,
    /// Offset in bytes of the pending bits, a multiple of 8.
    pub pending: u32,
}

impl Msix {
    /// Size in bytes of a table entry.
    pub const ENTRY: u32 = 16;

    /// Appends the capability to `config`.
    ///
    /// # Errors
    /// [`LayoutError::ConfigFull`], [`LayoutError::BadVectors`].
    pub fn add_to(self, config: &mut ConfigSpace) -> Result<usize, LayoutError> {
        if !(1..=2048).contains(&self.vectors) {
            return Err(LayoutError::BadVectors(self.vectors.into()));
        }
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(self.vectors - 1).to_le_bytes());
        body[2..6].copy_from_slice(&(self.table & !7 | u32::from(self.bar & 7)).to_le_bytes());
        body[6..].copy_from_slice(&(self.pending & !7 | u32::from(self.bar & 7)).to_le_bytes());
        // Control: enable and the function mask.
        config.add_capability(capability_id::MSIX, &body, &[0, 0xc0])
    }
}

impl ConfigSpace {
    /// Appends a power management capability with D0 and D3hot (PCIe 7.5.2); coming back to D0
    /// resets the function.
    ///
    /// # Errors
    /// [`LayoutError::ConfigFull`].
    pub fn add_power_management(&mut self) -> Result<usize, LayoutError> {
        // Version 3; control: the power state.
        let body = [0x03, 0, 0, 0, 0, 0];
        self.add_capability(capability_id::POWER_MANAGEMENT, &body, &[0, 0, 0x03])
    }
}
