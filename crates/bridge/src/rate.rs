use std::time::{Duration, Instant};

use crate::RateLimits;

/// How far a queue may run ahead of its rate. Short enough that a second measured anywhere is right
/// within a few percent, long enough not to wake up for every request.
const BURST: Duration = Duration::from_millis(10);

/// Keeps a queue within its [`RateLimits`].
///
/// A request is let through when the debt of those before it is paid, whatever its own size; so a
/// request larger than the burst passes too, and is paid for afterwards.
#[derive(Debug)]
pub(crate) struct Limiter {
    limits: RateLimits,
    /// When the requests so far would have ended at exactly the allowed rate.
    bytes_until: Instant,
    requests_until: Instant,
}

impl Limiter {
    /// `None` if there is nothing to limit.
    pub(crate) fn new(limits: RateLimits) -> Option<Self> {
        let now = Instant::now();
        (limits != RateLimits::default()).then_some(Self {
            limits,
            bytes_until: now,
            requests_until: now,
        })
    }

    /// When the next request may pass, if that is after `now`.
    pub(crate) fn wait_until(&self, now: Instant) -> Option<Instant> {
        let until = self.bytes_until.max(self.requests_until);
        let at = until.checked_sub(BURST)?;
        (at > now).then_some(at)
    }

    /// A request with so many bytes passes.
    pub(crate) fn charge(&mut self, now: Instant, bytes: u64) {
        let RateLimits { bytes_per_second, requests_per_second } = self.limits;
        if bytes_per_second > 0 {
            self.bytes_until = self.bytes_until.max(now) + time_for(bytes, bytes_per_second);
        }
        if requests_per_second > 0 {
            self.requests_until = self.requests_until.max(now) + time_for(1, requests_per_second);
        }
    }
}

/// How long `units` take at `per_second`; an hour at most, so that no sum overflows.
fn time_for(units: u64, per_second: u64) -> Duration {
    let nanos = u128::from(units) * 1_000_000_000 / u128::from(per_second);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)).min(Duration::from_secs(3600))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_as_many_requests_as_allowed() {
        let limits = RateLimits { bytes_per_second: 0, requests_per_second: 1000 };
        let mut limiter = Limiter::new(limits).unwrap();
        let start = Instant::now();
        let (mut now, mut passed) = (start, 0);
        while now < start + Duration::from_secs(1) {
            match limiter.wait_until(now) {
                Some(at) => now = at,
                None => {
                    limiter.charge(now, 1 << 20);
                    passed += 1;
                }
            }
        }
        assert!((1000..=1012).contains(&passed), "{passed}");
    }

    #[test]
    fn a_large_request_passes_and_is_paid_for() {
        let limits = RateLimits { bytes_per_second: 1 << 20, requests_per_second: 0 };
        let mut limiter = Limiter::new(limits).unwrap();
        let now = Instant::now();
        limiter.charge(now, 10 << 20);
        let next = limiter.wait_until(now).unwrap();
        let waited = next - now;
        assert!(waited > Duration::from_millis(9900) && waited < Duration::from_secs(10));
        assert_eq!(limiter.wait_until(next), None);
    }

    #[test]
    fn no_limit_needs_no_limiter() {
        assert!(Limiter::new(RateLimits::default()).is_none());
    }
}
