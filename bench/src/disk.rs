//! One driver of disks for all measurements: random reads, a fixed number under way.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use driver::{Access, Direct, Disk, GuestMemory, Operation, PciDevice};
use transports::TRANSPORTS;
use virtio::Features;

use crate::programs::settings;
use crate::threads::Window;

/// How the driver learns that a request is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// It looks at the ring all the time and asks for no interrupts.
    Polls,
    /// It sleeps until the interrupt's eventfd is signalled.
    Sleeps,
}

/// A window of requests.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// Requests.
    pub requests: u64,
    /// Time taken.
    pub seconds: f64,
    /// Doorbells that the device asked for.
    pub kicks: u64,
    /// Interrupts that the driver slept for.
    pub interrupts: u64,
}

impl Done {
    /// Thousands of requests a second.
    pub fn kilo_per_second(&self) -> f64 {
        self.requests as f64 / self.seconds / 1e3
    }

    /// Mean time from offering a request to having it back, with `depth` of them under way.
    pub fn latency_us(&self, depth: usize) -> f64 {
        depth as f64 * self.seconds * 1e6 / self.requests as f64
    }
}

/// A disk that is driven.
pub struct Load {
    disk: Disk,
    blocks: u64,
    sectors: u64,
    random: u64,
    slots: Vec<usize>,
}

/// What the driver accepts if it is offered.
pub fn wish() -> Features {
    Features::VERSION_1 | Features::ACCESS_PLATFORM | Features::EVENT_IDX | Disk::FLUSH
}

impl Load {
    /// The disk of the vhost-user daemon at `socket`.
    pub fn vhost_user(socket: &Path, depth: usize, block_bytes: usize) -> Result<Self> {
        let memory = memory(depth, block_bytes)?;
        Self::open(vhost_user(socket, &memory)?, memory, depth, block_bytes)
    }

    /// Brings a disk up with room for `depth` requests of `block_bytes`.
    pub fn open(
        access: Box<dyn Access>,
        memory: GuestMemory,
        depth: usize,
        block_bytes: usize,
    ) -> Result<Self> {
        let disk = Disk::open(access, memory, wish(), depth, block_bytes)?;
        let sectors = (block_bytes / driver::SECTOR_BYTES) as u64;
        let blocks = disk.sectors() / sectors;
        ensure!(blocks > 0, "a disk of {} sectors", disk.sectors());
        Ok(Self { disk, blocks, sectors, random: 0x9e37_79b9_7f4a_7c15, slots: Vec::new() })
    }

    /// Reads at random places with `depth` requests under way until the window closes.
    pub fn run(&mut self, depth: usize, waiting: Waiting, window: Window) -> Result<Done> {
        self.turn(depth, waiting, &mut |_| window.is_open())
    }

    /// The same for a number of requests.
    pub fn count(&mut self, depth: usize, waiting: Waiting, requests: u64) -> Result<Done> {
        self.turn(depth, waiting, &mut |started| started < requests)
    }

    fn turn(
        &mut self,
        depth: usize,
        waiting: Waiting,
        go_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Done> {
        let (kicks, interrupts) = self.disk.notifications();
        let (start, mut requests, mut started) = (Instant::now(), 0, 0);
        self.slots.clear();
        self.slots.extend(0..depth);
        let mut open = true;
        while open || self.disk.in_flight() > 0 {
            open = open && go_on(started);
            if open && !self.slots.is_empty() {
                while let Some(slot) = self.slots.pop() {
                    let sector = self.next_block() * self.sectors;
                    self.disk.start(slot, Operation::Read, sector)?;
                    started += 1;
                }
                self.disk.publish();
            }
            let had = self.slots.len();
            while let Some(done) = self.disk.take_done()? {
                self.slots.push(done.slot);
            }
            requests += (self.slots.len() - had) as u64;
            if waiting == Waiting::Sleeps && self.slots.is_empty() {
                self.disk.wait()?;
            } else if self.slots.is_empty() {
                std::hint::spin_loop();
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        let after = self.disk.notifications();
        ensure!(requests > 0, "no request came back");
        let (kicks, interrupts) = (after.0 - kicks, after.1 - interrupts);
        Ok(Done { requests, seconds, kicks, interrupts })
    }

    /// A place by Marsaglia's xorshift.
    fn next_block(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % self.blocks
    }
}

/// Memory for rings and buffers, each of which begins a page.
pub fn memory(depth: usize, block_bytes: usize) -> Result<GuestMemory> {
    Ok(GuestMemory::new((depth * (block_bytes.next_multiple_of(4096) + 4096)) + (256 << 10))?)
}

/// A disk behind a vhost-user socket, driven through the control traits.
pub fn vhost_user(socket: &Path, memory: &GuestMemory) -> Result<Box<dyn Access>> {
    let transport = TRANSPORTS.iter().find(|transport| transport.scheme == "vhost-user");
    let device_end = transport.and_then(|transport| transport.device_end);
    let device_end = device_end.context("no vhost-user device end")?;
    let path = socket.to_str().context("a socket's path is UTF-8")?;
    let device = device_end(settings(&[("path", path), ("type", "blk"), ("queue-size", "256")]))?;
    Ok(Box::new(Direct::new(device, memory)?))
}

/// A disk behind a vfio-user socket, with memory that is shared or reached by messages.
pub fn vfio_user(socket: &Path, memory: &GuestMemory, shared: bool) -> Result<Box<dyn Access>> {
    let connection = sys::connect_unix(socket).context("connect to a vfio-user socket")?;
    Ok(Box::new(PciDevice::new(connection, memory, shared)?))
}
