//! A daemon made with the `vhost-user-backend` crate, as virtiofsd and the vhost-device daemons
//! are, behind our device end: a small disk, whose rings `virtio-queue` serves.

use std::cell::RefCell;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;

use bridge::Mode;
use driver::{Direct, Disk, GuestMemory, Operation};
use vhost::vhost_user::message::{VhostUserMMap, VhostUserProtocolFeatures};
use vhost::vhost_user::{Backend, Listener, VhostUserFrontendReqHandler};
use vhost_user_backend::{
    ShutdownHandle, VhostUserBackendMut, VhostUserDaemon, VringRwLock, VringT,
};
use virtio::config::BlkConfig;
use virtio::{DeviceType, Features, VirtioDevice};
use virtio_queue::QueueOwnedT;
use vm_memory::{ByteValued, Bytes, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use crate::lab::{Served, WAYS, bridged, device_end, until};

const QUEUES: usize = 2;
const SECTORS: u64 = 2048;
/// SEG_MAX, BLK_SIZE, FLUSH and MQ of a block device.
const BLOCK: Features = Features(1 << 2 | 1 << 6 | 1 << 9 | 1 << 12);

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// What the test sees of the daemon.
#[derive(Default)]
struct Seen {
    features: u64,
    config_writes: Vec<(u32, Vec<u8>)>,
    requests: u64,
    /// How it fared with what it asked on the second socket.
    asked: Option<bool>,
}

struct Model {
    memory: Memory,
    bytes: Vec<u8>,
    event_idx: bool,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Header {
    kind: u32,
    reserved: u32,
    sector: u64,
}

// SAFETY: integers without padding.
unsafe impl ByteValued for Header {}

impl Model {
    fn serve(&mut self, vring: &VringRwLock) -> io::Result<()> {
        let memory = self.memory.memory();
        let chains: Vec<_> = {
            let mut state = vring.get_mut();
            state.get_queue_mut().iter(memory.clone()).map_err(io::Error::other)?.collect()
        };
        let mut used = false;
        for chain in chains {
            let (head, parts) = (chain.head_index(), chain.collect::<Vec<_>>());
            let header: Header = memory.read_obj(parts[0].addr()).map_err(io::Error::other)?;
            let (status, data) = parts[1..].split_last().unwrap();
            let mut at = header.sector as usize * 512;
            let mut written = 1;
            for part in data {
                let bytes = &mut self.bytes[at..at + part.len() as usize];
                at += bytes.len();
                if part.is_write_only() {
                    assert_eq!(header.kind, 0, "only a read writes data");
                    memory.write_slice(bytes, part.addr()).map_err(io::Error::other)?;
                    written += part.len();
                } else {
                    memory.read_slice(bytes, part.addr()).map_err(io::Error::other)?;
                }
            }
            memory.write_obj(0u8, status.addr()).map_err(io::Error::other)?;
            vring.add_used(head, written).map_err(io::Error::other)?;
            self.seen.lock().unwrap().requests += 1;
            used = true;
        }
        if used && (!self.event_idx || vring.needs_notification().map_err(io::Error::other)?) {
            vring.signal_used_queue()?;
        }
        Ok(())
    }
}

impl VhostUserBackendMut for Model {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        256
    }

    fn features(&self) -> u64 {
        let rings = Features::VERSION_1 | Features::EVENT_IDX | Features::INDIRECT_DESC;
        (rings | BLOCK | Features::PROTOCOL_FEATURES).0
    }

    fn acked_features(&mut self, features: u64) {
        self.seen.lock().unwrap().features = features;
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        type Bits = VhostUserProtocolFeatures;
        Bits::MQ
            | Bits::REPLY_ACK
            | Bits::CONFIG
            | Bits::CONFIGURE_MEM_SLOTS
            | Bits::BACKEND_REQ
            | Bits::RESET_DEVICE
    }

    fn set_event_idx(&mut self, enabled: bool) {
        self.event_idx = enabled;
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config =
            BlkConfig { capacity: SECTORS, num_queues: QUEUES as u16, ..Default::default() };
        let mut bytes = config.encode().to_vec();
        bytes.resize(256, 0);
        bytes[offset as usize..(offset + size) as usize].to_vec()
    }

    fn set_config(&mut self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        self.seen.lock().unwrap().config_writes.push((offset, bytes.to_vec()));
        Ok(())
    }

    fn update_memory(&mut self, memory: Memory) -> io::Result<()> {
        self.memory = memory;
        Ok(())
    }

    /// Asks for something that nobody agreed on; whoever answers is being served, so not from here.
    fn set_backend_req_fd(&mut self, backend: Backend) {
        let seen = Arc::clone(&self.seen);
        std::thread::spawn(move || {
            backend.set_reply_ack_flag(true);
            backend.set_shmem_flag(true);
            let place = VhostUserMMap { shmid: 0, len: 4096, ..VhostUserMMap::default() };
            let granted = backend.shmem_unmap(&place).is_ok();
            seen.lock().unwrap().asked = Some(granted);
        });
    }

    fn exit_event(&self, _: usize) -> Option<(EventConsumer, EventNotifier)> {
        Some(new_event_consumer_and_notifier(EventFlag::NONBLOCK).unwrap())
    }

    fn handle_event(
        &mut self,
        index: u16,
        _: EventSet,
        vrings: &[VringRwLock],
        _: usize,
    ) -> io::Result<()> {
        let vring = &vrings[usize::from(index)];
        if !self.event_idx {
            return self.serve(vring);
        }
        loop {
            vring.disable_notification().map_err(io::Error::other)?;
            self.serve(vring)?;
            if !vring.enable_notification().map_err(io::Error::other)? {
                return Ok(());
            }
        }
    }
}

/// The daemon: serves one connection after the other, each with fresh rings and the same disk.
struct Daemon {
    path: PathBuf,
    seen: Arc<Mutex<Seen>>,
    /// Ends the present connection.
    hang_up: Arc<Mutex<Option<ShutdownHandle>>>,
    _thread: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Daemon {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("daemon");
        let seen = Arc::new(Mutex::new(Seen::default()));
        let hang_up = Arc::new(Mutex::new(None));
        let mut listener = Listener::new(&path, true).unwrap();
        let model = Arc::new(RwLock::new(Model {
            memory: Memory::new(GuestMemoryMmap::new()),
            bytes: vec![0; SECTORS as usize * 512],
            event_idx: false,
            seen: Arc::clone(&seen),
        }));
        let handle = Arc::clone(&hang_up);
        // It lives as long as the test process; nothing needs its end.
        let thread = std::thread::spawn(move || {
            loop {
                let memory = Memory::new(GuestMemoryMmap::new());
                let model = Arc::clone(&model);
                let mut daemon = VhostUserDaemon::new("daemon".into(), model, memory).unwrap();
                daemon.start(&mut listener).unwrap();
                *handle.lock().unwrap() = daemon.shutdown_handle();
                let _ = daemon.wait();
            }
        });
        Self { path, seen, hang_up, _thread: thread, _folder: folder }
    }
}

/// Writes and reads all over the disk, `depth` requests at a time.
fn exercise(disk: &mut Disk, rounds: u64, mut between: impl FnMut(u64)) {
    let depth = 8;
    let pattern = |sector: u64, round: u64| [(sector * 5 + round * 3) as u8; 1024];
    for round in 0..rounds {
        let sector = |slot: usize| (round * 16 + slot as u64 * 2) % (SECTORS - 2);
        for operation in [Operation::Write, Operation::Read] {
            for slot in 0..depth {
                let bytes = pattern(sector(slot), round);
                let write = operation == Operation::Write;
                disk.data(slot).copy_from(if write { &bytes } else { &[0; 1024] });
                disk.start(slot, operation, sector(slot)).unwrap();
            }
            disk.publish();
            let mut done = 0;
            while done < depth {
                while let Some(completion) = disk.take_done().unwrap() {
                    assert_eq!(completion.operation, operation);
                    done += 1;
                }
                if done < depth {
                    disk.wait().unwrap();
                }
            }
            for slot in (0..depth).filter(|_| operation == Operation::Read) {
                let mut bytes = [0; 1024];
                disk.data(slot).copy_to(&mut bytes);
                assert!(bytes == pattern(sector(slot), round), "round {round}, slot {slot}");
            }
        }
        between(round);
    }
}

/// Whether the rings that the daemon sees are ours.
fn converts(way: Option<Mode>) -> bool {
    matches!(way, Some(Mode::Translate | Mode::Copy))
}

fn open(device: Box<dyn VirtioDevice>, wish: Features) -> Disk {
    let memory = GuestMemory::new(1 << 20).unwrap();
    let access = Box::new(Direct::new(device, &memory).unwrap());
    Disk::open(access, memory, wish, 8, 1024).unwrap()
}

#[test]
fn it_is_understood() {
    let daemon = Daemon::new();
    let mut device = device_end(&daemon.path, &[]);
    assert_eq!(device.identity().device, DeviceType::BLOCK);
    assert_eq!(device.identity().queue_sizes.len(), QUEUES);
    assert!(device.identity().features.has(BLOCK | Features::EVENT_IDX | Features::INDIRECT_DESC));
    let mut capacity = [0; 8];
    device.read_config(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), SECTORS);
    device.write_config(32, &[1]).unwrap();
    assert_eq!(daemon.seen.lock().unwrap().config_writes, [(32, vec![1])]);
    // What it asks for and nobody agreed on is refused, and all goes on.
    let device = RefCell::new(device);
    until(|| {
        device.borrow_mut().control_ready();
        daemon.seen.lock().unwrap().asked.is_some()
    });
    let mut disk = open(device.into_inner(), Features::VERSION_1);
    assert_eq!(daemon.seen.lock().unwrap().asked, Some(false));
    exercise(&mut disk, 10, |_| ());
    assert_eq!(daemon.seen.lock().unwrap().requests, 160);
}

