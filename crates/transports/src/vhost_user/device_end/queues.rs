//! What the daemon must be told to run the driver's queues, and to run them again after it went
//! away.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mem::{AddressSpace, DirtyLog, DriverAddress};
use sys::EventFd;
use virtio::{DeviceError, Features, InFlightArea, QueueSetup, Status};
use virtqueue::{QueuePosition, RingFormat};
use wire::vhost_user::features as protocol;
use wire::vhost_user::{
    Inflight, LogBase, Reply, Request, VRING_ADDR_F_LOG, VringAddr, VringFd, VringState,
};

use super::link::{Link, LinkError};
use super::memory::{self, SharedRegion};

/// A queue the daemon runs.
#[derive(Debug)]
pub(super) struct Running {
    pub setup: QueueSetup,
    pub enabled: bool,
    /// The daemon signals it when it gives up on the queue.
    pub broken: EventFd,
}

/// The record of requests in flight that the daemon keeps and we hold for the next one.
#[derive(Debug)]
pub(super) enum Record {
    /// The daemon made it.
    Ours(OwnedFd, Inflight),
    /// The driver's side keeps it.
    Drivers(Arc<InFlightArea>),
}

/// All that a daemon which comes back must be told.
#[derive(Debug, Default)]
pub(super) struct Session {
    pub accepted: Option<Features>,
    pub memory: Option<Arc<AddressSpace>>,
    pub sent: Vec<SharedRegion>,
    pub log: Option<Arc<DirtyLog>>,
    /// Boxes, because a map has room for several values from the start.
    pub queues: BTreeMap<u16, Box<Running>>,
    pub status: Status,
    pub record: Option<Record>,
    /// The largest packet, if the driver's side has told.
    pub mtu: Option<u16>,
}

impl Session {
    /// The features as the daemon must see them: only what it offered, and its own bits.
    pub(super) fn send_features(&self, link: &mut Link) -> Result<(), LinkError> {
        let Some(accepted) = self.accepted else { return Ok(()) };
        let mut features = accepted & link.offer.features;
        features = features | (Features::PROTOCOL_FEATURES & link.offer.features);
        features = features - Features::LOG_ALL;
        if self.log.is_some() {
            features = features | Features::LOG_ALL;
        }
        link.tell(Request::SetFeatures(features.0), &[])
    }

    /// The memory regions as they are now, and where writes to them are to be recorded.
    pub(super) fn send_memory(&mut self, link: &mut Link) -> Result<(), DeviceError> {
        let Some(memory) = &self.memory else { return Ok(()) };
        let map = memory.current();
        memory::share(link, &mut self.sent, &map)?;
        let log = map.dirty_log().cloned();
        let same = match (&log, &self.log) {
            (Some(new), Some(old)) => Arc::ptr_eq(new, old),
            (None, None) => true,
            _ => false,
        };
        if !same {
            self.log = log;
            self.send_log(link)?;
        }
        Ok(())
    }

    /// Starts or ends the recording of writes (vhost-user, "Migration").
    fn send_log(&self, link: &mut Link) -> Result<(), DeviceError> {
        if !link.offer.records_writes() {
            let why = "the daemon can't record what it writes, which a migration needs";
            return Err(DeviceError::Refused(why.into()));
        }
        if let Some(log) = &self.log {
            let (fd, offset) = log.mapping().file().ok_or_else(|| {
                DeviceError::Refused("the log of written pages has no file".into())
            })?;
            let base = LogBase::Shared { size: log.mapping().len() as u64, offset };
            link.tell(Request::SetLogBase(base), &[fd])?;
        }
        self.send_features(link)?;
        for queue in self.queues.values() {
            self.send_addresses(link, &queue.setup)?;
        }
        Ok(())
    }

