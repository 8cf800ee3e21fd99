use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mem::Mapping;
use sys::{Connection, Epoll, EventFd, Interest, Listener, Ready};

use worker::{Quiet, SpinWindow};

use super::limits::{DRAIN_LIMIT, LOOKS_PER_SWEEP};
use super::session::{Session, Turn};
use crate::LayoutError;
use crate::layout::MAX_MAPPED_BYTES;
use crate::{CompletionQueue, Function, FunctionLayout, HostPort, InterruptKind, Interrupts};

/// Where clients come from.
#[derive(Debug)]
pub enum Source {
    /// A listening socket: one client after the other.
    Listener(Listener),
    /// One connected client; when it has gone the service ends.
    Connection(Connection),
}

/// Why a service can't go on.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The function can't be.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The system failed us.
    #[error("{attempt}: {source}")]
    System {
        /// What was attempted.
        attempt: &'static str,
        /// What went wrong.
        source: io::Error,
    },
}

fn system(attempt: &'static str) -> impl FnOnce(io::Error) -> ServiceError {
    move |source| ServiceError::System { attempt, source }
}

/// Keys of what the control thread waits for.
mod key {
    pub const STOP: u64 = 0;
    pub const LISTENER: u64 = 1;
    pub const CLIENT: u64 = 2;
    pub const COMPLETIONS: u64 = 3;
    pub const FUNCTION: u64 = 4;
    pub const OUTBOX: u64 = 5;
    pub const UNMASK: u64 = 6;
}

/// What lives as long as the service; sessions come and go.
pub(super) struct Plug {
    pub function: Box<dyn Function>,
    pub host: HostPort,
    pub completions: Arc<CompletionQueue>,
}

/// A function behind a socket. See the [module](super).
pub struct Service {
    plug: Plug,
    source: Source,
    epoll: Epoll,
    session: Option<Session>,
    /// What the client's socket is watched for.
    interest: Interest,
    /// By which the client unmasks INTx, if it does so by an event.
    unmask: Option<Arc<EventFd>>,
    quiet: Quiet,
    /// How long to poll before sleeping.
    spin: SpinWindow,
    /// Whether the window may open at all.
    may_spin: bool,
    /// Counts the looks while polling.
    looks: u32,
}

impl Service {
    /// Puts `function` behind `source`.
    ///
    /// # Errors
    /// The function's layout is impossible, or the system is out of file descriptors.
    pub fn new(mut function: Box<dyn Function>, source: Source) -> Result<Self, ServiceError> {
        function.layout().check()?;
        let host = HostPort::new(Interrupts::new(function.layout().interrupts));
        let host = host.with_bars(bar_memory(function.layout())?);
        function.connect(host.clone());
        let completions = CompletionQueue::new().map_err(system("make an eventfd"))?;
        let epoll = Epoll::new().map_err(system("make an epoll set"))?;
        let add = |fd: BorrowedFd<'_>, key| epoll.add(fd, key, Interest::Read);
        add(completions.as_fd(), key::COMPLETIONS).map_err(system("wait for answers"))?;
        if let Some(fd) = function.event_fd() {
            add(fd, key::FUNCTION).map_err(system("wait for the function"))?;
        }
        let plug = Plug { function, host, completions };
        Ok(Self {
            plug,
            source,
            epoll,
            session: None,
            interest: Interest::Read,
            unmask: None,
            quiet: Quiet::default(),
            spin: SpinWindow::new(Duration::ZERO),
            may_spin: false,
            looks: 0,
        })
    }

    /// Lets the service poll for up to `longest` before it sleeps, while that saves wake-ups: each
    /// costs the driver, whose processor waits for the answer, more than the access itself.
    #[must_use]
    pub fn spinning(mut self, longest: Duration) -> Self {
        self.spin = SpinWindow::new(longest);
        self.may_spin = !longest.is_zero();
        self
    }

    /// Serves until `stop` is readable, or the only connection ends. Then answers what has been
    /// asked already, so that no client is left waiting, and closes.
    ///
    /// # Errors
    /// The system failed; nothing a client does is an error.
    pub fn run(&mut self, stop: impl AsFd) -> Result<(), ServiceError> {
        let added = self.epoll.add(stop.as_fd(), key::STOP, Interest::Read);
        added.map_err(system("wait for the stop signal"))?;
        let result = self.serve();
        self.epoll.remove(stop.as_fd());
        self.drain();
        self.end_session();
        result
    }

