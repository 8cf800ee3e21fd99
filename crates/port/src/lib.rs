//! A PCIe function in another process.
//!
//! ```text
//!   virtual machine ==vfio-user==> Service -> Port ==rings==> Model -> dyn Function
//!                                  one process that          another, which may crash,
//!                                  never waits long          hang and come back
//! ```
//!
//! The [`Port`] is a [`Function`](pcie::Function) that holds the configuration space and stands for
//! a model that lives elsewhere. It answers every access in bounded time: with what the model says,
//! or with all ones. A [`Model`] serves any [`Function`](pcie::Function) to a port; the C library
//! is made of it.
//!
//! `docs/transports/model.md` describes what goes between the two.
//!
//! What it deliberately lacks: the starting of processes, and any knowledge of what a model is
//! written in.
#![forbid(unsafe_code)]

mod area;
pub mod far;
pub mod fault;
mod inbound;
pub mod limits;
mod link;
mod memory;
mod model;
mod outbound;
mod port;
mod remote;
pub mod ring;
mod run;
mod shape;
pub mod trace;

pub use inbound::Wait;
pub use limits::spin_limit;
pub use model::{Model, ModelError, PORT_VARIABLE};
pub use outbound::Outbound;
pub use port::{Port, PortError, PortOptions};
pub use run::main;
