use std::sync::Arc;

use mem::MemoryError;
use sys::EventFd;
use virtio::{DeviceError, DeviceType, Features, Status};
use virtqueue::{QueueError, QueueSpec};

/// Why a driver could not go on.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The device's end of the control plane failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The device broke a ring rule.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// Memory could not be set up.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The driver's memory is used up.
    #[error("the driver's memory is used up")]
    OutOfMemory,
    /// A file or socket failed.
    #[error("{attempt}: {source}")]
    System {
        /// What was attempted.
        attempt: &'static str,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The device did not do what the specification says.
    #[error("{0}")]
    Protocol(String),
    /// The device did not answer.
    #[error("no answer from the device: {0}")]
    TimedOut(&'static str),
}

impl DriverError {
    pub(crate) fn system(attempt: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::System { attempt, source }
    }
}

/// A started queue's notifications.
pub struct Bell {
    /// Tells the device that there is something available.
    pub ring: Box<dyn FnMut() + Send>,
    /// Signalled when the device has used something.
    pub interrupt: Arc<EventFd>,
}

/// How a driver reaches a device's control plane.
pub trait Access: Send {
    /// The type of the device.
    fn device_type(&self) -> DeviceType;

    /// Resets the device and says hello: ACKNOWLEDGE and DRIVER.
    ///
    /// # Errors
    /// The device does not come out of reset.
    fn reset(&mut self) -> Result<(), DriverError>;

    /// The features on offer.
    ///
    /// # Errors
    /// The device can't be reached.
    fn features(&mut self) -> Result<Features, DriverError>;

    /// Chooses features and sees that the device agrees.
    ///
    /// # Errors
    /// FEATURES_OK does not stay set.
    fn accept(&mut self, features: Features) -> Result<(), DriverError>;

    /// Reads the device config.
    ///
    /// # Errors
    /// The device can't be reached.
    fn read_config(&mut self, offset: u32, into: &mut [u8]) -> Result<(), DriverError>;

    /// Largest size of a queue; 0 if there is no such queue.
    ///
    /// # Errors
    /// The device can't be reached.
    fn max_queue_size(&mut self, index: u16) -> Result<u16, DriverError>;

    /// Starts a queue whose rings are laid out in memory.
    ///
    /// # Errors
    /// The device does not take it.
    fn start_queue(&mut self, index: u16, spec: &QueueSpec) -> Result<Bell, DriverError>;

    /// The driver is ready: DRIVER_OK.
    ///
    /// # Errors
    /// The device can't be reached.
    fn go(&mut self) -> Result<(), DriverError>;

    /// The device status.
    ///
    /// # Errors
    /// The device can't be reached.
    fn status(&mut self) -> Result<Status, DriverError>;
}
