use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

/// A timer that is waited for like any other descriptor.
#[derive(Debug)]
pub struct Timer(OwnedFd);

impl Timer {
    /// A stopped timer.
    ///
    /// # Errors
    /// The system is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self(rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?))
    }

    /// Fires once after `delay` (at least a nanosecond), and from then on every `interval` if that
    /// is not zero.
    ///
    /// # Errors
    /// A duration the kernel can't represent.
    pub fn set(&self, delay: Duration, interval: Duration) -> io::Result<()> {
        let delay = delay.max(Duration::from_nanos(1));
        let value = Itimerspec { it_interval: timespec(interval)?, it_value: timespec(delay)? };
        rustix::time::timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &value)?;
        Ok(())
    }

    /// Stops the timer.
    pub fn stop(&self) {
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Itimerspec { it_interval: none, it_value: none };
        let _ = rustix::time::timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &value);
    }

    /// Acknowledges that it fired; returns whether it had.
    pub fn drain(&self) -> bool {
        matches!(rustix::io::read(&self.0, &mut [0u8; 8]), Ok(8))
    }
}

fn timespec(duration: Duration) -> io::Result<Timespec> {
    Timespec::try_from(duration).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
