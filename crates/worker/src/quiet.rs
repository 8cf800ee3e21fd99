use std::io;
use std::time::Duration;

use sys::{Epoll, Ready};

/// How long nothing must have happened until a thread counts as idle.
const AFTER: Duration = Duration::from_millis(200);

/// How a control thread waits: as [`Epoll::wait`], and when nothing has happened for a while the
/// thread gives back the stack that it needed for what happened last. There is such a thread for
/// every device, and most devices are idle.
#[derive(Debug, Default)]
pub struct Quiet {
    /// Something has happened since the stack was given back.
    busy: bool,
}

impl Quiet {
    /// Waits until something in `epoll` is ready, for up to `limit`.
    ///
    /// # Errors
    /// As [`Epoll::wait`].
    pub fn wait(
        &mut self,
        epoll: &Epoll,
        ready: &mut Vec<Ready>,
        limit: Option<Duration>,
    ) -> io::Result<()> {
        let mut limit = limit;
        if self.busy {
            epoll.wait(ready, Some(limit.map_or(AFTER, |limit| limit.min(AFTER))))?;
            if !ready.is_empty() || limit.is_some_and(|limit| limit <= AFTER) {
                return Ok(());
            }
            limit = limit.map(|limit| limit - AFTER);
            self.busy = false;
            sys::give_back_stack();
        }
        epoll.wait(ready, limit)?;
        self.busy = !ready.is_empty();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::time::Instant;

    use sys::{EventFd, Interest};

    use super::*;

    #[test]
    fn events_and_limits_are_as_without_it() -> io::Result<()> {
        let (epoll, event) = (Epoll::new()?, EventFd::new()?);
        epoll.add(event.as_fd(), 7, Interest::Read)?;
        let (mut quiet, mut ready) = (Quiet::default(), Vec::new());
        for limit in [Some(Duration::ZERO), Some(AFTER * 2), None] {
            event.signal();
            quiet.wait(&epoll, &mut ready, limit)?;
            assert_eq!(ready.len(), 1);
            event.drain();
        }
        // The stack is given back in the middle of this.
        let start = Instant::now();
        quiet.wait(&epoll, &mut ready, Some(AFTER * 2))?;
        assert!(ready.is_empty() && start.elapsed() >= AFTER * 2 - Duration::from_millis(1));
        assert!(!quiet.busy);
        Ok(())
    }
}
