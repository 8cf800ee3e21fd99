use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;

/// What to wait for on a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Something to read.
    Read,
    /// Something to read, reported once per arrival (for eventfds that are never read).
    ReadEdge,
    /// Something to read, or room to write.
    ReadWrite,
    /// Room to write alone.
    Write,
}

/// A descriptor that became ready.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// The number it was registered with.
    pub key: u64,
    /// There is something to read.
    pub readable: bool,
    /// There is room to write.
    pub writable: bool,
    /// The other side is gone, or the descriptor failed.
    pub closed: bool,
}

/// A set of descriptors to wait for.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

impl Epoll {
    /// An empty set.
    ///
    /// # Errors
    /// The system is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(CreateFlags::CLOEXEC)?))
    }

    /// Adds `fd`; events carry `key`.
    ///
    /// # Errors
    /// The descriptor is of a kind that can't be waited for, or is already in the set.
    pub fn add(&self, fd: impl AsFd, key: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, EventData::new_u64(key), flags(interest))?)
    }

    /// Changes what is waited for on `fd`.
    ///
    /// # Errors
    /// The descriptor is not in the set.
    pub fn modify(&self, fd: impl AsFd, key: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(&self.0, fd, EventData::new_u64(key), flags(interest))?)
    }

    /// Takes `fd` out of the set; no error if it was not in it.
    pub fn remove(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.0, fd);
    }

    /// Waits until something is ready, for ever or up to `limit`, and puts it in `ready`, which is
    /// cleared first.
    ///
    /// # Errors
    /// None in practice; an interruption by a signal counts as nothing ready.
    pub fn wait(&self, ready: &mut Vec<Ready>, limit: Option<Duration>) -> io::Result<()> {
        /// Events taken per call; more come with the next one. Few, because they lie on the stack
        /// of every thread that waits.
        const BATCH: usize = 16;
        ready.clear();
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        crate::calls::note();
        let mut events = [MaybeUninit::<Event>::uninit(); BATCH];
        let (events, _) = match epoll::wait(&self.0, &mut events, limit.as_ref()) {
            Ok(events) => events,
            Err(Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        ready.extend(events.iter().map(|event| {
            let flags = event.flags;
            Ready {
                key: event.data.u64(),
                readable: flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR),
                writable: flags.contains(EventFlags::OUT),
                closed: flags.intersects(EventFlags::HUP | EventFlags::ERR | EventFlags::RDHUP),
            }
        }));
        Ok(())
    }
}

fn flags(interest: Interest) -> EventFlags {
    match interest {
        Interest::Read => EventFlags::IN,
        Interest::ReadEdge => EventFlags::IN | EventFlags::ET,
        Interest::ReadWrite => EventFlags::IN | EventFlags::OUT,
        Interest::Write => EventFlags::OUT,
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
