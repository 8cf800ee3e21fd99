//! The function that stands for a model.

mod access;
mod answers;
mod faulty;
pub(crate) mod gate;
mod reads;

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use pcie::config::{ConfigEffect, ConfigSpace};
use pcie::{
    BarAddress, Completion, Dma, Function, FunctionLayout, HostPort, InterruptKind, LayoutError,
    ResetKind,
};
use sys::{Epoll, Interest, Listener, Timer};
use wire::cosim::{AnswerKind, Hello, Record, RequestKind, State, reset};
use worker::SpinWindow;

use crate::fault::{Control, Fault, Faults};
use crate::limits::{BACKLOG_BYTES, DEADLINE};
use crate::link::{Link, Lost};
use crate::memory::Told;
use crate::trace::{Recorder, kind};
use faulty::Late;
use gate::Gate;
use reads::Reads;

/// Called when something has happened to the model.
type Tell = Box<dyn FnMut() + Send>;

/// How a port behaves.
pub struct PortOptions {
    /// How long the model may take for an answer, before the driver gets all ones.
    pub deadline: Duration,
    /// How many bytes of posted writes may wait for the model; when there are more it is given up.
    pub backlog_bytes: usize,
    /// Longest time that the port polls for an answer before it sleeps.
    pub max_spin: Duration,
    /// How long the model may take nothing, before it is given up; never if `None`, for a model
    /// that somebody looks at with a debugger.
    pub patience: Option<Duration>,
    /// Called when a model is given up that may still be there: whoever started it had better end
    /// it.
    pub on_given_up: Option<Tell>,
    /// Called when a model was let in.
    pub on_attached: Option<Tell>,
    /// Faults from the beginning on.
    pub faults: Vec<Fault>,
    /// By which the port is told things while it runs.
    pub control: Option<Control>,
    /// Keeps what happens. Transfers go through the port then.
    pub recorder: Option<Recorder>,
}

impl Default for PortOptions {
    fn default() -> Self {
        let (deadline, backlog_bytes) = (DEADLINE, BACKLOG_BYTES);
        let (patience, on_given_up, on_attached) = (None, None, None);
        let max_spin = worker::MAX_SPIN;
        let (faults, control, recorder) = (Vec::new(), None, None);
        Self {
            deadline,
            backlog_bytes,
            max_spin,
            patience,
            on_given_up,
            on_attached,
            faults,
            control,
            recorder,
        }
    }
}

impl std::fmt::Debug for PortOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PortOptions").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

/// Why there can be no port.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The model's function can't be.
    #[error("the model can't be a function: {0}")]
    Layout(#[from] LayoutError),
    /// The system failed us.
    #[error("{attempt}: {source}")]
    System {
        /// What was attempted.
        attempt: &'static str,
        /// What went wrong.
        source: std::io::Error,
    },
}

fn system(attempt: &'static str) -> impl FnOnce(std::io::Error) -> PortError {
    move |source| PortError::System { attempt, source }
}

/// Keys of what the port waits for.
mod key {
    pub const LISTENER: u64 = 0;
    pub const ARRIVING: u64 = 1;
    pub const SOCKET: u64 = 2;
    pub const WAKE: u64 = 3;
    pub const DMA: u64 = 4;
    pub const TIMER: u64 = 5;
    pub const CONTROL: u64 = 6;
}

/// A function whose other side is a model in another process. See the [crate](crate).
///
/// It holds the configuration space, so that a machine sees the function whatever becomes of the
/// model. While there is no model reads get all ones and writes are lost; a model that comes back
/// begins as after a reset. Nothing here waits longer than the deadline, and no access waits for a
/// transfer to host memory.
#[derive(Debug)]
pub struct Port {
    layout: FunctionLayout,
    config: ConfigSpace,
    hello: Hello,
    options: PortOptions,
    gate: Gate,
    link: Option<Link>,
    host: Option<HostPort>,
    is_present: bool,
    told: Told,
    reads: Reads,
    dma: Option<Dma>,
    /// Transfers that the model has asked for, by our number: its tag, whether it wants to know.
    transfers: HashMap<u64, Transfer>,
    next_transfer: u64,
    /// Interrupts that wait until what was written before them is there.
    held: VecDeque<Record<AnswerKind>>,
    /// The reset whose end the model has not told yet.
    resetting: Option<u64>,
    next_reset: u64,
    /// The newest memory message that the model has obeyed.
    memory_done: u64,
    /// Since when the model does not take what it is told; nothing waits for it until it does.
    silent_since: Option<Instant>,
    window: SpinWindow,
    asleep_since: Option<Instant>,
    epoll: Epoll,
    /// For waits in the middle of a call: the model alone.
    waiter: Epoll,
    timer: Timer,
    timer_at: Option<Instant>,
    data: Vec<u8>,
    faults: Faults,
    /// What faults have put off.
    late: Vec<(Instant, Late)>,
}

#[derive(Clone, Copy, Debug)]
struct Transfer {
    tag: u64,
    wanted: bool,
    /// How many of the bytes that are read are right, if not all.
    right: Option<usize>,
}

