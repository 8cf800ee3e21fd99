//! vhost-user: QEMU's `docs/interop/vhost-user.rst` as of QEMU 11.1.
//!
//! ```text
//!   driver's side                                   device's side
//!        | -- Request (ids 1-44), fds -------------------> |
//!        | <- Reply (same id, REPLY flag), fds ------------ |   own payload, or an ack if asked
//!        |                                                  |
//!        | <- BackendRequest (ids 1-10), fds -------------- |   second socket, SET_BACKEND_REQ_FD
//!        | -- acknowledgement (u64) ----------------------> |   if asked
//! ```
//!
//! All numbers are in the host's byte order. A header of 12 bytes (request, flags, size of the
//! payload) precedes every payload. The words kick, call, frontend and backend are this protocol's
//! own and stay inside this module.
//!
//! Structures that peers lay out with C padding at the end are written with that padding and read
//! without needing it; bytes after the last known field of a payload are ignored.

mod backend_request;
pub mod features;
mod header;
pub mod inflight;
mod payload;
mod position;
mod reply;
mod request;
mod rules;

#[cfg(test)]
mod vectors;

pub use backend_request::{BackendRequest, backend_id, decode_ack, encode_ack};
pub use header::{HEADER_LEN, Header, MAX_PAYLOAD, NEED_REPLY, REPLY, VERSION, VhostUser};
pub use payload::{
    Config, DeviceState, DeviceStateDirection, Inflight, Iotlb, IotlbKind, LogBase, MAX_CONFIG_LEN,
    MAX_TABLE_REGIONS, MemoryRegion, MemoryTable, ShmemConfig, ShmemMapping, VRING_ADDR_F_LOG,
    VringAddr, VringArea, VringFd, VringState,
};
pub use position::VringBase;
pub use reply::Reply;
pub use request::Request;
pub use rules::{
    Answer, BACKEND_REQUESTS, FdCount, MAX_FDS, REQUESTS, RequestRule, answer, id, rule,
};
