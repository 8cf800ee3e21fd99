//! Threads that own a processor for the length of a measuring window.

use std::panic::resume_unwind;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sys::{Realtime, cycles, pin_to_cpu};

use crate::placement::CPUS;

/// Number of a processor.
#[derive(Clone, Copy, Debug)]
pub struct Cpu(pub usize);

/// Priority of measured threads among the real-time ones: above those of programs that are measured
/// from outside, so that the placement can be looked at while they poll.
const PRIORITY: i32 = 30;

/// Runs `first` on processor 0 and `second` on processor 1 at the same time; each owns its
/// processor meanwhile.
///
/// They must end by themselves, and soon: nothing else runs on these processors.
pub fn on_both<A: Send, B: Send>(
    first: impl FnOnce() -> A + Send,
    second: impl FnOnce() -> B + Send,
) -> Result<(A, B)> {
    // Both are pinned before either polls for the other at real-time priority, else one could land
    // on the other's processor and never let it run.
    let start = Barrier::new(2);
    std::thread::scope(|scope| {
        let spawn_first = scope.spawn(|| owning(CPUS[0], Some(&start), first));
        let spawn_second = scope.spawn(|| owning(CPUS[1], Some(&start), second));
        let first = spawn_first.join().unwrap_or_else(|panic| resume_unwind(panic));
        let second = spawn_second.join().unwrap_or_else(|panic| resume_unwind(panic));
        Ok((first?, second?))
    })
}

/// Priority of threads that are measured while others look at them.
const LOWER_PRIORITY: i32 = 10;

/// Runs `work` on processor `cpu` with a lower priority than all other measured threads have. For
/// starting threads that go on for longer: they inherit both.
pub fn on_one_below<A: Send>(cpu: Cpu, work: impl FnOnce() -> A + Send) -> Result<A> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            pin_to_cpu(cpu.0).with_context(|| format!("use processor {}", cpu.0))?;
            let _guard = Realtime::start(LOWER_PRIORITY).ok();
            Ok(work())
        });
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// Runs `work` on processor `cpu`, which it owns meanwhile.
pub fn on_one<A: Send>(cpu: Cpu, work: impl FnOnce() -> A + Send) -> Result<A> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| owning(cpu, None, work));
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

fn owning<A>(cpu: Cpu, start: Option<&Barrier>, work: impl FnOnce() -> A) -> Result<A> {
    let pinned = pin_to_cpu(cpu.0).with_context(|| format!("use processor {}", cpu.0));
    if let Some(start) = start {
        start.wait();
    }
    pinned?;
    // Without the right to do that the figures are noisier, not wrong.
    let _guard = Realtime::start(PRIORITY).ok();
    Ok(work())
}

/// How many [`cycles`] there are in a nanosecond, measured over 20 ms.
pub fn cycles_per_ns() -> f64 {
    let (start, from) = (Instant::now(), cycles());
    while start.elapsed() < Duration::from_millis(20) {
        std::hint::spin_loop();
    }
    (cycles() - from) as f64 / start.elapsed().as_nanos() as f64
}

/// A deadline that costs a few cycles to look at.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    end: u64,
}

impl Window {
    /// A window that begins now.
    pub fn start(length: Duration, cycles_per_ns: f64) -> Self {
        Self { end: cycles() + (length.as_nanos() as f64 * cycles_per_ns) as u64 }
    }

    /// Whether it is still open.
    #[inline]
    pub fn is_open(self) -> bool {
        cycles() < self.end
    }
}

/// Cycles spent in polls that did something, apart from those that did not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Busy {
    /// Cycles of polls that did something.
    pub busy: u64,
    /// Cycles of the others.
    pub idle: u64,
    /// What was done.
    pub units: u64,
}

impl Busy {
    /// Measures one poll, which says how many units it did.
    #[inline]
    pub fn poll(&mut self, poll: impl FnOnce() -> u64) {
        let before = cycles();
        let units = poll();
        let spent = cycles() - before;
        if units > 0 {
            self.busy += spent;
            self.units += units;
        } else {
            self.idle += spent;
        }
    }

    /// Busy cycles per unit.
    pub fn per_unit(&self) -> f64 {
        self.busy as f64 / self.units.max(1) as f64
    }

    /// The part of the time that was busy.
    pub fn fraction(&self) -> f64 {
        self.busy as f64 / (self.busy + self.idle).max(1) as f64
    }
}
