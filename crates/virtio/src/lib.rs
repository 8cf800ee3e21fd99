//! Virtio's words: device ids, features, config layouts, the status machine, and the two traits
//! that everything is made of.
//!
//! What a driver arrives *through* implements [`DriverEnd`]; what it can be connected *to*
//! implements [`VirtioDevice`]: a built-in device, a daemon behind a socket, a device in another
//! machine, or a decorator around one of these. This is the control plane: object-safe, one thread,
//! `&mut self`, no locks. Data flows elsewhere: whoever holds a [`QueueSetup`] owns that queue's
//! data path.
//!
//! What it deliberately lacks: the name of any transport, and I/O.
#![forbid(unsafe_code)]

pub mod config;
mod device;
mod end;
mod events;
mod features;
mod ids;
mod network;
mod notifier;
mod parameters;
mod setup;
mod status;

pub use device::{DeviceError, Identity, Reach, Recovery, Sharing, VirtioDevice};
pub use end::{DriverEnd, EndError, Resting, Served, Stop};
pub use events::{DeviceEvent, EventSink, EventSource};
pub use features::{FeatureName, Features, names_of};
pub use ids::{DeviceType, MAX_QUEUES};
pub use network::NetworkControl;
pub use notifier::{Interrupt, Notifier};
pub use parameters::{ParameterError, Parameters, Value, closest};
pub use setup::{InFlightArea, QueueSetup};
pub use status::{Status, StatusMachine, Transition};
