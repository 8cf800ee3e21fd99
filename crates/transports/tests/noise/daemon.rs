//! A daemon that answers anything, against the vhost-user device end.

use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arbitrary::{Result, Unstructured};
use mem::{Access, AddressSpace, DriverAddress, MemoryMap, Region};
use sys::{Connection, EventFd, Received};
use virtio::{Features, MAX_QUEUES, Notifier, QueueSetup, Status, VirtioDevice};
use virtqueue::{QueueAddresses, QueuePosition, QueueSpec, RingFormat};
use wire::vhost_user::{
    Config, HEADER_LEN, Header, Inflight, Reply, Request, VringState, answer, features, id,
};

use super::{LIMIT, MEMORY, MEMORY_BYTES, POISON, end_of, event, memory, number, settings};

/// What a daemon has to answer in, in milliseconds: one that is silent costs as much of a test.
const PATIENCE_MS: &str = "20";
/// A call makes several requests, each of which may go unanswered, and connects again.
const SLOWEST: Duration = Duration::from_secs(3);
const MAX_CALLS: usize = 40;

/// Lets the first half of `bytes` choose what our end is told to do, in the order in which it may
/// be told, and the second half play the daemon. No panic; every call returns in time; what the
/// driver is shown of the device is within its limits.
pub fn daemon(bytes: &[u8]) {
    let (calls, answers) = bytes.split_at(bytes.len() / 2);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("daemon");
    let listener = UnixListener::bind(&path).unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let (is_over, answers) = (Arc::clone(&over), answers.to_vec());
    let thread = std::thread::spawn(move || serve(&listener, &answers, &is_over));
    let _ = play(&path, calls);
    over.store(true, Ordering::SeqCst);
    drop(UnixStream::connect(&path));
    thread.join().expect("the daemon of this test");
}

fn play(path: &Path, calls: &[u8]) -> Result<()> {
    let mut noise = Unstructured::new(calls);
    let reconnect = if noise.arbitrary()? { "on" } else { "off" };
    let text = path.display().to_string();
    let all = [("path", &text[..]), ("timeout", PATIENCE_MS), ("reconnect", reconnect)];
    let begun = Instant::now();
    let opened = end_of("vhost-user").device_end.unwrap()(settings(&all));
    assert!(begun.elapsed() < SLOWEST, "opening took {:?}", begun.elapsed());
    let Ok(device) = opened else { return Ok(()) };
    let map = MemoryMap::new(vec![region(0)]).unwrap();
    let space = Arc::new(AddressSpace::new(map));
    let mut target = Target { device, space, ready: false, running: [false; 2] };
    for _ in 0..MAX_CALLS {
        if noise.is_empty() {
            break;
        }
        let begun = Instant::now();
        target.step(&mut noise)?;
        assert!(begun.elapsed() < SLOWEST, "a call took {:?}", begun.elapsed());
        target.check();
    }
    Ok(())
}

fn region(number: u64) -> Region {
    let mapping = MEMORY.with(Arc::clone);
    let start = DriverAddress(POISON + number * MEMORY_BYTES);
    Region::mapped(start, MEMORY_BYTES, Access::ReadWrite, mapping, 0).unwrap()
}

struct Target {
    device: Box<dyn VirtioDevice>,
    space: Arc<AddressSpace>,
    /// It has memory and features.
    ready: bool,
    running: [bool; 2],
}

impl Target {
    /// One call that is allowed now. What it says is up to the daemon.
    fn step(&mut self, noise: &mut Unstructured) -> Result<()> {
        let index = noise.int_in_range(0..=1_u16)?;
        if !self.ready {
            return self.prepare(noise);
        }
        match noise.int_in_range(0..=9)? {
            0..=2 => self.start(index, noise)?,
            3 => {
                self.running[usize::from(index)] = false;
                let _ = self.device.stop_queue(index);
            }
            4 => {
                let mut bytes = vec![0; noise.int_in_range(0..=64)?];
                self.device.read_config(number(noise, 64)? as u32, &mut bytes);
                let _ = self.device.write_config(number(noise, 64)? as u32, &bytes);
            }
            5 => drop(self.device.set_status(Status(noise.arbitrary()?))),
            6 => {
                let more = noise.int_in_range(0..=2)?;
                let map = MemoryMap::new((0..=more).map(region).collect()).unwrap();
                self.space.replace(map);
                let _ = self.device.memory_changed();
            }
            7 => drop(self.device.enable_queue(index, noise.arbitrary()?)),
            8 => drop(self.device.control_ready()),
            _ => {
                self.running = [false; 2];
                self.ready = false;
                let _ = self.device.reset();
            }
        }
        Ok(())
    }