    fn send_addresses(&self, link: &mut Link, setup: &QueueSetup) -> Result<(), DeviceError> {
        let at = setup.spec.addresses;
        let flags = if self.log.is_some() { VRING_ADDR_F_LOG } else { 0 };
        let addresses = VringAddr {
            index: setup.index.into(),
            flags,
            descriptor: memory::user_address(&self.sent, at.descriptor)?,
            used: memory::user_address(&self.sent, at.device)?,
            available: memory::user_address(&self.sent, at.driver)?,
            // This one is the driver's: pages are logged by it.
            log: at.device.0,
        };
        Ok(link.tell(Request::SetVringAddr(addresses), &[])?)
    }

    /// Has the daemon run a queue from `position` on. The interrupt goes first, so that none is
    /// lost.
    pub(super) fn start(
        &self,
        link: &mut Link,
        queue: &Running,
        position: QueuePosition,
    ) -> Result<(), DeviceError> {
        let setup = &queue.setup;
        let index = u32::from(setup.index);
        link.tell(Request::SetVringNum(VringState { index, num: setup.spec.size.into() }), &[])?;
        link.tell(Request::SetVringBase(VringState { index, num: position.0 }), &[])?;
        self.send_addresses(link, setup)?;
        if link.has(protocol::INBAND_NOTIFICATIONS) {
            // The first message starts the queue, and neither event is told of (vhost-user,
            // "VHOST_USER_SET_VRING_KICK").
            send_enable(link, setup.index, queue.enabled)?;
            return Ok(link.notify(setup.index)?);
        }
        send_interrupt(link, setup)?;
        let event = VringFd { index: setup.index as u8, has_fd: true };
        link.tell(Request::SetVringErr(event), &[queue.broken.as_fd()])?;
        match &setup.kick {
            Some(kick) => link.tell(Request::SetVringKick(event), &[kick.as_fd()])?,
            None => {
                link.tell(Request::SetVringKick(VringFd { has_fd: false, ..event }), &[])?;
            }
        }
        send_enable(link, setup.index, queue.enabled)?;
        // Requests may have been made available before; "front-ends SHOULD inject a kick" ("Ring
        // states").
        if let Some(kick) = &setup.kick {
            kick.signal();
        }
        Ok(())
    }

    /// Gives the daemon the record of requests in flight, before the first queue starts.
    pub(super) fn send_record(
        &mut self,
        link: &mut Link,
        setup: &QueueSetup,
        queues: u16,
        queue_size: u16,
    ) -> Result<(), DeviceError> {
        if !link.has(protocol::INFLIGHT_SHMFD) {
            return Ok(());
        }
        if self.record.is_none() {
            self.record = match &setup.in_flight {
                Some(area) => Some(Record::Drivers(Arc::clone(area))),
                None => new_record(link, queues, queue_size)?,
            };
        }
        match &self.record {
            Some(Record::Ours(fd, inflight)) => {
                link.tell(Request::SetInflightFd(*inflight), &[fd.as_fd()])?;
            }
            Some(Record::Drivers(area)) => {
                let (fd, mmap_offset) = area.mapping.file().ok_or_else(|| {
                    DeviceError::Refused("the record of requests in flight has no file".into())
                })?;
                let inflight = Inflight {
                    mmap_size: area.mapping.len() as u64,
                    mmap_offset,
                    queues: area.queues,
                    queue_size: area.queue_size,
                };
                link.tell(Request::SetInflightFd(inflight), &[fd])?;
            }
            None => {}
        }
        Ok(())
    }

    /// Everything again, for a daemon that has just come; `queues` only if the rings are not
    /// started afresh by somebody else.
    pub(super) fn replay(&mut self, link: &mut Link, status: Status) -> Result<(), DeviceError> {
        self.sent.clear();
        self.log = None;
        if self.accepted.is_none() {
            return Ok(());
        }
        self.send_status(link, status.without(Status::DRIVER_OK))?;
        self.send_features(link)?;
        if let Some(mtu) = self.mtu.filter(|_| link.has(protocol::MTU)) {
            link.tell(Request::NetSetMtu(mtu.into()), &[])?;
        }
        self.send_memory(link)?;
        let running = std::mem::take(&mut self.queues);
        let outcome = self.replay_queues(link, &running);
        self.queues = running;
        outcome?;
        Ok(self.send_status(link, status)?)
    }

