use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use mem::{AddressSpace, MapReader};
use sys::EventFd;
use virtio::{
    DeviceError, DeviceEvent, DeviceType, EventSink, EventSource, Features, Identity, Notifier,
    QueueSetup, Reach, Sharing, VirtioDevice,
};
use virtqueue::{Chain, ChainId, DeviceQueue, QueuePosition};
use worker::{PoolOptions, Progress, Task, TaskHandle, Workers};

use super::pattern;

/// Chains kept back to complete them in another order, and to have some begun when the device is
/// killed.
const KEPT: usize = 5;

/// A device whose requests say what they carry and what they want back. Completes out of order
/// unless told to keep it.
pub struct EchoDevice {
    identity: Identity,
    shared: Arc<Shared>,
    events: EventSource,
}

/// What the test holds of it.
#[derive(Clone)]
pub struct EchoHandle {
    pub shared: Arc<Shared>,
}

pub struct Shared {
    pub state: Mutex<State>,
    sink: EventSink,
    pub reach: Mutex<Reach>,
    pub requests: AtomicU64,
    pub starts: AtomicU64,
}

pub struct State {
    pub workers: Arc<Workers>,
    pub queues: Vec<Option<TaskHandle<EchoQueue>>>,
    pub setups: Vec<Option<QueueSetup>>,
    pub memory: Option<Arc<AddressSpace>>,
    pub gone: bool,
    /// Memory of the driver is not taken.
    pub refuses: bool,
    /// Started queues are only noted, for tests that play the device themselves.
    pub passive: bool,
}

impl EchoDevice {
    pub fn new(features: Features, size: u16) -> (Self, EchoHandle) {
        let (sink, events) = EventSource::new().unwrap();
        let identity = Identity {
            device: DeviceType(63),
            features,
            queue_sizes: vec![size; 2],
            config_len: 0,
        };
        let state = State {
            workers: Workers::start(&PoolOptions::with_threads(1)).unwrap(),
            queues: vec![None, None],
            setups: vec![None, None],
            memory: None,
            gone: false,
            refuses: false,
            passive: false,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            sink,
            reach: Mutex::new(Reach::LOCAL),
            requests: AtomicU64::new(0),
            starts: AtomicU64::new(0),
        });
        (Self { identity, shared: Arc::clone(&shared), events }, EchoHandle { shared })
    }
}

impl EchoHandle {
    /// As `kill -9`: whatever was begun is never completed.
    pub fn kill(&self) {
        let mut state = self.shared.state.lock().unwrap();
        state.gone = true;
        for queue in &mut state.queues {
            drop(queue.take().and_then(TaskHandle::stop));
        }
        self.shared.sink.send(DeviceEvent::Gone("killed".into()));
    }

    /// It is back and waits for its queues to be started.
    pub fn revive(&self) {
        self.shared.state.lock().unwrap().gone = false;
        self.shared.sink.send(DeviceEvent::Back);
    }

    /// What queue 0 was started with.
    pub fn setup(&self) -> QueueSetup {
        self.shared.state.lock().unwrap().setups[0].clone().unwrap()
    }
}

impl VirtioDevice for EchoDevice {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn reach(&self) -> Reach {
        *self.shared.reach.lock().unwrap()
    }

    fn read_config(&mut self, _: u32, into: &mut [u8]) {
        into.fill(0);
    }

    fn write_config(&mut self, offset: u32, _: &[u8]) -> Result<(), DeviceError> {
        Err(DeviceError::BadConfigWrite(offset))
    }

    fn set_memory(&mut self, memory: &Arc<AddressSpace>) -> Result<(), DeviceError> {
        self.shared.state.lock().unwrap().memory = Some(Arc::clone(memory));
        Ok(())
    }

    fn memory_changed(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn sharing(&self) -> Sharing {
        Sharing::All
    }

    fn accept_features(&mut self, features: Features) -> Result<(), DeviceError> {
        let state = self.shared.state.lock().unwrap();
        let regions = state.memory.as_ref().map_or(0, |memory| memory.current().regions().len());
        if state.refuses && regions > 1 {
            return Err(DeviceError::Refused("it has no size".into()));
        }
        if self.identity.features.has(features) {
            Ok(())
        } else {
            Err(DeviceError::BadFeatures(features))
        }
    }

    fn start_queue(&mut self, setup: QueueSetup) -> Result<(), DeviceError> {
        let mut state = self.shared.state.lock().unwrap();
        if state.gone {
            return Err(DeviceError::Gone("killed".into()));
        }
        self.shared.starts.fetch_add(1, Ordering::SeqCst);
        let index = usize::from(setup.index);
        state.setups[index] = Some(setup.clone());
        if !state.passive {
            let queue = EchoQueue::new(setup, Arc::clone(&self.shared))?;
            state.queues[index] = Some(state.workers.spawn(queue));
        }
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Result<QueuePosition, DeviceError> {
        let mut state = self.shared.state.lock().unwrap();
        if state.gone {
            return Err(DeviceError::Gone("killed".into()));
        }
        if state.passive {
            return Ok(QueuePosition::default());
        }
        let queue = state.queues[usize::from(index)].take();
        let queue = queue.and_then(TaskHandle::stop).ok_or(DeviceError::NoSuchQueue(index))?;
        Ok(queue.finish())
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        self.shared.state.lock().unwrap().queues = vec![None, None];
        Ok(())
    }

    fn control_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.events.as_fd())
    }

