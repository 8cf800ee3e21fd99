//! Host memory by DMA_READ and DMA_WRITE: [`RemoteMemory`] over the socket that everything else
//! uses.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use mem::remote::{OnAnswer, RemoteChannel, RemoteError, RemoteMemory};
use sys::EventFd;
use wire::vfio_user::{Header, Reply, Request};

use super::limits::{
    DMA_LIMIT, MAX_DMA_BYTES, MAX_DMA_IN_FLIGHT, MAX_DMA_PER_CHANNEL, MAX_WAITING_BYTES,
};
use super::outbox::Outbox;

/// The transfers in flight on one connection.
#[derive(Debug)]
pub struct Messages {
    outbox: Arc<Outbox>,
    pending: Mutex<Pending>,
    /// Largest transfer in bytes that the client takes.
    max_transfer: AtomicU32,
    used: AtomicBool,
}

#[derive(Debug, Default)]
struct Pending {
    waiting: HashMap<u16, Waiting>,
    next_id: u16,
    closed: bool,
}

#[derive(Debug)]
struct Waiting {
    inbox: Arc<Inbox>,
    tag: u32,
    address: u64,
    /// Bytes wanted, for a read.
    read_len: Option<u32>,
    deadline: Instant,
}

/// Answers on their way to one channel.
#[derive(Debug)]
struct Inbox {
    answers: Mutex<Answers>,
    event: EventFd,
}

#[derive(Debug, Default)]
struct Answers {
    bytes: Vec<u8>,
    done: Vec<(u32, Result<usize, RemoteError>)>,
}

impl Messages {
    pub fn new(outbox: Arc<Outbox>) -> Arc<Self> {
        Arc::new(Self {
            outbox,
            pending: Mutex::default(),
            max_transfer: AtomicU32::new(MAX_DMA_BYTES),
            used: AtomicBool::new(false),
        })
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the client has negotiated, as far as that is safe.
    pub fn set_max_transfer(&self, bytes: u64) {
        let bytes = bytes.clamp(1, MAX_DMA_BYTES.into()) as u32;
        self.max_transfer.store(bytes, Ordering::Relaxed);
    }

    /// Whether anybody has ever opened a channel.
    pub fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// A reply from the client. Nothing happens if nobody waits for it: it is late, or made up.
    pub fn reply(&self, header: &Header, payload: &[u8], fds: usize) {
        let Some(waiting) = self.pending().waiting.remove(&header.message_id) else {
            tracing::debug!(id = header.message_id, "a reply that nobody waits for");
            return;
        };
        let decoded = Reply::decode(header, payload, fds);
        let answer: Result<&[u8], _> = match (decoded, waiting.read_len) {
            (Ok(Reply::Failed(errno)), _) => Err(RemoteError::Refused(errno as i32)),
            (Ok(Reply::DmaRead { address, data }), Some(len))
                if address == waiting.address && data.len() == len as usize =>
            {
                Ok(data)
            }
            (Ok(Reply::Done | Reply::DmaWrite { .. }), None) => Ok(&[]),
            // EPROTO: the answer does not belong to the question.
            _ => Err(RemoteError::Refused(71)),
        };
        waiting.inbox.put(waiting.tag, answer);
    }

    /// Gives up transfers whose answer is too late.
    pub fn expire(&self, now: Instant) {
        let mut late = Vec::new();
        self.pending().waiting.retain(|_, waiting| {
            let keep = waiting.deadline > now;
            if !keep {
                late.push((Arc::clone(&waiting.inbox), waiting.tag));
            }
            keep
        });
        late.iter().for_each(|(inbox, tag)| inbox.put(*tag, Err(RemoteError::TimedOut)));
    }

    /// The connection is gone: every transfer fails, now and from now on.
    pub fn close(&self) {
        let mut pending = self.pending();
        pending.closed = true;
        let waiting = std::mem::take(&mut pending.waiting);
        drop(pending);
        waiting.values().for_each(|w| w.inbox.put(w.tag, Err(RemoteError::Closed)));
    }
}

impl Inbox {
    fn put(&self, tag: u32, answer: Result<&[u8], RemoteError>) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let was_empty = answers.done.is_empty();
        let done = answer.map(|bytes| {
            answers.bytes.extend_from_slice(bytes);
            bytes.len()
        });
        answers.done.push((tag, done));
        drop(answers);
        if was_empty {
            self.event.signal();
        }
    }
}

/// The client's memory, as a region's backing.
#[derive(Clone, Debug)]
pub struct MessageMemory(pub Arc<Messages>);

impl RemoteMemory for MessageMemory {
    fn open(&self) -> Result<Box<dyn RemoteChannel>, RemoteError> {
        if self.0.pending().closed {
            return Err(RemoteError::Closed);
        }
        self.0.used.store(true, Ordering::Relaxed);
        // Without an eventfd there is no way to learn of answers: as good as no link.
        Channel::new(&self.0).map(|channel| Box::new(channel) as _).map_err(|_| RemoteError::Closed)
    }
}

