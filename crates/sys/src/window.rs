use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;

use crate::EventFd;

static CHANGED: OnceLock<EventFd> = OnceLock::new();

/// SIGWINCH, the terminal's window has another size, as something to wait for.
#[derive(Clone, Copy, Debug)]
pub struct WindowSignal(&'static EventFd);

impl WindowSignal {
    /// Takes over SIGWINCH for the process.
    ///
    /// # Errors
    /// The system is out of file descriptors.
    pub fn install() -> io::Result<Self> {
        let event = match CHANGED.get() {
            Some(event) => event,
            None => {
                let event = EventFd::new()?;
                CHANGED.get_or_init(|| event)
            }
        };
        let handler = on_change as *const () as libc::sighandler_t;
        // SAFETY: the handler only uses an async-signal-safe call (write).
        unsafe { libc::signal(libc::SIGWINCH, handler) };
        Ok(Self(event))
    }

    /// Whether the signal has come since the last call.
    #[must_use]
    pub fn drain(self) -> bool {
        self.0.drain()
    }
}

impl AsFd for WindowSignal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

extern "C" fn on_change(_signal: i32) {
    if let Some(event) = CHANGED.get() {
        event.signal();
    }
}
