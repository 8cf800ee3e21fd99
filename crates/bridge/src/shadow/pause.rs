use virtio::{DeviceError, QueueSetup};
use virtqueue::QueuePosition;

use super::Shadow;

impl Shadow {
    /// Disables or enables a queue that was started.
    pub(super) fn enable(&mut self, index: u16, enabled: bool) -> Result<(), DeviceError> {
        match (self.passes(), enabled) {
            (true, _) => self.inner.enable_queue(index, enabled),
            (false, false) => self.pause(index),
            (false, true) => self.resume(index),
        }
    }

    /// Disables a queue: from now on not a byte of the driver's ring is written.
    ///
    /// User Mode Linux frees a ring when it has disabled it and says no more about it. What we
    /// wrote there later, if only when we want to be notified, would be in a ring that it made at
    /// the same place. So a queue that is disabled is stopped, and started where it was when it is
    /// enabled.
    fn pause(&mut self, index: u16) -> Result<(), DeviceError> {
        if self.paused.get(usize::from(index)).is_some_and(Option::is_some) {
            return Ok(());
        }
        let queue = self.queues.get(usize::from(index)).and_then(Option::as_ref);
        let setup = queue.map(|queue| queue.driver.clone());
        let mut setup = setup.ok_or(DeviceError::NoSuchQueue(index))?;
        // A network device must also know that it is not to send there.
        if let Err(error) = self.inner.enable_queue(index, false) {
            tracing::debug!(index, %error, "a device can't disable a queue that is stopped next");
        }
        setup.spec.start_at = self.stop_shadow(index)?;
        self.paused[usize::from(index)] = Some(Box::new(setup));
        Ok(())
    }

    /// Enables a queue again, if it is disabled.
    fn resume(&mut self, index: u16) -> Result<(), DeviceError> {
        if let Some(setup) = self.take_paused(index) {
            self.start_shadow(setup)?;
        }
        self.inner.enable_queue(index, true)
    }

    /// Stops a queue, disabled or not.
    pub(super) fn stop_shadow(&mut self, index: u16) -> Result<QueuePosition, DeviceError> {
        if let Some(setup) = self.take_paused(index) {
            return Ok(setup.spec.start_at);
        }
        let queue = self.queue_mut(index).and_then(Option::take);
        let queue = queue.ok_or(DeviceError::NoSuchQueue(index))?;
        // First the device: when it has stopped, all it will ever complete is in the ring.
        let stopped = self.inner.stop_queue(index);
        let position = queue.control.finish();
        match stopped {
            Ok(_) | Err(DeviceError::Gone(_)) => {}
            // A device that is away has stopped all its queues.
            Err(DeviceError::NoSuchQueue(_)) if self.gone => {}
            Err(error) => return Err(error),
        }
        position.ok_or_else(|| DeviceError::Refused("the queue's thread died".into()))
    }

    /// How the queue would have gone on, had it been enabled again.
    pub(super) fn take_paused(&mut self, index: u16) -> Option<QueueSetup> {
        self.paused.get_mut(usize::from(index)).and_then(Option::take).map(|setup| *setup)
    }
}
