use std::sync::Arc;

use mem::AddressSpace;
use sys::EventFd;
use virtqueue::QueueSpec;

use crate::{Features, Notifier};

/// Everything a queue's data path needs. Whoever holds it owns the data path.
#[derive(Clone, Debug)]
pub struct QueueSetup {
    /// Number of the queue, from 0.
    pub index: u16,
    /// The ring: size, format, addresses in `memory`, where to start.
    pub spec: QueueSpec,
    /// The features the driver has accepted.
    pub features: Features,
    /// The driver's memory.
    pub memory: Arc<AddressSpace>,
    /// Signalled when the driver has made something available; `None` if the device must poll.
    pub kick: Option<Arc<EventFd>>,
    /// To interrupt the driver.
    pub call: Notifier,
}
