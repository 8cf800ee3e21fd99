//! Layouts that are easy to get wrong, against bytes written by hand from the specification, and
//! limits that keep a hostile peer from anything.

use super::*;
use crate::{DecodeError, Framer};

/// Little-endian words, one after the other; every peer tested is little-endian.
fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A command with id 0x1234.
fn message(command: u16, payload: &[u32]) -> Vec<u8> {
    let size = HEADER_LEN + 4 * payload.len();
    let header = [u32::from(command) << 16 | 0x1234, size as u32, 0, 0];
    [words(&header), words(payload)].concat()
}

fn decode(bytes: &[u8], fds: usize) -> Result<Request<'_>, DecodeError> {
    let (header, payload) = bytes.split_first_chunk::<HEADER_LEN>().expect("a whole header");
    let header = Header::decode(header)?;
    assert_eq!(header.payload_len as usize, payload.len(), "size in the header of the vector");
    Request::decode(&header, payload, fds)
}

#[track_caller]
fn is_on_the_wire(request: Request<'_>, fds: usize, bytes: &[u8]) {
    assert_eq!(decode(bytes, fds), Ok(request));
    let mut encoded = Vec::new();
    request.encode(0x1234, 0, &mut encoded);
    assert_eq!(encoded, bytes);
}

fn reply_header(command: u16, payload_len: usize) -> Header {
    Header { message_id: 1, command, payload_len: payload_len as u32, flags: 1, error: 0 }
}

#[track_caller]
fn is_replied(reply: Reply<'_>, command: u16, payload: &[u8]) {
    let header = reply_header(command, payload.len());
    assert_eq!(Reply::decode(&header, payload, 0), Ok(reply.clone()));
    let mut encoded = Vec::new();
    reply.encode(1, command, &mut encoded);
    assert_eq!(encoded[HEADER_LEN..], *payload);
}

/// As captured; the line breaks are not part of it.
const QEMU_OFFER: &[u8] = b"{\"capabilities\": {\"pgsizes\": 4096, \"max_msg_fds\": 16, \
    \"max_dma_maps\": 65535, \"max_data_xfer_size\": 1048576, \
    \"migration\": {\"max_bitmap_size\": 268435456, \"pgsize\": 4096}, \
    \"write_multiple\": true}}";

#[test]
fn qemu_proposes_214_bytes_and_the_reply_is_shorter() {
    let payload = [&[0; 4], QEMU_OFFER, &[0]].concat();
    assert_eq!(HEADER_LEN + payload.len(), 214, "QEMU's request as it was captured");
    let header = Header { flags: 0, ..reply_header(command::VERSION, payload.len()) };
    let Ok(Request::Version(offer)) = Request::decode(&header, &payload, 0) else {
        panic!("QEMU's own words are refused");
    };
    let capabilities = Capabilities {
        max_msg_fds: 16,
        write_multiple: true,
        migration: Some(Migration { pgsize: 4096, max_bitmap_size: 1 << 28 }),
        ..Capabilities::default()
    };
    assert_eq!(offer, Version { major: 0, minor: 0, capabilities });
    let mut encoded = Vec::new();
    Reply::Version(offer).encode(1, command::VERSION, &mut encoded);
    assert!(encoded.len() < 214);
    let text = b"{\"capabilities\":{\"max_msg_fds\":16,\"write_multiple\":true,\
        \"migration\":{\"pgsize\":4096,\"max_bitmap_size\":268435456}}}";
    assert_eq!(encoded[HEADER_LEN + 4..encoded.len() - 1], text[..]);
}

