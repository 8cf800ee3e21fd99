//! Layouts that are easy to get wrong, against bytes written by hand from the specification.

use super::*;
use crate::{DecodeError, Framer};

/// Little-endian words, one after the other; every peer tested is little-endian.
fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn decode(bytes: &[u8], fds: usize) -> Result<Request<'_>, DecodeError> {
    let (header, payload) = bytes.split_first_chunk::<HEADER_LEN>().expect("a whole header");
    let header = Header::decode(header)?;
    assert_eq!(header.size as usize, payload.len(), "size in the header of the vector");
    Request::decode(&header, payload, fds)
}

#[track_caller]
fn is_on_the_wire(request: Request<'_>, flags: u32, fds: usize, bytes: &[u8]) {
    assert_eq!(decode(bytes, fds), Ok(request));
    let mut encoded = Vec::new();
    request.encode(flags, &mut encoded);
    assert_eq!(encoded, bytes);
}

#[test]
fn features_with_need_reply() {
    let bytes = words(&[2, 9, 8, 0x4400_0000, 1]);
    is_on_the_wire(Request::SetFeatures(0x1_4400_0000), NEED_REPLY, 0, &bytes);
}

#[test]
fn used_ring_comes_before_available_ring() {
    let addr = VringAddr {
        index: 1,
        flags: VRING_ADDR_F_LOG,
        descriptor: 0x1_0000_0002,
        used: 0x3_0000_0004,
        available: 0x5_0000_0006,
        log: 0x7_0000_0008,
    };
    let bytes = words(&[9, 1, 40, 1, 1, 2, 1, 4, 3, 6, 5, 8, 7]);
    is_on_the_wire(Request::SetVringAddr(addr), 0, 0, &bytes);
}

#[test]
fn kick_without_descriptor_has_bit_8() {
    let polled = VringFd { index: 3, has_fd: false };
    is_on_the_wire(Request::SetVringKick(polled), 0, 0, &words(&[12, 1, 8, 0x103, 0]));
    let event = VringFd { index: 3, has_fd: true };
    is_on_the_wire(Request::SetVringCall(event), 0, 1, &words(&[13, 1, 8, 3, 0]));
}

#[test]
fn queue_index_is_not_truncated() {
    for value in [0xffff, 0x1_0000, 0x201] {
        let refused = DecodeError::Value { field: "vring index and flags", value: value.into() };
        assert_eq!(decode(&words(&[12, 1, 8, value, 0]), 1), Err(refused));
        assert!(!refused.is_fatal());
    }
}

#[test]
fn memory_table_has_padding_after_the_count() {
    let region = MemoryRegion { guest_address: 1, size: 2, user_address: 3 << 32, mmap_offset: 4 };
    let table = MemoryTable::new(&[region, region]).expect("two fit");
    let bytes = words(&[
        5, 1, 72, 2, 0, 1, 0, 2, 0, 0, 3, 4, 0, //
        1, 0, 2, 0, 0, 3, 4, 0,
    ]);
    is_on_the_wire(Request::SetMemTable(table), 0, 2, &bytes);
    let wrong = DecodeError::Fds { found: 3, least: 2, most: 2 };
    assert_eq!(decode(&bytes, 3), Err(wrong));
}

#[test]
fn too_many_regions_are_refused_before_the_payload_is_read() {
    let refused = |value| Err(DecodeError::Value { field: "number of regions", value });
    assert_eq!(decode(&words(&[5, 1, 8, 9, 0]), 0), refused(9));
    assert_eq!(decode(&words(&[5, 1, 8, 255, 0]), 0), refused(255));
    assert_eq!(decode(&words(&[5, 1, 8, u32::MAX, 0]), 0), refused(u32::MAX.into()));
}

