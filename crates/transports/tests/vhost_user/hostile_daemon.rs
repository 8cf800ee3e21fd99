//! Hostile daemons against our device end: rows 100 and 101 of the adversarial table, and others.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mem::{AddressSpace, MemoryMap};
use sys::{Connection, Received, listen_unix};
use virtio::{DeviceError, DeviceEvent, Features, VirtioDevice};
use wire::vhost_user::features as protocol;
use wire::vhost_user::{
    BackendRequest, Config, HEADER_LEN, Header, Iotlb, IotlbKind, NEED_REPLY, Reply, Request,
    VringArea, VringFd, VringState, answer, id,
};

use crate::lab::{block_features, device_end, memory, queue, until};

/// What a daemon does wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// Never answers this request.
    Silent(u32),
    /// Answers it with an answer to something else.
    Mixed(u32),
    /// Answers it with descriptors.
    Generous(u32),
    /// Answers it with a payload that is too short.
    Short(u32),
    /// Hangs up instead of answering it.
    HangsUp(u32),
    /// Says no to it.
    Refuses(u32),
    /// Answers it with this number.
    Says(u32, u64),
    /// Answers for its config with bytes of this value.
    Configures(u8),
    /// Knows no message that ends a driver.
    Remembers,
}

/// A daemon that answers everything rightly but for one fault.
struct Daemon {
    path: PathBuf,
    fault: Arc<Mutex<Fault>>,
    /// Its ends of the second sockets.
    second: Arc<Mutex<Vec<Connection>>>,
    connections: Arc<AtomicUsize>,
    started: Arc<Mutex<Vec<VringState>>>,
    _folder: tempfile::TempDir,
}

impl Daemon {
    fn new(fault: Fault) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("daemon");
        let listener = listen_unix(&path).unwrap();
        let daemon = Self {
            path,
            fault: Arc::new(Mutex::new(fault)),
            second: Arc::default(),
            connections: Arc::default(),
            started: Arc::default(),
            _folder: folder,
        };
        let (fault, second) = (Arc::clone(&daemon.fault), Arc::clone(&daemon.second));
        let (connections, started) = (Arc::clone(&daemon.connections), Arc::clone(&daemon.started));
        // It lives as long as the test process; nothing needs its end.
        std::thread::spawn(move || {
            loop {
                let Some(socket) = listener.accept().unwrap() else {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                };
                connections.fetch_add(1, Ordering::SeqCst);
                serve(&socket, &fault, &second, &started);
            }
        });
        daemon
    }

    fn device(&self) -> Box<dyn VirtioDevice> {
        device_end(&self.path, &[("timeout", "800")])
    }

    fn fault(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }
}

fn serve(
    socket: &Connection,
    fault: &Mutex<Fault>,
    second: &Mutex<Vec<Connection>>,
    started: &Mutex<Vec<VringState>>,
) {
    let mut header = [0; HEADER_LEN];
    let mut negotiated = 0;
    loop {
        let mut fds = Vec::new();
        if !read(socket, &mut header, &mut fds) {
            return;
        }
        let header = Header::decode(&header).unwrap();
        let mut payload = vec![0; header.size as usize];
        if !payload.is_empty() && !read(socket, &mut payload, &mut fds) {
            return;
        }
        let request = Request::decode(&header, &payload, fds.len()).unwrap();
        match request {
            Request::SetProtocolFeatures(bits) => negotiated = bits,
            Request::SetBackendReqFd => {
                second.lock().unwrap().push(Connection::new(fds.pop().unwrap()).unwrap());
            }
            Request::SetVringBase(state) => started.lock().unwrap().push(state),
            _ => {}
        }
        if answer(header.request, header.needs_reply(), negotiated).is_none() {
            continue;
        }
        let fault = *fault.lock().unwrap();
        let number = header.request;
        let mut bytes = Vec::new();
        match fault {
            Fault::Silent(at) if at == number => continue,
            Fault::HangsUp(at) if at == number => return,
            Fault::Mixed(at) if at == number => Reply::Value(0).encode(number + 1, &mut bytes),
            Fault::Refuses(at) if at == number => Reply::Value(5).encode(number, &mut bytes),
            Fault::Says(at, value) if at == number => {
                Reply::Value(value).encode(number, &mut bytes)
            }
            Fault::Configures(value) if number == id::GET_CONFIG => {
                let data = &[value; 256][..payload_len(&request)];
                let config = Config { offset: 0, size: data.len() as u32, flags: 0, data };
                Reply::Config(config).encode(number, &mut bytes);
            }
            Fault::Remembers if number == id::GET_PROTOCOL_FEATURES => {
                Reply::Value(protocol::REPLY_ACK).encode(number, &mut bytes);
            }
            _ => right_reply(&request).encode(number, &mut bytes),
        }
        if fault == Fault::Short(number) {
            bytes.truncate(HEADER_LEN + 2);
            bytes[8] = 2;
        }
        let event = sys::EventFd::new().unwrap();
        let extra = [event.as_fd(); 8];
        let fds = if fault == Fault::Generous(number) { &extra[..] } else { &[] };
        let _ = socket.send_all(&bytes, fds, Duration::from_secs(1));
    }
}

