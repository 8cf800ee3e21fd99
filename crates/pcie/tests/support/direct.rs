//! A function without a socket: registers by number, memory and interrupts by hand.

use std::sync::Arc;

use driver::GuestMemory;
use pcie::virtio_pci::{VirtioPci, VirtioPciOptions};
use pcie::{BarAddress, CompletionQueue, Function, HostPort, InterruptKind, Interrupts, ResetKind};
use sys::EventFd;
use virtio::Features;

use super::Pattern;

pub const COMMON: u64 = 0;
pub const ISR: u64 = 0x1000;
pub const DEVICE: u64 = 0x2000;
pub const NOTIFY: u64 = 0x3000;
pub const MODERN: u8 = 4;

/// Offsets in the common config.
pub mod at {
    pub const DEVICE_FEATURE_SELECT: u64 = 0;
    pub const DEVICE_FEATURE: u64 = 4;
    pub const DRIVER_FEATURE_SELECT: u64 = 8;
    pub const DRIVER_FEATURE: u64 = 12;
    pub const CONFIG_VECTOR: u64 = 16;
    pub const NUM_QUEUES: u64 = 18;
    pub const STATUS: u64 = 20;
    pub const GENERATION: u64 = 21;
    pub const QUEUE_SELECT: u64 = 22;
    pub const QUEUE_SIZE: u64 = 24;
    pub const QUEUE_VECTOR: u64 = 26;
    pub const QUEUE_ENABLE: u64 = 28;
    pub const QUEUE_NOTIFY_OFF: u64 = 30;
    pub const QUEUE_DESC: u64 = 32;
    pub const QUEUE_DRIVER: u64 = 40;
    pub const QUEUE_DEVICE: u64 = 48;
    pub const QUEUE_NOTIFY_DATA: u64 = 56;
    pub const QUEUE_RESET: u64 = 58;
}

pub struct Direct {
    pub function: VirtioPci,
    pub host: HostPort,
    pub completions: Arc<CompletionQueue>,
}

impl Direct {
    pub fn new(device: Pattern, options: VirtioPciOptions) -> Self {
        let mut function = VirtioPci::new(Box::new(device), options).unwrap();
        let host = HostPort::new(Interrupts::new(function.layout().interrupts));
        function.connect(host.clone());
        Self { function, host, completions: CompletionQueue::new().unwrap() }
    }

    pub fn plug_memory(&mut self, memory: &GuestMemory) {
        self.host.memory.replace(memory.map().unwrap());
        self.function.memory_changed();
    }

    pub fn read(&mut self, bar: u8, offset: u64, len: usize) -> Vec<u8> {
        let (ticket, answer) = self.completions.begin(len);
        self.function.read(BarAddress { bar, offset }, answer);
        let mut bytes = None;
        self.completions.collect(|of, data| {
            assert_eq!(of, ticket);
            bytes = Some(data.to_vec());
        });
        bytes.expect("registers answer at once")
    }

    pub fn write(&mut self, bar: u8, offset: u64, bytes: &[u8]) {
        self.function.write(BarAddress { bar, offset }, bytes);
    }

    pub fn get(&mut self, register: u64, len: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(&self.read(MODERN, COMMON + register, len));
        u64::from_le_bytes(bytes)
    }

    pub fn set(&mut self, register: u64, len: usize, value: u64) {
        self.write(MODERN, COMMON + register, &value.to_le_bytes()[..len]);
    }

    pub fn status(&mut self) -> u64 {
        self.get(at::STATUS, 1)
    }

    pub fn set_status(&mut self, value: u64) -> u64 {
        self.set(at::STATUS, 1, value);
        self.status()
    }

    /// To FEATURES_OK with these features.
    pub fn negotiate(&mut self, features: Features) -> u64 {
        self.set_status(0);
        self.set_status(1);
        self.set_status(3);
        for half in 0..2 {
            self.set(at::DRIVER_FEATURE_SELECT, 4, half);
            self.set(at::DRIVER_FEATURE, 4, features.0 >> (32 * half) & 0xffff_ffff);
        }
        self.set_status(11)
    }

    /// Sets queue `index` up with rings at `place` in memory, and enables it.
    pub fn enable_queue(&mut self, index: u64, size: u64, place: u64) {
        self.set(at::QUEUE_SELECT, 2, index);
        self.set(at::QUEUE_SIZE, 2, size);
        self.set(at::QUEUE_DESC, 8, place);
        self.set(at::QUEUE_DRIVER, 8, place + 0x1000);
        self.set(at::QUEUE_DEVICE, 8, place + 0x2000);
        self.set(at::QUEUE_ENABLE, 2, 1);
    }

    pub fn reset(&mut self) {
        self.function.reset(ResetKind::Machine);
    }

    /// Puts a fresh event behind an interrupt.
    pub fn interrupt(&mut self, kind: InterruptKind, vector: u32) -> Arc<EventFd> {
        let event = Arc::new(EventFd::new().unwrap());
        self.host.interrupts.connect(kind, vector, Some(Arc::clone(&event))).unwrap();
        self.function.interrupts_changed();
        event
    }

    pub fn config(&mut self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.function.config_read(offset, &mut bytes);
        bytes
    }
}
