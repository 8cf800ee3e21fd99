use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use sys::{Epoll, EventFd, Interest, Ready};

use crate::handle::Command;
use crate::idle::earlier;
use crate::{PollCycles, PoolOptions, Progress, SpinWindow, Task};

/// Requests a task may do before the next one gets its turn: long enough to batch, short enough (a
/// few microseconds) to be fair.
const BUDGET: u32 = 64;

/// Rounds over the active tasks between two looks at the descriptors of the sleeping ones, and at
/// the mailbox. A look is a system call of about 140 ns; a round of one task takes 30 ns if it
/// finds nothing, and about a microsecond with a full budget.
const ROUNDS_PER_LOOK: u32 = 32;

/// The epoll key of the mailbox.
const MAILBOX: u64 = u64::MAX;

enum State {
    /// Polled every round.
    Busy,
    /// Had nothing to do since this moment; polled until its window is over.
    Spinning(Instant),
    /// Armed, waiting in epoll since this moment.
    Asleep(Instant),
    /// Not polled any more.
    Finished,
}

struct Entry {
    task: Box<dyn Task>,
    state: State,
    /// How long to poll for the driver's next request, and for the end of what is pending.
    windows: [SpinWindow; 2],
    /// Which of the windows the task spins or sleeps by.
    by: usize,
    /// What is in the epoll set for it, kept open until it is taken out.
    watched: Vec<Watched>,
}

enum Watched {
    /// The task's own.
    Bell(Arc<EventFd>),
    /// A duplicate.
    Other(OwnedFd),
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Bell(event) => event.as_fd(),
            Self::Other(fd) => fd.as_fd(),
        }
    }
}

/// One thread's tasks and how it waits for them.
pub(crate) struct Worker {
    commands: Receiver<Command>,
    wake: Arc<EventFd>,
    epoll: Epoll,
    max_spin: Duration,
    cycles: Option<Arc<PollCycles>>,
    tasks: HashMap<u64, Entry>,
    /// Ids of the tasks that are busy or spinning.
    active: Vec<u64>,
    /// Ids of the sleeping tasks that have a deadline.
    timed: Vec<u64>,
    quit: bool,
}

impl Worker {
    pub(crate) fn new(
        commands: Receiver<Command>,
        wake: Arc<EventFd>,
        options: &PoolOptions,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.add(wake.as_fd(), MAILBOX, Interest::Read)?;
        Ok(Self {
            commands,
            wake,
            epoll,
            max_spin: options.max_spin,
            cycles: options.cycles.clone(),
            tasks: HashMap::new(),
            active: Vec::new(),
            timed: Vec::new(),
            quit: false,
        })
    }

    pub(crate) fn run(&mut self) {
        let mut ready = Vec::with_capacity(64);
        let mut rounds = 0;
        while !self.quit {
            self.poll_active();
            rounds += 1;
            if self.active.is_empty() || rounds >= ROUNDS_PER_LOOK {
                rounds = 0;
                self.look(&mut ready);
            }
        }
    }

    /// Polls each active task once.
    fn poll_active(&mut self) {
        let mut index = 0;
        while index < self.active.len() {
            let id = self.active[index];
            let Some(entry) = self.tasks.get_mut(&id) else {
                self.active.swap_remove(index);
                continue;
            };
            let progress = match &self.cycles {
                None => entry.task.poll(BUDGET),
                Some(cycles) => {
                    let before = sys::cycles();
                    let progress = entry.task.poll(BUDGET);
                    cycles.add(progress == Progress::Worked, sys::cycles() - before);
                    progress
                }
            };
            match progress {
                Progress::Worked => {
                    if let State::Spinning(_) = entry.state {
                        entry.windows[entry.by].found();
                    }
                    entry.state = State::Busy;
                }
                Progress::Idle => entry.rest(),
                Progress::Finished => entry.state = State::Finished,
            }
            if matches!(entry.state, State::Busy | State::Spinning(_)) {
                index += 1;
            } else {
                if entry.task.deadline().is_some() && !self.timed.contains(&id) {
                    self.timed.push(id);
                }
                self.active.swap_remove(index);
            }
        }
    }

    /// Looks at the mailbox and the sleeping tasks' descriptors; waits if nothing is active.
    fn look(&mut self, ready: &mut Vec<Ready>) {
        let limit =
            if self.active.is_empty() { self.time_to_deadline() } else { Some(Duration::ZERO) };
        if let Err(error) = self.epoll.wait(ready, limit) {
            tracing::error!(%error, "a worker can't wait for its tasks");
            self.quit = true;
        }
        let mut mail = false;
        for event in ready.drain(..) {
            if event.key == MAILBOX {
                mail = true;
            } else {
                self.awaken(event.key);
            }
        }
        if mail {
            self.wake.drain();
            while let Ok(command) = self.commands.try_recv() {
                self.obey(command);
            }
        }
        self.awaken_due();
    }

