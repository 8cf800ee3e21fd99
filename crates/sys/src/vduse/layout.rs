//! Numbers and layouts of linux/vduse.h, and the bytes they stand for. No system calls.

use std::io;

use super::{VDUSE_NAME_MAX, VduseConfig, VduseMessage, VduseQueueInfo, VduseRequest};

/// `VDUSE_BASE`.
const BASE: u64 = 0x81;
/// Directions of an ioctl (asm-generic/ioctl.h).
const NONE: u64 = 0;
const WRITE: u64 = 1;
const READ: u64 = 2;

/// An ioctl's number from direction, number and size of its argument (asm-generic/ioctl.h).
const fn ioctl_number(direction: u64, number: u64, size: usize) -> u64 {
    direction << 30 | (size as u64) << 16 | BASE << 8 | number
}

pub(super) const GET_API_VERSION: u64 = ioctl_number(READ, 0x00, 8);
pub(super) const SET_API_VERSION: u64 = ioctl_number(WRITE, 0x01, 8);
pub(super) const CREATE_DEV: u64 = ioctl_number(WRITE, 0x02, config::BYTES);
pub(super) const DESTROY_DEV: u64 = ioctl_number(WRITE, 0x03, VDUSE_NAME_MAX);
pub(super) const IOTLB_GET_FD: u64 = ioctl_number(READ | WRITE, 0x10, iotlb::BYTES);
pub(super) const DEV_GET_FEATURES: u64 = ioctl_number(READ, 0x11, 8);
pub(super) const DEV_SET_CONFIG: u64 = ioctl_number(WRITE, 0x12, CONFIG_DATA_BYTES);
pub(super) const DEV_INJECT_CONFIG_IRQ: u64 = ioctl_number(NONE, 0x13, 0);
pub(super) const VQ_SETUP: u64 = ioctl_number(WRITE, 0x14, VQ_CONFIG_BYTES);
pub(super) const VQ_GET_INFO: u64 = ioctl_number(READ | WRITE, 0x15, info::BYTES);
pub(super) const VQ_SETUP_KICKFD: u64 = ioctl_number(WRITE, 0x16, 8);
pub(super) const VQ_INJECT_IRQ: u64 = ioctl_number(WRITE, 0x17, 4);
pub(super) const IOTLB_REG_UMEM: u64 = ioctl_number(WRITE, 0x18, umem::BYTES);

/// `struct vduse_dev_config` up to the config's bytes.
pub(super) mod config {
    pub(in crate::vduse) const VENDOR: usize = 256;
    pub(in crate::vduse) const DEVICE: usize = 260;
    pub(in crate::vduse) const FEATURES: usize = 264;
    pub(in crate::vduse) const QUEUES: usize = 272;
    pub(in crate::vduse) const ALIGNMENT: usize = 276;
    /// From version 1 on; must be 0 before.
    pub(in crate::vduse) const GROUPS: usize = 280;
    /// From version 1 on; must be 0 before.
    pub(in crate::vduse) const ADDRESS_SPACES: usize = 284;
    pub(in crate::vduse) const CONFIG_LEN: usize = 332;
    pub(in crate::vduse) const BYTES: usize = 336;
}

/// `struct vduse_iotlb_entry`.
pub(super) mod iotlb {
    pub(in crate::vduse) const OFFSET: usize = 0;
    pub(in crate::vduse) const START: usize = 8;
    pub(in crate::vduse) const LAST: usize = 16;
    pub(in crate::vduse) const PERMISSION: usize = 24;
    /// `VDUSE_ACCESS_WO`: set in read-write, too.
    pub(in crate::vduse) const MAY_WRITE: u8 = 2;
    pub(in crate::vduse) const BYTES: usize = 32;
}

/// `struct vduse_iova_umem`; the address space (from version 1 on) is 0 here.
pub(super) mod umem {
    pub(in crate::vduse) const ADDRESS: usize = 0;
    pub(in crate::vduse) const SIZE: usize = 16;
    pub(in crate::vduse) const BYTES: usize = 48;
}

