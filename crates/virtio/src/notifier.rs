use std::sync::{Arc, Mutex, PoisonError};

use sys::EventFd;

/// How a device interrupts the driver about one queue, or about its config.
///
/// The event behind it may change while the queue runs (the driver moves an interrupt to another
/// vector), so it is looked up at each signal, under a lock that is only contended at that moment.
/// A signal is a system call anyhow.
#[derive(Clone, Debug, Default)]
pub struct Notifier(Arc<Mutex<Option<Arc<EventFd>>>>);

impl Notifier {
    /// One that signals `event`.
    #[must_use]
    pub fn new(event: Arc<EventFd>) -> Self {
        Self(Arc::new(Mutex::new(Some(event))))
    }

    /// One that goes nowhere: the driver polls.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Interrupts the driver.
    pub fn signal(&self) {
        if let Some(event) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            event.signal();
        }
    }

    /// From now on signals `event`, or nothing.
    pub fn set(&self, event: Option<Arc<EventFd>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = event;
    }

    /// The event signalled now, to be handed on to whoever interrupts in our place.
    #[must_use]
    pub fn event(&self) -> Option<Arc<EventFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
