//! Commands, in both directions.

use super::capabilities::Version;
use super::header::{Header, MAX_DATA_XFER, Outgoing};
use super::irq::SetIrqs;
use super::message::{DmaMap, DmaUnmap, MAX_FDS, MultiWrites, check_range, command, rule};
use super::region::RegionInfo;
use crate::DecodeError;
use crate::fields::{Fields, PutFields};

/// A command ("Commands"). Variants are named after the messages; descriptors travel beside them.
/// DMA_READ and DMA_WRITE come from the device, all others from the virtual machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Request<'a> {
    Version(Version),
    DmaMap(DmaMap),
    DmaUnmap(DmaUnmap),
    DeviceGetInfo {
        /// Room for the reply's payload, in bytes.
        argsz: u32,
    },
    DeviceGetRegionInfo {
        /// Room for the reply's payload, in bytes.
        argsz: u32,
        /// Which region.
        index: u32,
    },
    DeviceGetRegionIoFds {
        /// Room for the reply's payload, in bytes.
        argsz: u32,
        /// Which region.
        index: u32,
    },
    DeviceGetIrqInfo {
        /// Room for the reply's payload, in bytes.
        argsz: u32,
        /// Which interrupt type.
        index: u32,
    },
    DeviceSetIrqs(SetIrqs<'a>),
    RegionRead {
        /// Offset in bytes in the region.
        offset: u64,
        /// Which region.
        region: u32,
        /// Number of bytes, 1 to [`MAX_DATA_XFER`].
        count: u32,
    },
    RegionWrite {
        /// Offset in bytes in the region.
        offset: u64,
        /// Which region.
        region: u32,
        /// 1 to [`MAX_DATA_XFER`] bytes.
        data: &'a [u8],
    },
    DmaRead {
        /// DMA address.
        address: u64,
        /// Number of bytes, 1 to [`MAX_DATA_XFER`].
        count: u64,
    },
    DmaWrite {
        /// DMA address.
        address: u64,
        /// 1 to [`MAX_DATA_XFER`] bytes.
        data: &'a [u8],
    },
    DeviceReset,
    RegionWriteMulti(MultiWrites<'a>),
    DeviceFeature {
        /// Room for the reply's payload, in bytes.
        argsz: u32,
        /// Which feature and what to do, see [`feature`](super::feature).
        flags: u32,
        /// Data of the feature.
        data: &'a [u8],
    },
    MigDataRead {
        /// Room for the reply's payload, in bytes.
        argsz: u32,
        /// Number of bytes, at most [`MAX_DATA_XFER`].
        size: u32,
    },
    MigDataWrite {
        /// At most [`MAX_DATA_XFER`] bytes.
        data: &'a [u8],
    },
    /// A command that is not known, to be refused.
    Unknown {
        /// Its number.
        command: u16,
        /// Its payload.
        payload: &'a [u8],
    },
}

/// Size in bytes of the fixed part of a MIG_DATA message.
const MIG_DATA_LEN: u32 = 8;

impl<'a> Request<'a> {
    /// Decodes a command that came with `fds` descriptors.
    pub fn decode(
        header: &Header,
        payload: &'a [u8],
        fds: usize,
    ) -> Result<Request<'a>, DecodeError> {
        header.expect_reply(false)?;
        let most = rule(header.command).map_or(MAX_FDS, |rule| rule.max_fds);
        if fds > most {
            return Err(DecodeError::Fds { found: fds, least: 0, most });
        }
        Self::decode_payload(header.command, payload, fds).map_err(DecodeError::refusable)
    }

    fn decode_payload(
        number: u16,
        payload: &'a [u8],
        fds: usize,
    ) -> Result<Request<'a>, DecodeError> {
        let mut fields = Fields::new(payload);
        let f = &mut fields;
        Ok(match number {
            command::VERSION => Self::Version(Version::take(payload)?),
            command::DMA_MAP => Self::DmaMap(DmaMap::take(f)?),
            command::DMA_UNMAP => Self::DmaUnmap(DmaUnmap::take(f)?),
            command::DEVICE_GET_INFO => Self::DeviceGetInfo { argsz: f.u32()? },
            command::DEVICE_GET_REGION_INFO => {
                let (argsz, _flags, index) = (f.u32()?, f.u32()?, f.u32()?);
                Self::DeviceGetRegionInfo { argsz, index }
            }
            command::DEVICE_GET_REGION_IO_FDS => {
                let (argsz, index) = take_query(f)?;
                Self::DeviceGetRegionIoFds { argsz, index }
            }
            command::DEVICE_GET_IRQ_INFO => {
                let (argsz, _flags, index) = (f.u32()?, f.u32()?, f.u32()?);
                Self::DeviceGetIrqInfo { argsz, index }
            }
            command::DEVICE_SET_IRQS => Self::DeviceSetIrqs(SetIrqs::take(f, fds)?),
            command::REGION_READ => {
                let (offset, region, count) = take_region_access(f)?;
                Self::RegionRead { offset, region, count }
            }
            command::REGION_WRITE => {
                let (offset, region, count) = take_region_access(f)?;
                Self::RegionWrite { offset, region, data: f.bytes(count as usize)? }
            }
            command::DMA_READ => {
                let (address, count) = take_dma_access(f)?;
                Self::DmaRead { address, count: count.into() }
            }
            command::DMA_WRITE => {
                let (address, count) = take_dma_access(f)?;
                Self::DmaWrite { address, data: f.bytes(count as usize)? }
            }
            command::DEVICE_RESET => Self::DeviceReset,
            command::REGION_WRITE_MULTI => Self::RegionWriteMulti(MultiWrites::take(f)?),
            command::DEVICE_FEATURE => {
                Self::DeviceFeature { argsz: f.u32()?, flags: f.u32()?, data: f.rest() }
            }
            command::MIG_DATA_READ => {
                let argsz = f.u32()?;
                Self::MigDataRead { argsz, size: take_size(f)? }
            }
            command::MIG_DATA_WRITE => {
                f.u32()?;
                let size = take_size(f)?;
                Self::MigDataWrite { data: f.bytes(size as usize)? }
            }
            command => Self::Unknown { command, payload },
        })
    }

    /// The command's number.
    pub fn command(&self) -> u16 {
        match self {
            Self::Version(_) => command::VERSION,
            Self::DmaMap(_) => command::DMA_MAP,
            Self::DmaUnmap(_) => command::DMA_UNMAP,
            Self::DeviceGetInfo { .. } => command::DEVICE_GET_INFO,
            Self::DeviceGetRegionInfo { .. } => command::DEVICE_GET_REGION_INFO,
            Self::DeviceGetRegionIoFds { .. } => command::DEVICE_GET_REGION_IO_FDS,
            Self::DeviceGetIrqInfo { .. } => command::DEVICE_GET_IRQ_INFO,
            Self::DeviceSetIrqs(_) => command::DEVICE_SET_IRQS,
            Self::RegionRead { .. } => command::REGION_READ,
            Self::RegionWrite { .. } => command::REGION_WRITE,
            Self::DmaRead { .. } => command::DMA_READ,
            Self::DmaWrite { .. } => command::DMA_WRITE,
            Self::DeviceReset => command::DEVICE_RESET,
            Self::RegionWriteMulti(_) => command::REGION_WRITE_MULTI,
            Self::DeviceFeature { .. } => command::DEVICE_FEATURE,
            Self::MigDataRead { .. } => command::MIG_DATA_READ,
            Self::MigDataWrite { .. } => command::MIG_DATA_WRITE,
            Self::Unknown { command, .. } => *command,
        }
    }

    /// Appends the message to `out`. `flags` is 0 or [`NO_REPLY`](super::NO_REPLY).
    pub fn encode(&self, message_id: u16, flags: u32, out: &mut Vec<u8>) {
        Outgoing::command(message_id, self.command(), flags).put(out, |out| self.put_payload(out));
    }

    fn put_payload(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Version(ref version) => version.put(out),
            Self::DmaMap(ref map) => map.put(out),
            Self::DmaUnmap(ref unmap) => unmap.put(out),
            Self::DeviceGetInfo { argsz } => put_u32s(out, &[argsz, 0, 0, 0]),
            Self::DeviceGetRegionInfo { argsz, index } => {
                // The rest of a whole region info structure is zero.
                put_u32s(out, &[argsz, 0, index]);
                out.put(&[0; RegionInfo::LEN as usize - 3 * size_of::<u32>()]);
            }
            Self::DeviceGetRegionIoFds { argsz, index }
            | Self::DeviceGetIrqInfo { argsz, index } => put_u32s(out, &[argsz, 0, index, 0]),
            Self::DeviceSetIrqs(ref irqs) => irqs.put(out),
            Self::RegionRead { offset, region, count } => {
                put_region_access(out, offset, region, count);
            }
            Self::RegionWrite { offset, region, data } => {
                put_region_access(out, offset, region, data.len() as u32);
                out.put(data);
            }
            Self::DmaRead { address, count } => put_dma_access(out, address, count),
            Self::DmaWrite { address, data } => {
                put_dma_access(out, address, data.len() as u64);
                out.put(data);
            }
            Self::DeviceReset => {}
            Self::RegionWriteMulti(ref writes) => writes.put(out),
            Self::DeviceFeature { argsz, flags, data } => {
                put_u32s(out, &[argsz, flags]);
                out.put(data);
            }
            Self::MigDataRead { argsz, size } => put_u32s(out, &[argsz, size]),
            Self::MigDataWrite { data } => {
                let size = data.len() as u32;
                put_u32s(out, &[MIG_DATA_LEN.saturating_add(size), size]);
                out.put(data);
            }
            Self::Unknown { payload, .. } => out.put(payload),
        }
    }
}

