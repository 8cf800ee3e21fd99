//! Tasks are woken, polled, called, stopped, and leave their workers idle.
#![allow(clippy::unwrap_used)]

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use sys::EventFd;
use worker::{PoolOptions, Progress, Task, Workers};

/// Counts `pending` down, one per request, and reports each time it reaches zero.
struct Counter {
    bell: Arc<EventFd>,
    pending: Arc<AtomicU32>,
    done: u32,
    reached_zero: Sender<u32>,
    due: Option<Instant>,
}

impl Task for Counter {
    fn wake_on(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.bell.as_fd()]
    }

    fn poll(&mut self, budget: u32) -> Progress {
        if self.due.is_some_and(|due| due <= Instant::now()) {
            self.due = None;
            let _ = self.reached_zero.send(u32::MAX);
        }
        let now = self.pending.load(Ordering::SeqCst).min(budget);
        if now == 0 {
            return Progress::Idle;
        }
        self.done += now;
        if self.pending.fetch_sub(now, Ordering::SeqCst) == now {
            let _ = self.reached_zero.send(self.done);
        }
        Progress::Worked
    }

    fn arm(&mut self) -> bool {
        self.pending.load(Ordering::SeqCst) > 0
    }

    fn disarm(&mut self) {
        self.bell.drain();
    }

    fn deadline(&self) -> Option<Instant> {
        self.due
    }
}

fn counter() -> (Counter, Arc<EventFd>, Arc<AtomicU32>, std::sync::mpsc::Receiver<u32>) {
    let bell = Arc::new(EventFd::new().unwrap());
    let pending = Arc::new(AtomicU32::new(0));
    let (send, receive) = channel();
    let task = Counter {
        bell: Arc::clone(&bell),
        pending: Arc::clone(&pending),
        done: 0,
        reached_zero: send,
        due: None,
    };
    (task, bell, pending, receive)
}

const SOON: Duration = Duration::from_secs(10);

#[test]
fn every_doorbell_is_answered_and_the_task_comes_back() {
    for max_spin in [Duration::ZERO, worker::MAX_SPIN] {
        let workers = Workers::start(&PoolOptions { threads: 2, max_spin, cycles: None }).unwrap();
        let (task, bell, pending, zero) = counter();
        let handle = workers.spawn(task);
        for round in 1..=500 {
            pending.fetch_add(100, Ordering::SeqCst);
            bell.signal();
            assert_eq!(zero.recv_timeout(SOON).unwrap(), round * 100);
        }
        assert_eq!(handle.call(|task| task.done), Some(50_000));
        assert_eq!(handle.stop().unwrap().done, 50_000);
    }
}

#[test]
fn a_deadline_wakes_a_sleeping_task() {
    let workers = Workers::start(&PoolOptions::with_threads(1)).unwrap();
    let (task, _bell, _pending, zero) = counter();
    let handle = workers.spawn(task);
    let start = Instant::now();
    handle.call(move |task| task.due = Some(start + Duration::from_millis(20))).unwrap();
    assert_eq!(zero.recv_timeout(SOON).unwrap(), u32::MAX);
    assert!(start.elapsed() >= Duration::from_millis(20));
}

#[test]
fn a_task_is_woken_without_its_doorbell() {
    let workers = Workers::start(&PoolOptions::with_threads(1)).unwrap();
    let (task, _bell, pending, zero) = counter();
    let handle = workers.spawn(task);
    for round in 1..=500 {
        pending.fetch_add(1, Ordering::SeqCst);
        handle.wake();
        assert_eq!(zero.recv_timeout(SOON).unwrap(), round);
    }
}

#[test]
fn a_new_doorbell_is_watched_after_a_call() {
    let workers = Workers::start(&PoolOptions::with_threads(1)).unwrap();
    let (task, _old, pending, zero) = counter();
    let handle = workers.spawn(task);
    let bell = Arc::new(EventFd::new().unwrap());
    let new = Arc::clone(&bell);
    handle.call(move |task| task.bell = new).unwrap();
    pending.fetch_add(1, Ordering::SeqCst);
    bell.signal();
    assert_eq!(zero.recv_timeout(SOON).unwrap(), 1);
}

