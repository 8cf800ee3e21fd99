//! Runs bridges, each in a thread of its own, until all have ended or a signal asks for the end.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use sys::{Epoll, EventFd, Interest, StopSignal, Wish, WishSignal};
use virtio::{DriverEnd, EndError, Stop, VirtioDevice};

use crate::monitor::Reports;

/// Stack of a control thread: its calls are shallow and its buffers on the heap.
const STACK_BYTES: usize = 512 * 1024;

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
    name: String,
    /// How long it may take to finish what is in flight after a signal.
    time_to_end: Duration,
    thread: JoinHandle<()>,
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
    let wake = Arc::new(EventFd::new()?);
    let (ended, ends) = channel();
    let mut running = Vec::new();
    // One for all: each would take a descriptor of its own.
    let end = Stop::new().context("can't make an eventfd")?;
    for bridge in bridges {
        running.push(start(bridge, &end, &wake, &ended)?);
    }
    started();
    let mut reports = reports.unwrap_or_default();
    let result = wait(&mut running, &signals, &wake, &ends, &mut reports);
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    end.ask();
    drain(running, &wake, &ends);
    reports.conclude();
    result
}

type Ended = (String, Result<(), EndError>);

fn start(
    bridge: Bridge,
    end: &Stop,
    wake: &Arc<EventFd>,
    ended: &Sender<Ended>,
) -> Result<Running> {
    let Bridge { name, driver, device } = bridge;
    let time_to_end = driver.time_to_end();
    let (wake, ended, thread_name, thread_stop) =
        (Arc::clone(wake), ended.clone(), name.clone(), end.clone());
    let thread = std::thread::Builder::new()
        .name(name.clone())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            let result = driver.serve(device, thread_stop);
            // The supervisor is there until all bridges have ended.
            let _ = ended.send((thread_name, result));
            wake.signal();
        })
        .with_context(|| format!("can't start a thread for {name}"))?;
    Ok(Running { name, time_to_end, thread })
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

/// Waits until a signal comes or every bridge has ended.
fn wait(
    running: &mut Vec<Running>,
    signals: &Signals,
    wake: &EventFd,
    ends: &Receiver<Ended>,
    reports: &mut Reports,
) -> Result<()> {
    let epoll = Epoll::new()?;
    epoll.add(signals.stop.as_fd(), 0, Interest::Read)?;
    epoll.add(wake.as_fd(), 1, Interest::Read)?;
    epoll.add(signals.wishes.report.as_fd(), 2, Interest::Read)?;
    epoll.add(signals.wishes.resize.as_fd(), 3, Interest::Read)?;
    let mut ready = Vec::new();
    let mut first_error = None;
    let mut next = reports.every.map(|period| Instant::now() + period);
    while !running.is_empty() && !signals.stop.is_set() {
        let limit = next.map(|next| next.saturating_duration_since(Instant::now()));
        epoll.wait(&mut ready, limit)?;
        wake.drain();
        while let Ok((name, result)) = ends.try_recv() {
            running.retain(|bridge| bridge.name != name);
            if let Err(error) = result {
                tracing::error!(bridge = name, "{error}");
                first_error.get_or_insert_with(|| anyhow!("{name}: {error}"));
            }
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
    first_error.map_or(Ok(()), Err)
}

/// Waits for the remaining bridges, which were asked to end, but not for ever.
fn drain(running: Vec<Running>, wake: &EventFd, ends: &Receiver<Ended>) {
    let longest = running.iter().map(|bridge| bridge.time_to_end).max().unwrap_or_default();
    let deadline = Instant::now() + longest;
    let mut left = running.len();
    while left > 0 {
        let limit = deadline.saturating_duration_since(Instant::now());
        match ends.recv_timeout(limit) {
            Ok((name, Err(error))) => tracing::warn!(bridge = name, "while ending: {error}"),
            Ok(_) => {}
            Err(_) => {
                tracing::warn!("{left} bridges did not end in time and are cut off");
                return;
            }
        }
        left -= 1;
    }
    wake.drain();
    for bridge in running {
        // It has reported its end, so this does not wait.
        let _ = bridge.thread.join();
    }
}
