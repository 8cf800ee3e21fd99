//! Both vhost-user ends, against each other, against hostile peers, and against the rust-vmm
//! crates.
#![allow(clippy::unwrap_used)]

mod hostile_daemon;
mod hostile_driver;
mod iommu;
mod joined;
mod lab;
mod libblkio;
mod rust_vmm_daemon;
mod rust_vmm_driver;
mod rust_vmm_messages;
