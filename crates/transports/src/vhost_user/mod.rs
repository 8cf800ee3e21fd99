//! vhost-user, both ends: QEMU's `docs/interop/vhost-user.rst` as of QEMU 11.1.
//!
//! ```text
//!   QEMU, UML, DPDK, libblkio                                                daemon
//!        | -- requests, fds --> [ driver end | ... | device end ] -- requests, fds --> |
//!        | <-- second socket -- [            |     |            ] <-- second socket -- |
//! ```
//!
//! What it deliberately lacks: rings and data. Rings are started with whatever eventfds and memory
//! the driver's side gave, so between a driver end and a device end that are joined directly
//! nothing but control messages flows through this process.

mod channel;
mod device_end;
mod driver_end;
mod place;

use crate::Transport;

/// The table's entry.
pub(crate) static TRANSPORT: Transport = Transport {
    scheme: "vhost-user",
    help: "a vhost-user socket: of a daemon (device end), or for QEMU and the like (driver end)",
    settings: &[
        "path=PATH      device end: connects there; driver end: listens there",
        "listen=PATH    listens there",
        "connect=PATH   connects there",
    ],
    driver_end: Some(driver_end::open),
    device_end: Some(device_end::open),
    probe: Some(device_end::probe),
};