/// `struct vduse_vq_info`.
pub(super) mod info {
    pub(in crate::vduse) const INDEX: usize = 0;
    pub(in crate::vduse) const SIZE: usize = 4;
    pub(in crate::vduse) const DESCRIPTOR: usize = 8;
    pub(in crate::vduse) const DRIVER: usize = 16;
    pub(in crate::vduse) const DEVICE: usize = 24;
    pub(in crate::vduse) const STATE: usize = 32;
    pub(in crate::vduse) const READY: usize = 40;
    pub(in crate::vduse) const BYTES: usize = 48;
}

/// `struct vduse_config_data` without its bytes: offset, length.
pub(super) const CONFIG_DATA_BYTES: usize = 8;
/// `struct vduse_vq_config`: index, largest size, and from version 1 on the group, which is 0 here.
pub(super) const VQ_CONFIG_BYTES: usize = 32;

/// `struct vduse_dev_request` and `struct vduse_dev_response`.
pub(super) mod message {
    pub(in crate::vduse) const KIND: usize = 0;
    pub(in crate::vduse) const REQUEST_ID: usize = 4;
    pub(in crate::vduse) const RESPONSE_ID: usize = 0;
    pub(in crate::vduse) const RESULT: usize = 4;
    pub(in crate::vduse) const BODY: usize = 24;
    /// The second 64-bit word of the body: the last address of a range.
    pub(in crate::vduse) const LAST: usize = 32;
    /// A queue's state, behind its index.
    pub(in crate::vduse) const STATE: usize = 28;
    pub(in crate::vduse) const BYTES: usize = 152;
    /// `VDUSE_REQ_RESULT_FAILED`.
    pub(in crate::vduse) const FAILED: u32 = 1;
    /// `enum vduse_req_type`.
    pub(in crate::vduse) const GET_VQ_STATE: u32 = 0;
    pub(in crate::vduse) const SET_STATUS: u32 = 1;
    pub(in crate::vduse) const UPDATE_IOTLB: u32 = 2;
}

impl VduseConfig {
    pub(super) fn encode(&self, version: u64) -> io::Result<Vec<u8>> {
        let mut bytes = name_bytes(&self.name)?;
        bytes.resize(config::BYTES, 0);
        put_u32(&mut bytes, config::VENDOR, self.vendor);
        put_u32(&mut bytes, config::DEVICE, self.device);
        put_u64(&mut bytes, config::FEATURES, self.features);
        put_u32(&mut bytes, config::QUEUES, self.queues);
        put_u32(&mut bytes, config::ALIGNMENT, self.alignment);
        if version >= 1 {
            put_u32(&mut bytes, config::GROUPS, 1);
            put_u32(&mut bytes, config::ADDRESS_SPACES, 1);
        }
        put_u32(&mut bytes, config::CONFIG_LEN, self.config.len() as u32);
        bytes.extend_from_slice(&self.config);
        Ok(bytes)
    }
}

pub(super) fn name_bytes(name: &str) -> io::Result<Vec<u8>> {
    let whole = name.len() < VDUSE_NAME_MAX && !name.is_empty() && !name.contains(['\0', '/']);
    if !whole {
        let what = "a name has 1 to 255 bytes and no slash";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(VDUSE_NAME_MAX, 0);
    Ok(bytes)
}

pub(super) fn decode_info(bytes: &[u8; info::BYTES]) -> VduseQueueInfo {
    VduseQueueInfo {
        size: get_u32(bytes, info::SIZE),
        descriptor: get_u64(bytes, info::DESCRIPTOR),
        driver: get_u64(bytes, info::DRIVER),
        device: get_u64(bytes, info::DEVICE),
        state: std::array::from_fn(|n| get_u16(bytes, info::STATE + 2 * n)),
        ready: bytes[info::READY] != 0,
    }
}

pub(super) fn decode_message(bytes: &[u8; message::BYTES]) -> VduseMessage {
    let request = match get_u32(bytes, message::KIND) {
        message::GET_VQ_STATE => VduseRequest::QueueState(get_u32(bytes, message::BODY)),
        message::SET_STATUS => VduseRequest::SetStatus(bytes[message::BODY]),
        message::UPDATE_IOTLB => VduseRequest::UpdateIotlb {
            start: get_u64(bytes, message::BODY),
            last: get_u64(bytes, message::LAST),
        },
        other => VduseRequest::Unknown(other),
    };
    VduseMessage { id: get_u32(bytes, message::REQUEST_ID), request }
}

pub(super) fn encode_answer(id: u32, done: bool) -> [u8; message::BYTES] {
    let mut bytes = [0; message::BYTES];
    put_u32(&mut bytes, message::RESPONSE_ID, id);
    put_u32(&mut bytes, message::RESULT, if done { 0 } else { message::FAILED });
    bytes
}

pub(super) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
}

