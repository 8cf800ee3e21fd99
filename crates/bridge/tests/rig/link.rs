use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};

use mem::remote::{OnAnswer, RemoteChannel, RemoteError, RemoteMemory};
use mem::{DriverAddress, MemoryMap};
use sys::EventFd;

use super::Dice;

/// Memory behind a link: another thread does the transfers, in order, and answers in any order.
#[derive(Clone, Debug)]
pub struct FakeRemote(Arc<Link>, Sender<Batch>);

#[derive(Debug)]
pub struct Link {
    map: Arc<MemoryMap>,
    /// Largest transfer.
    pub max_bytes: AtomicU32,
    /// Most transfers at once.
    pub max_flying: AtomicU32,
    /// Batches sent.
    pub batches: AtomicU64,
    /// Transfers at these many bytes into the test's patience fail; 0 for none.
    pub fail_after: AtomicU64,
}

enum Transfer {
    Read(u32, u64, u32),
    Write(u32, u64, Vec<u8>),
}

/// Transfers that were sent together, and where the answers go.
struct Batch {
    transfers: Vec<Transfer>,
    answers: Answers,
    event: Arc<EventFd>,
}

type Answers = Arc<Mutex<VecDeque<(u32, Result<Vec<u8>, RemoteError>)>>>;

struct Channel {
    link: Arc<Link>,
    queued: Vec<Transfer>,
    flying: u32,
    server: Sender<Batch>,
    answers: Answers,
    event: Arc<EventFd>,
}

impl FakeRemote {
    pub fn new(map: Arc<MemoryMap>) -> Self {
        let link = Arc::new(Link {
            map,
            max_bytes: AtomicU32::new(1 << 20),
            max_flying: AtomicU32::new(128),
            batches: AtomicU64::new(0),
            fail_after: AtomicU64::new(0),
        });
        let (server, batches) = channel::<Batch>();
        let served = Arc::clone(&link);
        std::thread::spawn(move || {
            let mut dice = Dice(77);
            for Batch { transfers, answers, event } in batches {
                let mut done: Vec<_> = transfers.into_iter().map(|t| served.perform(t)).collect();
                while !done.is_empty() {
                    let at = dice.below(done.len() as u64) as usize;
                    answers.lock().unwrap().push_back(done.swap_remove(at));
                }
                event.signal();
            }
        });
        Self(link, server)
    }

    pub fn link(&self) -> &Link {
        &self.0
    }
}

impl RemoteMemory for FakeRemote {
    fn open(&self) -> Result<Box<dyn RemoteChannel>, RemoteError> {
        Ok(Box::new(Channel {
            link: Arc::clone(&self.0),
            queued: Vec::new(),
            flying: 0,
            server: self.1.clone(),
            answers: Answers::default(),
            event: super::event(),
        }))
    }
}

impl Link {
    fn perform(&self, transfer: Transfer) -> (u32, Result<Vec<u8>, RemoteError>) {
        let refused = |_| RemoteError::Refused(14);
        let left = self.fail_after.load(Ordering::SeqCst);
        let fails = left == 1;
        if left > 0 {
            self.fail_after.store(left - 1, Ordering::SeqCst);
        }
        match transfer {
            Transfer::Read(tag, ..) | Transfer::Write(tag, ..) if fails => {
                (tag, Err(RemoteError::Refused(5)))
            }
            Transfer::Read(tag, at, len) => {
                let mut bytes = vec![0; len as usize];
                let result = self.map.read(DriverAddress(at), &mut bytes);
                (tag, result.map(|()| bytes).map_err(refused))
            }
            Transfer::Write(tag, at, bytes) => {
                let result = self.map.write(DriverAddress(at), &bytes);
                (tag, result.map(|()| Vec::new()).map_err(refused))
            }
        }
    }
}

impl Channel {
    fn queue(&mut self, transfer: Transfer) -> Result<(), RemoteError> {
        if self.flying >= self.link.max_flying.load(Ordering::Relaxed) {
            return Err(RemoteError::Busy);
        }
        self.flying += 1;
        self.queued.push(transfer);
        Ok(())
    }
}

impl RemoteChannel for Channel {
    fn max_transfer_bytes(&self) -> u32 {
        self.link.max_bytes.load(Ordering::Relaxed)
    }

    fn read(&mut self, tag: u32, address: u64, len: u32) -> Result<(), RemoteError> {
        assert!(len <= self.max_transfer_bytes());
        self.queue(Transfer::Read(tag, address, len))
    }

    fn write(&mut self, tag: u32, address: u64, bytes: &[u8]) -> Result<(), RemoteError> {
        assert!(bytes.len() as u32 <= self.max_transfer_bytes());
        self.queue(Transfer::Write(tag, address, bytes.to_vec()))
    }

    fn flush(&mut self) -> Result<(), RemoteError> {
        self.link.batches.fetch_add(1, Ordering::SeqCst);
        let transfers = std::mem::take(&mut self.queued);
        let (answers, event) = (Arc::clone(&self.answers), Arc::clone(&self.event));
        self.server.send(Batch { transfers, answers, event }).map_err(|_| RemoteError::Closed)
    }

    fn poll(&mut self, done: &mut OnAnswer<'_>) -> Result<usize, RemoteError> {
        self.event.drain();
        let answers = std::mem::take(&mut *self.answers.lock().unwrap());
        self.flying -= answers.len() as u32;
        let count = answers.len();
        for (tag, answer) in answers {
            done(tag, answer.as_deref().map_err(|error| *error));
        }
        Ok(count)
    }

    fn ready_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
