//! A link to a driver's memory that does its transfers when it is told to, in order, and answers
//! in any order; if its owner is hostile, also wrongly, twice, or to nothing.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use arbitrary::{Result, Unstructured};
use mem::remote::{OnAnswer, RemoteChannel, RemoteError, RemoteMemory};
use mem::{Backing, DriverAddress, MemoryMap, Region};
use sys::EventFd;

/// Longest transfer, so that most are in pieces.
const MAX_BYTES: u32 = 300;

/// The link, for its owner and for whoever uses it.
#[derive(Clone, Debug)]
pub struct NoisyLink {
    state: Arc<Mutex<State>>,
    map: Arc<MemoryMap>,
    ready: Arc<EventFd>,
}

#[derive(Debug, Default)]
struct State {
    /// What was asked for and not done.
    asked: VecDeque<Transfer>,
    answers: VecDeque<(u32, std::result::Result<Vec<u8>, RemoteError>)>,
    /// How many may be under way.
    limit: usize,
}

#[derive(Debug)]
struct Transfer {
    tag: u32,
    at: u64,
    /// What to write, or room for what to read.
    bytes: Vec<u8>,
    write: bool,
}

impl NoisyLink {
    /// A link to `map`.
    pub fn new(map: &Arc<MemoryMap>, limit: usize) -> Self {
        let state = State { limit, ..State::default() };
        let ready = Arc::new(EventFd::new().unwrap());
        Self { state: Arc::new(Mutex::new(state)), map: Arc::clone(map), ready }
    }

    /// The same memory, all of it or only the first region, where the rings are, behind this link.
    pub fn shown(&self, all: bool) -> MemoryMap {
        let mut regions: Vec<Region> = self.map.regions().to_vec();
        let memory: Arc<dyn RemoteMemory> = Arc::new(self.clone());
        for region in regions.iter_mut().take(if all { usize::MAX } else { 1 }) {
            region.backing = Backing::Remote(Arc::clone(&memory));
        }
        MemoryMap::new(regions).unwrap()
    }

    /// Does all that was asked for, honestly, and takes as much as there is from now on.
    pub fn settle(&self) {
        let mut state = self.state.lock().unwrap();
        state.limit = usize::MAX;
        while let Some(transfer) = state.asked.pop_front() {
            let answer = self.perform(transfer);
            state.answers.push_back(answer);
        }
    }

    /// Does some of what was asked for; `hostile` owners answer as they like.
    pub fn step(&self, hostile: bool, noise: &mut Unstructured) -> Result<()> {
        let mut state = self.state.lock().unwrap();
        for _ in 0..noise.int_in_range(1..=8)? {
            let Some(transfer) = state.asked.pop_front() else { break };
            let mut answer = self.perform(transfer);
            if hostile && noise.ratio(1, 8)? {
                answer = lie(answer, noise)?;
                if noise.arbitrary()? {
                    state.answers.push_back(answer.clone());
                }
            }
            let at = noise.int_in_range(0..=state.answers.len())?;
            state.answers.insert(at, answer);
        }
        if hostile && noise.ratio(1, 16)? {
            let nothing = (noise.arbitrary()?, Ok(vec![0; noise.int_in_range(0..=400)?]));
            state.answers.push_front(nothing);
        }
        Ok(())
    }

    fn perform(&self, transfer: Transfer) -> (u32, std::result::Result<Vec<u8>, RemoteError>) {
        let Transfer { tag, at, mut bytes, write } = transfer;
        let at = DriverAddress(at);
        let done = match write {
            true => self.map.write(at, &std::mem::take(&mut bytes)),
            false => self.map.read(at, &mut bytes),
        };
        done.expect("only memory that was mapped is asked for");
        (tag, Ok(bytes))
    }
}

/// Another answer than the right one.
fn lie(
    (tag, answer): (u32, std::result::Result<Vec<u8>, RemoteError>),
    noise: &mut Unstructured,
) -> Result<(u32, std::result::Result<Vec<u8>, RemoteError>)> {
    let mut bytes = answer.unwrap_or_default();
    Ok(match noise.int_in_range(0..=4)? {
        0 => (tag, Err(RemoteError::Refused(noise.arbitrary()?))),
        1 => (tag, Err(RemoteError::TimedOut)),
        2 => (noise.int_in_range(0..=70)?, Ok(bytes)),
        3 => (tag, Ok(vec![0xff; noise.int_in_range(0..=400)?])),
        _ => {
            noise.fill_buffer(&mut bytes)?;
            (tag, Ok(bytes))
        }
    })
}

impl RemoteMemory for NoisyLink {
    fn open(&self) -> std::result::Result<Box<dyn RemoteChannel>, RemoteError> {
        Ok(Box::new(Channel { link: self.clone(), queued: Vec::new() }))
    }
}

struct Channel {
    link: NoisyLink,
    queued: Vec<Transfer>,
}

impl Channel {
    fn queue(&mut self, transfer: Transfer) -> std::result::Result<(), RemoteError> {
        let state = self.link.state.lock().unwrap();
        if self.queued.len() + state.asked.len() >= state.limit {
            return Err(RemoteError::Busy);
        }
        assert!(!transfer.bytes.is_empty() && transfer.bytes.len() <= MAX_BYTES as usize);
        self.queued.push(transfer);
        Ok(())
    }
}

impl RemoteChannel for Channel {
    fn max_transfer_bytes(&self) -> u32 {
        MAX_BYTES
    }

    fn read(&mut self, tag: u32, at: u64, len: u32) -> std::result::Result<(), RemoteError> {
        self.queue(Transfer { tag, at, bytes: vec![0; len as usize], write: false })
    }

    fn write(&mut self, tag: u32, at: u64, bytes: &[u8]) -> std::result::Result<(), RemoteError> {
        self.queue(Transfer { tag, at, bytes: bytes.to_vec(), write: true })
    }

    fn flush(&mut self) -> std::result::Result<(), RemoteError> {
        self.link.state.lock().unwrap().asked.extend(self.queued.drain(..));
        Ok(())
    }

    fn poll(&mut self, done: &mut OnAnswer<'_>) -> std::result::Result<usize, RemoteError> {
        let answers = std::mem::take(&mut self.link.state.lock().unwrap().answers);
        let count = answers.len();
        for (tag, answer) in answers {
            done(tag, answer.as_deref().map_err(|error| *error));
        }
        Ok(count)
    }

    fn ready_fd(&self) -> BorrowedFd<'_> {
        self.link.ready.as_fd()
    }
}
