//! Hostile driver sides against our driver end: rows 65-93 of the adversarial table. Each row says
//! whether the message is refused or ends the connection; after each, a good driver is served.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use sys::{Connection, Received, connect_unix};
use virtio::Features;
use wire::vhost_user::features as protocol;
use wire::vhost_user::{
    Config, HEADER_LEN, Header, Inflight, MemoryRegion, MemoryTable, NEED_REPLY, Request,
    VringAddr, VringFd, VringState,
};

use crate::lab::{BASE, Served, memory, queue, until};

/// How a message was answered.
#[derive(Debug, PartialEq)]
pub enum Answer {
    /// With this acknowledgement or value.
    Value(u64),
    /// With a payload of another size.
    Payload(usize),
    /// By the end of the connection.
    Ended,
}

const REFUSED: Answer = Answer::Value(1);
const LIMIT: Duration = Duration::from_secs(10);

/// A driver's side that sends whatever it likes.
pub struct Peer(Connection);

impl Peer {
    pub fn new(served: &Served) -> Self {
        Self(connect_unix(&served.path).unwrap())
    }

    /// One that has agreed on everything there is.
    fn negotiated(served: &Served) -> Self {
        let peer = Self::new(served);
        let all = protocol::MQ
            | protocol::REPLY_ACK
            | protocol::BACKEND_REQ
            | protocol::CONFIG
            | protocol::LOG_SHMFD
            | protocol::CONFIGURE_MEM_SLOTS
            | protocol::STATUS;
        peer.send(&Request::SetProtocolFeatures(all), 0, &[]);
        let features = Features::VERSION_1 | Features::PROTOCOL_FEATURES;
        assert_eq!(peer.ask(&Request::SetFeatures(features.0)), Answer::Value(0));
        peer
    }

    /// One whose first queue runs.
    pub fn running(served: &Served) -> (Self, OwnedFd) {
        let peer = Self::negotiated(served);
        let file = memfd(1 << 20);
        assert_eq!(peer.table(&[good_region()], &[&file]), Answer::Value(0));
        peer.start(0);
        (peer, file)
    }

    fn start(&self, index: u32) {
        let kick = sys::EventFd::new().unwrap();
        self.send(&Request::SetVringNum(VringState { index, num: 64 }), 0, &[]);
        self.send(&Request::SetVringBase(VringState { index, num: 0 }), 0, &[]);
        self.send(&Request::SetVringAddr(good_addresses(index)), 0, &[]);
        let event = VringFd { index: index as u8, has_fd: true };
        self.send(&Request::SetVringKick(event), 0, &[&kick]);
        let enabled = self.ask(&Request::SetVringEnable(VringState { index, num: 1 }));
        assert_eq!(enabled, Answer::Value(0));
    }

    pub fn send(&self, request: &Request<'_>, flags: u32, fds: &[&dyn AsFd]) {
        let mut bytes = Vec::new();
        request.encode(flags, &mut bytes);
        self.send_bytes(&bytes, fds);
    }

    fn send_bytes(&self, bytes: &[u8], fds: &[&dyn AsFd]) {
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        // A peer that has hung up already is a fine answer too, which the next read shows.
        let _ = self.0.send_all(bytes, &fds, LIMIT);
    }

    pub fn ask(&self, request: &Request<'_>) -> Answer {
        self.ask_with(request, &[])
    }

    pub fn ask_with(&self, request: &Request<'_>, fds: &[&dyn AsFd]) -> Answer {
        self.send(request, NEED_REPLY, fds);
        self.answer()
    }

    fn ask_bytes(&self, bytes: &[u8], fds: &[&dyn AsFd]) -> Answer {
        self.send_bytes(bytes, fds);
        self.answer()
    }

    fn table(&self, regions: &[MemoryRegion], fds: &[&dyn AsFd]) -> Answer {
        self.ask_with(&Request::SetMemTable(MemoryTable::new(regions).unwrap()), fds)
    }

