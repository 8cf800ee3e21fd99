use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sys::{Epoll, EventFd, Interest, Ready};
use virtio::Features;
use virtqueue::{
    DriverQueue, QueueAddresses, QueuePosition, QueueSpec, RingFormat, Segment, ring_layout,
};

use crate::{Access, DriverError, GuestMemory};

/// What a driver wants of a queue.
#[derive(Clone, Copy, Debug)]
pub struct QueueWish {
    /// Number of the queue.
    pub index: u16,
    /// Descriptors, at most; the device may have fewer.
    pub size: u16,
    /// The features that were accepted: they say how the ring is laid out.
    pub features: Features,
}

/// A queue in use: the ring, its doorbell and its interrupt. `T` is what the driver remembers of
/// each request.
pub struct Queue<T> {
    ring: DriverQueue<T>,
    bell: Box<dyn FnMut() + Send>,
    interrupt: Arc<EventFd>,
    epoll: Epoll,
    ready: Vec<Ready>,
    kicks: u64,
    interrupts: u64,
}

impl<T> Queue<T> {
    /// Lays the rings out in `memory` and starts the queue.
    ///
    /// # Errors
    /// The device has no such queue, or does not take it.
    pub fn start(
        access: &mut dyn Access,
        memory: &mut GuestMemory,
        wish: QueueWish,
    ) -> Result<Self, DriverError> {
        let max = access.max_queue_size(wish.index)?;
        if max == 0 {
            return Err(DriverError::Protocol(format!("the device has no queue {}", wish.index)));
        }
        let packed = wish.features.has(Features::RING_PACKED);
        let format = if packed { RingFormat::Packed } else { RingFormat::Split };
        let size = wish.size.min(max);
        let layout = ring_layout(format, size);
        let mut area = |len: usize, align: usize| -> Result<_, DriverError> {
            let buffer = memory.allocate(len, align.max(64))?;
            Ok(buffer.address)
        };
        let addresses = QueueAddresses {
            descriptor: area(layout.descriptor_bytes, layout.descriptor_alignment)?,
            driver: area(layout.driver_bytes, layout.driver_alignment)?,
            device: area(layout.device_bytes, layout.device_alignment)?,
        };
        let spec = QueueSpec {
            size,
            format,
            indirect: false,
            event_idx: wish.features.has(Features::EVENT_IDX),
            in_order: wish.features.has(Features::IN_ORDER),
            addresses,
            start_at: QueuePosition::start(format),
        };
        let ring = DriverQueue::new(&memory.map()?, &spec, None)?;
        let bell = access.start_queue(wish.index, &spec)?;
        let epoll = Epoll::new().map_err(DriverError::system("waiting for interrupts"))?;
        epoll
            .add(bell.interrupt.as_fd(), 0, Interest::Read)
            .map_err(DriverError::system("waiting for interrupts"))?;
        Ok(Self {
            ring,
            bell: bell.ring,
            interrupt: bell.interrupt,
            epoll,
            ready: Vec::with_capacity(4),
            kicks: 0,
            interrupts: 0,
        })
    }

    /// Offers a chain; gives `context` back if there is no room.
    ///
    /// # Errors
    /// The ring is full.
    pub fn offer(
        &mut self,
        readable: &[Segment],
        writable: &[Segment],
        context: T,
    ) -> Result<(), T> {
        self.ring.offer(readable, writable, context)
    }

    /// Shows the device what was offered, and rings if it wants that.
    pub fn publish(&mut self) {
        self.ring.publish_available();
        if self.ring.wants_kick() {
            self.kicks += 1;
            (self.bell)();
        }
    }

    /// The next used chain, if there is one.
    ///
    /// # Errors
    /// The device broke a ring rule.
    pub fn take_used(&mut self) -> Result<Option<(T, u32)>, DriverError> {
        Ok(self.ring.take_used()?)
    }

    /// Sleeps until the device has used something.
    ///
    /// # Errors
    /// [`DriverError::TimedOut`] after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<(), DriverError> {
        let deadline = Instant::now() + limit;
        while !self.ring.arm_interrupt() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(DriverError::TimedOut("waiting for a request to complete"));
            }
            self.epoll
                .wait(&mut self.ready, Some(left))
                .map_err(DriverError::system("waiting for interrupts"))?;
            if self.interrupt.drain() {
                self.interrupts += 1;
            }
        }
        self.ring.disarm_interrupt();
        Ok(())
    }

    /// Chains the device has.
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        self.ring.in_flight()
    }

    /// Doorbells rung and interrupts taken so far.
    #[must_use]
    pub fn notifications(&self) -> (u64, u64) {
        (self.kicks, self.interrupts)
    }

    /// Tears the queue down, handing back what the driver remembered of the requests in flight.
    pub fn drain(&mut self, each: impl FnMut(T)) {
        self.ring.drain(each);
    }
}
