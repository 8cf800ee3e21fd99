//! vfio-user: QEMU's `docs/interop/vfio-user.rst`, protocol version 0.0 to 0.2.
//!
//! ```text
//!   the virtual machine                              the device
//!        | -- VERSION {json} ------------------------> |
//!        | <- VERSION {json}, not longer ------------- |
//!        | -- DMA_MAP (0 or 1 fd) -------------------> |   memory comes and goes at any time
//!        | -- REGION_READ / REGION_WRITE ------------> |   a write may want no reply
//!        | <- DMA_READ / DMA_WRITE ------------------- |   same socket, or the twin socket
//! ```
//!
//! All numbers are in the host's byte order. A header of 16 bytes precedes every payload; a reply
//! repeats the message id and the command. Structures are those of `linux/vfio.h` where there are
//! such. The two directions use the same commands and the same types.
//!
//! Data of reads and writes is borrowed from the receive buffer, never copied. Bytes after the
//! last known field of a payload are ignored.

mod capabilities;
pub mod feature;
mod header;
mod irq;
mod json;
mod message;
mod region;
mod reply;
mod request;

#[cfg(test)]
mod vectors;

pub use capabilities::{Capabilities, MAX_CAPABILITIES_LEN, Migration, TwinSocket, Version};
pub use header::{ERROR, HEADER_LEN, Header, MAX_DATA_XFER, MAX_PAYLOAD, NO_REPLY, VfioUser};
pub use irq::{IrqAction, IrqData, IrqInfo, SetIrqs, irq_flags, irq_index};
pub use message::{
    COMMANDS, CommandRule, DeviceInfo, Direction, DmaMap, DmaUnmap, MAX_FDS, MultiWrites, Write,
    command, device_flags, dma_flags, rule,
};
pub use region::{
    IoFd, IoFdKind, MAX_IO_FDS, MAX_SPARSE_AREAS, RegionInfo, RegionIoFds, SparseArea,
    region_flags, region_index,
};
pub use reply::Reply;
pub use request::Request;
