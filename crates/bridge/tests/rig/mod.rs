//! A driver and a device to put a bridge between. Requests carry patterns that both sides check,
//! and each side has its memory at poisoned addresses.
#![allow(dead_code, clippy::unwrap_used)]

pub mod device;
pub mod driver;
pub mod guest;
pub mod link;

use std::sync::Arc;
use std::time::Duration;

use bridge::{BridgeOptions, Mode, Shadow};
use sys::{Epoll, EventFd, Interest};
use virtio::{DeviceEvent, Features, InFlightArea, Notifier, QueueSetup, VirtioDevice};
use virtqueue::RingFormat;

use device::{EchoDevice, EchoHandle};
use driver::TestDriver;
use guest::Guest;

/// Longer than anything takes; only reached when something hangs.
pub const LIMIT: Duration = Duration::from_secs(20);

/// What is put together.
#[derive(Clone, Debug)]
pub struct Case {
    pub options: BridgeOptions,
    /// Ring bits the driver accepts, VERSION_1 aside.
    pub driver: Features,
    /// Ring bits the device offers, VERSION_1 aside.
    pub device: Features,
    pub size: u16,
    /// Chains before the one the ring begins at.
    pub begin: u16,
    pub remote: bool,
    /// The device only notes that its queues were started: the test plays it.
    pub passive: bool,
    /// The device does not take the driver's memory.
    pub refuses: bool,
}

impl Case {
    pub fn new(mode: Mode) -> Self {
        let options = BridgeOptions { mode, ..BridgeOptions::default() };
        let none = Features::NONE;
        Self {
            options,
            driver: none,
            device: none,
            size: 64,
            begin: 0,
            remote: false,
            passive: false,
            refuses: false,
        }
    }

    pub fn driver_format(&self) -> RingFormat {
        match self.driver.has(Features::RING_PACKED) {
            true => RingFormat::Packed,
            false => RingFormat::Split,
        }
    }
}

/// Driver, shadow and device, running.
pub struct Bench {
    pub guest: Guest,
    pub shadow: Shadow,
    pub device: EchoHandle,
    pub driver: TestDriver,
    pub features: Features,
    /// The record of requests in flight that the driver's side keeps, if it does.
    pub in_flight: Option<Arc<InFlightArea>>,
}

impl Bench {
    pub fn new(case: &Case) -> Self {
        Self::with_guest(case, Guest::new(case.remote))
    }

    pub fn with_guest(case: &Case, guest: Guest) -> Self {
        let (device, handle) = EchoDevice::new(case.device | Features::VERSION_1, case.size);
        handle.shared.state.lock().unwrap().passive = case.passive;
        handle.shared.state.lock().unwrap().refuses = case.refuses;
        let mut shadow = Shadow::new(Box::new(device), "echo", case.options.clone()).unwrap();
        shadow.set_memory(&guest.space).unwrap();
        let features = case.driver | Features::VERSION_1;
        shadow.accept_features(features).unwrap();
        let driver = TestDriver::new(&guest, case, features);
        let mut bench = Self { guest, shadow, device: handle, driver, features, in_flight: None };
        bench.start();
        bench
    }

    /// Starts queue 0 where the driver's ring is.
    pub fn start(&mut self) {
        let setup = self.setup();
        self.shadow.start_queue(setup).unwrap();
    }

    /// The next events of the device, as its driver end sees them.
    pub fn events(&mut self) -> Vec<DeviceEvent> {
        let epoll = Epoll::new().unwrap();
        epoll.add(self.shadow.control_fd().unwrap(), 0, Interest::Read).unwrap();
        let mut ready = Vec::new();
        epoll.wait(&mut ready, Some(LIMIT)).unwrap();
        assert!(!ready.is_empty(), "the device has nothing to say");
        self.shadow.control_ready()
    }

    /// Waits until the bridge has notified the device, which the test plays.
    pub fn wait_for_kick(&self) {
        let kick = self.device.setup().kick.unwrap();
        let epoll = Epoll::new().unwrap();
        epoll.add(&*kick, 0, Interest::Read).unwrap();
        let mut ready = Vec::new();
        epoll.wait(&mut ready, Some(LIMIT)).unwrap();
        assert!(!ready.is_empty(), "no notification for the device");
    }

    /// As `kill -9` of the process that has bridge and device: nothing is given back, taken back or
    /// said. Another process takes its place for the same driver.
    pub fn replace_process(&mut self, case: &Case) {
        self.device.kill();
        let (device, handle) = EchoDevice::new(case.device | Features::VERSION_1, case.size);
        handle.shared.state.lock().unwrap().passive = case.passive;
        self.shadow = Shadow::new(Box::new(device), "echo", case.options.clone()).unwrap();
        self.device = handle;
        self.shadow.set_memory(&self.guest.space).unwrap();
        self.shadow.accept_features(self.features).unwrap();
        self.start();
    }

    /// Resets the device and shows it a fresh driver.
    pub fn begin_again(&mut self, case: &Case) {
        self.shadow.reset().unwrap();
        self.shadow.set_memory(&self.guest.space).unwrap();
        self.shadow.accept_features(self.features).unwrap();
        self.driver = TestDriver::new(&self.guest, case, self.features);
        self.start();
    }

    pub fn setup(&self) -> QueueSetup {
        QueueSetup {
            index: 0,
            spec: self.driver.spec.clone(),
            features: self.features,
            memory: Arc::clone(&self.guest.space),
            kick: Some(Arc::clone(&self.driver.kick)),
            call: Notifier::new(Arc::clone(&self.driver.call)),
            in_flight: self.in_flight.clone(),
        }
    }
}

pub fn event() -> Arc<EventFd> {
    Arc::new(EventFd::new().unwrap())
}

/// Byte `at` of the pattern with this seed.
pub fn pattern(seed: u32, at: usize) -> u8 {
    let mixed = (seed ^ (at as u32).wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b);
    (mixed >> 13) as u8
}

/// A small generator of numbers that look random; the same from run to run.
#[derive(Clone)]
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}
