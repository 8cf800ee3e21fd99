//! A driver, a bridge and a device in one thread, without notifications.

use std::sync::Arc;

use bridge::{BridgeParts, Ends, Mover, PoolPlace, QueueBridge, RateLimits, Request};
use mem::{Access, AddressSpace, DriverAddress, Mapping, MemoryMap, Region, Resolver};
use sys::EventFd;
use virtio::{EventSource, Notifier};
use virtqueue::{
    Chain, DeviceQueue, DriverQueue, QueueAddresses, QueuePosition, QueueSpec, RingFormat, Segment,
    ring_layout,
};
use worker::Task;

pub const SIZE: u16 = 256;
const DRIVER: u64 = 0x7_0000_0000;
const DEVICE: u64 = 0x55_0000_0000;
const DATA: usize = 1 << 20;
const BYTES: usize = 8 << 20;
const POOL: usize = 4 << 20;

pub struct Relay<M: Mover> {
    driver: DriverQueue<u64>,
    bridge: QueueBridge<M>,
    device: DeviceQueue,
    memory: Resolver,
    chain: Chain,
    bytes: u32,
    next: u64,
}

fn memory(name: &str, start: u64) -> (Arc<Mapping>, MemoryMap) {
    let mapping = Mapping::new_memfd(name, BYTES).unwrap();
    let len = mapping.len() as u64;
    let at = DriverAddress(start);
    let region = Region::mapped(at, len, Access::ReadWrite, Arc::clone(&mapping), 0).unwrap();
    (mapping, MemoryMap::new(vec![region]).unwrap())
}

fn spec(format: RingFormat, at: u64) -> QueueSpec {
    let layout = ring_layout(format, SIZE);
    QueueSpec {
        size: SIZE,
        format,
        indirect: false,
        event_idx: true,
        in_order: false,
        addresses: QueueAddresses {
            descriptor: DriverAddress(at),
            driver: DriverAddress(at + layout.driver_offset() as u64),
            device: DriverAddress(at + layout.device_offset() as u64),
        },
        start_at: QueuePosition::start(format),
    }
}

impl<M: Mover> Relay<M> {
    pub fn new(
        driver_format: RingFormat,
        device_format: RingFormat,
        bytes: u32,
        mover: impl FnOnce(PoolPlace) -> M,
    ) -> Self {
        let (_, driver_map) = memory("driver", DRIVER);
        let (mapping, device_map) = memory("device", DEVICE);
        let device_map = Arc::new(device_map);
        let (near, far) = (spec(driver_format, DRIVER), spec(device_format, DEVICE));
        let mut driver = DriverQueue::new(&driver_map, &near, None).unwrap();
        let space = Arc::new(AddressSpace::new(driver_map));
        let to_device: DriverQueue<Request<M::Load>> =
            DriverQueue::new(&device_map, &far, None).unwrap();
        let at = DriverAddress(DEVICE + POOL as u64);
        let place = PoolPlace { mapping, offset: POOL, bytes: POOL, at };
        let event = || Arc::new(EventFd::new().unwrap());
        let bridge = QueueBridge::new(BridgeParts {
            ends: Ends {
                index: 0,
                name: "relay".into(),
                kick: None,
                call: Notifier::none(),
                device_kick: event(),
                device_call: event(),
                observer: None,
                counters: Arc::default(),
                events: EventSource::new().unwrap().0,
            },
            driver: DeviceQueue::new(&space.current(), &near).unwrap(),
            memory: space.reader(),
            device: to_device,
            device_memory: Arc::clone(&device_map),
            mover: mover(place),
            limits: RateLimits::default(),
        });
        let mut device = DeviceQueue::new(&device_map, &far).unwrap();
        // Both poll.
        device.disarm_kick();
        driver.disarm_interrupt();
        let memory = Resolver::new(device_map);
        let chain = Chain::with_capacity(SIZE.into());
        Self { driver, bridge, device, memory, chain, bytes, next: 0 }
    }

    /// Brings `requests` requests there and back.
    pub fn run(&mut self, requests: u64) {
        let end = self.next + requests;
        let mut done = self.next;
        while done < end {
            while self.next < end && self.driver.room_for(2) {
                let slot = self.next % u64::from(SIZE);
                let at = DRIVER + DATA as u64 + slot * 2 * u64::from(self.bytes);
                let readable = Segment { addr: DriverAddress(at), len: self.bytes };
                let addr = DriverAddress(at + u64::from(self.bytes));
                let writable = Segment { addr, len: self.bytes };
                self.driver.offer(&[readable], &[writable], self.next).unwrap();
                self.next += 1;
            }
            self.driver.publish_available();
            self.bridge.poll(64);
            while let Some(id) = self.device.take(&mut self.memory, &mut self.chain).unwrap() {
                self.device.give_back(id, self.bytes);
            }
            self.device.publish_used();
            self.bridge.poll(64);
            while self.driver.take_used().unwrap().is_some() {
                done += 1;
            }
        }
    }
}
