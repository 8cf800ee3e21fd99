//! The driver of the libblkio authors (`virtio-driver`), whose split and packed rings nobody here
//! wrote, over its own vhost-user client: to a disk of ours in every mode, and its rings alone
//! against ours, at random.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use libc::iovec;
use mem::{Access, DriverAddress, Mapping, MemoryMap, Region, Resolver};
use proptest::prelude::*;
use sys::{Epoll, Interest};
use virtio::Features;
use virtio_driver::virtqueue::Virtqueue;
use virtio_driver::{
    VhostUser, VirtioBlkConfig, VirtioBlkQueue, VirtioBlkReqBuf, VirtioBlkTransport,
    VirtioFeatureFlags, VirtioTransport,
};
use virtqueue::{
    Chain, ChainId, DeviceQueue, QueueAddresses, QueuePosition, QueueSpec, RingFormat,
};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::lab::{Served, WAYS, disk};

const DISK_BYTES: u64 = 4 << 20;
const BLOCK: usize = 4096;
const DEPTH: usize = 16;
/// Longer than anything takes.
const LIMIT: Duration = Duration::from_secs(20);

type Transport = VhostUser<VirtioBlkConfig, VirtioBlkReqBuf>;

fn flags(features: Features) -> VirtioFeatureFlags {
    VirtioFeatureFlags::from_bits_truncate(features.0)
}

/// Memory in a file, mapped here where it says.
struct Shared {
    memory: GuestMemoryMmap,
    file: File,
    address: *mut u8,
}

impl Shared {
    fn new(len: usize) -> Self {
        let mapping = Mapping::new_memfd("theirs", len).unwrap();
        let file = File::from(mapping.file().unwrap().0.try_clone_to_owned().unwrap());
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let ranges = [(GuestAddress(0), len, Some(offset))];
        let memory = GuestMemoryMmap::from_ranges_with_files(ranges).unwrap();
        let address = memory.get_host_address(GuestAddress(0)).unwrap();
        Self { memory, file, address }
    }

    fn block(&self, number: usize) -> *mut u8 {
        self.address.wrapping_add(number * BLOCK)
    }

    fn put(&self, number: usize, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress((number * BLOCK) as u64)).unwrap();
    }

    fn get(&self, number: usize) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK];
        self.memory.read_slice(&mut bytes, GuestAddress((number * BLOCK) as u64)).unwrap();
        bytes
    }
}

fn pattern(block: u64, round: u64) -> Vec<u8> {
    (0..BLOCK).map(|at| (at as u64 * 3 + block * 17 + round * 5 + at as u64 / 256) as u8).collect()
}

/// Waits for all that was asked of queue `index`.
fn finish(
    transport: &VirtioBlkTransport,
    queue: &mut VirtioBlkQueue<'_, usize>,
    index: usize,
    mut left: usize,
) {
    transport.get_submission_notifier(index).notify().unwrap();
    while left > 0 {
        let done: Vec<_> = queue.completions().map(|done| done.ret).collect();
        assert!(done.iter().all(|&ret| ret == 0), "{done:?}");
        left -= done.len();
        if done.is_empty() {
            let event = transport.get_completion_fd(index);
            let ready = Epoll::new().unwrap();
            // SAFETY: open as long as the event is.
            let fd = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
            ready.add(fd, 0, Interest::Read).unwrap();
            ready.wait(&mut Vec::new(), Some(LIMIT)).unwrap();
            let _ = event.read();
        }
    }
}

