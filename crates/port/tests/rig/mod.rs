//! What the tests share: a function with registers of many habits, a port with a service in a
//! thread, models in threads, a driver on the other side.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use driver::{Client, GuestMemory};
use mem::DriverAddress;
use pcie::config::{ConfigSpace, Msix};
use pcie::vfio_user::{Service, Source};
use pcie::{
    BarAddress, BarLayout, Built, Completion, Description, Dma, Function, FunctionLayout, HostPort,
    ResetKind,
};
use port::{Model, ModelError, Port, PortOptions};
use sys::{Epoll, EventFd, Interest};

/// Registers 0 to 0xff are memory. 0x100: a read that is never answered. 0x108: a read that is
/// answered with four bytes of host memory at the address in register 0. 0x110: a write copies 64
/// bytes of host memory from the address in register 0 to that in register 8, then interrupts.
/// 0x118: a write stops the model for as many milliseconds as it says.
pub const SILENT: u64 = 0x100;
pub const FROM_MEMORY: u64 = 0x108;
pub const COPY: u64 = 0x110;
pub const STALL: u64 = 0x118;

pub fn description() -> Description {
    Description::new(0x1234, 0x5678)
        .bar(0, BarLayout::memory32(0x1000))
        .bar(2, BarLayout::memory64(1 << 20))
        .intx()
        .msi(2)
        .msix(Msix { vectors: 2, bar: 0, table: 0x800, pending: 0xc00 })
}

pub struct Habits {
    built: Built,
    bytes: Vec<u8>,
    host: Option<(HostPort, Dma)>,
    never: Vec<Completion>,
    waiting: Option<Completion>,
    pub computes_config: bool,
    pub resets: Arc<AtomicU32>,
}

impl Habits {
    pub fn new(resets: Arc<AtomicU32>) -> Self {
        Self::of(&description(), resets)
    }

    pub fn of(description: &Description, resets: Arc<AtomicU32>) -> Self {
        let built = description.build().unwrap();
        let (bytes, never) = (vec![0; 0x100], Vec::new());
        let computes_config = false;
        Self { built, bytes, host: None, never, waiting: None, computes_config, resets }
    }

    pub fn with_register(mut self, at: usize, value: u8) -> Self {
        self.bytes[at] = value;
        self
    }

    fn address(&self, at: usize) -> DriverAddress {
        DriverAddress(u64::from_le_bytes(self.bytes[at..at + 8].try_into().unwrap()))
    }

    fn advance(&mut self) {
        let to = self.address(8);
        let Some((host, dma)) = &mut self.host else { return };
        let mut ends = Vec::new();
        dma.poll(|tag, result| ends.push((tag, result.map(<[u8]>::to_vec))));
        for (tag, result) in ends {
            match (tag, result) {
                (0, Ok(bytes)) => self.waiting.take().unwrap().answer(&bytes),
                (1, Ok(bytes)) => dma.write(2, to, &bytes),
                (2, Ok(_)) => host.interrupts.signal_any(1),
                (0, Err(_)) => self.waiting.take().unwrap().all_ones(),
                (_, result) => panic!("a transfer ended with {result:?}"),
            }
        }
        if dma.is_busy() {
            return;
        }
        // A write that was begun just now may be done already.
        dma.poll(|tag, result| {
            result.unwrap();
            assert_eq!(tag, 2);
            host.interrupts.signal_any(1);
        });
    }
}

impl Drop for Habits {
    fn drop(&mut self) {
        self.never.drain(..).chain(self.waiting.take()).for_each(Completion::all_ones);
    }
}

impl Function for Habits {
    fn layout(&self) -> &FunctionLayout {
        &self.built.layout
    }

    fn config(&mut self) -> &mut ConfigSpace {
        &mut self.built.config
    }

    fn connect(&mut self, host: HostPort) {
        let dma = Dma::new(&host).unwrap();
        self.host = Some((host, dma));
    }

    fn computes_config(&self) -> bool {
        self.computes_config
    }

    fn read(&mut self, at: BarAddress, answer: Completion) {
        match (at.bar, at.offset) {
            (0, SILENT) => self.never.push(answer),
            (0, FROM_MEMORY) => {
                self.waiting = Some(answer);
                let from = self.address(0);
                self.host.as_mut().unwrap().1.read(0, from, 4);
                self.advance();
            }
            (0, at) => answer.answer(self.bytes.get(at as usize..).unwrap_or_default()),
            (_, at) => {
                let bytes: Vec<u8> = (at..at + answer.len() as u64).map(|n| n as u8).collect();
                answer.answer(&bytes);
            }
        }
    }

