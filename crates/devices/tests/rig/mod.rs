//! A driver for tests that is as odd or as hostile as they like: rings and buffers in two regions,
//! at addresses that mean nothing in this process.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mem::{Access, AddressSpace, DriverAddress, Mapping, MemoryMap, Region};
use sys::{Epoll, EventFd, Interest, Ready};
use virtio::{
    DeviceEvent, Features, InFlightArea, Notifier, Parameters, QueueSetup, Value, VirtioDevice,
};
use virtqueue::{
    DriverQueue, IndirectArea, QueueAddresses, QueuePosition, QueueSpec, RingFormat, Segment,
    ring_layout,
};

/// Added to every address, so that one used without translation can't work by luck.
pub const POISON: u64 = 0x7_0000_0000;
/// Size of each of the two regions, which follow each other in the driver's addresses only.
pub const REGION: u64 = 16 << 20;
/// Nothing takes as long.
pub const LIMIT: Duration = Duration::from_secs(10);

pub fn settings(pairs: &[(&str, &str)]) -> Parameters {
    let value = |text: &str| Value {
        text: text.to_owned(),
        number: text.parse().ok(),
        flag: [("on", true), ("off", false)].iter().find(|(word, _)| *word == text).map(|f| f.1),
    };
    Parameters::new(
        pairs.iter().map(|(key, text)| ((*key).into(), value(text))).collect::<BTreeMap<_, _>>(),
    )
}

pub fn try_open(
    scheme: &str,
    pairs: &[(&str, &str)],
) -> Result<Box<dyn VirtioDevice>, devices::OpenError> {
    let kind = devices::DEVICES.iter().find(|kind| kind.scheme == scheme).expect("a known device");
    (kind.open)(settings(pairs))
}

pub struct Rig {
    pub device: Box<dyn VirtioDevice>,
    pub space: Arc<AddressSpace>,
    pub features: Features,
    pub in_flight: Option<Arc<InFlightArea>>,
    next: u64,
}

pub struct Queue {
    pub ring: DriverQueue<u64>,
    pub kick: Arc<EventFd>,
    pub spec: QueueSpec,
    interrupt: Arc<EventFd>,
    epoll: Epoll,
    ready: Vec<Ready>,
}

fn region(at: u64) -> Region {
    let mapping = Mapping::new_memfd("driver", REGION as usize).unwrap();
    Region::mapped(DriverAddress(POISON + at), REGION, Access::ReadWrite, mapping, 0).unwrap()
}

impl Rig {
    /// The device with all features of its own and those ring features of `wanted` it offers.
    pub fn open(scheme: &str, pairs: &[(&str, &str)], wanted: Features) -> Self {
        Self::new(try_open(scheme, pairs).unwrap(), wanted)
    }

    pub fn new(mut device: Box<dyn VirtioDevice>, wanted: Features) -> Self {
        let offered = device.identity().features;
        let own = offered - Features::TRANSPORT;
        let features = own | (offered & wanted);
        let space = AddressSpace::new(MemoryMap::new(vec![region(0), region(REGION)]).unwrap());
        let space = Arc::new(space);
        device.set_memory(&space).unwrap();
        device.accept_features(features).unwrap();
        Self { device, space, features, in_flight: None, next: POISON }
    }

    /// Room for `len` bytes at a multiple of `align`.
    pub fn room(&mut self, len: usize, align: u64) -> DriverAddress {
        let at = self.next.next_multiple_of(align);
        self.next = at + len as u64;
        assert!(self.next <= POISON + 2 * REGION, "the rig is out of memory");
        DriverAddress(at)
    }

    /// Where room is taken from next; to be set back to once buffers are not used any more.
    pub fn mark(&self) -> u64 {
        self.next
    }

    pub fn release(&mut self, mark: u64) {
        self.next = mark;
    }

    pub fn spec(&mut self, size: u16) -> QueueSpec {
        let packed = self.features.has(Features::RING_PACKED);
        let format = if packed { RingFormat::Packed } else { RingFormat::Split };
        let layout = ring_layout(format, size);
        QueueSpec {
            size,
            format,
            indirect: self.features.has(Features::INDIRECT_DESC),
            event_idx: self.features.has(Features::EVENT_IDX),
            in_order: self.features.has(Features::IN_ORDER),
            addresses: QueueAddresses {
                descriptor: self.room(layout.descriptor_bytes, 64),
                driver: self.room(layout.driver_bytes, 64),
                device: self.room(layout.device_bytes, 64),
            },
            start_at: QueuePosition::start(format),
        }
    }

    /// Starts queue `index`.
    pub fn queue(&mut self, index: u16, size: u16) -> Queue {
        let spec = self.spec(size);
        let area = spec.indirect.then(|| IndirectArea {
            at: self.room(16 * 8 * 16, 16),
            tables: 8,
            entries: 16,
        });
        let ring = DriverQueue::new(&self.space.current(), &spec, area).unwrap();
        let queue = Queue::new(ring, spec);
        self.start(index, &queue);
        queue
    }

