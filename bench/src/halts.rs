//! Processors that halt: how often, and how to keep one from it.
//!
//! In a virtual machine a processor that halts is taken away, and brought back when there is
//! something to do. That takes longer than a message through a socket.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use sys::pin_to_cpu;

use crate::threads::Cpu;

/// How often a processor has halted since it was started; not a number where the kernel does not
/// say.
pub fn halts(cpu: Cpu) -> f64 {
    let states = format!("/sys/devices/system/cpu/cpu{}/cpuidle", cpu.0);
    let count = || -> Option<f64> {
        let mut halts = 0.0;
        for state in fs::read_dir(states).ok()? {
            let state = state.ok()?.path();
            // In this state a processor without work runs on, looking for some.
            if fs::read_to_string(state.join("name")).ok()?.trim() != "POLL" {
                let usage = fs::read_to_string(state.join("usage")).ok()?;
                halts += usage.trim().parse::<f64>().ok()?;
            }
        }
        Some(halts)
    };
    count().unwrap_or(f64::NAN)
}

/// While this lives a processor has something to do, if nothing more urgent, and so does not halt:
/// a thread of ordinary priority turns round on it.
pub struct InUse {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl InUse {
    /// Keeps processor `cpu` in use.
    pub fn start(cpu: Cpu) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, (tell, pinned)) = (Arc::clone(&stop), std::sync::mpsc::channel());
        let thread = std::thread::spawn(move || {
            let _ = tell.send(pin_to_cpu(cpu.0));
            while !stopped.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        let this = Self { stop, thread: Some(thread) };
        pinned.recv()?.with_context(|| format!("use processor {}", cpu.0))?;
        Ok(this)
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
