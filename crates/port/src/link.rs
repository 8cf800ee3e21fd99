//! The port's end of one model: its socket, its rings, what waits for room in them.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use pcie::FunctionLayout;
use sys::{Connection, EventFd};
use wire::cosim::{AnswerKind, Message, Record, RequestKind, State, Welcome};

use crate::area::Shared;
use crate::limits::MAX_MESSAGES_WAITING;
use crate::ring::{Consumer, Producer, Pushed, RingError};
use crate::trace::Recorder;

const MEMORY: RequestKind = RequestKind::Memory;

/// Why a model is no longer there.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// Its process has ended, or closed its socket.
    #[error("its process has gone")]
    Gone,
    /// It broke the rules.
    #[error("it broke the rules: {0}")]
    Rules(#[from] RingError),
    /// It does not take what it is sent.
    #[error("it stopped taking what it is sent, and {0} bytes wait for it")]
    Overflow(usize),
    /// It takes nothing any more.
    #[error("it took nothing for too long")]
    Silent,
    /// It holds on to memory that is not the host's any more.
    #[error("it does not let go of memory that the host has taken away")]
    KeepsMemory,
    /// The system failed us.
    #[error("{0}")]
    System(#[from] io::Error),
}

/// A message on its way, sent up to a byte.
#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
}

/// A model that is attached.
#[derive(Debug)]
pub struct Link {
    pub socket: Connection,
    pub wake_port: EventFd,
    /// Whether the model takes descriptors of host memory.
    pub direct: bool,
    pub name: String,
    outgoing: VecDeque<Outgoing>,
    requests: Producer<RequestKind>,
    answers: Consumer<AnswerKind>,
    wake_model: EventFd,
    shared: Shared,
    backlog: VecDeque<(Record<RequestKind>, Vec<u8>)>,
    backlog_bytes: usize,
    backlog_limit: usize,
    recorder: Option<Recorder>,
}

impl Link {
    /// Lets the model on `socket` in.
    pub fn welcome(
        socket: Connection,
        name: String,
        direct: bool,
        backlog_limit: usize,
        layout: &FunctionLayout,
    ) -> Result<Self, Lost> {
        let (shared, file, area_len) = Shared::create().map_err(io::Error::other)?;
        let (wake_model, wake_port) = (EventFd::new()?, EventFd::new()?);
        let mut fds = vec![
            file,
            wake_model.as_fd().try_clone_to_owned()?,
            wake_port.as_fd().try_clone_to_owned()?,
        ];
        let mut mapped = 0;
        for (index, bar) in layout.bars.iter().enumerate() {
            if let Some(mappable) = &bar.mappable {
                mapped |= 1 << index;
                fds.push(mappable.file.try_clone()?);
            }
        }
        let mut link = Self {
            socket,
            direct,
            name,
            outgoing: VecDeque::new(),
            requests: Producer::new(shared.requests()),
            answers: Consumer::new(shared.answers()),
            wake_model,
            wake_port,
            shared,
            backlog: VecDeque::new(),
            backlog_bytes: 0,
            backlog_limit,
            recorder: None,
        };
        link.send_message(&Message::Welcome(Welcome { area_len, state: 0, mapped }), fds)?;
        Ok(link)
    }

    /// Records what goes to and fro from now on.
    pub fn record_by(&mut self, recorder: Option<Recorder>) {
        self.recorder = recorder;
    }

    /// Sends a record, or keeps it until there is room.
    pub fn send(&mut self, record: Record<RequestKind>, data: &[u8]) -> Result<(), Lost> {
        // Of memory there is more to be said than the ring does.
        if let Some(recorder) = self.recorder.as_ref().filter(|_| record.kind != MEMORY) {
            recorder.record(&record, data);
        }
        if self.backlog.is_empty() {
            match self.requests.push(record, data)? {
                Pushed::Seen => return Ok(()),
                Pushed::WantsEvent => {
                    self.wake_model.signal();
                    return Ok(());
                }
                Pushed::Full => {}
            }
        }
        let bytes = size_of::<Record<RequestKind>>() + data.len();
        if self.backlog_bytes + bytes > self.backlog_limit {
            return Err(Lost::Overflow(self.backlog_bytes));
        }
        self.backlog_bytes += bytes;
        self.backlog.push_back((record, data.to_vec()));
        self.flush_backlog()
    }

    /// Sends what waits for room, as far as there is some.
    fn flush_backlog(&mut self) -> Result<(), Lost> {
        while let Some((record, data)) = self.backlog.front() {
            match self.requests.push(*record, data)? {
                Pushed::Full if self.requests.wait_for_room()? => return Ok(()),
                Pushed::Full => continue,
                Pushed::WantsEvent => self.wake_model.signal(),
                Pushed::Seen => {}
            }
            self.backlog_bytes -= size_of::<Record<RequestKind>>() + data.len();
            self.backlog.pop_front();
        }
        Ok(())
    }

    /// The next answer.
    pub fn receive(&mut self, data: &mut Vec<u8>) -> Result<Option<Record<AnswerKind>>, Lost> {
        let answer = self.answers.pop(data)?;
        if answer.is_none() && self.answers.give_room() {
            self.wake_model.signal();
        }
        if let (Some(recorder), Some(record)) = (&self.recorder, &answer) {
            recorder.record(record, data);
        }
        Ok(answer)
    }

    /// Asks to be woken by the next answer; false if there is one already.
    pub fn sleep(&self) -> bool {
        self.answers.sleep()
    }

    /// Asks for no more events: answers are looked for anyway.
    pub fn wake(&self) {
        self.answers.wake();
    }

    /// Acknowledges the event that came.
    pub fn forget_event(&self) {
        self.wake_port.drain();
    }

    /// Whether the model has taken everything it was sent.
    pub fn is_drained(&mut self) -> Result<bool, Lost> {
        Ok(self.backlog.is_empty() && self.requests.is_drained()?)
    }

    /// Tells the model how things are.
    pub fn set_state(&mut self, state: State) -> Result<(), Lost> {
        self.shared.set_state(state);
        self.send(Record::new(RequestKind::State).value(state.to_word()), &[])
    }

    /// Sends a message, or keeps it until the socket takes it.
    pub fn send_message(&mut self, message: &Message, fds: Vec<OwnedFd>) -> Result<(), Lost> {
        if self.outgoing.len() >= MAX_MESSAGES_WAITING {
            return Err(Lost::Overflow(self.outgoing.len()));
        }
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        self.outgoing.push_back(Outgoing { bytes, sent: 0, fds });
        self.flush()
    }

    /// Whether messages wait for room in the socket.
    pub fn has_outgoing(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Sends what waits, as far as ring and socket take it.
    pub fn flush(&mut self) -> Result<(), Lost> {
        self.flush_backlog()?;
        while let Some(out) = self.outgoing.front_mut() {
            let fds: Vec<BorrowedFd<'_>> = match out.sent {
                0 => out.fds.iter().map(AsFd::as_fd).collect(),
                _ => Vec::new(),
            };
            let sent = self.socket.send(&[IoSlice::new(&out.bytes[out.sent..])], &fds);
            match sent.map_err(|_| Lost::Gone)? {
                Some(sent) => out.sent += sent,
                None => return Ok(()),
            }
            if out.sent == out.bytes.len() {
                self.outgoing.pop_front();
            }
        }
        Ok(())
    }
}
