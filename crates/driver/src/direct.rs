use std::sync::Arc;

use mem::AddressSpace;
use sys::EventFd;
use virtio::{DeviceType, Features, Notifier, QueueSetup, Status, VirtioDevice};
use virtqueue::QueueSpec;

use crate::{Access, Bell, DriverError, GuestMemory};

/// Drives a [`VirtioDevice`] through its own trait: a built-in device, a bridge, or a daemon behind
/// a device end.
pub struct Direct {
    device: Box<dyn VirtioDevice>,
    memory: Arc<AddressSpace>,
    accepted: Features,
    status: Status,
}

impl Direct {
    /// Takes the device and shows it the memory.
    ///
    /// # Errors
    /// The device can't work with such memory.
    pub fn new(device: Box<dyn VirtioDevice>, memory: &GuestMemory) -> Result<Self, DriverError> {
        let memory = memory.address_space()?;
        let mut direct = Self { device, memory, accepted: Features::NONE, status: Status::RESET };
        direct.device.set_memory(&direct.memory)?;
        Ok(direct)
    }

    /// The device, for whoever wants to look at its events.
    pub fn device(&mut self) -> &mut dyn VirtioDevice {
        self.device.as_mut()
    }
}

impl Access for Direct {
    fn device_type(&self) -> DeviceType {
        self.device.identity().device
    }

    fn reset(&mut self) -> Result<(), DriverError> {
        self.device.reset()?;
        self.device.set_memory(&self.memory)?;
        self.status = Status::ACKNOWLEDGE.with(Status::DRIVER);
        Ok(())
    }

    fn features(&mut self) -> Result<Features, DriverError> {
        Ok(self.device.identity().features)
    }

    fn accept(&mut self, features: Features) -> Result<(), DriverError> {
        self.device.accept_features(features)?;
        self.accepted = features;
        self.status = self.status.with(Status::FEATURES_OK);
        Ok(self.device.set_status(self.status)?)
    }

    fn read_config(&mut self, offset: u32, into: &mut [u8]) -> Result<(), DriverError> {
        self.device.read_config(offset, into);
        Ok(())
    }

    fn max_queue_size(&mut self, index: u16) -> Result<u16, DriverError> {
        Ok(self.device.identity().queue_sizes.get(usize::from(index)).copied().unwrap_or(0))
    }

    fn start_queue(&mut self, index: u16, spec: &QueueSpec) -> Result<Bell, DriverError> {
        let event =
            || EventFd::new().map(Arc::new).map_err(DriverError::system("making an eventfd"));
        let (kick, interrupt) = (event()?, event()?);
        self.device.start_queue(QueueSetup {
            index,
            spec: spec.clone(),
            features: self.accepted,
            memory: Arc::clone(&self.memory),
            kick: Some(Arc::clone(&kick)),
            call: Notifier::new(Arc::clone(&interrupt)),
            in_flight: None,
        })?;
        Ok(Bell { ring: Box::new(move || kick.signal()), interrupt })
    }

    fn go(&mut self) -> Result<(), DriverError> {
        self.status = self.status.with(Status::DRIVER_OK);
        Ok(self.device.set_status(self.status)?)
    }

    fn status(&mut self) -> Result<Status, DriverError> {
        Ok(self.status)
    }
}