    fn answer(&self) -> Answer {
        let mut header = [0; HEADER_LEN];
        if !read_exactly(&self.0, &mut header) {
            return Answer::Ended;
        }
        let header = Header::decode(&header).unwrap();
        assert!(header.is_reply());
        let mut payload = vec![0; header.size as usize];
        assert!(payload.is_empty() || read_exactly(&self.0, &mut payload));
        match <[u8; 8]>::try_from(payload.as_slice()) {
            Ok(value) => Answer::Value(u64::from_ne_bytes(value)),
            Err(_) => Answer::Payload(payload.len()),
        }
    }
}

/// Fills `bytes`; false when the connection ended.
pub fn read_exactly(socket: &Connection, mut bytes: &mut [u8]) -> bool {
    let mut fds = Vec::new();
    while !bytes.is_empty() {
        socket.wait_readable(LIMIT).expect("an answer in time");
        match socket.receive(bytes, &mut fds) {
            Ok(Received::Bytes(len)) => bytes = &mut bytes[len..],
            Ok(Received::Nothing) => {}
            Ok(Received::Closed) | Err(_) => return false,
        }
    }
    true
}

fn memfd(len: u64) -> OwnedFd {
    let mapping = mem::Mapping::new_memfd("hostile", len as usize).unwrap();
    mapping.file().unwrap().0.try_clone_to_owned().unwrap()
}

/// Addresses of the other process; far from [`BASE`], so that a forgotten translation shows.
const USER: u64 = 0x7f00_0000_0000;

fn good_region() -> MemoryRegion {
    MemoryRegion { guest_address: BASE, size: 1 << 20, user_address: USER, mmap_offset: 0 }
}

fn good_addresses(index: u32) -> VringAddr {
    let at = |page: u64| USER + (u64::from(index) * 3 + page) * 4096;
    VringAddr { index, flags: 0, descriptor: at(0), used: at(2), available: at(1), log: 0 }
}

/// A message with any header over any bytes.
fn raw(request: u32, flags: u32, size: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [request, flags, size] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    bytes.extend_from_slice(payload);
    bytes
}

/// A good driver is served within a second (U6). The best of three tries counts: other tests keep
/// the processors busy.
fn serves_a_good_driver(served: &Served) {
    let tries = (0..3).map(|_| {
        let begun = Instant::now();
        let mut device = served.device_end(&[]);
        let (_, space) = memory();
        device.set_memory(&space).unwrap();
        device.accept_features(Features::VERSION_1).unwrap();
        device.start_queue(queue(0, &space, Features::VERSION_1)).unwrap();
        let taken = begun.elapsed();
        device.stop_queue(0).unwrap();
        taken
    });
    let best = tries.min().unwrap();
    assert!(best < Duration::from_secs(1), "it took {best:?}");
}

fn state(index: u32, num: u32) -> VringState {
    VringState { index, num }
}

#[test]
fn queue_numbers_that_make_no_sense_are_refused() {
    let served = Served::new();
    let peer = Peer::negotiated(&served);
    let refused = [
        // 65, 66, 67
        Request::SetVringNum(state(0, 0)),
        Request::SetVringNum(state(0, 3)),
        Request::SetVringNum(state(0, 65536)),
        Request::SetVringNum(state(0, u32::MAX)),
        // 68
        Request::SetVringNum(state(0xffff, 64)),
        Request::SetVringNum(state(0x1_0000, 64)),
        Request::SetVringBase(state(0x1_0000, 0)),
        Request::SetVringAddr(good_addresses(0x1_0000)),
        // 69
        Request::SetVringEnable(state(0, u32::MAX)),
        Request::SetVringEnable(state(u32::MAX, 1)),
        // 70: before there is memory
        Request::SetVringAddr(good_addresses(0)),
        // 71
        Request::SetVringKick(VringFd { index: 200, has_fd: false }),
        Request::SetVringCall(VringFd { index: 200, has_fd: false }),
        Request::SetVringErr(VringFd { index: 2, has_fd: false }),
        // 88
        Request::SetFeatures(u64::MAX),
        Request::SetFeatures(1 << 63),
        // 93
        Request::SetStatus(0x100),
        // Not offered, and of in-band notifications.
        Request::VringKick(state(0, 0)),
        Request::SetVringEndian(state(0, 1)),
        Request::CloseCryptoSession(1),
        Request::SendRarp([0; 6]),
    ];
    for request in refused {
        assert_eq!(peer.ask(&request), REFUSED, "{request:?}");
    }
    drop(peer);
    serves_a_good_driver(&served);
}

