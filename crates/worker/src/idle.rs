use std::time::{Duration, Instant};

/// Longest time a worker polls an idle task before it sleeps. Above twice what a wake-up costs
/// (10-25 us) polling only burns power.
pub const MAX_SPIN: Duration = Duration::from_micros(50);

/// First window that is worth having at all: what a driver that polls on a far processor needs from
/// seeing a request done to having made the next one available, and a fraction of the 10-20 us on a
/// processor that going to sleep and being woken takes.
pub const LEAST_SPIN: Duration = Duration::from_micros(3);

/// What a wake-up takes at most, usually. The time asleep has it in it, and polling saves it.
const WAKE_UP: Duration = Duration::from_micros(25);

/// Windows in a row that may pass empty just before work comes, until polling is given up: what is
/// waited for needs the processor that polls, or comes a little too late every time.
const MISSES: u32 = 4;

/// Wake-ups without polling after it was given up the first time, and at most: the number doubles
/// each time it turns out that nothing has changed.
const FIRST_PAUSE: u32 = 64;
const LAST_PAUSE: u32 = 1 << 16;

/// How long to poll before sleeping, learnt from what the waiting was good for.
///
/// Starts at 0. A wake-up that comes so soon after falling asleep that work must have come within
/// the longest window shows that polling a little longer would have saved it: the window doubles. A
/// window that passed empty before a longer sleep was for nothing: it halves. Where even the
/// longest window keeps passing empty just before work comes, polling is given up for a while,
/// which takes longer each time: then it is the polling that keeps the peer from running, or the
/// peer is too slow.
#[derive(Clone, Copy, Debug)]
pub struct SpinWindow {
    window: Duration,
    max: Duration,
    /// The window has passed without work since the last wake-up.
    wasted: bool,
    /// Windows of full length that passed empty just before work came, since one was good for
    /// something.
    misses: u32,
    /// Wake-ups until polling is tried again.
    pause: u32,
    /// The length of the next pause.
    next_pause: u32,
}

impl SpinWindow {
    /// A window that never grows beyond `max`; 0 to sleep at once, always.
    #[must_use]
    pub fn new(max: Duration) -> Self {
        Self {
            window: Duration::ZERO,
            max: max.min(MAX_SPIN),
            wasted: false,
            misses: 0,
            pause: 0,
            next_pause: FIRST_PAUSE,
        }
    }

    /// The current length.
    #[must_use]
    pub fn length(&self) -> Duration {
        self.window
    }

    /// The task was woken `asleep` after it went to sleep. Only now is it known what an empty
    /// window was: too short, or for nothing.
    pub fn woken_after(&mut self, asleep: Duration) {
        let wasted = std::mem::take(&mut self.wasted);
        if self.pause > 0 {
            self.pause -= 1;
        } else if asleep < self.max + WAKE_UP && !self.max.is_zero() {
            if wasted && self.window == self.max {
                self.misses += 1;
                if self.misses == MISSES {
                    return self.give_up();
                }
            }
            self.window = (self.window * 2).max(LEAST_SPIN).min(self.max);
        } else if wasted {
            self.window /= 2;
            if self.window < LEAST_SPIN {
                self.window = Duration::ZERO;
            }
        }
    }

    /// The window passed without work.
    pub fn passed_empty(&mut self) {
        self.wasted = true;
    }

    /// Work came within the window.
    #[inline]
    pub fn found(&mut self) {
        self.misses = 0;
        self.next_pause = FIRST_PAUSE;
    }

    fn give_up(&mut self) {
        self.window = Duration::ZERO;
        self.misses = 0;
        self.pause = self.next_pause;
        self.next_pause = (self.next_pause * 2).min(LAST_PAUSE);
    }
}

/// The earlier of two moments, where `None` is never.
pub(crate) fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_grows_with_use_and_shrinks_without() {
        let mut window = SpinWindow::new(Duration::from_millis(1));
        assert_eq!(window.length(), Duration::ZERO);
        for _ in 0..10 {
            window.woken_after(Duration::from_micros(5));
        }
        assert_eq!(window.length(), MAX_SPIN);
        window.woken_after(Duration::from_secs(1));
        assert_eq!(window.length(), MAX_SPIN, "a long sleep says nothing about a short spin");
        for _ in 0..10 {
            window.passed_empty();
            window.woken_after(Duration::from_secs(1));
        }
        assert_eq!(window.length(), Duration::ZERO);
    }

    #[test]
    fn work_that_comes_a_little_too_late_makes_the_window_long_enough() {
        let (mut window, every) = (SpinWindow::new(MAX_SPIN), Duration::from_micros(20));
        for _ in 0..10 {
            if window.length() < every {
                window.passed_empty();
                window.woken_after(every - window.length());
            }
        }
        assert!(window.length() >= every, "{:?}", window.length());
    }

    #[test]
    fn polling_that_keeps_the_peer_from_running_is_given_up() {
        let mut window = SpinWindow::new(MAX_SPIN);
        // Work only ever comes once we sleep.
        let mut polled = 0;
        for _ in 0..10_000 {
            if window.length() > Duration::ZERO {
                polled += 1;
                window.passed_empty();
            }
            window.woken_after(Duration::from_micros(5));
        }
        assert!(polled < 150, "polled {polled} times of 10,000");
        // Now polling is good for something, and is tried again some day.
        for _ in 0..LAST_PAUSE + 10 {
            window.woken_after(Duration::from_micros(5));
        }
        assert_eq!(window.length(), MAX_SPIN);
        for _ in 0..3 {
            window.passed_empty();
            window.woken_after(Duration::from_micros(5));
            window.found();
        }
        assert_eq!(window.length(), MAX_SPIN, "now and then it may fail");
    }

    #[test]
    fn a_maximum_of_zero_never_spins() {
        let mut window = SpinWindow::new(Duration::ZERO);
        window.woken_after(Duration::ZERO);
        assert_eq!(window.length(), Duration::ZERO);
    }
}