    pub fn start(&mut self, index: u16, queue: &Queue) {
        self.device
            .start_queue(QueueSetup {
                index,
                spec: queue.spec.clone(),
                features: self.features,
                memory: Arc::clone(&self.space),
                kick: Some(Arc::clone(&queue.kick)),
                call: Notifier::new(Arc::clone(&queue.interrupt)),
                in_flight: self.in_flight.clone(),
            })
            .unwrap();
    }

    pub fn put(&self, at: DriverAddress, bytes: &[u8]) {
        self.space.current().write(at, bytes).unwrap();
    }

    pub fn get(&self, at: DriverAddress, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.space.current().read(at, &mut bytes).unwrap();
        bytes
    }

    /// Buffers that hold `bytes` in pieces of `piece` bytes, each at an odd address.
    pub fn scatter(&mut self, bytes: &[u8], piece: usize) -> Vec<Segment> {
        let place = |bytes: &[u8]| {
            let at = DriverAddress(self.room(bytes.len() + 3, 2).0 + 1);
            self.put(at, bytes);
            Segment { addr: at, len: bytes.len() as u32 }
        };
        bytes.chunks(piece).map(place).collect()
    }

    pub fn gather(&self, segments: &[Segment]) -> Vec<u8> {
        segments.iter().flat_map(|segment| self.get(segment.addr, segment.len as usize)).collect()
    }

    /// One request from offer to answer: its writable bytes and the length the device reports.
    pub fn ask(
        &mut self,
        queue: &mut Queue,
        readable: &[u8],
        room: usize,
        piece: usize,
    ) -> (Vec<u8>, u32) {
        let mark = self.mark();
        let readable = self.scatter(readable, piece);
        let writable = self.scatter(&vec![0xee; room], piece);
        queue.offer(&readable, &writable, 7);
        queue.publish();
        let (token, written) = queue.wait();
        assert_eq!(token, 7);
        let answer = self.gather(&writable);
        self.release(mark);
        (answer, written)
    }

    /// The next event of the device; panics if there is none within a few seconds.
    pub fn event(&mut self) -> DeviceEvent {
        let deadline = Instant::now() + LIMIT;
        let epoll = Epoll::new().unwrap();
        epoll.add(self.device.control_fd().unwrap(), 0, Interest::Read).unwrap();
        let mut ready = Vec::new();
        while Instant::now() < deadline {
            epoll.wait(&mut ready, Some(LIMIT)).unwrap();
            if let Some(event) = self.device.control_ready().into_iter().next() {
                return event;
            }
        }
        panic!("no event from the device");
    }

    /// The reason queue `index` was given up for.
    pub fn broken(&mut self, index: u16) -> String {
        match self.event() {
            DeviceEvent::QueueBroken { index: found, reason } if found == index => reason,
            other => panic!("{other:?} and not queue {index} broken"),
        }
    }
}

impl Queue {
    pub fn new(ring: DriverQueue<u64>, spec: QueueSpec) -> Self {
        let (kick, interrupt) =
            (Arc::new(EventFd::new().unwrap()), Arc::new(EventFd::new().unwrap()));
        let epoll = Epoll::new().unwrap();
        epoll.add(interrupt.as_fd(), 0, Interest::Read).unwrap();
        let ready = Vec::with_capacity(64);
        Self { ring, kick, spec, interrupt, epoll, ready }
    }

    pub fn offer(&mut self, readable: &[Segment], writable: &[Segment], token: u64) {
        self.ring.offer(readable, writable, token).expect("room in the ring");
    }

    pub fn publish(&mut self) {
        self.ring.publish_available();
        if self.ring.wants_kick() {
            self.kick.signal();
        }
    }

    /// Interrupts since somebody waited for one.
    pub fn interrupts(&self) -> u64 {
        let mut count = [0; 8];
        let mut event = File::from(self.interrupt.as_fd().try_clone_to_owned().unwrap());
        event.read_exact(&mut count).map_or(0, |()| u64::from_ne_bytes(count))
    }

    /// Sleeps until the device interrupts, for so long at most.
    pub fn pause(&mut self, limit: Duration) {
        if !self.ring.arm_interrupt() {
            self.epoll.wait(&mut self.ready, Some(limit)).unwrap();
            self.interrupt.drain();
        }
    }

    /// The next used chain.
    pub fn wait(&mut self) -> (u64, u32) {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(used) = self.ring.take_used().unwrap() {
                return used;
            }
            if !self.ring.arm_interrupt() {
                let left = deadline.saturating_duration_since(Instant::now());
                assert!(!left.is_zero(), "no answer from the device");
                self.epoll.wait(&mut self.ready, Some(left)).unwrap();
                self.interrupt.drain();
            }
        }
    }
}
