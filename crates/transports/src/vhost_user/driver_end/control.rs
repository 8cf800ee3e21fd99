//! Requests about the device as a whole: features, config, status, memory, translations.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use mem::DirtyLog;
use sys::EventFd;
use virtio::{DeviceError, Features, Status, VirtioDevice, config};
use wire::vhost_user::features as protocol;
use wire::vhost_user::{Config, Iotlb, LogBase, Reply, id};

use super::backend::Backend;
use super::memory::{Memory, Refusal};
use super::rings;
use super::session::{Outcome, Session};
use crate::vhost_user::channel::ChannelError;

/// Bits that only mean something between a driver and its bus.
const NOT_OURS: Features = Features(
    Features::ACCESS_PLATFORM.0
        | Features::SR_IOV.0
        | Features::NOTIFICATION_DATA.0
        | Features::NOTIF_CONFIG_DATA.0
        | Features::RING_RESET.0
        | Features::ADMIN_VQ.0,
);

impl Session {
    /// What GET_FEATURES says.
    pub(super) fn offered(&self, device: &dyn VirtioDevice) -> Features {
        let mut offered = (device.identity().features - NOT_OURS) | Features::PROTOCOL_FEATURES;
        if self.terms.iommu {
            offered = offered | Features::ACCESS_PLATFORM;
        }
        if self.can_log(device) {
            offered = offered | Features::LOG_ALL;
        }
        offered
    }

    /// Whether a guest on this device can be migrated. Behind an IOMMU it can't: the log counts the
    /// machine's pages, and we know the driver's only.
    fn can_log(&self, device: &dyn VirtioDevice) -> bool {
        device.reach().records_writes && !self.terms.iommu
    }

    /// What GET_PROTOCOL_FEATURES says: only what is done.
    pub(super) fn offered_protocol(&self, device: &mut dyn VirtioDevice) -> u64 {
        let network = device.network().map_or(0, |network| {
            let bit = |can, bit| if can { bit } else { 0 };
            bit(network.can_announce(), protocol::RARP) | bit(network.can_set_mtu(), protocol::MTU)
        });
        let identity = device.identity();
        let mut offered = network
            | protocol::MQ
            | protocol::REPLY_ACK
            | protocol::BACKEND_REQ
            | protocol::RESET_DEVICE
            | protocol::INBAND_NOTIFICATIONS
            | protocol::CONFIGURE_MEM_SLOTS
            | protocol::STATUS;
        // QEMU warns that it makes the config of net and fs devices itself; User Mode Linux needs
        // ours.
        if identity.config_len > 0 {
            offered |= protocol::CONFIG;
        }
        if device.records_in_flight() {
            offered |= protocol::INFLIGHT_SHMFD;
        }
        if self.can_log(device) {
            offered |= protocol::LOG_SHMFD;
        }
        offered
    }

    pub(super) fn set_protocol(
        &mut self,
        device: &mut dyn VirtioDevice,
        bits: u64,
    ) -> Result<Outcome, ChannelError> {
        if bits & !self.offered_protocol(device) != 0 {
            return Ok(Outcome::Refused("it accepts what was not offered".into()));
        }
        if protocol::is_contradictory(bits) {
            // "In-band notifications": the back-end MUST close the connection.
            return Err(ChannelError::Closed);
        }
        self.protocol = bits;
        Ok(Outcome::Done)
    }

    pub(super) fn set_features(
        &mut self,
        device: &mut dyn VirtioDevice,
        features: Features,
    ) -> Outcome {
        if !self.offered(device).has(features) {
            return Outcome::Refused(format!(
                "{} was not offered",
                features - self.offered(device)
            ));
        }
        let unchanged = |features| features - Features::LOG_ALL - Features::PROTOCOL_FEATURES;
        let running = self.rings.iter().any(|ring| ring.running);
        if running && self.features.map(unchanged) != Some(unchanged(features)) {
            return Outcome::Refused("queues are running".into());
        }
        let logged = features.has(Features::LOG_ALL);
        let log_changed = logged != self.features.is_some_and(|old| old.has(Features::LOG_ALL));
        self.features = Some(features);
        if running {
            return if log_changed { self.switch_log(device) } else { Outcome::Done };
        }
        self.prepared = false;
        self.memory.set_translated(features.has(Features::ACCESS_PLATFORM));
        self.memory.set_log(self.log.clone().filter(|_| logged));
        if !features.has(Features::PROTOCOL_FEATURES) {
            self.rings.iter_mut().for_each(|ring| ring.enabled = true);
        }
        self.start_ready(device);
        Outcome::Done
    }

