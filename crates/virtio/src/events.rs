use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use sys::EventFd;

/// What a device tells its driver end, outside the queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceEvent {
    /// The config has changed; the driver gets a config interrupt.
    ConfigChanged,
    /// The device can't go on until it is reset, because of this.
    NeedsReset(String),
    /// One queue can't go on; the others can.
    QueueBroken {
        /// Its number.
        index: u16,
        /// The rule that was broken.
        reason: String,
    },
    /// The device went away; requests wait. Config reads give what was read last, config writes
    /// fail.
    Gone(String),
    /// It is back, with the features and memory of before. The queues run again where they had
    /// stopped, or wait to be started afresh by the caller: see
    /// [`crate::VirtioDevice::set_recovery`].
    Back,
}

/// Most events kept for a control thread that does not come round; the oldest are dropped.
const MAX_EVENTS: usize = 64;

#[derive(Debug)]
struct Shared {
    events: Mutex<Vec<DeviceEvent>>,
    wake: EventFd,
}

/// Where data paths drop events for the control thread. Cheap to clone.
#[derive(Clone, Debug)]
pub struct EventSink(Arc<Shared>);

/// Where the control thread picks them up.
#[derive(Debug)]
pub struct EventSource(Arc<Shared>);

impl EventSource {
    /// A fresh pair of ends.
    ///
    /// # Errors
    /// The system is out of file descriptors.
    pub fn new() -> io::Result<(EventSink, Self)> {
        let shared = Arc::new(Shared { events: Mutex::new(Vec::new()), wake: EventFd::new()? });
        Ok((EventSink(Arc::clone(&shared)), Self(shared)))
    }

    /// Takes what has come.
    #[must_use]
    pub fn drain(&self) -> Vec<DeviceEvent> {
        self.0.wake.drain();
        std::mem::take(&mut self.0.events.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl AsFd for EventSource {
    /// Readable when there are events.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.wake.as_fd()
    }
}

impl EventSink {
    /// Reports `event`. An event equal to the latest unread one is not repeated.
    pub fn send(&self, event: DeviceEvent) {
        let mut events = self.0.events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.last() != Some(&event) {
            if events.len() >= MAX_EVENTS {
                events.remove(0);
            }
            events.push(event);
        }
        drop(events);
        self.0.wake.signal();
    }
}
