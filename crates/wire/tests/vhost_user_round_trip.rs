//! Every vhost-user message there and back, cut at every byte, and next to the structures of the
//! `vhost` crate, which was written by others.

use proptest::prelude::*;
use wire::vhost_user::{
    BACKEND_REQUESTS, BackendRequest, Config, DeviceState, DeviceStateDirection, HEADER_LEN,
    Header, Inflight, Iotlb, IotlbKind, LogBase, MemoryRegion, MemoryTable, NEED_REPLY, REQUESTS,
    Reply, Request, ShmemConfig, ShmemMapping, VringAddr, VringArea, VringFd, VringState,
};

/// Numbers to fill fields with.
type Numbers = [u64; 4];

/// The request with this number, its fields filled from `n` and `data`, and how many descriptors
/// it takes along.
fn request<'a>(id: u32, n: Numbers, data: &'a [u8]) -> (Request<'a>, usize) {
    let state = VringState { index: n[0] as u32, num: n[1] as u32 };
    let vring = VringFd { index: n[0] as u8, has_fd: n[1] & 1 == 0 };
    let vring_fds = usize::from(vring.has_fd);
    let region = region(n);
    let inflight = inflight(n);
    let config =
        Config { offset: n[0] as u32 >> 1, size: data.len() as u32, flags: n[1] as u32, data };
    match id {
        1 => (Request::GetFeatures, 0),
        2 => (Request::SetFeatures(n[0]), 0),
        3 => (Request::SetOwner, 0),
        4 => (Request::ResetOwner, 0),
        5 => {
            let regions = &[region; 8][..n[0] as usize % 9];
            (Request::SetMemTable(MemoryTable::new(regions).expect("at most 8")), regions.len())
        }
        6 if n[0] & 1 == 0 => {
            (Request::SetLogBase(LogBase::Shared { size: n[1], offset: n[2] }), 1)
        }
        6 => (Request::SetLogBase(LogBase::Address(n[1])), 0),
        7 => (Request::SetLogFd, 1),
        8 => (Request::SetVringNum(state), 0),
        9 => (Request::SetVringAddr(vring_addr(n)), 0),
        10 => (Request::SetVringBase(state), 0),
        11 => (Request::GetVringBase(state), 0),
        12 => (Request::SetVringKick(vring), vring_fds),
        13 => (Request::SetVringCall(vring), vring_fds),
        14 => (Request::SetVringErr(vring), vring_fds),
        15 => (Request::GetProtocolFeatures, 0),
        16 => (Request::SetProtocolFeatures(n[0]), 0),
        17 => (Request::GetQueueNum, 0),
        18 => (Request::SetVringEnable(state), 0),
        19 => (Request::SendRarp([n[0] as u8; 6]), 0),
        20 => (Request::NetSetMtu(n[0]), 0),
        21 => (Request::SetBackendReqFd, 1),
        22 => (Request::IotlbMsg(iotlb(n)), 0),
        23 => (Request::SetVringEndian(state), 0),
        24 => (Request::GetConfig(Config { data: &[], ..config }), 0),
        25 => (Request::SetConfig(config), 0),
        26 => (Request::CreateCryptoSession(data), 0),
        27 => (Request::CloseCryptoSession(n[0]), 0),
        28 => (Request::PostcopyAdvise, 0),
        29 => (Request::PostcopyListen, 0),
        30 => (Request::PostcopyEnd, 0),
        31 => (Request::GetInflightFd(inflight), 0),
        32 => (Request::SetInflightFd(inflight), 1),
        33 => (Request::GpuSetSocket, 1),
        34 => (Request::ResetDevice, 0),
        35 => (Request::VringKick(state), 0),
        36 => (Request::GetMaxMemSlots, 0),
        37 => (Request::AddMemReg(region), 1),
        38 => (Request::RemMemReg(region), n[0] as usize & 1),
        39 => (Request::SetStatus(n[0]), 0),
        40 => (Request::GetStatus, 0),
        41 => (Request::GetSharedObject([n[0] as u8; 16]), 0),
        42 => {
            let direction = DeviceStateDirection::Load;
            (Request::SetDeviceStateFd(DeviceState { direction, phase: n[0] as u32 }), 1)
        }
        43 => (Request::CheckDeviceState, 0),
        44 => (Request::GetShmemConfig, 0),
        id => (Request::Unknown { id, payload: data }, n[0] as usize % 9),
    }
}

