//! A device that writes down what happens to it, and a driver end that serves it.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use bridge::{BridgeOptions, Mode, Shadow};
use mem::{AddressSpace, DriverAddress, Mapping, MemoryMap, Region};
use sys::EventFd;
use transports::{TRANSPORTS, Transport};
use virtio::{
    DeviceError, DeviceEvent, DeviceType, EndError, EventSink, EventSource, Features, Identity,
    NetworkControl, Notifier, Parameters, QueueSetup, Reach, Status, Stop, Value, VirtioDevice,
};
use virtqueue::{QueueAddresses, QueuePosition, QueueSpec, RingFormat};

/// Where the recording device says it stopped: after this many requests more than where it started.
pub const PROGRESS: u32 = 3;
/// The config of the recording device.
pub const CONFIG: [u8; 60] = [7; 60];

/// What the device has seen.
#[derive(Default)]
pub struct Seen {
    pub running: BTreeMap<u16, QueueSetup>,
    pub features: Option<Features>,
    pub memory: Option<Arc<AddressSpace>>,
    pub statuses: Vec<u8>,
    pub enables: Vec<(u16, bool)>,
    pub written: Vec<(u32, Vec<u8>)>,
    pub resets: usize,
    /// Stations announced and packet sizes set, if it is a network card.
    pub announced: Vec<[u8; 6]>,
    pub mtus: Vec<u16>,
}

/// The recording device.
pub struct Recorder {
    identity: Identity,
    seen: Arc<Mutex<Seen>>,
    events: EventSource,
}

impl VirtioDevice for Recorder {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn reach(&self) -> Reach {
        Reach::LOCAL
    }

    fn read_config(&mut self, offset: u32, into: &mut [u8]) {
        virtio::config::read_bytes(&CONFIG, offset, into);
    }

    fn write_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), DeviceError> {
        if offset as usize + bytes.len() > CONFIG.len() {
            return Err(DeviceError::BadConfigWrite(offset));
        }
        self.seen.lock().unwrap().written.push((offset, bytes.to_vec()));
        Ok(())
    }

    fn set_memory(&mut self, memory: &Arc<AddressSpace>) -> Result<(), DeviceError> {
        self.seen.lock().unwrap().memory = Some(Arc::clone(memory));
        Ok(())
    }

    fn memory_changed(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn accept_features(&mut self, features: Features) -> Result<(), DeviceError> {
        self.seen.lock().unwrap().features = Some(features);
        Ok(())
    }

    fn start_queue(&mut self, setup: QueueSetup) -> Result<(), DeviceError> {
        let mut seen = self.seen.lock().unwrap();
        assert!(seen.features.is_some() && seen.memory.is_some(), "started before it was prepared");
        // As a real device would: the ring must be where the setup says.
        virtqueue::DeviceQueue::new(&setup.memory.current(), &setup.spec)?;
        assert!(seen.running.insert(setup.index, setup).is_none(), "started twice");
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Result<QueuePosition, DeviceError> {
        let setup = self.seen.lock().unwrap().running.remove(&index);
        let setup = setup.ok_or(DeviceError::NoSuchQueue(index))?;
        Ok(QueuePosition(setup.spec.start_at.0 + PROGRESS))
    }

    fn enable_queue(&mut self, index: u16, enabled: bool) -> Result<(), DeviceError> {
        self.seen.lock().unwrap().enables.push((index, enabled));
        Ok(())
    }

    fn records_in_flight(&self) -> bool {
        true
    }

    fn network(&mut self) -> Option<&mut dyn NetworkControl> {
        if self.identity.device == DeviceType::NET { Some(self) } else { None }
    }

    fn set_status(&mut self, status: Status) -> Result<(), DeviceError> {
        self.seen.lock().unwrap().statuses.push(status.0);
        Ok(())
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        let mut seen = self.seen.lock().unwrap();
        assert!(seen.running.is_empty(), "reset with running queues");
        seen.resets += 1;
        seen.features = None;
        seen.memory = None;
        Ok(())
    }

    fn control_fd(&self) -> Option<BorrowedFd<'_>> {
        use std::os::fd::AsFd;
        Some(self.events.as_fd())
    }

    fn control_ready(&mut self) -> Vec<DeviceEvent> {
        self.events.drain()
    }
}

impl NetworkControl for Recorder {
    fn can_announce(&self) -> bool {
        true
    }

    fn can_set_mtu(&self) -> bool {
        true
    }

    fn announce(&mut self, mac: [u8; 6]) -> Result<(), DeviceError> {
        self.seen.lock().unwrap().announced.push(mac);
        Ok(())
    }

    fn set_mtu(&mut self, mtu: u16) -> Result<(), DeviceError> {
        if mtu > 9000 {
            return Err(DeviceError::Refused("a packet that long".into()));
        }
        self.seen.lock().unwrap().mtus.push(mtu);
        Ok(())
    }
}

/// A driver end that serves a recording device at a socket.
pub struct Served {
    pub path: PathBuf,
    pub seen: Arc<Mutex<Seen>>,
    pub events: EventSink,
    stop: Stop,
    thread: Option<JoinHandle<Result<(), EndError>>>,
    _folder: tempfile::TempDir,
}

/// A block device with two queues that offers everything rings can do.
pub fn block_features() -> Features {
    Features::RINGS | Features::IN_ORDER | Features(1 << 2 | 1 << 6 | 1 << 9)
}

impl Served {
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// The same with a network card.
    pub fn net() -> Self {
        Self::of(DeviceType::NET, Features::RINGS, &[])
    }