    fn time_to_deadline(&self) -> Option<Duration> {
        let next = self.timed.iter().fold(None, |next, id| {
            earlier(next, self.tasks.get(id).and_then(|entry| entry.task.deadline()))
        });
        next.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Wakes the tasks whose deadline has passed.
    fn awaken_due(&mut self) {
        if self.timed.is_empty() {
            return;
        }
        let now = Instant::now();
        let mut index = 0;
        while index < self.timed.len() {
            let id = self.timed[index];
            let entry = self.tasks.get(&id);
            match entry.filter(|entry| matches!(entry.state, State::Asleep(_))) {
                Some(entry) if entry.task.deadline().is_some_and(|at| at <= now) => {
                    self.awaken(id);
                    self.timed.swap_remove(index);
                }
                Some(_) => index += 1,
                None => {
                    self.timed.swap_remove(index);
                }
            }
        }
    }

    fn awaken(&mut self, id: u64) {
        if let Some(entry) = self.tasks.get_mut(&id)
            && let State::Asleep(since) = entry.state
        {
            if !self.max_spin.is_zero() {
                entry.windows[entry.by].woken_after(since.elapsed());
            }
            entry.task.disarm();
            entry.state = State::Busy;
            self.active.push(id);
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Start(id, task) => {
                let windows = [SpinWindow::new(self.max_spin); 2];
                let entry = Entry { task, state: State::Busy, windows, by: 0, watched: Vec::new() };
                self.tasks.insert(id, entry);
                self.watch(id);
                self.active.push(id);
            }
            Command::Call(id, work) => {
                if let Some(entry) = self.tasks.get_mut(&id) {
                    work(entry.task.as_mut());
                    self.watch(id);
                    self.awaken(id);
                }
            }
            Command::Wake(id) => self.awaken(id),
            Command::Stop(id, reply) => {
                if let Some(entry) = self.tasks.remove(&id) {
                    for fd in &entry.watched {
                        self.epoll.remove(fd);
                    }
                    self.active.retain(|&active| active != id);
                    let _ = reply.send(entry.task);
                }
            }
            Command::Quit => self.quit = true,
        }
    }

    /// Puts the task's descriptors into the epoll set, in place of the earlier ones.
    fn watch(&mut self, id: u64) {
        let Some(entry) = self.tasks.get_mut(&id) else { return };
        for fd in entry.watched.drain(..) {
            self.epoll.remove(fd);
        }
        let duplicate = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map(Watched::Other);
        for bell in entry.task.bells() {
            // Some tasks share a bell, and a set has a descriptor once.
            let watched = match self.epoll.add(bell.as_fd(), id, Interest::ReadEdge) {
                Ok(()) => {
                    entry.watched.push(Watched::Bell(bell));
                    continue;
                }
                Err(_) => duplicate(bell.as_fd()),
            };
            entry.watch(&self.epoll, id, watched);
        }
        let others: Vec<_> = entry.task.wake_on().into_iter().map(duplicate).collect();
        for watched in others {
            entry.watch(&self.epoll, id, watched);
        }
    }
}

impl Entry {
    fn watch(&mut self, epoll: &Epoll, id: u64, watched: io::Result<Watched>) {
        let added = watched.and_then(|watched| {
            epoll.add(&watched, id, Interest::ReadEdge)?;
            Ok(watched)
        });
        match added {
            Ok(watched) => self.watched.push(watched),
            Err(error) => tracing::error!(%error, "a queue's doorbell can't be waited for"),
        }
    }

    /// Nothing to do: spins on, or arms the notifications and goes to sleep.
    fn rest(&mut self) {
        if !matches!(self.state, State::Spinning(_)) {
            self.by = usize::from(self.task.is_pending());
        }
        let window = &mut self.windows[self.by];
        if !window.length().is_zero() {
            match self.state {
                State::Spinning(since) if since.elapsed() < window.length() => return,
                State::Spinning(_) => window.passed_empty(),
                _ => {
                    self.state = State::Spinning(Instant::now());
                    return;
                }
            }
        }
        if self.task.arm() {
            self.task.disarm();
            self.state = State::Busy;
        } else {
            self.state = State::Asleep(Instant::now());
        }
    }
}