impl Port {
    /// Waits at `listener` for a model; a port for it, or `None` if `stop` became readable first.
    ///
    /// # Errors
    /// The system failed, or the model's function can't be.
    pub fn await_model(
        listener: Listener,
        options: PortOptions,
        stop: impl AsFd,
    ) -> Result<Option<Self>, PortError> {
        let mut gate = Gate::new(listener);
        let Some((hello, socket)) = gate.await_first(stop)? else { return Ok(None) };
        let (layout, config) = crate::shape::function(&hello)?;
        let epoll = Epoll::new().map_err(system("make an epoll set"))?;
        let timer = Timer::new().map_err(system("make a timer"))?;
        let add = |fd: BorrowedFd<'_>, key| epoll.add(fd, key, Interest::Read);
        add(gate.listener(), key::LISTENER).map_err(system("wait for models"))?;
        add(timer.as_fd(), key::TIMER).map_err(system("wait for time"))?;
        let mut port = Self {
            layout,
            config,
            hello: hello.clone(),
            window: SpinWindow::new(options.max_spin),
            options,
            gate,
            link: None,
            host: None,
            is_present: false,
            told: Told::default(),
            reads: Reads::default(),
            dma: None,
            transfers: HashMap::new(),
            next_transfer: 0,
            held: VecDeque::new(),
            resetting: None,
            next_reset: 0,
            memory_done: 0,
            silent_since: None,
            asleep_since: None,
            epoll,
            waiter: Epoll::new().map_err(system("make an epoll set"))?,
            timer,
            timer_at: None,
            data: Vec::new(),
            faults: Faults::default(),
            late: Vec::new(),
        };
        if let Some(control) = &port.options.control {
            let added = port.epoll.add(control.event(), key::CONTROL, Interest::Read);
            added.map_err(system("wait for whoever controls the port"))?;
        }
        let now = Instant::now();
        for fault in std::mem::take(&mut port.options.faults) {
            port.faults.add(fault, now);
        }
        port.attach(&hello, socket);
        Ok(Some(port))
    }

    /// What the model calls itself.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.hello.name
    }

    /// Whether there is a model at the moment.
    #[must_use]
    pub fn has_model(&self) -> bool {
        self.link.is_some()
    }

    /// Does `what` with the model if there is one; if that fails there is none any more.
    fn with_link<T>(&mut self, what: impl FnOnce(&mut Link) -> Result<T, Lost>) -> Option<T> {
        let result = what(self.link.as_mut()?);
        result.map_err(|lost| self.lose(&lost)).ok()
    }

    /// The model is gone, or as good as gone.
    fn lose(&mut self, why: &Lost) {
        let Some(link) = self.link.take() else { return };
        tracing::warn!("the model {} is lost: {why}; the driver reads ones", link.name);
        self.note(kind::LOST, 0, why.to_string().as_bytes());
        self.epoll.remove(link.socket.as_fd());
        self.epoll.remove(link.wake_port.as_fd());
        self.waiter.remove(link.socket.as_fd());
        self.waiter.remove(link.wake_port.as_fd());
        link.socket.shutdown();
        if !matches!(why, Lost::Gone)
            && let Some(tell) = &mut self.options.on_given_up
        {
            tell();
        }
        self.silent_since = None;
        self.resetting = None;
        self.forget_work();
    }

    /// Nothing that was begun goes on: no read waits, no transfer is reported, no interrupt is
    /// pending.
    fn forget_work(&mut self) {
        self.reads.answer_all_with_ones();
        self.held.clear();
        self.late.clear();
        if let Some(dma) = &mut self.dma {
            dma.forget();
        }
        for (_, transfer) in std::mem::take(&mut self.transfers) {
            self.transfer_done(transfer, None);
        }
        if let Some(host) = &self.host {
            host.interrupts.set_intx(false);
        }
    }

    /// Records what is in no ring.
    fn note(&self, kind: u8, at: u64, data: &[u8]) {
        if let Some(recorder) = &self.options.recorder {
            recorder.event(kind, at, data);
        }
    }

    fn state(&self) -> State {
        let uses = |kind| self.host.as_ref().is_some_and(|host| host.interrupts.is_used(kind));
        State {
            command: self.config.command(),
            power: self.config.power_state(),
            intx: uses(InterruptKind::Intx),
            msi: uses(InterruptKind::Msi),
            msix: uses(InterruptKind::Msix),
            present: self.is_present,
        }
    }

    fn tell_state(&mut self) {
        let state = self.state();
        self.with_link(|link| link.set_state(state));
    }

    /// Tells the model the whole configuration space.
    fn tell_config(&mut self) {
        let bytes = self.config.bytes();
        self.with_link(|link| link.send(Record::new(RequestKind::Config), &bytes));
    }

    /// Brings the model's view of host memory up to date. Returns when nothing of what was taken
    /// away is touched any more.
    fn tell_memory(&mut self) {
        let (Some(host), Some(link)) = (&self.host, &self.link) else { return };
        let is_watched = self.faults.concern_dma() || self.options.recorder.is_some();
        let direct = link.direct && !is_watched;
        let changes = self.told.changes(&host.memory.current(), direct);
        let mut wait_for = None;
        for (change, fds) in changes {
            let number = change.number;
            if !change.removed.is_empty() && link_is_direct(&self.link) {
                wait_for = Some(number);
            }
            let message = wire::cosim::Message::Memory(change);
            let record = Record::new(RequestKind::Memory).tag(number);
            if let Some(recorder) = &self.options.recorder {
                let mut bytes = Vec::new();
                message.encode(&mut bytes);
                recorder.record(&record, &bytes);
            }
            self.with_link(|link| {
                link.send_message(&message, fds)?;
                link.send(record, &[])
            });
        }
        let Some(number) = wait_for else { return };
        if !self.wait_until(|port| port.memory_done >= number) {
            self.lose(&Lost::KeepsMemory);
        }
    }

    /// Attends to the model until `is_done`, at most for the deadline; whether it is.
    fn wait_until(&mut self, is_done: impl Fn(&Self) -> bool) -> bool {
        let end = Instant::now() + self.options.deadline;
        let mut ready = Vec::new();
        loop {
            self.pump();
            if is_done(self) {
                return true;
            }
            let Some(link) = &mut self.link else { return false };
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            if link.sleep() {
                // A socket that is full is looked at again soon.
                let most = if link.has_outgoing() { Duration::from_millis(1) } else { left };
                let _ = self.waiter.wait(&mut ready, Some(left.min(most)));
                self.attend(&ready);
            }
            self.with_link(Link::flush);
        }
    }
}

