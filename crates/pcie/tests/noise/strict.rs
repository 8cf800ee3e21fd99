//! A device that does nothing but check that its caller keeps the order of calls, whatever the
//! driver behind the caller does.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard};

use mem::AddressSpace;
use sys::EventFd;
use virtio::{
    DeviceError, DeviceEvent, DeviceType, Features, Identity, QueueSetup, Reach, Status,
    VirtioDevice,
};
use virtqueue::QueuePosition;

pub const QUEUE_SIZES: [u16; 3] = [64, 16, 256];
pub const CONFIG_LEN: u32 = 20;

/// What the harness may know and set.
#[derive(Debug, Default)]
pub struct State {
    pub has_memory: bool,
    pub accepted: Option<Features>,
    pub running: [bool; QUEUE_SIZES.len()],
    /// What the device says next.
    pub events: Vec<DeviceEvent>,
    /// Whether the next start of a queue fails.
    pub refuse_start: bool,
}

#[derive(Debug)]
pub struct Facts {
    state: Mutex<State>,
    pub wake: EventFd,
    /// Whether the driver has no way to learn how large queues may be.
    any_size: bool,
}

impl Facts {
    pub fn new() -> Arc<Self> {
        Self::with(false)
    }

    pub fn with(any_size: bool) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), wake: EventFd::new().unwrap(), any_size })
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

pub struct Strict {
    identity: Identity,
    facts: Arc<Facts>,
}

impl Strict {
    pub fn new(facts: Arc<Facts>) -> Self {
        let features = Features::VERSION_1
            | Features::RING_PACKED
            | Features::EVENT_IDX
            | Features::INDIRECT_DESC
            | Features::bit(5);
        let identity = Identity {
            device: DeviceType::NET,
            features,
            queue_sizes: QUEUE_SIZES.to_vec(),
            config_len: CONFIG_LEN,
        };
        Self { identity, facts }
    }
}

impl VirtioDevice for Strict {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn reach(&self) -> Reach {
        Reach::LOCAL
    }

    fn read_config(&mut self, offset: u32, into: &mut [u8]) {
        for (at, byte) in (u64::from(offset)..).zip(into) {
            *byte = if at < CONFIG_LEN.into() { 0x40 | at as u8 } else { 0 };
        }
    }

    fn write_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), DeviceError> {
        match u64::from(offset) + bytes.len() as u64 <= CONFIG_LEN.into() {
            true => Ok(()),
            false => Err(DeviceError::BadConfigWrite(offset)),
        }
    }

    fn set_memory(&mut self, _: &Arc<AddressSpace>) -> Result<(), DeviceError> {
        self.facts.state().has_memory = true;
        Ok(())
    }

    fn memory_changed(&mut self) -> Result<(), DeviceError> {
        assert!(self.facts.state().has_memory, "memory that was never set has changed");
        Ok(())
    }

    fn accept_features(&mut self, features: Features) -> Result<(), DeviceError> {
        let mut state = self.facts.state();
        assert!(state.has_memory, "features before memory");
        assert!(state.running.iter().all(|running| !running), "features while queues run");
        assert!((features - self.identity.features).is_empty(), "{features} were not offered");
        state.accepted = Some(features);
        Ok(())
    }

    fn start_queue(&mut self, setup: QueueSetup) -> Result<(), DeviceError> {
        let mut state = self.facts.state();
        let index = usize::from(setup.index);
        assert_eq!(state.accepted, Some(setup.features), "a queue before the features");
        assert!(!state.running[index], "a queue that runs is started");
        assert!(setup.spec.size <= QUEUE_SIZES[index] || self.facts.any_size);
        setup.spec.check().expect("only queues that can be are started");
        if state.refuse_start {
            return Err(DeviceError::Refused("not today".into()));
        }
        state.running[index] = true;
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Result<QueuePosition, DeviceError> {
        let mut state = self.facts.state();
        assert!(std::mem::take(&mut state.running[usize::from(index)]), "a queue that stands");
        Ok(QueuePosition::default())
    }

    fn set_status(&mut self, status: Status) -> Result<(), DeviceError> {
        assert_ne!(status, Status::RESET, "reset is told by reset");
        Ok(())
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        *self.facts.state() = State::default();
        Ok(())
    }

    fn control_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.facts.wake.as_fd())
    }

    fn control_ready(&mut self) -> Vec<DeviceEvent> {
        self.facts.wake.drain();
        std::mem::take(&mut self.facts.state().events)
    }
}
