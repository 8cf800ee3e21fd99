use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::EventfdFlags;
use rustix::io::Errno;

/// A counter in the kernel that one side adds to and the other waits for; how drivers and devices
/// notify each other.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// A fresh one at 0, non-blocking, closed on exec.
    ///
    /// # Errors
    /// The system is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Wraps one received from a peer and makes it non-blocking. That it really is an eventfd is
    /// not checked: a peer that sends something else is only fooling itself.
    ///
    /// # Errors
    /// The descriptor's flags can't be changed.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true).or_else(|_| {
            let flags = rustix::fs::fcntl_getfl(&fd)?;
            rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)
        })?;
        Ok(Self(fd))
    }

    /// Adds one: whoever waits wakes up. A full counter, or a peer that closed its end, is not an
    /// error for the sender.
    pub fn signal(&self) {
        crate::calls::note();
        // EAGAIN: the counter is full, so the other side is already notified.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Sets the counter back to 0; returns whether it was anything else.
    pub fn drain(&self) -> bool {
        let mut count = [0; 8];
        loop {
            crate::calls::note();
            match rustix::io::read(&self.0, &mut count) {
                Ok(n) => return n == 8,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// Another descriptor of the same counter.
    ///
    /// # Errors
    /// The system is out of file descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
