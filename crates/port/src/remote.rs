//! Host memory by messages through the port, for what can't be mapped.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mem::remote::{OnAnswer, RemoteChannel, RemoteError, RemoteMemory};
use sys::EventFd;
use wire::cosim::{AnswerKind, MAX_DATA, Record, RequestKind, status};

use crate::limits::MAX_TRANSFERS;
use crate::outbound::Outbound;

/// EFAULT (asm-generic/errno-base.h): no such memory, or no bus mastering.
const EFAULT: i32 = 14;

/// The transfers that a model has on their way, by channel.
#[derive(Debug)]
pub struct Transfers {
    outbound: Arc<Outbound>,
    inboxes: Mutex<HashMap<u32, Arc<Inbox>>>,
    in_flight: AtomicUsize,
}

/// Ends of transfers: tag, and what was read.
type Ends = VecDeque<(u32, Result<Vec<u8>, RemoteError>)>;

#[derive(Debug)]
struct Inbox {
    done: Mutex<Ends>,
    event: EventFd,
}

impl Inbox {
    fn done(&self) -> MutexGuard<'_, Ends> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transfers {
    pub fn new(outbound: Arc<Outbound>) -> Self {
        Self { outbound, inboxes: Mutex::default(), in_flight: AtomicUsize::new(0) }
    }

    fn inboxes(&self) -> MutexGuard<'_, HashMap<u32, Arc<Inbox>>> {
        self.inboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The port says how a transfer ended.
    pub fn done(&self, record: &Record<RequestKind>, data: &[u8]) {
        // An answer to nothing must not make the number of those on their way negative.
        let fewer = |count: usize| count.checked_sub(1);
        let _ = self.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer);
        let Some(inbox) = self.inboxes().get(&((record.tag >> 32) as u32)).cloned() else { return };
        let result = match record.detail {
            status::OK => Ok(data.to_vec()),
            _ => Err(RemoteError::Refused(EFAULT)),
        };
        inbox.done().push_back((record.tag as u32, result));
        inbox.event.signal();
    }
}

/// Memory behind the port.
#[derive(Clone, Debug)]
pub struct PortMemory(pub Arc<Transfers>);

impl RemoteMemory for PortMemory {
    fn open(&self) -> Result<Box<dyn RemoteChannel>, RemoteError> {
        let event = EventFd::new().map_err(|_| RemoteError::Closed)?;
        let inbox = Arc::new(Inbox { done: Mutex::default(), event });
        let mut inboxes = self.0.inboxes();
        // Ends: there are far fewer channels than numbers.
        let id = (0..).find(|id| !inboxes.contains_key(id)).ok_or(RemoteError::Busy)?;
        inboxes.insert(id, Arc::clone(&inbox));
        drop(inboxes);
        Ok(Box::new(Channel { transfers: Arc::clone(&self.0), inbox, id }))
    }
}

struct Channel {
    transfers: Arc<Transfers>,
    inbox: Arc<Inbox>,
    id: u32,
}

impl Channel {
    fn submit(&self, record: Record<AnswerKind>, data: &[u8]) -> Result<(), RemoteError> {
        if self.transfers.outbound.is_closed() {
            return Err(RemoteError::Closed);
        }
        if self.transfers.in_flight.load(Ordering::Relaxed) >= MAX_TRANSFERS {
            return Err(RemoteError::Busy);
        }
        self.transfers.in_flight.fetch_add(1, Ordering::Relaxed);
        self.transfers.outbound.send(record, data);
        Ok(())
    }

    fn tag(&self, tag: u32) -> u64 {
        u64::from(self.id) << 32 | u64::from(tag)
    }
}

impl RemoteChannel for Channel {
    fn max_transfer_bytes(&self) -> u32 {
        MAX_DATA as u32
    }

    fn read(&mut self, tag: u32, address: u64, len: u32) -> Result<(), RemoteError> {
        let record = Record::new(AnswerKind::DmaRead).tag(self.tag(tag)).at(address);
        self.submit(record.value(len.into()), &[])
    }

    fn write(&mut self, tag: u32, address: u64, bytes: &[u8]) -> Result<(), RemoteError> {
        self.submit(Record::new(AnswerKind::DmaWrite).tag(self.tag(tag)).at(address), bytes)
    }

    fn flush(&mut self) -> Result<(), RemoteError> {
        if self.transfers.outbound.is_closed() { Err(RemoteError::Closed) } else { Ok(()) }
    }

    fn poll(&mut self, done: &mut OnAnswer<'_>) -> Result<usize, RemoteError> {
        self.inbox.event.drain();
        let answers = std::mem::take(&mut *self.inbox.done());
        for (tag, result) in &answers {
            done(*tag, result.as_deref().map_err(|error| *error));
        }
        if answers.is_empty() && self.transfers.outbound.is_closed() {
            return Err(RemoteError::Closed);
        }
        Ok(answers.len())
    }

    fn ready_fd(&self) -> BorrowedFd<'_> {
        self.inbox.event.as_fd()
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.transfers.inboxes().remove(&self.id);
    }
}
