use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mem::remote::{RemoteChannel, RemoteError};
use mem::{Mapping, Span};
use sys::{Epoll, Interest};

/// Transfers on the way at once. More do not make a link faster, and links have limits of their
/// own.
pub(super) const MAX_FLYING: usize = 64;

/// Longest transfer: a longer one holds up those behind it without being faster.
const MAX_CHUNK_BYTES: u32 = 64 << 10;

/// What a transfer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The flags and the index of the available ring.
    Index,
    /// Entries of the available ring or of the descriptor table.
    Entries,
    /// Readable bytes of the chain with this ordinal.
    Data(u32),
    /// The driver's wish for interrupts, read behind everything that a batch writes.
    Wish,
    /// Something written, whose success is all there is to know.
    Written,
}

/// A transfer, or the rest of one, that is not on its way yet.
#[derive(Clone, Debug)]
pub(super) struct Op {
    pub purpose: Purpose,
    /// Where it goes in the driver's memory.
    pub address: u64,
    /// Our end of it: a mapping and an offset there.
    pub here: (Arc<Mapping>, usize),
    pub len: u32,
    /// From here to there.
    pub write: bool,
    /// What is written instead of the bytes here, in little endian: as it was when it was asked
    /// for, whatever comes to stand here before it is sent.
    pub value: Option<u32>,
}

/// A transfer that is answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    pub purpose: Purpose,
    pub len: u32,
}

/// A transfer on its way.
#[derive(Clone, Debug)]
struct Flying {
    purpose: Purpose,
    /// Where the bytes of a read go.
    into: Option<(Arc<Mapping>, usize)>,
    len: u32,
}

/// Transfers in order of submission, in pieces the link takes, as many at once as it takes.
pub(super) struct Transfers {
    channel: Box<dyn RemoteChannel>,
    backlog: VecDeque<Op>,
    flying: Box<[Option<Flying>]>,
    free_tags: Vec<u32>,
    /// For bytes to be written: a link takes a slice.
    scratch: Box<[u8]>,
}

impl Transfers {
    /// Nothing on its way; `expected` transfers can wait without an allocation.
    pub(super) fn new(channel: Box<dyn RemoteChannel>, expected: usize) -> Self {
        let chunk = channel.max_transfer_bytes().clamp(1, MAX_CHUNK_BYTES);
        Self {
            channel,
            backlog: VecDeque::with_capacity(expected),
            flying: vec![None; MAX_FLYING].into_boxed_slice(),
            free_tags: (0..MAX_FLYING as u32).rev().collect(),
            scratch: vec![0; chunk as usize].into_boxed_slice(),
        }
    }

    pub(super) fn add(&mut self, op: Op) {
        if op.len > 0 {
            self.backlog.push_back(op);
        }
    }

    /// Whether something waits although nothing of ours is on its way: the link is busy with
    /// others, and no answer will wake us.
    pub(super) fn is_held_up(&self) -> bool {
        !self.backlog.is_empty() && self.free_tags.len() == MAX_FLYING
    }

    /// Sends what the link takes.
    pub(super) fn send(&mut self) -> Result<(), RemoteError> {
        let mut sent = false;
        while !self.backlog.is_empty() {
            let Some(&tag) = self.free_tags.last() else { break };
            match self.send_piece(tag) {
                Ok(flying) => self.flying[tag as usize] = Some(flying),
                Err(RemoteError::Busy) => break,
                Err(error) => return Err(error),
            }
            self.free_tags.pop();
            sent = true;
        }
        if sent { self.channel.flush() } else { Ok(()) }
    }

    /// Sends all that is to be written before the channel is closed, and waits neither for what was
    /// to be read nor for answers: whoever reads them may be waiting for us. Only a link that takes
    /// no more is waited for, up to `limit`. Returns whether all was sent.
    pub(super) fn send_last(&mut self, limit: Duration) -> Result<bool, RemoteError> {
        let deadline = Instant::now() + limit;
        let epoll = Epoll::new().ok();
        if let Some(epoll) = &epoll {
            let _ = epoll.add(self.channel.ready_fd(), 0, Interest::Read);
        }
        self.backlog.retain(|op| op.write);
        while !self.backlog.is_empty() {
            // A tag of none of ours: its answer changes nothing.
            match self.send_piece(MAX_FLYING as u32) {
                Ok(_) => continue,
                Err(RemoteError::Busy) => {}
                Err(error) => return Err(error),
            }
            self.channel.flush()?;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            if let Some(epoll) = &epoll {
                let _ = epoll.wait(&mut Vec::new(), Some(left.min(Duration::from_millis(1))));
            }
            self.channel.poll(&mut |_, _| ())?;
        }
        self.channel.flush()?;
        Ok(true)
    }

    /// Sends the first piece of what waits, if something does.
    fn send_piece(&mut self, tag: u32) -> Result<Flying, RemoteError> {
        let op = self.backlog.front_mut().ok_or(RemoteError::Busy)?;
        let len = op.len.min(self.scratch.len() as u32);
        let (mapping, offset) = &op.here;
        if op.write {
            let bytes = &mut self.scratch[..len as usize];
            match op.value {
                Some(value) => bytes.copy_from_slice(&value.to_le_bytes()[..len as usize]),
                None => {
                    span(mapping, *offset, len).copy_to(bytes);
                }
            }
            self.channel.write(tag, op.address, bytes)?;
        } else {
            self.channel.read(tag, op.address, len)?;
        }
        let into = (!op.write).then(|| (Arc::clone(mapping), *offset));
        let flying = Flying { purpose: op.purpose, into, len };
        op.address += u64::from(len);
        op.here.1 += len as usize;
        op.value = op.value.map(|value| value.checked_shr(8 * len).unwrap_or(0));
        op.len -= len;
        if op.len == 0 {
            self.backlog.pop_front();
        }
        Ok(flying)
    }

    /// Collects answers: what was read is where it was to go.
    pub(super) fn receive(&mut self, done: &mut Vec<Done>) -> Result<(), RemoteError> {
        let Self { channel, flying, free_tags, .. } = self;
        let mut failure = None;
        channel.poll(&mut |tag, answer| {
            // An answer to nothing is the link's mistake and changes nothing here.
            let Some(Flying { purpose, into, len }) =
                flying.get_mut(tag as usize).and_then(Option::take)
            else {
                return;
            };
            free_tags.push(tag);
            match (answer, into) {
                (Ok(bytes), Some((mapping, offset))) if bytes.len() == len as usize => {
                    span(&mapping, offset, len).copy_from(bytes);
                    done.push(Done { purpose, len });
                }
                (Ok(_), None) => done.push(Done { purpose, len }),
                // EPROTO: not as many bytes as were asked for.
                (Ok(_), Some(_)) => failure = Some(RemoteError::Refused(71)),
                (Err(error), _) => failure = Some(error),
            }
        })?;
        failure.map_or(Ok(()), Err)
    }

    /// Becomes readable when there are answers.
    pub(super) fn ready_fd(&self) -> BorrowedFd<'_> {
        self.channel.ready_fd()
    }
}

impl std::fmt::Debug for Transfers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let flying = MAX_FLYING - self.free_tags.len();
        write!(f, "Transfers[{} waiting, {flying} on their way]", self.backlog.len())
    }
}

fn span(mapping: &Arc<Mapping>, offset: usize, len: u32) -> Span<'_> {
    Span::of_mapping(mapping, offset, len as usize).expect("our end of a transfer is ours")
}