fn link_is_direct(link: &Option<Link>) -> bool {
    link.as_ref().is_some_and(|link| link.direct)
}

impl Function for Port {
    fn layout(&self) -> &FunctionLayout {
        &self.layout
    }

    fn config(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn connect(&mut self, host: HostPort) {
        match Dma::new(&host) {
            Ok(dma) => {
                let _ = self.epoll.add(dma.as_fd(), key::DMA, Interest::Read);
                self.dma = Some(dma);
            }
            Err(error) => tracing::error!(%error, "the model can't reach memory by messages"),
        }
        self.host = Some(host);
        self.tell_state();
        self.tell_memory();
        self.settle();
    }

    fn read(&mut self, at: BarAddress, answer: Completion) {
        self.read_bar(at, answer);
        self.settle();
    }

    fn write(&mut self, at: BarAddress, bytes: &[u8]) {
        self.write_bar(at, bytes);
    }

    fn reset(&mut self, kind: ResetKind) {
        // Not while in D3hot: a function there is reset when it comes back.
        if kind == ResetKind::Machine || self.config.power_state() == 0 {
            self.config.reset();
        }
        self.forget_work();
        self.next_reset += 1;
        let tag = self.next_reset;
        let detail = match kind {
            ResetKind::Machine => reset::MACHINE,
            ResetKind::Function => reset::FUNCTION,
        };
        self.resetting = Some(tag);
        let record = Record::new(RequestKind::Reset).tag(tag).detail(detail);
        self.with_link(|link| link.send(record, &[]));
        if self.link.is_some() && !self.wait_until(|port| port.resetting.is_none()) {
            tracing::warn!(
                "the model has not finished its reset within {:?}",
                self.options.deadline
            );
        }
        self.tell_config();
        self.tell_state();
        self.settle();
    }

    fn computes_config(&self) -> bool {
        true
    }

    fn config_write(&mut self, at: u64, bytes: &[u8]) -> ConfigEffect {
        self.note(kind::CONFIG_WRITE, at, bytes);
        let mut bytes = bytes.to_vec();
        if !self.faults.is_quiet() && !self.faulty_config_write(at, &mut bytes) {
            return ConfigEffect::default();
        }
        let effect = self.config.write(at, &bytes);
        if effect.reset {
            self.reset(ResetKind::Function);
        }
        let mut now = vec![0; bytes.len()];
        self.config.read(at, &mut now);
        let record = Record::new(RequestKind::Config).at(at);
        self.with_link(|link| link.send(record, &now));
        self.tell_state();
        self.settle();
        effect
    }

    fn config_read(&mut self, at: u64, into: &mut [u8]) {
        self.config.read(at, into);
        if !self.faults.is_quiet() {
            self.faulty_config(at, into);
        }
        self.note(kind::CONFIG_READ, at, into);
    }

    fn memory_changed(&mut self) {
        self.tell_memory();
        self.settle();
    }

    fn interrupts_changed(&mut self) {
        self.tell_state();
        self.settle();
    }

    fn host_present(&mut self, present: bool) {
        self.is_present = present;
        if !present {
            self.forget_work();
        }
        self.tell_state();
        self.settle();
    }

    fn read_limit(&self) -> Duration {
        self.options.deadline
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }

    fn events_ready(&mut self) {
        let mut ready = Vec::new();
        if self.epoll.wait(&mut ready, Some(Duration::ZERO)).is_ok() {
            self.attend(&ready);
        }
        self.settle();
    }
}
