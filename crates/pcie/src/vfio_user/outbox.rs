use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sys::{Connection, EventFd};

use super::limits::{MAX_WAITING_BYTES, WHOLE_SEND_BYTES};

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
    /// Where each message that has not been sent ends.
    ends: VecDeque<usize>,
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
        let end = state.bytes.len();
        state.ends.push_back(end);
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
            state.ends.clear();
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
            self.ends.iter_mut().for_each(|end| *end -= self.sent);
            self.sent = 0;
        }
    }

    /// One `sendmsg` of whole messages, up to the next byte that has descriptors. Only what is
    /// longer than [`WHOLE_SEND_BYTES`] may go in part, and that begins with its header.
    fn send(&mut self, socket: &Connection) -> io::Result<Option<usize>> {
        let due = self.fds.front().filter(|(at, _)| *at <= self.sent);
        let fds: Vec<BorrowedFd<'_>> =
            due.map_or_else(Vec::new, |(_, fds)| fds.iter().map(|fd| fd.as_fd()).collect());
        let next = usize::from(due.is_some());
        let limit = self.fds.get(next).map_or(self.bytes.len(), |(at, _)| *at);
        let limit = limit.min(self.sent + WHOLE_SEND_BYTES);
        while self.ends.front().is_some_and(|end| *end <= self.sent) {
            self.ends.pop_front();
        }
        let fits = self.ends.iter().take_while(|end| **end <= limit).last();
        let end = *fits.or(self.ends.front()).unwrap_or(&self.bytes.len());
        let sent = socket.send(&[IoSlice::new(&self.bytes[self.sent..end])], &fds)?;
        if sent.is_some() && next == 1 {
            self.fds.pop_front();
        }
        Ok(sent)
    }
}

#[cfg(test)]
mod tests {
    use sys::Received;

    use super::*;

    /// QEMU 11.1 reads a header with one call, and closes when that brings less.
    #[test]
    fn headers_arrive_whole_however_full_the_socket_is() {
        let (ours, client) = Connection::pair().unwrap();
        let outbox = Outbox::new(Arc::new(ours)).unwrap();
        // Hardly more than headers, so that hardly a byte is good to cut at; and long ones.
        let short = vec![17; 20_000];
        let lengths = [&short[..], &[70_001, 17, 40_000, 32_768, 32_769, 17], &short].concat();
        for len in &lengths {
            outbox.queue(|out| out.extend(std::iter::repeat_n(*len as u8, *len)), Vec::new());
        }
        let mut fds = Vec::new();
        for (n, len) in lengths.iter().enumerate() {
            let mut bytes = vec![0; *len];
            let (header, body) = bytes.split_at_mut(16);
            let mut got = client.receive(header, &mut fds).unwrap();
            if got == Received::Nothing {
                outbox.flush();
                got = client.receive(header, &mut fds).unwrap();
            }
            assert_eq!(got, Received::Bytes(16), "message {n}");
            let mut at = 0;
            while at < body.len() {
                match client.receive(&mut body[at..], &mut fds).unwrap() {
                    Received::Bytes(count) => at += count,
                    _ => drop(outbox.flush()),
                }
            }
            assert!(bytes.iter().all(|byte| *byte == *len as u8), "message {n}");
        }
        assert!(outbox.flush() && outbox.waiting() == 0);
    }
}
