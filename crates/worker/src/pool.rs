use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use sys::EventFd;

use crate::handle::{Command, Mailbox};
use crate::run::Worker;
use crate::{LEAST_SPIN, MAX_SPIN, Task, TaskHandle};

/// Stack of a worker thread. Tasks neither recurse nor keep buffers on the stack.
const STACK_BYTES: usize = 256 * 1024;

/// How many worker threads, and how they wait.
#[derive(Clone, Debug)]
pub struct PoolOptions {
    /// Number of threads.
    pub threads: usize,
    /// Longest polling before sleep, per task; see [`crate::SpinWindow`].
    pub max_spin: Duration,
    /// Where to add up the cycles that polls take; `None` costs nothing.
    pub cycles: Option<Arc<PollCycles>>,
}

/// Cycles of [`sys::cycles`] that polls took, those that did something apart from those that did
/// not: what a request costs, whoever is on the other side.
#[derive(Debug, Default)]
pub struct PollCycles {
    /// In polls that did something.
    pub busy: AtomicU64,
    /// In polls that found nothing to do.
    pub idle: AtomicU64,
}

impl PollCycles {
    pub(crate) fn add(&self, worked: bool, cycles: u64) {
        let place = if worked { &self.busy } else { &self.idle };
        place.fetch_add(cycles, Ordering::Relaxed);
    }
}

impl Default for PoolOptions {
    /// One thread, which polls as [`PoolOptions::with_threads`] says.
    fn default() -> Self {
        Self::with_threads(1)
    }
}

impl PoolOptions {
    /// `threads` workers that poll for long before they sleep only if the machine has processors to
    /// spare, and for no longer than a wake-up takes if it has not: then polling may take the time
    /// from those one waits for, which a [`crate::SpinWindow`] notices. On a single processor it
    /// always does.
    #[must_use]
    pub fn with_threads(threads: usize) -> Self {
        let short = if processors() > 1 { SHORT_SPIN } else { Duration::ZERO };
        Self { threads: threads.max(1), max_spin: usual_spin(threads).max(short), cycles: None }
    }
}

impl PoolOptions {
    /// The same with polling for at most `spin`, as somebody asked. Whoever wants none still gets a
    /// second look, [`LEAST_SPIN`] long, while that saves wake-ups: else each request of a driver
    /// that polls would cost one, because we are done looking before it has seen the last one done.
    /// With a single processor a second look finds what the first found.
    #[must_use]
    pub fn spinning(self, spin: Duration) -> Self {
        let least = if processors() > 1 { LEAST_SPIN } else { Duration::ZERO };
        Self { max_spin: spin.max(least), ..self }
    }
}

/// Longest polling before sleep where every processor is wanted: what a wake-up costs at least
/// (10-25 us), so that polling at worst doubles the price of one.
const SHORT_SPIN: Duration = Duration::from_micros(20);

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// Longest polling before sleep that does no harm beside `threads` threads that do the same: none
/// if polling takes the processor from those one waits for.
#[must_use]
pub fn usual_spin(threads: usize) -> Duration {
    if processors() <= threads + 1 { Duration::ZERO } else { MAX_SPIN }
}

/// A set of worker threads that tasks are spread over.
#[derive(Debug)]
pub struct Workers {
    threads: Vec<Thread>,
    next_id: AtomicU64,
}

struct Thread {
    mailbox: Mailbox,
    handle: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Thread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Thread")
    }
}

impl Workers {
    /// Starts the threads; they are called `bridge-0`, `bridge-1`, ...
    ///
    /// # Errors
    /// The system is out of threads or file descriptors.
    pub fn start(options: &PoolOptions) -> io::Result<Arc<Self>> {
        let threads = (0..options.threads.max(1)).map(|index| start_thread(index, options));
        Ok(Arc::new(Self {
            threads: threads.collect::<io::Result<_>>()?,
            next_id: AtomicU64::new(0),
        }))
    }

    /// The process's own pool, started at first use with the default options unless
    /// [`Workers::configure`] came before.
    ///
    /// # Errors
    /// As [`Workers::start`].
    pub fn shared() -> io::Result<Arc<Self>> {
        Self::configure(&PoolOptions::default())
    }

    /// Starts the process's own pool with these options if it does not run yet.
    ///
    /// # Errors
    /// As [`Workers::start`].
    pub fn configure(options: &PoolOptions) -> io::Result<Arc<Self>> {
        static SHARED: OnceLock<Arc<Workers>> = OnceLock::new();
        match SHARED.get() {
            Some(workers) => Ok(Arc::clone(workers)),
            None => {
                let workers = Self::start(options)?;
                Ok(Arc::clone(SHARED.get_or_init(|| workers)))
            }
        }
    }

    /// Gives `task` to one of the threads, in turn.
    pub fn spawn<T: Task>(&self, task: T) -> TaskHandle<T> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mailbox = &self.threads[id as usize % self.threads.len()].mailbox;
        mailbox.send(Command::Start(id, Box::new(task)));
        TaskHandle::new(id, mailbox.clone())
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for thread in &self.threads {
            thread.mailbox.send(Command::Quit);
            let handle = thread.handle.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(handle) = handle {
                let _ = handle.join();
            }
        }
    }
}

fn start_thread(index: usize, options: &PoolOptions) -> io::Result<Thread> {
    let (send, receive) = channel();
    let mailbox = Mailbox { commands: send, wake: Arc::new(EventFd::new()?) };
    let mut worker = Worker::new(receive, Arc::clone(&mailbox.wake), options)?;
    let builder =
        std::thread::Builder::new().name(format!("bridge-{index}")).stack_size(STACK_BYTES);
    let handle = builder.spawn(move || worker.run())?;
    Ok(Thread { mailbox, handle: Mutex::new(Some(handle)) })
}
