//! The vfio-user service: a [`Function`](crate::Function) behind a socket that a virtual machine
//! monitor connects to.
//!
//! ```text
//!   client                               service                              function
//!     | -- REGION_READ --------------------> | -- read(at, Completion) ------------> |
//!     | -- DMA_MAP, SET_IRQS, ... ---------> |   handled while reads wait            |
//!     | <- DMA_READ ------------------------ | <- RemoteChannel (any thread) ------- |
//!     | -- DMA_READ reply -----------------> | -- answer ---------------------------> |
//!     | <- REGION_READ reply --------------- | <- Completion::answer (any thread) -- |
//! ```
//!
//! One thread runs [`Service::run`]. It never waits for anything but events: an access may wait for
//! a DMA message which is only served by the client when other accesses have been answered. One
//! client at a time; the next one is accepted when it has gone, and finds the function as it was
//! left, without memory and interrupts.
//!
//! Nothing a client sends ends the process: a message that is wrong is answered with an errno, a
//! stream that can't be followed any more is closed.

mod dma;
mod irqs;
pub mod limits;
mod messages;
mod outbox;
mod regions;
mod self_test;
mod service;
mod session;

pub use service::{Service, ServiceError, Source};
