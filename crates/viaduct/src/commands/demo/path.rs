//! Brings the whole path up: two sockets, three threads, one driver.

use std::path;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use bridge::{BridgeOptions, Mode, Shadow};
use driver::{GuestMemory, PciDevice};
use tempfile::TempDir;
use virtio::{DriverEnd, EndError, Features, Stop, VirtioDevice};
use virtqueue::RingFormat;

use crate::address::{self, Address};
use crate::ends;
use crate::monitor::Monitor;

/// The name of the bridge's socket.
const BRIDGE: &str = "bridge";

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
    /// Holds the sockets and the scratch image; removed with the path.
    folder: TempDir,
    /// What runs, the last one to end first.
    running: Vec<Running>,
}

/// A bridge or a daemon in a thread of its own.
struct Running {
    stop: Stop,
    thread: JoinHandle<Result<(), EndError>>,
}

impl Path {
    /// Starts a daemon with the built-in device that `device` makes, given a folder for its files,
    /// and a bridge to it.
    pub fn open(
        device: impl FnOnce(&path::Path) -> Result<Address>,
        mode: Mode,
        driver_ring: RingFormat,
        device_ring: RingFormat,
    ) -> Result<Self> {
        let folder = tempfile::tempdir().context("can't make a folder for the sockets")?;
        let daemon_socket = folder.path().join("daemon");
        let device = device(folder.path())?;

        let daemon_end = ends::open_driver(&on_socket("vhost-user", &daemon_socket)?)?;
        let daemon = serve("daemon", daemon_end, ends::open_device(&device)?)?;

        let mut to_daemon = on_socket("vhost-user", &daemon_socket)?;
        to_daemon.values.insert("type".into(), address::value(&device.scheme));
        // In pass mode there is no ring of the bridge's whose format could be chosen.
        let device_format = Some(device_ring).filter(|_| mode != Mode::Pass);
        let options = BridgeOptions { mode, device_format, ..BridgeOptions::default() };
        let shadow = Shadow::new(ends::open_device(&to_daemon)?, "demo", options)?;
        let monitor = Monitor::new(&shadow);
        let bridge_end = ends::open_driver(&on_socket("vfio-user", &folder.path().join(BRIDGE))?)?;
        let bridge = serve("bridge", bridge_end, Box::new(shadow))?;
        Ok(Self { mode, driver_ring, device_ring, monitor, folder, running: vec![daemon, bridge] })
    }

    /// The driver's side: a PCI device to drive, memory to do it in, and the features to accept.
    pub fn attach(&self) -> Result<(Box<PciDevice>, GuestMemory, Features)> {
        let memory = GuestMemory::new(MEMORY_BYTES)?;
        let socket = sys::connect_unix(&self.folder.path().join(BRIDGE))?;
        let device = PciDevice::new(socket, &memory, true)?;
        let ring = match self.driver_ring {
            RingFormat::Split => Features::NONE,
            RingFormat::Packed => Features::RING_PACKED,
        };
        let wish = Features::VERSION_1 | Features::ACCESS_PLATFORM | Features::EVENT_IDX;
        Ok((Box::new(device), memory, wish | ring))
    }

    /// Ends everything on the path, from the driver's side on.
    pub fn close(self) -> Result<()> {
        for Running { stop, thread } in self.running.into_iter().rev() {
            stop.ask();
            thread.join().ok().context("a thread of the path panicked")??;
        }
        Ok(())
    }
}

/// An end at a socket's path.
fn on_socket(scheme: &str, socket: &path::Path) -> Result<Address> {
    let text = socket.to_str().context("the folder for temporary files is not UTF-8")?;
    let values = [("path".to_owned(), address::value(text))].into();
    Ok(Address { scheme: scheme.into(), values })
}

fn serve(name: &str, end: Box<dyn DriverEnd>, device: Box<dyn VirtioDevice>) -> Result<Running> {
    let stop = Stop::new()?;
    let asked = stop.clone();
    let builder = std::thread::Builder::new().name(name.into());
    Ok(Running { stop, thread: builder.spawn(move || end.serve(device, asked))? })
}