    /// A migration begins or ends while queues run. They are started anew: what is in flight was
    /// taken by somebody who did not record where it may be written.
    fn switch_log(&mut self, device: &mut dyn VirtioDevice) -> Outcome {
        self.stop_all(device);
        self.use_log(device)
    }

    /// Writes are recorded in the log that there is, or not at all, from when this returns.
    fn use_log(&mut self, device: &mut dyn VirtioDevice) -> Outcome {
        let logged = self.features.is_some_and(|features| features.has(Features::LOG_ALL));
        self.memory.set_log(self.log.clone().filter(|_| logged));
        self.memory_changed(device, Ok(()))
    }

    /// An event that tells the driver's side of new bits in the log ("Migration": it "may be used
    /// to inform the front-end that the log has been modified"). A log has one at most; another one
    /// is for the next log. Where the device records by itself, as a daemon in pass mode, nobody
    /// signals it.
    pub(super) fn set_log_fd(&mut self, fd: Option<OwnedFd>) -> Outcome {
        self.log_event = match fd.map(rings::event_from).transpose() {
            Ok(event) => event.map(Arc::new),
            Err(error) => return Outcome::Refused(error.to_string()),
        };
        if let Some(log) = &self.log {
            watch_log(log, self.log_event.as_ref());
        }
        Outcome::Done
    }

    pub(super) fn set_log_base(
        &mut self,
        device: &mut dyn VirtioDevice,
        base: &LogBase,
        fd: Option<OwnedFd>,
    ) -> Result<Outcome, ChannelError> {
        let shared = fd.filter(|_| self.has(protocol::LOG_SHMFD));
        let (Some(fd), LogBase::Shared { size, offset }) = (shared, *base) else {
            return Ok(Outcome::Refused("a log that is not shared memory".into()));
        };
        match Memory::log_from(base, fd) {
            Ok(log) => {
                watch_log(&log, self.log_event.as_ref());
                self.log = Some(log);
            }
            Err(error) => return Ok(Outcome::Refused(error.to_string())),
        }
        match self.use_log(device) {
            Outcome::Done => {
                self.reply(id::SET_LOG_BASE, &Reply::LogBase { size, offset }, &[])?;
                Ok(Outcome::Answered)
            }
            other => Ok(other),
        }
    }

    /// Tells the device about memory and features, before its first queue starts.
    pub(super) fn prepare(&mut self, device: &mut dyn VirtioDevice) -> Result<(), DeviceError> {
        if self.prepared {
            return Ok(());
        }
        let features = self.features.unwrap_or_default();
        self.told = true;
        device.set_memory(self.memory.space())?;
        // Whether there is an IOMMU is between us and the driver's side, unless the device asked
        // for it.
        device.accept_features(features & device.identity().features)?;
        self.prepared = true;
        Ok(())
    }

    pub(super) fn memory_changed(
        &mut self,
        device: &mut dyn VirtioDevice,
        changed: Result<(), Refusal>,
    ) -> Outcome {
        if let Err(error) = changed {
            return Outcome::Refused(error.to_string());
        }
        let told = if self.prepared { device.memory_changed() } else { Ok(()) };
        self.memory.settle();
        self.start_ready(device);
        told.into()
    }

    /// IOTLB_MSG: a translation comes or goes.
    pub(super) fn iotlb(&mut self, device: &mut dyn VirtioDevice, message: &Iotlb) -> Outcome {
        let removed = match self.memory.translate(message) {
            Ok(removed) => removed,
            Err(error) => return Outcome::Refused(error.to_string()),
        };
        if let Some(backend) = &self.backend {
            backend.answered(message);
        }
        let told = if self.prepared { device.memory_changed() } else { Ok(()) };
        if removed {
            self.memory.settle();
        } else {
            self.start_ready(device);
            // Queues that stopped at this address go on.
            self.kick_all();
        }
        told.into()
    }

