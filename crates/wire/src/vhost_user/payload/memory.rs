//! Structures about memory: regions, the dirty log, translations, shared memory regions.

use crate::DecodeError;
use crate::fields::{Fields, PutFields};

/// Most regions in one SET_MEM_TABLE ("Memory regions description": region 0 to 7). More regions
/// need CONFIGURE_MEM_SLOTS and one ADD_MEM_REG each.
pub const MAX_TABLE_REGIONS: usize = 8;

/// Most shared memory regions: their identifiers have 8 bits (`VhostUserShMemConfig`).
const MAX_SHMEM_REGIONS: usize = 256;

/// One region of the driver's memory ("Memory regions description").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryRegion {
    /// Guest physical address of its first byte.
    pub guest_address: u64,
    /// Size in bytes.
    pub size: u64,
    /// Virtual address of its first byte in the sender.
    pub user_address: u64,
    /// Offset in bytes of its first byte in the file behind the descriptor.
    pub mmap_offset: u64,
}

impl MemoryRegion {
    fn take(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            guest_address: fields.u64()?,
            size: fields.u64()?,
            user_address: fields.u64()?,
            mmap_offset: fields.u64()?,
        })
    }

    fn put(&self, out: &mut Vec<u8>) {
        for field in [self.guest_address, self.size, self.user_address, self.mmap_offset] {
            out.put_u64(field);
        }
    }

    /// "Single memory region description": 8 bytes of padding come first.
    pub(in crate::vhost_user) fn take_single(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
        fields.u64()?;
        Self::take(fields)
    }

    pub(in crate::vhost_user) fn put_single(&self, out: &mut Vec<u8>) {
        out.put_u64(0);
        self.put(out);
    }
}

/// The regions of SET_MEM_TABLE; descriptors come in the same order.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryTable {
    regions: [MemoryRegion; MAX_TABLE_REGIONS],
    len: usize,
}

impl MemoryTable {
    /// A table of these regions, or `None` if they are more than [`MAX_TABLE_REGIONS`].
    pub fn new(regions: &[MemoryRegion]) -> Option<Self> {
        let mut table = Self { len: regions.len(), ..Self::default() };
        table.regions.get_mut(..regions.len())?.copy_from_slice(regions);
        Some(table)
    }

    /// The regions.
    pub fn regions(&self) -> &[MemoryRegion] {
        &self.regions[..self.len]
    }

    pub(in crate::vhost_user) fn take(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
        let len = fields.u32()?;
        fields.u32()?;
        if len as usize > MAX_TABLE_REGIONS {
            return Err(DecodeError::Value { field: "number of regions", value: len.into() });
        }
        let mut table = Self { len: len as usize, ..Self::default() };
        for region in &mut table.regions[..table.len] {
            *region = MemoryRegion::take(fields)?;
        }
        Ok(table)
    }

    pub(in crate::vhost_user) fn put(&self, out: &mut Vec<u8>) {
        out.put_u32(self.len as u32);
        out.put_u32(0);
        self.regions().iter().for_each(|region| region.put(out));
    }
}

impl PartialEq for MemoryTable {
    fn eq(&self, other: &Self) -> bool {
        self.regions() == other.regions()
    }
}

impl Eq for MemoryTable {}

/// The two payloads of SET_LOG_BASE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogBase {
    /// With LOG_SHMFD ("Log description"): where the log is in the file that comes along. QEMU
    /// sends this form without LOG_SHMFD too, then without a descriptor.
    Shared {
        /// Size in bytes.
        size: u64,
        /// Offset in bytes in the file; here guest address 0 is logged.
        offset: u64,
    },
    /// Without: an address in the sender, of no use to another process.
    Address(u64),
}

impl LogBase {
    pub(in crate::vhost_user) fn take(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
        let first = fields.u64()?;
        if fields.rest().is_empty() {
            return Ok(Self::Address(first));
        }
        Ok(Self::Shared { size: first, offset: fields.u64()? })
    }

    pub(in crate::vhost_user) fn put(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Shared { size, offset } => {
                out.put_u64(size);
                out.put_u64(offset);
            }
            Self::Address(address) => out.put_u64(address),
        }
    }
}

/// "An IOTLB message". C pads the structure to 32 bytes; it is written so, and read from 26 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Iotlb {
    /// I/O virtual address.
    pub iova: u64,
    /// Size in bytes.
    pub size: u64,
    /// Virtual address in the driver's side.
    pub user_address: u64,
    /// Bit 0: may be read, bit 1: may be written; see [`Iotlb::READ`] and [`Iotlb::WRITE`].
    pub permissions: u8,
    /// What it is about.
    pub kind: IotlbKind,
}