/// How many bytes of config are asked for.
fn payload_len(request: &Request<'_>) -> usize {
    match request {
        Request::GetConfig(window) => (window.size as usize).min(256),
        _ => 0,
    }
}

fn right_reply(request: &Request<'_>) -> Reply<'static> {
    match request {
        Request::GetFeatures => Reply::Value((block_features() | Features::PROTOCOL_FEATURES).0),
        Request::GetProtocolFeatures => Reply::Value(
            protocol::MQ
                | protocol::REPLY_ACK
                | protocol::CONFIG
                | protocol::BACKEND_REQ
                | protocol::CONFIGURE_MEM_SLOTS
                | protocol::STATUS,
        ),
        Request::GetQueueNum => Reply::Value(2),
        Request::GetMaxMemSlots => Reply::Value(8),
        Request::GetConfig(window) => {
            Reply::Config(Config { offset: 0, size: window.size, flags: 0, data: &[0; 96] })
        }
        Request::GetVringBase(state) => Reply::VringBase(VringState { num: 5, ..*state }),
        _ => Reply::Value(0),
    }
}

fn read(socket: &Connection, mut bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> bool {
    while !bytes.is_empty() {
        if socket.wait_readable(Duration::from_secs(60)).is_err() {
            return false;
        }
        match socket.receive(bytes, fds) {
            Ok(Received::Bytes(len)) => bytes = &mut bytes[len..],
            Ok(Received::Nothing) => {}
            Ok(Received::Closed) | Err(_) => return false,
        }
    }
    true
}

fn start(device: &mut dyn VirtioDevice) -> Result<Arc<AddressSpace>, DeviceError> {
    let (_, space) = memory();
    device.set_memory(&space)?;
    device.accept_features(Features::VERSION_1)?;
    device.start_queue(queue(0, &space, Features::VERSION_1))?;
    Ok(space)
}

fn events_until(device: &mut dyn VirtioDevice, wanted: &DeviceEvent) -> Vec<DeviceEvent> {
    let seen = std::cell::RefCell::new((device, Vec::new()));
    until(|| {
        let (device, events) = &mut *seen.borrow_mut();
        events.extend(device.control_ready());
        events.contains(wanted)
    });
    seen.into_inner().1
}

#[test]
fn a_daemon_that_answers_wrongly_is_given_up_in_bounded_time() {
    let requests = [id::SET_FEATURES, id::ADD_MEM_REG, id::SET_VRING_KICK, id::GET_VRING_BASE];
    let faults = [Fault::Silent, Fault::Mixed, Fault::Generous, Fault::Short, Fault::HangsUp];
    for request in requests {
        for fault in faults {
            let daemon = Daemon::new(fault(request));
            let mut device = daemon.device();
            let begun = Instant::now();
            let outcome = start(&mut *device).and_then(|_| device.stop_queue(0));
            assert!(matches!(outcome, Err(DeviceError::Gone(_))), "{:?}: {outcome:?}", fault(1));
            assert!(begun.elapsed() < Duration::from_secs(4), "row 100: every wait is bounded");
            let events = device.control_ready();
            assert!(matches!(events[..], [DeviceEvent::Gone(_), ..]), "{events:?}");
            // And when it does better it is taken back.
            daemon.fault(Fault::None);
            events_until(&mut *device, &DeviceEvent::Back);
        }
    }
}

#[test]
fn row_98_numbers_that_make_no_sense_stay_within_bounds() {
    for value in [0, 0xff] {
        let daemon = Daemon::new(Fault::Configures(value));
        let mut device = daemon.device();
        // Queues it says in its config or in an answer: never none, never more than there may be.
        assert_eq!(device.identity().queue_sizes.len(), 2, "{value}");
        let mut config = [1; 8];
        device.read_config(0, &mut config);
        assert_eq!(config, [value; 8], "capacity is between the device and its driver");
        start(&mut *device).unwrap();
        // It changes under a running driver, to something else that makes no sense.
        daemon.fault(Fault::Configures(!value));
        let second = daemon.second.lock().unwrap().pop().unwrap();
        let mut bytes = Vec::new();
        BackendRequest::ConfigChangeMsg.encode(0, &mut bytes);
        second.send_all(&bytes, &[], Duration::from_secs(1)).unwrap();
        assert_eq!(
            events_until(&mut *device, &DeviceEvent::ConfigChanged),
            [DeviceEvent::ConfigChanged]
        );
        device.read_config(0, &mut config);
        assert_eq!(config, [!value; 8], "one copy, whole");
        assert_eq!(device.identity().queue_sizes.len(), 2);
        device.stop_queue(0).unwrap();
    }
    for (request, value, queues) in [
        (id::GET_QUEUE_NUM, 0, 1),
        (id::GET_QUEUE_NUM, u64::MAX, usize::from(virtio::MAX_QUEUES)),
        (id::GET_MAX_MEM_SLOTS, 0, 2),
        (id::GET_MAX_MEM_SLOTS, u64::MAX, 2),
    ] {
        let device = Daemon::new(Fault::Says(request, value)).device();
        assert_eq!(device.identity().queue_sizes.len(), queues, "{request} says {value}");
        assert!((1..=mem::MAX_REGIONS).contains(&device.reach().max_regions));
    }
}

#[test]
fn row_99_features_that_exclude_each_other_are_not_agreed_on() {
    let offered = (block_features() - Features::VERSION_1) | Features::PROTOCOL_FEATURES;
    let daemon = Daemon::new(Fault::Says(id::GET_FEATURES, offered.0));
    for mode in crate::lab::WAYS {
        let mut device = crate::lab::bridged(daemon.device(), mode);
        let (_, space) = memory();
        device.set_memory(&space).unwrap();
        if mode.is_some() {
            let outcome = device.accept_features(Features::RING_PACKED);
            assert!(matches!(outcome, Err(DeviceError::BadFeatures(_))), "{mode:?}: {outcome:?}");
        }
        // What was never offered, as RING_RESET of a daemon, is not agreed on either.
        assert!(!device.identity().features.has(Features::RING_RESET), "{mode:?}");
        assert!(device.accept_features(Features::RING_RESET).is_err());
    }
}

#[test]
fn a_daemon_that_refuses_is_not_gone() {
    let daemon = Daemon::new(Fault::Refuses(id::SET_VRING_KICK));
    let mut device = daemon.device();
    assert!(matches!(start(&mut *device), Err(DeviceError::Refused(_))));
    assert_eq!(device.control_ready(), []);
    daemon.fault(Fault::None);
    device.reset().unwrap();
    start(&mut *device).unwrap();
}

#[test]
fn a_card_that_remembers_its_driver_is_called_again_for_the_next() {
    let daemon = Daemon::new(Fault::Remembers);
    let calls = || daemon.connections.load(Ordering::SeqCst);
    let mut card = device_end(&daemon.path, &[("timeout", "800"), ("type", "net")]);
    // Firmware that only looks is no driver.
    card.reset().unwrap();
    assert_eq!(calls(), 1);
    for driver in 1..=3 {
        let space = start(&mut *card).unwrap();
        assert_eq!(calls(), driver);
        card.stop_queue(0).unwrap();
        // The next driver's memory comes before its reset, and is not for this connection.
        daemon.fault(Fault::HangsUp(id::SET_MEM_TABLE));
        space.replace(MemoryMap::clone(&memory().1.current()));
        card.memory_changed().unwrap();
        daemon.fault(Fault::Remembers);
        card.reset().unwrap();
        assert_eq!(calls(), driver + 1);
    }
    assert_eq!(card.control_ready(), [], "nobody notices");
    // A daemon of another type may leave with its connection, and one that is told forgets.
    let others = [(Fault::Remembers, "rng"), (Fault::None, "net")];
    for (fault, kind) in others {
        let daemon = Daemon::new(fault);
        let mut device = device_end(&daemon.path, &[("timeout", "800"), ("type", kind)]);
        start(&mut *device).unwrap();
        device.reset().unwrap();
        assert_eq!(daemon.connections.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn a_queue_goes_on_where_the_driver_has_seen_it_complete() {
    let daemon = Daemon::new(Fault::None);
    let mut device = daemon.device();
    start(&mut *device).unwrap();
    daemon.fault(Fault::HangsUp(id::SET_CONFIG));
    assert!(device.write_config(0, &[0]).is_err());
    daemon.fault(Fault::None);
    events_until(&mut *device, &DeviceEvent::Back);
    assert_eq!(daemon.connections.load(Ordering::SeqCst), 2);
    let started = daemon.started.lock().unwrap();
    assert_eq!(started[..], [VringState { index: 0, num: 0 }; 2], "the used index is still 0");
}

#[test]
fn a_flood_on_the_second_socket_is_answered_and_forgotten() {
    let daemon = Daemon::new(Fault::None);
    let mut device = daemon.device();
    start(&mut *device).unwrap();
    let second = daemon.second.lock().unwrap().pop().unwrap();
    let event = sys::EventFd::new().unwrap();
    let before = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let miss = Iotlb {
        iova: u64::MAX,
        size: u64::MAX,
        user_address: 1,
        permissions: 3,
        kind: IotlbKind::Miss,
    };
    let vring = VringFd { index: 0, has_fd: true };
    let notifier = VringArea { vring, size: 3, offset: u64::MAX };
    // Row 101: descriptors, misses without an IOMMU, a doorbell page of a senseless size.
    let requests = [
        (BackendRequest::IotlbMsg(miss), 0),
        (BackendRequest::VringHostNotifierMsg(notifier), 1),
        (BackendRequest::VringErr(VringState { index: 0x1_0000, num: 0 }), 1),
        (BackendRequest::SharedObjectAdd([1; 16]), 1),
        (BackendRequest::Unknown { id: 4000, payload: &[0; 64] }, 1),
    ];
    for round in 0..200 {
        let (request, status) = &requests[round % requests.len()];
        let mut bytes = Vec::new();
        request.encode(NEED_REPLY, &mut bytes);
        let with_fd = matches!(request, BackendRequest::VringHostNotifierMsg(_));
        let fds = if with_fd { &[event.as_fd()][..] } else { &[] };
        second.send_all(&bytes, fds, Duration::from_secs(1)).unwrap();
        assert_eq!(device.control_ready(), []);
        let mut answer = [0; HEADER_LEN + 8];
        assert!(read(&second, &mut answer, &mut Vec::new()));
        assert_eq!(answer[HEADER_LEN], *status, "{request:?}");
    }
    let after = std::fs::read_dir("/proc/self/fd").unwrap().count();
    // Other tests come and go; 40 messages of each kind would show.
    assert!(after <= before + 300, "{before} descriptors became {after}");
    // Descriptors with a request that takes none end that channel and nothing else.
    let mut bytes = Vec::new();
    BackendRequest::ConfigChangeMsg.encode(0, &mut bytes);
    second.send_all(&bytes, &[event.as_fd(); 20], Duration::from_secs(1)).unwrap();
    assert!(!device.control_ready().iter().any(|event| matches!(event, DeviceEvent::Gone(_))));
    assert_eq!(device.stop_queue(0).unwrap().0, 5);
}

#[test]
fn too_many_regions_are_refused_by_name() {
    let daemon = Daemon::new(Fault::None);
    let mut device = daemon.device();
    assert_eq!(device.reach().max_regions, 8);
    let mapping = mem::Mapping::new_memfd("test", 1 << 20).unwrap();
    let regions = (0..9_u64).map(|n| {
        let start = mem::DriverAddress(n << 20);
        mem::Region::mapped(start, 4096, mem::Access::ReadWrite, Arc::clone(&mapping), n * 8192)
    });
    let map = mem::MemoryMap::new(regions.collect::<Result<_, _>>().unwrap()).unwrap();
    let space = Arc::new(mem::AddressSpace::new(map));
    device.set_memory(&space).unwrap();
    let error = device.accept_features(Features::VERSION_1).unwrap_err().to_string();
    assert!(error.contains("9 regions") && error.contains("takes 8"), "{error}");
}
