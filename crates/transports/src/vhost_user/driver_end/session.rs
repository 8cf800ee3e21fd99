//! One connection of a driver's side: its requests and what they do to the device.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mem::DirtyLog;
use sys::{Connection, Epoll, EventFd, Interest, Ready};
use virtio::{DeviceEvent, DeviceType, Features, InFlightArea, Status, VirtioDevice};
use wire::vhost_user::features as protocol;
use wire::vhost_user::{Answer, Header, Reply, Request, answer, rule};

use super::backend::Backend;
use super::memory::{MAX_SLOTS, Memory};
use super::rings::Ring;
use crate::vhost_user::channel::{Channel, ChannelError};

/// Requests served before other descriptors get their turn.
const BATCH: usize = 64;
/// How long an answer may wait for room in the socket.
const SEND_LIMIT: Duration = Duration::from_secs(1);
/// How long a peer may take for the rest of a message it has begun.
const PARTIAL_LIMIT: Duration = Duration::from_secs(1);
/// Complaints about a peer per [`COMPLAINT_PERIOD`].
const COMPLAINTS: u32 = 10;
const COMPLAINT_PERIOD: Duration = Duration::from_secs(5);

/// Keys in the server's epoll set: the socket, and in-band interrupts, which have [`CALL`] plus
/// the queue's number.
pub(super) const SOCKET: u64 = 3;
pub(super) const CALL: u64 = 16;

/// What is offered beyond the device's own features.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Terms {
    /// Whether the driver may go through an IOMMU.
    pub iommu: bool,
}

/// What became of a request.
pub(super) enum Outcome {
    /// Done; acknowledged if that was asked for.
    Done,
    /// It has had its answer.
    Answered,
    /// Nothing was changed, because of this.
    Refused(String),
}

impl<T, E: std::fmt::Display> From<Result<T, E>> for Outcome {
    fn from(result: Result<T, E>) -> Self {
        match result {
            Ok(_) => Self::Done,
            Err(error) => Self::Refused(error.to_string()),
        }
    }
}

/// The state that one connection builds up.
pub(super) struct Session {
    channel: Channel,
    payload: Vec<u8>,
    /// The server's.
    epoll: Arc<Epoll>,
    pub(super) backend: Option<Backend>,
    pub(super) terms: Terms,
    /// The features the driver's side accepted, vhost-user's own bits included.
    pub(super) features: Option<Features>,
    /// The protocol features in force.
    pub(super) protocol: u64,
    pub(super) memory: Memory,
    /// The log that SET_LOG_BASE brought, in use or not.
    pub(super) log: Option<Arc<DirtyLog>>,
    /// Signalled when something is written there.
    pub(super) log_event: Option<Arc<EventFd>>,
    /// The record of requests in flight that the driver's side keeps.
    pub(super) in_flight: Option<Arc<InFlightArea>>,
    pub(super) rings: Vec<Ring>,
    /// The device knows memory and features.
    pub(super) prepared: bool,
    /// The device was told something since it was reset, be it by features that no longer hold.
    pub(super) told: bool,
    pub(super) status: Status,
    complaints: (Instant, u32),
}

impl Session {
    pub(super) fn new(
        socket: Connection,
        device: &dyn VirtioDevice,
        terms: Terms,
        epoll: &Arc<Epoll>,
    ) -> std::io::Result<Self> {
        let channel = Channel::new(socket);
        epoll.add(&channel, SOCKET, Interest::Read)?;
        Ok(Self {
            channel,
            payload: Vec::new(),
            epoll: Arc::clone(epoll),
            backend: None,
            terms,
            features: None,
            protocol: 0,
            memory: Memory::new(),
            log: None,
            log_event: None,
            in_flight: None,
            rings: device.identity().queue_sizes.iter().map(|_| Ring::new()).collect(),
            prepared: false,
            told: false,
            status: Status::RESET,
            complaints: (Instant::now(), 0),
        })
    }

    pub(super) fn has(&self, features: u64) -> bool {
        self.protocol & features == features
    }

    /// Whether memory that the driver's side shares was cut under us.
    pub(super) fn is_cut(&self) -> bool {
        let record = self.in_flight.as_ref().is_some_and(|area| area.mapping.is_poisoned());
        let log = self.log.as_ref().is_some_and(|log| log.mapping().is_poisoned());
        record || log || self.memory.is_poisoned()
    }