#[test]
fn version_reply_gives_up_capabilities_until_it_fits() {
    let capabilities = Capabilities {
        max_msg_fds: 16,
        max_data_xfer_size: 4096,
        max_dma_maps: 1,
        pgsizes: 0x20_0000,
        twin_socket: TwinSocket { supported: true, fd_index: Some(3) },
        write_multiple: true,
        migration: Some(Migration::default()),
    };
    let whole = Version { major: 0, minor: 0, capabilities };
    for limit in 0..400 {
        let mut encoded = Vec::new();
        Reply::Version(whole.fitted_to(limit)).encode(1, command::VERSION, &mut encoded);
        assert!(encoded.len() <= HEADER_LEN + limit.max(4), "limit {limit}");
    }
    assert_eq!(whole.fitted_to(400), whole);
    assert_eq!(whole.fitted_to(0).capabilities, Capabilities::default());
    assert_eq!(whole.fitted_to(60).capabilities.max_msg_fds, 1);
    assert_eq!(whole.fitted_to(100).capabilities.max_msg_fds, 16);
}

#[test]
fn hostile_capabilities_are_refused() {
    let refused = [
        &br#"{"capabilities":{"max_msg_fds":-1}}"#[..],
        br#"{"capabilities":{"max_msg_fds":true}}"#,
        br#"{"capabilities":{"write_multiple":1}}"#,
        br#"{"capabilities":"#,
        br#"[[[[[[[[[[[]]]]]]]]]]]"#,
    ];
    for text in refused {
        assert!(Capabilities::read(text).is_err(), "{}", text.escape_ascii());
    }
    assert!(Capabilities::read(&[b' '; MAX_CAPABILITIES_LEN + 1]).is_err());
    let unknown =
        br#"{"x":{"max_msg_fds":9},"capabilities":{"max_msg_fds":7,"y":[1,{"pgsizes":1}]}}"#;
    let expected = Capabilities { max_msg_fds: 7, ..Capabilities::default() };
    assert_eq!(Capabilities::read(unknown), Ok(expected));
    let header = Header { flags: 0, ..reply_header(command::VERSION, 6) };
    let unterminated = Request::decode(&header, b"\0\0\0\0{}", 0);
    assert_eq!(unterminated, Err(DecodeError::Json { at: 2, problem: "no final NUL" }));
}

#[test]
fn dma_map_has_the_file_offset_first() {
    let map = DmaMap {
        flags: dma_flags::READ | dma_flags::WRITE,
        offset: 0x1000,
        address: 0x2_0000_0000,
        size: 0x3000,
    };
    let bytes = message(2, &[32, 3, 0x1000, 0, 0, 2, 0x3000, 0]);
    is_on_the_wire(Request::DmaMap(map), 1, &bytes);
    is_on_the_wire(Request::DmaMap(map), 0, &bytes);
    assert!(decode(&bytes, 2).is_err());
}

#[test]
fn dma_ranges_may_end_at_two_to_the_64_but_not_beyond() {
    let map =
        |address_high, size_low| message(2, &[32, 3, 0, 0, 0xffff_f000, address_high, size_low, 0]);
    assert!(decode(&map(u32::MAX, 0x1000), 0).is_ok());
    assert!(decode(&map(u32::MAX, 0x1001), 0).is_err());
}

#[test]
fn unmapping_what_qemu_never_mapped_is_not_refused_here() {
    // As seen: address 0xfef00000, size 0xffffffff01100000.
    let bytes = message(3, &[24, 0, 0xfef0_0000, 0, 0x0110_0000, 0xffff_ffff]);
    assert!(matches!(decode(&bytes, 0), Ok(Request::DmaUnmap(_))));
    let all = message(3, &[24, 2, 0, 0, 0, 0]);
    let expected = DmaUnmap { argsz: 24, flags: dma_flags::UNMAP_ALL, address: 0, size: 0 };
    is_on_the_wire(Request::DmaUnmap(expected), 0, &all);
}