fn backend_request<'a>(id: u32, n: Numbers, data: &'a [u8]) -> (BackendRequest<'a>, usize) {
    let state = VringState { index: n[0] as u32, num: n[1] as u32 };
    let vring = VringFd { index: n[0] as u8, has_fd: n[1] & 1 == 0 };
    let uuid = [n[0] as u8; 16];
    match id {
        1 => (BackendRequest::IotlbMsg(iotlb(n)), 0),
        2 => (BackendRequest::ConfigChangeMsg, 0),
        3 => {
            let area = VringArea { vring, size: n[2], offset: n[3] };
            (BackendRequest::VringHostNotifierMsg(area), usize::from(vring.has_fd))
        }
        4 => (BackendRequest::VringCall(state), 0),
        5 => (BackendRequest::VringErr(state), 0),
        6 => (BackendRequest::SharedObjectAdd(uuid), 0),
        7 => (BackendRequest::SharedObjectRemove(uuid), 0),
        8 => (BackendRequest::SharedObjectLookup(uuid), 0),
        9 => (BackendRequest::ShmemMap(shmem_mapping(n)), 1),
        10 => (BackendRequest::ShmemUnmap(shmem_mapping(n)), 0),
        id => (BackendRequest::Unknown { id, payload: data }, n[0] as usize % 9),
    }
}

/// A reply, the request that it answers, and how many descriptors it takes along.
fn reply<'a>(kind: u32, n: Numbers, data: &'a [u8]) -> (Reply<'a>, u32, usize) {
    let config = Config { offset: 0, size: data.len() as u32, flags: 0, data };
    let table = MemoryTable::new(&[region(n)]).expect("one fits");
    match kind {
        0 => (Reply::Value(n[0]), 1, 0),
        1 => (Reply::VringBase(VringState { index: n[0] as u32, num: n[1] as u32 }), 11, 0),
        2 => (Reply::Config(config), 24, 0),
        3 => (Reply::NoConfig, 24, 0),
        4 => (Reply::Inflight(inflight(n)), 31, 1),
        5 => (Reply::MemTable(table), 5, 0),
        6 => (Reply::MemReg(region(n)), 37, 0),
        7 => (Reply::CryptoSession(data), 26, 0),
        8 => (Reply::Descriptor, 41, 1),
        9 => (Reply::DeviceStateFd { error: 0, has_fd: true }, 42, 1),
        10 => (Reply::DeviceStateFd { error: 3, has_fd: false }, 42, 0),
        11 => {
            let config = ShmemConfig { regions: n[0] as u32 % 257, sizes: [n[1]; 256] };
            (Reply::ShmemConfig(Box::new(config)), 44, 0)
        }
        12 => (Reply::LogBase { size: n[0], offset: n[1] }, 6, 0),
        _ => (Reply::Value(n[0]), 99, 0),
    }
}

fn region(n: Numbers) -> MemoryRegion {
    MemoryRegion { guest_address: n[0], size: n[1], user_address: n[2], mmap_offset: n[3] }
}

fn inflight(n: Numbers) -> Inflight {
    let (queues, queue_size) = (n[2] as u16, n[3] as u16);
    Inflight { mmap_size: n[0], mmap_offset: n[1], queues, queue_size }
}

fn vring_addr(n: Numbers) -> VringAddr {
    VringAddr {
        index: n[0] as u32,
        flags: n[1] as u32,
        descriptor: n[2],
        used: n[3],
        available: n[0],
        log: n[1],
    }
}

fn shmem_mapping(n: Numbers) -> ShmemMapping {
    ShmemMapping {
        id: n[0] as u8,
        file_offset: n[0],
        region_offset: n[1],
        len: n[2],
        flags: n[3] & 0xffff,
    }
}

