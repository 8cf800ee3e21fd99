//! A PCI function's configuration space (PCI Express Base 7, "7.5 PCI and PCIe Capabilities
//! Required ..").
//!
//! Bytes with a write mask each: what a driver may change, what it clears by writing ones, and what
//! only the function itself changes. Any width at any offset is fine; bytes beyond the end read as
//! ones and ignore writes.

mod capability;
mod image;
mod space;

pub use capability::{Msi, Msix, PcieCapability, PcieKind};
pub use space::{ConfigEffect, ConfigSpace, DeviceIds};

/// Size in bytes of a conventional configuration space.
pub const CONVENTIONAL_LEN: usize = 256;
/// Size in bytes of a PCI Express configuration space.
pub const EXPRESS_LEN: usize = 4096;

/// Offsets in the type 0 header.
#[allow(missing_docs)]
pub mod offset {
    pub const VENDOR: usize = 0x00;
    pub const DEVICE: usize = 0x02;
    pub const COMMAND: usize = 0x04;
    pub const STATUS: usize = 0x06;
    pub const REVISION: usize = 0x08;
    pub const CLASS: usize = 0x09;
    pub const CACHE_LINE: usize = 0x0c;
    pub const LATENCY: usize = 0x0d;
    pub const BAR0: usize = 0x10;
    pub const SUBSYSTEM_VENDOR: usize = 0x2c;
    pub const SUBSYSTEM: usize = 0x2e;
    pub const CAPABILITIES: usize = 0x34;
    pub const INTERRUPT_LINE: usize = 0x3c;
    pub const INTERRUPT_PIN: usize = 0x3d;
    /// Behind the header: the first capability.
    pub const FIRST_CAPABILITY: usize = 0x40;
    /// Of the first extended capability.
    pub const FIRST_EXTENDED: usize = 0x100;
}

/// Bits of the command register.
#[allow(missing_docs)]
pub mod command {
    pub const IO: u16 = 1 << 0;
    pub const MEMORY: u16 = 1 << 1;
    pub const BUS_MASTER: u16 = 1 << 2;
    pub const PARITY: u16 = 1 << 6;
    pub const SERR: u16 = 1 << 8;
    pub const INTX_DISABLE: u16 = 1 << 10;
}

/// Bits of the status register.
#[allow(missing_docs)]
pub mod status {
    pub const INTERRUPT: u16 = 1 << 3;
    pub const CAPABILITIES: u16 = 1 << 4;
    /// The function has aborted a request.
    pub const SIGNALED_ABORT: u16 = 1 << 11;
    /// A request of the function was not supported by whoever got it.
    pub const RECEIVED_MASTER_ABORT: u16 = 1 << 13;
    /// The function has received poisoned data.
    pub const DETECTED_PARITY: u16 = 1 << 15;
    /// The error bits, cleared by writing ones.
    pub const ERRORS: u16 = 0xf900;
}

/// Ids of capabilities.
#[allow(missing_docs)]
pub mod capability_id {
    pub const POWER_MANAGEMENT: u8 = 0x01;
    pub const MSI: u8 = 0x05;
    pub const VENDOR: u8 = 0x09;
    pub const PCI_EXPRESS: u8 = 0x10;
    pub const MSIX: u8 = 0x11;
}
