//! A driver that accesses anything, against the registers of a virtio function.

use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use mem::{Access, DriverAddress, MemoryMap, Region};
use pcie::virtio_pci::VirtioPci;
use pcie::{BarAddress, CompletionQueue, Function, HostPort, InterruptKind, Interrupts, ResetKind};
use sys::EventFd;
use virtio::{DeviceEvent, Status};

use super::strict::{CONFIG_LEN, Facts, QUEUE_SIZES};
use super::{MEMORY, MEMORY_BYTES, POISON, function, number};

/// The BAR of the modern registers, and places in it (VIRTIO 1.4, 4.1.4.3).
const MODERN_BAR: u8 = 4;
const COMMON: u64 = 0;
const STATUS: u64 = 20;
const QUEUE_SELECT: u64 = 22;
const QUEUE_SIZE: u64 = 24;
const QUEUE_VECTOR: u64 = 26;
const QUEUE_ENABLE: u64 = 28;
const DEVICE_CONFIG: u64 = 0x2000;
const DOORBELLS: u64 = 0x3000;

const NO_VECTOR: u16 = 0xffff;

struct Target {
    function: VirtioPci,
    facts: Arc<Facts>,
    host: HostPort,
    completions: Arc<CompletionQueue>,
    is_modern_only: bool,
}

/// Lets `bytes` play the driver and the machine around it. No panic; the device behind the
/// registers is called in order; registers never show what can't be.
pub fn registers(bytes: &[u8]) {
    let mut noise = Unstructured::new(bytes);
    let Ok(mut target) = Target::new(&mut noise) else { return };
    while !noise.is_empty() && target.step(&mut noise).is_ok() {}
    target.check_reset();
}

impl Target {
    fn new(noise: &mut Unstructured) -> Result<Self> {
        let (mut function, facts) = function(noise)?;
        function.layout().check().unwrap();
        let host = HostPort::new(Interrupts::new(function.layout().interrupts));
        function.connect(host.clone());
        let completions = CompletionQueue::new().unwrap();
        let is_modern_only = function.layout().bars[0].size == 0;
        let mut target = Self { function, facts, host, completions, is_modern_only };
        target.set_memory(true);
        Ok(target)
    }

    fn set_memory(&mut self, present: bool) {
        let mapping = MEMORY.with(Arc::clone);
        let (start, len) = (DriverAddress(POISON), MEMORY_BYTES as u64);
        let region = Region::mapped(start, len, Access::ReadWrite, mapping, 0).unwrap();
        let regions = if present { vec![region] } else { Vec::new() };
        self.host.memory.replace(MemoryMap::new(regions).unwrap());
        self.function.memory_changed();
    }

    fn step(&mut self, noise: &mut Unstructured) -> Result<()> {
        match noise.int_in_range(0..=19)? {
            0..=2 => self.any_access(noise)?,
            3..=5 => self.common_write(noise)?,
            6..=8 => self.likely_status(noise)?,
            9..=11 => self.likely_queue(noise)?,
            12 | 13 => self.config_access(noise)?,
            14 => self.likely_features(noise)?,
            15 => {
                let at = DOORBELLS + number(noise, 16)? % 0x1000;
                self.write(BarAddress { bar: MODERN_BAR, offset: at & !1 }, &[0, 0]);
            }
            16 | 17 => self.check(),
            _ => self.machine(noise)?,
        }
        Ok(())
    }

    /// Anywhere in any BAR, of any size.
    fn any_access(&mut self, noise: &mut Unstructured) -> Result<()> {
        let bar = noise.int_in_range(0..=5)?;
        let size = self.function.layout().bars[usize::from(bar)].size;
        let len = noise.choose_iter([1u64, 2, 4, 8, 3, 64, 300])?;
        if size < len {
            return Ok(());
        }
        let offset = number(noise, 0x40)? % (size - len + 1);
        let at = BarAddress { bar, offset };
        if noise.arbitrary()? {
            self.read(at, len as usize);
        } else {
            let bytes: Vec<u8> = (0..len).map(|_| noise.arbitrary()).collect::<Result<_>>()?;
            self.write(at, &bytes);
        }
        Ok(())
    }

