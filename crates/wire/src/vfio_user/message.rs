//! The table of commands, and the small structures of several of them.

use crate::DecodeError;
use crate::fields::{Fields, PutFields};

/// Most file descriptors in one message: what QEMU's client accepts as `max_msg_fds`, and what is
/// announced by this project.
pub const MAX_FDS: usize = 16;

/// Who sends a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The virtual machine ("client -> server").
    ToDevice,
    /// The device ("server -> client").
    FromDevice,
}

/// One row of [`COMMANDS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandRule {
    /// The command's number.
    pub command: u16,
    /// Its name without the common prefix.
    pub name: &'static str,
    /// Who sends it.
    pub direction: Direction,
    /// Most descriptors that come with the command.
    pub max_fds: usize,
    /// Most descriptors that come with its reply.
    pub max_reply_fds: usize,
}

/// Numbers of the commands ("Commands"); 14 has been withdrawn.
#[allow(missing_docs)]
pub mod command {
    pub const VERSION: u16 = 1;
    pub const DMA_MAP: u16 = 2;
    pub const DMA_UNMAP: u16 = 3;
    pub const DEVICE_GET_INFO: u16 = 4;
    pub const DEVICE_GET_REGION_INFO: u16 = 5;
    pub const DEVICE_GET_REGION_IO_FDS: u16 = 6;
    pub const DEVICE_GET_IRQ_INFO: u16 = 7;
    pub const DEVICE_SET_IRQS: u16 = 8;
    pub const REGION_READ: u16 = 9;
    pub const REGION_WRITE: u16 = 10;
    pub const DMA_READ: u16 = 11;
    pub const DMA_WRITE: u16 = 12;
    pub const DEVICE_RESET: u16 = 13;
    pub const REGION_WRITE_MULTI: u16 = 15;
    pub const DEVICE_FEATURE: u16 = 16;
    pub const MIG_DATA_READ: u16 = 17;
    pub const MIG_DATA_WRITE: u16 = 18;
}

/// All commands.
pub const COMMANDS: [CommandRule; 17] = [
    // The reply may carry the twin socket.
    CommandRule { max_reply_fds: MAX_FDS, ..to_device(command::VERSION, "VERSION", 0) },
    to_device(command::DMA_MAP, "DMA_MAP", 1),
    to_device(command::DMA_UNMAP, "DMA_UNMAP", 0),
    to_device(command::DEVICE_GET_INFO, "DEVICE_GET_INFO", 0),
    CommandRule {
        max_reply_fds: 1,
        ..to_device(command::DEVICE_GET_REGION_INFO, "DEVICE_GET_REGION_INFO", 0)
    },
    CommandRule {
        max_reply_fds: MAX_FDS,
        ..to_device(command::DEVICE_GET_REGION_IO_FDS, "DEVICE_GET_REGION_IO_FDS", 0)
    },
    to_device(command::DEVICE_GET_IRQ_INFO, "DEVICE_GET_IRQ_INFO", 0),
    to_device(command::DEVICE_SET_IRQS, "DEVICE_SET_IRQS", MAX_FDS),
    to_device(command::REGION_READ, "REGION_READ", 0),
    to_device(command::REGION_WRITE, "REGION_WRITE", 0),
    from_device(command::DMA_READ, "DMA_READ"),
    from_device(command::DMA_WRITE, "DMA_WRITE"),
    to_device(command::DEVICE_RESET, "DEVICE_RESET", 0),
    to_device(command::REGION_WRITE_MULTI, "REGION_WRITE_MULTI", 0),
    to_device(command::DEVICE_FEATURE, "DEVICE_FEATURE", 0),
    to_device(command::MIG_DATA_READ, "MIG_DATA_READ", 0),
    to_device(command::MIG_DATA_WRITE, "MIG_DATA_WRITE", 0),
];

const fn to_device(command: u16, name: &'static str, max_fds: usize) -> CommandRule {
    CommandRule { command, name, direction: Direction::ToDevice, max_fds, max_reply_fds: 0 }
}

const fn from_device(command: u16, name: &'static str) -> CommandRule {
    CommandRule { direction: Direction::FromDevice, ..to_device(command, name, 0) }
}

/// The row of a command, if its number is known.
pub fn rule(command: u16) -> Option<&'static CommandRule> {
    COMMANDS.iter().find(|rule| rule.command == command)
}

/// Flags of DMA_MAP and DMA_UNMAP.
pub mod dma_flags {
    /// DMA_MAP: the device may read the memory.
    pub const READ: u32 = 1 << 0;
    /// DMA_MAP: the device may write it.
    pub const WRITE: u32 = 1 << 1;
    /// DMA_MAP: it may be mapped (libvfio-user 0.2).
    pub const MMAP: u32 = 1 << 2;
    /// DMA_MAP: it may be reached with pread and pwrite (libvfio-user 0.2).
    pub const FILE_IO: u32 = 1 << 3;
    /// DMA_UNMAP: `VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP`, withdrawn from vfio-user.
    pub const UNMAP_GET_DIRTY: u32 = 1 << 0;
    /// DMA_UNMAP: `VFIO_DMA_UNMAP_FLAG_ALL`, everything that is mapped.
    pub const UNMAP_ALL: u32 = 1 << 1;
}

/// Payload of DMA_MAP, 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaMap {
    /// [`dma_flags`]; unknown ones are kept.
    pub flags: u32,
    /// Offset in bytes in the file behind the descriptor, if there is one.
    pub offset: u64,
    /// DMA address of the first byte.
    pub address: u64,
    /// Size in bytes; `address + size` may be 2^64, but not more.
    pub size: u64,
}