#[test]
fn dma_counts_have_64_bits() {
    let read = Request::DmaRead { address: 0x1_0000_0002, count: 0x10_0000 };
    is_on_the_wire(read, 0, &message(11, &[2, 1, 0x10_0000, 0]));
    let write = Request::DmaWrite { address: 2, data: &[1, 2, 3, 4] };
    is_on_the_wire(write, 0, &message(12, &[2, 0, 4, 0, 0x0403_0201]));
    for (low, high) in [(0, 0), (0x10_0001, 0), (0, 1), (u32::MAX, u32::MAX)] {
        let refused = message(11, &[2, 0, low, high]);
        assert!(matches!(decode(&refused, 0), Err(DecodeError::Value { .. })), "{low} {high}");
    }
}

#[test]
fn dma_write_reply_has_three_forms() {
    is_replied(Reply::Done, command::DMA_WRITE, &[]);
    let reply = Reply::DmaWrite { address: 5, count: 6 };
    is_replied(reply.clone(), command::DMA_WRITE, &words(&[5, 0, 6, 0]));
    let short = words(&[5, 0, 6]);
    let header = reply_header(command::DMA_WRITE, short.len());
    assert_eq!(Reply::decode(&header, &short, 0), Ok(reply));
}

#[test]
fn region_accesses_borrow_their_data() {
    let read = Request::RegionRead { offset: 0x1_0000_0004, region: 7, count: 4 };
    is_on_the_wire(read, 0, &message(9, &[4, 1, 7, 4]));
    let bytes = message(10, &[4, 0, 2, 4, 0x0403_0201]);
    let write = Request::RegionWrite { offset: 4, region: 2, data: &[1, 2, 3, 4] };
    is_on_the_wire(write, 0, &bytes);
    let Ok(Request::RegionWrite { data, .. }) = decode(&bytes, 0) else { panic!("decoded above") };
    assert!(core::ptr::eq(data, &bytes[HEADER_LEN + 16..]), "not a copy");
    let short = decode(&bytes[..], 0).and_then(|_| {
        let header = Header { flags: 0, ..reply_header(10, 19) };
        Request::decode(&header, &bytes[HEADER_LEN..HEADER_LEN + 19], 0).map(|_| ())
    });
    let refused = DecodeError::Short { need: 20, have: 19 };
    assert_eq!(short, Err(refused));
    assert!(!refused.is_fatal());
}

#[test]
fn region_accesses_have_bounds() {
    let refused = |payload: &[u32]| assert!(decode(&message(9, payload), 0).is_err());
    refused(&[0, 0, 0, 0]);
    refused(&[0, 0, 0, MAX_DATA_XFER + 1]);
    refused(&[u32::MAX, u32::MAX, 0, 2]);
    assert!(decode(&message(9, &[u32::MAX, u32::MAX, 0, 1]), 0).is_ok());
    assert!(decode(&message(9, &[0, 0, 0, 1]), 1).is_err(), "descriptors belong elsewhere");
}