#[test]
fn data_is_right_in_every_mode_and_layout() {
    let daemon = Daemon::new();
    for way in WAYS {
        for ring in [Features::NONE, Features::EVENT_IDX, Features::RING_PACKED] {
            // Its rings are split: packed ones are the bridge's to make.
            let packed = ring == Features::RING_PACKED;
            let device = bridged(device_end(&daemon.path, &[]), way);
            let offered = device.identity().features;
            assert_eq!(offered.has(Features::RING_PACKED), converts(way));
            if packed && !offered.has(ring) {
                continue;
            }
            let mut disk = open(device, Features::VERSION_1 | ring);
            exercise(&mut disk, 60, |_| ());
            let features = Features(daemon.seen.lock().unwrap().features);
            assert!(features.has(Features::VERSION_1) && !features.has(Features::RING_PACKED));
        }
    }
}

#[test]
fn requests_wait_for_a_daemon_that_hangs_up_and_comes_back() {
    for way in WAYS.into_iter().filter(|way| converts(*way)) {
        let daemon = Daemon::new();
        let served = Served::around(bridged(device_end(&daemon.path, &[]), way));
        let mut disk = open(served.device_end(&[]), Features::VERSION_1 | Features::EVENT_IDX);
        exercise(&mut disk, 200, |round| {
            if round % 20 == 10 {
                let handle = daemon.hang_up.lock().unwrap().take();
                handle.iter().for_each(ShutdownHandle::shutdown);
            }
        });
        assert!(daemon.seen.lock().unwrap().requests >= 3200);
    }
}
