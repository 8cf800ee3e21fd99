//! Runs bridges, each in a thread of its own while it is busy, until all have ended or a signal
//! asks for the end.
//!
//! ```text
//!             start                      nothing happens
//!   bridge ----------> thread serves it ----------------> rests in the epoll set
//!                             ^                                 |
//!                             +---------------------------------+
//!                                   something to do, or the end
//! ```

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use sys::{Epoll, EventFd, Interest, StopSignal, Wish, WishSignal};
use virtio::{DriverEnd, EndError, Resting, Served, Stop, VirtioDevice};

use crate::monitor::Reports;

/// Stack of a control thread. More than it uses, as its calls are shallow and its buffers on the
/// heap: the C library keeps stacks of ended threads, up to 40 MiB of them, with their first pages.
const STACK_BYTES: usize = 2 * 1024 * 1024;

/// Where the system has no thread for a bridge: how long until it is asked again.
const NO_THREAD_PAUSE: Duration = Duration::from_millis(10);

/// A bridge ready to run.
pub struct Bridge {
    /// For messages.
    pub name: String,
    /// Where the driver is.
    pub driver: Box<dyn DriverEnd>,
    /// Where the device is, with whatever is wrapped around it.
    pub device: Box<dyn VirtioDevice>,
}

struct Running {
    /// Counts the bridges.
    id: u64,
    name: String,
    /// How long it may take to finish what is in flight after a signal.
    time_to_end: Duration,
    thread: Option<JoinHandle<()>>,
    /// While no thread serves it.
    rest: Option<Box<dyn Resting>>,
}

/// Keys of what wakes the supervisor; a resting bridge has its number behind the last.
mod key {
    pub const STOP: u64 = 0;
    pub const ENDED: u64 = 1;
    pub const REPORT: u64 = 2;
    pub const RESIZE: u64 = 3;
    pub const RESTING: u64 = 16;
}

/// What a bridge's thread says when it ends.
type Turn = (u64, Result<Served, EndError>);

/// What each thread needs to say so.
struct Line {
    wake: Arc<EventFd>,
    turns: Sender<Turn>,
}

/// Runs the bridges. `reports` are printed when they are due and when SIGUSR1 asks for them;
/// SIGUSR2 has disks look at their size.
///
/// # Errors
/// A bridge could not be started, or the first one that failed.
pub fn run(bridges: Vec<Bridge>, reports: Option<Reports>) -> Result<()> {
    run_with(bridges, reports, tell_ready)
}

/// Tells the service manager that what it started is there. Outside systemd there is nobody to
/// tell.
pub fn tell_ready() {
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
}

/// The same, but calls `started` once all run, in place of telling the service manager.
///
/// # Errors
/// As for [`run`].
pub fn run_with(
    bridges: Vec<Bridge>,
    reports: Option<Reports>,
    started: impl FnOnce(),
) -> Result<()> {
    let stop = StopSignal::install().context("can't take over SIGTERM")?;
    let signals = Signals { stop, wishes: Wishes::install()? };
    let (turns, heard) = channel();
    let line = Line { wake: Arc::new(EventFd::new()?), turns };
    // One for all: each would take a descriptor of its own.
    let end = Stop::new().context("can't make an eventfd")?;
    let mut all = All { running: Vec::new(), epoll: Epoll::new()?, line, heard, first_error: None };
    for (id, bridge) in (0..).zip(bridges) {
        all.start(id, bridge, &end)?;
    }
    started();
    let mut reports = reports.unwrap_or_default();
    let result = all.wait(&signals, &mut reports);
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    end.ask();
    all.drain();
    reports.conclude();
    result
}

/// The bridges, and how to hear of them.
struct All {
    running: Vec<Running>,
    epoll: Epoll,
    line: Line,
    heard: Receiver<Turn>,
    first_error: Option<anyhow::Error>,
}

/// What a person may send.
struct Signals {
    stop: StopSignal,
    wishes: Wishes,
}

/// Signals that end nothing: for counters, and for disks to look at their size.
pub struct Wishes {
    report: WishSignal,
    resize: WishSignal,
}

impl Wishes {
    /// Takes the signals over. To be called before anything is printed that shows that the program
    /// is there, since each of them would end it.
    ///
    /// # Errors
    /// The system is out of file descriptors.
    pub fn install() -> Result<Self> {
        let report = WishSignal::install(Wish::User1).context("can't take over SIGUSR1")?;
        let resize = WishSignal::install(Wish::User2).context("can't take over SIGUSR2")?;
        Ok(Self { report, resize })
    }
}

impl All {
    fn start(&mut self, id: u64, bridge: Bridge, end: &Stop) -> Result<()> {
        let Bridge { name, driver, device } = bridge;
        let (time_to_end, end) = (driver.time_to_end(), end.clone());
        let thread = self.line.serve(id, &name, move || driver.serve_while_busy(device, end));
        let thread = thread.with_context(|| format!("can't start a thread for {name}"))?;
        self.running.push(Running { id, name, time_to_end, thread: Some(thread), rest: None });
        Ok(())
    }

