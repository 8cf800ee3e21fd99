use std::sync::Arc;

use mem::{MapReader, MemoryMap};
use sys::EventFd;
use virtio::{EventSink, Notifier};
use virtqueue::{ChainId, DeviceQueue, DriverQueue};

use crate::{Counters, Mover, Observer, RateLimits};

/// Everything a [`QueueBridge`] is made of.
pub struct BridgeParts<M: Mover> {
    /// Number of the queue.
    pub index: u16,
    /// What people call the device, for messages.
    pub name: Arc<str>,
    /// The driver's ring, where we are the device.
    pub driver: DeviceQueue,
    /// The driver's memory, as far as the device knows it too.
    pub memory: MapReader,
    /// The driver notifies us here; without it the queue looks whenever the device speaks and when
    /// it is told to.
    pub kick: Option<Arc<EventFd>>,
    /// Interrupts the driver.
    pub call: Notifier,
    /// The device's ring, where we are the driver.
    pub device: DriverQueue<Request<M::Load>>,
    /// Where the device's ring lies.
    pub device_memory: Arc<MemoryMap>,
    /// Notifies the device.
    pub device_kick: Arc<EventFd>,
    /// The device interrupts us here.
    pub device_call: Arc<EventFd>,
    /// Brings the bytes across.
    pub mover: M,
    /// Speed limits.
    pub limits: RateLimits,
    /// Sees every request.
    pub observer: Option<Arc<dyn Observer>>,
    /// What the queue does is counted here.
    pub counters: Arc<Counters>,
    /// Where broken rules are reported.
    pub events: EventSink,
}

/// A chain that is with the device.
#[derive(Debug)]
pub struct Request<L> {
    pub(crate) id: ChainId,
    /// Counts the chains taken, to tell which were taken last.
    pub(crate) ordinal: u32,
    pub(crate) load: L,
}