    /// SEND_RARP: the driver's station is here now.
    pub(super) fn announce(&mut self, device: &mut dyn VirtioDevice, mac: [u8; 6]) -> Outcome {
        match device.network().filter(|_| self.has(protocol::RARP)) {
            Some(network) => network.announce(mac).into(),
            None => Outcome::Refused("it was not offered".into()),
        }
    }

    /// NET_SET_MTU.
    pub(super) fn set_mtu(&mut self, device: &mut dyn VirtioDevice, mtu: u64) -> Outcome {
        /// The smallest that IP works with (VIRTIO 1.4, 5.1.4.1).
        const LEAST: u16 = 68;
        let Some(network) = device.network().filter(|_| self.has(protocol::MTU)) else {
            return Outcome::Refused("it was not offered".into());
        };
        match u16::try_from(mtu).ok().filter(|&mtu| mtu >= LEAST) {
            Some(mtu) => network.set_mtu(mtu).into(),
            None => Outcome::Refused(format!("packets of {mtu} bytes")),
        }
    }

    pub(super) fn set_backend(&mut self, fd: Option<OwnedFd>) -> Outcome {
        let Some(fd) = fd.filter(|_| self.has(protocol::BACKEND_REQ)) else {
            return Outcome::Refused("it was not offered".into());
        };
        match Backend::new(fd) {
            Ok(backend) => {
                let asker = backend.clone();
                self.memory.space().set_miss_handler(move |at, wanted| asker.miss(at, wanted));
                self.backend = Some(backend);
                Outcome::Done
            }
            Err(error) => Outcome::Refused(error.to_string()),
        }
    }

    pub(super) fn get_config(
        &mut self,
        device: &mut dyn VirtioDevice,
        window: &Config<'_>,
    ) -> Result<Outcome, ChannelError> {
        let len = device.identity().config_len.max(config::len_of(device.identity().device));
        if window.size == 0 || window.offset >= len.max(1) {
            self.reply(id::GET_CONFIG, &Reply::NoConfig, &[])?;
            return Ok(Outcome::Answered);
        }
        // The decoder has checked that the size is at most 256.
        let mut data = vec![0; window.size as usize];
        device.read_config(window.offset, &mut data);
        let config = Config { data: &data, ..*window };
        self.reply(id::GET_CONFIG, &Reply::Config(config), &[])?;
        Ok(Outcome::Answered)
    }

    pub(super) fn set_status(&mut self, device: &mut dyn VirtioDevice, bits: u64) -> Outcome {
        let Ok(bits) = u8::try_from(bits) else {
            return Outcome::Refused(format!("there is no status {bits:#x}"));
        };
        if bits == 0 {
            return self.reset(device);
        }
        self.status = Status(bits);
        self.forward_status(device).into()
    }

    fn forward_status(&mut self, device: &mut dyn VirtioDevice) -> Result<(), DeviceError> {
        // A driver's side that agreed on STATUS and starts queues without it has said nothing, and
        // not that the device should be reset.
        let is_said = self.prepared && self.status != Status::RESET;
        if is_said { device.set_status(self.status) } else { Ok(()) }
    }

    /// The driver is ready, now that a queue runs: drivers' sides without STATUS never say so.
    pub(super) fn announce_ready(
        &mut self,
        device: &mut dyn VirtioDevice,
    ) -> Result<(), DeviceError> {
        if !self.has(protocol::STATUS) {
            let steps = [Status::ACKNOWLEDGE, Status::DRIVER, Status::FEATURES_OK];
            self.status = steps.into_iter().fold(Status::DRIVER_OK, Status::with);
        }
        self.forward_status(device)
    }

    /// RESET_DEVICE, or status 0.
    pub(super) fn reset(&mut self, device: &mut dyn VirtioDevice) -> Outcome {
        self.stop_all(device);
        self.status = Status::RESET;
        self.prepared = false;
        if std::mem::take(&mut self.told) { device.reset().into() } else { Outcome::Done }
    }
}

/// Has `event` signalled when `log` gets new bits.
fn watch_log(log: &DirtyLog, event: Option<&Arc<EventFd>>) {
    if let Some(event) = event.map(Arc::clone) {
        log.watch(move || event.signal());
    }
}
