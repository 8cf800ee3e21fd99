//! Frames over a stream socket in QEMU's framing (`-netdev stream`): 4 bytes of length, big-endian,
//! then the frame.
//!
//! ```text
//! control thread: Peering --- accepts or connects ---> Link --- the connection of the moment --->
//! source, sink
//!                      ^------------ lost ----------------'
//! ```

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sys::{Connection, EventFd, Listener, Received, Timer};

use super::header::HEADER;
use super::port::{MAX_FRAME, Packet, Sent};

/// Bytes of a frame's length.
const PREFIX: usize = 4;

/// Bytes read at a time: the kernel's default for a socket's buffer.
const READ_BYTES: usize = 212_992;

/// How long after a failed or lost connection to try again.
const RETRY: Duration = Duration::from_millis(500);

/// The connection of the moment, shared by the queues and the control side.
#[derive(Debug)]
pub(super) struct Link {
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
    pub(super) fn is_up(&self) -> bool {
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
struct View {
    link: Arc<Link>,
    generation: u64,
    connection: Option<Arc<Connection>>,
}

impl View {
    fn new(link: Arc<Link>) -> Self {
        Self { link, generation: 0, connection: None }
    }

    /// Takes up another connection, if there is one; returns whether that is so.
    #[inline]
    fn refresh(&mut self) -> bool {
        let generation = self.link.generation.load(Ordering::Acquire);
        if generation == self.generation {
            return false;
        }
        self.generation = generation;
        let current = self.link.current.lock().unwrap_or_else(PoisonError::into_inner);
        self.connection.clone_from(&current);
        true
    }

    fn lose(&mut self) {
        self.link.lose(self.generation);
        self.connection = None;
    }
}

/// The receiving half.
pub(super) struct StreamSource {
    view: View,
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
    /// Nobody sends descriptors here; whoever does has them closed.
    strays: Vec<OwnedFd>,
}

impl StreamSource {
    pub(super) fn new(link: Arc<Link>) -> Self {
        let bytes = vec![0; READ_BYTES].into_boxed_slice();
        Self { view: View::new(link), bytes, start: 0, end: 0, strays: Vec::new() }
    }

    pub(super) fn refresh(&mut self) {
        if self.view.refresh() {
            (self.start, self.end) = (0, 0);
        }
    }

    pub(super) fn wake_on(&self) -> Option<BorrowedFd<'_>> {
        self.view.connection.as_ref().map(|connection| connection.as_fd())
    }

    /// Takes the next frame into `frame`; returns its length.
    pub(super) fn receive(&mut self, frame: &mut [u8]) -> Option<usize> {
        self.refresh();
        loop {
            let waiting = &self.bytes[self.start..self.end];
            if let Some((prefix, rest)) = waiting.split_first_chunk::<PREFIX>() {
                let len = u32::from_be_bytes(*prefix) as usize;
                if len > MAX_FRAME {
                    tracing::warn!("a network peer announced a frame of {len} bytes; closing");
                    self.view.lose();
                    return None;
                }
                if rest.len() >= len {
                    frame[..len].copy_from_slice(&rest[..len]);
                    self.start += PREFIX + len;
                    return Some(len);
                }
            }
            self.fill()?;
        }
    }

    /// Reads more, if there is more.
    fn fill(&mut self) -> Option<()> {
        let connection = self.view.connection.as_ref()?;
        self.bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        // There is room: what waits is less than the longest frame, which is less than the buffer.
        let result = connection.receive(&mut self.bytes[self.end..], &mut self.strays);
        self.strays.clear();
        match result {
            Ok(Received::Bytes(n)) => {
                self.end += n;
                Some(())
            }
            Ok(Received::Nothing) => None,
            Ok(Received::Closed) | Err(_) => {
                self.view.lose();
                None
            }
        }
    }
}

/// The sending half.
pub(super) struct StreamSink {
    view: View,
    /// The rest of a frame that went only in part.
    rest: Vec<u8>,
}

impl StreamSink {
    pub(super) fn new(link: Arc<Link>) -> Self {
        Self { view: View::new(link), rest: Vec::with_capacity(PREFIX + MAX_FRAME) }
    }

    pub(super) fn send(&mut self, packet: &mut Packet, len: usize) -> Sent {
        if self.view.refresh() {
            self.rest.clear();
        }
        let Some(connection) = self.view.connection.clone() else { return Sent::Dropped };
        if !self.rest.is_empty() {
            match connection.send(&[IoSlice::new(&self.rest)], &[]) {
                Ok(Some(n)) => drop(self.rest.drain(..n)),
                Ok(None) => {}
                Err(_) => return self.fail(),
            }
            if !self.rest.is_empty() {
                return Sent::Later;
            }
        }
        // The length takes the place of the header's end, which nobody needs here.
        let bytes = &mut packet[HEADER - PREFIX..HEADER + len];
        bytes[..PREFIX].copy_from_slice(&(len as u32).to_be_bytes());
        match connection.send(&[IoSlice::new(bytes)], &[]) {
            Ok(Some(n)) => {
                self.rest.extend_from_slice(&bytes[n..]);
                Sent::Yes
            }
            Ok(None) => Sent::Later,
            Err(_) => self.fail(),
        }
    }

    fn fail(&mut self) -> Sent {
        self.view.lose();
        self.rest.clear();
        Sent::Dropped
    }
}

/// How connections come about: the control side.
pub(super) struct Peering {
    link: Arc<Link>,
    way: Way,
}

enum Way {
    /// Whoever connects first.
    Listen(Listener),
    /// We connect, again and again.
    Dial(PathBuf, Timer),
}

impl Peering {
    /// Listens at `path`.
    pub(super) fn listen(path: &std::path::Path) -> std::io::Result<Self> {
        Ok(Self { link: Link::new()?, way: Way::Listen(sys::listen_unix(path)?) })
    }

    /// Connects to `path`, now or when somebody listens there.
    pub(super) fn dial(path: PathBuf) -> std::io::Result<Self> {
        let mut peering = Self { link: Link::new()?, way: Way::Dial(path, Timer::new()?) };
        peering.redial()?;
        Ok(peering)
    }

    pub(super) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// What becomes readable when [`Peering::ready`] has something to do.
    pub(super) fn control_fds(&self) -> Vec<BorrowedFd<'_>> {
        let way = match &self.way {
            Way::Listen(listener) => listener.as_fd(),
            Way::Dial(_, timer) => timer.as_fd(),
        };
        vec![self.link.lost.as_fd(), way]
    }

    /// Does what is due; returns whether a connection came or went.
    pub(super) fn ready(&mut self) -> bool {
        let lost = self.link.lost.drain();
        let was_up = self.link.is_up();
        match &self.way {
            Way::Listen(listener) => {
                // One peer at a time; the others are sent away. Bounded by the listener's backlog.
                while let Ok(Some(connection)) = listener.accept() {
                    if !self.link.is_up() {
                        self.link.set(Some(connection));
                    }
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
