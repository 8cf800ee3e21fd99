//! The second socket, on which we make requests of the driver's side.
//!
//! None of our requests asks for an answer, so nobody ever waits for the other side here.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mem::DriverAddress;
use sys::Connection;
use wire::vhost_user::{BackendRequest, Iotlb, IotlbKind, VringState};

/// How long a request may wait for room in the socket; a peer that does not read for longer loses
/// it.
const SEND_LIMIT: Duration = Duration::from_millis(100);
/// A page is asked for again after this: the answer may have been lost to an invalidation.
const ASK_AGAIN: Duration = Duration::from_millis(5);
/// Pages that were asked for lately.
const RECENT: usize = 64;
/// Granularity of translations.
const PAGE: u64 = 4096;

/// Our end of the second socket. Cheap to clone: queues report missing translations through it.
#[derive(Clone, Debug)]
pub(super) struct Backend(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    socket: Connection,
    asked: VecDeque<(u64, Instant)>,
}

impl Backend {
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        let inner = Inner { socket: Connection::new(fd)?, asked: VecDeque::new() };
        Ok(Self(Arc::new(Mutex::new(inner))))
    }

    /// The device config has changed.
    pub(super) fn config_changed(&self) {
        self.send(&BackendRequest::ConfigChangeMsg);
    }

    /// Interrupts the driver in band.
    pub(super) fn call(&self, index: u16) {
        self.send(&BackendRequest::VringCall(VringState { index: index.into(), num: 0 }));
    }

    /// Asks for the translation of the page that holds `at`.
    pub(super) fn miss(&self, at: DriverAddress) {
        let page = at.0 / PAGE * PAGE;
        let now = Instant::now();
        {
            let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            while inner.asked.front().is_some_and(|(_, when)| now - *when > ASK_AGAIN) {
                inner.asked.pop_front();
            }
            let known = inner.asked.iter().any(|(asked, _)| *asked == page);
            if known || inner.asked.len() >= RECENT {
                return;
            }
            inner.asked.push_back((page, now));
        }
        self.send(&BackendRequest::IotlbMsg(Iotlb {
            iova: page,
            size: 0,
            user_address: 0,
            permissions: Iotlb::READ | Iotlb::WRITE,
            kind: IotlbKind::Miss,
        }));
    }

    fn send(&self, request: &BackendRequest<'_>) {
        let mut bytes = Vec::new();
        request.encode(0, &mut bytes);
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = inner.socket.send_all(&bytes, &[], SEND_LIMIT) {
            tracing::debug!("a request to the driver's side is lost: {error}");
        }
    }
}
