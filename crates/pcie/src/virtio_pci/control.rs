//! The way of a device from reset to running and back, whichever register file the driver uses.

use std::sync::Arc;

use mem::MemoryMap;
use virtio::{DeviceEvent, Features, QueueSetup, Status, Transition};
use virtqueue::QueueError;

use super::VirtioPci;
use super::layout::Legacy;

/// Reasons for NEEDS_RESET that are remembered, so that a driver that breaks a rule again and again
/// is not logged again and again.
const MAX_REASONS: usize = 8;

impl VirtioPci {
    pub(super) fn write_status(&mut self, value: Status, legacy: bool) {
        if self.status.status() == Status::RESET {
            self.status.set_legacy(legacy && self.legacy != Legacy::Off);
        }
        let transition = self.status.write(value);
        match transition {
            Transition::Reset => return self.reset_device(),
            Transition::Ignored => {
                tracing::debug!(value = value.0, "a status that can't follow is ignored");
                return;
            }
            Transition::AcceptFeatures => {
                if !self.accept_features() {
                    self.status.refuse_features();
                }
            }
            Transition::Start => {
                // A legacy driver has no moment of its own for this (VIRTIO 1.4, 3.1.2).
                let negotiated = self.status.status().has(Status::FEATURES_OK);
                if !negotiated && !self.accept_features() {
                    return self.needs_reset("the device refuses the features of a legacy driver");
                }
                self.start_is_due = true;
                self.start_if_settled();
            }
            // Only bits that a driver can't set: the device is still reset.
            Transition::None if self.status.status() == Status::RESET => return,
            Transition::None => {
                self.give_memory();
            }
        }
        let status = self.status.status();
        if let Err(error) = self.device.set_status(status) {
            self.needs_reset(&format!("the device refuses status {:#x}: {error}", status.0));
        }
    }

    /// What was accepted stays accepted until the next reset, whichever registers are used to
    /// change it: with the legacy ones there is no FEATURES_OK.
    pub(super) fn are_features_fixed(&self) -> bool {
        let status = self.status.status();
        status.has(Status::FEATURES_OK) || status.has(Status::DRIVER_OK)
    }

    /// Gives the device the driver's memory, once after each reset; false if it can't be used.
    fn give_memory(&mut self) -> bool {
        if self.is_broken {
            return false;
        }
        let Some(host) = &self.host else { return false };
        if !self.has_memory {
            if let Err(error) = self.device.set_memory(&host.memory) {
                tracing::warn!(%error, "the device can't work with this driver's memory");
                return false;
            }
            self.has_memory = true;
        }
        true
    }

