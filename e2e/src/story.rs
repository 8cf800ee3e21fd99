//! What can happen to a bridge while a guest works: a side goes and comes back.

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::driver::Attach;
use crate::lab::Lab;
use crate::load::Load;
use crate::row::{Bridged, Row};
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
    /// The guest's machine is saved while it runs, and another one goes on with it at the same
    /// socket.
    Migrates,
    /// The disk's image becomes larger while the guest runs.
    Grows,
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
            Story::Migrates => ", migrated under load",
            Story::Grows => ", grown while in use",
        }
    }
}

/// Kills the daemon with requests in flight; the load must end as if nothing had been.
pub fn device_restarts(lab: &Lab, row: &Row) -> Result<()> {
    const TIMES: u32 = 3;
    let mut device = row.start_device(lab)?;
    let mut bridge = Bridged::start(lab, row, &device)?;
    let mut load = Load::start(lab, row, &bridge.attach(row))?;
    for time in 1..=TIMES {
        let daemon = device.daemons.remove(0);
        daemon.signal(Signal::KILL)?;
        daemon.kill();
        // The driver must not notice more than silence.
        load.is_well().context("the driver while its device is gone")?;
        device = row.start_device(lab)?;
        load.goes_on().with_context(|| format!("restart {time}"))?;
    }
    load.end(lab, &bridge.attach(row))?;
    bridge.has_not_failed()
}

/// Kills viaduct with requests in flight; QEMU finds the next one at the same socket, hands it the
/// record of what was in flight, and the load ends as if nothing had been.
pub fn bridge_restarts(lab: &Lab, row: &Row) -> Result<()> {
    const TIMES: u32 = 3;
    let mut device = row.start_device(lab)?;
    let mut bridge = Bridged::start(lab, row, &device)?;
    let attach = Attach { reconnects: true, ..bridge.attach(row) };
    let mut load = Load::start(lab, row, &attach)?;
    for time in 1..=TIMES {
        bridge.kill();
        load.is_well().context("the driver while viaduct is gone")?;
        // qemu-storage-daemon may abort when its driver goes with requests in flight
        // (`!server->wait_idle`); then both are gone, which must do no harm either.
        if device.daemons.first_mut().is_some_and(|daemon| daemon.is_alive().is_err()) {
            device = row.start_device(lab)?;
        }
        bridge = Bridged::start(lab, row, &device)?;
        load.goes_on().with_context(|| format!("restart {time}"))?;
    }
    load.end(lab, &bridge.attach(row))?;
    bridge.has_not_failed()
}

/// Kills the guest with requests in flight; the next one finds a working device.
pub fn driver_returns(lab: &Lab, row: &Row) -> Result<()> {
    let device = row.start_device(lab)?;
    let mut bridge = Bridged::start(lab, row, &device)?;
    let mut first = row.driver.guest(lab, &bridge.attach(row))?.boot()?;
    work::start_load(&mut first.shell, row.kind())?;
    first.qemu.kill();
    row.driver.drive(lab, &bridge.attach(row), &device).context("the second guest")?;
    bridge.has_not_failed()
}
