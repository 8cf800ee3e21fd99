//! A vhost-user daemon as a device.

mod backend;
mod link;
mod memory;
mod probe;
mod queues;
mod recover;
mod settings;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mem::AddressSpace;
use sys::{Epoll, EventFd, Interest, Timer};
use virtio::{
    DeviceError, DeviceEvent, DeviceType, Features, Identity, NetworkControl, Parameters,
    QueueSetup, Reach, Recovery, Sharing, Status, VirtioDevice, config,
};
use virtqueue::QueuePosition;
use wire::vhost_user::features as protocol;
use wire::vhost_user::{Config, Reply, Request, VringState};

use super::place::{BarePath, Place};
use crate::OpenError;
use backend::BackendEvent;
use link::Link;
use queues::{Running, Session};
use recover::Absence;
use settings::Settings;

/// Numbers of what the control descriptor watches.
const LINK: u64 = 0;
const TIMER: u64 = 1;
/// Plus the number of the queue whose event says that it is broken.
const BROKEN: u64 = 16;
/// Plus the number of the queue whose driver notifies, where that is to be a message.
const KICK: u64 = 1 << 32;

/// Makes the device end from its settings.
///
/// # Errors
/// A setting is wrong, or the daemon does not come or says too little about itself.
pub(super) fn open(mut parameters: Parameters) -> Result<Box<dyn VirtioDevice>, OpenError> {
    let place = Place::from_parameters(&mut parameters, BarePath::Connect)?;
    let settings = Settings::take(&mut parameters)?;
    parameters.finish()?;
    Ok(Box::new(VhostUserDevice::connect(place, settings)?))
}

pub(super) use probe::probe;

/// A daemon that is a device, through good times and bad.
pub(super) struct VhostUserDevice {
    place: Place,
    settings: Settings,
    identity: Identity,
    /// What the driver is shown.
    config: Vec<u8>,
    /// How many bytes of it the daemon knows.
    config_size: u32,
    link: Option<Link>,
    /// While there is no link.
    absence: Option<Absence>,
    session: Session,
    recovery: Recovery,
    /// Most regions the daemon takes.
    memory_slots: usize,
    /// Whether it can log its writes for a migration.
    records_writes: bool,
    epoll: Epoll,
    /// For the next look whether an absent daemon is back; and at once for what is in `events`.
    timer: Timer,
    events: Vec<DeviceEvent>,
}

impl VhostUserDevice {
    /// Waits for the daemon, as long as it may take to answer, and learns what it is.
    fn connect(mut place: Place, settings: Settings) -> Result<Self, DeviceError> {
        let deadline = Instant::now() + settings.timeout;
        let connection = recover::wait_for(&mut place, deadline)?;
        let mut link = Link::new(connection, settings.timeout, settings.more())?;
        if !link.has(settings.more()) {
            let why =
                format!("the daemon at {place} knows no notifications by message: in-band=off");
            return Err(DeviceError::Refused(why));
        }
        let refused = |why| DeviceError::Refused(format!("{place}: {why}"));
        let device = settings.device_type(&link.offer).map_err(refused)?;
        let mut config = read_config(&mut link, device, None)?;
        let config_size = config.len() as u32;
        let identity = settings.identity(device, &link.offer, &mut config).map_err(refused)?;
        let system = || DeviceError::system(format!("watching {place}"));
        let (epoll, timer) = (Epoll::new().map_err(system())?, Timer::new().map_err(system())?);
        link.watch(&epoll, LINK).map_err(system())?;
        epoll.add(&timer, TIMER, Interest::Read).map_err(system())?;
        Ok(Self {
            memory_slots: link.offer.memory_slots,
            records_writes: link.offer.records_writes(),
            place,
            settings,
            identity,
            config,
            config_size,
            link: Some(link),
            absence: None,
            session: Session::default(),
            recovery: Recovery::default(),
            epoll,
            timer,
            events: Vec::new(),
        })
    }

