//! Regions: what a device has, which parts can be mapped, and which have descriptors.

use crate::DecodeError;
use crate::fields::{Fields, PutFields};

/// Regions of a PCI device (`linux/vfio.h`, `VFIO_PCI_*_REGION_INDEX`).
pub mod region_index {
    /// The first of six BARs.
    pub const BAR0: u32 = 0;
    /// The last of six BARs.
    pub const BAR5: u32 = 5;
    /// The expansion ROM.
    pub const ROM: u32 = 6;
    /// The configuration space.
    pub const CONFIG: u32 = 7;
    /// The legacy VGA ranges.
    pub const VGA: u32 = 8;
    /// How many there are.
    pub const COUNT: u32 = 9;
}

/// Flags of [`RegionInfo`].
pub mod region_flags {
    /// Can be read.
    pub const READ: u32 = 1 << 0;
    /// Can be written.
    pub const WRITE: u32 = 1 << 1;
    /// Can be mapped; a descriptor comes with the reply.
    pub const MMAP: u32 = 1 << 2;
    /// There are capabilities.
    pub const CAPS: u32 = 1 << 3;
}

/// Most areas in a sparse mapping. Devices that are known have a handful; this many still fit a
/// reply of one page and a bit.
pub const MAX_SPARSE_AREAS: usize = 256;

/// Most capabilities followed in one reply; `linux/vfio.h` defines fewer than ten.
const MAX_CAPABILITIES: usize = 16;

/// Most sub-regions in one reply. Several may share a descriptor, so this is more than a message
/// has descriptors; one per queue of a large device is enough.
pub const MAX_IO_FDS: usize = 256;

/// A part of a region that can be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SparseArea {
    /// Offset in bytes from the start of the region.
    pub offset: u64,
    /// Size in bytes.
    pub size: u64,
}

/// Payload of the reply to DEVICE_GET_REGION_INFO: 32 bytes and the capabilities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionInfo {
    /// Size in bytes of the whole reply payload. Larger than what has come if the request had
    /// no room for the capabilities: it is then to be repeated with this size.
    pub argsz: u32,
    /// [`region_flags`].
    pub flags: u32,
    /// Which region, see [`region_index`].
    pub index: u32,
    /// Size in bytes.
    pub size: u64,
    /// Offset in bytes in the file behind the descriptor.
    pub offset: u64,
    /// The parts that can be mapped; empty if it is all or nothing.
    pub sparse: Vec<SparseArea>,
}

impl RegionInfo {
    /// Size in bytes of the fixed part (`struct vfio_region_info`).
    pub(super) const LEN: u32 = 32;
    /// Size in bytes of the sparse capability without its areas: a header of 8 bytes (id,
    /// version, next), the number of areas and a reserved word.
    const SPARSE_LEN: u32 = 16;
    /// Size in bytes of an area.
    const AREA_LEN: u32 = 16;
    /// `VFIO_REGION_INFO_CAP_SPARSE_MMAP`.
    const CAP_SPARSE: u16 = 1;
    /// The version of that capability.
    const CAP_SPARSE_VERSION: u16 = 1;

    /// A region with these properties and with `argsz` to match.
    pub fn new(flags: u32, index: u32, size: u64, offset: u64, sparse: Vec<SparseArea>) -> Self {
        let caps = if sparse.is_empty() {
            0
        } else {
            Self::SPARSE_LEN + Self::AREA_LEN * sparse.len() as u32
        };
        let flags = flags & !region_flags::CAPS | if caps > 0 { region_flags::CAPS } else { 0 };
        Self { argsz: Self::LEN + caps, flags, index, size, offset, sparse }
    }

    /// Cuts the capabilities off if the request's `argsz` has no room for them; `self.argsz` then
    /// says how much is needed, as the kernel does it. Unlike the kernel's, such an answer does not
    /// say that there are capabilities: QEMU 11.1 looks for them at once, finds none at offset 0
    /// and gives up, where otherwise it asks again for all of `argsz`.
    pub fn fitted_to(mut self, argsz: u32) -> Self {
        if self.argsz > argsz {
            self.sparse.clear();
            self.flags &= !region_flags::CAPS;
        }
        self
    }

    pub(super) fn take(payload: &[u8]) -> Result<Self, DecodeError> {
        let mut fields = Fields::new(payload);
        let (argsz, flags, index) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let cap_offset = fields.u32()?;
        let (size, offset) = (fields.u64()?, fields.u64()?);
        let mut info = Self { argsz, flags, index, size, offset, sparse: Vec::new() };
        if flags & region_flags::CAPS != 0 {
            info.take_capabilities(payload, cap_offset)?;
        }
        Ok(info)
    }

