//! A row of the table: a driver, a device, the way between them, and what happens.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use crate::daemon::Daemon;
use crate::driver::Attach;
use crate::driver::Driver;
use crate::firmware;
use crate::lab::Lab;
use crate::peer::Peer;
use crate::peer::{Device, Kind};
use crate::runner::Case;
use crate::story::{self, Story};

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
    story: Story,
    driver: Driver,
    device: Peer,
    ways: &'static [Way],
    rings: &'static [Ring],
}

/// Plain work.
pub const fn line(
    driver: Driver,
    device: Peer,
    ways: &'static [Way],
    rings: &'static [Ring],
) -> Line {
    Line { story: Story::Work, driver, device, ways, rings }
}

impl Line {
    /// The same, but something happens.
    pub const fn when(mut self, story: Story) -> Line {
        self.story = story;
        self
    }
}

/// The rows of the table as cases for the runner.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for line in crate::table::TABLE {
        for way in line.ways {
            for ring in line.rings {
                cases.push(case(line.story, line.driver, line.device, *way, *ring));
            }
        }
    }
    cases.extend(crate::bare_host::cases());
    cases
}

fn case(story: Story, driver: Driver, device: Peer, way: Way, ring: Ring) -> Case {
    const LIMIT: Duration = Duration::from_secs(180);
    let name = format!(
        "{}, {} on {}, {}, {}{}",
        driver.name(),
        device.kind().name(),
        device.name(),
        way.name(),
        ring.name(),
        story.name()
    );
    Case::new(name, LIMIT, move |lab| match story {
        Story::Work => work(lab, driver, device, way, ring),
        Story::DeviceRestarts => story::device_restarts(lab, driver, device, way, ring),
        Story::BridgeRestarts => story::bridge_restarts(lab, driver, device, way, ring),
        Story::DriverReturns => story::driver_returns(lab, driver, device, way, ring),
        Story::FirmwareBoots => firmware::boots(lab, driver, device, way, ring),
    })
}

fn work(lab: &Lab, driver: Driver, peer: Peer, way: Way, ring: Ring) -> Result<()> {
    let mut device = peer.start(lab, driver.forward_mode())?;
    let mut bridge = Bridged::start(lab, driver, way, &device)?;
    driver.drive(lab, &bridge.attach(peer.kind(), ring), &device)?;
    bridge.has_not_failed()?;
    device.daemons.first_mut().map_or(Ok(()), Daemon::has_not_failed)
}

/// A device with or without viaduct before it.
pub struct Bridged {
    /// What a driver connects to.
    pub socket: PathBuf,
    viaduct: Option<Daemon>,
}

impl Bridged {
    /// Starts `viaduct bridge` before `device`, unless the way is direct.
    pub fn start(lab: &Lab, driver: Driver, way: Way, device: &Device) -> Result<Bridged> {
        let Some(mode) = way.mode() else {
            return Ok(Bridged { socket: device.socket.clone(), viaduct: None });
        };
        let socket = lab.path("bridge");
        let mut command = lab.viaduct()?;
        command.arg("bridge").arg(format!("{}:{}", driver.scheme(), socket.display()));
        command.arg(&device.address).arg(format!("mode={mode}"));
        let mut viaduct = lab.start("viaduct", command)?;
        viaduct.listens_at(&socket)?;
        Ok(Bridged { socket, viaduct: Some(viaduct) })
    }

    /// What a driver connects to.
    pub fn attach(&self, kind: Kind, ring: Ring) -> Attach<'_> {
        // viaduct keeps the driver's connection whatever happens behind it. QEMU's other devices
        // do not wait for a connection that comes late, and fail.
        let reconnects = self.viaduct.is_none() && matches!(kind, Kind::Block | Kind::Net);
        Attach { kind, socket: &self.socket, ring, reconnects }
    }

    /// Kills viaduct as a crash would; its socket stays.
    pub fn kill(&mut self) {
        if let Some(viaduct) = self.viaduct.take() {
            viaduct.kill();
        }
    }

    /// Whether viaduct runs or ended well.
    pub fn has_not_failed(&mut self) -> Result<()> {
        self.viaduct.as_mut().map_or(Ok(()), Daemon::has_not_failed)
    }
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