    fn serve(&mut self) -> Result<(), ServiceError> {
        match std::mem::replace(&mut self.source, Source::Connection(dead()?)) {
            Source::Connection(client) => {
                self.begin_session(client)?;
                self.events_until_session_ends().map(|_stopped| ())
            }
            Source::Listener(listener) => {
                let result = self.accept_clients(&listener);
                self.epoll.remove(&listener);
                self.source = Source::Listener(listener);
                result
            }
        }
    }

    fn accept_clients(&mut self, listener: &Listener) -> Result<(), ServiceError> {
        self.epoll
            .add(listener, key::LISTENER, Interest::Read)
            .map_err(system("wait for clients"))?;
        let mut ready = Vec::new();
        loop {
            let woken = self.quiet.wait(&self.epoll, &mut ready, None);
            woken.map_err(system("wait for events"))?;
            for event in &ready {
                match event.key {
                    key::STOP => return Ok(()),
                    key::LISTENER => {}
                    _ => self.background(event),
                }
            }
            let Some(client) = listener.accept().map_err(system("accept a client"))? else {
                continue;
            };
            // A second client waits in the backlog until this one has gone.
            self.epoll.remove(listener);
            self.begin_session(client)?;
            if self.events_until_session_ends()? {
                return Ok(());
            }
            self.epoll
                .add(listener, key::LISTENER, Interest::Read)
                .map_err(system("wait for clients"))?;
        }
    }

    /// Events that have nothing to do with a client.
    fn background(&mut self, event: &Ready) {
        match event.key {
            key::FUNCTION => self.plug.function.events_ready(),
            key::COMPLETIONS => {
                self.plug.completions.acknowledge();
                self.plug.completions.collect(|_, _| {});
            }
            _ => {}
        }
    }

    fn begin_session(&mut self, client: Connection) -> Result<(), ServiceError> {
        let session = Session::new(client).map_err(system("make an eventfd"))?;
        let add = |fd, key| self.epoll.add(fd, key, Interest::Read);
        add(session.socket(), key::CLIENT).map_err(system("wait for the client"))?;
        add(session.outbox().wake_fd(), key::OUTBOX).map_err(system("wait for the client"))?;
        self.interest = Interest::Read;
        self.session = Some(session);
        self.plug.function.host_present(true);
        tracing::info!("a client has connected");
        Ok(())
    }

    /// Returns whether it was the stop signal rather than the session that ended.
    fn events_until_session_ends(&mut self) -> Result<bool, ServiceError> {
        let mut ready = Vec::new();
        loop {
            let Some(session) = &mut self.session else { return Ok(false) };
            let limit = session.next_deadline().map(|at| at.duration_since(Instant::now()));
            self.wait(&mut ready, limit).map_err(system("wait for events"))?;
            for event in &ready {
                if event.key == key::STOP {
                    return Ok(true);
                }
                self.handle(event);
            }
            self.settle();
        }
    }

    /// Waits for events, at first by polling if that was good for something lately. What the client
    /// says meanwhile is done already; there may be no event then.
    fn wait(&mut self, ready: &mut Vec<Ready>, limit: Option<Duration>) -> io::Result<()> {
        if !self.may_spin {
            return self.quiet.wait(&self.epoll, ready, limit);
        }
        let start = Instant::now();
        let window = limit.map_or(self.spin.length(), |limit| limit.min(self.spin.length()));
        if !window.is_zero() {
            ready.clear();
            // The clock is looked at with a sweep: to do so each time would be a part of what a
            // look costs, by which answers are late.
            while start.elapsed() < window {
                self.looks = self.looks.wrapping_add(1);
                while !self.looks.is_multiple_of(LOOKS_PER_SWEEP) {
                    if self.hears() {
                        self.spin.found();
                        return Ok(());
                    }
                    self.looks = self.looks.wrapping_add(1);
                }
                self.epoll.wait(ready, Some(Duration::ZERO))?;
                if !ready.is_empty() {
                    self.spin.found();
                    return Ok(());
                }
            }
            self.spin.passed_empty();
        }
        self.quiet.wait(&self.epoll, ready, limit)?;
        if !ready.is_empty() {
            self.spin.woken_after(start.elapsed());
        }
        Ok(())
    }

    /// Does what the client has said; whether it has said anything.
    fn hears(&mut self) -> bool {
        let Some(session) = &mut self.session else { return true };
        let turn = session.receive(&mut self.plug);
        if turn == Turn::Over {
            self.end_session();
        }
        turn != Turn::Silent
    }