/// Type of an IOTLB message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IotlbKind {
    /// 1: the device needs a translation.
    Miss,
    /// 2: here is one.
    Update,
    /// 3: forget it.
    Invalidate,
    /// 4: an access was not allowed.
    AccessFail,
}

impl Iotlb {
    /// Permission to read.
    pub const READ: u8 = 1;
    /// Permission to write.
    pub const WRITE: u8 = 2;
    /// Bytes that C puts behind the last field: `sizeof(struct vhost_iotlb_msg)` is 32.
    const PADDING: [u8; 6] = [0; 6];

    pub(in crate::vhost_user) fn take(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
        let (iova, size, mut user_address) = (fields.u64()?, fields.u64()?, fields.u64()?);
        let mut permissions = fields.u8()?;
        let kind = match fields.u8()? {
            1 => IotlbKind::Miss,
            2 => IotlbKind::Update,
            3 => IotlbKind::Invalidate,
            4 => IotlbKind::AccessFail,
            other => {
                return Err(DecodeError::Value { field: "IOTLB type", value: other.into() });
            }
        };
        if kind == IotlbKind::Invalidate {
            // QEMU fills in only the address and the size; these hold what was on its stack.
            (user_address, permissions) = (0, 0);
        }
        if permissions > Self::READ | Self::WRITE {
            let value = permissions.into();
            return Err(DecodeError::Value { field: "IOTLB permissions", value });
        }
        Ok(Self { iova, size, user_address, permissions, kind })
    }

    pub(in crate::vhost_user) fn put(&self, out: &mut Vec<u8>) {
        for field in [self.iova, self.size, self.user_address] {
            out.put_u64(field);
        }
        out.put_u8(self.permissions);
        out.put_u8(match self.kind {
            IotlbKind::Miss => 1,
            IotlbKind::Update => 2,
            IotlbKind::Invalidate => 3,
            IotlbKind::AccessFail => 4,
        });
        out.put(&Self::PADDING);
    }
}

/// `VhostUserMMap`: a piece of a file to appear in, or vanish from, a shared memory region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShmemMapping {
    /// Which shared memory region.
    pub id: u8,
    /// Offset in bytes in the file.
    pub file_offset: u64,
    /// Offset in bytes in the region.
    pub region_offset: u64,
    /// Size in bytes.
    pub len: u64,
    /// Bit 0: writable; other bits are not defined, and those above 15 are dropped: QEMU declares
    /// 16 bits and C padding, the `vhost` crate 64 bits.
    pub flags: u64,
}

impl ShmemMapping {
    /// Bit 0 of `flags`: the mapping is writable.
    pub const WRITABLE: u64 = 1;
    /// The bits of `flags` that every peer reads.
    const FLAGS_MASK: u64 = 0xffff;

    pub(in crate::vhost_user) fn take(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
        let [id, ..] = fields.array::<8>()?;
        Ok(Self {
            id,
            file_offset: fields.u64()?,
            region_offset: fields.u64()?,
            len: fields.u64()?,
            flags: fields.u64()? & Self::FLAGS_MASK,
        })
    }

    pub(in crate::vhost_user) fn put(&self, out: &mut Vec<u8>) {
        out.put(&[self.id, 0, 0, 0, 0, 0, 0, 0]);
        for field in [self.file_offset, self.region_offset, self.len, self.flags] {
            out.put_u64(field);
        }
    }
}

/// `VhostUserShMemConfig`: the sizes of the shared memory regions a device wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShmemConfig {
    /// How many regions there are; identifiers may have gaps, so this is not the last index.
    pub regions: u32,
    /// Size in bytes for each identifier, 0 for none.
    pub sizes: [u64; MAX_SHMEM_REGIONS],
}

impl Default for ShmemConfig {
    fn default() -> Self {
        Self { regions: 0, sizes: [0; MAX_SHMEM_REGIONS] }
    }
}

impl ShmemConfig {
    pub(in crate::vhost_user) fn take(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
        let regions = fields.u32()?;
        fields.u32()?;
        if regions as usize > MAX_SHMEM_REGIONS {
            let value = regions.into();
            return Err(DecodeError::Value { field: "number of shared memory regions", value });
        }
        let mut config = Self { regions, ..Self::default() };
        // A peer may leave out the sizes behind the last one it uses.
        let present = fields.rest().len() / size_of::<u64>();
        for size in config.sizes.iter_mut().take(present) {
            *size = fields.u64()?;
        }
        Ok(config)
    }

    pub(in crate::vhost_user) fn put(&self, out: &mut Vec<u8>) {
        out.put_u32(self.regions);
        out.put_u32(0);
        self.sizes.iter().for_each(|size| out.put_u64(*size));
    }
}