#[test]
fn empty_table_in_a_reply_is_no_acknowledgement() {
    let header = Header { request: id::SET_MEM_TABLE, flags: VERSION | REPLY, size: 12 };
    let refused = DecodeError::Value { field: "number of regions", value: 0 };
    assert_eq!(Reply::decode(&header, &[0; 12], 0), Err(refused));
    assert_eq!(Reply::decode(&header, &[0; 8], 0), Ok(Reply::Value(0)));
}

#[test]
fn single_region_has_padding_first() {
    let region = MemoryRegion { guest_address: 1, size: 2, user_address: 3, mmap_offset: 4 };
    let bytes = words(&[37, 1, 40, 0, 0, 1, 0, 2, 0, 3, 0, 4, 0]);
    is_on_the_wire(Request::AddMemReg(region), 0, 1, &bytes);
}

#[test]
fn iotlb_is_padded_to_32_bytes_and_read_without() {
    let iotlb = Iotlb {
        iova: 0x1000,
        size: 0x2000,
        user_address: 0x3_0000_0000,
        permissions: Iotlb::READ | Iotlb::WRITE,
        kind: IotlbKind::Update,
    };
    let bytes = words(&[22, 9, 32, 0x1000, 0, 0x2000, 0, 0, 3, 0x0203, 0]);
    is_on_the_wire(Request::IotlbMsg(iotlb), NEED_REPLY, 0, &bytes);
    let mut short = bytes;
    short.truncate(HEADER_LEN + 26);
    short[8] = 26;
    assert_eq!(decode(&short, 0), Ok(Request::IotlbMsg(iotlb)));
}

#[test]
fn invalidation_ignores_what_qemu_leaves_uninitialised() {
    let bytes = words(&[22, 9, 32, 0x1000, 0, 0x2000, 0, 0xdead, 0xbeef, 0x03a5, 0xffff]);
    let iotlb = Iotlb {
        iova: 0x1000,
        size: 0x2000,
        user_address: 0,
        permissions: 0,
        kind: IotlbKind::Invalidate,
    };
    assert_eq!(decode(&bytes, 0), Ok(Request::IotlbMsg(iotlb)));
}

#[test]
fn inflight_is_padded_to_24_bytes_and_read_without() {
    let inflight = Inflight { mmap_size: 2112, mmap_offset: 0, queues: 2, queue_size: 128 };
    let bytes = words(&[32, 1, 24, 2112, 0, 0, 0, 0x0080_0002, 0]);
    is_on_the_wire(Request::SetInflightFd(inflight), 0, 1, &bytes);
    let mut short = bytes;
    short.truncate(HEADER_LEN + 20);
    short[8] = 20;
    assert_eq!(decode(&short, 1), Ok(Request::SetInflightFd(inflight)));
}

#[test]
fn config_has_offset_size_flags_then_bytes() {
    let data = [1, 2, 3, 4];
    let config = Config { offset: 8, size: 4, flags: 1, data: &data };
    let bytes = words(&[25, 1, 16, 8, 4, 1, 0x0403_0201]);
    is_on_the_wire(Request::SetConfig(config), 0, 0, &bytes);
    let without = words(&[24, 1, 12, 8, 4, 0]);
    let asked = Config { offset: 8, size: 4, flags: 0, data: &[] };
    assert_eq!(decode(&without, 0), Ok(Request::GetConfig(asked)));
    let large = words(&[24, 1, 12, 0, 257, 0]);
    assert_eq!(decode(&large, 0), Err(DecodeError::Value { field: "config size", value: 257 }));
    let overflow = words(&[24, 1, 12, u32::MAX, 1, 0]);
    assert!(matches!(decode(&overflow, 0), Err(DecodeError::Value { field: "config offset", .. })));
}

#[test]
fn log_base_with_and_without_shared_memory() {
    let shared = LogBase::Shared { size: 0x1000, offset: 0x40 };
    is_on_the_wire(Request::SetLogBase(shared), 0, 1, &words(&[6, 1, 16, 0x1000, 0, 0x40, 0]));
    let address = LogBase::Address(0x1000);
    is_on_the_wire(Request::SetLogBase(address), 0, 0, &words(&[6, 1, 8, 0x1000, 0]));
}