#[test]
fn what_is_written_is_read_back_in_every_mode_and_layout() {
    for way in WAYS {
        for ring in [Features::NONE, Features::RING_PACKED] {
            let served = Served::around(disk(DISK_BYTES, way));
            let path = served.path.display().to_string();
            let wanted = Features::VERSION_1 | Features::bit(12) | ring;
            let mut transport = Transport::new(&path, wanted.0).unwrap();
            assert!(Features(VirtioTransport::get_features(&transport)).has(wanted), "{way:?}");
            assert_eq!(transport.max_queues(), Some(2));
            let transport: &mut VirtioBlkTransport = &mut transport;
            let mut queues = VirtioBlkQueue::<usize>::setup_queues(transport, 2, 64).unwrap();
            let shared = Shared::new(DEPTH * BLOCK);
            let (address, fd) = (shared.address as usize, shared.file.as_raw_fd());
            transport.map_mem_region(address, DEPTH * BLOCK, fd, 0).unwrap();
            let config = transport.get_config().unwrap();
            assert_eq!(u64::from(config.capacity), DISK_BYTES / 512);
            // Several laps of the ring, with both queues.
            for round in 0..24_u64 {
                let (index, first) = (round as usize % 2, round * 40 % 1000);
                let queue = &mut queues[index];
                for number in 0..DEPTH {
                    let block = first + number as u64;
                    shared.put(number, &pattern(block, round));
                    let (at, from) = (block * BLOCK as u64, shared.block(number));
                    // SAFETY: a block of the shared memory, which outlives the request.
                    unsafe { queue.write_raw(at, from, BLOCK, number) }.unwrap();
                }
                finish(transport, queue, index, DEPTH);
                for number in 0..DEPTH {
                    shared.put(number, &[0; BLOCK]);
                    let at = (first + number as u64) * BLOCK as u64;
                    // SAFETY: as above.
                    unsafe { queue.read_raw(at, shared.block(number), BLOCK, number) }.unwrap();
                }
                finish(transport, queue, index, DEPTH);
                for number in 0..DEPTH {
                    let right = shared.get(number) == pattern(first + number as u64, round);
                    assert!(right, "{way:?}, {ring:?}, round {round}, block {number}");
                }
                queue.write_zeroes(first * BLOCK as u64, BLOCK as u64, false, 0).unwrap();
                queue.flush(0).unwrap();
                finish(transport, queue, index, 2);
            }
            transport.unmap_mem_region(address, DEPTH * BLOCK).unwrap();
        }
    }
}

/// What their driver does next.
#[derive(Clone, Debug)]
enum Move {
    /// Offers a chain: the lengths of its buffers, and how many of them come first to be read.
    Offer(Vec<u32>, usize),
    /// We take so many.
    Take(usize),
    /// We give back so many, the first taken or the last taken first.
    GiveBack(usize, bool),
    /// It takes what is used.
    Complete,
}

fn any_move() -> impl Strategy<Value = Move> {
    // Not of one buffer: its packed rings forget to say that such a chain ends there.
    let chain = prop::collection::vec(1..5000_u32, 2..6);
    prop_oneof![
        4 => (chain, 0..6_usize).prop_map(|(lengths, readable)| Move::Offer(lengths, readable)),
        2 => (1..9_usize).prop_map(Move::Take),
        2 => (1..9_usize, any::<bool>()).prop_map(|(count, last)| Move::GiveBack(count, last)),
        2 => Just(Move::Complete),
    ]
}

/// A queue in the memory of this process, which their side knows by its addresses and ours by
/// others.
struct Rings<'m> {
    theirs: Virtqueue<'m, u8>,
    ours: DeviceQueue,
    resolver: Resolver,
    chain: Chain,
    /// Theirs to ours.
    offset: u64,
    /// Offered and not taken: id, buffers, how many are to be read.
    offered: VecDeque<Offered>,
    taken: VecDeque<(ChainId, Given, u32)>,
    /// Given back and not seen by them.
    given: VecDeque<Given>,
    next: u64,
    /// Descriptors in use.
    used: usize,
}

/// Its id in their eyes, its buffers, and how many of them are to be read.
type Offered = (u16, Vec<(u64, u32)>, usize);

/// Its id in their eyes, and its descriptors.
type Given = (u16, usize);

/// Added to addresses on the way to us.
const POISON: u64 = 0x7_0000_0000;
const MEMORY: usize = 1 << 20;
const DATA: u64 = 1 << 18;

impl<'m> Rings<'m> {
    fn new(shared: &'m Shared, packed: bool, event_idx: bool, size: u16) -> Self {
        let served = Served::new();
        let path = served.path.display().to_string();
        // Only the client can make the thing that says that addresses are addresses.
        let transport = Transport::new(&path, Features::VERSION_1.0).unwrap();
        let mut features = Features::VERSION_1;
        if packed {
            features = features | Features::RING_PACKED;
        }
        if event_idx {
            features = features | Features::EVENT_IDX;
        }
        // SAFETY: nobody else has a reference to it, and the rest of the memory is reached
        // through `shared` alone.
        let bytes = unsafe { std::slice::from_raw_parts_mut(shared.address, DATA as usize) };
        let translator = transport.iova_translator();
        let theirs = Virtqueue::new(translator, bytes, size, flags(features)).unwrap();
        let base = shared.address as u64;
        let place = |at: *const u8| DriverAddress(at as u64 - base + POISON);
        let format = if packed { RingFormat::Packed } else { RingFormat::Split };
        let spec = QueueSpec {
            size,
            format,
            indirect: false,
            event_idx,
            in_order: false,
            addresses: QueueAddresses {
                descriptor: place(theirs.desc_table_ptr()),
                driver: place(theirs.driver_area_ptr()),
                device: place(theirs.device_area_ptr()),
            },
            start_at: QueuePosition::start(format),
        };
        let fd = shared.file.try_clone().unwrap().into();
        let mapping = Mapping::of_file(fd, 0, MEMORY).unwrap();
        // The rings by the addresses above; the data by the driver's own.
        let len = MEMORY as u64;
        let rings =
            Region::mapped(DriverAddress(POISON), len, Access::ReadWrite, mapping, 0).unwrap();
        let map = std::sync::Arc::new(MemoryMap::new(vec![rings]).unwrap());
        Self {
            theirs,
            ours: DeviceQueue::new(&map, &spec).unwrap(),
            resolver: Resolver::new(map),
            chain: Chain::with_capacity(size.into()),
            offset: base,
            offered: VecDeque::new(),
            taken: VecDeque::new(),
            given: VecDeque::new(),
            next: 0,
            used: 0,
        }
    }

