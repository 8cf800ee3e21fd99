//! Replies to commands, in both directions.

use super::capabilities::Version;
use super::header::{Header, Outgoing};
use super::irq::IrqInfo;
use super::message::{DeviceInfo, DmaUnmap, command, rule};
use super::region::{RegionInfo, RegionIoFds};
use super::request::{put_dma_access, put_region_access, take_dma_access, take_region_access};
use crate::DecodeError;
use crate::fields::{Fields, PutFields};

/// A reply to a [`Request`](super::Request). What it means follows from the command, which a reply
/// repeats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// The command failed, with this errno or 0 for an unknown one; no payload.
    Failed(u32),
    /// The command succeeded; no payload.
    Done,
    /// To VERSION. Not to be longer than the request: see [`Version::fitted_to`].
    Version(Version),
    /// To DMA_UNMAP: what was asked for.
    DmaUnmap(DmaUnmap),
    /// To DEVICE_GET_INFO.
    DeviceInfo(DeviceInfo),
    /// To DEVICE_GET_REGION_INFO, with a descriptor if it can be mapped.
    RegionInfo(RegionInfo),
    /// To DEVICE_GET_REGION_IO_FDS, with descriptors.
    RegionIoFds(RegionIoFds),
    /// To DEVICE_GET_IRQ_INFO.
    IrqInfo(IrqInfo),
    /// To REGION_READ.
    RegionRead {
        /// Offset in bytes in the region.
        offset: u64,
        /// Which region.
        region: u32,
        /// The bytes.
        data: &'a [u8],
    },
    /// To REGION_WRITE.
    RegionWrite {
        /// Offset in bytes in the region.
        offset: u64,
        /// Which region.
        region: u32,
        /// How many bytes were written.
        count: u32,
    },
    /// To DMA_READ.
    DmaRead {
        /// DMA address.
        address: u64,
        /// The bytes.
        data: &'a [u8],
    },
    /// To DMA_WRITE. QEMU leaves the payload out, which is read as [`Reply::Done`].
    DmaWrite {
        /// DMA address.
        address: u64,
        /// How many bytes were written.
        count: u64,
    },
    /// To REGION_WRITE_MULTI: how many writes were done.
    RegionWriteMulti(u64),
    /// To DEVICE_FEATURE.
    DeviceFeature {
        /// Size in bytes of the whole payload.
        argsz: u32,
        /// As in the request.
        flags: u32,
        /// Data of the feature.
        data: &'a [u8],
    },
    /// To MIG_DATA_READ; fewer bytes than asked for are the last ones.
    MigDataRead {
        /// The bytes.
        data: &'a [u8],
    },
}

/// Size in bytes of the fixed part of the reply to MIG_DATA_READ.
const MIG_DATA_LEN: u32 = 8;
/// Size in bytes of the reply to DMA_WRITE in the specification: its count has only 32 bits
/// there. Everybody who sends a payload at all sends 16 bytes.
const SHORT_DMA_WRITE_LEN: usize = 12;

impl<'a> Reply<'a> {
    /// Decodes a reply that came with `fds` descriptors.
    pub fn decode(
        header: &Header,
        payload: &'a [u8],
        fds: usize,
    ) -> Result<Reply<'a>, DecodeError> {
        header.expect_reply(true)?;
        let most = rule(header.command).map_or(0, |rule| rule.max_reply_fds);
        if fds > most {
            return Err(DecodeError::Fds { found: fds, least: 0, most });
        }
        if header.is_error() {
            return Ok(Self::Failed(header.error));
        }
        Self::decode_payload(header.command, payload).map_err(DecodeError::refusable)
    }

    fn decode_payload(number: u16, payload: &'a [u8]) -> Result<Reply<'a>, DecodeError> {
        let mut fields = Fields::new(payload);
        let f = &mut fields;
        Ok(match number {
            command::VERSION => Self::Version(Version::take(payload)?),
            command::DMA_UNMAP => Self::DmaUnmap(DmaUnmap::take(f)?),
            command::DEVICE_GET_INFO => Self::DeviceInfo(DeviceInfo::take(f)?),
            command::DEVICE_GET_REGION_INFO => Self::RegionInfo(RegionInfo::take(payload)?),
            command::DEVICE_GET_REGION_IO_FDS => Self::RegionIoFds(RegionIoFds::take(payload)?),
            command::DEVICE_GET_IRQ_INFO => Self::IrqInfo(IrqInfo::take(f)?),
            command::REGION_READ => {
                let (offset, region, count) = take_region_access(f)?;
                Self::RegionRead { offset, region, data: f.bytes(count as usize)? }
            }
            command::REGION_WRITE => {
                let (offset, region, count) = take_region_access(f)?;
                Self::RegionWrite { offset, region, count }
            }
            command::DMA_READ => {
                let (address, count) = take_dma_access(f)?;
                Self::DmaRead { address, data: f.bytes(count as usize)? }
            }
            command::DMA_WRITE if payload.is_empty() => Self::Done,
            command::DMA_WRITE if payload.len() == SHORT_DMA_WRITE_LEN => {
                Self::DmaWrite { address: f.u64()?, count: f.u32()?.into() }
            }
            command::DMA_WRITE => Self::DmaWrite { address: f.u64()?, count: f.u64()? },
            command::REGION_WRITE_MULTI => Self::RegionWriteMulti(f.u64()?),
            command::DEVICE_FEATURE => {
                Self::DeviceFeature { argsz: f.u32()?, flags: f.u32()?, data: f.rest() }
            }
            command::MIG_DATA_READ => {
                f.u32()?;
                let size = f.u32()?;
                Self::MigDataRead { data: f.bytes(size as usize)? }
            }
            _ => Self::Done,
        })
    }

    /// Appends the reply to the command with this number and message id to `out`.
    pub fn encode(&self, message_id: u16, command: u16, out: &mut Vec<u8>) {
        let header = match self {
            Self::Failed(errno) => Outgoing::failure(message_id, command, *errno),
            _ => Outgoing::reply(message_id, command),
        };
        header.put(out, |out| self.put_payload(out));
    }

    fn put_payload(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Failed(_) | Self::Done => {}
            Self::Version(ref version) => version.put(out),
            Self::DmaUnmap(ref unmap) => unmap.put(out),
            Self::DeviceInfo(ref info) => info.put(out),
            Self::RegionInfo(ref info) => info.put(out),
            Self::RegionIoFds(ref fds) => fds.put(out),
            Self::IrqInfo(ref info) => info.put(out),
            Self::RegionRead { offset, region, data } => {
                put_region_access(out, offset, region, data.len() as u32);
                out.put(data);
            }
            Self::RegionWrite { offset, region, count } => {
                put_region_access(out, offset, region, count);
            }
            Self::DmaRead { address, data } => {
                put_dma_access(out, address, data.len() as u64);
                out.put(data);
            }
            Self::DmaWrite { address, count } => put_dma_access(out, address, count),
            Self::RegionWriteMulti(count) => out.put_u64(count),
            Self::DeviceFeature { argsz, flags, data } => {
                out.put_u32(argsz);
                out.put_u32(flags);
                out.put(data);
            }
            Self::MigDataRead { data } => {
                let size = data.len() as u32;
                out.put_u32(MIG_DATA_LEN.saturating_add(size));
                out.put_u32(size);
                out.put(data);
            }
        }
    }
}
