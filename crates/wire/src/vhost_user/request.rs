//! Requests of the driver's side.

use super::header::{Header, put_message};
use super::payload::{
    Config, DeviceState, Inflight, Iotlb, LogBase, MemoryRegion, MemoryTable, VringAddr, VringFd,
    VringState,
};
use super::rules::{FdCount, MAX_FDS, id, rule};
use crate::DecodeError;
use crate::fields::{Fields, PutFields};

/// A request of the driver's side ("Front-end message types"). Variants are named after the
/// messages; descriptors travel beside them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
#[allow(clippy::large_enum_variant, reason = "a table on the stack is cheaper than a box")]
pub enum Request<'a> {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    /// One descriptor per region. An empty table is the sender's last word in postcopy and
    /// otherwise senseless.
    SetMemTable(MemoryTable),
    SetLogBase(LogBase),
    SetLogFd,
    SetVringNum(VringState),
    SetVringAddr(VringAddr),
    /// `num` is a [`VringBase`](super::VringBase).
    SetVringBase(VringState),
    /// `num` is reserved.
    GetVringBase(VringState),
    SetVringKick(VringFd),
    SetVringCall(VringFd),
    SetVringErr(VringFd),
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    /// `num` is 1 to enable and 0 to disable.
    SetVringEnable(VringState),
    /// The hardware address to announce.
    SendRarp([u8; 6]),
    NetSetMtu(u64),
    SetBackendReqFd,
    IotlbMsg(Iotlb),
    /// `num` is 0 for little and 1 for big endian.
    SetVringEndian(VringState),
    GetConfig(Config<'a>),
    SetConfig(Config<'a>),
    /// A structure of QEMU's cryptodev, not taken apart here.
    CreateCryptoSession(&'a [u8]),
    CloseCryptoSession(u64),
    PostcopyAdvise,
    PostcopyListen,
    PostcopyEnd,
    GetInflightFd(Inflight),
    SetInflightFd(Inflight),
    GpuSetSocket,
    ResetDevice,
    VringKick(VringState),
    GetMaxMemSlots,
    AddMemReg(MemoryRegion),
    RemMemReg(MemoryRegion),
    SetStatus(u64),
    GetStatus,
    /// UUID of the object.
    GetSharedObject([u8; 16]),
    SetDeviceStateFd(DeviceState),
    CheckDeviceState,
    GetShmemConfig,
    /// A request that is not known, to be refused if it asks for an answer and ignored otherwise.
    Unknown {
        /// Its number.
        id: u32,
        /// Its payload, at most [`MAX_PAYLOAD`](super::MAX_PAYLOAD) bytes.
        payload: &'a [u8],
    },
}

impl<'a> Request<'a> {
    /// Decodes a request that came with `fds` descriptors.
    pub fn decode(
        header: &Header,
        payload: &'a [u8],
        fds: usize,
    ) -> Result<Request<'a>, DecodeError> {
        header.expect_reply(false)?;
        let allowed = match rule(header.request) {
            Some(rule) => rule.fds,
            None => FdCount { least: 0, most: MAX_FDS },
        };
        allowed.check(fds)?;
        let request = Self::decode_payload(header.request, payload)?;
        request.exact_fds().map_or(Ok(()), |exact| exact.check(fds))?;
        Ok(request)
    }

    fn decode_payload(request: u32, payload: &'a [u8]) -> Result<Request<'a>, DecodeError> {
        let mut fields = Fields::new(payload);
        let f = &mut fields;
        Ok(match request {
            id::GET_FEATURES => Self::GetFeatures,
            id::SET_FEATURES => Self::SetFeatures(f.u64()?),
            id::SET_OWNER => Self::SetOwner,
            id::RESET_OWNER => Self::ResetOwner,
            id::SET_MEM_TABLE => Self::SetMemTable(MemoryTable::take(f)?),
            id::SET_LOG_BASE => Self::SetLogBase(LogBase::take(f)?),
            id::SET_LOG_FD => Self::SetLogFd,
            id::SET_VRING_NUM => Self::SetVringNum(VringState::take(f)?),
            id::SET_VRING_ADDR => Self::SetVringAddr(VringAddr::take(f)?),
            id::SET_VRING_BASE => Self::SetVringBase(VringState::take(f)?),
            id::GET_VRING_BASE => Self::GetVringBase(VringState::take(f)?),
            id::SET_VRING_KICK => Self::SetVringKick(VringFd::take(f)?),
            id::SET_VRING_CALL => Self::SetVringCall(VringFd::take(f)?),
            id::SET_VRING_ERR => Self::SetVringErr(VringFd::take(f)?),
            id::GET_PROTOCOL_FEATURES => Self::GetProtocolFeatures,
            id::SET_PROTOCOL_FEATURES => Self::SetProtocolFeatures(f.u64()?),
            id::GET_QUEUE_NUM => Self::GetQueueNum,
            id::SET_VRING_ENABLE => Self::SetVringEnable(VringState::take(f)?),
            // Six bytes of a u64; the last two mean nothing.
            id::SEND_RARP => Self::SendRarp(f.array()?),
            id::NET_SET_MTU => Self::NetSetMtu(f.u64()?),
            id::SET_BACKEND_REQ_FD => Self::SetBackendReqFd,
            id::IOTLB_MSG => Self::IotlbMsg(Iotlb::take(f)?),
            id::SET_VRING_ENDIAN => Self::SetVringEndian(VringState::take(f)?),
            _ => return Self::decode_later_payload(request, payload),
        })
    }

    /// The requests that came with later protocol features.
    fn decode_later_payload(request: u32, payload: &'a [u8]) -> Result<Request<'a>, DecodeError> {
        let mut fields = Fields::new(payload);
        let f = &mut fields;
        Ok(match request {
            id::GET_CONFIG => Self::GetConfig(Config::take(f, false)?),
            id::SET_CONFIG => Self::SetConfig(Config::take(f, true)?),
            id::CREATE_CRYPTO_SESSION => Self::CreateCryptoSession(payload),
            id::CLOSE_CRYPTO_SESSION => Self::CloseCryptoSession(f.u64()?),
            id::POSTCOPY_ADVISE => Self::PostcopyAdvise,
            id::POSTCOPY_LISTEN => Self::PostcopyListen,
            id::POSTCOPY_END => Self::PostcopyEnd,
            id::GET_INFLIGHT_FD => Self::GetInflightFd(Inflight::take(f)?),
            id::SET_INFLIGHT_FD => Self::SetInflightFd(Inflight::take(f)?),
            id::GPU_SET_SOCKET => Self::GpuSetSocket,
            id::RESET_DEVICE => Self::ResetDevice,
            id::VRING_KICK => Self::VringKick(VringState::take(f)?),
            id::GET_MAX_MEM_SLOTS => Self::GetMaxMemSlots,
            id::ADD_MEM_REG => Self::AddMemReg(MemoryRegion::take_single(f)?),
            id::REM_MEM_REG => Self::RemMemReg(MemoryRegion::take_single(f)?),
            id::SET_STATUS => Self::SetStatus(f.u64()?),
            id::GET_STATUS => Self::GetStatus,
            id::GET_SHARED_OBJECT => Self::GetSharedObject(f.array()?),
            id::SET_DEVICE_STATE_FD => Self::SetDeviceStateFd(DeviceState::take(f)?),
            id::CHECK_DEVICE_STATE => Self::CheckDeviceState,
            id::GET_SHMEM_CONFIG => Self::GetShmemConfig,
            id => Self::Unknown { id, payload },
        })
    }

    /// The number of descriptors, where the payload says it.
    fn exact_fds(&self) -> Option<FdCount> {
        let exact = match self {
            Self::SetMemTable(table) => table.regions().len(),
            Self::SetVringKick(vring) | Self::SetVringCall(vring) | Self::SetVringErr(vring) => {
                vring.has_fd.into()
            }
            _ => return None,
        };
        Some(FdCount { least: exact, most: exact })
    }

    /// The request's number.
    pub fn id(&self) -> u32 {
        match self {
            Self::GetFeatures => id::GET_FEATURES,
            Self::SetFeatures(_) => id::SET_FEATURES,
            Self::SetOwner => id::SET_OWNER,
            Self::ResetOwner => id::RESET_OWNER,
            Self::SetMemTable(_) => id::SET_MEM_TABLE,
            Self::SetLogBase(_) => id::SET_LOG_BASE,
            Self::SetLogFd => id::SET_LOG_FD,
            Self::SetVringNum(_) => id::SET_VRING_NUM,
            Self::SetVringAddr(_) => id::SET_VRING_ADDR,
            Self::SetVringBase(_) => id::SET_VRING_BASE,
            Self::GetVringBase(_) => id::GET_VRING_BASE,
            Self::SetVringKick(_) => id::SET_VRING_KICK,
            Self::SetVringCall(_) => id::SET_VRING_CALL,
            Self::SetVringErr(_) => id::SET_VRING_ERR,
            Self::GetProtocolFeatures => id::GET_PROTOCOL_FEATURES,
            Self::SetProtocolFeatures(_) => id::SET_PROTOCOL_FEATURES,
            Self::GetQueueNum => id::GET_QUEUE_NUM,
            Self::SetVringEnable(_) => id::SET_VRING_ENABLE,
            Self::SendRarp(_) => id::SEND_RARP,
            Self::NetSetMtu(_) => id::NET_SET_MTU,
            Self::SetBackendReqFd => id::SET_BACKEND_REQ_FD,
            Self::IotlbMsg(_) => id::IOTLB_MSG,
            Self::SetVringEndian(_) => id::SET_VRING_ENDIAN,
            Self::GetConfig(_) => id::GET_CONFIG,
            Self::SetConfig(_) => id::SET_CONFIG,
            Self::CreateCryptoSession(_) => id::CREATE_CRYPTO_SESSION,
            Self::CloseCryptoSession(_) => id::CLOSE_CRYPTO_SESSION,
            Self::PostcopyAdvise => id::POSTCOPY_ADVISE,
            Self::PostcopyListen => id::POSTCOPY_LISTEN,
            Self::PostcopyEnd => id::POSTCOPY_END,
            Self::GetInflightFd(_) => id::GET_INFLIGHT_FD,
            Self::SetInflightFd(_) => id::SET_INFLIGHT_FD,
            Self::GpuSetSocket => id::GPU_SET_SOCKET,
            Self::ResetDevice => id::RESET_DEVICE,
            Self::VringKick(_) => id::VRING_KICK,
            Self::GetMaxMemSlots => id::GET_MAX_MEM_SLOTS,
            Self::AddMemReg(_) => id::ADD_MEM_REG,
            Self::RemMemReg(_) => id::REM_MEM_REG,
            Self::SetStatus(_) => id::SET_STATUS,
            Self::GetStatus => id::GET_STATUS,
            Self::GetSharedObject(_) => id::GET_SHARED_OBJECT,
            Self::SetDeviceStateFd(_) => id::SET_DEVICE_STATE_FD,
            Self::CheckDeviceState => id::CHECK_DEVICE_STATE,
            Self::GetShmemConfig => id::GET_SHMEM_CONFIG,
            Self::Unknown { id, .. } => *id,
        }
    }

    /// Appends the message to `out`. `flags` is 0 or [`NEED_REPLY`](super::NEED_REPLY).
    pub fn encode(&self, flags: u32, out: &mut Vec<u8>) {
        put_message(out, self.id(), flags, |out| self.put_payload(out));
    }

    fn put_payload(&self, out: &mut Vec<u8>) {
        match self {
            Self::SetFeatures(value)
            | Self::SetProtocolFeatures(value)
            | Self::NetSetMtu(value)
            | Self::CloseCryptoSession(value)
            | Self::SetStatus(value) => out.put_u64(*value),
            Self::SetMemTable(table) => table.put(out),
            Self::SetLogBase(base) => base.put(out),
            Self::SetVringNum(state)
            | Self::SetVringBase(state)
            | Self::GetVringBase(state)
            | Self::SetVringEnable(state)
            | Self::SetVringEndian(state)
            | Self::VringKick(state) => state.put(out),
            Self::SetVringAddr(addr) => addr.put(out),
            Self::SetVringKick(vring) | Self::SetVringCall(vring) | Self::SetVringErr(vring) => {
                vring.put(out);
            }
            Self::SendRarp(mac) => {
                out.put(mac);
                out.put_u16(0);
            }
            Self::IotlbMsg(iotlb) => iotlb.put(out),
            Self::GetConfig(config) | Self::SetConfig(config) => config.put(out),
            Self::GetInflightFd(inflight) | Self::SetInflightFd(inflight) => inflight.put(out),
            Self::AddMemReg(region) | Self::RemMemReg(region) => region.put_single(out),
            Self::GetSharedObject(uuid) => out.put(uuid),
            Self::SetDeviceStateFd(state) => state.put(out),
            Self::CreateCryptoSession(payload) | Self::Unknown { payload, .. } => out.put(payload),
            Self::GetFeatures
            | Self::SetOwner
            | Self::ResetOwner
            | Self::SetLogFd
            | Self::GetProtocolFeatures
            | Self::GetQueueNum
            | Self::SetBackendReqFd
            | Self::PostcopyAdvise
            | Self::PostcopyListen
            | Self::PostcopyEnd
            | Self::GpuSetSocket
            | Self::ResetDevice
            | Self::GetMaxMemSlots
            | Self::GetStatus
            | Self::CheckDeviceState
            | Self::GetShmemConfig => {}
        }
    }
}

impl FdCount {
    pub(super) fn check(self, found: usize) -> Result<(), DecodeError> {
        let Self { least, most } = self;
        if (least..=most).contains(&found) {
            Ok(())
        } else {
            Err(DecodeError::Fds { found, least, most })
        }
    }
}
