//! libviaduct: a PCIe device in C, or in anything that calls C. `include/viaduct.h` is its
//! documentation; here is what stands behind it.
//!
//! ```text
//!   viaduct_device (C) -> Device -> port::Model -> Handlers (a pcie::Function) -> C handlers
//!                            +----> Core: memory, interrupts, timers      <--------+
//! ```
//!
//! A handler may call back into the library while the model that runs it is borrowed, so everything
//! that handlers may use is in [`core::Core`], behind cells of its own.
//!
//! What it deliberately lacks: threads. A device belongs to whoever calls it, one at a time.

mod api;
mod core;
mod device;
mod events;
mod handlers;
mod memory;
mod services;
