//! Requests about one queue, and when a queue starts and stops.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use mem::DriverAddress;
use sys::EventFd;
use virtio::{DeviceError, QueueSetup, VirtioDevice};
use virtqueue::{QueueAddresses, QueueError, QueuePosition};
use wire::vhost_user::features as protocol;
use wire::vhost_user::{Reply, VringAddr, VringFd, VringState, id};

use super::rings::{self, Kick};
use super::session::{CALL, Outcome, Session};
use crate::vhost_user::channel::ChannelError;

/// Takes the value or leaves with a refusal.
macro_rules! or_refuse {
    ($result:expr) => {
        match $result {
            Ok(value) => value,
            Err(error) => return Outcome::Refused(error.to_string()),
        }
    };
}

impl Session {
    pub(super) fn set_num(&mut self, device: &mut dyn VirtioDevice, state: VringState) -> Outcome {
        let index = or_refuse!(self.ring_index(state.index));
        let Some(size) = rings::checked_size(state.num, self.features) else {
            return Outcome::Refused(format!("a queue can't have {} descriptors", state.num));
        };
        if self.rings[index].size != size {
            self.stop(device, index);
            self.rings[index].size = size;
        }
        self.try_start(device, index)
    }

    pub(super) fn set_base(&mut self, device: &mut dyn VirtioDevice, state: VringState) -> Outcome {
        let index = or_refuse!(self.ring_index(state.index));
        self.stop(device, index);
        self.rings[index].base = state.num;
        self.try_start(device, index)
    }

    pub(super) fn set_addresses(
        &mut self,
        device: &mut dyn VirtioDevice,
        addresses: VringAddr,
    ) -> Outcome {
        let index = or_refuse!(self.ring_index(addresses.index));
        let places =
            |addresses: &VringAddr| (addresses.descriptor, addresses.used, addresses.available);
        // QEMU repeats the addresses when it switches logging on or off; that must not stop the
        // queue.
        if self.rings[index].addresses.as_ref().map(places) != Some(places(&addresses)) {
            if let Err(reason) = self.ring_places(&addresses) {
                return Outcome::Refused(reason);
            }
            self.stop(device, index);
        }
        self.rings[index].addresses = Some(addresses);
        self.try_start(device, index)
    }

    pub(super) fn set_kick(
        &mut self,
        device: &mut dyn VirtioDevice,
        vring: VringFd,
        fd: Option<OwnedFd>,
    ) -> Outcome {
        let index = or_refuse!(self.ring_index(vring.index.into()));
        let kick = match fd {
            Some(fd) => Kick::Event(Arc::new(or_refuse!(rings::kick_from(fd)))),
            None if self.has(protocol::INBAND_NOTIFICATIONS) => {
                Kick::Event(Arc::new(or_refuse!(EventFd::new())))
            }
            None => Kick::Polled,
        };
        self.stop(device, index);
        self.rings[index].kick = kick;
        self.try_start(device, index)
    }

    pub(super) fn set_call(
        &mut self,
        device: &mut dyn VirtioDevice,
        vring: VringFd,
        fd: Option<OwnedFd>,
    ) -> Outcome {
        let index = or_refuse!(self.ring_index(vring.index.into()));
        let event = or_refuse!(fd.map(rings::event_from).transpose());
        if let Some(old) = self.rings[index].inband_call.take() {
            self.unwatch(&*old);
        }
        if event.is_none() && self.has(protocol::INBAND_NOTIFICATIONS) {
            or_refuse!(self.call_in_band(index));
        } else {
            self.rings[index].call.set(event.map(Arc::new));
        }
        let ring = &mut self.rings[index];
        // What was completed while there was no event to signal, or the old one was being put away,
        // is not lost.
        ring.call.signal();
        if ring.running {
            device.notifier_changed(index as u16);
        }
        Outcome::Done
    }

    pub(super) fn set_err(&mut self, vring: VringFd, fd: Option<OwnedFd>) -> Outcome {
        let index = or_refuse!(self.ring_index(vring.index.into()));
        let event = or_refuse!(fd.map(rings::event_from).transpose());
        self.rings[index].broken = event;
        Outcome::Done
    }

    pub(super) fn set_enable(
        &mut self,
        device: &mut dyn VirtioDevice,
        state: VringState,
    ) -> Outcome {
        let index = or_refuse!(self.ring_index(state.index));
        if state.num > 1 {
            return Outcome::Refused(format!("enable is 0 or 1, not {:#x}", state.num));
        }
        let enabled = state.num == 1;
        let ring = &mut self.rings[index];
        let changed = ring.enabled != enabled;
        ring.enabled = enabled;
        if changed && ring.running {
            return device.enable_queue(index as u16, enabled).into();
        }
        self.try_start(device, index)
    }

    /// GET_VRING_BASE: stops the queue and says where.
    pub(super) fn get_base(
        &mut self,
        device: &mut dyn VirtioDevice,
        state: VringState,
    ) -> Result<Outcome, ChannelError> {
        let Ok(index) = self.ring_index(state.index) else { return Err(ChannelError::Closed) };
        self.stop(device, index);
        self.rings[index].kick = Kick::Unset;
        let num = self.rings[index].base;
        self.reply(id::GET_VRING_BASE, &Reply::VringBase(VringState { num, ..state }), &[])?;
        Ok(Outcome::Answered)
    }