/// One queue's way to the client's memory.
struct Channel {
    messages: Arc<Messages>,
    inbox: Arc<Inbox>,
    in_flight: u32,
    /// Swapped with the inbox, so that `done` is called without a lock.
    taken: Answers,
}

impl Channel {
    fn new(messages: &Arc<Messages>) -> io::Result<Self> {
        let inbox = Arc::new(Inbox { answers: Mutex::default(), event: EventFd::new()? });
        let messages = Arc::clone(messages);
        Ok(Self { messages, inbox, in_flight: 0, taken: Answers::default() })
    }

    fn submit(
        &mut self,
        tag: u32,
        request: &Request<'_>,
        read_len: Option<u32>,
    ) -> Result<(), RemoteError> {
        let (Request::DmaRead { address, .. } | Request::DmaWrite { address, .. }) = *request
        else {
            return Err(RemoteError::Refused(22));
        };
        if self.in_flight >= MAX_DMA_PER_CHANNEL
            || self.messages.outbox.waiting() > MAX_WAITING_BYTES
        {
            return Err(RemoteError::Busy);
        }
        let mut pending = self.messages.pending();
        if pending.closed {
            return Err(RemoteError::Closed);
        }
        if pending.waiting.len() >= MAX_DMA_IN_FLIGHT {
            return Err(RemoteError::Busy);
        }
        // Ends: fewer than 65536 ids are taken.
        while pending.waiting.contains_key(&pending.next_id) {
            pending.next_id = pending.next_id.wrapping_add(1);
        }
        let id = pending.next_id;
        pending.next_id = id.wrapping_add(1);
        let inbox = Arc::clone(&self.inbox);
        let deadline = Instant::now() + DMA_LIMIT;
        pending.waiting.insert(id, Waiting { inbox, tag, address, read_len, deadline });
        drop(pending);
        self.messages.outbox.queue(|out| request.encode(id, 0, out), Vec::new());
        self.in_flight += 1;
        Ok(())
    }
}

impl RemoteChannel for Channel {
    fn max_transfer_bytes(&self) -> u32 {
        self.messages.max_transfer.load(Ordering::Relaxed)
    }

    fn read(&mut self, tag: u32, address: u64, len: u32) -> Result<(), RemoteError> {
        self.submit(tag, &Request::DmaRead { address, count: len.into() }, Some(len))
    }

    fn write(&mut self, tag: u32, address: u64, bytes: &[u8]) -> Result<(), RemoteError> {
        self.submit(tag, &Request::DmaWrite { address, data: bytes }, None)
    }

    fn flush(&mut self) -> Result<(), RemoteError> {
        if self.messages.outbox.flush_from_afar() { Ok(()) } else { Err(RemoteError::Closed) }
    }

    fn poll(&mut self, done: &mut OnAnswer<'_>) -> Result<usize, RemoteError> {
        self.inbox.event.drain();
        let mut answers = self.inbox.answers.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut *answers, &mut self.taken);
        drop(answers);
        let count = self.taken.done.len();
        self.in_flight = self.in_flight.saturating_sub(count as u32);
        let mut at = 0;
        for (tag, answer) in self.taken.done.drain(..) {
            match answer {
                Ok(len) => {
                    done(tag, Ok(&self.taken.bytes[at..at + len]));
                    at += len;
                }
                Err(error) => done(tag, Err(error)),
            }
        }
        self.taken.bytes.clear();
        if count == 0 && self.messages.pending().closed {
            return Err(RemoteError::Closed);
        }
        Ok(count)
    }

    fn ready_fd(&self) -> BorrowedFd<'_> {
        self.inbox.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use sys::Connection;

    use super::*;

    /// QEMU 11.1 sends an answer with one call and does not look at how much of it went.
    #[test]
    fn an_answer_is_sent_whole_or_not_at_all() {
        let (ours, client) = Connection::pair().unwrap();
        let messages = Messages::new(Arc::new(Outbox::new(Arc::new(ours)).unwrap()));
        messages.set_max_transfer(1 << 20);
        let mut channel = MessageMemory(messages).open().unwrap();
        let len = channel.max_transfer_bytes();
        assert!(len >= 32 << 10, "{len} bytes: too many round trips");
        let mut asked = 0;
        while channel.read(asked, 0, len).is_ok() {
            asked += 1;
        }
        channel.flush().unwrap();
        let mut answer = Vec::new();
        let data = vec![7; len as usize];
        Reply::DmaRead { address: 0, data: &data }.encode(0, 0, &mut answer);
        let mut sent = 0;
        while let Some(count) = client.send(&[IoSlice::new(&answer)], &[]).unwrap() {
            assert_eq!(count, answer.len(), "answer {sent} in part");
            sent += 1;
        }
        assert!(sent < asked, "the socket takes all {asked} answers");
    }
}