    fn accept_features(&mut self) -> bool {
        if !self.give_memory() {
            return false;
        }
        let features = self.driver_features;
        let is_offered = (features - self.offered()).is_empty();
        let is_modern = features.has(Features::VERSION_1);
        let legacy = !is_modern && self.legacy != Legacy::Off;
        if !is_offered || !(is_modern || legacy) {
            tracing::warn!(%features, "the driver accepts features that can't be");
            return false;
        }
        match self.device.accept_features(self.device_features()) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%features, %error, "the device refuses the driver's features");
                false
            }
        }
    }

    /// The driver's features without those that the transport sees to alone.
    fn device_features(&self) -> Features {
        self.driver_features & self.device.identity().features
    }

    /// Starts the queues unless it is still being found out how memory is reached.
    pub(super) fn start_if_settled(&mut self) {
        let settled = self.host.as_ref().is_some_and(crate::HostPort::is_settled);
        if self.start_is_due && settled {
            self.start_is_due = false;
            self.start_queues();
        }
    }

    fn start_queues(&mut self) {
        for index in 0..self.queues.len() {
            let queue = &self.queues[index];
            if queue.enabled && !queue.running && !queue.broken {
                self.start_queue(index);
            }
        }
    }

    fn start_queue(&mut self, index: usize) {
        let features = self.device_features();
        let Some(host) = &self.host else { return };
        let queue = &mut self.queues[index];
        let spec = queue.spec(features);
        let setup = QueueSetup {
            index: index as u16,
            features,
            memory: Arc::clone(&host.memory),
            kick: Some(Arc::clone(&queue.kick)),
            call: queue.call.clone(),
            in_flight: None,
            spec,
        };
        queue.running = true;
        let started = match setup.spec.check() {
            Ok(()) => self.device.start_queue(setup),
            Err(error) => Err(QueueError::into(error)),
        };
        if let Err(error) = started {
            self.queues[index].running = false;
            self.needs_reset(&format!("queue {index} can't be started: {error}"));
        }
    }

    /// The driver enables a queue; before DRIVER_OK that is only noted.
    pub(super) fn enable_queue(&mut self, index: usize) {
        let can_start = self.status.status().has(Status::DRIVER_OK) && !self.start_is_due;
        let Some(queue) = self.queues.get_mut(index).filter(|queue| !queue.enabled) else { return };
        queue.enabled = true;
        if can_start {
            self.start_queue(index);
        }
    }

    /// The driver resets one queue (VIRTIO 1.4, 2.6.1): its requests are not touched any more when
    /// this returns.
    pub(super) fn reset_queue(&mut self, index: usize) {
        if !self.driver_features.has(Features::RING_RESET) || index >= self.queues.len() {
            return;
        }
        self.stop_queue(index);
        self.queues[index].reset_ring();
    }

    /// Nothing happens to a queue that does not exist: legacy drivers select what they like.
    fn stop_queue(&mut self, index: usize) {
        let Some(queue) = self.queues.get_mut(index) else { return };
        if std::mem::take(&mut queue.running) {
            match self.device.stop_queue(index as u16) {
                Ok(position) => queue.resume_at = Some(position),
                Err(error) => {
                    // Where it was is not known, so it must not be started before a reset.
                    queue.broken = true;
                    tracing::warn!(index, %error, "a queue could not be stopped");
                }
            }
        }
    }

    /// A legacy driver takes a queue away again.
    pub(super) fn disable_queue(&mut self, index: usize) {
        self.stop_queue(index);
        if let Some(queue) = self.queues.get_mut(index) {
            queue.reset_ring();
        }
    }

    /// The host went away: queues stop where they are, registers stay.
    pub(super) fn suspend(&mut self) {
        self.is_suspended = true;
        for index in 0..self.queues.len() {
            self.stop_queue(index);
            self.queues[index].paused = false;
        }
    }

    /// The host is back and has not reset the device: queues go on.
    pub(super) fn resume(&mut self) {
        if std::mem::take(&mut self.is_suspended) && self.status.status().has(Status::DRIVER_OK) {
            self.start_is_due = true;
            self.start_if_settled();
        }
    }

    /// Everything as after power-on, apart from the configuration space.
    pub(super) fn reset_device(&mut self) {
        if self.has_memory || self.is_broken {
            let reset = self.device.reset();
            self.is_broken = reset.is_err();
            if let Err(error) = reset {
                tracing::error!(%error, "the device could not be reset; it stays out of use");
            }
            self.forget_faults();
        }
        self.has_memory = false;
        self.start_is_due = false;
        self.is_suspended = false;
        self.status.write(Status::RESET);
        self.selectors = Default::default();
        self.driver_features = Features::NONE;
        self.queues.iter_mut().for_each(super::QueueRegisters::reset);
        self.reset_signals();
        self.connect_calls();
        self.watch_device();
    }

    /// What queues complained of before a reset, and nobody has read yet, is over with it: else
    /// the driver would be told to reset a device that it has just reset, and many wait for the
    /// status to become 0.
    fn forget_faults(&mut self) {
        let is_fault = |event: &DeviceEvent| {
            matches!(event, DeviceEvent::NeedsReset(_) | DeviceEvent::QueueBroken { .. })
        };
        let events = self.device.control_ready().into_iter();
        events.filter(|event| !is_fault(event)).for_each(|event| self.device_event(event));
    }

    /// The device can't go on until the driver resets it (VIRTIO 1.4, 2.1.2).
    pub(super) fn needs_reset(&mut self, reason: &str) {
        if !self.reasons.iter().any(|known| known == reason) {
            tracing::warn!("the driver must reset the device: {reason}");
            if self.reasons.len() >= MAX_REASONS {
                self.reasons.pop_front();
            }
            self.reasons.push_back(reason.to_owned());
        }
        if self.status.needs_reset() {
            self.signal_config();
        }
    }

    /// What the device has to say.
    pub(super) fn device_event(&mut self, event: DeviceEvent) {
        match event {
            DeviceEvent::ConfigChanged => {
                self.generation = self.generation.wrapping_add(1);
                if self.status.status().has(Status::DRIVER_OK) {
                    self.signal_config();
                }
            }
            DeviceEvent::NeedsReset(reason) => self.needs_reset(&reason),
            DeviceEvent::QueueBroken { index, reason } => {
                self.needs_reset(&format!("queue {index}: {reason}"));
            }
            DeviceEvent::Gone(why) => tracing::warn!("the device is away: {why}"),
            DeviceEvent::Back => tracing::info!("the device is back"),
        }
    }

    /// The regions of memory have changed, or it is known now how they are reached.
    pub(super) fn memory_has_changed(&mut self) {
        if self.has_memory
            && let Err(error) = self.device.memory_changed()
        {
            self.needs_reset(&format!("the device can't work with the driver's memory: {error}"));
        }
        self.start_if_settled();
        self.go_on_with_rings();
    }

    /// Stops the queues if the rings of one of them are not in `map`, the memory to come.
    pub(super) fn pause_without_rings(&mut self, map: &MemoryMap) {
        let features = self.device_features();
        let mut running = self.queues.iter().filter(|queue| queue.running);
        if running.all(|queue| queue.has_rings_in(map, features)) {
            return;
        }
        for index in 0..self.queues.len() {
            if self.queues[index].running {
                self.stop_queue(index);
                self.queues[index].paused = true;
            }
        }
    }

    /// Starts the queues that were stopped for want of memory where they were, if it is there.
    fn go_on_with_rings(&mut self) {
        let features = self.device_features();
        let Some(map) = self.host.as_ref().map(|host| host.memory.current()) else { return };
        let mut paused = self.queues.iter().filter(|queue| queue.paused);
        if !paused.all(|queue| queue.has_rings_in(&map, features)) {
            return;
        }
        for index in 0..self.queues.len() {
            if !std::mem::take(&mut self.queues[index].paused) {
                continue;
            }
            if self.queues[index].broken {
                self.needs_reset(&format!("queue {index} could not be stopped for a while"));
            } else {
                self.start_queue(index);
                // The driver may have rung while nobody listened.
                self.queues[index].kick.signal();
            }
        }
    }
}
