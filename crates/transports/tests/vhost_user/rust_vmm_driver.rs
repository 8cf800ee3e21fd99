//! The frontend of the `vhost` crate with the driver's half of `virtio-queue`'s rings, as the
//! driver of a disk of ours.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use mem::Mapping;
use sys::{Epoll, Interest};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio::Features;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{
    Address, Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap,
    GuestMemoryRegion,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::lab::{BASE, Served, WAYS, disk};

const MEMORY_BYTES: u64 = 1 << 20;
const SIZE: u16 = 256;
/// Behind the rings.
const DATA: u64 = BASE + (1 << 16);
const BLOCK: u32 = 1536;
/// Longer than anything takes.
const LIMIT: Duration = Duration::from_secs(20);
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// Memory of a guest as the rust-vmm crates have it.
fn memory() -> GuestMemoryMmap {
    let mapping = Mapping::new_memfd("theirs", MEMORY_BYTES as usize).unwrap();
    let file = File::from(mapping.file().unwrap().0.try_clone_to_owned().unwrap());
    let range = (GuestAddress(BASE), MEMORY_BYTES as usize, Some(FileOffset::new(file, 0)));
    GuestMemoryMmap::from_ranges_with_files([range]).unwrap()
}

struct Driver<'m> {
    memory: &'m GuestMemoryMmap,
    frontend: Frontend,
    queue: MockSplitQueue<'m, GuestMemoryMmap>,
    kick: EventFd,
    call: EventFd,
    /// Wakes up when it is signalled.
    ready: Epoll,
    /// Chains so far; each takes the descriptors behind those of the one before.
    chains: u16,
}

impl<'m> Driver<'m> {
    fn new(served: &Served, memory: &'m GuestMemoryMmap, index: usize) -> Self {
        let mut frontend = Frontend::connect(&served.path, 2).unwrap();
        frontend.set_owner().unwrap();
        let offered = frontend.get_features().unwrap();
        let wanted = Features::VERSION_1 | Features::PROTOCOL_FEATURES;
        assert!(Features(offered).has(wanted));
        let protocol = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK;
        frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(protocol).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        frontend.set_features(wanted.0).unwrap();
        let region = memory.iter().next().unwrap();
        let info = VhostUserMemoryRegionInfo::from_guest_region(region).unwrap();
        frontend.set_mem_table(&[info]).unwrap();
        let queue = MockSplitQueue::create(memory, GuestAddress(BASE), SIZE);
        // As every VMM makes them; we do not leave others blocking.
        let [kick, call] = [(); 2].map(|()| EventFd::new(EFD_NONBLOCK).unwrap());
        let ready = Epoll::new().unwrap();
        // SAFETY: open as long as the event is.
        let call_fd = unsafe { BorrowedFd::borrow_raw(call.as_raw_fd()) };
        ready.add(call_fd, 0, Interest::Read).unwrap();
        let user =
            |at: GuestAddress| info.userspace_addr + at.unchecked_offset_from(region.start_addr());
        let areas = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            desc_table_addr: user(queue.desc_table_addr()),
            avail_ring_addr: user(queue.avail_addr()),
            used_ring_addr: user(queue.used_addr()),
            ..VringConfigData::default()
        };
        frontend.set_vring_num(index, SIZE).unwrap();
        frontend.set_vring_addr(index, &areas).unwrap();
        frontend.set_vring_base(index, 0).unwrap();
        frontend.set_vring_call(index, &call).unwrap();
        frontend.set_vring_kick(index, &kick).unwrap();
        frontend.set_vring_enable(index, true).unwrap();
        Self { memory, frontend, queue, kick, call, ready, chains: 0 }
    }

    /// One request of three descriptors, to its end; returns the used length.
    fn request(&mut self, kind: u32, sector: u64) -> u32 {
        let place = DATA + u64::from(self.chains % 16) * 4096;
        let header = [u64::from(kind), sector].map(u64::to_le_bytes).concat();
        self.memory.write_slice(&header, GuestAddress(place)).unwrap();
        self.memory.write_obj(0xff_u8, GuestAddress(place + 16)).unwrap();
        let first = self.chains * 3;
        let way = if kind == 0 { WRITE } else { 0 };
        let parts = [
            Descriptor::new(place, 16, NEXT, first + 1),
            Descriptor::new(place + 2048, BLOCK, way | NEXT, first + 2),
            Descriptor::new(place + 16, 1, WRITE, 0),
        ];
        self.queue.add_desc_chains(&parts.map(RawDescriptor::from), first).unwrap();
        self.kick.write(1).unwrap();
        let wanted = self.chains + 1;
        while u16::from_le(self.queue.used().idx().load()) != wanted {
            self.ready.wait(&mut Vec::new(), Some(LIMIT)).unwrap();
            let _ = self.call.read();
        }
        let element = self.queue.used().ring().ref_at(usize::from(self.chains)).unwrap().load();
        assert_eq!(element.id(), u32::from(first));
        let status: u8 = self.memory.read_obj(GuestAddress(place + 16)).unwrap();
        assert_eq!(status, 0);
        self.chains += 1;
        element.len()
    }

    /// The data of the request made next, and after it of the one made last.
    fn data(&self, chain: u16) -> GuestAddress {
        GuestAddress(DATA + u64::from(chain % 16) * 4096 + 2048)
    }
}

#[test]
fn what_is_written_is_read_back_in_every_mode() {
    for way in WAYS {
        let served = Served::around(disk(1 << 20, way));
        // Every connection has rings for so many requests as they have descriptors.
        for index in [0, 1] {
            let memory = memory();
            let mut driver = Driver::new(&served, &memory, index);
            let block = |number: u64| {
                (0..u64::from(BLOCK)).map(|at| (at * 7 + number * 31 + at / 256) as u8).collect()
            };
            for number in 0..40_u64 {
                let bytes: Vec<u8> = block(number);
                memory.write_slice(&bytes, driver.data(driver.chains)).unwrap();
                assert_eq!(driver.request(1, number * 3), 1, "{way:?}: a write writes its status");
            }
            for number in (0..40_u64).rev() {
                memory.write_slice(&[0; BLOCK as usize], driver.data(driver.chains)).unwrap();
                assert_eq!(driver.request(0, number * 3), BLOCK + 1);
                let mut bytes = vec![0; BLOCK as usize];
                memory.read_slice(&mut bytes, driver.data(driver.chains - 1)).unwrap();
                assert!(bytes == block(number), "{way:?}: block {number}");
            }
            assert_eq!(driver.frontend.get_vring_base(index).unwrap(), 80);
        }
    }
}
