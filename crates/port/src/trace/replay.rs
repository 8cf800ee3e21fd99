//! Plays a machine's part from a recording, to a model that is there now.
//!
//! The model is told what it was told then, in the same order; what it said then it must say again
//! before it is told what came after. Answers to reads are compared by their tags, transfers,
//! interrupts and writes of the configuration space each in their own order: which of those comes
//! first may depend on how fast a model was woken.

use std::collections::{HashMap, VecDeque};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use sys::{Epoll, Interest, Listener};
use wire::cosim::{
    AnswerKind, Cosim, HEADER_LEN, Message, Record, RequestKind, State, hello_flags,
};
use wire::{DecodeError, Framing};

use super::{Entry, Trace, describe, kind};
use crate::limits::BACKLOG_BYTES;
use crate::link::{Link, Lost};
use crate::port::PortError;
use crate::port::gate::Gate;

/// How a replay ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The model did everything again.
    Same {
        /// What was told to it.
        told: usize,
        /// What it said again.
        compared: usize,
    },
    /// It did something else.
    Differs {
        /// Which entry of the recording it was, from 0 on.
        entry: usize,
        /// When it was, in nanoseconds from the recording's beginning.
        time_ns: u64,
        /// What it did then.
        then: String,
        /// What it does now.
        now: String,
    },
}

