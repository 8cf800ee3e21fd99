//! A connection to a daemon: requests and their answers, the second socket, the handshake.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use sys::{Connection, Epoll, Interest};
use virtio::{DeviceError, Features};
use wire::vhost_user::features as protocol;
use wire::vhost_user::{Answer, Config, NEED_REPLY, Reply, Request, VringState, answer, rule};

use super::backend::{BackendChannel, BackendEvent};
use crate::vhost_user::channel::{Channel, ChannelError};

/// The protocol features we ask for if the daemon has them.
const WANTED: u64 = protocol::MQ
    | protocol::LOG_SHMFD
    | protocol::RARP
    | protocol::REPLY_ACK
    | protocol::MTU
    | protocol::BACKEND_REQ
    | protocol::CONFIG
    | protocol::BACKEND_SEND_FD
    | protocol::INFLIGHT_SHMFD
    | protocol::RESET_DEVICE
    | protocol::CONFIGURE_MEM_SLOTS
    | protocol::STATUS;

/// Why a request has no good answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    /// The connection is of no use any more.
    #[error("{0}: {1}")]
    Broken(&'static str, #[source] ChannelError),
    /// The daemon said no.
    #[error("the daemon refused {0} ({1:#x})")]
    Refused(&'static str, u64),
    /// The answer makes no sense.
    #[error("the daemon's answer to {0} makes no sense: {1}")]
    Nonsense(&'static str, String),
    /// The system failed us.
    #[error(transparent)]
    System(#[from] std::io::Error),
}

impl LinkError {
    /// Whether the connection must be given up.
    fn is_final(&self) -> bool {
        !matches!(self, Self::Refused(..))
    }
}

impl From<LinkError> for DeviceError {
    fn from(error: LinkError) -> Self {
        if error.is_final() {
            Self::Gone(error.to_string())
        } else {
            Self::Refused(error.to_string())
        }
    }
}

/// What a daemon said about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Offer {
    /// Everything in its feature word, vhost-user's own bits included.
    pub features: Features,
    /// Its protocol features.
    pub protocol_features: u64,
    /// Its answer to GET_QUEUE_NUM, if it knows that.
    pub queues: Option<u64>,
    /// Most memory regions it takes.
    pub memory_slots: usize,
}

impl Offer {
    /// Whether the daemon can log its writes for a migration.
    pub(super) fn records_writes(&self) -> bool {
        self.features.has(Features::LOG_ALL) && self.protocol_features & protocol::LOG_SHMFD != 0
    }
}

/// A connected daemon after the handshake.
#[derive(Debug)]
pub(super) struct Link {
    channel: Channel,
    backend: Option<BackendChannel>,
    /// The protocol features in force.
    pub(super) protocol: u64,
    pub(super) offer: Offer,
    timeout: Duration,
    /// What came on the second socket and was not looked at yet.
    pub(super) events: Vec<BackendEvent>,
}

impl Link {
    /// Introduces us to the daemon: features, protocol features, limits, the second socket.
    /// `more` are protocol features to ask for on top of the usual ones.
    pub(super) fn new(
        connection: Connection,
        timeout: Duration,
        more: u64,
    ) -> Result<Self, LinkError> {
        let channel = Channel::new(connection);
        let offer = Offer::default();
        let mut link =
            Self { channel, backend: None, protocol: 0, offer, timeout, events: Vec::new() };
        link.offer = link.handshake(WANTED | more)?;
        Ok(link)
    }

    fn handshake(&mut self, wanted: u64) -> Result<Offer, LinkError> {
        let mut offer =
            Offer { memory_slots: wire::vhost_user::MAX_TABLE_REGIONS, ..Offer::default() };
        offer.features = Features(self.value(Request::GetFeatures)?);
        if offer.features.has(Features::PROTOCOL_FEATURES) {
            offer.protocol_features = self.value(Request::GetProtocolFeatures)?;
            self.protocol = offer.protocol_features & wanted;
            if protocol::is_contradictory(self.protocol) {
                // In-band notifications need two others.
                self.protocol &= !protocol::INBAND_NOTIFICATIONS;
            }
            self.tell(Request::SetProtocolFeatures(self.protocol), &[])?;
        }
        if self.has(protocol::MQ) {
            offer.queues = Some(self.value(Request::GetQueueNum)?);
        }
        if self.has(protocol::CONFIGURE_MEM_SLOTS) {
            let slots = self.value(Request::GetMaxMemSlots)?;
            offer.memory_slots = slots.clamp(1, mem::MAX_REGIONS as u64) as usize;
        }
        if self.has(protocol::BACKEND_REQ) {
            let (ours, theirs) = Connection::pair()?;
            self.backend = Some(BackendChannel::new(ours));
            self.tell(Request::SetBackendReqFd, &[theirs.as_fd()])?;
        }
        self.tell(Request::SetOwner, &[])?;
        Ok(offer)
    }

    /// Waits this long for answers from now on.
    pub(super) fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Whether these protocol features are in force.
    pub(super) fn has(&self, features: u64) -> bool {
        self.protocol & features == features
    }

    /// A request answered by a number.
    pub(super) fn value(&mut self, request: Request<'_>) -> Result<u64, LinkError> {
        self.ask(request, &[], |reply, _| match reply {
            Reply::Value(value) => Some(value),
            _ => None,
        })
    }

    /// A request that is acknowledged, if the daemon can do that.
    pub(super) fn tell(
        &mut self,
        request: Request<'_>,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), LinkError> {
        let name = name_of(request.id());
        let flags = if self.has(protocol::REPLY_ACK) { NEED_REPLY } else { 0 };
        match answer(request.id(), flags != 0, self.protocol) {
            None => self.send(&request, 0, fds),
            Some(Answer::Payload) | Some(Answer::PayloadWithLogShmfd) => {
                self.exchange(request, 0, fds, |_, _| Some(()))
            }
            Some(Answer::IfAsked) => {
                let accepted = self.exchange(request, flags, fds, |reply, _| match reply {
                    Reply::Value(value) => Some(value),
                    _ => None,
                })?;
                if accepted == 0 { Ok(()) } else { Err(LinkError::Refused(name, accepted)) }
            }
        }
    }

    /// A notification: nobody waits for an acknowledgement.
    pub(super) fn notify(&mut self, index: u16) -> Result<(), LinkError> {
        self.send(&Request::VringKick(VringState { index: index.into(), num: 0 }), 0, &[])
    }

    /// A request that has an answer of its own.
    pub(super) fn ask<R>(
        &mut self,
        request: Request<'_>,
        fds: &[BorrowedFd<'_>],
        read: impl FnOnce(Reply<'_>, Vec<OwnedFd>) -> Option<R>,
    ) -> Result<R, LinkError> {
        self.exchange(request, 0, fds, read)
    }

    /// Part of the device config, as the daemon has it now; empty if it refuses.
    pub(super) fn config(&mut self, offset: u32, size: u32) -> Result<Vec<u8>, LinkError> {
        let window = Config { offset, size, flags: 0, data: &[] };
        // An old daemon's reader wants the window's bytes to be there, and ours puts zeros.
        self.ask(Request::GetConfig(window), &[], |reply, _| match reply {
            Reply::Config(config) => Some(config.data.to_vec()),
            Reply::NoConfig => Some(Vec::new()),
            _ => None,
        })
    }

    fn send(
        &mut self,
        request: &Request<'_>,
        flags: u32,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), LinkError> {
        tracing::trace!("{request:?}, {} descriptors", fds.len());
        let broken = |error| LinkError::Broken(name_of(request.id()), error);
        self.channel.send(|out| request.encode(flags, out), fds, self.timeout).map_err(broken)
    }

    fn exchange<R>(
        &mut self,
        request: Request<'_>,
        flags: u32,
        fds: &[BorrowedFd<'_>],
        read: impl FnOnce(Reply<'_>, Vec<OwnedFd>) -> Option<R>,
    ) -> Result<R, LinkError> {
        let name = name_of(request.id());
        self.send(&request, flags, fds)?;
        self.wait_for_message(name)?;
        let fds = self.channel.take_fds();
        let count = fds.len();
        let Some((header, payload)) = self.channel.message() else {
            return Err(LinkError::Broken(name, ChannelError::Closed));
        };
        let nonsense = |why: String| LinkError::Nonsense(name, why);
        if header.request != request.id() {
            return Err(nonsense(format!("it answers request {}", header.request)));
        }
        let reply = Reply::decode(&header, payload, count).map_err(|e| nonsense(e.to_string()))?;
        let result = read(reply, fds).ok_or_else(|| nonsense("of the wrong kind".into()));
        self.channel.next();
        result
    }

    /// Waits for a whole message on the main socket; serves the second one meanwhile, because the
    /// daemon may wait for us there.
    fn wait_for_message(&mut self, name: &'static str) -> Result<(), LinkError> {
        let broken = |error| LinkError::Broken(name, error);
        let deadline = Instant::now() + self.timeout;
        while !self.channel.receive().map_err(broken)? {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(broken(ChannelError::TimedOut(self.timeout)));
            }
            self.listen(left)?;
        }
        Ok(())
    }

    /// Looks at what the daemon has to say of its own accord.
    pub(super) fn poll(&mut self) -> Result<(), LinkError> {
        if self.listen(Duration::ZERO)? {
            let lost = |error| LinkError::Broken("waiting for work", error);
            if self.channel.receive().map_err(lost)? {
                let unasked = "a reply nobody asked for".to_owned();
                return Err(LinkError::Nonsense("nothing", unasked));
            }
        }
        Ok(())
    }

    /// Waits up to `limit` for either socket and serves the second one; returns whether there is
    /// something on the main one.
    fn listen(&mut self, limit: Duration) -> io::Result<bool> {
        let second = self.backend.as_ref().map(|backend| backend.as_fd());
        let fds: Vec<_> = [self.channel.as_fd()].into_iter().chain(second).collect();
        let ready = sys::wait_for_any(&fds, limit)?;
        if ready.get(1) == Some(&true) {
            self.serve_backend();
        }
        Ok(ready[0])
    }

    fn serve_backend(&mut self) {
        let Some(backend) = &mut self.backend else { return };
        let in_band = self.protocol & protocol::INBAND_NOTIFICATIONS != 0;
        if let Err(error) = backend.serve(in_band, &mut self.events) {
            // Losing this channel costs config changes and the like; the rings go on.
            tracing::warn!("the daemon's request channel is closed: {error}");
            // With its only descriptor it leaves the set it was watched in.
            self.backend = None;
        }
    }

    /// Puts both sockets in `epoll`; readable when the daemon has something to say.
    pub(super) fn watch(&self, epoll: &Epoll, key: u64) -> io::Result<()> {
        epoll.add(&self.channel, key, Interest::Read)?;
        self.backend.as_ref().map_or(Ok(()), |backend| epoll.add(backend, key, Interest::Read))
    }

    /// Takes them out.
    pub(super) fn unwatch(&self, epoll: &Epoll) {
        epoll.remove(&self.channel);
        if let Some(backend) = &self.backend {
            epoll.remove(backend);
        }
    }
}

fn name_of(request: u32) -> &'static str {
    rule(request).map_or("an unknown request", |rule| rule.name)
}
