//! Reads and writes of host memory by a function, whatever way leads there.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use mem::remote::{RemoteChannel, RemoteError};
use mem::{Backing, DriverAddress, MapReader, MemoryError, Span};
use sys::{Epoll, Interest};

use crate::HostPort;

/// Largest transfer in bytes: what a function of PCIe would need thousands of packets for.
pub const MAX_DMA_BYTES: usize = 16 << 20;

/// Longest message for memory that is reached by messages; longer ones hold up what is behind them.
const MAX_PIECE: u32 = 64 << 10;

/// Why a transfer failed. Part of it may have been done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DmaError {
    /// Nothing is at this address, or it can't be written.
    #[error("no such host memory at {0:#x}")]
    NoMemory(u64),
    /// More than [`MAX_DMA_BYTES`].
    #[error("a transfer of {0} bytes is too long")]
    TooLong(usize),
    /// The other side of the memory did not take the message.
    #[error(transparent)]
    Remote(#[from] RemoteError),
}

/// One function's transfers, several at a time. What is mapped is copied at once; what is not goes
/// in messages, and is done later.
pub struct Dma {
    reader: MapReader,
    channel: Option<Box<dyn RemoteChannel>>,
    epoll: Epoll,
    jobs: HashMap<u64, Job>,
    /// Messages on their way, by their tags.
    flying: HashMap<u32, Piece>,
    backlog: VecDeque<Piece>,
    next_job: u64,
    next_piece: u32,
    done: VecDeque<(u64, Result<Vec<u8>, DmaError>)>,
}

/// A transfer of which something is still to come.
struct Job {
    tag: u64,
    /// What was read so far, or is to be written.
    bytes: Vec<u8>,
    is_read: bool,
    pieces: usize,
    failed: Option<DmaError>,
}

#[derive(Clone, Copy)]
struct Piece {
    job: u64,
    address: u64,
    /// Where its bytes are in the job.
    offset: usize,
    len: u32,
}

impl Dma {
    /// A way to the memory of `host`.
    ///
    /// # Errors
    /// The system is out of file descriptors.
    pub fn new(host: &HostPort) -> io::Result<Self> {
        Ok(Self {
            reader: host.memory.reader(),
            channel: None,
            epoll: Epoll::new()?,
            jobs: HashMap::new(),
            flying: HashMap::new(),
            backlog: VecDeque::new(),
            next_job: 0,
            next_piece: 0,
            done: VecDeque::new(),
        })
    }

    /// Reads `len` bytes at `at`; [`Dma::poll`] has them, at once if the memory is mapped.
    pub fn read(&mut self, tag: u64, at: DriverAddress, len: usize) {
        let bytes = if len <= MAX_DMA_BYTES { vec![0; len] } else { Vec::new() };
        let failed = (len > MAX_DMA_BYTES).then_some(DmaError::TooLong(len));
        self.start(at, Job { tag, bytes, is_read: true, pieces: 0, failed });
    }

    /// Writes `bytes` at `at`; [`Dma::poll`] says when that is done.
    pub fn write(&mut self, tag: u64, at: DriverAddress, bytes: &[u8]) {
        let len = bytes.len();
        let failed = (len > MAX_DMA_BYTES).then_some(DmaError::TooLong(len));
        let bytes = if failed.is_none() { bytes.to_vec() } else { Vec::new() };
        self.start(at, Job { tag, bytes, is_read: false, pieces: 0, failed });
    }

    /// Reads at once and without a tag, if all of it is mapped in one piece and nothing is on its
    /// way that this could overtake; whether it has been read.
    #[must_use]
    pub fn read_now(&mut self, at: DriverAddress, into: &mut [u8]) -> bool {
        self.now(at, into.len(), |span| span.copy_to(into))
    }

    /// Writes at once, as [`Dma::read_now`].
    #[must_use]
    pub fn write_now(&mut self, at: DriverAddress, bytes: &[u8]) -> bool {
        self.now(at, bytes.len(), |span| span.copy_from(bytes))
    }

    fn now(&mut self, at: DriverAddress, len: usize, copy: impl FnOnce(Span<'_>) -> usize) -> bool {
        if self.is_busy() || !self.done.is_empty() {
            return false;
        }
        self.reader.enter();
        let is_done = match self.reader.resolver().span(at, len as u64) {
            Ok(span) if span.len() == len => copy(span) == len,
            _ => false,
        };
        self.reader.leave();
        is_done
    }

    /// Whether something is on its way.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.jobs.is_empty()
    }

    /// Forgets everything: nothing is reported that was begun before. What was sent already still
    /// happens. To be called when the host goes, too: the next one has other memory.
    pub fn forget(&mut self) {
        if let Some(channel) = self.channel.take() {
            self.epoll.remove(channel.ready_fd());
        }
        self.jobs.clear();
        self.flying.clear();
        self.backlog.clear();
        self.done.clear();
    }

    /// Hands each transfer that is done to `take`: its tag, and what was read.
    pub fn poll(&mut self, mut take: impl FnMut(u64, Result<&[u8], DmaError>)) {
        self.collect();
        self.send();
        while let Some((tag, result)) = self.done.pop_front() {
            take(tag, result.as_deref().map_err(|error| *error));
        }
    }

