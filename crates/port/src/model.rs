//! A model: any [`Function`] in a process of its own, at a port.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mem::{Access, Backing, DriverAddress, FileCache, Mapping, MemoryError, MemoryMap, Region};
use pcie::{BarAddress, CompletionQueue, Function, FunctionLayout, HostPort, Interrupts};
use pcie::{ResetKind, Ticket};
use sys::{Connection, Epoll, Interest, Received};
use wire::cosim::{
    AnswerKind, Cosim, MAX_PAYLOAD, MemoryChange, Message, REMOTE_FILE, Record, RegionShape,
    RequestKind, State, Welcome, hello_flags, reset,
};
use wire::{DecodeError, Framer};
use worker::{MAX_SPIN, SpinWindow};

use crate::area::Shared;
use crate::inbound::{Inbound, Wait};
use crate::limits::MAX_RECORDS_PER_TURN;
use crate::outbound::Outbound;
use crate::remote::{PortMemory, Transfers};
use crate::ring::RingError;

/// Names the port's socket in a model's environment.
pub const PORT_VARIABLE: &str = "VIADUCT_PORT";

/// Longest wait for a message that the port has announced.
const MESSAGE_LIMIT: Duration = Duration::from_secs(5);
/// Longest wait for threads of the function to let go of memory.
const UNMAP_LIMIT: Duration = Duration::from_secs(1);