#[test]
fn misaligned_rings_are_refused_when_they_start() {
    let served = Served::new();
    let (peer, _file) = Peer::running(&served);
    for (descriptor, used) in [(8, 0), (0, 1)] {
        let mut addresses = good_addresses(1);
        addresses.descriptor += descriptor;
        addresses.used += used;
        let kick = sys::EventFd::new().unwrap();
        peer.ask(&Request::SetVringNum(state(1, 64)));
        assert_eq!(peer.ask(&Request::SetVringAddr(addresses)), Answer::Value(0));
        let event = VringFd { index: 1, has_fd: true };
        peer.ask_with(&Request::SetVringKick(event), &[&kick]);
        assert_eq!(peer.ask(&Request::SetVringEnable(state(1, 1))), REFUSED);
        peer.ask(&Request::SetVringEnable(state(1, 0)));
    }
    assert!(!served.seen.lock().unwrap().running.contains_key(&1));
    assert!(served.seen.lock().unwrap().running.contains_key(&0), "the other queue goes on (U5)");
}

#[test]
fn files_and_devices_are_no_events() {
    let served = Served::new();
    let peer = Peer::negotiated(&served);
    let zero = std::fs::File::open("/dev/zero").unwrap();
    let event = VringFd { index: 0, has_fd: true };
    // 72
    for fd in [&zero as &dyn AsFd, &memfd(4096)] {
        assert_eq!(peer.ask_with(&Request::SetVringKick(event), &[fd]), REFUSED);
        assert_eq!(peer.ask_with(&Request::SetVringCall(event), &[fd]), REFUSED);
        assert_eq!(peer.ask_with(&Request::SetVringErr(event), &[fd]), REFUSED);
    }
    let (pipe, _end) = std::io::pipe().unwrap();
    assert_eq!(peer.ask_with(&Request::SetVringKick(event), &[&pipe]), REFUSED);
}

#[test]
fn memory_tables_that_make_no_sense_are_refused() {
    let served = Served::new();
    let peer = Peer::negotiated(&served);
    let file = memfd(1 << 20);
    let good = good_region();
    let wrong = [
        MemoryRegion { size: 0, ..good },
        MemoryRegion { size: 1 << 63, ..good },
        MemoryRegion { guest_address: u64::MAX - 4095, ..good },
        MemoryRegion { user_address: u64::MAX - 4095, ..good },
        MemoryRegion { mmap_offset: u64::MAX - 4095, ..good },
        MemoryRegion { mmap_offset: 123, size: 4096, ..good },
        // 76
        MemoryRegion { size: (1 << 20) + 4096, ..good },
    ];
    // 73
    for region in wrong {
        assert_eq!(peer.table(&[region], &[&file]), REFUSED, "{region:?}");
        assert_eq!(peer.ask_with(&Request::AddMemReg(region), &[&file]), REFUSED, "{region:?}");
    }
    assert_eq!(peer.table(&[], &[]), REFUSED);
    assert_eq!(peer.table(&[good], &[]), REFUSED, "no descriptor");
    let neighbour = MemoryRegion { guest_address: BASE + 4096, ..good };
    assert_eq!(peer.table(&[good, neighbour], &[&file, &file]), REFUSED, "overlap");
    // 77
    assert_eq!(peer.table(&[good], &[&file, &file, &file]), REFUSED);
    assert_eq!(peer.ask(&Request::RemMemReg(good)), REFUSED);
    // 74, 75: more regions than a message has room for
    for (count, size) in [(9_u32, 8 + 9 * 32), (255, 40)] {
        let mut payload = vec![0; size];
        payload[..4].copy_from_slice(&count.to_ne_bytes());
        let bytes = raw(5, 1 | NEED_REPLY, size as u32, &payload);
        assert_eq!(peer.ask_bytes(&bytes, &[&file]), REFUSED);
    }
    assert_eq!(peer.table(&[good], &[&file]), Answer::Value(0), "and a good one is taken");
    drop(peer);
    serves_a_good_driver(&served);
}

