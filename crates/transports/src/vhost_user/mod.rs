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
        "path=PATH           a device end connects there, a driver end listens there",
        "listen=PATH         listens there",
        "connect=PATH        connects there",
        "fd=N                uses this inherited descriptor, listening or connected",
        "iommu=on            driver end: the driver may go through a virtual IOMMU",
        "type=TYPE           device end: its type, as blk, if the daemon does not say it",
        "queues=N            device end: queues to use; pairs for net, request queues for fs",
        "queue-size=N        device end: largest queue size, 256 (console: 128)",
        "mac=ADDRESS, mtu=N  device end: for a network daemon without a config",
        "tag=NAME            device end: for a file system daemon without a config",
        "cid=N               device end: for a socket daemon without a config",
        "reconnect=off       device end: do not wait for a daemon that went away",
        "timeout=MS          device end: longest wait for an answer, 5000",
        "in-band=on          device end: notifications are messages and not events",
    ],
    driver_end: Some(driver_end::open),
    device_end: Some(device_end::open),
    probe: Some(device_end::probe),
};
