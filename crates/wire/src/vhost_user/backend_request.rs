//! Requests of the device's side, on the second socket, and their acknowledgements.

use super::header::{Header, REPLY, put_message};
use super::payload::{Iotlb, ShmemMapping, VringArea, VringState};
use super::rules::{BACKEND_REQUESTS, FdCount, MAX_FDS};
use crate::DecodeError;
use crate::fields::{Fields, PutFields};

/// A request of the device's side ("Back-end message types").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum BackendRequest<'a> {
    IotlbMsg(Iotlb),
    ConfigChangeMsg,
    VringHostNotifierMsg(VringArea),
    /// `num` is reserved.
    VringCall(VringState),
    /// `num` is reserved.
    VringErr(VringState),
    /// UUID of the object.
    SharedObjectAdd([u8; 16]),
    /// UUID of the object.
    SharedObjectRemove([u8; 16]),
    /// UUID of the object.
    SharedObjectLookup([u8; 16]),
    ShmemMap(ShmemMapping),
    ShmemUnmap(ShmemMapping),
    /// A request that is not known, to be refused if it asks for an answer and ignored otherwise.
    Unknown {
        /// Its number.
        id: u32,
        /// Its payload, at most [`MAX_PAYLOAD`](super::MAX_PAYLOAD) bytes.
        payload: &'a [u8],
    },
}

/// Numbers of the requests of the device's side ("Back-end message types").
#[allow(missing_docs)]
pub mod backend_id {
    pub const IOTLB_MSG: u32 = 1;
    pub const CONFIG_CHANGE_MSG: u32 = 2;
    pub const VRING_HOST_NOTIFIER_MSG: u32 = 3;
    pub const VRING_CALL: u32 = 4;
    pub const VRING_ERR: u32 = 5;
    pub const SHARED_OBJECT_ADD: u32 = 6;
    pub const SHARED_OBJECT_REMOVE: u32 = 7;
    pub const SHARED_OBJECT_LOOKUP: u32 = 8;
    pub const SHMEM_MAP: u32 = 9;
    pub const SHMEM_UNMAP: u32 = 10;
}

impl<'a> BackendRequest<'a> {
    /// Decodes a request that came with `fds` descriptors.
    pub fn decode(
        header: &Header,
        payload: &'a [u8],
        fds: usize,
    ) -> Result<BackendRequest<'a>, DecodeError> {
        header.expect_reply(false)?;
        let row = header.request.wrapping_sub(1) as usize;
        let allowed = match BACKEND_REQUESTS.get(row) {
            Some(rule) => rule.fds,
            None => FdCount { least: 0, most: MAX_FDS },
        };
        allowed.check(fds)?;
        let mut fields = Fields::new(payload);
        let f = &mut fields;
        Ok(match header.request {
            backend_id::IOTLB_MSG => Self::IotlbMsg(Iotlb::take(f)?),
            backend_id::CONFIG_CHANGE_MSG => Self::ConfigChangeMsg,
            backend_id::VRING_HOST_NOTIFIER_MSG => {
                let area = VringArea::take(f)?;
                let exact = usize::from(area.vring.has_fd);
                FdCount { least: exact, most: exact }.check(fds)?;
                Self::VringHostNotifierMsg(area)
            }
            backend_id::VRING_CALL => Self::VringCall(VringState::take(f)?),
            backend_id::VRING_ERR => Self::VringErr(VringState::take(f)?),
            backend_id::SHARED_OBJECT_ADD => Self::SharedObjectAdd(f.array()?),
            backend_id::SHARED_OBJECT_REMOVE => Self::SharedObjectRemove(f.array()?),
            backend_id::SHARED_OBJECT_LOOKUP => Self::SharedObjectLookup(f.array()?),
            backend_id::SHMEM_MAP => Self::ShmemMap(ShmemMapping::take(f)?),
            backend_id::SHMEM_UNMAP => Self::ShmemUnmap(ShmemMapping::take(f)?),
            id => Self::Unknown { id, payload },
        })
    }

    /// The request's number.
    pub fn id(&self) -> u32 {
        match self {
            Self::IotlbMsg(_) => backend_id::IOTLB_MSG,
            Self::ConfigChangeMsg => backend_id::CONFIG_CHANGE_MSG,
            Self::VringHostNotifierMsg(_) => backend_id::VRING_HOST_NOTIFIER_MSG,
            Self::VringCall(_) => backend_id::VRING_CALL,
            Self::VringErr(_) => backend_id::VRING_ERR,
            Self::SharedObjectAdd(_) => backend_id::SHARED_OBJECT_ADD,
            Self::SharedObjectRemove(_) => backend_id::SHARED_OBJECT_REMOVE,
            Self::SharedObjectLookup(_) => backend_id::SHARED_OBJECT_LOOKUP,
            Self::ShmemMap(_) => backend_id::SHMEM_MAP,
            Self::ShmemUnmap(_) => backend_id::SHMEM_UNMAP,
            Self::Unknown { id, .. } => *id,
        }
    }

    /// Appends the message to `out`. `flags` is 0 or [`NEED_REPLY`](super::NEED_REPLY).
    pub fn encode(&self, flags: u32, out: &mut Vec<u8>) {
        put_message(out, self.id(), flags, |out| match self {
            Self::IotlbMsg(iotlb) => iotlb.put(out),
            Self::ConfigChangeMsg => {}
            Self::VringHostNotifierMsg(area) => area.put(out),
            Self::VringCall(state) | Self::VringErr(state) => state.put(out),
            Self::SharedObjectAdd(uuid)
            | Self::SharedObjectRemove(uuid)
            | Self::SharedObjectLookup(uuid) => out.put(uuid),
            Self::ShmemMap(mapping) | Self::ShmemUnmap(mapping) => mapping.put(out),
            Self::Unknown { payload, .. } => out.put(payload),
        });
    }
}

/// Decodes the acknowledgement of a request of the device's side, which came with `fds`
/// descriptors: 0 means success. Only the answer to SHARED_OBJECT_LOOKUP carries a descriptor.
pub fn decode_ack(header: &Header, payload: &[u8], fds: usize) -> Result<u64, DecodeError> {
    header.expect_reply(true)?;
    let row = header.request.wrapping_sub(1) as usize;
    let none = FdCount { least: 0, most: 0 };
    BACKEND_REQUESTS.get(row).map_or(none, |rule| rule.reply_fds).check(fds)?;
    Fields::new(payload).u64()
}

/// Appends an acknowledgement of the request of the device's side with this number to `out`.
pub fn encode_ack(request: u32, value: u64, out: &mut Vec<u8>) {
    put_message(out, request, REPLY, |out| out.put_u64(value));
}
