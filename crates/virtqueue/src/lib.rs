//! Virtqueues: split and packed, the driver's and the device's side of both (VIRTIO 1.4, 2.6-2.8).
//!
//! A [`DeviceQueue`] takes the chains a driver made available and gives them back; a
//! [`DriverQueue`] offers chains to a device and takes them back used. The other side of either may
//! be hostile: every index, length and flag it wrote is read once, checked, and used from the copy;
//! what this side must remember is in private memory; a broken rule is a [`QueueError`], never a
//! panic. Nothing is allocated once there were as many chains in flight as there ever are: a queue
//! is made for few, since most are idle most of the time.
//!
//! What it deliberately lacks: file descriptors, notifications (it only says whether one is
//! wanted), and access to the data behind a [`Segment`].
//!
//! ```text
//!   driver                                    device
//!   DriverQueue                               DeviceQueue
//!     offer  --------- descriptors --------->   take
//!     publish_available -- avail index ----->   (or the first descriptor's flags)
//!     wants_kick  ------- doorbell --------->   arm_kick / disarm_kick
//!     take_used  <----- used elements -------   give_back
//!                <-------- used index -------   publish_used
//!     arm_interrupt  <---- interrupt --------   wants_interrupt
//! ```

#![forbid(unsafe_code)]

#[cfg(test)]
extern crate self as virtqueue;

mod barrier;
mod burst;
mod chain;
mod device;
mod driver;
mod error;
mod event;
mod inflight;
mod layout;
#[cfg(loom)]
pub mod model;
mod spec;

pub use burst::{Burst, MAX_BURST};
pub use chain::{Chain, ChainId, Segment, lost_chains};
pub use device::DeviceQueue;
pub use driver::{DriverQueue, IndirectArea};
pub use error::QueueError;
pub use inflight::InFlightLog;
pub use layout::{RingLayout, ring_layout};
pub use spec::{PackedPoint, QueueAddresses, QueuePosition, QueueSpec, RingFormat};

/// Largest virtqueue of either format (VIRTIO 1.4, 2.7 and 2.8).
pub const MAX_QUEUE_SIZE: u16 = 32768;