    /// VRING_KICK. User Mode Linux never sends SET_VRING_KICK when notifications are in band, so
    /// the first of these messages starts the queue.
    pub(super) fn kick_in_band(
        &mut self,
        device: &mut dyn VirtioDevice,
        state: VringState,
    ) -> Outcome {
        let index = or_refuse!(self.ring_index(state.index));
        if !self.has(protocol::INBAND_NOTIFICATIONS) {
            return Outcome::Refused("it was not offered".into());
        }
        if let Kick::Event(event) = &self.rings[index].kick {
            event.signal();
            return Outcome::Done;
        }
        self.rings[index].kick = Kick::Event(Arc::new(or_refuse!(EventFd::new())));
        if self.rings[index].call.event().is_none() {
            or_refuse!(self.call_in_band(index));
        }
        self.try_start(device, index)
    }

    /// From now on interrupts of this queue become messages.
    fn call_in_band(&mut self, index: usize) -> std::io::Result<()> {
        let event = Arc::new(EventFd::new()?);
        self.watch(&*event, CALL + index as u64)?;
        let ring = &mut self.rings[index];
        ring.call.set(Some(Arc::clone(&event)));
        ring.inband_call = Some(event);
        Ok(())
    }

    /// Starts every queue that only waited for this.
    pub(super) fn start_ready(&mut self, device: &mut dyn VirtioDevice) {
        for index in 0..self.rings.len() {
            if let Outcome::Refused(why) = self.try_start(device, index) {
                self.complain(&format!("queue {index} can't start: {why}"));
            }
        }
    }

    /// Starts a queue if everything is known that it takes. Messages come in different orders from
    /// different peers.
    fn try_start(&mut self, device: &mut dyn VirtioDevice, index: usize) -> Outcome {
        let ring = &self.rings[index];
        if ring.running || !ring.is_complete() || !ring.enabled {
            return Outcome::Done;
        }
        if self.features.is_none() || self.memory.is_empty() {
            return Outcome::Done;
        }
        match self.start(device, index) {
            Ok(()) => Outcome::Done,
            Err(StartError::Later) => Outcome::Done,
            Err(StartError::Never(why)) => {
                self.rings[index].signal_broken();
                Outcome::Refused(why)
            }
        }
    }

    fn start(&mut self, device: &mut dyn VirtioDevice, index: usize) -> Result<(), StartError> {
        let ring = &self.rings[index];
        let Some(told) = &ring.addresses else { return Err(StartError::Later) };
        let addresses = self.ring_places(told)?;
        let features = self.features.unwrap_or_default();
        let map = self.memory.space().current();
        let spec = ring.spec(features, addresses, &map);
        spec.check().map_err(DeviceError::from)?;
        if let Some(page) = rings::missing_page(&spec, &map).filter(|_| map.is_translated()) {
            self.memory.space().report_miss(page, mem::Access::Read);
            return Err(StartError::Later);
        }
        self.prepare(device)?;
        let ring = &mut self.rings[index];
        let kick = match &ring.kick {
            Kick::Event(event) => Some(Arc::clone(event)),
            _ => None,
        };
        device.start_queue(QueueSetup {
            index: index as u16,
            spec,
            features: features & device.identity().features,
            memory: Arc::clone(self.memory.space()),
            kick: kick.clone(),
            call: ring.call.clone(),
            in_flight: self.in_flight.clone(),
        })?;
        ring.running = true;
        // Requests may have been made available before anybody listened.
        if let Some(kick) = kick {
            kick.signal();
        }
        Ok(self.announce_ready(device)?)
    }

    /// Where the ring's areas are in the driver's address space.
    fn ring_places(&self, told: &VringAddr) -> Result<QueueAddresses, String> {
        let place = |user: u64| {
            if self.memory.is_translated() {
                return Ok(DriverAddress(user));
            }
            self.memory
                .driver_address(user)
                .ok_or_else(|| format!("no memory region holds {user:#x}"))
        };
        let addresses = QueueAddresses {
            descriptor: place(told.descriptor)?,
            driver: place(told.available)?,
            device: place(told.used)?,
        };
        Ok(addresses)
    }

    /// Stops a queue if it runs, and remembers where.
    pub(super) fn stop(&mut self, device: &mut dyn VirtioDevice, index: usize) {
        let Some(ring) = self.rings.get_mut(index).filter(|ring| ring.running) else { return };
        ring.running = false;
        match device.stop_queue(index as u16) {
            Ok(QueuePosition(base)) => ring.base = base,
            Err(error) => tracing::warn!("stopping queue {index}: {error}"),
        }
    }

    pub(super) fn stop_all(&mut self, device: &mut dyn VirtioDevice) {
        for index in 0..self.rings.len() {
            self.stop(device, index);
        }
    }

    /// Has every running queue look round.
    pub(super) fn kick_all(&self) {
        for ring in self.rings.iter().filter(|ring| ring.running) {
            if let Kick::Event(event) = &ring.kick {
                event.signal();
            }
        }
    }
}

/// Why a queue does not start.
enum StartError {
    /// Something is on its way.
    Later,
    Never(String),
}

impl From<DeviceError> for StartError {
    fn from(error: DeviceError) -> Self {
        match error {
            // The next translation, or the device's return, starts it.
            DeviceError::Queue(QueueError::Miss(_)) | DeviceError::Gone(_) => Self::Later,
            other => Self::Never(other.to_string()),
        }
    }
}

impl From<String> for StartError {
    fn from(why: String) -> Self {
        Self::Never(why)
    }
}
