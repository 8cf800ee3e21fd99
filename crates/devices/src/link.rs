//! A connection that comes and goes: one peer at a time on a UNIX stream socket, one more may wait.
//!
//! ```text
//! control thread: Peering --- accepts or connects ---> Link --- the connection of the moment --->
//! views
//!                      ^------------ lost ----------------'
//! ```
//!
//! Each queue has a [`View`], which takes another connection up at its next poll.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sys::{Connection, EventFd, Listener, Timer};

/// How long after a failed or lost connection to try again.
const RETRY: Duration = Duration::from_millis(500);

/// The connection of the moment, shared by the queues and the control side.
#[derive(Debug)]
pub(crate) struct Link {
    current: Mutex<Option<Arc<Connection>>>,
    /// Changes with the connection.
    generation: AtomicU64,
    /// Signalled when a queue found the connection closed.
    lost: EventFd,
}

impl Link {
    fn new() -> std::io::Result<Arc<Self>> {
        let lost = EventFd::new()?;
        Ok(Arc::new(Self { current: Mutex::new(None), generation: AtomicU64::new(0), lost }))
    }

    /// Whether there is a connection.
    pub(crate) fn is_up(&self) -> bool {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn set(&self, connection: Option<Connection>) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = connection.map(Arc::new);
        // Release: pairs with the Acquire in `refresh`, although the connection is taken under the
        // lock.
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// The connection of `generation` is closed.
    fn lose(&self, generation: u64) {
        if self.generation.load(Ordering::Acquire) == generation {
            self.set(None);
            self.lost.signal();
        }
    }
}

/// One side's view of the link.
pub(crate) struct View {
    link: Arc<Link>,
    generation: u64,
    connection: Option<Arc<Connection>>,
}

impl View {
    /// The connection as of the latest refresh.
    #[inline]
    pub(crate) fn connection(&self) -> Option<&Arc<Connection>> {
        self.connection.as_ref()
    }

    pub(crate) fn new(link: Arc<Link>) -> Self {
        Self { link, generation: 0, connection: None }
    }

    /// Takes up another connection, if there is one; returns whether that is so.
    #[inline]
    pub(crate) fn refresh(&mut self) -> bool {
        let generation = self.link.generation.load(Ordering::Acquire);
        if generation == self.generation {
            return false;
        }
        self.generation = generation;
        let current = self.link.current.lock().unwrap_or_else(PoisonError::into_inner);
        self.connection.clone_from(&current);
        true
    }

    /// The connection is closed, or useless.
    pub(crate) fn lose(&mut self) {
        self.link.lose(self.generation);
        self.connection = None;
    }
}

/// How connections come about: the control side.
pub(crate) struct Peering {
    link: Arc<Link>,
    way: Way,
}

enum Way {
    /// Whoever connects first, and who waits for that one to go.
    Listen(Listener, Option<Connection>),
    /// We connect, again and again.
    Dial(PathBuf, Timer),
}

impl Peering {
    /// Listens at `path`.
    pub(crate) fn listen(path: &Path) -> std::io::Result<Self> {
        Ok(Self { link: Link::new()?, way: Way::Listen(sys::listen_unix(path)?, None) })
    }

    /// Connects to `path`, now or when somebody listens there.
    pub(crate) fn dial(path: PathBuf) -> std::io::Result<Self> {
        let mut peering = Self { link: Link::new()?, way: Way::Dial(path, Timer::new()?) };
        peering.redial()?;
        Ok(peering)
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// What becomes readable when [`Peering::ready`] has something to do.
    pub(crate) fn control_fds(&self) -> Vec<BorrowedFd<'_>> {
        let way = match &self.way {
            Way::Listen(listener, _) => listener.as_fd(),
            Way::Dial(_, timer) => timer.as_fd(),
        };
        vec![self.link.lost.as_fd(), way]
    }

    /// Does what is due; returns whether a connection came or went.
    pub(crate) fn ready(&mut self) -> bool {
        let lost = self.link.lost.drain();
        let was_up = self.link.is_up();
        match &mut self.way {
            Way::Listen(listener, waiting) => {
                // Bounded by the listener's backlog.
                while let Ok(Some(connection)) = listener.accept() {
                    // Whoever comes third is sent away.
                    waiting.get_or_insert(connection);
                }
                if !self.link.is_up()
                    && let Some(connection) = waiting.take()
                {
                    self.link.set(Some(connection));
                }
            }
            Way::Dial(_, timer) => {
                // Without a timer there are no more attempts; there is nothing better to do.
                if timer.drain() {
                    let _ = self.redial();
                } else if lost {
                    // Not at once: the driver is to see that the link was down.
                    let _ = timer.set(RETRY, Duration::ZERO);
                }
            }
        }
        lost || was_up != self.link.is_up()
    }

    fn redial(&mut self) -> std::io::Result<()> {
        let Way::Dial(path, timer) = &self.way else { return Ok(()) };
        if self.link.is_up() {
            return Ok(());
        }
        match sys::connect_unix(path) {
            Ok(connection) => self.link.set(Some(connection)),
            Err(_) => timer.set(RETRY, Duration::ZERO)?,
        }
        Ok(())
    }
}
