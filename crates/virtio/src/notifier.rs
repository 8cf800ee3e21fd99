use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sys::EventFd;

/// A way to interrupt the driver that needs nobody who waits for an event.
pub trait Interrupt: std::fmt::Debug + Send + Sync {
    /// Interrupts the driver; whether that has worked.
    fn interrupt(&self) -> bool;
}

/// How a device interrupts the driver about one queue, or about its config.
///
/// The event behind it may change while the queue runs (the driver moves an interrupt to another
/// vector), so it is looked up at each signal, under a lock that is only contended at that moment.
/// A signal is a system call anyhow.
#[derive(Clone, Debug, Default)]
pub struct Notifier(Arc<Mutex<Ways>>);

#[derive(Debug, Default)]
struct Ways {
    event: Option<Arc<EventFd>>,
    /// Tried before the event is signalled.
    shortcut: Option<Box<dyn Interrupt>>,
}

impl Notifier {
    /// One that signals `event`.
    #[must_use]
    pub fn new(event: Arc<EventFd>) -> Self {
        Self(Arc::new(Mutex::new(Ways { event: Some(event), shortcut: None })))
    }

    /// One that takes the shortcut where we interrupt ourselves, and signals `event` when that does
    /// not work. Whoever is handed the event signals that.
    #[must_use]
    pub fn with_shortcut(event: Arc<EventFd>, shortcut: Box<dyn Interrupt>) -> Self {
        Self(Arc::new(Mutex::new(Ways { event: Some(event), shortcut: Some(shortcut) })))
    }

    /// One that goes nowhere: the driver polls.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Interrupts the driver.
    pub fn signal(&self) {
        let ways = self.lock();
        if ways.shortcut.as_ref().is_some_and(|way| way.interrupt()) {
            return;
        }
        if let Some(event) = &ways.event {
            event.signal();
        }
    }

    /// From now on signals `event`, or nothing, and takes no shortcut.
    pub fn set(&self, event: Option<Arc<EventFd>>) {
        *self.lock() = Ways { event, shortcut: None };
    }

    /// The event signalled now, to be handed on to whoever interrupts in our place.
    #[must_use]
    pub fn event(&self) -> Option<Arc<EventFd>> {
        self.lock().event.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Ways> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[derive(Debug)]
    struct Way(Arc<AtomicBool>);

    impl Interrupt for Way {
        fn interrupt(&self) -> bool {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn the_event_is_signalled_where_the_shortcut_is_closed() {
        let (event, open) = (Arc::new(EventFd::new().unwrap()), Arc::new(AtomicBool::new(true)));
        let way = Box::new(Way(Arc::clone(&open)));
        let notifier = Notifier::with_shortcut(Arc::clone(&event), way);
        notifier.signal();
        assert!(!event.drain());
        open.store(false, Ordering::Relaxed);
        notifier.signal();
        assert!(event.drain());
        // Another event has nothing to do with the way to the first one.
        let other = Arc::new(EventFd::new().unwrap());
        open.store(true, Ordering::Relaxed);
        notifier.set(Some(Arc::clone(&other)));
        notifier.signal();
        assert!(other.drain() && !event.drain());
    }
}