    fn replay_queues(
        &mut self,
        link: &mut Link,
        running: &BTreeMap<u16, Box<Running>>,
    ) -> Result<(), DeviceError> {
        if let Some(first) = running.values().next() {
            self.send_record(link, &first.setup, running.len() as u16, first.setup.spec.size)?;
        }
        for queue in running.values() {
            let position = position_left_behind(&queue.setup)?;
            self.start(link, queue, position)?;
        }
        Ok(())
    }

    pub(super) fn send_status(&self, link: &mut Link, status: Status) -> Result<(), LinkError> {
        if !link.has(protocol::STATUS) {
            return Ok(());
        }
        link.tell(Request::SetStatus(status.0.into()), &[])
    }
}

/// Which event the daemon signals when the driver is to be interrupted.
pub(super) fn send_interrupt(link: &mut Link, setup: &QueueSetup) -> Result<(), LinkError> {
    if link.has(protocol::INBAND_NOTIFICATIONS) {
        return Ok(());
    }
    let index = setup.index as u8;
    match setup.call.event() {
        Some(event) => {
            link.tell(Request::SetVringCall(VringFd { index, has_fd: true }), &[event.as_fd()])
        }
        None => link.tell(Request::SetVringCall(VringFd { index, has_fd: false }), &[]),
    }
}

/// Without protocol features a queue is enabled from its start ("Ring states").
pub(super) fn send_enable(link: &mut Link, index: u16, enabled: bool) -> Result<(), LinkError> {
    if !link.offer.features.has(Features::PROTOCOL_FEATURES) {
        return Ok(());
    }
    let state = VringState { index: index.into(), num: enabled.into() };
    link.tell(Request::SetVringEnable(state), &[])
}

fn new_record(link: &mut Link, queues: u16, queue_size: u16) -> Result<Option<Record>, LinkError> {
    let wanted = Inflight { mmap_size: 0, mmap_offset: 0, queues, queue_size };
    link.ask(Request::GetInflightFd(wanted), &[], |reply, mut fds| match reply {
        // No area: the daemon does without for this device.
        Reply::Inflight(inflight) => Some(fds.pop().map(|fd| Record::Ours(fd, inflight))),
        _ => None,
    })
}

/// Where a queue goes on whose daemon is gone without saying how far it was. For split rings that
/// is what the driver has seen completed; for packed rings nothing in the ring tells.
pub(super) fn position_left_behind(setup: &QueueSetup) -> Result<QueuePosition, DeviceError> {
    /// Offset of the index in the used ring (VIRTIO 1.4, 2.7.8).
    const USED_INDEX: u64 = 2;
    if setup.spec.format == RingFormat::Packed {
        let why = "a packed queue can't go on where it was: the daemon is gone and left no record";
        return Err(DeviceError::Refused(why.into()));
    }
    let mut index = [0; 2];
    let at = DriverAddress(setup.spec.addresses.device.0 + USED_INDEX);
    setup.memory.current().read(at, &mut index)?;
    Ok(QueuePosition::split(u16::from_le_bytes(index)))
}

/// How long a daemon may take to complete what it had taken from a queue that is stopped: longer
/// than a request takes, short enough for a driver that waits.
const SETTLE: Duration = Duration::from_secs(1);

/// Waits until the daemon has completed each chain it took before `position`, where it stopped.
///
/// qemu-storage-daemon answers GET_VRING_BASE at once, completes what is in flight later, and
/// crashes if the memory it writes to is taken away meanwhile. There is no event to wait for: the
/// ring's interrupt is the driver's. A packed ring does not tell what is in flight.
pub(super) fn settle(setup: &QueueSetup, position: QueuePosition) {
    if setup.spec.format == RingFormat::Packed {
        return;
    }
    let deadline = Instant::now() + SETTLE;
    while let Ok(done) = position_left_behind(setup) {
        if done.index() == position.index() {
            return;
        }
        if Instant::now() >= deadline {
            let queue = setup.index;
            tracing::debug!("the daemon stopped queue {queue} and left requests in flight");
            return;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}