    fn handle(&mut self, event: &Ready) {
        let Some(session) = &mut self.session else { return };
        match event.key {
            key::CLIENT if event.readable => {
                self.hears();
            }
            key::OUTBOX => session.outbox().acknowledge(),
            key::UNMASK => {
                if self.unmask.as_ref().is_some_and(|event| event.drain()) {
                    let _ = self.plug.host.interrupts.mask(InterruptKind::Intx, 0, false);
                }
            }
            _ => self.background_in_session(event),
        }
    }

    fn background_in_session(&mut self, event: &Ready) {
        match (event.key, &mut self.session) {
            (key::COMPLETIONS, Some(session)) => {
                self.plug.completions.acknowledge();
                session.collect(&self.plug);
            }
            (key::FUNCTION, Some(session)) => {
                // Answers that it gives now are sent with this turn.
                self.plug.completions.watch();
                self.plug.function.events_ready();
                session.collect(&self.plug);
            }
            _ => self.background(event),
        }
    }

    /// After a batch of events: everything that is due goes out, and the socket is watched for what
    /// is needed.
    fn settle(&mut self) {
        let Some(session) = &mut self.session else { return };
        session.tick(&mut self.plug);
        let all_sent = session.outbox().flush();
        if session.outbox().is_closed() {
            return self.end_session();
        }
        let interest = match all_sent {
            true => Interest::Read,
            // A client that does not take its answers is not listened to.
            false if session.is_deaf() => Interest::Write,
            false => Interest::ReadWrite,
        };
        if self.interest != interest {
            self.interest = interest;
            let _ = self.epoll.modify(session.socket(), key::CLIENT, interest);
        }
        self.watch_unmask();
    }

    /// Watches the event by which the client unmasks INTx now.
    fn watch_unmask(&mut self) {
        let wanted = self.plug.host.interrupts.unmask_event();
        if wanted.as_ref().map(Arc::as_ptr) == self.unmask.as_ref().map(Arc::as_ptr) {
            return;
        }
        if let Some(old) = &self.unmask {
            self.epoll.remove(old.as_fd());
        }
        if let Some(new) = &wanted {
            let _ = self.epoll.add(new.as_fd(), key::UNMASK, Interest::Read);
        }
        self.unmask = wanted;
    }

    fn end_session(&mut self) {
        let Some(session) = self.session.take() else { return };
        self.epoll.remove(session.socket());
        self.epoll.remove(session.outbox().wake_fd());
        session.end(&mut self.plug);
        self.watch_unmask();
        tracing::info!("the client has gone");
    }

    /// QEMU 11.1 aborts its machine when a connection ends while it waits for an answer. So first
    /// it is kept from asking more, then all that it has asked is answered.
    fn drain(&mut self) {
        let Some(session) = &mut self.session else { return };
        session.refuse_more();
        let deadline = Instant::now() + DRAIN_LIMIT;
        let mut ready = Vec::new();
        while let Some(session) = &mut self.session {
            let over = session.receive(&mut self.plug) == Turn::Over;
            session.tick(&mut self.plug);
            let is_done = session.outbox().flush() && !session.has_waiting_reads();
            let left = deadline.saturating_duration_since(Instant::now());
            if (over && is_done) || session.outbox().is_closed() || left.is_zero() {
                return;
            }
            // Short: the end of the stream keeps the socket readable.
            let _ = self.epoll.wait(&mut ready, Some(left.min(Duration::from_millis(1))));
            self.plug.completions.acknowledge();
            session.collect(&self.plug);
        }
    }
}

/// The memory behind a function's BARs.
fn bar_memory(layout: &FunctionLayout) -> Result<[Option<Arc<Mapping>>; 6], ServiceError> {
    let mut bars: [Option<Arc<Mapping>>; 6] = Default::default();
    for (place, bar) in bars.iter_mut().zip(&layout.bars) {
        let Some(mappable) = bar.mappable.as_ref().filter(|_| bar.size <= MAX_MAPPED_BYTES) else {
            continue;
        };
        let file = mappable.file.try_clone().map_err(system("share a bar's memory"))?;
        // A function with a file that can't be mapped here may do with it what it likes.
        *place = Mapping::of_file(file, mappable.offset, bar.size as usize).ok();
    }
    Ok(bars)
}

/// A socket that is at its end already, to stand in while the real source is in use.
fn dead() -> Result<Connection, ServiceError> {
    Ok(Connection::pair().map_err(system("make a socket"))?.0)
}