impl DmaMap {
    /// Size in bytes on the wire, which `argsz` repeats.
    const LEN: u32 = 32;

    pub(super) fn take(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
        fields.u32()?;
        let map = Self {
            flags: fields.u32()?,
            offset: fields.u64()?,
            address: fields.u64()?,
            size: fields.u64()?,
        };
        check_range("DMA range", map.address, map.size)?;
        check_range("DMA file range", map.offset, map.size)?;
        Ok(map)
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.put_u32(Self::LEN);
        out.put_u32(self.flags);
        for field in [self.offset, self.address, self.size] {
            out.put_u64(field);
        }
    }
}

/// Payload of DMA_UNMAP and of its reply, 24 bytes. The range is not checked: QEMU unmaps ranges
/// that it never mapped and that end far beyond any address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaUnmap {
    /// Largest reply payload that the sender has room for, in bytes.
    pub argsz: u32,
    /// [`dma_flags`]; unknown ones are kept.
    pub flags: u32,
    /// DMA address of the first byte.
    pub address: u64,
    /// Size in bytes.
    pub size: u64,
}

impl DmaUnmap {
    pub(super) fn take(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            argsz: fields.u32()?,
            flags: fields.u32()?,
            address: fields.u64()?,
            size: fields.u64()?,
        })
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.put_u32(self.argsz);
        out.put_u32(self.flags);
        out.put_u64(self.address);
        out.put_u64(self.size);
    }
}

/// Flags of [`DeviceInfo`].
pub mod device_flags {
    /// DEVICE_RESET works.
    pub const RESET: u32 = 1 << 0;
    /// It is a PCI device.
    pub const PCI: u32 = 1 << 1;
}

/// Payload of the reply to DEVICE_GET_INFO, 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// [`device_flags`].
    pub flags: u32,
    /// Number of regions.
    pub regions: u32,
    /// Number of interrupt types.
    pub irqs: u32,
}

impl DeviceInfo {
    /// Size in bytes on the wire.
    pub(super) const LEN: u32 = 16;

    pub(super) fn take(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
        fields.u32()?;
        Ok(Self { flags: fields.u32()?, regions: fields.u32()?, irqs: fields.u32()? })
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        for field in [Self::LEN, self.flags, self.regions, self.irqs] {
            out.put_u32(field);
        }
    }
}

/// One write of REGION_WRITE_MULTI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write<'a> {
    /// Offset in bytes in the region.
    pub offset: u64,
    /// Which region.
    pub region: u32,
    /// 1 to 8 bytes.
    pub data: &'a [u8],
}

/// The writes of REGION_WRITE_MULTI, checked and still in the receive buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MultiWrites<'a> {
    entries: &'a [u8],
}

impl<'a> MultiWrites<'a> {
    /// Size in bytes of one write on the wire: offset 8, region 4, count 4, data 8.
    const ENTRY_LEN: usize = 24;
    /// Most bytes that one write can carry.
    const DATA_LEN: usize = 8;

    /// The writes in their order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Write<'a>> + use<'a> {
        self.entries
            .chunks_exact(Self::ENTRY_LEN)
            .map(|entry| Self::write(entry).unwrap_or(Write { offset: 0, region: 0, data: &[] }))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len() / Self::ENTRY_LEN
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn take(fields: &mut Fields<'a>) -> Result<Self, DecodeError> {
        let count = fields.u64()?;
        let wrong = DecodeError::Value { field: "number of writes", value: count };
        let len = usize::try_from(count).ok().and_then(|n| n.checked_mul(Self::ENTRY_LEN));
        let entries = fields.bytes(len.ok_or(wrong)?)?;
        // Bounded by the payload, which holds every entry.
        for entry in entries.chunks_exact(Self::ENTRY_LEN) {
            let write = Self::write(entry)?;
            check_range("write range", write.offset, write.data.len() as u64)?;
        }
        Ok(Self { entries })
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.put_u64(self.len() as u64);
        out.put(self.entries);
    }

    fn write(entry: &'a [u8]) -> Result<Write<'a>, DecodeError> {
        let mut fields = Fields::new(entry);
        let (offset, region, count) = (fields.u64()?, fields.u32()?, fields.u32()?);
        if !(1..=Self::DATA_LEN).contains(&(count as usize)) {
            return Err(DecodeError::Value { field: "write size", value: count.into() });
        }
        Ok(Write { offset, region, data: fields.bytes(count as usize)? })
    }

    /// Lays writes out in `buffer` as they travel, replacing what is in it. Of a write with more
    /// than 8 bytes, only the first 8 are taken.
    pub fn lay_out(writes: &[Write<'_>], buffer: &'a mut Vec<u8>) -> Self {
        buffer.clear();
        for write in writes {
            let data = &write.data[..write.data.len().min(Self::DATA_LEN)];
            buffer.put_u64(write.offset);
            buffer.put_u32(write.region);
            buffer.put_u32(data.len() as u32);
            buffer.put(data);
            buffer.put(&[0; Self::DATA_LEN][data.len()..]);
        }
        Self { entries: buffer }
    }
}

/// Refuses ranges that end beyond 2^64.
pub(super) fn check_range(field: &'static str, start: u64, len: u64) -> Result<(), DecodeError> {
    // The last byte is what must have an address: a range may end exactly at 2^64.
    match len.checked_sub(1).map(|last| start.checked_add(last)) {
        Some(None) => Err(DecodeError::Value { field, value: start }),
        _ => Ok(()),
    }
}
