//! Processors: which one a thread runs on, with what priority, and the finest clock there is.

use std::io;

use rustix::thread::{CpuSet, sched_setaffinity};

/// Keeps the calling thread on processor `cpu`, counted from 0.
///
/// # Errors
/// There is no such processor, or this process may not use it.
pub fn pin_to_cpu(cpu: usize) -> io::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// As long as it lives the calling thread runs before every ordinary one on its processor
/// (SCHED_FIFO).
///
/// A thread that polls like this starves the others, so it is for measurements of a fraction of a
/// second.
#[derive(Debug)]
pub struct Realtime {
    /// The priority belongs to the thread that asked for it, so the guard must stay there.
    _not_send: std::marker::PhantomData<*const ()>,
}

impl Realtime {
    /// Raises the calling thread to `priority`, 1 (lowest) to 99.
    ///
    /// # Errors
    /// This process may not do that.
    pub fn start(priority: i32) -> io::Result<Self> {
        set_scheduler(libc::SCHED_FIFO, priority)?;
        Ok(Self { _not_send: std::marker::PhantomData })
    }
}

impl Drop for Realtime {
    fn drop(&mut self) {
        // Going back to the ordinary policy is always allowed.
        let _ = set_scheduler(libc::SCHED_OTHER, 0);
    }
}

fn set_scheduler(policy: libc::c_int, priority: i32) -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: `parameters` is a valid sched_param for the time of the call; 0 is the calling
    // thread.
    let result = unsafe { libc::sched_setscheduler(0, policy, &parameters) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A counter that runs at a constant rate, the same on every processor: the time stamp counter, or
/// nanoseconds of CLOCK_MONOTONIC where there is none. How fast is for the caller to find out
/// against another clock.
#[must_use]
#[inline]
pub fn cycles() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: every x86-64 processor has RDTSC, and reading a counter touches no memory.
        unsafe { core::arch::x86_64::_rdtsc() }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_runs_forward() {
        let before = cycles();
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert!(cycles() > before);
    }

    #[test]
    fn a_pinned_thread_stays() {
        let allowed = rustix::thread::sched_getaffinity(None).expect("affinity can be read");
        let cpu = (0..CpuSet::MAX_CPU).find(|&cpu| allowed.is_set(cpu)).expect("a processor");
        std::thread::spawn(move || {
            pin_to_cpu(cpu).expect("an allowed processor");
            assert_eq!(rustix::thread::sched_getcpu(), cpu);
        })
        .join()
        .expect("the thread ends well");
        assert!(pin_to_cpu(usize::MAX).is_err());
    }
}
