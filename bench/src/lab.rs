//! What every measurement shares: the clock's rate, how thorough to be, where results go.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::threads::{Window, cycles_per_ns};

/// The bench of one run.
pub struct Lab {
    /// Rate of the cycle counter.
    pub cycles_per_ns: f64,
    quick: bool,
    results: PathBuf,
}

impl Lab {
    /// A bench that writes to `results`.
    pub fn new(results: PathBuf, quick: bool) -> Result<Self> {
        let attempt = || format!("create {}", results.display());
        std::fs::create_dir_all(&results).with_context(attempt)?;
        Ok(Self { cycles_per_ns: cycles_per_ns(), quick, results })
    }

    /// Whether this is a quick look.
    pub fn is_quick(&self) -> bool {
        self.quick
    }

    /// How many rounds when `wanted` are wanted: two for a quick look.
    pub fn rounds(&self, wanted: usize) -> usize {
        if self.quick { 2 } else { wanted }
    }

    /// Length of a measuring window.
    pub fn window(&self) -> Duration {
        Duration::from_millis(if self.quick { 50 } else { 250 })
    }

    /// A window that opens now.
    pub fn open(&self) -> Window {
        Window::start(self.window(), self.cycles_per_ns)
    }

    /// A short window, for curves of many points.
    pub fn open_short(&self) -> Window {
        Window::start(self.window() / 5, self.cycles_per_ns)
    }

    /// Nanoseconds that so many cycles take.
    pub fn ns(&self, cycles: f64) -> f64 {
        cycles / self.cycles_per_ns
    }

    /// The folder of the results.
    pub fn results(&self) -> &Path {
        &self.results
    }
}