/// Why nothing could be compared.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// No model came.
    #[error("no model has come")]
    NoModel,
    /// It can't be the same card.
    #[error("it is another card: {0}")]
    Other(String),
    /// It went.
    #[error("the model went before the end, at entry {entry}: {why}")]
    Gone {
        /// The entry.
        entry: usize,
        /// Why.
        why: String,
    },
    /// The recording makes no sense.
    #[error("the recording makes no sense: {0}")]
    Nonsense(#[from] DecodeError),
    /// The system failed us.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The system failed us.
    #[error("{0}")]
    System(#[from] std::io::Error),
}

/// What a model said.
type Said = (Record<AnswerKind>, Vec<u8>);

struct Player {
    link: Link,
    epoll: Epoll,
    /// Said, and not compared yet.
    said: VecDeque<Said>,
    /// Tags of transfers then, and now.
    tags: HashMap<u64, u64>,
    limit: Duration,
    told: usize,
    compared: usize,
}

/// Waits at `listener` for a model and replays `trace` to it. Each answer may take `limit`.
///
/// # Errors
/// [`ReplayError`]. That the model does something else is none.
pub fn replay(
    trace: &Trace,
    listener: Listener,
    limit: Duration,
    stop: impl AsFd,
) -> Result<Outcome, ReplayError> {
    let found = Gate::new(listener).await_first(stop)?;
    let (hello, socket) = found.ok_or(ReplayError::NoModel)?;
    if let Some(difference) = crate::shape::difference(&trace.hello, &hello) {
        return Err(ReplayError::Other(difference));
    }
    let direct = hello.flags & hello_flags::DIRECT_MEMORY != 0;
    let gone = |why: Lost| ReplayError::Gone { entry: 0, why: why.to_string() };
    let (layout, _) = crate::shape::function(&hello).map_err(PortError::Layout)?;
    let link = Link::welcome(socket, hello.name, direct, BACKLOG_BYTES, &layout).map_err(gone)?;
    let epoll = Epoll::new()?;
    epoll.add(&link.wake_port, 0, Interest::Read)?;
    epoll.add(&link.socket, 1, Interest::Read)?;
    let (said, tags) = (VecDeque::new(), HashMap::new());
    let mut player = Player { link, epoll, said, tags, limit, told: 0, compared: 0 };
    player.play(trace)
}

impl Player {
    fn play(&mut self, trace: &Trace) -> Result<Outcome, ReplayError> {
        for (number, entry) in trace.entries.iter().enumerate() {
            let differs = |now: String| Outcome::Differs {
                entry: number,
                time_ns: entry.time_ns,
                then: describe(entry),
                now,
            };
            let gone = |why: Lost| ReplayError::Gone { entry: number, why: why.to_string() };
            if entry.kind == kind::LOST {
                // What came after it is another process' life.
                break;
            } else if let Some(request) = entry.request() {
                self.tell(request, entry)?.map_err(gone)?;
            } else if let Some(answer) = entry.answer()
                && answer != AnswerKind::Log
                && let Some(now) = self.hear(answer, entry).map_err(gone)?
            {
                return Ok(differs(now));
            }
        }
        let quiet = |said: &Said| matters(said.0.kind);
        if let Some((record, data)) = self.said.iter().find(|said| quiet(said)) {
            let last = trace.entries.last();
            return Ok(Outcome::Differs {
                entry: trace.entries.len(),
                time_ns: last.map_or(0, |entry| entry.time_ns),
                then: "nothing more".into(),
                now: describe(&Entry::of(record, data)),
            });
        }
        Ok(Outcome::Same { told: self.told, compared: self.compared })
    }

    fn tell(
        &mut self,
        request: RequestKind,
        entry: &Entry,
    ) -> Result<Result<(), Lost>, DecodeError> {
        self.told += 1;
        let mut record = Record::new(request).tag(entry.tag).at(entry.address).value(entry.value);
        record = record.detail(entry.detail).flags(entry.flags);
        match request {
            RequestKind::State => {
                return Ok(self.link.set_state(State::from_word(entry.value)));
            }
            RequestKind::Memory => {
                let (head, payload) = entry.data.split_at_checked(HEADER_LEN).unwrap_or_default();
                let message = Message::decode(&Cosim::decode_header(head)?, payload, 0)?;
                if let Err(lost) = self.link.send_message(&message, Vec::new()) {
                    return Ok(Err(lost));
                }
                return Ok(self.link.send(record, &[]));
            }
            RequestKind::DmaDone => {
                record.tag = self.tags.remove(&entry.tag).unwrap_or(entry.tag);
            }
            _ => {}
        }
        Ok(self.link.send(record, &entry.data))
    }

    /// Waits for what the model said then; what it says instead, if that is something else.
    fn hear(&mut self, wanted: AnswerKind, entry: &Entry) -> Result<Option<String>, Lost> {
        let end = Instant::now() + self.limit;
        loop {
            let found = self.said.iter().position(|(record, _)| {
                channel(record.kind) == channel(wanted)
                    && (!by_tag(wanted) || record.tag == entry.tag)
            });
            if let Some((record, data)) = found.and_then(|at| self.said.remove(at)) {
                self.compared += 1;
                return Ok(self.compare(entry, &record, data));
            }
            if !self.listen(end)? {
                return Ok(Some("nothing".into()));
            }
        }
    }

    fn compare(
        &mut self,
        entry: &Entry,
        record: &Record<AnswerKind>,
        data: Vec<u8>,
    ) -> Option<String> {
        let mut now = Entry::of(record, &data);
        if matches!(record.kind, AnswerKind::DmaRead | AnswerKind::DmaWrite) {
            self.tags.insert(entry.tag, record.tag);
            now.tag = entry.tag;
        }
        now.time_ns = entry.time_ns;
        (now != *entry).then(|| describe(&now))
    }

    /// Hears what comes next; false if that takes too long.
    fn listen(&mut self, end: Instant) -> Result<bool, Lost> {
        let mut data = Vec::new();
        loop {
            self.link.flush()?;
            if let Some(record) = self.link.receive(&mut data)? {
                self.said.push_back((record, data));
                return Ok(true);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            if self.link.sleep() {
                let mut ready = Vec::new();
                self.epoll.wait(&mut ready, Some(left)).map_err(Lost::System)?;
                self.link.forget_event();
                let gone = ready.iter().any(|event| event.key == 1);
                if gone && self.link.sleep() {
                    return Err(Lost::Gone);
                }
            }
        }
    }
}

/// Whether it is a difference if the model does it once more.
fn matters(kind: AnswerKind) -> bool {
    !matches!(kind, AnswerKind::Log | AnswerKind::ReadDone)
}

/// Whether answers are told apart by their tags.
fn by_tag(kind: AnswerKind) -> bool {
    matches!(kind, AnswerKind::ReadDone | AnswerKind::ResetDone | AnswerKind::MemoryDone)
}

/// Kinds whose order among each other is compared.
fn channel(kind: AnswerKind) -> u8 {
    match kind {
        AnswerKind::ReadDone => 0,
        AnswerKind::ResetDone => 1,
        AnswerKind::MemoryDone => 2,
        AnswerKind::DmaRead | AnswerKind::DmaWrite => 3,
        AnswerKind::Interrupt => 4,
        AnswerKind::ConfigPut => 5,
        AnswerKind::Log => 6,
    }
}