    fn write(&mut self, at: BarAddress, bytes: &[u8]) {
        match (at.bar, at.offset) {
            (0, COPY) => {
                let from = self.address(0);
                self.host.as_mut().unwrap().1.read(1, from, 64);
                self.advance();
            }
            (0, STALL) => std::thread::sleep(Duration::from_millis(u64::from(bytes[0]) * 10)),
            (0, at) if at < 0x100 => {
                self.bytes[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
            }
            _ => {}
        }
    }

    fn reset(&mut self, _: ResetKind) {
        self.bytes.fill(0);
        self.resets.fetch_add(1, Ordering::SeqCst);
        self.never.drain(..).chain(self.waiting.take()).for_each(Completion::all_ones);
        self.host.as_mut().unwrap().1.forget();
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.host.as_ref().map(|(_, dma)| dma.as_fd())
    }

    fn events_ready(&mut self) {
        self.advance();
    }
}

/// A model in a thread, which ends as a process that is killed: its socket closes.
pub struct Running {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(), ModelError>>>,
}

impl Running {
    pub fn start(path: PathBuf, make: impl FnOnce() -> Habits + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut model = Model::connect(Some(&path), "habits", Box::new(make()))?;
            while !asked.load(Ordering::SeqCst) {
                model.turn(Some(Duration::from_millis(5)))?;
            }
            Ok(())
        });
        Self { stop, thread: Some(thread) }
    }

    pub fn kill(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.result().unwrap();
    }

    pub fn result(&mut self) -> Result<(), ModelError> {
        self.thread.take().unwrap().join().expect("the model panicked")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub struct Rig {
    _folder: tempfile::TempDir,
    pub models: PathBuf,
    pub socket: PathBuf,
    pub resets: Arc<AtomicU32>,
    stop: Arc<EventFd>,
    port: Option<JoinHandle<()>>,
}

pub const DEADLINE: Duration = Duration::from_millis(100);

impl Rig {
    pub fn new(options: impl FnOnce() -> PortOptions + Send + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (models, socket) = (folder.path().join("m"), folder.path().join("s"));
        let (listener, gate) = (sys::listen_unix(&socket).unwrap(), sys::listen_unix(&models));
        let gate = gate.unwrap();
        let stop = Arc::new(EventFd::new().unwrap());
        let asked = Arc::clone(&stop);
        let port = std::thread::spawn(move || {
            let port = Port::await_model(gate, options(), asked.as_fd()).unwrap();
            let Some(port) = port else { return };
            let source = Source::Listener(listener);
            Service::new(Box::new(port), source).unwrap().run(asked.as_fd()).unwrap();
        });
        let resets = Arc::default();
        Self { _folder: folder, models, socket, resets, stop, port: Some(port) }
    }

    pub fn model(&self) -> Running {
        let resets = Arc::clone(&self.resets);
        Running::start(self.models.clone(), move || Habits::new(resets))
    }

    pub fn driver(&self, memory: &GuestMemory, shared: bool) -> Client {
        let connection = sys::connect_unix(&self.socket).unwrap();
        let mut client = Client::new(connection, memory, shared).unwrap();
        // Memory space and bus mastering.
        client.write(7, 4, &6u16.to_le_bytes()).unwrap();
        client
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.signal();
        if let Some(port) = self.port.take()
            && port.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the port panicked");
        }
    }
}

pub fn read(client: &mut Client, at: u64) -> u32 {
    let mut bytes = [0; 4];
    client.read(0, at, &mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}

pub fn write(client: &mut Client, at: u64, value: u64) {
    client.write(0, at, &value.to_le_bytes()).unwrap();
}

/// Reads until the value is there: for what happens without an event on this side.
pub fn until(client: &mut Client, at: u64, value: u32) {
    let end = Instant::now() + Duration::from_secs(10);
    while read(client, at) != value {
        assert!(Instant::now() < end, "the register never had {value:#x}");
    }
}

/// Where the driver's memory begins.
pub const BASE: u64 = 0x1c00_0000_0000;

/// Memory of a driver, with a pattern of 64 bytes at 0x100.
pub fn memory() -> GuestMemory {
    let memory = GuestMemory::new(1 << 20).unwrap();
    let pattern: Vec<u8> = (0..64).map(|n| n as u8 ^ 0x5a).collect();
    memory.map().unwrap().write(DriverAddress(BASE + 0x100), &pattern).unwrap();
    memory
}

/// Waits for an interrupt.
pub fn wait(event: &EventFd) {
    let epoll = Epoll::new().unwrap();
    epoll.add(event, 0, Interest::Read).unwrap();
    epoll.wait(&mut Vec::new(), Some(Duration::from_secs(10))).unwrap();
    assert!(event.drain(), "no interrupt");
}
