//! Threads that run queue tasks to completion and sleep when there is nothing to do.
//!
//! A [`Task`] is the data path of a queue (or of several). A worker owns its tasks by value, polls
//! those that have work with a budget, and waits in epoll for the rest; no lock guards a task, and
//! no task ever waits inside `poll`. The control plane reaches a task through its [`TaskHandle`]:
//! it runs a closure on it, or takes it back.
//!
//! What it deliberately lacks: futures, priorities, work stealing. A task stays on the worker it
//! was given to.

#![forbid(unsafe_code)]

mod handle;
mod idle;
mod pool;
mod quiet;
mod run;

pub use handle::TaskHandle;
pub use idle::{LEAST_SPIN, MAX_SPIN, SpinWindow};
pub use pool::{PollCycles, PoolOptions, Workers, usual_spin};
pub use quiet::Quiet;

use std::any::Any;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use sys::EventFd;

/// How a poll went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Something was done; there may be more.
    Worked,
    /// Nothing to do now.
    Idle,
    /// The task is over (a peer broke a rule, or the device is gone) and is not polled again; its
    /// handle takes it back.
    Finished,
}

/// The data path of one queue, or of a few that belong together.
pub trait Task: Any + Send {
    /// The events whose signals mean work. Asked for, as [`Task::wake_on`], when the task starts
    /// and after each [`TaskHandle::call`].
    fn bells(&self) -> Vec<Arc<EventFd>> {
        Vec::new()
    }

    /// The other descriptors whose readiness means work. They are duplicated, so the task may
    /// close its own at any time.
    fn wake_on(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    /// Does up to `budget` requests' worth of work, without waiting and without allocating.
    fn poll(&mut self, budget: u32) -> Progress;

    /// About to sleep: asks the peers for notifications. Returns true if work has come in
    /// meanwhile, and then the task is polled again instead.
    fn arm(&mut self) -> bool;

    /// Awake again: asks for no more notifications. The bells are waited for edge by edge, so they
    /// need not be drained.
    fn disarm(&mut self);

    /// Whether something that was handed on, to the kernel or to a device, is not done yet. How
    /// long that takes has nothing to do with how soon the driver asks for more, so whether polling
    /// for it is worth while is learnt apart.
    fn is_pending(&self) -> bool {
        false
    }

    /// When to poll the task even without a notification (rate limits, deadlines); `None` for
    /// never.
    fn deadline(&self) -> Option<Instant> {
        None
    }
}
