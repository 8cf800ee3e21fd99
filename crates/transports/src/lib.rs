//! The ways to reach a driver or a device, one file each, and the table of them.
//!
//! To add a transport: write its file, with a `TRANSPORT` entry, and name it in [`TRANSPORTS`]. The
//! help text, `doctor` and the end-to-end rows come from the table.
#![forbid(unsafe_code)]

mod vdpa;
mod vduse;
mod vfio_user;
mod vhost_user;

pub use vduse::{Attached, NameUse, missing_for, open_on_host, use_of_name};
pub use vfio_user::qemu_options;
use virtio::{
    DeviceError, DeviceType, DriverEnd, EndError, Features, ParameterError, Parameters,
    VirtioDevice,
};

/// Why an end could not be made.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A setting is wrong.
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    /// The device's side failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The driver's side failed.
    #[error(transparent)]
    End(#[from] EndError),
}

/// Makes a driver end from its settings.
pub type OpenDriverEnd = fn(Parameters) -> Result<Box<dyn DriverEnd>, OpenError>;

/// Makes a device end from its settings.
pub type OpenDeviceEnd = fn(Parameters) -> Result<Box<dyn VirtioDevice>, OpenError>;

/// A way to reach a driver, a device, or either.
pub struct Transport {
    /// What stands before the colon of an address, as `vfio-user`.
    pub scheme: &'static str,
    /// One line for the help text.
    pub help: &'static str,
    /// Its settings, one line each, `key=VALUE  what it does`.
    pub settings: &'static [&'static str],
    /// How to make its driver end, if it has one.
    pub driver_end: Option<OpenDriverEnd>,
    /// How to make its device end, if it has one.
    pub device_end: Option<OpenDeviceEnd>,
    /// How to ask a device end what is there, without using it.
    pub probe: Option<ProbeEnd>,
}

/// Asks a device end, given its settings, what is there.
pub type ProbeEnd = fn(Parameters) -> Result<Findings, OpenError>;

/// What is really offered at a device end.
#[derive(Clone, Debug)]
pub struct Findings {
    /// The type of the device, if it was told or there is only one that fits.
    pub device: Option<DeviceType>,
    /// The features offered, the transport's own bits included.
    pub features: Features,
    /// The names of the transport's own optional features.
    pub protocol_features: Vec<String>,
    /// The number of queues, if the device says it.
    pub queues: Option<u64>,
    /// Most regions of memory it takes.
    pub memory_slots: usize,
    /// Its config as it has it; empty if it has none, or its type is not known.
    pub config: Vec<u8>,
}

/// Every transport.
pub static TRANSPORTS: &[&Transport] =
    &[&vfio_user::TRANSPORT, &vhost_user::TRANSPORT, &vduse::TRANSPORT, &vdpa::TRANSPORT];
