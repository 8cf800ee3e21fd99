//! The way to a port that runs in another thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sys::EventFd;

use super::{Fault, FaultKind, FaultStatus};

/// How long a port may take to do what it is told: its longest wait for a model is its deadline.
const LIMIT: Duration = Duration::from_secs(5);

/// What a port may be told.
#[derive(Clone, Debug)]
pub enum Command {
    /// One more fault.
    Add(Fault),
    /// No more faults of this kind, or none at all.
    Clear(Option<FaultKind>),
    /// What faults are there?
    List,
}

/// What it answers.
#[derive(Clone, Debug)]
pub enum Reply {
    /// It is done; how many faults that concerned.
    Done(usize),
    /// There are too many.
    TooMany,
    /// The faults there are.
    Faults(Vec<FaultStatus>),
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// No model has come yet, or the port has ended.
    #[error("the port does not answer: it has no model yet, or has ended")]
    NoAnswer,
}

type Waiting = Vec<(Command, Sender<Reply>)>;

/// Tells a port things from any thread. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Control {
    waiting: Arc<Mutex<Waiting>>,
    wake: Arc<EventFd>,
}

impl Control {
    /// For [`PortOptions::control`](crate::PortOptions::control).
    ///
    /// # Errors
    /// The system is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self { waiting: Arc::default(), wake: Arc::new(EventFd::new()?) })
    }

    /// Tells the port `command` and waits until it is done.
    ///
    /// # Errors
    /// The port does not answer within five seconds.
    pub fn tell(&self, command: Command) -> Result<Reply, ControlError> {
        let (sender, answer) = channel();
        self.lock().push((command, sender));
        self.wake.signal();
        answer.recv_timeout(LIMIT).map_err(|_| ControlError::NoAnswer)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Readable when there is something to do.
    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// What there is to do.
    pub(crate) fn take(&self) -> Vec<(Command, Sender<Reply>)> {
        self.wake.drain();
        std::mem::take(&mut *self.lock())
    }
}
