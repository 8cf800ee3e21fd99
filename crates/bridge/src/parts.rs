use std::sync::Arc;
use std::time::Duration;

use mem::{MapReader, MemoryMap};
use sys::EventFd;
use virtio::{DeviceEvent, EventSink, Notifier};
use virtqueue::{ChainId, DeviceQueue, DriverQueue, Segment};

use crate::fault::Fault;
use crate::{Counters, Mover, Observer, RateLimits, log_limit};

/// Everything a [`QueueBridge`](crate::QueueBridge) is made of.
pub struct BridgeParts<M: Mover> {
    /// Names, notifications and reports.
    pub ends: Ends,
    /// The driver's ring, where we are the device.
    pub driver: DeviceQueue,
    /// The driver's memory, as far as the device knows it too.
    pub memory: MapReader,
    /// The device's ring, where we are the driver.
    pub device: DriverQueue<Request<M::Load>>,
    /// Where the device's ring lies.
    pub device_memory: Arc<MemoryMap>,
    /// Brings the bytes across.
    pub mover: M,
    /// Speed limits.
    pub limits: RateLimits,
}

/// A chain that is with the device.
#[derive(Debug)]
pub struct Request<L> {
    pub(crate) id: ChainId,
    /// Counts the chains taken, to tell which were taken last.
    pub(crate) ordinal: u32,
    pub(crate) load: L,
}

/// How a queue's task reaches both sides, and who hears of what it does.
pub struct Ends {
    /// Number of the queue.
    pub index: u16,
    /// What people call the device, for messages.
    pub name: Arc<str>,
    /// The driver notifies us here; without it we look every [`Ends::POLL_INTERVAL`].
    pub kick: Option<Arc<EventFd>>,
    /// Interrupts the driver.
    pub call: Notifier,
    /// Notifies the device.
    pub device_kick: Arc<EventFd>,
    /// The device interrupts us here.
    pub device_call: Arc<EventFd>,
    /// Sees every request.
    pub observer: Option<Arc<dyn Observer>>,
    /// What the queue does is counted here.
    pub counters: Arc<Counters>,
    /// Where broken rules are reported.
    pub events: EventSink,
}

impl Ends {
    /// How often to look at the ring of a driver that never notifies us. A compromise: a driver
    /// that wants to be served by polling does not know that we have other things to do.
    pub const POLL_INTERVAL: Duration = Duration::from_micros(250);

    /// A chain goes to the device.
    #[inline]
    pub(crate) fn offered(&self, id: u16, readable: &[Segment], writable: &[Segment]) {
        if let Some(observer) = &self.observer {
            observer.outbound(self.index, id, readable, writable);
        }
    }

    /// A chain goes back to the driver.
    #[inline]
    pub(crate) fn completed(&self, id: u16, written: u32) {
        if let Some(observer) = &self.observer {
            observer.inbound(self.index, id, written);
        }
    }

    /// Notifies the device of a batch if it wants to know.
    #[inline]
    pub(crate) fn kick_device(&self, wanted: bool) {
        if !wanted {
            self.counters.suppressed_kicks.add(1);
        } else if !self.observer.as_ref().is_some_and(|o| o.lose_kick(self.index)) {
            self.counters.kicks.add(1);
            self.device_kick.signal();
        }
    }

    /// Interrupts the driver about a batch if it wants to know.
    #[inline]
    pub(crate) fn interrupt(&self, wanted: bool) {
        if !wanted {
            self.counters.suppressed_interrupts.add(1);
        } else if !self.observer.as_ref().is_some_and(|o| o.lose_interrupt(self.index)) {
            self.counters.interrupts.add(1);
            self.call.signal();
        }
    }

    /// Reports whose fault it was, to our side only.
    #[cold]
    pub(crate) fn fail(&self, fault: &Fault) {
        self.counters.errors.add(1);
        let (name, queue) = (&self.name, self.index);
        let event = match fault {
            Fault::Driver(error) => {
                if log_limit::allowed() {
                    tracing::warn!(%name, queue, %error, "the driver broke a rule: queue stopped");
                }
                DeviceEvent::QueueBroken { index: queue, reason: error.to_string() }
            }
            Fault::Device(error) => {
                if log_limit::allowed() {
                    tracing::warn!(%name, queue, %error, "the device broke a rule: needs a reset");
                }
                DeviceEvent::NeedsReset(format!("queue {queue} of {name}: {error}"))
            }
        };
        self.events.send(event);
    }

    /// Says that a device stopped and left requests that can't be taken back.
    pub(crate) fn warn_of_lost(&self, lost: u32) {
        if lost > 0 && log_limit::allowed() {
            let (name, queue) = (&self.name, self.index);
            tracing::warn!(%name, queue, lost, "the device stopped amid requests it had begun");
        }
    }
}
