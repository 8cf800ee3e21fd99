//! What bridges have done, for people.

use std::sync::Arc;
use std::time::{Duration, Instant};

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

    /// What prints, each time it is called, what each queue in use has done, and how fast since the
    /// last time; of a bridge that has done nothing only if told to.
    fn reporter(&self, name: Option<&str>) -> Box<dyn FnMut(bool)> {
        let counters = self.0.clone();
        let prefix = name.map(|name| format!("{name}: ")).unwrap_or_default();
        let mut last: Vec<Snapshot> = counters.iter().map(|queue| queue.snapshot()).collect();
        let mut then = Instant::now();
        Box::new(move |tells_idle| {
            let seconds = then.elapsed().as_secs_f64();
            then = Instant::now();
            let mut is_idle = true;
            for (index, (queue, last)) in counters.iter().zip(&mut last).enumerate() {
                let now = queue.snapshot();
                if now.chains > 0 {
                    is_idle = false;
                    print_queue(&prefix, index, &now, last, seconds);
                }
                *last = now;
            }
            if is_idle && tells_idle {
                println!("{prefix}no requests yet, or none that are seen here (mode=pass)");
            }
        })
    }
}

/// What is printed of the bridges while they run.
#[derive(Default)]
pub struct Reports {
    /// How often; `None` only when asked.
    pub every: Option<Duration>,
    reporters: Vec<Box<dyn FnMut(bool)>>,
}

impl Reports {
    /// Prints of this bridge too.
    pub fn add(&mut self, name: Option<&str>, monitor: &Monitor, every: Option<Duration>) {
        self.reporters.push(monitor.reporter(name));
        self.every = self.every.into_iter().chain(every).min();
    }

    /// Prints.
    pub fn print(&mut self) {
        self.reporters.iter_mut().for_each(|report| report(true));
    }

    /// Prints what there is to say at the end.
    pub fn conclude(&mut self) {
        self.reporters.iter_mut().for_each(|report| report(false));
    }
}

fn print_queue(prefix: &str, index: usize, now: &Snapshot, last: &Snapshot, seconds: f64) {
    let rate = |now: u64, last: u64| (now - last) as f64 / seconds;
    println!(
        "{prefix}queue {index}: {:.0} requests/s, {:.1} MiB/s; {} chains, {} completed, {} bytes \
         out, {} in, {} copied, {} kicks ({} suppressed), {} interrupts ({} suppressed), {} waits \
         for room, {} throttled, {} errors, {} restarts",
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