    fn common_write(&mut self, noise: &mut Unstructured) -> Result<()> {
        let offset = COMMON + noise.int_in_range(0..=63)?;
        let len = noise.choose_iter([1, 2, 4, 8])?;
        let value = number(noise, 16)?.to_le_bytes();
        self.write(BarAddress { bar: MODERN_BAR, offset }, &value[..len]);
        Ok(())
    }

    /// The next step of a driver that knows what it does, mostly.
    fn likely_status(&mut self, noise: &mut Unstructured) -> Result<()> {
        let next = match self.get(STATUS, 1) as u8 {
            0 => 1,
            1 => 3,
            3 => 11,
            11 => 15,
            _ => noise.choose_iter([0, 15, 128, 64])?,
        };
        let value = if noise.ratio(1, 8)? { noise.arbitrary()? } else { next };
        self.write(BarAddress { bar: MODERN_BAR, offset: STATUS }, &[value]);
        if value == 0 {
            self.check_stopped();
        }
        Ok(())
    }

    fn likely_features(&mut self, noise: &mut Unstructured) -> Result<()> {
        let wanted = noise.arbitrary::<u32>()?;
        for (half, mask) in [(0u32, u32::MAX), (1, 7)] {
            self.put(0, &half.to_le_bytes());
            let offered = self.get(4, 4) as u32;
            self.put(8, &half.to_le_bytes());
            let chosen = if half == 0 { offered & wanted } else { offered & mask };
            self.put(12, &chosen.to_le_bytes());
        }
        Ok(())
    }

    /// Sets up one queue where there is memory.
    fn likely_queue(&mut self, noise: &mut Unstructured) -> Result<()> {
        let queue: u16 = noise.int_in_range(0..=3)?;
        self.put(QUEUE_SELECT, &queue.to_le_bytes());
        if noise.arbitrary()? {
            let size = number(noise, 64)? as u16;
            self.put(QUEUE_SIZE, &size.to_le_bytes());
        }
        for (area, offset) in [(32, 0x0), (40, 0x2000), (48, 0x4000)] {
            self.put(area, &(POISON + offset + 16 * noise.int_in_range(0..=3)?).to_le_bytes());
        }
        self.put(QUEUE_VECTOR, &number(noise, 4)?.to_le_bytes()[..2]);
        self.put(QUEUE_ENABLE, &[1, 0]);
        Ok(())
    }

    fn config_access(&mut self, noise: &mut Unstructured) -> Result<()> {
        let at = number(noise, 0x100)?;
        let len = noise.choose_iter([1usize, 2, 4, 8, 16])?;
        let mut bytes = [0; 16];
        if noise.arbitrary()? {
            self.function.config_read(at, &mut bytes[..len]);
        } else {
            noise.fill_buffer(&mut bytes)?;
            let effect = self.function.config_write(at, &bytes[..len]);
            if effect.reset {
                self.check_stopped();
            }
        }
        Ok(())
    }

    /// What happens around the driver.
    fn machine(&mut self, noise: &mut Unstructured) -> Result<()> {
        match noise.int_in_range(0..=7)? {
            0 => {
                self.function.reset(ResetKind::Machine);
                self.check_stopped();
            }
            1 => {
                self.function.reset(ResetKind::Function);
                self.check_stopped();
            }
            2 => {
                let present = noise.arbitrary()?;
                self.set_memory(present);
            }
            3 => {
                let present = noise.arbitrary()?;
                self.function.host_present(present);
                let is_running = self.facts.state().running.contains(&true);
                assert!(present || !is_running, "a queue runs without a host");
            }
            4 => {
                let event = Arc::new(EventFd::new().unwrap());
                let (vector, kind) = (noise.int_in_range(0..=4)?, noise.arbitrary()?);
                let kind = if kind { InterruptKind::Msix } else { InterruptKind::Intx };
                let _ = self.host.interrupts.connect(kind, vector, Some(event));
                self.function.interrupts_changed();
            }
            5 => {
                self.host.set_settled(noise.arbitrary()?);
                self.function.memory_changed();
            }
            6 => self.facts.state().refuse_start = noise.arbitrary()?,
            _ => self.device_speaks(noise)?,
        }
        Ok(())
    }