fn iotlb(n: Numbers) -> Iotlb {
    let (iova, size) = (n[0], n[1]);
    match n[3] % 4 {
        0 => Iotlb { iova, size, user_address: 0, permissions: 0, kind: IotlbKind::Invalidate },
        kind => Iotlb {
            iova,
            size,
            user_address: n[2],
            permissions: n[2] as u8 & 3,
            kind: [IotlbKind::Miss, IotlbKind::Update, IotlbKind::AccessFail][kind as usize - 1],
        },
    }
}

fn numbers() -> impl Strategy<Value = Numbers> {
    prop::array::uniform4(prop_oneof![any::<u64>(), 0u64..512, Just(u64::MAX)])
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..257)
}

/// Splits an encoded message, checking that it is exactly one.
fn parts(encoded: &[u8]) -> (Header, &[u8]) {
    let (header, payload) = encoded.split_first_chunk::<HEADER_LEN>().expect("a header");
    let header = Header::decode(header).expect("our own header");
    assert_eq!(header.size as usize, payload.len());
    (header, payload)
}

proptest! {
    #[test]
    fn requests(id in 0u32..50, n in numbers(), data in data(), need_reply: bool) {
        let (request, fds) = request(id, n, &data);
        prop_assert_eq!(request.id(), id);
        let mut encoded = Vec::new();
        request.encode(if need_reply { NEED_REPLY } else { 0 }, &mut encoded);
        let (header, payload) = parts(&encoded);
        prop_assert_eq!((header.request, header.needs_reply()), (id, need_reply));
        prop_assert_eq!(Request::decode(&header, payload, fds), Ok(request));
        for end in 0..payload.len() {
            // Cut messages are errors, or mean something else; they never panic.
            let _ = Request::decode(&header, &payload[..end], fds);
        }
        if let Some(rule) = REQUESTS.get(id.wrapping_sub(1) as usize) {
            prop_assert!((rule.fds.least..=rule.fds.most).contains(&fds));
            prop_assert!(Request::decode(&header, payload, rule.fds.most + 1).is_err());
        }
    }

    #[test]
    fn backend_requests(id in 0u32..14, n in numbers(), data in data()) {
        let (request, fds) = backend_request(id, n, &data);
        prop_assert_eq!(request.id(), id);
        let mut encoded = Vec::new();
        request.encode(0, &mut encoded);
        let (header, payload) = parts(&encoded);
        prop_assert_eq!(BackendRequest::decode(&header, payload, fds), Ok(request));
        for end in 0..payload.len() {
            let _ = BackendRequest::decode(&header, &payload[..end], fds);
        }
        if let Some(rule) = BACKEND_REQUESTS.get(id.wrapping_sub(1) as usize) {
            prop_assert!(BackendRequest::decode(&header, payload, rule.fds.most + 1).is_err());
        }
    }

    #[test]
    fn replies(kind in 0u32..14, n in numbers(), data in data()) {
        let (reply, request, fds) = reply(kind, n, &data);
        let mut encoded = Vec::new();
        reply.encode(request, &mut encoded);
        let (header, payload) = parts(&encoded);
        prop_assert!(header.is_reply());
        let decoded = Reply::decode(&header, payload, fds);
        prop_assert_eq!(decoded.as_ref(), Ok(&reply));
        for end in 0..payload.len() {
            let _ = Reply::decode(&header, &payload[..end], fds);
        }
    }
}

/// The structures of the `vhost` crate, as bytes.
mod other {
    use vhost::vhost_user::message::*;
    use vm_memory::ByteValued;

    pub fn vring_addr(a: &super::VringAddr) -> Vec<u8> {
        let flags = VhostUserVringAddrFlags::from_bits_retain(a.flags);
        VhostUserVringAddr::new(a.index, flags, a.descriptor, a.used, a.available, a.log)
            .as_slice()
            .to_vec()
    }

    pub fn vring_state(s: &super::VringState) -> Vec<u8> {
        VhostUserVringState::new(s.index, s.num).as_slice().to_vec()
    }

    pub fn single_region(r: &super::MemoryRegion) -> Vec<u8> {
        VhostUserSingleMemoryRegion::new(r.guest_address, r.size, r.user_address, r.mmap_offset)
            .as_slice()
            .to_vec()
    }