    fn start(&mut self, at: DriverAddress, mut job: Job) {
        self.reader.enter();
        let mut done = 0;
        let mut pieces = Vec::new();
        while done < job.bytes.len() && job.failed.is_none() {
            match self.step(&mut job, at, done, &mut pieces) {
                Ok(len) => done += len,
                Err(error) => job.failed = Some(error),
            }
        }
        self.reader.leave();
        job.pieces = pieces.len();
        if pieces.is_empty() {
            return self.finish(job);
        }
        let name = self.next_job;
        self.next_job += 1;
        self.backlog.extend(pieces.into_iter().map(|piece| Piece { job: name, ..piece }));
        self.jobs.insert(name, job);
        self.send();
    }

    /// Does what lies in one region from byte `done` on, or plans the next message; how far it got.
    fn step(
        &mut self,
        job: &mut Job,
        at: DriverAddress,
        done: usize,
        pieces: &mut Vec<Piece>,
    ) -> Result<usize, DmaError> {
        let left = job.bytes.len() - done;
        let nowhere = DmaError::NoMemory(at.0.saturating_add(done as u64));
        let here = DriverAddress(at.0.checked_add(done as u64).ok_or(nowhere)?);
        match self.reader.resolver().span(here, left as u64) {
            Ok(span) => {
                let bytes = &mut job.bytes[done..];
                let len = if job.is_read { span.copy_to(bytes) } else { span.copy_from(bytes) };
                if len == 0 { Err(nowhere) } else { Ok(len) }
            }
            Err(MemoryError::NotMappable(_)) => {
                let region = self.reader.resolver().map().region(here).map_err(|_| nowhere)?;
                let in_region = (region.end() - here.0).min(left as u64);
                if let (None, Backing::Remote(memory)) = (&self.channel, &region.backing) {
                    let channel = memory.open()?;
                    let _ = self.epoll.add(channel.ready_fd(), 0, Interest::Read);
                    self.channel = Some(channel);
                }
                let most = self.channel.as_ref().map_or(MAX_PIECE, |c| c.max_transfer_bytes());
                let len = in_region.min(most.clamp(1, MAX_PIECE).into()) as u32;
                pieces.push(Piece { job: 0, address: here.0, offset: done, len });
                Ok(len as usize)
            }
            Err(_) => Err(nowhere),
        }
    }

    fn send(&mut self) {
        let Some(channel) = &mut self.channel else { return };
        let mut sent = false;
        let mut lost = None;
        while let Some(piece) = self.backlog.front().copied() {
            let Some(job) = self.jobs.get(&piece.job) else {
                self.backlog.pop_front();
                continue;
            };
            let tag = self.next_piece;
            let result = if job.is_read {
                channel.read(tag, piece.address, piece.len)
            } else {
                let bytes = &job.bytes[piece.offset..piece.offset + piece.len as usize];
                channel.write(tag, piece.address, bytes)
            };
            match result {
                Ok(()) => {}
                Err(RemoteError::Busy) => break,
                Err(error) => {
                    lost = Some(error);
                    break;
                }
            }
            self.next_piece = tag.wrapping_add(1);
            self.flying.insert(tag, piece);
            self.backlog.pop_front();
            sent = true;
        }
        if sent && let Err(error) = channel.flush() {
            lost = Some(error);
        }
        if let Some(error) = lost {
            self.fail_all(error);
        }
    }

    fn collect(&mut self) {
        let Some(channel) = &mut self.channel else { return };
        let mut over = Vec::new();
        let (flying, jobs) = (&mut self.flying, &mut self.jobs);
        let result = channel.poll(&mut |tag, answer| {
            let Some(piece) = flying.remove(&tag) else { return };
            let Some(job) = jobs.get_mut(&piece.job) else { return };
            match answer {
                Ok(bytes) if job.is_read && bytes.len() == piece.len as usize => {
                    job.bytes[piece.offset..piece.offset + bytes.len()].copy_from_slice(bytes);
                }
                Ok(_) if !job.is_read => {}
                // EPROTO: not as many bytes as were asked for.
                Ok(_) => job.failed = Some(DmaError::Remote(RemoteError::Refused(71))),
                Err(error) => job.failed = Some(DmaError::Remote(error)),
            }
            job.pieces -= 1;
            if job.pieces == 0 {
                over.push(piece.job);
            }
        });
        for name in over {
            if let Some(job) = self.jobs.remove(&name) {
                self.finish(job);
            }
        }
        if let Err(error) = result {
            self.fail_all(error);
        }
    }

    /// The link is gone: the next transfer opens another one.
    fn fail_all(&mut self, error: RemoteError) {
        if let Some(channel) = self.channel.take() {
            self.epoll.remove(channel.ready_fd());
        }
        self.flying.clear();
        self.backlog.clear();
        for (_, mut job) in std::mem::take(&mut self.jobs) {
            job.failed = Some(error.into());
            self.finish(job);
        }
    }

    fn finish(&mut self, job: Job) {
        let result = match job.failed {
            Some(error) => Err(error),
            None if job.is_read => Ok(job.bytes),
            None => Ok(Vec::new()),
        };
        self.done.push_back((job.tag, result));
    }
}

impl AsFd for Dma {
    /// Readable when [`Dma::poll`] has something to collect that came by messages.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl std::fmt::Debug for Dma {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Dma[{} on their way]", self.jobs.len())
    }
}
