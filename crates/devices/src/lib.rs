//! Built-in virtio devices, one file or folder each, and the table of them.
//!
//! To add a device: write its file, with a `DEVICE` entry, a `Model` of what it is and a `Serve` of
//! what its queues do, and name it in [`DEVICES`]. Rings, memory snapshots, notifications and
//! faults are the same for all and live in `queue`.
//!
//! What it deliberately lacks: any transport. A device is a [`VirtioDevice`], and whoever serves a
//! driver end starts its queues.
#![forbid(unsafe_code)]

mod block;
mod console;
mod entropy;
mod link;
mod net;
mod patience;
mod queue;
mod rate;

use virtio::{DeviceError, ParameterError, Parameters, VirtioDevice};

/// Why a device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A setting is wrong.
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    /// What the device stands on can't be had.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// What is wrong with a `queue-size=`.
pub(crate) fn not_a_power_of_two(size: u16) -> ParameterError {
    let expected = "a power of two".into();
    ParameterError::Expected { key: "queue-size".into(), text: size.to_string(), expected }
}

/// Makes a device from its settings.
pub type OpenDevice = fn(Parameters) -> Result<Box<dyn VirtioDevice>, OpenError>;

/// A built-in device.
#[derive(Debug)]
pub struct DeviceKind {
    /// What stands before the colon of an address, as `blk`.
    pub scheme: &'static str,
    /// One line for the help text.
    pub help: &'static str,
    /// Its settings, one line each, `key=VALUE  what it does`.
    pub settings: &'static [&'static str],
    /// How to make one.
    pub open: OpenDevice,
}

pub use block::look_at_sizes;

/// Every built-in device.
pub static DEVICES: &[&DeviceKind] =
    &[&block::DEVICE, &net::DEVICE, &entropy::DEVICE, &console::DEVICE];