/// Why a model can't go on.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Nobody said where the port is.
    #[error("no port: set {PORT_VARIABLE} or name its socket")]
    NoPort,
    /// Nobody listens there.
    #[error("can't connect to the port at {path}: {source}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// A port can't ask the function about its configuration space.
    #[error("the function computes its configuration space: serve it from this process")]
    Computes,
    /// The port does not take us.
    #[error("the port refused: {0}")]
    Refused(String),
    /// The port has gone; an orderly end.
    #[error("the port has gone")]
    Gone,
    /// The port breaks the rules.
    #[error("the port broke the rules: {0}")]
    Rules(#[from] RingError),
    /// A message of the port's makes no sense.
    #[error("the port broke the rules: {0}")]
    Message(#[from] DecodeError),
    /// Host memory could not be mapped.
    #[error("mapping host memory failed: {0}")]
    Memory(#[from] MemoryError),
    /// The system failed us.
    #[error("{0}")]
    System(#[from] io::Error),
}

mod key {
    pub const WAKE: u64 = 0;
    pub const SOCKET: u64 = 1;
    pub const COMPLETIONS: u64 = 2;
    pub const FUNCTION: u64 = 3;
}

/// A function at a port. One thread runs it.
pub struct Model {
    function: Box<dyn Function>,
    host: HostPort,
    socket: Connection,
    framer: Framer<Cosim>,
    inbound: Arc<Inbound>,
    outbound: Arc<Outbound>,
    memory: PortMemory,
    completions: Arc<CompletionQueue>,
    tickets: HashMap<Ticket, u64>,
    files: HashMap<u32, Arc<Mapping>>,
    cache: FileCache,
    regions: BTreeMap<u64, RegionShape>,
    state: State,
    epoll: Epoll,
    window: SpinWindow,
    data: Vec<u8>,
}

impl Model {
    /// Connects `function` to the port that listens at `path`, or at what [`PORT_VARIABLE`] names.
    /// `name` is for people.
    ///
    /// # Errors
    /// There is no port, or it refuses; or the function computes its configuration space.
    pub fn connect(
        path: Option<&Path>,
        name: &str,
        mut function: Box<dyn Function>,
    ) -> Result<Self, ModelError> {
        if function.computes_config() {
            return Err(ModelError::Computes);
        }
        let path = path.map(Path::to_path_buf);
        let path = path.or_else(|| std::env::var_os(PORT_VARIABLE).map(PathBuf::from));
        let path = path.ok_or(ModelError::NoPort)?;
        let socket = sys::connect_unix(&path)
            .map_err(|source| ModelError::Connect { path: path.clone(), source })?;
        let layout = function.layout().clone();
        let flags = hello_flags::DIRECT_MEMORY;
        let hello = crate::shape::hello(&layout, function.config(), name, flags);
        let mut bytes = Vec::new();
        Message::Hello(Box::new(hello)).encode(&mut bytes);
        socket.send_all(&bytes, &[], MESSAGE_LIMIT)?;
        let mut framer = Framer::new(MAX_PAYLOAD);
        let entered = match next_message(&socket, &mut framer)? {
            (Message::Welcome(welcome), fds) => enter(welcome, fds, &layout)?,
            (Message::Refused(why), _) => return Err(ModelError::Refused(why)),
            _ => return Err(DecodeError::Value { field: "first message", value: 0 }.into()),
        };
        let (shared, [wake_model, wake_port], bars) = entered;
        let outbound = Arc::new(Outbound::new(shared.clone(), wake_port)?);
        let transfers = Arc::new(Transfers::new(Arc::clone(&outbound)));
        let memory = PortMemory(Arc::clone(&transfers));
        let inbound = Inbound::new(&shared, wake_model, transfers, Arc::clone(&outbound))?;
        let sink: Arc<Outbound> = Arc::clone(&outbound);
        let host = HostPort::new(Interrupts::towards(layout.interrupts, sink)).with_bars(bars);
        let completions = CompletionQueue::new()?;
        function.connect(host.clone());
        let epoll = Epoll::new()?;
        epoll.add(inbound.event().as_fd(), key::WAKE, Interest::Read)?;
        epoll.add(&socket, key::SOCKET, Interest::Read)?;
        epoll.add(completions.as_fd(), key::COMPLETIONS, Interest::Read)?;
        if let Some(fd) = function.event_fd() {
            epoll.add(fd, key::FUNCTION, Interest::Read)?;
        }
        Ok(Self {
            function,
            host,
            socket,
            framer,
            inbound: Arc::new(inbound),
            outbound,
            memory,
            completions,
            tickets: HashMap::new(),
            files: HashMap::new(),
            cache: FileCache::default(),
            regions: BTreeMap::new(),
            state: State::default(),
            epoll,
            window: SpinWindow::new(crate::spin_limit()),
            data: Vec::new(),
        })
    }

    /// Serves until the port has gone, which is no error.
    ///
    /// # Errors
    /// The port broke the rules, or the system failed.
    pub fn run(&mut self) -> Result<(), ModelError> {
        loop {
            match self.turn(None) {
                Ok(()) => {}
                Err(ModelError::Gone) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Does what there is to do; if that is nothing, waits for something, at most for `limit`.
    ///
    /// # Errors
    /// [`ModelError::Gone`] at the end, or as [`Model::run`].
    pub fn turn(&mut self, limit: Option<Duration>) -> Result<(), ModelError> {
        self.inbound.awake();
        let mut has_worked = self.work()?;
        if limit.is_none_or(|limit| !limit.is_zero()) {
            let begin = Instant::now();
            // Whoever has just asked may ask again soon: looking at everything else, which takes a
            // call of the kernel, can wait that long.
            while self.spin() {
                has_worked = true;
                self.work()?;
                if begin.elapsed() >= MAX_SPIN {
                    break;
                }
            }
        }
        let limit = if has_worked { Some(Duration::ZERO) } else { limit };
        if !self.inbound.sleep() {
            // For whoever waits for our descriptor instead of calling again.
            self.inbound.event().signal();
            return Ok(());
        }
        let since = Instant::now();
        let mut ready = Vec::new();
        self.epoll.wait(&mut ready, limit)?;
        for event in ready {
            match event.key {
                key::WAKE => {
                    self.inbound.event().drain();
                    self.window.woken_after(since.elapsed());
                }
                key::SOCKET if event.closed => {
                    self.work()?;
                    self.outbound.close();
                    return Err(ModelError::Gone);
                }
                key::COMPLETIONS => {
                    self.completions.acknowledge();
                    self.collect();
                }
                key::FUNCTION => {
                    self.function.events_ready();
                    self.collect();
                }
                _ => {}
            }
        }
        if self.outbound.is_closed() { Err(ModelError::Gone) } else { Ok(()) }
    }

    /// The function.
    pub fn function(&mut self) -> &mut dyn Function {
        &mut *self.function
    }

    /// The way to host memory and interrupts.
    #[must_use]
    pub fn host(&self) -> &HostPort {
        &self.host
    }

    /// The way to the port.
    #[must_use]
    pub fn outbound(&self) -> &Arc<Outbound> {
        &self.outbound
    }

    /// For waiting in the middle of a request.
    #[must_use]
    pub fn wait(&self) -> Wait {
        Wait(Arc::clone(&self.inbound))
    }

    /// Polls for as long as that has been worth it lately; whether something came.
    fn spin(&mut self) -> bool {
        let window = self.window.length();
        if window.is_zero() {
            return false;
        }
        let begin = Instant::now();
        while begin.elapsed() < window {
            if !self.inbound.is_empty() {
                self.window.found();
                return true;
            }
            std::hint::spin_loop();
        }
        self.window.passed_empty();
        false
    }

    fn work(&mut self) -> Result<bool, ModelError> {
        self.outbound.flush();
        let mut data = std::mem::take(&mut self.data);
        let mut count = 0;
        while count < MAX_RECORDS_PER_TURN {
            let record = self.inbound.take(&mut data)?;
            // The function hears of the end of a transfer before it hears of what came after it,
            // or what a driver reads would depend on which of the two wakes it.
            if self.inbound.has_ends() {
                self.function.events_ready();
                self.collect();
            }
            let Some(record) = record else { break };
            self.obey(&record, &data)?;
            count += 1;
        }
        self.data = data;
        Ok(count > 0)
    }

    fn obey(&mut self, record: &Record<RequestKind>, data: &[u8]) -> Result<(), ModelError> {
        let at = BarAddress { bar: record.detail, offset: record.address };
        match record.kind {
            RequestKind::Read => {
                let len = (record.value as usize).min(wire::cosim::MAX_DATA);
                let (ticket, answer) = self.completions.begin(len);
                self.tickets.insert(ticket, record.tag);
                self.function.read(at, answer);
                self.collect();
            }
            RequestKind::Write => self.function.write(at, data),
            RequestKind::Reset => {
                let is_machine = record.detail == reset::MACHINE;
                let kind = if is_machine { ResetKind::Machine } else { ResetKind::Function };
                self.function.reset(kind);
                self.collect();
                self.outbound.send(Record::new(AnswerKind::ResetDone).tag(record.tag), &[]);
            }
            RequestKind::Config => {
                if let Ok(place) = usize::try_from(record.address) {
                    self.function.config().put(place, data);
                }
                self.function.config_changed(record.address, data.len());
            }
            RequestKind::State => self.host_changes(State::from_word(record.value)),
            RequestKind::Memory => {
                self.memory_changes(record.tag)?;
                self.outbound.send(Record::new(AnswerKind::MemoryDone).tag(record.tag), &[]);
            }
            // Handed on where it was taken from the ring.
            RequestKind::DmaDone => {}
        }
        Ok(())
    }

    /// Sends the answers that the function has given.
    fn collect(&mut self) {
        let (tickets, outbound) = (&mut self.tickets, &self.outbound);
        self.completions.collect(|ticket, data| {
            if let Some(tag) = tickets.remove(&ticket) {
                outbound.send(Record::new(AnswerKind::ReadDone).tag(tag), data);
            }
        });
    }

    fn host_changes(&mut self, state: State) {
        let old = std::mem::replace(&mut self.state, state);
        if old.present != state.present {
            self.function.host_present(state.present);
        }
        if (old.intx, old.msi, old.msix) != (state.intx, state.msi, state.msix) {
            self.function.interrupts_changed();
        }
    }

    /// Takes memory message `number` from the socket and obeys it.
    fn memory_changes(&mut self, number: u64) -> Result<(), ModelError> {
        let (Message::Memory(change), fds) = next_message(&self.socket, &mut self.framer)? else {
            return Err(DecodeError::Value { field: "memory message", value: number }.into());
        };
        if change.number != number {
            return Err(DecodeError::Value { field: "memory message", value: number }.into());
        }
        self.take_files(&change, fds)?;
        for (start, _) in &change.removed {
            self.regions.remove(start);
        }
        self.regions.extend(change.added.iter().map(|region| (region.start, *region)));
        let map = self.regions.values().map(|shape| self.region(shape)).collect::<Result<_, _>>();
        let map = MemoryMap::new(map?)?;
        self.function.memory_changing(&map);
        self.host.memory.replace(map);
        self.function.memory_changed();
        let let_go = self.host.memory.synchronize(UNMAP_LIMIT);
        if !let_go {
            tracing::error!("a thread still uses memory that the host has taken away");
        }
        let regions = &self.regions;
        self.files.retain(|file, _| regions.values().any(|region| region.file == *file));
        Ok(())
    }

    fn take_files(&mut self, change: &MemoryChange, fds: Vec<OwnedFd>) -> Result<(), ModelError> {
        for (file, fd) in change.files.iter().zip(fds) {
            let ends = change.added.iter().filter(|region| region.file == *file);
            let end = ends.map(|region| region.offset.saturating_add(region.len)).max();
            let mapping = self.cache.map(fd, end.unwrap_or(0))?;
            self.files.insert(*file, mapping);
        }
        Ok(())
    }

    fn region(&self, shape: &RegionShape) -> Result<Region, MemoryError> {
        let start = DriverAddress(shape.start);
        let access = if shape.writable { Access::ReadWrite } else { Access::Read };
        match self.files.get(&shape.file).filter(|_| shape.file != REMOTE_FILE) {
            Some(file) => Region::mapped(start, shape.len, access, Arc::clone(file), shape.offset),
            None => {
                let backing = Backing::Remote(Arc::new(self.memory.clone()));
                Ok(Region { start, len: shape.len, access, backing })
            }
        }
    }
}

impl AsFd for Model {
    /// Readable when [`Model::turn`] has something to do, for a loop of one's own; valid after the
    /// first turn.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("state", &self.state).finish_non_exhaustive()
    }
}

/// Memory behind BARs.
type Bars = [Option<Arc<Mapping>>; 6];

/// What comes with a Welcome.
pub(crate) fn enter(
    welcome: Welcome,
    fds: Vec<OwnedFd>,
    layout: &FunctionLayout,
) -> Result<(Shared, [OwnedFd; 2], Bars), ModelError> {
    let mut fds = fds.into_iter();
    let (Some(area), Some(wake_model), Some(wake_port)) = (fds.next(), fds.next(), fds.next())
    else {
        return Err(DecodeError::Fds { found: 0, least: 3, most: 3 }.into());
    };
    let mut bars = Bars::default();
    for (index, (place, bar)) in bars.iter_mut().zip(&layout.bars).enumerate() {
        if welcome.mapped & 1 << index != 0 {
            let file = fds.next().ok_or(DecodeError::Fds { found: 3, least: 4, most: 9 })?;
            *place = Some(Mapping::of_file(file, 0, bar.size as usize)?);
        }
    }
    Ok((Shared::open(area, welcome.area_len)?, [wake_model, wake_port], bars))
}

/// The next message on the socket, which is on its way.
pub(crate) fn next_message(
    socket: &Connection,
    framer: &mut Framer<Cosim>,
) -> Result<(Message, Vec<OwnedFd>), ModelError> {
    let mut fds = Vec::new();
    loop {
        match socket.receive(framer.space(), &mut fds)? {
            Received::Bytes(len) => framer.commit(len)?,
            Received::Nothing => socket.wait_readable(MESSAGE_LIMIT)?,
            Received::Closed => return Err(ModelError::Gone),
        }
        if let Some((header, payload)) = framer.message() {
            let message = Message::decode(&header, payload, fds.len())?;
            framer.next_message();
            return Ok((message, fds));
        }
    }
}
