//! Brings the whole path up: two sockets, three threads, one driver.

use std::os::fd::{IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use bridge::{BridgeOptions, Mode, Shadow};
use driver::{GuestMemory, PciDevice};
use sys::Connection;
use virtio::{DriverEnd, EndError, Features, Stop, VirtioDevice};
use virtqueue::RingFormat;

use crate::address::{self, Address};
use crate::ends;
use crate::monitor::Monitor;

/// Bytes of the driver's memory.
const MEMORY_BYTES: usize = 16 << 20;

/// A path from a driver to a device, with everything on it running.
pub struct Path {
    /// How the bridge works.
    pub mode: Mode,
    /// The ring between driver and bridge.
    pub driver_ring: RingFormat,
    /// The ring between bridge and device.
    pub device_ring: RingFormat,
    /// The bridge's counters.
    pub monitor: Monitor,
    socket: Option<UnixStream>,
    stop: Stop,
    threads: Vec<JoinHandle<Result<(), EndError>>>,
}

impl Path {
    /// Starts a daemon with the built-in device `device`, and a bridge to it.
    pub fn open(
        device: Address,
        mode: Mode,
        driver_ring: RingFormat,
        device_ring: RingFormat,
    ) -> Result<Self> {
        let (daemon, to_daemon) = UnixStream::pair()?;
        let (bridge_socket, socket) = UnixStream::pair()?;
        let stop = Stop::new()?;
        let kind = device.scheme.clone();

        let daemon_end = ends::open_driver(&on_socket("vhost-user", daemon))?;
        let device = ends::open_device(&device)?;
        let daemon = serve("daemon", daemon_end, device, &stop)?;

        let mut to_daemon = on_socket("vhost-user", to_daemon);
        to_daemon.values.insert("type".into(), address::value(&kind));
        let options =
            BridgeOptions { mode, device_format: Some(device_ring), ..BridgeOptions::default() };
        let shadow = Shadow::new(ends::open_device(&to_daemon)?, "demo", options)?;
        let monitor = Monitor::new(&shadow);
        let bridge_end = ends::open_driver(&on_socket("vfio-user", bridge_socket))?;
        let bridge = serve("bridge", bridge_end, Box::new(shadow), &stop)?;
        let threads = vec![bridge, daemon];
        Ok(Self { mode, driver_ring, device_ring, monitor, socket: Some(socket), stop, threads })
    }

    /// The driver's side: a PCI device to drive, memory to do it in, and the features to accept.
    pub fn attach(&mut self) -> Result<(Box<PciDevice>, GuestMemory, Features)> {
        let memory = GuestMemory::new(MEMORY_BYTES)?;
        let socket = self.socket.take().context("a path has one driver")?;
        let device = PciDevice::new(Connection::new(socket)?, &memory, true)?;
        let ring = match self.driver_ring {
            RingFormat::Split => Features::NONE,
            RingFormat::Packed => Features::RING_PACKED,
        };
        let wish = Features::VERSION_1 | Features::ACCESS_PLATFORM | Features::EVENT_IDX | ring;
        Ok((Box::new(device), memory, wish))
    }

    /// Ends everything on the path.
    pub fn close(self) -> Result<()> {
        self.stop.ask();
        for thread in self.threads {
            let ended = thread.join();
            ended.ok().context("a thread of the path panicked")??;
        }
        Ok(())
    }
}

/// An end on a connected socket.
fn on_socket(scheme: &str, socket: UnixStream) -> Address {
    let fd = OwnedFd::from(socket).into_raw_fd();
    let values = [("fd".to_owned(), address::value(&fd.to_string()))].into();
    Address { scheme: scheme.into(), values }
}

fn serve(
    name: &str,
    end: Box<dyn DriverEnd>,
    device: Box<dyn VirtioDevice>,
    stop: &Stop,
) -> Result<JoinHandle<Result<(), EndError>>> {
    let stop = stop.clone();
    let builder = std::thread::Builder::new().name(name.into());
    Ok(builder.spawn(move || end.serve(device, stop))?)
}