    fn take_capabilities(&mut self, payload: &[u8], first: u32) -> Result<(), DecodeError> {
        let mut at = first;
        for _ in 0..MAX_CAPABILITIES {
            if at == 0 {
                return Ok(());
            }
            let bad = DecodeError::Value { field: "capability offset", value: at.into() };
            if at < Self::LEN {
                return Err(bad);
            }
            let mut fields = Fields::new(payload.get(at as usize..).ok_or(bad)?);
            let (id, _version, next) = (fields.u16()?, fields.u16()?, fields.u32()?);
            if id == Self::CAP_SPARSE {
                let count = fields.u32()?;
                fields.u32()?;
                if count as usize > MAX_SPARSE_AREAS {
                    let value = count.into();
                    return Err(DecodeError::Value { field: "number of sparse areas", value });
                }
                self.sparse.clear();
                for _ in 0..count {
                    let area = SparseArea { offset: fields.u64()?, size: fields.u64()? };
                    super::message::check_range("sparse area", area.offset, area.size)?;
                    self.sparse.push(area);
                }
            }
            at = next;
        }
        Err(DecodeError::Value { field: "capability list", value: first.into() })
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        let cap_offset = if self.sparse.is_empty() { 0 } else { Self::LEN };
        for field in [self.argsz, self.flags, self.index, cap_offset] {
            out.put_u32(field);
        }
        out.put_u64(self.size);
        out.put_u64(self.offset);
        if self.sparse.is_empty() {
            return;
        }
        out.put_u16(Self::CAP_SPARSE);
        out.put_u16(Self::CAP_SPARSE_VERSION);
        out.put_u32(0);
        out.put_u32(self.sparse.len() as u32);
        out.put_u32(0);
        for area in &self.sparse {
            out.put_u64(area.offset);
            out.put_u64(area.size);
        }
    }
}

/// How a descriptor of a sub-region is to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoFdKind {
    /// 0: an eventfd that a write signals.
    IoEventFd,
    /// 1: a socket on which accesses appear as messages.
    IoRegionFd,
    /// Anything else, such as 2, libvfio-user's eventfd with shadow memory.
    Other(u32),
}

/// One sub-region of the reply to DEVICE_GET_REGION_IO_FDS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoFd {
    /// Offset in bytes in the region.
    pub offset: u64,
    /// Size in bytes of the access, 0 for any.
    pub size: u64,
    /// Which of the descriptors that came along.
    pub fd_index: u32,
    /// How to use it.
    pub kind: IoFdKind,
    /// KVM's flags.
    pub flags: u32,
    /// The value that a write must have, or what the device wants back with each message.
    pub data: u64,
}

/// Payload of the reply to DEVICE_GET_REGION_IO_FDS: 16 bytes and the sub-regions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionIoFds {
    /// Size in bytes of the whole reply payload, also if not all of it has come.
    pub argsz: u32,
    /// Which region.
    pub index: u32,
    /// How many sub-regions there are.
    pub count: u32,
    /// The sub-regions; empty if the request had no room for all.
    pub sub_regions: Vec<IoFd>,
}

impl RegionIoFds {
    /// Size in bytes of the fixed part.
    pub(super) const LEN: u32 = 16;
    /// Size in bytes of a sub-region in the specification, which warns not to rely on it.
    const ENTRY_LEN: u32 = 40;
    /// Size in bytes of a sub-region in libvfio-user, which has 8 more before the last field.
    const SHADOW_ENTRY_LEN: usize = 48;

    /// The sub-regions of a region, with `argsz` to match.
    pub fn new(index: u32, sub_regions: Vec<IoFd>) -> Self {
        let count = sub_regions.len() as u32;
        Self { argsz: Self::LEN + Self::ENTRY_LEN * count, index, count, sub_regions }
    }

    /// Leaves the sub-regions out if the request's `argsz` has no room for them; `self.argsz` and
    /// `self.count` still speak of them all, as in libvfio-user.
    pub fn fitted_to(mut self, argsz: u32) -> Self {
        if self.argsz > argsz {
            self.sub_regions.clear();
        }
        self
    }

    pub(super) fn take(payload: &[u8]) -> Result<Self, DecodeError> {
        let mut fields = Fields::new(payload);
        let (argsz, _flags) = (fields.u32()?, fields.u32()?);
        let (index, count) = (fields.u32()?, fields.u32()?);
        if count as usize > MAX_IO_FDS {
            let value = count.into();
            return Err(DecodeError::Value { field: "number of sub-regions", value });
        }
        let mut sub_regions = Vec::new();
        match fields.rest().len().checked_div(count as usize) {
            None | Some(0) => {}
            Some(len) => {
                for _ in 0..count {
                    sub_regions.push(IoFd::take(fields.bytes(len)?)?);
                }
            }
        }
        Ok(Self { argsz, index, count, sub_regions })
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        for field in [self.argsz, 0, self.index, self.count] {
            out.put_u32(field);
        }
        self.sub_regions.iter().for_each(|sub_region| sub_region.put(out));
    }
}

impl IoFd {
    fn take(entry: &[u8]) -> Result<Self, DecodeError> {
        let mut fields = Fields::new(entry);
        let (offset, size, fd_index) = (fields.u64()?, fields.u64()?, fields.u32()?);
        let kind = match fields.u32()? {
            0 => IoFdKind::IoEventFd,
            1 => IoFdKind::IoRegionFd,
            other => IoFdKind::Other(other),
        };
        let (flags, _padding) = (fields.u32()?, fields.u32()?);
        if entry.len() == RegionIoFds::SHADOW_ENTRY_LEN && kind != IoFdKind::IoRegionFd {
            fields.u64()?;
        }
        Ok(Self { offset, size, fd_index, kind, flags, data: fields.u64()? })
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.put_u64(self.offset);
        out.put_u64(self.size);
        out.put_u32(self.fd_index);
        out.put_u32(match self.kind {
            IoFdKind::IoEventFd => 0,
            IoFdKind::IoRegionFd => 1,
            IoFdKind::Other(other) => other,
        });
        out.put_u32(self.flags);
        out.put_u32(0);
        out.put_u64(self.data);
    }
}