#[test]
fn memory_slots_end_somewhere() {
    let served = Served::new();
    let peer = Peer::negotiated(&served);
    let file = memfd(4096);
    // 84
    let mut taken = 0;
    for number in 0..600_u64 {
        let at = BASE + number * 8192;
        let user_address = USER + number * 8192;
        let region = MemoryRegion { guest_address: at, size: 4096, user_address, mmap_offset: 0 };
        taken +=
            u64::from(peer.ask_with(&Request::AddMemReg(region), &[&file]) == Answer::Value(0));
    }
    assert_eq!(taken, 509);
}

#[test]
fn descriptors_never_pile_up() {
    let served = Served::new();
    // What the end of an earlier connection leaves is gone when the next one has its answer.
    serves_a_good_driver(&served);
    let before = open_files();
    let event = sys::EventFd::new().unwrap();
    let eight: [&dyn AsFd; 8] = [&event; 8];
    for _ in 0..200 {
        // 78: a request that takes no descriptors, with eight
        let peer = Peer::new(&served);
        peer.send(&Request::GetFeatures, 0, &eight);
        assert_eq!(peer.answer(), Answer::Ended);
    }
    let peer = Peer::negotiated(&served);
    for _ in 0..2000 {
        // 79: the newest replaces the one before
        let event_of = VringFd { index: 0, has_fd: true };
        assert_eq!(peer.ask_with(&Request::SetVringErr(event_of), &[&event]), Answer::Value(0));
    }
    drop(peer);
    serves_a_good_driver(&served);
    // Other tests in this process come and go; a leak of one for each of 2200 messages would show.
    assert!(open_files() <= before + 500, "{before} descriptors became {}", open_files());
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn what_was_not_offered_is_not_done() {
    let served = Served::new();
    let peer = Peer::negotiated(&served);
    let all = Inflight { mmap_size: 0, mmap_offset: 0, queues: 65535, queue_size: 65535 };
    let file = memfd(4096);
    // 80, 81, 82: no memory is made for anybody who asks
    let answer = peer.ask(&Request::GetInflightFd(all));
    assert!(matches!(answer, Answer::Ended | Answer::Value(_)), "{answer:?}");
    let peer = if answer == Answer::Ended { Peer::negotiated(&served) } else { peer };
    assert_eq!(peer.ask_with(&Request::SetInflightFd(all), &[&file]), REFUSED);
    // 83
    let log = wire::vhost_user::LogBase::Shared { size: 1 << 63, offset: u64::MAX - 4095 };
    let answer = peer.ask_with(&Request::SetLogBase(log), &[&file]);
    assert_eq!(answer, Answer::Payload(16), "a size of 0, which is a refusal");
    // 86
    let unknown = raw(999, 1 | NEED_REPLY, 4, &[1, 2, 3, 4]);
    assert_eq!(peer.ask_bytes(&unknown, &[]), REFUSED);
    assert_eq!(peer.ask_bytes(&raw(0, 1 | NEED_REPLY, 0, &[]), &[]), REFUSED);
    // 89
    for (offset, size) in [(4096, 16), (60, 256)] {
        let window = Config { offset, size, flags: 0, data: &[] };
        let answer = peer.ask(&Request::GetConfig(window));
        assert!(matches!(answer, Answer::Payload(_)), "{answer:?}");
    }
    let window = Config { offset: 58, size: 4, flags: 0, data: &[0; 4] };
    assert_eq!(peer.ask(&Request::SetConfig(window)), REFUSED);
    drop(peer);
    serves_a_good_driver(&served);
}

#[test]
fn broken_framing_ends_the_connection() {
    let served = Served::new();
    let broken = [
        // 85
        raw(2, 1, u32::MAX, &[]),
        raw(2, 1, 4097, &[]),
        raw(2, 1 | NEED_REPLY, 4, &[0; 4]),
        // 87
        raw(1, 0, 0, &[]),
        raw(1, 2, 0, &[]),
        raw(1, 1 | wire::vhost_user::REPLY, 0, &[]),
        // 89
        raw(24, 1, 12, &[0xff; 12]),
        // 93: nothing sensible can be answered
        raw(11, 1, 8, &[0xff; 8]),
    ];
    for bytes in broken {
        let peer = Peer::new(&served);
        assert_eq!(peer.ask_bytes(&bytes, &[]), Answer::Ended, "{bytes:x?}");
    }
    serves_a_good_driver(&served);
}

#[test]
fn a_message_that_stops_in_the_middle_holds_nobody_up() {
    let served = Served::new();
    // 90
    let stalled = Peer::new(&served);
    stalled.send_bytes(&raw(1, 1, 0, &[])[..6], &[]);
    let begun = Instant::now();
    let second = Peer::new(&served);
    assert!(matches!(second.ask(&Request::GetFeatures), Answer::Value(_)));
    assert!(begun.elapsed() < Duration::from_secs(5), "it took {:?}", begun.elapsed());
}

#[test]
fn nonsense_and_hanging_up_are_survived() {
    let served = Served::new();
    // 91; the bytes come from a linear congruence, so that a failure can be repeated
    let mut seed = 1_u32;
    for round in 0..500 {
        let peer = Peer::new(&served);
        if round % 2 == 1 {
            let mut bytes = vec![0; 200];
            for byte in &mut bytes {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *byte = (seed >> 24) as u8;
            }
            peer.send_bytes(&bytes, &[]);
        }
    }
    serves_a_good_driver(&served);
}

#[test]
fn memory_that_is_cut_ends_the_session_only() {
    let served = Served::new();
    let peer = Peer::negotiated(&served);
    let folder = tempfile::tempfile().unwrap();
    folder.set_len(1 << 20).unwrap();
    assert_eq!(peer.table(&[good_region()], &[&folder]), Answer::Value(0));
    peer.start(0);
    // 92
    folder.set_len(0).unwrap();
    let space = served.seen.lock().unwrap().memory.clone().unwrap();
    let mut bytes = [1; 16];
    space.current().read(mem::DriverAddress(BASE), &mut bytes).unwrap();
    assert_eq!(bytes, [0; 16], "zeros, and no SIGBUS");
    until(|| served.seen.lock().unwrap().resets == 1);
    drop(peer);
    serves_a_good_driver(&served);
}

#[test]
fn odd_but_defined_requests_are_answered() {
    let served = Served::new();
    let (peer, _file) = Peer::running(&served);
    // 93
    assert_eq!(peer.ask(&Request::GetVringBase(state(1, 0))), Answer::Value(1), "queue 1 at 0");
    assert_eq!(peer.ask(&Request::SetStatus(0xff)), Answer::Value(0));
    assert_eq!(peer.ask(&Request::ResetOwner), Answer::Value(0));
    assert!(served.seen.lock().unwrap().running.is_empty(), "RESET_OWNER stops the queues");
    assert_eq!(peer.ask(&Request::SetStatus(0)), Answer::Value(0));
    assert_eq!(served.seen.lock().unwrap().resets, 1);
}

#[test]
fn records_that_make_no_sense_are_refused() {
    let served = Served::new();
    let peer = Peer::new(&served);
    let agreed = protocol::REPLY_ACK | protocol::INFLIGHT_SHMFD;
    peer.send(&Request::SetProtocolFeatures(agreed), 0, &[]);
    let file = memfd(1 << 16);
    let record = |queues, queue_size, mmap_size, mmap_offset| Inflight {
        mmap_size,
        mmap_offset,
        queues,
        queue_size,
    };
    // 80, 81: an answer without memory
    for (queues, size) in [(65535, 65535), (3, 64), (2, 0), (0, 64), (2, 65535)] {
        let answer = peer.ask(&Request::GetInflightFd(record(queues, size, 0, 0)));
        assert_eq!(answer, Answer::Payload(24));
    }
    // 82
    let wrong = [
        record(4096, 64, 1 << 16, 0),
        record(2, 64, 16, 0),
        record(2, 64, 1 << 20, 0),
        record(2, 64, 1 << 16, u64::MAX),
        record(2, 32768, 1 << 16, 0),
    ];
    for told in wrong {
        assert_eq!(peer.ask_with(&Request::SetInflightFd(told), &[&file]), REFUSED, "{told:?}");
    }
    let good = record(2, 64, 1 << 16, 0);
    assert_eq!(peer.ask_with(&Request::SetInflightFd(good), &[&file]), Answer::Value(0));
}
