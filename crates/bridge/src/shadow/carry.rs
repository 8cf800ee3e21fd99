//! The tasks that carry a shadow's chains.

use std::sync::Arc;

use virtio::{DeviceError, QueueSetup};
use virtqueue::{DeviceQueue, DriverQueue, IndirectArea};

use super::Shadow;
use crate::control::{Control, spawn};
use crate::remote::{RemoteParts, RemoteQueue};
use crate::spaces::Spaces;
use crate::{BridgeParts, Ends, Mover, QueueBridge};

impl Shadow {
    /// Puts a bridge between the rings of `driver` and `device`, on a worker.
    pub(super) fn carry<M: Mover>(
        &self,
        spaces: &Spaces,
        driver: &QueueSetup,
        device: &QueueSetup,
        tables: Option<IndirectArea>,
        mover: M,
    ) -> Result<Box<dyn Control>, DeviceError> {
        let mut queue = DeviceQueue::new(&spaces.confirmed.current(), &driver.spec)?;
        if let Some(area) = &driver.in_flight
            && let Some(log) = area.log(driver.index, &driver.spec)?
        {
            queue.attach_log(log)?;
        }
        let task = QueueBridge::new(BridgeParts {
            ends: self.ends(driver, device)?,
            driver: queue,
            memory: spaces.confirmed.reader(),
            device: DriverQueue::new(spaces.arena.map(), &device.spec, tables)?,
            device_memory: Arc::clone(spaces.arena.map()),
            mover,
            limits: self.options.limits,
        });
        spawn(task)
    }

    /// The same where the driver's ring is reached by transfers.
    pub(super) fn carry_far(
        &self,
        spaces: &Spaces,
        driver: &QueueSetup,
        device: &QueueSetup,
        tables: Option<IndirectArea>,
    ) -> Result<Box<dyn Control>, DeviceError> {
        let task = RemoteQueue::new(RemoteParts {
            ends: self.ends(driver, device)?,
            spec: driver.spec.clone(),
            memory: spaces.confirmed.reader(),
            device: DriverQueue::new(spaces.arena.map(), &device.spec, tables)?,
            device_memory: Arc::clone(spaces.arena.map()),
            pool: spaces.arena.pool(driver.index, self.options.pool_size()),
            limits: self.options.limits,
        })?;
        spawn(task)
    }

    fn ends(&self, driver: &QueueSetup, device: &QueueSetup) -> Result<Ends, DeviceError> {
        let events = (device.kick.clone(), device.call.event());
        let (Some(device_kick), Some(device_call)) = events else {
            return Err(DeviceError::NoSuchQueue(driver.index));
        };
        Ok(Ends {
            index: driver.index,
            name: Arc::clone(&self.name),
            kick: driver.kick.clone(),
            call: driver.call.clone(),
            device_kick,
            device_call,
            observer: self.options.observer.clone(),
            counters: Arc::clone(&self.counters[usize::from(driver.index)]),
            events: self.sink.clone(),
        })
    }
}