pub(super) fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_ne_bytes());
}

pub(super) fn get_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from(get_u16(bytes, at)) | u32::from(get_u16(bytes, at + 2)) << 16
}

pub(super) fn get_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from(get_u32(bytes, at)) | u64::from(get_u32(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_header() {
        // As `printf("%#lx")` of the macros in linux/vduse.h shows them on x86-64.
        assert_eq!(GET_API_VERSION, 0x8008_8100);
        assert_eq!(CREATE_DEV, 0x4150_8102);
        assert_eq!(DESTROY_DEV, 0x4100_8103);
        assert_eq!(IOTLB_GET_FD, 0xc020_8110);
        assert_eq!(DEV_SET_CONFIG, 0x4008_8112);
        assert_eq!(DEV_INJECT_CONFIG_IRQ, 0x8113);
        assert_eq!(VQ_SETUP, 0x4020_8114);
        assert_eq!(VQ_GET_INFO, 0xc030_8115);
        assert_eq!(VQ_INJECT_IRQ, 0x4004_8117);
    }

    #[test]
    fn a_device_is_described_in_both_versions() {
        let config = VduseConfig {
            name: "disk0".into(),
            vendor: 1,
            device: 2,
            features: 3 << 32,
            queues: 4,
            alignment: 4096,
            config: vec![7; 60],
        };
        let old = config.encode(0).unwrap();
        assert_eq!(old.len(), 336 + 60);
        assert_eq!(&old[..6], b"disk0\0");
        assert_eq!((get_u32(&old, 260), get_u64(&old, 264), get_u32(&old, 272)), (2, 3 << 32, 4));
        assert!(old[280..332].iter().all(|byte| *byte == 0), "reserved in version 0");
        assert_eq!((get_u32(&old, 332), old[336]), (60, 7));
        let new = config.encode(1).unwrap();
        assert_eq!((get_u32(&new, 280), get_u32(&new, 284)), (1, 1));
        assert!(new[288..332].iter().all(|byte| *byte == 0), "reserved in version 1");
    }

    #[test]
    fn names_that_do_not_fit_are_refused() {
        assert!(name_bytes("").is_err());
        assert!(name_bytes("a/b").is_err());
        assert!(name_bytes(&"x".repeat(256)).is_err());
        assert_eq!(name_bytes(&"x".repeat(255)).unwrap().len(), 256);
    }

    #[test]
    fn messages_are_read_and_answered() {
        let mut bytes = [0; message::BYTES];
        bytes[4] = 9;
        bytes[24] = 5;
        let request = VduseRequest::QueueState(5);
        assert_eq!(decode_message(&bytes), VduseMessage { id: 9, request });
        bytes[0] = 1;
        assert_eq!(decode_message(&bytes).request, VduseRequest::SetStatus(5));
        bytes[0] = 2;
        bytes[32] = 6;
        let request = VduseRequest::UpdateIotlb { start: 5, last: 6 };
        assert_eq!(decode_message(&bytes).request, request);
        bytes[0] = 77;
        assert_eq!(decode_message(&bytes).request, VduseRequest::Unknown(77));
        let refusal = encode_answer(9, false);
        assert_eq!((get_u32(&refusal, 0), get_u32(&refusal, 4)), (9, 1));
    }

    #[test]
    fn a_queue_is_read_from_its_bytes() {
        let mut bytes = [0; info::BYTES];
        put_u32(&mut bytes, 4, 128);
        put_u64(&mut bytes, 8, 0x1000);
        put_u64(&mut bytes, 24, 0x3000);
        bytes[34] = 2;
        bytes[40] = 1;
        let info = decode_info(&bytes);
        assert_eq!((info.size, info.descriptor, info.device), (128, 0x1000, 0x3000));
        assert_eq!((info.state, info.ready), ([0, 2, 0, 0], true));
    }
}