    fn control_ready(&mut self) -> Vec<DeviceEvent> {
        self.events.drain()
    }
}

pub struct EchoQueue {
    queue: DeviceQueue,
    memory: MapReader,
    kick: Arc<EventFd>,
    call: Notifier,
    chain: Chain,
    kept: Vec<(ChainId, u32)>,
    in_order: bool,
    shared: Arc<Shared>,
    bytes: Vec<u8>,
}

impl EchoQueue {
    fn new(setup: QueueSetup, shared: Arc<Shared>) -> Result<Self, DeviceError> {
        Ok(Self {
            queue: DeviceQueue::new(&setup.memory.current(), &setup.spec)?,
            memory: setup.memory.reader(),
            kick: setup.kick.unwrap(),
            call: setup.call,
            chain: Chain::with_capacity(setup.spec.size.into()),
            kept: Vec::with_capacity(KEPT + 1),
            in_order: setup.spec.in_order,
            shared,
            bytes: Vec::with_capacity(1 << 20),
        })
    }

    /// Does the request in `chain`; returns the bytes written.
    fn serve(&mut self) -> u32 {
        let memory = self.memory.resolver();
        self.bytes.clear();
        for segment in self.chain.readable() {
            let from = self.bytes.len();
            self.bytes.resize(from + segment.len as usize, 0);
            memory.map().read(segment.addr, &mut self.bytes[from..]).expect("in our memory");
        }
        if self.bytes.len() < 8 {
            return 0;
        }
        let word = |at: usize| u32::from_le_bytes(self.bytes[at..at + 4].try_into().unwrap());
        let (wanted, seed) = (word(0), word(4));
        for (at, byte) in self.bytes[8..].iter().enumerate() {
            assert_eq!(*byte, pattern(seed, at), "payload of request {seed} at {at}");
        }
        let mut at = 0;
        for segment in self.chain.writable() {
            let len = (segment.len as usize).min(wanted as usize - at);
            self.bytes.clear();
            self.bytes.extend((at..at + len).map(|at| pattern(!seed, at)));
            memory.map().write(segment.addr, &self.bytes).expect("in our memory");
            at += len;
        }
        self.shared.requests.fetch_add(1, Ordering::Relaxed);
        at as u32
    }

    fn give_back(&mut self, all: bool) -> bool {
        let keep = if all { 0 } else { KEPT };
        if self.kept.len() <= keep {
            return false;
        }
        if !self.in_order {
            self.kept.reverse();
        }
        while self.kept.len() > keep {
            let (id, written) = self.kept.remove(0);
            self.queue.give_back(id, written);
        }
        self.queue.publish_used();
        if self.queue.wants_interrupt() {
            self.call.signal();
        }
        true
    }

    /// Completes all that was begun, or in order takes it that it was not.
    fn finish(mut self) -> QueuePosition {
        self.memory.enter();
        if self.in_order {
            while let Some((id, _)) = self.kept.pop() {
                self.queue.untake(id);
            }
        }
        self.give_back(true);
        self.queue.position()
    }
}

impl Drop for EchoQueue {
    fn drop(&mut self) {
        self.kept.drain(..).for_each(|(id, _)| id.abandon());
    }
}

impl Task for EchoQueue {
    fn wake_on(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.kick.as_fd()]
    }

    fn poll(&mut self, budget: u32) -> Progress {
        let map = self.memory.enter().then(|| Arc::clone(self.memory.resolver().map()));
        if let Some(map) = map {
            self.queue.rebind(&map).unwrap();
        }
        let mut done = false;
        for _ in 0..budget {
            let Some(id) = self.queue.take(self.memory.resolver(), &mut self.chain).unwrap() else {
                break;
            };
            let written = self.serve();
            self.kept.push((id, written));
            done |= self.give_back(false) | true;
        }
        if !done {
            done = self.give_back(true);
        }
        self.memory.leave();
        if done { Progress::Worked } else { Progress::Idle }
    }

    fn arm(&mut self) -> bool {
        self.queue.arm_kick()
    }

    fn disarm(&mut self) {
        self.queue.disarm_kick();
    }
}
