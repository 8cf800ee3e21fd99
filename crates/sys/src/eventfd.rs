use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::EventfdFlags;
use rustix::io::{Errno, ReadWriteFlags};

/// A read at no place, as of what has none.
const NOWHERE: u64 = u64::MAX;

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

    /// Wraps one received from a peer and makes it non-blocking, for the peer too, who may undo it.
    /// That it really is an eventfd is not checked.
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
    ///
    /// Waits for ever if a peer has both filled the counter and made it blocking: a write has no
    /// flag against that.
    pub fn signal(&self) {
        if self.add_one() == Err(Errno::AGAIN) {
            // Nobody has looked, or somebody has filled it so that whoever waits for changes sees
            // none: begin anew.
            self.drain();
            let _ = self.add_one();
        }
    }

    fn add_one(&self) -> Result<usize, Errno> {
        crate::calls::note();
        rustix::io::write(&self.0, &1u64.to_ne_bytes())
    }

    /// Sets the counter back to 0; returns whether it was anything else. Does not wait, even if a
    /// peer has made it blocking (Linux 5.8 and later).
    pub fn drain(&self) -> bool {
        let mut count = [0; 8];
        loop {
            crate::calls::note();
            let into = &mut [IoSliceMut::new(&mut count)];
            let taken = rustix::io::preadv2(&self.0, into, NOWHERE, ReadWriteFlags::NOWAIT);
            let taken = match taken {
                Err(Errno::OPNOTSUPP) => rustix::io::read(&self.0, &mut count),
                other => other,
            };
            match taken {
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Epoll, Interest};

    #[test]
    fn a_peer_that_makes_it_blocking_keeps_nobody_waiting_for_it() {
        let event = EventFd::new().unwrap();
        rustix::io::ioctl_fionbio(&event.0, false).unwrap();
        assert!(!event.drain());
        event.signal();
        assert!(event.drain());
        assert!(!event.drain());
    }

    #[test]
    fn a_counter_that_a_peer_has_filled_is_still_heard() {
        let (event, epoll) = (EventFd::new().unwrap(), Epoll::new().unwrap());
        epoll.add(&event, 1, Interest::ReadEdge).unwrap();
        rustix::io::write(&event.0, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let mut ready = Vec::new();
        let mut hears = || {
            epoll.wait(&mut ready, Some(Duration::ZERO)).unwrap();
            !ready.is_empty()
        };
        assert!(hears());
        assert!(!hears());
        event.signal();
        assert!(hears());
    }
}
