//! Progress while a row runs, and the table.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use bridge::Snapshot;
use hdrhistogram::Histogram;

use super::path::Path;

/// What a row did.
pub struct Row {
    what: &'static str,
    mode: String,
    rings: String,
    requests: u64,
    bytes: u64,
    time: Duration,
    latency: Histogram<u64>,
    copied_bytes: u64,
    notifications: u64,
    system_calls: u64,
}

/// Measures a row while it runs.
pub struct Meter {
    what: &'static str,
    expected: u64,
    requests: u64,
    bytes: u64,
    start: Instant,
    shown: Instant,
    latency: Histogram<u64>,
    system_calls: u64,
    counters: Snapshot,
}

/// How often progress is shown.
const PERIOD: Duration = Duration::from_millis(200);

impl Meter {
    /// Starts measuring `expected` requests.
    pub fn start(what: &'static str, expected: u64, path: &Path) -> Self {
        let now = Instant::now();
        // Up to 60 s with three digits: a few hundred KiB.
        let latency = Histogram::new_with_bounds(1, 60_000_000_000, 3);
        Self {
            what,
            expected,
            requests: 0,
            bytes: 0,
            start: now,
            shown: now,
            latency: latency.expect("constant bounds are valid"),
            system_calls: sys::system_calls(),
            counters: path.monitor.totals(),
        }
    }

    /// One more request of `bytes` is done, which was started at `since`.
    pub fn done(&mut self, bytes: u64, since: Instant) {
        self.requests += 1;
        self.bytes += bytes;
        self.latency.saturating_record(since.elapsed().as_nanos() as u64);
        if self.requests.is_multiple_of(256) && self.shown.elapsed() > PERIOD {
            self.shown = Instant::now();
            if std::io::stderr().is_terminal() {
                let percent = self.requests * 100 / self.expected;
                eprint!("\r{} {percent:3} %  ", self.what);
                let _ = std::io::stderr().flush();
            }
        }
    }

    /// The row. `notifications` are those the driver gave and got.
    pub fn finish(self, path: &Path, notifications: u64) -> Row {
        let time = self.start.elapsed();
        let counters = path.monitor.totals();
        let bridge = |pick: fn(&Snapshot) -> u64| pick(&counters) - pick(&self.counters);
        Row {
            what: self.what,
            mode: path.mode.to_string(),
            rings: format!("{} - {}", path.driver_ring, path.device_ring),
            requests: self.requests,
            bytes: self.bytes,
            time,
            latency: self.latency,
            copied_bytes: bridge(|c| c.copied_bytes),
            notifications: notifications + bridge(|c| c.kicks) + bridge(|c| c.interrupts),
            system_calls: sys::system_calls() - self.system_calls,
        }
    }
}

/// The rows, printed as they come.
pub struct Table;

impl Table {
    /// Prints the head.
    pub fn new() -> Self {
        println!(
            "{:<4} {:<9} {:<15} {:>10} {:>8} {:>8} {:>8} {:>8} {:>10} {:>8} {:>8}",
            "",
            "mode",
            "rings",
            "requests/s",
            "MiB/s",
            "p50 us",
            "p99 us",
            "max us",
            "copied MiB",
            "notif/rq",
            "calls/rq"
        );
        Self
    }

    /// Prints a row.
    pub fn add(&mut self, row: Row) {
        let seconds = row.time.as_secs_f64();
        let per_request = |count: u64| count as f64 / row.requests as f64;
        let micros = |quantile: f64| row.latency.value_at_quantile(quantile) as f64 / 1000.0;
        if std::io::stderr().is_terminal() {
            eprint!("\r                    \r");
        }
        println!(
            "{:<4} {:<9} {:<15} {:>10.0} {:>8.0} {:>8.1} {:>8.1} {:>8.0} {:>10.0} {:>8.2} {:>8.2}",
            row.what,
            row.mode,
            row.rings,
            row.requests as f64 / seconds,
            row.bytes as f64 / seconds / f64::from(1 << 20),
            micros(0.5),
            micros(0.99),
            row.latency.max() as f64 / 1000.0,
            row.copied_bytes as f64 / f64::from(1 << 20),
            per_request(row.notifications),
            per_request(row.system_calls),
        );
    }

    /// Explains the columns.
    pub fn finish(&self) {
        println!(
            "\nAll data was verified.\n\
             notif/rq: doorbells and interrupts of driver and bridge per request.\n\
             calls/rq: system calls of driver, bridge, daemon and disk together per request."
        );
    }
}