    fn device_speaks(&mut self, noise: &mut Unstructured) -> Result<()> {
        let event = match noise.int_in_range(0..=4)? {
            0 => DeviceEvent::ConfigChanged,
            1 => DeviceEvent::NeedsReset("tired".into()),
            2 => DeviceEvent::QueueBroken { index: noise.arbitrary()?, reason: "odd".into() },
            3 => DeviceEvent::Gone("away".into()),
            _ => DeviceEvent::Back,
        };
        self.facts.state().events.push(event);
        self.facts.wake.signal();
        self.function.events_ready();
        Ok(())
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) {
        self.write(BarAddress { bar: MODERN_BAR, offset }, bytes);
    }

    fn get(&mut self, offset: u64, len: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(&self.read(BarAddress { bar: MODERN_BAR, offset }, len));
        u64::from_le_bytes(bytes)
    }

    fn read(&mut self, at: BarAddress, len: usize) -> Vec<u8> {
        let (ticket, answer) = self.completions.begin(len);
        self.function.read(at, answer);
        let mut found = None;
        self.completions.collect(|of, bytes| {
            assert_eq!(of, ticket);
            found = Some(bytes.to_vec());
        });
        found.expect("registers are answered at once")
    }

    fn write(&mut self, at: BarAddress, bytes: &[u8]) {
        self.function.write(at, bytes);
    }

    /// What the registers may show in any state.
    fn check(&mut self) {
        let status = Status(self.get(STATUS, 1) as u8);
        let negotiated = status.has(Status::FEATURES_OK) || !self.is_modern_only;
        assert!(negotiated || !status.has(Status::DRIVER_OK), "{status:?}");
        if self.facts.state().running.contains(&true) {
            assert!(status.has(Status::DRIVER_OK), "a queue runs before its driver: {status:?}");
        }
        let vectors = self.function.layout().interrupts.msix.map_or(0, |msix| msix.vectors);
        for queue in [0, 1, 2, 3, 0xffff_u16] {
            self.put(QUEUE_SELECT, &queue.to_le_bytes());
            let (size, vector) = (self.get(QUEUE_SIZE, 2) as u16, self.get(QUEUE_VECTOR, 2) as u16);
            let largest = QUEUE_SIZES.get(usize::from(queue)).copied().unwrap_or(0);
            assert!(size <= largest);
            assert!(vector == NO_VECTOR || vector < vectors || largest == 0);
            if largest == 0 {
                assert_eq!((vector, self.get(QUEUE_ENABLE, 2), self.get(32, 8)), (0, 0, 0));
            }
        }
        let end = self.get(DEVICE_CONFIG + u64::from(CONFIG_LEN), 8);
        assert_eq!(end, 0, "beyond the device's config");
    }

    fn check_stopped(&mut self) {
        assert_eq!(self.get(STATUS, 1), 0);
        let state = self.facts.state();
        assert!(!state.running.contains(&true), "a queue runs after a reset");
    }

    /// After all that, a correct driver is served.
    fn check_reset(&mut self) {
        self.function.host_present(true);
        self.function.reset(ResetKind::Machine);
        self.facts.state().refuse_start = false;
        self.host.set_settled(true);
        self.set_memory(true);
        self.check_stopped();
        for status in [1, 3] {
            self.put(STATUS, &[status]);
        }
        for half in [0u32, 1] {
            self.put(8, &half.to_le_bytes());
            self.put(12, &half.to_le_bytes());
        }
        self.put(STATUS, &[11]);
        assert_eq!(self.get(STATUS, 1), 11);
        self.put(QUEUE_SELECT, &[1, 0]);
        assert_eq!(self.get(QUEUE_SIZE, 2), u64::from(QUEUE_SIZES[1]));
        for (area, offset) in [(32, 0x0), (40, 0x2000), (48, 0x4000)] {
            self.put(area, &(POISON + offset).to_le_bytes());
        }
        self.put(QUEUE_ENABLE, &[1, 0]);
        self.put(STATUS, &[15]);
        assert_eq!(self.get(STATUS, 1), 15);
        assert_eq!(self.facts.state().running, [false, true, false]);
        self.check();
    }
}
