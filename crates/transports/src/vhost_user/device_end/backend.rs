//! The second socket, on which the daemon makes requests of us.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use sys::Connection;
use wire::vhost_user::{BackendRequest, Header, Iotlb, IotlbKind, encode_ack};

use crate::vhost_user::channel::{Channel, ChannelError};

/// Most requests served in one go; a daemon that floods us waits for the next round.
const MAX_REQUESTS: usize = 32;
/// Most events kept between two looks; further ones of a flood are dropped.
const MAX_EVENTS: usize = 256;
/// How long an acknowledgement may wait for room in the socket.
const ACK_LIMIT: Duration = Duration::from_millis(100);

/// What a daemon asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BackendEvent {
    /// The device config has changed.
    ConfigChanged,
    /// It needs a translation.
    IotlbMiss(Iotlb),
    /// A queue is broken.
    QueueBroken(u16),
    /// The driver of a queue is to be interrupted.
    Interrupt(u16),
}

/// Our end of the second socket.
#[derive(Debug)]
pub(super) struct BackendChannel(Channel);

impl BackendChannel {
    pub(super) fn new(socket: Connection) -> Self {
        Self(Channel::new(socket))
    }

    /// Serves what has arrived. Descriptors that come along are closed: nothing we serve needs one.
    pub(super) fn serve(
        &mut self,
        in_band: bool,
        events: &mut Vec<BackendEvent>,
    ) -> Result<(), ChannelError> {
        for _ in 0..MAX_REQUESTS {
            if !self.0.receive()? {
                return Ok(());
            }
            let count = self.0.fd_count();
            let Some((header, payload)) = self.0.message() else { return Ok(()) };
            let status = match BackendRequest::decode(&header, payload, count) {
                Ok(BackendRequest::VringCall(_)) if !in_band => 1,
                Ok(request) => u64::from(!note(request, events)),
                Err(error) if error.is_fatal() => return Err(error.into()),
                Err(error) => {
                    tracing::debug!("a request of the daemon is refused: {error}");
                    1
                }
            };
            self.0.next();
            self.acknowledge(&header, status)?;
        }
        Ok(())
    }

    fn acknowledge(&mut self, header: &Header, status: u64) -> Result<(), ChannelError> {
        if !header.needs_reply() {
            return Ok(());
        }
        self.0.send(|out| encode_ack(header.request, status, out), &[], ACK_LIMIT)
    }
}

/// Keeps what `request` asks for; returns whether we do that. Host notifiers, shared objects and
/// shared memory regions were never offered, so a daemon that asks all the same is told no.
fn note(request: BackendRequest<'_>, events: &mut Vec<BackendEvent>) -> bool {
    let event = match request {
        BackendRequest::ConfigChangeMsg => BackendEvent::ConfigChanged,
        BackendRequest::IotlbMsg(iotlb) if iotlb.kind == IotlbKind::Miss => {
            BackendEvent::IotlbMiss(iotlb)
        }
        BackendRequest::VringCall(state) => match u16::try_from(state.index) {
            Ok(index) => BackendEvent::Interrupt(index),
            Err(_) => return false,
        },
        BackendRequest::VringErr(state) => match u16::try_from(state.index) {
            Ok(index) => BackendEvent::QueueBroken(index),
            Err(_) => return false,
        },
        _ => return false,
    };
    if events.len() < MAX_EVENTS && !events.contains(&event) {
        events.push(event);
    }
    true
}

impl AsFd for BackendChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
