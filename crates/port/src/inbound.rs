//! What comes to a model from its port: the ring of requests.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sys::{Epoll, EventFd, Interest};
use wire::cosim::{Record, RequestKind};

use crate::area::Shared;
use crate::outbound::Outbound;
use crate::remote::Transfers;
use crate::ring::{Consumer, RingError};

/// A request and its data.
pub type Request = (Record<RequestKind>, Vec<u8>);

/// The ring of requests.
#[derive(Debug)]
pub struct Inbound {
    queue: Mutex<Queue>,
    wake_model: EventFd,
    transfers: Arc<Transfers>,
    outbound: Arc<Outbound>,
    /// Ends of transfers were handed on since this was last asked. One thread sets and asks; it is
    /// atomic to be shared.
    has_ends: AtomicBool,
}

#[derive(Debug)]
struct Queue {
    consumer: Consumer<RequestKind>,
    /// Came while somebody waited for a transfer.
    deferred: VecDeque<Request>,
}

impl Inbound {
    pub fn new(
        shared: &Shared,
        wake_model: OwnedFd,
        transfers: Arc<Transfers>,
        outbound: Arc<Outbound>,
    ) -> io::Result<Self> {
        let queue = Queue { consumer: Consumer::new(shared.requests()), deferred: VecDeque::new() };
        let wake_model = EventFd::from_fd(wake_model)?;
        let has_ends = AtomicBool::new(false);
        Ok(Self { queue: Mutex::new(queue), wake_model, transfers, outbound, has_ends })
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn event(&self) -> &EventFd {
        &self.wake_model
    }

    /// The next request that is not the end of a transfer, which is handed on at once.
    pub fn take(&self, data: &mut Vec<u8>) -> Result<Option<Record<RequestKind>>, RingError> {
        let mut queue = self.queue();
        if let Some((record, bytes)) = queue.deferred.pop_front() {
            *data = bytes;
            return Ok(Some(record));
        }
        self.take_from_ring(&mut queue.consumer, data)
    }

    fn take_from_ring(
        &self,
        consumer: &mut Consumer<RequestKind>,
        data: &mut Vec<u8>,
    ) -> Result<Option<Record<RequestKind>>, RingError> {
        loop {
            match consumer.pop(data)? {
                Some(record) if record.kind == RequestKind::DmaDone => {
                    self.transfers.done(&record, data);
                    self.has_ends.store(true, Ordering::Relaxed);
                }
                None => {
                    // The port waits for room in an event that is its own.
                    if consumer.give_room() {
                        self.outbound.nudge();
                    }
                    return Ok(None);
                }
                record => return Ok(record),
            }
        }
    }

    /// Whether ends of transfers were handed on since this was last asked.
    pub fn has_ends(&self) -> bool {
        self.has_ends.swap(false, Ordering::Relaxed)
    }

    /// Whether there is nothing to take.
    pub fn is_empty(&self) -> bool {
        let queue = self.queue();
        queue.deferred.is_empty() && queue.consumer.is_empty()
    }

    /// Asks to be woken by the next request; false if there is one already.
    pub fn sleep(&self) -> bool {
        let queue = self.queue();
        queue.deferred.is_empty() && queue.consumer.sleep()
    }

    /// Asks for no more events.
    pub fn awake(&self) {
        self.queue().consumer.wake();
    }

    /// Takes what is in the ring, and keeps everything but ends of transfers for later.
    fn defer(&self) -> Result<(), RingError> {
        let mut queue = self.queue();
        let Queue { consumer, deferred } = &mut *queue;
        loop {
            let mut data = Vec::new();
            match self.take_from_ring(consumer, &mut data)? {
                Some(record) => deferred.push_back((record, data)),
                None => return Ok(()),
            }
        }
    }
}

/// Waiting in the middle of a request for transfers to host memory. Other requests come later.
///
/// The driver's processor stands still while a read waits, and memory that is reached by messages
/// may need that very processor: such a read is answered with all ones after the port's deadline,
/// and the wait ends all the same.
#[derive(Clone, Debug)]
pub struct Wait(pub(crate) Arc<Inbound>);

impl Wait {
    /// Whether a request has come that nobody has taken yet.
    #[must_use]
    pub fn has_requests(&self) -> bool {
        !self.0.is_empty()
    }

    /// Waits until `is_done`, which looks at what has come, at most for `limit`; whether it is.
    pub fn until(&self, limit: Duration, mut is_done: impl FnMut() -> bool) -> bool {
        let end = Instant::now() + limit;
        let Ok(epoll) = Epoll::new() else { return is_done() };
        let _ = epoll.add(self.0.wake_model.as_fd(), 0, Interest::Read);
        let mut ready = Vec::new();
        loop {
            if self.0.defer().is_err() {
                self.0.outbound.close();
            }
            if is_done() {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || self.0.outbound.is_closed() {
                return false;
            }
            self.0.outbound.flush();
            if self.0.queue().consumer.sleep() {
                // Now and then: the port may have gone without a word.
                let _ = epoll.wait(&mut ready, Some(left.min(Duration::from_millis(100))));
                self.0.wake_model.drain();
            }
            self.0.awake();
        }
    }
}
