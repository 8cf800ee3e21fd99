//! The second socket, on which we make requests of the driver's side.
//!
//! None of our requests asks for an answer, so nobody ever waits for the other side here.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mem::{Access, DriverAddress};
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
    asked: VecDeque<((u64, Access), Instant)>,
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

    /// Asks for the translation of the page that holds `at`, for this and no more: QEMU takes a
    /// write to a page that is mapped for reading for a fault of the device, and does not answer.
    pub(super) fn miss(&self, at: DriverAddress, wanted: Access) {
        let page = at.0 / PAGE * PAGE;
        let now = Instant::now();
        {
            let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            while inner.asked.front().is_some_and(|(_, when)| now - *when > ASK_AGAIN) {
                inner.asked.pop_front();
            }
            let known = inner.asked.iter().any(|(asked, _)| *asked == (page, wanted));
            if known || inner.asked.len() >= RECENT {
                return;
            }
            inner.asked.push_back(((page, wanted), now));
        }
        let permissions = match wanted {
            Access::Read => Iotlb::READ,
            Access::ReadWrite | Access::Ours => Iotlb::WRITE,
        };
        self.send(&BackendRequest::IotlbMsg(Iotlb {
            iova: page,
            size: 0,
            user_address: 0,
            permissions,
            kind: IotlbKind::Miss,
        }));
    }

    /// A translation came or went: the next miss there is news, however soon. Drivers use an
    /// address again at once.
    pub(super) fn answered(&self, message: &Iotlb) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_there = |page: u64| page.wrapping_sub(message.iova) < message.size;
        inner
            .asked
            .retain(|((page, _), _)| !is_there(*page) && *page / PAGE != message.iova / PAGE);
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
