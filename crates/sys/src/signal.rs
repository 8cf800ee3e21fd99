use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Resource;

use crate::EventFd;

static STOP: OnceLock<EventFd> = OnceLock::new();
static STOPPED: AtomicBool = AtomicBool::new(false);

/// SIGTERM and SIGINT as something to wait for.
#[derive(Clone, Copy, Debug)]
pub struct StopSignal(&'static EventFd);

impl StopSignal {
    /// Takes over SIGTERM and SIGINT for the process. A second signal while the first is being
    /// obeyed ends the process at once, as without us. SIGPIPE is ignored: a closed socket is an
    /// error of the write, not of the process.
    ///
    /// # Errors
    /// The system is out of file descriptors.
    pub fn install() -> io::Result<Self> {
        let event = match STOP.get() {
            Some(event) => event,
            None => {
                let event = EventFd::new()?;
                STOP.get_or_init(|| event)
            }
        };
        for signal in [libc::SIGTERM, libc::SIGINT] {
            let handler = on_stop as *const () as libc::sighandler_t;
            // SAFETY: the handler only uses async-signal-safe calls (write, signal, raise).
            unsafe { libc::signal(signal, handler) };
        }
        // SAFETY: SIG_IGN is a valid disposition for SIGPIPE.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        Ok(Self(event))
    }

    /// Whether a signal has come.
    #[must_use]
    pub fn is_set(self) -> bool {
        STOPPED.load(Ordering::Acquire)
    }

    /// Asks for the stop ourselves, as if SIGTERM had come.
    pub fn request(self) {
        STOPPED.store(true, Ordering::Release);
        self.0.signal();
    }
}

impl AsFd for StopSignal {
    /// Readable from the first signal on; never drained, so that every waiter sees it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A signal that asks for something and ends nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// SIGUSR1.
    User1,
    /// SIGUSR2.
    User2,
}

static WISHES: [OnceLock<EventFd>; 2] = [OnceLock::new(), OnceLock::new()];

/// A [`Wish`] as something to wait for.
#[derive(Clone, Copy, Debug)]
pub struct WishSignal(&'static EventFd);

impl WishSignal {
    /// Takes over the signal for the process.
    ///
    /// # Errors
    /// The system is out of file descriptors.
    pub fn install(wish: Wish) -> io::Result<Self> {
        let (slot, signal) = match wish {
            Wish::User1 => (&WISHES[0], libc::SIGUSR1),
            Wish::User2 => (&WISHES[1], libc::SIGUSR2),
        };
        let event = match slot.get() {
            Some(event) => event,
            None => {
                let event = EventFd::new()?;
                slot.get_or_init(|| event)
            }
        };
        let handler = on_wish as *const () as libc::sighandler_t;
        // SAFETY: the handler only uses async-signal-safe calls (write).
        unsafe { libc::signal(signal, handler) };
        Ok(Self(event))
    }

    /// Whether it has come since the last time.
    #[must_use]
    pub fn take(self) -> bool {
        self.0.drain()
    }
}

impl AsFd for WishSignal {
    /// Readable until [`WishSignal::take`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

extern "C" fn on_wish(signal: i32) {
    let slot = if signal == libc::SIGUSR1 { &WISHES[0] } else { &WISHES[1] };
    if let Some(event) = slot.get() {
        event.signal();
    }
}

/// Lets a closed pipe end the process without a word, as usual for programs that print and leave.
/// [`StopSignal::install`] takes this back.
pub fn end_on_closed_pipe() {
    // SAFETY: SIG_DFL is a valid disposition for SIGPIPE.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

extern "C" fn on_stop(signal: i32) {
    if STOPPED.swap(true, Ordering::AcqRel) {
        // SAFETY: SIG_DFL is a valid disposition.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        // SAFETY: raising a signal has no memory effects.
        unsafe { libc::raise(signal) };
    }
    if let Some(event) = STOP.get() {
        event.signal();
    }
}

/// Lets this process lock `bytes` of memory, if it may allow itself that; else as much as it may.
pub fn raise_lock_limit(bytes: u64) {
    let before = rustix::process::getrlimit(Resource::Memlock);
    if before.current.is_none_or(|current| current >= bytes) {
        return;
    }
    // Beyond the hard limit for who has CAP_SYS_RESOURCE. What a kernel pins counts with it.
    let all = rustix::process::Rlimit { current: None, maximum: None };
    if rustix::process::setrlimit(Resource::Memlock, all).is_err() {
        let most = rustix::process::Rlimit { current: before.maximum, ..before };
        let _ = rustix::process::setrlimit(Resource::Memlock, most);
    }
}

/// Raises the soft limit on open files to the hard one: a thousand devices need tens of thousands.
pub fn raise_file_limit() {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = rustix::process::setrlimit(Resource::Nofile, limit);
}
