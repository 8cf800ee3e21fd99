//! Answers of the device's side.

use super::header::{Header, REPLY, put_message};
use super::payload::{Config, Inflight, MemoryRegion, MemoryTable, ShmemConfig, VringState};
use super::rules::{FdCount, id, rule};
use crate::DecodeError;
use crate::fields::{Fields, PutFields};

/// An answer to a [`Request`](super::Request). What it means follows from the request's number,
/// which an answer repeats.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "a table on the stack is cheaper than a box")]
pub enum Reply<'a> {
    /// An acknowledgement, where 0 means success; or the features, protocol features, number of
    /// queues, number of memory slots or status that was asked for.
    Value(u64),
    /// Answer to GET_VRING_BASE: where the queue stopped.
    VringBase(VringState),
    /// Answer to GET_CONFIG.
    Config(Config<'a>),
    /// Answer to GET_CONFIG that failed: no payload.
    NoConfig,
    /// Answer to GET_INFLIGHT_FD, with one descriptor; without one, there is no area.
    Inflight(Inflight),
    /// Answer to SET_MEM_TABLE while postcopy listens: where the regions are mapped. Never empty.
    MemTable(MemoryTable),
    /// Answer to ADD_MEM_REG while postcopy listens: where the region is mapped.
    MemReg(MemoryRegion),
    /// Answer to CREATE_CRYPTO_SESSION, not taken apart here.
    CryptoSession(&'a [u8]),
    /// Answer to POSTCOPY_ADVISE or GET_SHARED_OBJECT: a descriptor and no payload.
    Descriptor,
    /// Answer to SET_DEVICE_STATE_FD.
    DeviceStateFd {
        /// 0 for success.
        error: u8,
        /// Whether a descriptor replaces the one that was sent.
        has_fd: bool,
    },
    /// Answer to GET_SHMEM_CONFIG; boxed because it is ten times the size of all others.
    ShmemConfig(Box<ShmemConfig>),
    /// Answer to SET_LOG_BASE. The specification does not say what is in it: rust-vmm's frontend
    /// waits for what it sent and takes a size of 0 for a refusal, others send less, or nothing,
    /// and QEMU does not look.
    LogBase {
        /// Size in bytes, as it was sent; 0 if it was refused or is not in the answer.
        size: u64,
        /// Offset in bytes, as it was sent.
        offset: u64,
    },
}

/// Bits 0-7 of the answer to SET_DEVICE_STATE_FD: the error code.
const STATE_ERROR_MASK: u64 = 0xff;
/// Bit 8 of the answer to SET_DEVICE_STATE_FD: no descriptor comes along.
const STATE_NO_FD: u64 = 1 << 8;

/// Largest payload in bytes that is an acknowledgement and not a structure.
const ACK_LEN: usize = 8;

impl<'a> Reply<'a> {
    /// Decodes an answer that came with `fds` descriptors.
    pub fn decode(
        header: &Header,
        payload: &'a [u8],
        fds: usize,
    ) -> Result<Reply<'a>, DecodeError> {
        header.expect_reply(true)?;
        let none = FdCount { least: 0, most: 0 };
        rule(header.request).map_or(none, |rule| rule.reply_fds).check(fds)?;
        let mut fields = Fields::new(payload);
        let f = &mut fields;
        Ok(match header.request {
            id::GET_VRING_BASE => Self::VringBase(VringState::take(f)?),
            id::GET_CONFIG if payload.is_empty() => Self::NoConfig,
            id::GET_CONFIG => Self::Config(Config::take(f, true)?),
            id::GET_INFLIGHT_FD => Self::Inflight(Inflight::take(f)?),
            id::SET_MEM_TABLE if payload.len() > ACK_LEN => Self::mem_table(f)?,
            id::ADD_MEM_REG if payload.len() > ACK_LEN => {
                Self::MemReg(MemoryRegion::take_single(f)?)
            }
            id::CREATE_CRYPTO_SESSION => Self::CryptoSession(payload),
            id::POSTCOPY_ADVISE | id::GET_SHARED_OBJECT => Self::Descriptor,
            id::SET_DEVICE_STATE_FD => Self::device_state_fd(f.u64()?, fds)?,
            id::GET_SHMEM_CONFIG => Self::ShmemConfig(Box::new(ShmemConfig::take(f)?)),
            id::SET_LOG_BASE if payload.len() > ACK_LEN => {
                Self::LogBase { size: f.u64()?, offset: f.u64()? }
            }
            id::SET_LOG_BASE => Self::LogBase { size: 0, offset: 0 },
            _ => Self::Value(f.u64()?),
        })
    }

    fn mem_table(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
        let table = MemoryTable::take(fields)?;
        // Without regions it would be as long as an acknowledgement, which it could be taken for.
        if table.regions().is_empty() {
            return Err(DecodeError::Value { field: "number of regions", value: 0 });
        }
        Ok(Self::MemTable(table))
    }

    fn device_state_fd(value: u64, fds: usize) -> Result<Self, DecodeError> {
        let error = (value & STATE_ERROR_MASK) as u8;
        let has_fd = value & STATE_NO_FD == 0 && error == 0;
        // A descriptor beside an error or beside the flag that denies it is a contradiction.
        let exact = usize::from(has_fd);
        FdCount { least: exact, most: exact }.check(fds)?;
        Ok(Self::DeviceStateFd { error, has_fd })
    }

    /// Appends the answer to the request with this number to `out`.
    pub fn encode(&self, request: u32, out: &mut Vec<u8>) {
        put_message(out, request, REPLY, |out| self.put_payload(out));
    }

    fn put_payload(&self, out: &mut Vec<u8>) {
        match self {
            Self::Value(value) => out.put_u64(*value),
            Self::VringBase(state) => state.put(out),
            Self::Config(config) => config.put(out),
            Self::Inflight(inflight) => inflight.put(out),
            Self::MemTable(table) => table.put(out),
            Self::MemReg(region) => region.put_single(out),
            Self::CryptoSession(payload) => out.put(payload),
            Self::DeviceStateFd { error, has_fd } => {
                out.put_u64(u64::from(*error) | if *has_fd { 0 } else { STATE_NO_FD });
            }
            Self::ShmemConfig(config) => config.put(out),
            Self::LogBase { size, offset } => {
                out.put_u64(*size);
                out.put_u64(*offset);
            }
            Self::NoConfig | Self::Descriptor => {}
        }
    }
}
