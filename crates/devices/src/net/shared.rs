use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sys::Tap;

use super::filter::Filter;

/// What the queues and the control side share.
pub(super) struct Shared {
    state: Mutex<State>,
    /// Changes with the filter, so that a queue need not look at it for each frame.
    filter_generation: AtomicU64,
    /// The guest is asked to tell the network where it is.
    wants_announcement: AtomicBool,
    /// Queue pairs there are.
    pub(super) pairs: usize,
    /// The taps by queue pair, if that is what the card stands on.
    pub(super) taps: Vec<Arc<Tap>>,
    /// Which of them take part in the distribution of frames.
    pub(super) attached: Vec<AtomicBool>,
}

struct State {
    /// The hardware address, which the driver may change.
    mac: [u8; 6],
    filter: Filter,
    /// A station that the network is to be told of.
    announced: Option<[u8; 6]>,
}

impl Shared {
    pub(super) fn new(mac: [u8; 6], pairs: usize, taps: Vec<Arc<Tap>>) -> Self {
        Self {
            state: Mutex::new(State { mac, filter: Filter::new(mac), announced: None }),
            filter_generation: AtomicU64::new(0),
            wants_announcement: AtomicBool::new(false),
            pairs,
            attached: taps.iter().map(|_| AtomicBool::new(true)).collect(),
            taps,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn mac(&self) -> [u8; 6] {
        self.state().mac
    }

    pub(super) fn set_mac(&self, mac: [u8; 6]) {
        self.state().mac = mac;
        self.change_filter(|filter| filter.set_mac(mac));
    }

    /// As when no driver was there yet; `mac` is the card's own address.
    pub(super) fn forget_the_driver(&self, mac: [u8; 6]) {
        self.state().mac = mac;
        self.change_filter(|filter| *filter = Filter::new(mac));
        self.want_announcement(false);
    }

    /// Changes which frames the driver wants.
    pub(super) fn change_filter(&self, change: impl FnOnce(&mut Filter)) {
        change(&mut self.state().filter);
        // Release: pairs with the Acquire in `newer_filter`, although the filter is read under the
        // lock.
        self.filter_generation.fetch_add(1, Ordering::Release);
    }

    /// The filter, if it is another one than that of `generation`, which becomes its own.
    #[inline]
    pub(super) fn newer_filter(&self, generation: &mut u64) -> Option<Filter> {
        let now = self.filter_generation.load(Ordering::Acquire);
        if now == *generation {
            return None;
        }
        *generation = now;
        Some(self.state().filter.clone())
    }

    /// Asks the guest to tell the network where it is, or no more.
    pub(super) fn want_announcement(&self, wanted: bool) {
        // Relaxed: a flag of its own, read with the config.
        self.wants_announcement.store(wanted, Ordering::Relaxed);
    }

    /// Whether the guest is asked so.
    pub(super) fn wants_announcement(&self) -> bool {
        self.wants_announcement.load(Ordering::Relaxed)
    }

    /// Has a transmit queue tell the network that this station is here, when it is refreshed.
    pub(super) fn announce(&self, mac: [u8; 6]) {
        self.state().announced = Some(mac);
    }

    /// The station to tell the network of, once.
    pub(super) fn take_announced(&self) -> Option<[u8; 6]> {
        self.state().announced.take()
    }
}
