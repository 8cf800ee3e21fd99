use std::time::{Duration, Instant};

/// Longest time a worker polls an idle task before it sleeps. Above twice what a wake-up costs
/// (10-25 us) polling only burns power.
pub const MAX_SPIN: Duration = Duration::from_micros(50);

/// First window that is worth having at all.
const MIN_SPIN: Duration = Duration::from_micros(2);

/// How long to poll before sleeping, learnt from what the waiting was good for.
///
/// Starts at 0. A wake-up that comes within [`MAX_SPIN`] of falling asleep shows that polling a
/// little longer would have saved it: the window doubles. A window that passed empty before a
/// longer sleep was for nothing: it halves.
#[derive(Clone, Copy, Debug)]
pub struct SpinWindow {
    window: Duration,
    max: Duration,
    /// The window has passed without work since the last wake-up.
    wasted: bool,
}

impl SpinWindow {
    /// A window that never grows beyond `max`; 0 to sleep at once, always.
    #[must_use]
    pub fn new(max: Duration) -> Self {
        Self { window: Duration::ZERO, max: max.min(MAX_SPIN), wasted: false }
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
        if asleep < self.max {
            self.window = (self.window * 2).max(MIN_SPIN).min(self.max);
        } else if wasted {
            self.window /= 2;
            if self.window < MIN_SPIN {
                self.window = Duration::ZERO;
            }
        }
    }

    /// The window passed without work.
    pub fn passed_empty(&mut self) {
        self.wasted = true;
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
    fn a_maximum_of_zero_never_spins() {
        let mut window = SpinWindow::new(Duration::ZERO);
        window.woken_after(Duration::ZERO);
        assert_eq!(window.length(), Duration::ZERO);
    }
}
