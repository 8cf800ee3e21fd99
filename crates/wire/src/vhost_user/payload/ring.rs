//! Structures about one queue.

use crate::DecodeError;
use crate::fields::{Fields, PutFields};

/// Flag of SET_VRING_ADDR: log writes to the used ring at `log` (`VHOST_VRING_F_LOG`).
pub const VRING_ADDR_F_LOG: u32 = 1;

/// "A vring state description": a queue and a number that belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringState {
    /// Which queue.
    pub index: u32,
    /// Size, position, endianness or whether enabled, depending on the request.
    pub num: u32,
}

impl VringState {
    pub(in crate::vhost_user) fn take(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
        Ok(Self { index: fields.u32()?, num: fields.u32()? })
    }

    pub(in crate::vhost_user) fn put(&self, out: &mut Vec<u8>) {
        out.put_u32(self.index);
        out.put_u32(self.num);
    }
}

/// "A vring address description". Addresses are the sender's virtual addresses; with
/// ACCESS_PLATFORM they are I/O virtual, with GPA_ADDRESSES guest physical addresses. On the wire
/// the used ring comes before the available ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringAddr {
    /// Which queue.
    pub index: u32,
    /// [`VRING_ADDR_F_LOG`] or 0.
    pub flags: u32,
    /// Address of the descriptor table, or of a packed ring.
    pub descriptor: u64,
    /// Address of the used ring, or of a packed ring's device event suppression.
    pub used: u64,
    /// Address of the available ring, or of a packed ring's driver event suppression.
    pub available: u64,
    /// Guest address at which writes to the used ring are logged.
    pub log: u64,
}

impl VringAddr {
    pub(in crate::vhost_user) fn take(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            index: fields.u32()?,
            flags: fields.u32()?,
            descriptor: fields.u64()?,
            used: fields.u64()?,
            available: fields.u64()?,
            log: fields.u64()?,
        })
    }

    pub(in crate::vhost_user) fn put(&self, out: &mut Vec<u8>) {
        out.put_u32(self.index);
        out.put_u32(self.flags);
        for address in [self.descriptor, self.used, self.available, self.log] {
            out.put_u64(address);
        }
    }
}

/// The u64 of SET_VRING_KICK, SET_VRING_CALL and SET_VRING_ERR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringFd {
    /// Which queue.
    pub index: u8,
    /// Whether a descriptor comes with the message; without one, the other side polls.
    pub has_fd: bool,
}

impl VringFd {
    /// Bits 0-7: the queue.
    const INDEX_MASK: u64 = 0xff;
    /// Bit 8: no descriptor comes with the message.
    const NO_FD: u64 = 1 << 8;

    pub(in crate::vhost_user) fn take(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
        let value = fields.u64()?;
        // An index above 255 must not be cut down to that of another queue.
        if value & !(Self::INDEX_MASK | Self::NO_FD) != 0 {
            return Err(DecodeError::Value { field: "vring index and flags", value });
        }
        Ok(Self { index: (value & Self::INDEX_MASK) as u8, has_fd: value & Self::NO_FD == 0 })
    }

    pub(in crate::vhost_user) fn put(&self, out: &mut Vec<u8>) {
        out.put_u64(u64::from(self.index) | if self.has_fd { 0 } else { Self::NO_FD });
    }
}

/// "Vring area description": a page that is a queue's doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringArea {
    /// The queue, and whether a descriptor comes along.
    pub vring: VringFd,
    /// Size in bytes.
    pub size: u64,
    /// Offset in bytes in the file.
    pub offset: u64,
}

impl VringArea {
    pub(in crate::vhost_user) fn take(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
        Ok(Self { vring: VringFd::take(fields)?, size: fields.u64()?, offset: fields.u64()? })
    }

    pub(in crate::vhost_user) fn put(&self, out: &mut Vec<u8>) {
        self.vring.put(out);
        out.put_u64(self.size);
        out.put_u64(self.offset);
    }
}

/// "Inflight description": 20 bytes of fields, 24 on the wire because C pads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inflight {
    /// Size in bytes of the area; 0 in GET_INFLIGHT_FD.
    pub mmap_size: u64,
    /// Offset in bytes of the area in the file.
    pub mmap_offset: u64,
    /// Number of queues.
    pub queues: u16,
    /// Size of each queue in entries.
    pub queue_size: u16,
}

impl Inflight {
    /// Bytes that C puts behind the last field: `sizeof(VhostUserInflight)` is 24.
    const PADDING: u32 = 0;

    pub(in crate::vhost_user) fn take(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            mmap_size: fields.u64()?,
            mmap_offset: fields.u64()?,
            queues: fields.u16()?,
            queue_size: fields.u16()?,
        })
    }

    pub(in crate::vhost_user) fn put(&self, out: &mut Vec<u8>) {
        out.put_u64(self.mmap_size);
        out.put_u64(self.mmap_offset);
        out.put_u16(self.queues);
        out.put_u16(self.queue_size);
        out.put_u32(Self::PADDING);
    }
}