    pub fn with(settings: &[(&str, &str)]) -> Self {
        Self::of(DeviceType::BLOCK, block_features(), settings)
    }

    fn of(device: DeviceType, features: Features, settings: &[(&str, &str)]) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (sink, events) = EventSource::new().unwrap();
        let identity = Identity {
            device,
            features,
            queue_sizes: vec![128; 2],
            config_len: CONFIG.len() as u32,
        };
        let device = Recorder { identity, seen: Arc::clone(&seen), events };
        Self::made_of(Box::new(device), seen, sink, settings)
    }

    /// A driver end that serves another device; nothing is seen of it.
    pub fn around(device: Box<dyn VirtioDevice>) -> Self {
        Self::made_of(device, Arc::default(), EventSource::new().unwrap().0, &[])
    }

    fn made_of(
        device: Box<dyn VirtioDevice>,
        seen: Arc<Mutex<Seen>>,
        sink: EventSink,
        settings: &[(&str, &str)],
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let mut all = settings.to_vec();
        let text = path.display().to_string();
        all.push(("path", &text));
        let end = transport().driver_end.unwrap()(parameters(&all)).unwrap();
        let stop = Stop::new().unwrap();
        let asked = stop.clone();
        let thread = std::thread::spawn(move || end.serve(device, asked));
        Self { path, seen, events: sink, stop, thread: Some(thread), _folder: folder }
    }

    pub fn device_end(&self, settings: &[(&str, &str)]) -> Box<dyn VirtioDevice> {
        device_end(&self.path, settings)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.ask();
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            ended.expect("the driver end must not panic").expect("and ends well");
        }
    }
}

pub fn transport() -> &'static Transport {
    TRANSPORTS.iter().find(|transport| transport.scheme == "vhost-user").unwrap()
}

pub fn device_end(path: &Path, settings: &[(&str, &str)]) -> Box<dyn VirtioDevice> {
    let text = path.display().to_string();
    let mut all = settings.to_vec();
    all.push(("path", &text));
    transport().device_end.unwrap()(parameters(&all)).unwrap()
}

pub fn parameters(settings: &[(&str, &str)]) -> Parameters {
    let value = |text: &str| {
        let flag = [("on", true), ("off", false)].iter().find(|(word, _)| *word == text);
        let (text, number) = (text.to_owned(), text.parse().ok());
        Value { text, number, flag: flag.map(|(_, flag)| *flag) }
    };
    Parameters::new(settings.iter().map(|(key, text)| ((*key).to_owned(), value(text))).collect())
}

/// Where the driver's memory begins in these tests; an offset, so that a forgotten translation
/// can't work by luck.
pub const BASE: u64 = 0x4000_0000;

/// Two mebibytes of driver memory at [`BASE`].
pub fn memory() -> (Arc<Mapping>, Arc<AddressSpace>) {
    let mapping = Mapping::new_memfd("test", 2 << 20).unwrap();
    let region = Region::mapped(
        DriverAddress(BASE),
        2 << 20,
        mem::Access::ReadWrite,
        Arc::clone(&mapping),
        0,
    );
    let map = MemoryMap::new(vec![region.unwrap()]).unwrap();
    (mapping, Arc::new(AddressSpace::new(map)))
}

/// A queue whose areas lie one page apart from [`BASE`] on.
pub fn queue(index: u16, memory: &Arc<AddressSpace>, features: Features) -> QueueSetup {
    let at = |page: u64| DriverAddress(BASE + (u64::from(index) * 3 + page) * 4096);
    let packed = features.has(Features::RING_PACKED);
    let format = if packed { RingFormat::Packed } else { RingFormat::Split };
    QueueSetup {
        index,
        spec: QueueSpec {
            size: 64,
            format,
            indirect: false,
            event_idx: false,
            in_order: false,
            addresses: QueueAddresses { descriptor: at(0), driver: at(1), device: at(2) },
            start_at: QueuePosition::start(format),
        },
        features,
        memory: Arc::clone(memory),
        kick: Some(Arc::new(EventFd::new().unwrap())),
        call: Notifier::new(Arc::new(EventFd::new().unwrap())),
        in_flight: None,
    }
}

/// Waits until `what` holds, up to twenty seconds: the machine may be busy with other tests.
pub fn until(what: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !what() {
        assert!(std::time::Instant::now() < deadline, "it did not happen");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// A disk of so many bytes in memory, with a bridge before it unless it is to be reached directly.
pub fn disk(bytes: u64, mode: Option<Mode>) -> Box<dyn VirtioDevice> {
    let kind = devices::DEVICES.iter().find(|kind| kind.scheme == "blk").unwrap();
    let settings = [("ram", bytes.to_string()), ("queues", "2".into())];
    let settings = settings.each_ref().map(|(key, text)| (*key, &text[..]));
    bridged((kind.open)(parameters(&settings)).unwrap(), mode)
}

/// The device, with a bridge before it.
pub fn bridged(device: Box<dyn VirtioDevice>, mode: Option<Mode>) -> Box<dyn VirtioDevice> {
    let Some(mode) = mode else { return device };
    let options = BridgeOptions { mode, ..BridgeOptions::default() };
    Box::new(Shadow::new(device, "disk", options).unwrap())
}

/// The ways from a driver's side to a device.
pub const WAYS: [Option<Mode>; 4] =
    [None, Some(Mode::Pass), Some(Mode::Translate), Some(Mode::Copy)];
