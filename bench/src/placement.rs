//! Where the machine's two processors are in relation to each other at this moment.
//!
//! A hypervisor moves virtual processors about: two that share a cache one second may be on
//! different dies the next, and everything that crosses cores changes by a factor of 1.6 to 3 with
//! it. So each window is enclosed by two short ping-pongs of one cache line, and only windows with
//! the same label are compared.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::threads::{Cpu, on_both};

/// How far apart the two processors were during a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Label {
    /// Something was counted: the same wherever the processors are.
    Counted,
    /// One processor was used: nothing to compare.
    OneCore,
    /// A cache line goes there and back in less than [`NEAR_NS`].
    Near,
    /// It takes more than [`FAR_NS`].
    Far,
}

/// Round trips below this are near (50-140 ns on current servers), in nanoseconds.
pub const NEAR_NS: f64 = 160.0;

/// Round trips above this are far (300-400 ns), in nanoseconds.
pub const FAR_NS: f64 = 250.0;

impl Label {
    /// The label of a window between two ping-pongs, or `None` if it is mixed.
    pub fn of(before_ns: f64, after_ns: f64) -> Option<Self> {
        if before_ns < NEAR_NS && after_ns < NEAR_NS {
            Some(Self::Near)
        } else if before_ns > FAR_NS && after_ns > FAR_NS {
            Some(Self::Far)
        } else {
            None
        }
    }
}

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Counted => "counted",
            Self::OneCore => "one core",
            Self::Near => "near",
            Self::Far => "far",
        })
    }
}

/// A line of its own, and one more because processors fetch them in pairs.
#[repr(align(128))]
struct Line(AtomicU64);

/// Median round trip of a cache line between the two processors in nanoseconds, from about 5 ms of
/// ping-pong.
pub fn round_trip_ns() -> Result<f64> {
    const CHUNK: u64 = 500;
    const TIME: Duration = Duration::from_millis(5);
    /// The last value, which ends the echo.
    const END: u64 = u64::MAX;
    let line = Line(AtomicU64::new(0));
    let (mut chunks, ()) = on_both(
        || {
            let start = Instant::now();
            let (mut chunks, mut next) = (Vec::with_capacity(4096), 1);
            while start.elapsed() < TIME {
                let chunk = Instant::now();
                for _ in 0..CHUNK {
                    line.0.store(next, Ordering::Release);
                    while line.0.load(Ordering::Acquire) != next + 1 {}
                    next += 2;
                }
                chunks.push(chunk.elapsed().as_nanos() as f64 / CHUNK as f64);
            }
            line.0.store(END, Ordering::Release);
            chunks
        },
        || {
            let mut expected = 1;
            loop {
                match line.0.load(Ordering::Acquire) {
                    END => return,
                    value if value == expected => {
                        line.0.store(expected + 1, Ordering::Release);
                        expected += 2;
                    }
                    _ => {}
                }
            }
        },
    )?;
    chunks.sort_by(f64::total_cmp);
    Ok(chunks[chunks.len() / 2])
}

/// The two processors that measurements use.
pub const CPUS: [Cpu; 2] = [Cpu(0), Cpu(1)];