    /// Waits until a signal comes or every bridge has ended.
    fn wait(&mut self, signals: &Signals, reports: &mut Reports) -> Result<()> {
        let add = |fd: BorrowedFd<'_>, key| self.epoll.add(fd, key, Interest::Read);
        add(signals.stop.as_fd(), key::STOP)?;
        add(self.line.wake.as_fd(), key::ENDED)?;
        add(signals.wishes.report.as_fd(), key::REPORT)?;
        add(signals.wishes.resize.as_fd(), key::RESIZE)?;
        let mut ready = Vec::new();
        let mut next = reports.every.map(|period| Instant::now() + period);
        while !self.running.is_empty() && !signals.stop.is_set() {
            let limit = next.map(|next| next.saturating_duration_since(Instant::now()));
            self.epoll.wait(&mut ready, limit)?;
            for event in ready.iter().filter(|event| event.key >= key::RESTING) {
                self.go_on(event.key - key::RESTING);
            }
            self.line.wake.drain();
            while let Ok(turn) = self.heard.try_recv() {
                self.hear(turn);
            }
            if signals.wishes.report.take() {
                reports.print();
            }
            if signals.wishes.resize.take() {
                devices::look_at_sizes();
            }
            if let (Some(period), Some(due)) = (reports.every, next)
                && Instant::now() >= due
            {
                reports.print();
                next = Some(due + period);
            }
        }
        self.first_error.take().map_or(Ok(()), Err)
    }

    /// A bridge's thread has ended.
    fn hear(&mut self, (id, result): Turn) {
        let Some(at) = self.running.iter().position(|bridge| bridge.id == id) else { return };
        let bridge = &mut self.running[at];
        match result {
            Ok(Served::Resting(rest)) => {
                bridge.thread = None;
                let watched = self.epoll.add(rest.event(), key::RESTING + id, Interest::Read);
                bridge.rest = Some(rest);
                if watched.is_err() {
                    // The system has no memory for it: then it has to have a thread.
                    self.go_on(id);
                }
                return;
            }
            Ok(Served::Ended) => {}
            Err(error) => {
                let name = &bridge.name;
                tracing::error!(bridge = name, "{error}");
                self.first_error.get_or_insert_with(|| anyhow!("{name}: {error}"));
            }
        }
        self.running.swap_remove(at);
    }

    /// Has a resting bridge served again.
    fn go_on(&mut self, id: u64) {
        let Some(bridge) = self.running.iter_mut().find(|bridge| bridge.id == id) else { return };
        let Some(rest) = bridge.rest.take() else { return };
        self.epoll.remove(rest.event());
        // Kept here until a thread is there to take it.
        let rest = Arc::new(Mutex::new(Some(rest)));
        let taken = Arc::clone(&rest);
        let take = |rest: &Mutex<Option<Box<dyn Resting>>>| {
            rest.lock().unwrap_or_else(PoisonError::into_inner).take()
        };
        let started = self.line.serve(id, &bridge.name, move || match take(&taken) {
            Some(rest) => rest.go_on(),
            None => Ok(Served::Ended),
        });
        match started {
            Ok(thread) => bridge.thread = Some(thread),
            Err(error) => {
                tracing::error!(bridge = bridge.name, "no thread to go on with: {error}");
                // Asked again soon: what is to be done is still there.
                std::thread::sleep(NO_THREAD_PAUSE);
                if let Some(rest) = take(&rest) {
                    let _ = self.epoll.add(rest.event(), key::RESTING + id, Interest::Read);
                    bridge.rest = Some(rest);
                }
            }
        }
    }

    /// Waits for the remaining bridges, which were asked to end, but not for ever.
    fn drain(mut self) {
        let longest = self.running.iter().map(|bridge| bridge.time_to_end).max();
        let deadline = Instant::now() + longest.unwrap_or_default();
        while !self.running.is_empty() {
            let resting = self.running.iter().filter(|bridge| bridge.rest.is_some());
            let resting: Vec<u64> = resting.map(|bridge| bridge.id).collect();
            resting.into_iter().for_each(|id| self.go_on(id));
            let limit = deadline.saturating_duration_since(Instant::now());
            match self.heard.recv_timeout(limit) {
                Ok((id, Ok(Served::Ended))) => self.join(id),
                Ok((id, Err(error))) => {
                    let named = self.running.iter().find(|bridge| bridge.id == id);
                    let name = named.map_or("a bridge", |bridge| bridge.name.as_str());
                    tracing::warn!(bridge = name, "while ending: {error}");
                    self.join(id);
                }
                // It goes on at once, to end.
                Ok(turn) => self.hear(turn),
                Err(_) => {
                    let left = self.running.len();
                    tracing::warn!("{left} bridges did not end in time and are cut off");
                    return;
                }
            }
        }
    }

    /// Waits for the thread of a bridge that has reported its end, which is not long.
    fn join(&mut self, id: u64) {
        let Some(at) = self.running.iter().position(|bridge| bridge.id == id) else { return };
        if let Some(thread) = self.running.swap_remove(at).thread {
            let _ = thread.join();
        }
    }
}

impl Line {
    /// Serves a bridge in a thread.
    fn serve(
        &self,
        id: u64,
        name: &str,
        work: impl FnOnce() -> Result<Served, EndError> + Send + 'static,
    ) -> std::io::Result<JoinHandle<()>> {
        let (wake, turns) = (Arc::clone(&self.wake), self.turns.clone());
        let builder = std::thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES);
        builder.spawn(move || {
            let result = work();
            sys::give_back_stack();
            // The supervisor is there until all bridges have ended.
            let _ = turns.send((id, result));
            wake.signal();
        })
    }
}