    fn prepare(&mut self, noise: &mut Unstructured) -> Result<()> {
        drop(self.device.control_ready());
        let wanted = Features::VERSION_1 | Features(noise.arbitrary()?);
        let accepted = self.device.identity().features & wanted;
        self.ready = self.device.set_memory(&self.space).is_ok()
            && self.device.accept_features(accepted).is_ok();
        Ok(())
    }

    fn start(&mut self, index: u16, noise: &mut Unstructured) -> Result<()> {
        let known = usize::from(index) < self.device.identity().queue_sizes.len();
        if self.running[usize::from(index)] || !known {
            return Ok(());
        }
        let format = noise.choose_iter([RingFormat::Split, RingFormat::Packed])?;
        let page = |number: u64| DriverAddress(POISON + number * 4096);
        let setup = QueueSetup {
            index,
            spec: QueueSpec {
                size: 16,
                format,
                indirect: false,
                event_idx: noise.arbitrary()?,
                in_order: false,
                addresses: QueueAddresses { descriptor: page(0), driver: page(1), device: page(2) },
                start_at: QueuePosition::start(format),
            },
            features: Features::VERSION_1,
            memory: Arc::clone(&self.space),
            kick: Some(Arc::new(EventFd::new().unwrap())),
            call: Notifier::new(Arc::new(EventFd::new().unwrap())),
            in_flight: None,
        };
        self.running[usize::from(index)] = self.device.start_queue(setup).is_ok();
        Ok(())
    }

    /// What the driver may be shown.
    fn check(&self) {
        let identity = self.device.identity();
        assert!((1..=usize::from(MAX_QUEUES)).contains(&identity.queue_sizes.len()));
        assert!(identity.queue_sizes.iter().all(|&size| size > 0 && size <= 32768));
        assert!(identity.config_len <= 4096);
        assert!(!identity.features.has(Features::PROTOCOL_FEATURES));
    }
}

/// Serves one connection after the other until it is told that it is over.
fn serve(listener: &UnixListener, answers: &[u8], over: &AtomicBool) {
    let mut noise = Unstructured::new(answers);
    while let Ok((stream, _)) = listener.accept() {
        if over.load(Ordering::SeqCst) {
            return;
        }
        let Ok(connection) = Connection::new(stream) else { return };
        let mut daemon = Daemon { connection, second: None, negotiated: 0 };
        while daemon.serve(&mut noise).is_some() {}
    }
}

struct Daemon {
    connection: Connection,
    /// Where it may ask.
    second: Option<Connection>,
    negotiated: u64,
}

impl Daemon {
    /// One request; `None` when there is no more.
    fn serve(&mut self, noise: &mut Unstructured) -> Option<()> {
        let mut fds = Vec::new();
        let mut bytes = [0; HEADER_LEN];
        self.read(&mut bytes, &mut fds)?;
        let header = Header::decode(&bytes).expect("our end says nothing else");
        let mut payload = vec![0; header.size as usize];
        self.read(&mut payload, &mut fds)?;
        let count = fds.len();
        let request = Request::decode(&header, &payload, count).expect("nor anything wrong");
        match request {
            Request::SetProtocolFeatures(bits) => self.negotiated = bits,
            Request::SetBackendReqFd => self.second = Connection::new(fds.pop()?).ok(),
            _ => {}
        }
        if noise.ratio(1, 8).unwrap_or(false) {
            let _ = self.ask(noise);
        }
        if answer(header.request, header.needs_reply(), self.negotiated).is_none() {
            return Some(());
        }
        self.answer(&header, &request, noise).ok()?
    }

