//! Shadow rings: a decorator that puts our own rings between a driver and a device.
//!
//! A [`Shadow`] is a device around another device. In mode *pass* it hands every call on unchanged
//! and is not on the data path. Otherwise it shows the device rings of its own, and a
//! [`worker::Task`] per queue carries the chains from the driver's ring to the device's and back:
//!
//! ```text
//!            driver's ring                        our ring
//!   driver ==> DeviceQueue -- take -- Mover::outbound -- offer --> DriverQueue ==> device
//!          <==             <- give_back - Mover::inbound - take_used <-            <==
//! ```
//!
//! What happens to the bytes is the mover's business: `Translate` hands the driver's addresses on
//! after checking them,
//! `Copy` moves the bytes through a pool that is all the device can reach. Where the driver's ring
//! can't be mapped at all, another task does the same by transfers (`remote`). Since the two rings
//! know nothing of each other, their formats, sizes and features need not match.
//!
//! The two sides are hostile to each other. A broken rule on the driver's side stops that queue;
//! one on the device's side is reported as a device that needs a reset. Neither side ever sees the
//! other's fault.
//!
//! What this crate deliberately lacks: the name of any device type or transport.
#![forbid(unsafe_code)]

mod aliases;
mod arena;
mod blocks;
mod control;
mod copy;
mod counters;
mod fault;
mod features;
mod log_limit;
mod mode;
mod mover;
mod options;
mod parts;
mod pool;
mod queue_bridge;
mod rate;
mod remote;
mod shadow;
mod spaces;
mod translate;

pub use blocks::PoolPlace;
pub use control::Carrier;
pub use copy::CopyMover;
pub use counters::{Counters, Snapshot};
pub use mode::Mode;
pub use mover::{Mover, MoverError, Step};
pub use options::{
    BridgeOptions, DEFAULT_POOL_BYTES, MAX_POOL_BYTES, MIN_POOL_BYTES, Observer, RateLimits,
};
pub use parts::{BridgeParts, Ends, Request};
pub use queue_bridge::QueueBridge;
pub use remote::{RemoteParts, RemoteQueue};
pub use shadow::Shadow;
pub use translate::TranslateMover;
