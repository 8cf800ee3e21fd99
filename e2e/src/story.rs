//! What can happen to a bridge while a guest works: a side goes and comes back.

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::driver::{Attach, Driver};
use crate::lab::Lab;
use crate::peer::Peer;
use crate::row::{Bridged, Ring, Way};
use crate::work;

/// An event under load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Story {
    /// Nothing: the plain work of a driver.
    Work,
    /// The daemon is killed and started again, three times. The guest only waits.
    DeviceRestarts,
    /// viaduct itself is killed and started again, three times. The guest only waits.
    BridgeRestarts,
    /// The guest is killed and another one takes its place at the same socket.
    DriverReturns,
    /// The machine starts from the device: SeaBIOS loads a kernel from the disk, iPXE gets an
    /// address over the card.
    FirmwareBoots,
}

impl Story {
    /// For people; empty for plain work.
    pub fn name(self) -> &'static str {
        match self {
            Story::Work => "",
            Story::DeviceRestarts => ", device killed under load",
            Story::BridgeRestarts => ", viaduct killed under load",
            Story::DriverReturns => ", driver killed under load",
            Story::FirmwareBoots => ", firmware boots from it",
        }
    }
}

/// Kills the daemon with requests in flight; the load must end as if nothing had been.
pub fn device_restarts(lab: &Lab, driver: Driver, peer: Peer, way: Way, ring: Ring) -> Result<()> {
    const TIMES: u32 = 3;
    let kind = peer.kind();
    let mut device = peer.start(lab, driver.forward_mode())?;
    let mut bridge = Bridged::start(lab, driver, way, &device)?;
    let mut guest = driver.guest(lab, &bridge.attach(kind, ring))?.boot()?;
    work::start_load(&mut guest.shell, kind)?;
    for time in 1..=TIMES {
        let daemon = device.daemons.remove(0);
        daemon.signal(Signal::KILL)?;
        daemon.kill();
        // The guest must not notice more than silence.
        guest.shell.run("true").context("the guest while its device is gone")?;
        device = peer.start(lab, driver.forward_mode())?;
        work::load_goes_on(&mut guest.shell, kind).with_context(|| format!("restart {time}"))?;
    }
    work::end_load(&mut guest.shell, kind)?;
    guest.qemu.is_alive()?;
    bridge.has_not_failed()
}

/// Kills viaduct with requests in flight; QEMU finds the next one at the same socket, hands it the
/// record of what was in flight, and the load ends as if nothing had been.
pub fn bridge_restarts(lab: &Lab, driver: Driver, peer: Peer, way: Way, ring: Ring) -> Result<()> {
    const TIMES: u32 = 3;
    let kind = peer.kind();
    let mut device = peer.start(lab, driver.forward_mode())?;
    let mut bridge = Bridged::start(lab, driver, way, &device)?;
    let attach = Attach { reconnects: true, ..bridge.attach(kind, ring) };
    let mut guest = driver.guest(lab, &attach)?.boot()?;
    work::start_load(&mut guest.shell, kind)?;
    for time in 1..=TIMES {
        bridge.kill();
        guest.shell.run("true").context("the guest while viaduct is gone")?;
        // qemu-storage-daemon may abort when its driver goes with requests in flight
        // (`!server->wait_idle`); then both are gone, which must do no harm either.
        if device.daemons.first_mut().is_some_and(|daemon| daemon.is_alive().is_err()) {
            device = peer.start(lab, driver.forward_mode())?;
        }
        bridge = Bridged::start(lab, driver, way, &device)?;
        work::load_goes_on(&mut guest.shell, kind).with_context(|| format!("restart {time}"))?;
    }
    work::end_load(&mut guest.shell, kind)?;
    guest.qemu.is_alive()?;
    bridge.has_not_failed()
}

/// Kills the guest with requests in flight; the next one finds a working device.
pub fn driver_returns(lab: &Lab, driver: Driver, peer: Peer, way: Way, ring: Ring) -> Result<()> {
    let kind = peer.kind();
    let device = peer.start(lab, driver.forward_mode())?;
    let mut bridge = Bridged::start(lab, driver, way, &device)?;
    let mut first = driver.guest(lab, &bridge.attach(kind, ring))?.boot()?;
    work::start_load(&mut first.shell, kind)?;
    first.qemu.kill();
    driver.drive(lab, &bridge.attach(kind, ring), &device).context("the second guest")?;
    bridge.has_not_failed()
}
