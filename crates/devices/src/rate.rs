use std::time::{Duration, Instant};

/// A bucket of permits that fills at a constant rate and holds a tenth of a second's worth.
#[derive(Debug)]
pub(crate) struct Bucket {
    per_second: u64,
    capacity: u64,
    permits: u64,
    filled_at: Instant,
}

impl Bucket {
    /// A full bucket; `per_second` is not 0.
    pub(crate) fn new(per_second: u64) -> Self {
        let capacity = (per_second / 10).max(1);
        Self { per_second, capacity, permits: capacity, filled_at: Instant::now() }
    }

    /// Takes up to `wanted` permits; returns how many.
    pub(crate) fn take(&mut self, wanted: u64, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.filled_at).as_nanos();
        let new = elapsed * u128::from(self.per_second) / 1_000_000_000;
        if new > 0 {
            self.permits = (u128::from(self.permits) + new).min(self.capacity.into()) as u64;
            self.filled_at = now;
        }
        let taken = wanted.min(self.permits);
        self.permits -= taken;
        taken
    }

    /// How long an empty bucket takes for a useful number of permits: a tenth of what it holds.
    pub(crate) fn pause(&self) -> Duration {
        let permits = (self.capacity / 10).max(1);
        Duration::from_nanos(
            (u128::from(permits) * 1_000_000_000 / u128::from(self.per_second)) as u64,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_brings_a_seconds_worth() {
        let mut bucket = Bucket::new(1000);
        let start = Instant::now();
        assert_eq!(bucket.take(1_000_000, start), 100, "what it holds");
        let mut total = 0;
        for ms in 1..=1000 {
            total += bucket.take(1000, start + Duration::from_millis(ms));
        }
        assert!((999..=1000).contains(&total), "{total}");
        assert_eq!(bucket.pause(), Duration::from_millis(10));
    }
}
