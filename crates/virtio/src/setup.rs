use std::sync::Arc;

use mem::{AddressSpace, Mapping};
use sys::EventFd;
use virtqueue::{InFlightLog, QueueError, QueueSpec};

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
    /// Where to record which requests are in flight; `None` if nobody would read it.
    pub in_flight: Option<Arc<InFlightArea>>,
}

/// Memory that outlives this process and holds, for all queues of a device, which requests are in
/// flight (vhost-user, "Inflight I/O tracking", which also defines its layout). The driver's side
/// keeps it and gives it to whoever comes next.
#[derive(Clone, Debug)]
pub struct InFlightArea {
    /// Memory that starts with the area; all zeros when the area is new.
    pub mapping: Arc<Mapping>,
    /// Number of queues recorded.
    pub queues: u16,
    /// Entries of each queue's record.
    pub queue_size: u16,
}

impl InFlightArea {
    /// The record of queue `index`, if the area reaches so far.
    ///
    /// # Errors
    /// The area is shorter than it says.
    pub fn log(&self, index: u16, spec: &QueueSpec) -> Result<Option<InFlightLog>, QueueError> {
        if index >= self.queues {
            return Ok(None);
        }
        let offset = usize::from(index) * InFlightLog::bytes(spec.format, self.queue_size);
        InFlightLog::new(&self.mapping, offset, spec.format, spec.size).map(Some)
    }
}
