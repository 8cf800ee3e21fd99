//! What bridges have done, for people.

use std::sync::Arc;
use std::time::Instant;

use bridge::{Counters, Shadow, Snapshot};

/// A bridge's counters, readable while it runs in its own threads.
#[derive(Clone)]
pub struct Monitor(Vec<Arc<Counters>>);

impl Monitor {
    /// Watches `shadow`.
    pub fn new(shadow: &Shadow) -> Self {
        Self(shadow.counters().to_vec())
    }

    /// The sums over all queues.
    pub fn totals(&self) -> Snapshot {
        let mut total = Snapshot::default();
        for queue in &self.0 {
            let one = queue.snapshot();
            total.chains += one.chains;
            total.completions += one.completions;
            total.bytes_out += one.bytes_out;
            total.bytes_in += one.bytes_in;
            total.copied_bytes += one.copied_bytes;
            total.kicks += one.kicks;
            total.suppressed_kicks += one.suppressed_kicks;
            total.interrupts += one.interrupts;
            total.suppressed_interrupts += one.suppressed_interrupts;
            total.backpressure += one.backpressure;
            total.throttled += one.throttled;
            total.misses += one.misses;
            total.errors += one.errors;
            total.restarts += one.restarts;
        }
        total
    }

    /// Something that prints, each time it is called, what each queue in use has done, and how fast
    /// since the last time.
    pub fn reporter(&self) -> Box<dyn FnMut()> {
        let counters = self.0.clone();
        let mut last: Vec<Snapshot> = counters.iter().map(|queue| queue.snapshot()).collect();
        let mut then = Instant::now();
        Box::new(move || {
            let seconds = then.elapsed().as_secs_f64();
            then = Instant::now();
            for (index, (queue, last)) in counters.iter().zip(&mut last).enumerate() {
                let now = queue.snapshot();
                if now.chains > 0 {
                    print_queue(index, &now, last, seconds);
                }
                *last = now;
            }
        })
    }
}

fn print_queue(index: usize, now: &Snapshot, last: &Snapshot, seconds: f64) {
    let rate = |now: u64, last: u64| (now - last) as f64 / seconds;
    println!(
        "queue {index}: {:.0} requests/s, {:.1} MiB/s; {} chains, {} completed, {} bytes out, \
         {} in, {} copied, {} kicks ({} suppressed), {} interrupts ({} suppressed), {} waits for \
         room, {} throttled, {} errors, {} restarts",
        rate(now.completions, last.completions),
        rate(now.bytes_out + now.bytes_in, last.bytes_out + last.bytes_in) / f64::from(1 << 20),
        now.chains,
        now.completions,
        now.bytes_out,
        now.bytes_in,
        now.copied_bytes,
        now.kicks,
        now.suppressed_kicks,
        now.interrupts,
        now.suppressed_interrupts,
        now.backpressure,
        now.throttled,
        now.errors,
        now.restarts,
    );
}
