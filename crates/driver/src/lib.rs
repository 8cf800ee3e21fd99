//! Virtio drivers in user space: what the demo, the benchmarks and the tests put where a guest
//! would be.
//!
//! An [`Access`] is how a driver reaches a device's registers: over the vfio-user socket of a PCI
//! device ([`PciDevice`]), or straight through the control traits ([`Direct`]), which makes a
//! vhost-user daemon drivable too. On top of it stand a [`Queue`] and the drivers: [`Disk`] and
//! [`Nic`].
//!
//! What it deliberately lacks: anything a real operating system needs beyond that. It trusts
//! itself, not the device.
#![forbid(unsafe_code)]

mod access;
mod direct;
mod disk;
mod memory;
mod nic;
mod pci;
mod queue;
mod vfio_user;

pub use access::{Access, Bell, DriverError};
pub use direct::Direct;
pub use disk::{Completion, Disk, Operation, SECTOR_BYTES};
pub use memory::{Buffer, GuestMemory};
pub use nic::Nic;
pub use pci::PciDevice;
pub use queue::{Queue, QueueWish};
pub use vfio_user::{Client, Counts};
