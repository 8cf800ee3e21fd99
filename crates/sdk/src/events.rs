//! Timers and descriptors of the device's author.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use sys::{Epoll, Interest, Timer};

/// Called when a timer has fired.
pub type Fire = extern "C" fn(*mut c_void);
/// Called when a descriptor is readable.
pub type Ready = extern "C" fn(*mut c_void, c_int);

/// Key of host memory by messages.
const DMA: u64 = u64::MAX;

enum Source {
    Timer(Timer, bool, Fire, *mut c_void),
    /// A duplicate of the descriptor, and its number as the author knows it.
    Fd(OwnedFd, c_int, Ready, *mut c_void),
}

/// What a turn found.
enum Due {
    Fire(Fire, *mut c_void),
    Ready(Ready, *mut c_void, c_int),
}

/// The set of them.
pub struct Events {
    epoll: Epoll,
    sources: RefCell<BTreeMap<u64, Source>>,
}

impl Events {
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: Epoll::new()?, sources: RefCell::default() })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    pub fn watch_dma(&self, fd: impl AsFd) -> io::Result<()> {
        self.epoll.add(fd, DMA, Interest::Read)
    }

    fn free(&self) -> u64 {
        // Numbers are given again only when they are free; an int is what C gets.
        let sources = self.sources.borrow();
        (1..).find(|number| !sources.contains_key(number)).unwrap_or(DMA - 1)
    }

    pub fn add_timer(
        &self,
        delay: Duration,
        period: Duration,
        fire: Fire,
        arg: *mut c_void,
    ) -> io::Result<c_int> {
        let timer = Timer::new()?;
        timer.set(delay, period)?;
        let number = self.free();
        self.epoll.add(&timer, number, Interest::Read)?;
        let source = Source::Timer(timer, !period.is_zero(), fire, arg);
        self.sources.borrow_mut().insert(number, source);
        Ok(number as c_int)
    }

    pub fn add_fd(
        &self,
        fd: BorrowedFd<'_>,
        number_of_fd: c_int,
        ready: Ready,
        arg: *mut c_void,
    ) -> io::Result<c_int> {
        let own = fd.try_clone_to_owned()?;
        let number = self.free();
        self.epoll.add(&own, number, Interest::Read)?;
        self.sources.borrow_mut().insert(number, Source::Fd(own, number_of_fd, ready, arg));
        Ok(number as c_int)
    }

    /// Whether there was one of that number.
    pub fn remove(&self, number: c_int) -> bool {
        let source = u64::try_from(number).ok().and_then(|n| self.sources.borrow_mut().remove(&n));
        match &source {
            Some(Source::Timer(timer, ..)) => self.epoll.remove(timer),
            Some(Source::Fd(fd, ..)) => self.epoll.remove(fd),
            None => {}
        }
        source.is_some()
    }

    /// Calls what is due; whether host memory by messages has something, too.
    pub fn turn(&self) -> bool {
        let mut ready = Vec::new();
        let mut dma = false;
        if self.epoll.wait(&mut ready, Some(Duration::ZERO)).is_err() {
            return false;
        }
        for event in ready {
            if event.key == DMA {
                dma = true;
                continue;
            }
            // Called with nothing borrowed: it may add and remove.
            match self.due(event.key) {
                Some(Due::Fire(fire, arg)) => fire(arg),
                Some(Due::Ready(ready, arg, fd)) => ready(arg, fd),
                None => {}
            }
        }
        dma
    }

    fn due(&self, key: u64) -> Option<Due> {
        let mut sources = self.sources.borrow_mut();
        let due = match sources.get(&key)? {
            Source::Timer(timer, repeats, fire, arg) => {
                let has_fired = timer.drain();
                let due = has_fired.then_some(Due::Fire(*fire, *arg));
                if has_fired && !repeats {
                    self.epoll.remove(timer);
                    sources.remove(&key);
                }
                return due;
            }
            Source::Fd(_, fd, ready, arg) => Due::Ready(*ready, *arg, *fd),
        };
        Some(due)
    }
}