    fn offer(&mut self, lengths: &[u32], readable: usize, armed: bool) {
        // A chain that does not fit leaves traces in its packed rings, so none is tried.
        if self.used + lengths.len() > usize::from(self.ours.size()) {
            return;
        }
        self.used += lengths.len();
        let readable = readable.min(lengths.len());
        let mut buffers = Vec::new();
        for len in lengths {
            let at = self.offset + DATA + self.next % (1 << 16);
            self.next += 61;
            buffers.push((at, *len));
        }
        let id = self.theirs.add_request(|_, add| {
            for (number, (at, len)) in buffers.iter().enumerate() {
                let part = iovec { iov_base: *at as *mut _, iov_len: *len as usize };
                add(part, number >= readable)?;
            }
            Ok(())
        });
        self.offered.push_back((id.unwrap(), buffers, readable));
        let kicks = self.theirs.avail_notif_needed();
        assert!(kicks || !armed, "we are asleep and they don't wake us");
    }

    fn take(&mut self, most: usize) {
        for _ in 0..most {
            let taken = self.ours.take(&mut self.resolver, &mut self.chain).unwrap();
            let Some(id) = taken else {
                assert!(self.offered.is_empty(), "offered and not seen");
                return;
            };
            let (theirs, buffers, readable) = self.offered.pop_front().expect("more than offered");
            let found = self.chain.readable().iter().chain(self.chain.writable());
            let found: Vec<_> = found.map(|segment| (segment.addr.0, segment.len)).collect();
            assert_eq!(found, buffers);
            assert_eq!(self.chain.readable().len(), readable);
            let given = (theirs, buffers.len());
            self.taken.push_back((id, given, self.chain.writable_len() as u32));
        }
    }

    fn give_back(&mut self, most: usize, last_first: bool) {
        for _ in 0..most {
            let next = if last_first { self.taken.pop_back() } else { self.taken.pop_front() };
            let Some((id, given, written)) = next else { break };
            self.ours.give_back(id, written);
            self.given.push_back(given);
        }
        self.ours.publish_used();
    }

    fn complete(&mut self) {
        let seen: VecDeque<u16> = self.theirs.completions().map(|done| done.id).collect();
        assert!(seen.iter().eq(self.given.iter().map(|(id, _)| id)), "{seen:?} {:?}", self.given);
        self.used -= self.given.drain(..).map(|(_, descriptors)| descriptors).sum::<usize>();
    }
}

fn play(packed: bool, event_idx: bool, size: u16, moves: &[Move]) {
    let shared = Shared::new(MEMORY);
    let mut rings = Rings::new(&shared, packed, event_idx, size);
    rings.theirs.set_used_notif_enabled(true);
    // Over and over, so that every ring goes round.
    for round in 0..20 {
        for step in moves {
            match step {
                Move::Offer(lengths, readable) => {
                    let armed = round % 2 == 0 && !rings.ours.arm_kick();
                    rings.offer(lengths, *readable, armed);
                }
                Move::Take(most) => rings.take(*most),
                Move::GiveBack(most, last_first) => {
                    let before = rings.given.len();
                    rings.give_back(*most, *last_first);
                    let given = rings.given.len() > before;
                    // Interrupts are on, and everything before was seen.
                    let interrupts = rings.ours.wants_interrupt();
                    assert!(interrupts || !given || before > 0, "a lost interrupt");
                }
                Move::Complete => rings.complete(),
            }
        }
    }
    rings.take(usize::MAX);
    rings.give_back(usize::MAX, false);
    rings.complete();
    assert!(rings.offered.is_empty() && rings.taken.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn its_rings_and_ours_agree(
        packed in any::<bool>(),
        event_idx in any::<bool>(),
        bits in 2..7_u32,
        odd in 0..3_u16,
        moves in prop::collection::vec(any_move(), 1..60),
    ) {
        // A packed ring may have any size.
        let size = (1 << bits) + if packed { odd } else { 0 };
        play(packed, event_idx, size, &moves);
    }
}