    pub fn mem_table(regions: &[super::MemoryRegion]) -> Vec<u8> {
        let mut bytes = VhostUserMemory::new(regions.len() as u32).as_slice().to_vec();
        for r in regions {
            let region =
                VhostUserMemoryRegion::new(r.guest_address, r.size, r.user_address, r.mmap_offset);
            bytes.extend_from_slice(region.as_slice());
        }
        bytes
    }

    pub fn log(size: u64, offset: u64) -> Vec<u8> {
        VhostUserLog::new(size, offset).as_slice().to_vec()
    }

    pub fn shmem_mapping(m: &super::ShmemMapping) -> Vec<u8> {
        let flags = VhostUserMMapFlags::from_bits_retain(m.flags).bits();
        let (fd_offset, shm_offset) = (m.file_offset, m.region_offset);
        VhostUserMMap { shmid: m.id, padding: [0; 7], fd_offset, shm_offset, len: m.len, flags }
            .as_slice()
            .to_vec()
    }

    pub fn shmem_config(regions: u32, sizes: &[u64]) -> Vec<u8> {
        VhostUserShMemConfig::new(regions, sizes).as_slice().to_vec()
    }

    pub fn inflight_len() -> usize {
        size_of::<VhostUserInflight>()
    }

    pub fn split_entry_len() -> usize {
        size_of::<DescStateSplit>()
    }

    pub fn packed_entry_len() -> usize {
        size_of::<DescStatePacked>()
    }

    pub fn protocol_features() -> u64 {
        VhostUserProtocolFeatures::all().bits()
    }

    pub fn has_request(id: u32) -> bool {
        FrontendReq::try_from(id).is_ok()
    }

    pub fn has_backend_request(id: u32) -> bool {
        BackendReq::try_from(id).is_ok()
    }
}

proptest! {
    #[test]
    fn structures_agree_with_the_vhost_crate(n in numbers()) {
        let payload = |request: Request<'_>| {
            let mut encoded = Vec::new();
            request.encode(0, &mut encoded);
            encoded.split_off(HEADER_LEN)
        };
        let state = VringState { index: n[0] as u32, num: n[1] as u32 };
        prop_assert_eq!(payload(Request::SetVringBase(state)), other::vring_state(&state));
        let addr = vring_addr(n);
        prop_assert_eq!(payload(Request::SetVringAddr(addr)), other::vring_addr(&addr));
        let region = region(n);
        prop_assert_eq!(payload(Request::AddMemReg(region)), other::single_region(&region));
        let regions = &[region; 8][..n[3] as usize % 9];
        let table = MemoryTable::new(regions).expect("at most 8");
        prop_assert_eq!(payload(Request::SetMemTable(table)), other::mem_table(regions));
        let shared = LogBase::Shared { size: n[0], offset: n[1] };
        prop_assert_eq!(payload(Request::SetLogBase(shared)), other::log(n[0], n[1]));
        prop_assert_eq!(payload(Request::SetInflightFd(inflight(n))).len(), other::inflight_len());
        let mapping = shmem_mapping(n);
        let mut encoded = Vec::new();
        BackendRequest::ShmemMap(mapping).encode(0, &mut encoded);
        prop_assert_eq!(&encoded[HEADER_LEN..], &other::shmem_mapping(&mapping)[..]);
        let sizes = [n[2]; 256];
        let config = ShmemConfig { regions: 7, sizes };
        let mut encoded = Vec::new();
        Reply::ShmemConfig(Box::new(config)).encode(44, &mut encoded);
        prop_assert_eq!(&encoded[HEADER_LEN..], &other::shmem_config(7, &sizes)[..]);
    }
}

#[test]
fn numbers_and_sizes_agree_with_the_vhost_crate() {
    use wire::vhost_user::{features, inflight};
    assert_eq!((1 << features::NAMES.len()) - 1, other::protocol_features());
    for id in 0..100 {
        assert_eq!(wire::vhost_user::rule(id).is_some(), other::has_request(id), "request {id}");
        let known = BACKEND_REQUESTS.iter().any(|rule| rule.id == id);
        assert_eq!(known, other::has_backend_request(id), "request {id} of the device's side");
    }
    assert_eq!(inflight::split::ENTRY_LEN as usize, other::split_entry_len());
    assert_eq!(inflight::packed::ENTRY_LEN as usize, other::packed_entry_len());
}