    /// Does something with the daemon. If that ends the connection the device is gone from then on.
    fn with_link<R>(
        &mut self,
        work: impl FnOnce(&mut Link, &mut Session) -> Result<R, DeviceError>,
    ) -> Result<R, DeviceError> {
        let Some(link) = &mut self.link else { return Err(self.gone()) };
        let result = work(link, &mut self.session);
        if let Err(DeviceError::Gone(reason)) = &result {
            let reason = reason.clone();
            self.lose(&reason);
        } else {
            self.look_at_events();
        }
        result
    }

    fn gone(&self) -> DeviceError {
        DeviceError::Gone(format!("nobody answers at {}", self.place))
    }

    /// Deals with what came on the second socket.
    fn look_at_events(&mut self) {
        let Some(link) = &mut self.link else { return };
        let events = std::mem::take(&mut link.events);
        for event in events {
            match event {
                BackendEvent::ConfigChanged => self.config_changed(),
                BackendEvent::QueueBroken(index) => self.queue_broken(index),
                BackendEvent::Interrupt(index) => {
                    if let Some(queue) = self.session.queues.get(&index) {
                        queue.setup.call.signal();
                    }
                }
                // We never accept ACCESS_PLATFORM: a daemon that asks all the same has been told
                // no.
                BackendEvent::IotlbMiss(iotlb) => tracing::debug!("stray IOTLB miss {iotlb:?}"),
            }
        }
    }

    fn config_changed(&mut self) {
        let Some(link) = &mut self.link else { return };
        match read_config(link, self.identity.device, Some(self.config_size)) {
            Ok(mut config) if !config.is_empty() => {
                let offer = link.offer.clone();
                let device = self.identity.device;
                if self.settings.identity(device, &offer, &mut config).is_ok() {
                    self.config = config;
                }
                self.report(DeviceEvent::ConfigChanged);
            }
            Ok(_) => {}
            Err(DeviceError::Gone(reason)) => self.lose(&reason),
            Err(error) => tracing::warn!("reading the changed config: {error}"),
        }
    }

    fn queue_broken(&mut self, index: u16) {
        if self.session.queues.contains_key(&index) {
            let reason = "the daemon gave up on it".to_owned();
            self.report(DeviceEvent::QueueBroken { index, reason });
        }
    }

    /// Tells the daemon by message which queues the driver has notified, if that is agreed on.
    fn relay_kicks(&mut self) {
        if !self.settings.in_band {
            return;
        }
        for (index, queue) in &self.session.queues {
            let kicked = queue.setup.kick.as_ref().is_some_and(|kick| kick.drain());
            // A daemon that is away is notified of every queue when it comes back.
            if let Some(link) = self.link.as_mut().filter(|_| kicked)
                && let Err(error) = link.notify(*index)
            {
                let why = error.to_string();
                return self.lose(&why);
            }
        }
    }

    /// Keeps an event for the driver end and makes the control descriptor readable.
    fn report(&mut self, event: DeviceEvent) {
        if self.events.last() != Some(&event) {
            self.events.push(event);
        }
        self.set_timer(Duration::ZERO);
    }

    fn start(&mut self, setup: QueueSetup) -> Result<(), DeviceError> {
        let (index, position) = (setup.index, setup.spec.start_at);
        let queues = self.identity.queue_sizes.len() as u16;
        let queue_size = self.identity.queue_sizes.iter().copied().max().unwrap_or(0);
        let ours = self.recovery == Recovery::InPlace;
        let broken = EventFd::new().map_err(DeviceError::system("making an eventfd"))?;
        let running = Box::new(Running { setup, enabled: true, broken });
        self.with_link(|link, session| {
            session.send_memory(link)?;
            if session.queues.is_empty() && ours {
                let size = queue_size.max(running.setup.spec.size);
                session.send_record(link, &running.setup, queues, size)?;
            }
            session.start(link, &running, position)
        })?;
        let watching = || DeviceError::system("watching a queue");
        let watched = self.epoll.add(&running.broken, BROKEN + u64::from(index), Interest::Read);
        watched.map_err(watching())?;
        if let Some(kick) = running.setup.kick.as_ref().filter(|_| self.settings.in_band) {
            self.epoll.add(&**kick, KICK + u64::from(index), Interest::Read).map_err(watching())?;
        }
        self.session.queues.insert(index, running);
        Ok(())
    }
}