    /// By when the rest of a begun message must be here.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.channel.partial_since().map(|since| since + PARTIAL_LIMIT)
    }

    /// Serves what has arrived, of which `ready` tells. An error ends the connection.
    pub(super) fn serve(
        &mut self,
        device: &mut dyn VirtioDevice,
        ready: &[Ready],
    ) -> Result<(), ChannelError> {
        if self.deadline().is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(ChannelError::TimedOut(PARTIAL_LIMIT));
        }
        for ready in ready {
            match ready.key {
                SOCKET => self.serve_requests(device)?,
                CALL.. => self.interrupt_in_band(ready.key - CALL),
                _ => {}
            }
        }
        Ok(())
    }

    fn serve_requests(&mut self, device: &mut dyn VirtioDevice) -> Result<(), ChannelError> {
        for _ in 0..BATCH {
            if !self.channel.receive()? {
                return Ok(());
            }
            self.serve_request(device)?;
        }
        Ok(())
    }

    fn serve_request(&mut self, device: &mut dyn VirtioDevice) -> Result<(), ChannelError> {
        let Some((header, payload)) = self.channel.message() else { return Ok(()) };
        // A copy, because the request borrows it while `self` changes; at most 4 KiB.
        let mut bytes = std::mem::take(&mut self.payload);
        bytes.clear();
        bytes.extend_from_slice(payload);
        let fds = self.channel.take_fds();
        self.channel.next();
        let outcome = match Request::decode(&header, &bytes, fds.len()) {
            Ok(request) => {
                tracing::trace!("{request:?}, {} descriptors", fds.len());
                self.handle(device, request, fds)
            }
            Err(error) if error.is_fatal() => Err(error.into()),
            // Whoever waits for an answer with a payload can't be told no.
            Err(error) if self.answer_to(&header) == Some(Answer::Payload) => Err(error.into()),
            Err(error) => Ok(Outcome::Refused(error.to_string())),
        };
        self.payload = bytes;
        self.acknowledge(&header, outcome?)
    }

    fn answer_to(&self, header: &Header) -> Option<Answer> {
        answer(header.request, header.needs_reply(), self.protocol)
    }

    fn acknowledge(&mut self, header: &Header, outcome: Outcome) -> Result<(), ChannelError> {
        let status = match outcome {
            Outcome::Answered => return Ok(()),
            Outcome::Done => 0,
            Outcome::Refused(why) => {
                let name = rule(header.request).map_or("an unknown request", |rule| rule.name);
                self.complain(&format!("{name} is refused: {why}"));
                1
            }
        };
        match self.answer_to(header) {
            Some(Answer::IfAsked) => self.reply(header.request, &Reply::Value(status), &[]),
            Some(Answer::PayloadWithLogShmfd) | Some(Answer::Payload) => {
                self.reply(header.request, &Reply::LogBase { size: 0, offset: 0 }, &[])
            }
            None => Ok(()),
        }
    }

    /// Says what the peer did wrong, but not ten thousand times.
    pub(super) fn complain(&mut self, what: &str) {
        if self.complaints.0.elapsed() > COMPLAINT_PERIOD {
            self.complaints = (Instant::now(), 0);
        }
        self.complaints.1 += 1;
        match self.complaints.1 {
            ..COMPLAINTS => tracing::warn!("the driver's side: {what}"),
            COMPLAINTS => tracing::warn!("the driver's side: {what}; more is not shown"),
            _ => {}
        }
    }

    pub(super) fn reply(
        &mut self,
        request: u32,
        reply: &Reply<'_>,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ChannelError> {
        self.channel.send(|out| reply.encode(request, out), fds, SEND_LIMIT)
    }

    fn value(&mut self, request: u32, value: u64) -> Result<Outcome, ChannelError> {
        self.reply(request, &Reply::Value(value), &[])?;
        Ok(Outcome::Answered)
    }

    #[rustfmt::skip]
    fn handle(
        &mut self,
        device: &mut dyn VirtioDevice,
        request: Request<'_>,
        fds: Vec<OwnedFd>,
    ) -> Result<Outcome, ChannelError> {
        let number = request.id();
        let fd = |fds: Vec<OwnedFd>| fds.into_iter().next();
        Ok(match request {
            Request::GetFeatures => return self.value(number, self.offered(device).0),
            Request::SetFeatures(bits) => self.set_features(device, Features(bits)),
            Request::GetProtocolFeatures => {
                return self.value(number, self.offered_protocol(device));
            }
            Request::SetProtocolFeatures(bits) => return self.set_protocol(device, bits),
            Request::GetQueueNum => return self.value(number, self.queue_number(device)),
            Request::GetMaxMemSlots => return self.value(number, MAX_SLOTS as u64),
            Request::GetStatus => return self.value(number, self.status.0.into()),
            Request::GetConfig(window) => return self.get_config(device, &window),
            Request::SetConfig(window) => device.write_config(window.offset, window.data).into(),
            Request::SetOwner => Outcome::Done,
            Request::ResetOwner => { self.stop_all(device); Outcome::Done }
            Request::ResetDevice => self.reset(device),
            Request::SetStatus(bits) => self.set_status(device, bits),
            Request::SetMemTable(table) => {
                let changed = self.memory.set_table(&table, fds);
                self.memory_changed(device, changed)
            }
            Request::AddMemReg(region) => {
                let Some(fd) = fd(fds) else { return Ok(Outcome::Done) };
                let changed = self.memory.add(region, fd);
                self.memory_changed(device, changed)
            }
            Request::RemMemReg(region) => {
                let changed = self.memory.remove(region);
                self.memory_changed(device, changed)
            }
            Request::SetLogBase(base) => return self.set_log_base(device, &base, fd(fds)),
            Request::SetLogFd => self.set_log_fd(fd(fds)),
            Request::SendRarp(mac) => self.announce(device, mac),
            Request::NetSetMtu(mtu) => self.set_mtu(device, mtu),
            Request::IotlbMsg(message) => self.iotlb(device, &message),
            Request::SetBackendReqFd => self.set_backend(fd(fds)),
            Request::GetInflightFd(wanted) if self.has(protocol::INFLIGHT_SHMFD) => {
                return self.get_in_flight(&wanted);
            }
            Request::SetInflightFd(told) => self.set_in_flight(&told, fd(fds)),
            Request::SetVringNum(state) => self.set_num(device, state),
            Request::SetVringBase(state) => self.set_base(device, state),
            Request::SetVringAddr(addresses) => self.set_addresses(device, addresses),
            Request::SetVringKick(vring) => self.set_kick(device, vring, fd(fds)),
            Request::SetVringCall(vring) => self.set_call(device, vring, fd(fds)),
            Request::SetVringErr(vring) => self.set_err(vring, fd(fds)),
            Request::SetVringEnable(state) => self.set_enable(device, state),
            Request::GetVringBase(state) => return self.get_base(device, state),
            Request::VringKick(state) => self.kick_in_band(device, state),
            // Refused: not offered, or not known.
            _ if answer(number, false, self.protocol) == Some(Answer::Payload) => {
                return self.value(number, u64::MAX);
            }
            _ => Outcome::Refused("it was not offered".into()),
        })
    }

    /// What the device has to say.
    pub(super) fn device_event(&mut self, device: &mut dyn VirtioDevice, event: DeviceEvent) {
        match event {
            DeviceEvent::ConfigChanged => {
                if let Some(backend) = self.backend.as_ref().filter(|_| self.has(protocol::CONFIG))
                {
                    backend.config_changed();
                }
            }
            DeviceEvent::NeedsReset(reason) => {
                tracing::warn!("the device needs a reset: {reason}");
                self.status = self.status.with(Status::NEEDS_RESET);
                self.rings.iter().filter(|ring| ring.running).for_each(Ring::signal_broken);
            }
            DeviceEvent::QueueBroken { index, reason } => {
                tracing::warn!("queue {index} is broken: {reason}");
                self.stop(device, usize::from(index));
                if let Some(ring) = self.rings.get(usize::from(index)) {
                    ring.signal_broken();
                }
            }
            DeviceEvent::Gone(reason) => tracing::warn!("the device is away: {reason}"),
            DeviceEvent::Back => {
                tracing::info!("the device is back");
                self.start_ready(device);
            }
        }
    }

    /// Joins an in-band interrupt to what [`Session::serve`] looks at.
    pub(super) fn watch(&self, event: &impl AsFd, key: u64) -> std::io::Result<()> {
        self.epoll.add(event, key, Interest::Read)
    }

    pub(super) fn unwatch(&self, event: &impl AsFd) {
        self.epoll.remove(event);
    }

    /// Takes everything out of the server's set.
    pub(super) fn unwatch_all(&self) {
        self.epoll.remove(&self.channel);
        self.rings.iter().filter_map(|ring| ring.inband_call.as_ref()).for_each(|event| {
            self.unwatch(&**event);
        });
    }

    fn interrupt_in_band(&mut self, index: u64) {
        let Some(ring) = self.rings.get(index as usize) else { return };
        let signalled = ring.inband_call.as_ref().is_some_and(|event| event.drain());
        if let Some(backend) = self.backend.as_ref().filter(|_| signalled) {
            backend.call(index as u16);
        }
    }

    fn queue_number(&self, device: &dyn VirtioDevice) -> u64 {
        let queues = device.identity().queue_sizes.len() as u64;
        // Network daemons count pairs, and the control queue is none of their business.
        if device.identity().device == DeviceType::NET { queues / 2 } else { queues }
    }

    /// The number of a request's queue, if the device has it.
    pub(super) fn ring_index(&self, index: u32) -> Result<usize, String> {
        let found = usize::try_from(index).ok().filter(|&index| index < self.rings.len());
        found.ok_or_else(|| format!("there is no queue {index}"))
    }
}
