use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sys::{Connection, EventFd};

use super::limits::MAX_WAITING_BYTES;

/// Messages on their way to the client, from the control thread and from queues' threads alike.
///
/// A message is appended as a whole and bytes leave in order, whoever sends them, so messages never
/// mix. Nobody waits for room: what does not go now is sent by the control thread, which
/// [`Outbox::wake_fd`] tells.
#[derive(Debug)]
pub struct Outbox {
    socket: Arc<Connection>,
    state: Mutex<State>,
    wake: EventFd,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    sent: usize,
    /// Descriptors, and the byte they go with.
    fds: VecDeque<(usize, Vec<Arc<OwnedFd>>)>,
    closed: bool,
}

impl Outbox {
    pub fn new(socket: Arc<Connection>) -> io::Result<Self> {
        Ok(Self { socket, state: Mutex::default(), wake: EventFd::new()? })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a message; [`Outbox::flush`] sends it.
    pub fn queue(&self, message: impl FnOnce(&mut Vec<u8>), fds: Vec<Arc<OwnedFd>>) {
        let mut state = self.lock();
        state.forget_sent();
        if !fds.is_empty() {
            let at = state.bytes.len();
            state.fds.push_back((at, fds));
        }
        message(&mut state.bytes);
    }

    /// Sends what the socket takes; false if something is left or the connection broke.
    pub fn flush(&self) -> bool {
        let mut state = self.lock();
        while !state.closed && state.sent < state.bytes.len() {
            match state.send(&self.socket) {
                Ok(Some(sent)) => state.sent += sent,
                Ok(None) => return false,
                Err(_) => state.closed = true,
            }
        }
        if !state.closed {
            state.bytes.clear();
            state.sent = 0;
        }
        !state.closed
    }

    /// As [`Outbox::flush`], from a thread that does not watch the socket.
    ///
    /// Returns false when the connection broke.
    pub fn flush_from_afar(&self) -> bool {
        if !self.flush() {
            self.wake.signal();
        }
        !self.is_closed()
    }

    /// Whether the connection broke while sending, or was given up.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Gives the connection up: nothing is sent any more.
    pub fn close(&self) {
        let mut state = self.lock();
        *state = State { closed: true, ..State::default() };
    }

    /// How many bytes wait for room.
    pub fn waiting(&self) -> usize {
        let state = self.lock();
        state.bytes.len() - state.sent
    }

    /// Acknowledges [`Outbox::wake_fd`].
    pub fn acknowledge(&self) {
        self.wake.drain();
    }

    /// Readable when another thread could not send all.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

impl State {
    /// Gives room back that a client which never takes quite everything would make grow.
    fn forget_sent(&mut self) {
        if self.sent > MAX_WAITING_BYTES {
            self.bytes.drain(..self.sent);
            self.fds.iter_mut().for_each(|(at, _)| *at -= self.sent);
            self.sent = 0;
        }
    }

    /// One `sendmsg`, up to the next byte that has descriptors.
    fn send(&mut self, socket: &Connection) -> io::Result<Option<usize>> {
        let due = self.fds.front().filter(|(at, _)| *at <= self.sent);
        let fds: Vec<BorrowedFd<'_>> =
            due.map_or_else(Vec::new, |(_, fds)| fds.iter().map(|fd| fd.as_fd()).collect());
        let next = usize::from(due.is_some());
        let end = self.fds.get(next).map_or(self.bytes.len(), |(at, _)| *at);
        let sent = socket.send(&[IoSlice::new(&self.bytes[self.sent..end])], &fds)?;
        if sent.is_some() && next == 1 {
            self.fds.pop_front();
        }
        Ok(sent)
    }
}