#[test]
fn a_thousand_idle_tasks_cost_no_time() {
    let workers = Workers::start(&PoolOptions::with_threads(1)).unwrap();
    let handles: Vec<_> = (0..1000).map(|_| workers.spawn(counter().0)).collect();
    handles.last().unwrap().call(|_| ()).unwrap();
    let ticks = || {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        // After the name in brackets: state, then ppid and so on; utime and stime are the 12th and
        // 13th (proc_pid_stat(5)).
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let cpu_before = ticks();
    std::thread::sleep(Duration::from_millis(500));
    assert!(ticks() - cpu_before <= 10, "idle tasks burn processor time");
}

#[test]
fn tasks_may_share_a_bell() {
    let workers = Workers::start(&PoolOptions::with_threads(1)).unwrap();
    let (first, bell, ..) = counter();
    let tasks = [counter(), counter()].map(|(mut task, _, pending, zero)| {
        task.bell = Arc::clone(&bell);
        (Shared(task), pending, zero)
    });
    let handles = tasks.map(|(task, pending, zero)| (workers.spawn(task), pending, zero));
    for (handle, ..) in &handles {
        handle.call(|_| ()).unwrap();
    }
    for (_, pending, _) in &handles {
        pending.fetch_add(1, Ordering::SeqCst);
    }
    bell.signal();
    for (_, _, zero) in &handles {
        assert_eq!(zero.recv_timeout(SOON).unwrap(), 1);
    }
    drop((handles, first));
}

/// A counter that has its event waited for as it is.
struct Shared(Counter);

impl Task for Shared {
    fn bells(&self) -> Vec<Arc<EventFd>> {
        vec![Arc::clone(&self.0.bell)]
    }

    fn poll(&mut self, budget: u32) -> Progress {
        self.0.poll(budget)
    }

    fn arm(&mut self) -> bool {
        self.0.arm()
    }

    // The event is not drained: whoever comes first would take it from the other.
    fn disarm(&mut self) {}
}

/// A device whose work somebody else does, who needs the processor that we poll on; its driver has
/// more at once.
struct Elsewhere {
    bell: Arc<EventFd>,
    rounds: u32,
    state: Round,
    /// Polls without a result since the work was handed on.
    looks: u32,
    /// Rounds in which there was more than the one look that says that it is time to rest.
    polled: u32,
    over: Sender<u32>,
}

#[derive(PartialEq)]
enum Round {
    /// The driver has something after so many more polls.
    Driver(u32),
    Pending,
    Done,
}

impl Task for Elsewhere {
    fn bells(&self) -> Vec<Arc<EventFd>> {
        vec![Arc::clone(&self.bell)]
    }

    fn poll(&mut self, _budget: u32) -> Progress {
        match self.state {
            Round::Driver(0) => {
                (self.state, self.looks) = (Round::Pending, 0);
                return Progress::Worked;
            }
            Round::Driver(left) => self.state = Round::Driver(left - 1),
            Round::Pending => self.looks += 1,
            Round::Done => {
                self.state = Round::Driver(1);
                self.rounds += 1;
                self.polled += u32::from(self.looks > 1);
                if self.rounds == 500 {
                    self.over.send(self.polled).unwrap();
                    return Progress::Finished;
                }
                return Progress::Worked;
            }
        }
        Progress::Idle
    }

    fn arm(&mut self) -> bool {
        // Only now the other one gets to run.
        if self.state == Round::Pending {
            self.state = Round::Done;
        }
        self.bell.signal();
        false
    }

    fn disarm(&mut self) {}

    fn is_pending(&self) -> bool {
        self.state == Round::Pending
    }
}

#[test]
fn polling_for_the_driver_is_no_reason_to_poll_for_what_is_pending() {
    let options = PoolOptions { threads: 1, max_spin: worker::MAX_SPIN, cycles: None };
    let workers = Workers::start(&options).unwrap();
    let (send, receive) = channel();
    let bell = Arc::new(EventFd::new().unwrap());
    let state = Round::Driver(0);
    let _handle =
        workers.spawn(Elsewhere { bell, rounds: 0, state, looks: 0, polled: 0, over: send });
    let polled = receive.recv_timeout(SOON).unwrap();
    assert!(polled < 100, "polled in {polled} of 500 rounds");
}
