//! One side of a vhost-user socket: whole messages with their descriptors, in and out.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use sys::{Connection, Received};
use wire::vhost_user::{Header, MAX_FDS, MAX_PAYLOAD, VhostUser};
use wire::{DecodeError, Framer};

/// Why a connection can't go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChannelError {
    /// The peer closed it.
    #[error("the connection was closed")]
    Closed,
    /// The peer does not speak the protocol.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// More descriptors than any message has.
    #[error("more than {MAX_FDS} file descriptors with a message")]
    TooManyFds,
    /// The peer did not answer, or does not read.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The socket failed.
    #[error("the socket failed: {0}")]
    Socket(#[from] io::Error),
}

/// A connection and the message that is arriving on it.
#[derive(Debug)]
pub(super) struct Channel {
    socket: Connection,
    framer: Framer<VhostUser>,
    /// Descriptors that came with the current message.
    fds: Vec<OwnedFd>,
    out: Vec<u8>,
    /// When the first byte of an incomplete message arrived.
    partial_since: Option<Instant>,
}

impl Channel {
    pub(super) fn new(socket: Connection) -> Self {
        let framer = Framer::new(MAX_PAYLOAD);
        Self { socket, framer, fds: Vec::new(), out: Vec::new(), partial_since: None }
    }

    /// Reads what is there up to the end of one message; true when it is complete. It stays until
    /// [`Channel::next`].
    pub(super) fn receive(&mut self) -> Result<bool, ChannelError> {
        // At most three rounds: header, payload, complete.
        while self.framer.wanted() > 0 {
            let space = self.framer.space();
            let len = match self.socket.receive(space, &mut self.fds)? {
                Received::Bytes(len) => len,
                Received::Nothing => return Ok(false),
                Received::Closed => return Err(ChannelError::Closed),
            };
            if self.fds.len() > MAX_FDS {
                return Err(ChannelError::TooManyFds);
            }
            self.framer.commit(len)?;
            self.partial_since.get_or_insert_with(Instant::now);
        }
        self.partial_since = None;
        Ok(true)
    }

    /// The message that [`Channel::receive`] completed.
    pub(super) fn message(&self) -> Option<(Header, &[u8])> {
        self.framer.message()
    }

    /// How many descriptors came with it.
    pub(super) fn fd_count(&self) -> usize {
        self.fds.len()
    }

    /// Those descriptors.
    pub(super) fn take_fds(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.fds)
    }

    /// Forgets the message and closes the descriptors nobody took.
    pub(super) fn next(&mut self) {
        self.fds.clear();
        self.framer.next_message();
    }

    /// Since when an incomplete message has been waiting for its rest.
    pub(super) fn partial_since(&self) -> Option<Instant> {
        self.partial_since
    }

    /// Sends the message that `encode` appends, waiting up to `limit` for room.
    pub(super) fn send(
        &mut self,
        encode: impl FnOnce(&mut Vec<u8>),
        fds: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<(), ChannelError> {
        self.out.clear();
        encode(&mut self.out);
        self.socket.send_all(&self.out, fds, limit).map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => ChannelError::TimedOut(limit),
            io::ErrorKind::BrokenPipe => ChannelError::Closed,
            _ => ChannelError::Socket(error),
        })
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
