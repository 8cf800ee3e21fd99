use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sys::EventFd;

use crate::{DeviceError, VirtioDevice};

/// Why a driver end stopped serving.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// The device can't be used any more.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The driver's side broke the protocol beyond repair, or the socket failed.
    #[error("{0}")]
    Driver(String),
    /// The system failed us.
    #[error("{attempt}: {source}")]
    System {
        /// What was attempted, on what.
        attempt: String,
        /// What went wrong.
        source: std::io::Error,
    },
}

impl EndError {
    /// For `map_err`: the system failed while we attempted this.
    pub fn system(attempt: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::System { attempt: attempt.into(), source }
    }
}

/// Asks a bridge to end. Cheap to clone; every clone waits on the same event.
#[derive(Clone, Debug)]
pub struct Stop {
    event: Arc<EventFd>,
    asked: Arc<AtomicBool>,
}

impl Stop {
    /// A fresh one.
    ///
    /// # Errors
    /// The system is out of file descriptors.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { event: Arc::new(EventFd::new()?), asked: Arc::new(AtomicBool::new(false)) })
    }

    /// Asks for the end.
    pub fn ask(&self) {
        self.asked.store(true, Ordering::Release);
        self.event.signal();
    }

    /// Whether the end was asked for.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }
}

impl AsFd for Stop {
    /// Readable from [`Stop::ask`] on; never drained.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// What a driver arrives through: a socket that a virtual machine monitor connects to, say.
pub trait DriverEnd: Send {
    /// What a person types to attach a driver here: QEMU's options, one per line.
    fn attach_hint(&self, device: &dyn VirtioDevice) -> String;

    /// How long [`DriverEnd::serve`] may take to return once the end is asked for: long enough to
    /// let go of the driver in good order.
    fn time_to_end(&self) -> Duration {
        Duration::from_millis(900)
    }

    /// Serves drivers with `device`, one after the other, until `stop` is asked or nothing can be
    /// served any more. When the driver's side goes away the device is stopped, and started where
    /// it was when the driver's side comes back and asks for that.
    ///
    /// # Errors
    /// The end can't serve any longer.
    fn serve(self: Box<Self>, device: Box<dyn VirtioDevice>, stop: Stop) -> Result<(), EndError>;

    /// The same for a caller with many ends, most of which are idle: may return while nothing
    /// happens, so that no thread has to wait there, whose stack takes more memory than all else.
    ///
    /// # Errors
    /// The end can't serve any longer.
    fn serve_while_busy(
        self: Box<Self>,
        device: Box<dyn VirtioDevice>,
        stop: Stop,
    ) -> Result<Served, EndError> {
        self.serve(device, stop).map(|()| Served::Ended)
    }
}

/// Why a driver end is not served any more.
pub enum Served {
    /// That is over.
    Ended,
    /// Nothing happens there.
    Resting(Box<dyn Resting>),
}

/// A driver end that nobody serves for now, with its device.
pub trait Resting: Send {
    /// Readable when there is something to do, and when the end was asked for: then
    /// [`Resting::go_on`] is due.
    fn event(&self) -> BorrowedFd<'_>;

    /// Serves on, on any thread.
    ///
    /// # Errors
    /// As for [`DriverEnd::serve_while_busy`].
    fn go_on(self: Box<Self>) -> Result<Served, EndError>;
}