impl VirtioDevice for VhostUserDevice {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn reach(&self) -> Reach {
        Reach {
            max_regions: self.memory_slots,
            records_writes: self.records_writes,
            follows_iommu: false,
            ..Reach::LOCAL
        }
    }

    fn sharing(&self) -> Sharing {
        Sharing::All
    }

    fn read_config(&mut self, offset: u32, into: &mut [u8]) {
        config::read_bytes(&self.config, offset, into);
    }

    fn write_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), DeviceError> {
        let end = (offset as usize).checked_add(bytes.len());
        if end.is_none_or(|end| end > self.config_size as usize) {
            return Err(DeviceError::BadConfigWrite(offset));
        }
        self.with_link(|link, _| {
            let size = bytes.len() as u32;
            let window = Config { offset, size, flags: 0, data: bytes };
            Ok(link.tell(Request::SetConfig(window), &[])?)
        })?;
        self.config[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn set_memory(&mut self, memory: &Arc<AddressSpace>) -> Result<(), DeviceError> {
        self.session.memory = Some(Arc::clone(memory));
        self.memory_changed()
    }

    fn memory_changed(&mut self) -> Result<(), DeviceError> {
        // Before the features are settled the daemon could not make anything of the regions;
        // `accept_features` sends them.
        if self.session.accepted.is_none() || self.link.is_none() {
            return Ok(());
        }
        if self.session.queues.is_empty() && self.remembers_drivers() {
            // It can be another driver's already, and is sent when a queue starts.
            return Ok(());
        }
        self.with_link(|link, session| session.send_memory(link))
    }

    fn accept_features(&mut self, features: Features) -> Result<(), DeviceError> {
        if !self.identity.features.has(features) {
            return Err(DeviceError::BadFeatures(features - self.identity.features));
        }
        self.session.accepted = Some(features);
        self.with_link(|link, session| {
            session.send_features(link)?;
            session.send_memory(link)
        })
    }

    fn start_queue(&mut self, setup: QueueSetup) -> Result<(), DeviceError> {
        let index = setup.index;
        let known = usize::from(index) < self.identity.queue_sizes.len();
        if !known || self.session.queues.contains_key(&index) {
            return Err(DeviceError::NoSuchQueue(index));
        }
        setup.spec.check()?;
        self.start(setup)
    }

    fn stop_queue(&mut self, index: u16) -> Result<QueuePosition, DeviceError> {
        let running = self.session.queues.remove(&index);
        let running = running.ok_or(DeviceError::NoSuchQueue(index))?;
        self.epoll.remove(&running.broken);
        if let Some(kick) = running.setup.kick.as_ref().filter(|_| self.settings.in_band) {
            self.epoll.remove(&**kick);
        }
        if self.link.is_none() {
            return queues::position_left_behind(&running.setup);
        }
        self.with_link(|link, _| {
            let state = VringState { index: index.into(), num: 0 };
            let num = link.ask(Request::GetVringBase(state), &[], |reply, _| match reply {
                Reply::VringBase(state) => Some(state.num),
                _ => None,
            })?;
            queues::send_enable(link, index, false)?;
            queues::settle(&running.setup, QueuePosition(num));
            Ok(QueuePosition(num))
        })
    }

    fn enable_queue(&mut self, index: u16, enabled: bool) -> Result<(), DeviceError> {
        let queue = self.session.queues.get_mut(&index).ok_or(DeviceError::NoSuchQueue(index))?;
        queue.enabled = enabled;
        if self.link.is_none() {
            return Ok(());
        }
        self.with_link(|link, _| Ok(queues::send_enable(link, index, enabled)?))
    }

    fn notifier_changed(&mut self, index: u16) {
        let result = self.with_link(|link, session| match session.queues.get(&index) {
            Some(queue) => Ok(queues::send_interrupt(link, &queue.setup)?),
            None => Ok(()),
        });
        if let Err(error) = result {
            tracing::debug!("moving the interrupt of queue {index}: {error}");
        }
    }

    fn records_in_flight(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.has(protocol::INFLIGHT_SHMFD))
    }

    fn set_recovery(&mut self, recovery: Recovery) {
        self.recovery = recovery;
    }

    fn network(&mut self) -> Option<&mut dyn NetworkControl> {
        if self.identity.device == DeviceType::NET { Some(self) } else { None }
    }

    fn set_status(&mut self, status: Status) -> Result<(), DeviceError> {
        self.session.status = status;
        if self.link.is_none() {
            return Ok(());
        }
        self.with_link(|link, session| Ok(session.send_status(link, status)?))
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        let running: Vec<u16> = self.session.queues.keys().copied().collect();
        for index in running {
            // What matters is that it is stopped; a daemon that is gone has stopped too.
            if let Err(error) = self.stop_queue(index) {
                tracing::debug!("stopping queue {index} for a reset: {error}");
            }
        }
        let result = self.with_link(|link, session| {
            if link.has(protocol::STATUS) {
                session.send_status(link, Status::RESET)?;
            } else if link.has(protocol::RESET_DEVICE) {
                link.tell(Request::ResetDevice, &[])?;
            }
            memory::forget(link, &session.sent)
        });
        let had_driver = !self.session.sent.is_empty();
        self.session = Session::default();
        if had_driver && self.remembers_drivers() {
            self.call_again();
        }
        match result {
            Err(DeviceError::Gone(_)) | Ok(()) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn control_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }

    fn control_ready(&mut self) -> Vec<DeviceEvent> {
        self.timer.drain();
        if self.absence.as_ref().is_some_and(Absence::is_due) {
            self.try_again();
        }
        let polled = self.link.as_mut().map(Link::poll);
        if let Some(Err(error)) = polled {
            self.lose(&error.to_string());
        }
        let broken = self.session.queues.iter().filter(|(_, queue)| queue.broken.drain());
        for index in broken.map(|(index, _)| *index).collect::<Vec<_>>() {
            self.queue_broken(index);
        }
        self.relay_kicks();
        self.look_at_events();
        // All there is to report goes along.
        match &self.absence {
            Some(absence) => self.set_timer(absence.time_left()),
            None => self.timer.stop(),
        }
        std::mem::take(&mut self.events)
    }
}

impl NetworkControl for VhostUserDevice {
    fn can_announce(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.has(protocol::RARP))
    }

    fn can_set_mtu(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.has(protocol::MTU))
    }

    fn announce(&mut self, mac: [u8; 6]) -> Result<(), DeviceError> {
        self.with_link(|link, _| Ok(link.tell(Request::SendRarp(mac), &[])?))
    }

    fn set_mtu(&mut self, mtu: u16) -> Result<(), DeviceError> {
        self.with_link(|link, session| {
            link.tell(Request::NetSetMtu(mtu.into()), &[])?;
            session.mtu = Some(mtu);
            Ok(())
        })
    }
}

/// The whole config as the daemon has it, `known` bytes or as much as it knows; empty if it has
/// none.
fn read_config(
    link: &mut Link,
    device: DeviceType,
    known: Option<u32>,
) -> Result<Vec<u8>, DeviceError> {
    if !link.has(protocol::CONFIG) {
        return Ok(Vec::new());
    }
    let sizes = settings::config_sizes(device);
    for &size in sizes.iter().filter(|size| known.is_none_or(|known| known == **size)) {
        let config = link.config(0, size)?;
        if !config.is_empty() {
            return Ok(config);
        }
    }
    Ok(Vec::new())
}

impl From<super::place::PlaceError> for OpenError {
    fn from(error: super::place::PlaceError) -> Self {
        use super::place::PlaceError;
        match error {
            PlaceError::Parameter(error) => Self::Parameter(error),
            PlaceError::System(attempt, source) => {
                Self::Device(DeviceError::System { attempt, source })
            }
        }
    }
}