#[test]
fn shared_memory_mapping_has_an_id_in_eight_bytes() {
    let mapping = ShmemMapping {
        id: 7,
        file_offset: 0x1000,
        region_offset: 0x2000,
        len: 0x3000,
        flags: ShmemMapping::WRITABLE,
    };
    let bytes = words(&[9, 1, 40, 7, 0, 0x1000, 0, 0x2000, 0, 0x3000, 0, 1, 0]);
    let mut encoded = Vec::new();
    BackendRequest::ShmemMap(mapping).encode(0, &mut encoded);
    assert_eq!(encoded, bytes);
}

#[test]
fn state_transfer_answer_says_whether_a_descriptor_comes() {
    let header = Header { request: id::SET_DEVICE_STATE_FD, flags: VERSION | REPLY, size: 8 };
    let is = |value: u64, fds, error, has_fd| {
        let payload = value.to_ne_bytes();
        let expected = Ok(Reply::DeviceStateFd { error, has_fd });
        assert_eq!(Reply::decode(&header, &payload, fds), expected);
    };
    is(0x100, 0, 0, false);
    is(0, 1, 0, true);
    is(0x101, 0, 1, false);
    assert!(Reply::decode(&header, &0x100u64.to_ne_bytes(), 1).is_err());
}

#[test]
fn unknown_requests_keep_their_payload() {
    let bytes = words(&[99, 9, 4, 0xabcd]);
    let request = Request::Unknown { id: 99, payload: &[0xcd, 0xab, 0, 0] };
    is_on_the_wire(request, NEED_REPLY, 0, &bytes);
    assert_eq!(decode(&bytes, MAX_FDS), Ok(request));
    assert!(matches!(decode(&words(&[0, 9, 0]), 0), Ok(Request::Unknown { id: 0, .. })));
}

#[test]
fn broken_framing_is_fatal_and_nothing_is_allocated_for_it() {
    let refuse = |bytes: &[u8]| {
        let mut framer = Framer::<VhostUser>::new(MAX_PAYLOAD);
        let refused = framer.feed(bytes).expect_err("a bad header");
        assert!(refused.is_fatal());
        refused
    };
    let large = |size| DecodeError::TooLarge { size, limit: 4096 };
    assert_eq!(refuse(&words(&[1, 1, u32::MAX])), large(u32::MAX.into()));
    assert_eq!(refuse(&words(&[1, 1, 4097])), large(4097));
    assert_eq!(refuse(&words(&[1, 2, 0])), DecodeError::Version { found: 2, expected: 1 });
    let reply = decode(&words(&[1, 5, 0]), 0).expect_err("a reply is no request");
    assert!(reply.is_fatal());
}

#[test]
fn descriptors_do_not_belong_to_every_message() {
    let refused = decode(&words(&[1, 1, 0]), 8).expect_err("GET_FEATURES takes none");
    assert_eq!(refused, DecodeError::Fds { found: 8, least: 0, most: 0 });
    assert!(decode(&words(&[21, 1, 0]), 0).is_err());
}

#[test]
fn padding_behind_the_flags_of_a_mapping_means_nothing() {
    let payload = words(&[7, 0, 0, 0, 0, 0, 1, 0, 0xbeef_0001, 0xdead]);
    let header = Header { request: backend_id::SHMEM_UNMAP, flags: VERSION, size: 40 };
    let mapping = ShmemMapping {
        id: 7,
        file_offset: 0,
        region_offset: 0,
        len: 1,
        flags: ShmemMapping::WRITABLE,
    };
    let decoded = BackendRequest::decode(&header, &payload, 0);
    assert_eq!(decoded, Ok(BackendRequest::ShmemUnmap(mapping)));
}
