use std::time::{Duration, Instant};

/// First pause when the way out is full; a peer that reads makes room in this time.
const FIRST_PAUSE: Duration = Duration::from_micros(50);
/// Longest pause, which costs next to nothing while a peer is stuck.
const LAST_PAUSE: Duration = Duration::from_millis(10);
/// After this long without anything getting out, output is dropped, so that the driver's queue does
/// not stand still for ever.
const LIMIT: Duration = Duration::from_secs(1);

/// What to do while the way out of a transmit queue is full.
#[derive(Debug)]
pub(crate) struct Patience {
    pause: Duration,
    retry_at: Option<Instant>,
    stuck_since: Option<Instant>,
}

impl Patience {
    pub(crate) fn new() -> Self {
        Self { pause: FIRST_PAUSE, retry_at: None, stuck_since: None }
    }

    /// Another attempt begins.
    pub(crate) fn begin(&mut self) {
        self.retry_at = None;
    }

    /// Something got out.
    pub(crate) fn went(&mut self) {
        self.pause = FIRST_PAUSE;
        self.stuck_since = None;
    }

    /// There was no room. Returns whether to try again at [`Patience::retry_at`]; else it is time
    /// to drop.
    pub(crate) fn blocked(&mut self) -> bool {
        let now = Instant::now();
        if now - *self.stuck_since.get_or_insert(now) >= LIMIT {
            return false;
        }
        self.retry_at = Some(now + self.pause);
        self.pause = (self.pause * 2).min(LAST_PAUSE);
        true
    }

    /// Whether the latest attempt found no room.
    pub(crate) fn is_stuck(&self) -> bool {
        self.stuck_since.is_some()
    }

    /// When to try again, if there is something to try.
    pub(crate) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }
}
