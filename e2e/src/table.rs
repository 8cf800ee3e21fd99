//! What is connected to what. Each line is a driver side, a device side, the ways between them and
//! the ring formats; its rows are all combinations.

use std::time::Duration;

use anyhow::Result;

use crate::daemon::Daemon;
use crate::driver::Driver::{self, *};
use crate::lab::Lab;
use crate::peer::Peer::{self, *};
use crate::runner::Case;

/// The way from the driver to the device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Way {
    /// The daemon's own socket: shows that the two work without us.
    Direct,
    /// `viaduct bridge`, file descriptors handed on.
    Pass,
    /// `viaduct bridge`, rings ours, buffers shared.
    Translate,
    /// `viaduct bridge`, rings and buffers ours.
    Copy,
    /// `viaduct bridge`, the driver's memory reached by messages.
    Remote,
}

/// The format of the driver's rings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ring {
    /// VIRTIO 1.3, 2.7.
    Split,
    /// VIRTIO 1.3, 2.8.
    Packed,
}

/// A line of the table.
pub struct Line {
    driver: Driver,
    device: Peer,
    ways: &'static [Way],
    rings: &'static [Ring],
}

const fn line(driver: Driver, device: Peer, ways: &'static [Way], rings: &'static [Ring]) -> Line {
    Line { driver, device, ways, rings }
}

use Ring::{Packed, Split};
use Way::Direct;

/// The table.
#[rustfmt::skip]
pub const TABLE: &[Line] = &[
    // driver side       device side         ways        rings
    line(Guest("6.12"),  QemuStorageDaemon,  &[Direct],  &[Split]),
    line(Guest("7.2"),   QemuStorageDaemon,  &[Direct],  &[Split]),
    line(Guest("6.12"),  Passt,              &[Direct],  &[Split]),
    line(Guest("6.12"),  Testpmd,            &[Direct],  &[Split, Packed]),
    line(Guest("6.12"),  Virtiofsd,          &[Direct],  &[Split]),
    line(Guest("6.12"),  VhostDeviceRng,     &[Direct],  &[Split]),
    line(Uml,            QemuStorageDaemon,  &[Direct],  &[Split]),
    line(VirtioUser,     Testpmd,            &[Direct],  &[Split, Packed]),
    line(Blkio,          QemuStorageDaemon,  &[Direct],  &[Split]),
    line(QemuImg,        QemuStorageDaemon,  &[Direct],  &[Split]),
];

/// The rows of the table as cases for the runner.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for line in TABLE {
        for way in line.ways {
            for ring in line.rings {
                cases.push(case(line.driver, line.device, *way, *ring));
            }
        }
    }
    cases
}

fn case(driver: Driver, device: Peer, way: Way, ring: Ring) -> Case {
    const LIMIT: Duration = Duration::from_secs(180);
    let name = format!(
        "{}, {} on {}, {}, {}",
        driver.name(),
        device.kind().name(),
        device.name(),
        way.name(),
        ring.name()
    );
    Case::new(name, LIMIT, move |lab| run(lab, driver, device, way, ring))
}

fn run(lab: &Lab, driver: Driver, peer: Peer, way: Way, ring: Ring) -> Result<()> {
    let mut device = peer.start(lab, driver.forward_mode())?;
    let mut bridge = None;
    let mut socket = device.socket.clone();
    if let Some(mode) = way.mode() {
        socket = lab.path("bridge");
        let mut command = lab.viaduct()?;
        command.arg("bridge").arg(format!("{}:{}", driver.scheme(), socket.display()));
        command.arg(&device.address).arg(format!("mode={mode}"));
        let mut daemon = lab.start("viaduct", command)?;
        daemon.listens_at(&socket)?;
        bridge = Some(daemon);
    }
    driver.drive(lab, peer.kind(), &socket, ring, &device)?;
    if let Some(mut bridge) = bridge {
        bridge.has_not_failed()?;
    }
    device.daemons.first_mut().map_or(Ok(()), Daemon::has_not_failed)
}

impl Way {
    /// For people.
    pub fn name(self) -> &'static str {
        self.mode().unwrap_or("direct")
    }

    /// The mode of the bridge, if there is one.
    fn mode(self) -> Option<&'static str> {
        match self {
            Way::Direct => None,
            Way::Pass => Some("pass"),
            Way::Translate => Some("translate"),
            Way::Copy => Some("copy"),
            Way::Remote => Some("remote"),
        }
    }
}

impl Ring {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Ring::Split => "split",
            Ring::Packed => "packed",
        }
    }
}
