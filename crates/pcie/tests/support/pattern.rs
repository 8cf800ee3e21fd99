//! A device that fills every writable buffer with a pattern, on the control thread.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use mem::{AddressSpace, MapReader};
use sys::{Epoll, EventFd, Interest};
use virtio::{
    DeviceError, DeviceEvent, DeviceType, Features, Identity, QueueSetup, Reach, VirtioDevice,
};
use virtqueue::{Chain, DeviceQueue, QueueError, QueuePosition, RingFormat};

/// What the device has seen, for the test to look at.
#[derive(Debug, Default)]
pub struct Seen {
    pub started: AtomicU32,
    pub stopped: AtomicU32,
    pub resets: AtomicU32,
    pub features: Mutex<Features>,
    pub start_positions: Mutex<Vec<QueuePosition>>,
    /// Events that the device reports next time.
    pub say: Mutex<Vec<DeviceEvent>>,
}

pub struct Pattern {
    identity: Identity,
    config: [u8; 8],
    epoll: Epoll,
    say: Arc<EventFd>,
    memory: Option<Arc<AddressSpace>>,
    queues: Vec<Option<Running>>,
    seen: Arc<Seen>,
}

struct Running {
    setup: QueueSetup,
    ring: DeviceQueue,
    reader: MapReader,
    chain: Chain,
}

/// Byte `n` of what the device writes into a buffer.
pub fn pattern(n: usize) -> u8 {
    (n * 7 + 3) as u8
}

impl Pattern {
    pub fn new() -> Self {
        Self::of(DeviceType::ENTROPY, &[64, 16])
    }

    pub fn of(device: DeviceType, queue_sizes: &[u16]) -> Self {
        let features = Features::VERSION_1
            | Features::RING_PACKED
            | Features::EVENT_IDX
            | Features::INDIRECT_DESC
            | Features::bit(3);
        let say = Arc::new(EventFd::new().unwrap());
        let epoll = Epoll::new().unwrap();
        epoll.add(say.as_fd(), 0, Interest::Read).unwrap();
        Self {
            identity: Identity {
                device,
                features,
                queue_sizes: queue_sizes.to_vec(),
                config_len: 8,
            },
            config: [1, 2, 3, 4, 5, 6, 7, 8],
            epoll,
            say,
            memory: None,
            queues: queue_sizes.iter().map(|_| None).collect(),
            seen: Arc::default(),
        }
    }

    pub fn seen(&self) -> Arc<Seen> {
        Arc::clone(&self.seen)
    }

    /// Signalled to make the device report [`Seen::say`].
    pub fn say(&self) -> Arc<EventFd> {
        Arc::clone(&self.say)
    }

    fn poll(&mut self, index: usize) -> Result<(), QueueError> {
        let Some(Running { setup, ring, reader, chain }) = &mut self.queues[index] else {
            return Ok(());
        };
        setup.kick.as_ref().unwrap().drain();
        if reader.enter() {
            let map = Arc::clone(reader.resolver().map());
            ring.rebind(&map)?;
        }
        let result = fill(ring, reader, chain);
        if ring.wants_interrupt() {
            setup.call.signal();
        }
        reader.leave();
        result
    }
}

fn fill(
    ring: &mut DeviceQueue,
    reader: &mut MapReader,
    chain: &mut Chain,
) -> Result<(), QueueError> {
    loop {
        while let Some(id) = ring.take(reader.resolver(), chain)? {
            let mut written = 0;
            for segment in chain.writable() {
                let bytes: Vec<u8> =
                    (0..segment.len as usize).map(|n| pattern(written + n)).collect();
                if reader.resolver().map().write(segment.addr, &bytes).is_err() {
                    break;
                }
                written += bytes.len();
            }
            ring.give_back(id, written as u32);
        }
        ring.publish_used();
        if !ring.arm_kick() {
            return Ok(());
        }
    }
}

impl VirtioDevice for Pattern {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn reach(&self) -> Reach {
        Reach::LOCAL
    }

    fn read_config(&mut self, offset: u32, into: &mut [u8]) {
        for (n, byte) in into.iter_mut().enumerate() {
            *byte = self.config.get(offset as usize + n).copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), DeviceError> {
        let end = offset as usize + bytes.len();
        let place = self.config.get_mut(offset as usize..end).filter(|_| end <= 4);
        place.ok_or(DeviceError::BadConfigWrite(offset))?.copy_from_slice(bytes);
        Ok(())
    }

    fn set_memory(&mut self, memory: &Arc<AddressSpace>) -> Result<(), DeviceError> {
        self.memory = Some(Arc::clone(memory));
        Ok(())
    }

    fn memory_changed(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn accept_features(&mut self, features: Features) -> Result<(), DeviceError> {
        if !(features - self.identity.features).is_empty() {
            return Err(DeviceError::BadFeatures(features));
        }
        *self.seen.features.lock().unwrap() = features;
        Ok(())
    }

    fn start_queue(&mut self, setup: QueueSetup) -> Result<(), DeviceError> {
        let index = usize::from(setup.index);
        assert!(self.queues[index].is_none(), "a queue that runs is started");
        let mut reader = setup.memory.reader();
        reader.enter();
        let map = Arc::clone(reader.resolver().map());
        let ring = DeviceQueue::new(&map, &setup.spec)?;
        reader.leave();
        let kick = Arc::clone(setup.kick.as_ref().unwrap());
        self.epoll.add(kick.as_fd(), 1 + index as u64, Interest::Read).unwrap();
        let chain = Chain::with_capacity(usize::from(setup.spec.size));
        self.seen.start_positions.lock().unwrap().push(setup.spec.start_at);
        self.queues[index] = Some(Running { setup, ring, reader, chain });
        self.seen.started.fetch_add(1, Ordering::SeqCst);
        // What came before the doorbell could be heard.
        kick.signal();
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Result<QueuePosition, DeviceError> {
        let running = self.queues[usize::from(index)].take();
        let running = running.ok_or(DeviceError::NoSuchQueue(index))?;
        self.epoll.remove(running.setup.kick.as_ref().unwrap().as_fd());
        self.seen.stopped.fetch_add(1, Ordering::SeqCst);
        Ok(running.ring.position())
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        for index in 0..self.queues.len() {
            let _ = self.stop_queue(index as u16);
        }
        self.memory = None;
        self.seen.resets.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn control_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }

    fn control_ready(&mut self) -> Vec<DeviceEvent> {
        let mut events = Vec::new();
        if self.say.drain() {
            events.append(&mut self.seen.say.lock().unwrap());
        }
        for index in 0..self.queues.len() {
            if let Err(error) = self.poll(index) {
                let reason = error.to_string();
                let _ = self.stop_queue(index as u16);
                events.push(DeviceEvent::QueueBroken { index: index as u16, reason });
            }
        }
        events
    }
}

/// The start of a ring of this format, as a position.
pub fn start(packed: bool) -> QueuePosition {
    QueuePosition::start(if packed { RingFormat::Packed } else { RingFormat::Split })
}