#[test]
fn multi_writes_have_slots_of_24_bytes() {
    let writes = [
        Write { offset: 0x10, region: 2, data: &[1, 2] },
        Write { offset: 0x18, region: 4, data: &[1, 2, 3, 4, 5, 6, 7, 8] },
    ];
    let bytes =
        message(15, &[2, 0, 0x10, 0, 2, 2, 0x0201, 0, 0x18, 0, 4, 8, 0x0403_0201, 0x0807_0605]);
    let mut buffer = Vec::new();
    let laid_out = MultiWrites::lay_out(&writes, &mut buffer);
    assert_eq!(laid_out.iter().collect::<Vec<_>>(), writes);
    is_on_the_wire(Request::RegionWriteMulti(laid_out), 0, &bytes);
    for count in [3, u32::MAX] {
        let mut lying = bytes.clone();
        lying[HEADER_LEN..HEADER_LEN + 4].copy_from_slice(&count.to_le_bytes());
        assert!(decode(&lying, 0).is_err(), "{count} writes announced");
        lying[HEADER_LEN + 4..HEADER_LEN + 8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(decode(&lying, 0).is_err(), "count beyond 64 bits of bytes");
    }
    for size in [0, 9] {
        assert!(decode(&message(15, &[1, 0, 0, 0, 0, size, 0, 0]), 0).is_err());
    }
}

#[test]
fn region_info_with_sparse_areas_is_asked_for_twice() {
    let areas = vec![
        SparseArea { offset: 0x1000, size: 0x2000 },
        SparseArea { offset: 0x4000, size: 0x1000 },
    ];
    let flags = region_flags::READ | region_flags::WRITE | region_flags::MMAP;
    let info = RegionInfo::new(flags, 2, 0x1_0000_0000, 0x5000, areas);
    assert_eq!(info.argsz, 80);
    let first = words(&[80, 7, 2, 0, 0, 1, 0x5000, 0]);
    let cut = Reply::RegionInfo(info.clone().fitted_to(32));
    is_replied(cut, command::DEVICE_GET_REGION_INFO, &first);
    let second = words(&[
        80,
        15,
        2,
        32,
        0,
        1,
        0x5000,
        0, //
        0x0001_0001,
        0,
        2,
        0, //
        0x1000,
        0,
        0x2000,
        0,
        0x4000,
        0,
        0x1000,
        0,
    ]);
    let whole = Reply::RegionInfo(info.fitted_to(80));
    is_replied(whole, command::DEVICE_GET_REGION_INFO, &second);
}

#[test]
fn capability_lists_end() {
    let reply = |payload: &[u32]| {
        let payload = words(payload);
        let header = reply_header(command::DEVICE_GET_REGION_INFO, payload.len());
        Reply::decode(&header, &payload, 0).map(|_| ())
    };
    let fixed = |cap_offset| [48, 8, 0, cap_offset, 0, 1, 0, 0];
    let with = |cap_offset, cap: [u32; 4]| reply(&[&fixed(cap_offset)[..], &cap].concat());
    assert_eq!(with(32, [0x0001_0003, 0, 0, 0]), Ok(()), "an unknown capability is skipped");
    assert!(with(32, [0x0001_0003, 32, 0, 0]).is_err(), "a capability after itself");
    assert!(with(4, [0; 4]).is_err(), "capabilities inside the fixed part");
    assert!(with(49, [0; 4]).is_err(), "capabilities behind the end");
    assert!(with(u32::MAX, [0; 4]).is_err(), "capabilities far behind the end");
    assert!(with(32, [0x0001_0001, 0, 1, 0]).is_err(), "an area that is not there");
    assert!(with(32, [0x0001_0001, 0, u32::MAX, 0]).is_err(), "too many areas");
}

#[test]
fn region_descriptors_come_in_slots_of_40_or_48_bytes() {
    let sub_region = IoFd {
        offset: 0x3000,
        size: 4,
        fd_index: 1,
        kind: IoFdKind::IoEventFd,
        flags: 1,
        data: 0x55,
    };
    let fds = RegionIoFds::new(4, vec![sub_region]);
    let payload = words(&[56, 0, 4, 1, 0x3000, 0, 4, 0, 1, 0, 1, 0, 0x55, 0]);
    is_replied(Reply::RegionIoFds(fds.clone()), command::DEVICE_GET_REGION_IO_FDS, &payload);
    let cut = Reply::RegionIoFds(fds.clone().fitted_to(16));
    is_replied(cut, command::DEVICE_GET_REGION_IO_FDS, &words(&[56, 0, 4, 1]));
    let shadow = words(&[64, 0, 4, 1, 0x3000, 0, 4, 0, 1, 0, 1, 9, 9, 9, 0x55, 0]);
    let header = reply_header(command::DEVICE_GET_REGION_IO_FDS, shadow.len());
    let expected = RegionIoFds { argsz: 64, ..fds };
    assert_eq!(Reply::decode(&header, &shadow, 2), Ok(Reply::RegionIoFds(expected)));
    assert!(decode(&message(6, &[16, 1, 4, 0]), 0).is_err());
    assert!(decode(&message(6, &[16, 0, 4, 1]), 0).is_err());
}

#[test]
fn interrupts_are_set_by_one_data_and_one_action_flag() {
    let irqs = SetIrqs {
        data: IrqData::Eventfd,
        action: IrqAction::Trigger,
        index: irq_index::MSIX,
        start: 0,
        count: 2,
    };
    let bytes = message(8, &[20, 0x24, 2, 0, 2]);
    is_on_the_wire(Request::DeviceSetIrqs(irqs), 2, &bytes);
    is_on_the_wire(Request::DeviceSetIrqs(irqs), 0, &bytes);
    assert!(decode(&bytes, 1).is_err(), "one descriptor for two interrupts");
    let off = SetIrqs { data: IrqData::None, count: 0, ..irqs };
    is_on_the_wire(Request::DeviceSetIrqs(off), 0, &message(8, &[20, 0x21, 2, 0, 0]));
    let bools = SetIrqs { data: IrqData::Bool(&[1, 0, 1, 0]), count: 4, ..irqs };
    let bools = Request::DeviceSetIrqs(bools);
    is_on_the_wire(bools, 0, &message(8, &[24, 0x22, 2, 0, 4, 0x0001_0001]));
    for flags in [0, 0x20, 0x04, 0x23, 0x34, 0x64, u32::MAX] {
        assert!(decode(&message(8, &[20, flags, 2, 0, 0]), 0).is_err(), "{flags:#x}");
    }
    assert!(decode(&message(8, &[20, 0x21, 2, u32::MAX, 1]), 0).is_err());
    let missing = decode(&message(8, &[20, 0x22, 2, 0, u32::MAX]), 0).map(|_| ());
    assert!(missing.is_err_and(|error| !error.is_fatal()), "booleans that are not there");
    let many = message(8, &[20, 0x24, 2, 0, 17]);
    assert!(decode(&many, 17).is_err());
    assert!(decode(&many, 16).is_err());
}

#[test]
fn sizes_in_headers_are_checked_before_anything_is_allocated() {
    let refuse = |size| {
        let mut framer = Framer::<VfioUser>::new(MAX_PAYLOAD);
        framer.feed(&words(&[1, size, 0, 0])).expect_err("a bad size")
    };
    assert_eq!(refuse(15), DecodeError::Truncated { need: 16, have: 15 });
    assert!(matches!(refuse(u32::MAX), DecodeError::TooLarge { .. }));
    assert!(matches!(refuse(MAX_PAYLOAD as u32 + 17), DecodeError::TooLarge { .. }));
    let mut framer = Framer::<VfioUser>::new(MAX_PAYLOAD);
    assert_eq!(framer.feed(&words(&[1, MAX_PAYLOAD as u32 + 16, 0, 0])), Ok(16));
    assert_eq!(framer.wanted(), MAX_PAYLOAD);
}

#[test]
fn error_replies_carry_only_the_header() {
    let mut encoded = Vec::new();
    Reply::Failed(22).encode(0x1234, command::DMA_MAP, &mut encoded);
    assert_eq!(encoded, words(&[0x0002_1234, 16, 0x21, 22]));
    let header = Header { flags: 0x21, error: 17, ..reply_header(command::REGION_READ, 0) };
    assert_eq!(Reply::decode(&header, &[], 0), Ok(Reply::Failed(17)));
}

#[test]
fn commands_and_replies_are_not_confused() {
    let header = reply_header(command::DEVICE_RESET, 0);
    assert!(Request::decode(&header, &[], 0).is_err_and(|error| error.is_fatal()));
    let header = Header { flags: 2, ..header };
    assert!(Request::decode(&header, &[], 0).is_err());
    assert!(Reply::decode(&header, &[], 0).is_err());
    let dirty_pages = message(14, &[1, 2]);
    let Ok(Request::Unknown { command: 14, payload }) = decode(&dirty_pages, MAX_FDS) else {
        panic!("a withdrawn command is unknown");
    };
    assert_eq!(payload.len(), 8);
}