    fn read(&self, mut bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> Option<()> {
        while !bytes.is_empty() {
            self.connection.wait_readable(LIMIT).ok()?;
            match self.connection.receive(bytes, fds).ok()? {
                Received::Bytes(len) => bytes = &mut bytes[len..],
                Received::Nothing => {}
                Received::Closed => return None,
            }
        }
        Some(())
    }

    /// Answers rightly, mostly. `None` inside if it hangs up instead.
    fn answer(
        &self,
        header: &Header,
        request: &Request<'_>,
        noise: &mut Unstructured,
    ) -> Result<Option<()>> {
        let mut bytes = Vec::new();
        let mut fds = Vec::new();
        if let Request::GetInflightFd(_) = request {
            fds.push(memory());
        }
        right(request).encode(header.request, &mut bytes);
        // When there is no noise left the daemon is a good one.
        match if noise.is_empty() { 0 } else { noise.int_in_range(0..=31)? } {
            0..=19 => {}
            20..=22 => {
                bytes.clear();
                Reply::Value(number(noise, 64)?).encode(header.request, &mut bytes);
            }
            23 | 24 if bytes.len() > HEADER_LEN => {
                let at = noise.int_in_range(HEADER_LEN..=bytes.len() - 1)?;
                bytes[at] = noise.arbitrary()?;
            }
            25 => bytes[0] ^= noise.arbitrary::<u8>()?,
            26 => bytes[4] ^= noise.arbitrary::<u8>()?,
            27 => {
                let len = noise.int_in_range(0..=bytes.len())?;
                bytes.truncate(len);
            }
            28 => bytes[8..12].copy_from_slice(&(number(noise, 300)? as u32).to_ne_bytes()),
            29 => fds.extend((0..noise.int_in_range(0..=9)?).map(|_| event())),
            30 => return Ok(Some(())),
            31 => return Ok(None),
            _ => {}
        }
        put(&self.connection, &bytes, &fds);
        Ok(Some(()))
    }

    /// A request of its own, on the second socket.
    fn ask(&self, noise: &mut Unstructured) -> Result<()> {
        let Some(second) = &self.second else { return Ok(()) };
        let payload = noise.int_in_range(0..=40)?;
        let words = [
            number(noise, 11)? as u32,
            if noise.ratio(1, 8)? {
                noise.arbitrary()?
            } else {
                1 | (8 * u32::from(payload % 2 == 0))
            },
            if noise.ratio(1, 8)? { number(noise, 64)? as u32 } else { payload },
        ];
        let mut bytes: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
        bytes.extend(noise.bytes(noise.len().min(payload as usize))?);
        let fds: Vec<_> = (0..noise.int_in_range(0..=2)?).map(|_| event()).collect();
        put(second, &bytes, &fds);
        Ok(())
    }
}

/// Sends it, unless the other side is gone.
fn put(connection: &Connection, bytes: &[u8], fds: &[OwnedFd]) {
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let _ = connection.send(&[IoSlice::new(bytes)], &fds);
}

fn right(request: &Request<'_>) -> Reply<'static> {
    /// A block device's config: a capacity, and zeros.
    static CONFIG: [u8; 256] = [1; 256];
    let blk = Features(1 << 2 | 1 << 6 | 1 << 9 | 1 << 12);
    let all = Features::RINGS | Features::PROTOCOL_FEATURES | Features::LOG_ALL | blk;
    match request {
        Request::GetFeatures => Reply::Value(all.0),
        Request::GetProtocolFeatures => Reply::Value(
            features::MQ
                | features::REPLY_ACK
                | features::CONFIG
                | features::BACKEND_REQ
                | features::CONFIGURE_MEM_SLOTS
                | features::INFLIGHT_SHMFD
                | features::LOG_SHMFD
                | features::RESET_DEVICE
                | features::STATUS,
        ),
        Request::GetQueueNum => Reply::Value(2),
        Request::GetMaxMemSlots => Reply::Value(8),
        Request::GetConfig(window) => {
            let data = &CONFIG[..window.size as usize];
            Reply::Config(Config { offset: window.offset, size: window.size, flags: 0, data })
        }
        Request::GetVringBase(state) => Reply::VringBase(VringState { num: 5, ..*state }),
        Request::GetInflightFd(told) => {
            Reply::Inflight(Inflight { mmap_size: MEMORY_BYTES, mmap_offset: 0, ..*told })
        }
        Request::SetLogBase(_) => Reply::LogBase { size: 0, offset: 0 },
        other if other.id() == id::GET_STATUS => Reply::Value(15),
        _ => Reply::Value(0),
    }
}