/// DEVICE_GET_REGION_IO_FDS: all but argsz and index must be zero, also in a request.
fn take_query(fields: &mut Fields<'_>) -> Result<(u32, u32), DecodeError> {
    let (argsz, flags, index, count) = (fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?);
    match (flags, count) {
        (0, 0) => Ok((argsz, index)),
        (0, count) => Err(DecodeError::Value { field: "sub-region count", value: count.into() }),
        (flags, _) => Err(DecodeError::Value { field: "sub-region flags", value: flags.into() }),
    }
}

pub(super) fn take_region_access(fields: &mut Fields<'_>) -> Result<(u64, u32, u32), DecodeError> {
    let (offset, region, count) = (fields.u64()?, fields.u32()?, fields.u32()?);
    if !(1..=MAX_DATA_XFER).contains(&count) {
        return Err(DecodeError::Value { field: "region access size", value: count.into() });
    }
    check_range("region access range", offset, count.into())?;
    Ok((offset, region, count))
}

pub(super) fn put_region_access(out: &mut Vec<u8>, offset: u64, region: u32, count: u32) {
    out.put_u64(offset);
    out.put_u32(region);
    out.put_u32(count);
}

pub(super) fn take_dma_access(fields: &mut Fields<'_>) -> Result<(u64, u32), DecodeError> {
    let (address, count) = (fields.u64()?, fields.u64()?);
    let wrong = DecodeError::Value { field: "DMA access size", value: count };
    let fits = u32::try_from(count).ok().filter(|count| (1..=MAX_DATA_XFER).contains(count));
    check_range("DMA access range", address, count)?;
    Ok((address, fits.ok_or(wrong)?))
}

pub(super) fn put_dma_access(out: &mut Vec<u8>, address: u64, count: u64) {
    out.put_u64(address);
    out.put_u64(count);
}

fn take_size(fields: &mut Fields<'_>) -> Result<u32, DecodeError> {
    let size = fields.u32()?;
    if size > MAX_DATA_XFER {
        return Err(DecodeError::Value { field: "migration data size", value: size.into() });
    }
    Ok(size)
}

fn put_u32s(out: &mut Vec<u8>, fields: &[u32]) {
    fields.iter().for_each(|field| out.put_u32(*field));
}
