//! A row of the table: a driver, a device, the way between them, and what happens.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;

use crate::changes;
use crate::daemon::Daemon;
use crate::driver::Attach;
use crate::driver::Driver;
use crate::firmware;
use crate::lab::Lab;
use crate::peer::{Device, Kind, Needs, Peer};
use crate::runner::Case;
use crate::story::{self, Story};
use crate::table::{SELDOM, TABLE};

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
    /// `viaduct bridge`, which finds out itself that an IOMMU leaves it to translate, and says so.
    Auto,
}

/// The format of the driver's rings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ring {
    /// VIRTIO 1.3, 2.7.
    Split,
    /// VIRTIO 1.3, 2.8.
    Packed,
}

/// What is unusual about how the two sides are set up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Setting {
    /// Nothing.
    Usual,
    /// Two queues, or two pairs of them, and two processors.
    TwoQueues,
    /// A driver that does without IN_ORDER, though both sides have it.
    OutOfOrder,
    /// viaduct shows the device the ring format that the driver does not use.
    Converted,
    /// The driver goes through a virtual IOMMU, with fewer requests than else: each takes several
    /// messages for its pages.
    Iommu,
    /// The driver is offered indirect descriptors where it would not be.
    Indirect,
    /// The same with as many as ever.
    IommuAtLength,
    /// viaduct notifies the daemon by message, and is notified so.
    InBand,
}

/// A line of the table.
pub struct Line {
    story: Story,
    setting: Setting,
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
    Line { story: Story::Work, setting: Setting::Usual, driver, device, ways, rings }
}

impl Line {
    /// The same, but something happens.
    pub const fn when(mut self, story: Story) -> Line {
        self.story = story;
        self
    }

    /// The same, set up in another way.
    pub const fn with(mut self, setting: Setting) -> Line {
        self.setting = setting;
        self
    }
}

/// The rows of the table as cases for the runner; `all` of them, or those that are run each time.
pub fn cases(all: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for line in TABLE.iter().chain(if all { SELDOM } else { &[] }) {
        for way in line.ways {
            for ring in line.rings {
                let Line { driver, device, setting, .. } = *line;
                let row = Row { driver, device, way: *way, ring: *ring, setting };
                cases.push(row.case(line.story));
            }
        }
    }
    cases.push(crate::hints::case());
    cases.extend(crate::bare_host::cases(all));
    cases.extend(crate::cards::cases(all));
    cases.extend(crate::faults::cases());
    cases.extend(crate::vhdl::cases(all));
    cases.extend(if all { crate::cocotb::cases() } else { Vec::new() });
    cases.extend(crate::verilog::cases(all));
    cases.extend(crate::ports::cases(all));
    cases.extend(crate::far::cases(all));
    cases
}

/// Who is connected to whom, and how.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The driver's side.
    pub driver: Driver,
    /// The device's side.
    pub device: Peer,
    /// What is between them.
    pub way: Way,
    /// The rings that the driver uses.
    pub ring: Ring,
    /// What is unusual.
    pub setting: Setting,
}

impl Row {
    fn case(self, story: Story) -> Case {
        const LIMIT: Duration = Duration::from_secs(180);
        let name = format!(
            "{}, {} on {}, {}, {}{}{}",
            self.driver.name(),
            self.kind().name(),
            self.device.name(),
            self.way.name(),
            self.ring.name(),
            self.setting.name(),
            story.name()
        );
        Case::new(name, LIMIT, move |lab| match story {
            Story::Work => self.work(lab),
            Story::DeviceRestarts => story::device_restarts(lab, &self),
            Story::BridgeRestarts => story::bridge_restarts(lab, &self),
            Story::DriverReturns => story::driver_returns(lab, &self),
            Story::Migrates => changes::migrates(lab, &self),
            Story::Grows => changes::grows(lab, &self),
            Story::FirmwareBoots => firmware::boots(lab, &self),
        })
    }

    fn work(self, lab: &Lab) -> Result<()> {
        let mut device = self.start_device(lab)?;
        let mut bridge = Bridged::start(lab, &self, &device)?;
        self.driver.drive(lab, &bridge.attach(&self), &device)?;
        if self.way == Way::Auto {
            bridge.says("mode=translate reason=the device does not follow the driver's IOMMU")?;
        }
        bridge.has_not_failed()?;
        device.daemons.first_mut().map_or(Ok(()), Daemon::has_not_failed)
    }

    /// The kind of device.
    pub fn kind(&self) -> Kind {
        self.device.kind()
    }

    /// Queues that a driver finds, pairs for a network card.
    fn queues(&self) -> u32 {
        match self.device {
            Peer::OwnPorts => 8,
            Peer::OwnConsole | Peer::OwnPty | Peer::OwnTerminal => 2,
            _ if self.setting == Setting::TwoQueues => 2,
            _ => 1,
        }
    }

    /// Starts the device's side.
    pub fn start_device(&self, lab: &Lab) -> Result<Device> {
        let needs = Needs { forward: self.driver.forward_mode(), setting: self.setting };
        let mut device = self.device.start(lab, &needs)?;
        if self.setting == Setting::InBand {
            device.address += ",in-band=on";
        }
        Ok(device)
    }

    /// The settings of the bridge.
    fn bridge_settings(&self, mode: &str) -> Vec<String> {
        let mut settings = vec![format!("mode={mode}")];
        if self.driver.takes_what_it_is_offered(self.kind()) {
            settings.push(format!("driver-ring={}", self.ring.name()));
        }
        if self.setting == Setting::Converted {
            settings.push(format!("ring={}", self.ring.other().name()));
        }
        if self.setting == Setting::Indirect {
            settings.push("indirect=on".into());
        }
        settings
    }
}

/// A device with or without viaduct before it.
pub struct Bridged {
    /// What a driver connects to.
    pub socket: PathBuf,
    viaduct: Option<Daemon>,
}

impl Bridged {
    /// Starts `viaduct bridge` before `device`, unless the way is direct.
    pub fn start(lab: &Lab, row: &Row, device: &Device) -> Result<Bridged> {
        let Some(mode) = row.way.mode() else {
            return Ok(Bridged { socket: device.socket.clone(), viaduct: None });
        };
        let socket = lab.path("bridge");
        let mut command = match device.network {
            Some(process) => lab.viaduct_in_network_of(process)?,
            None => lab.viaduct()?,
        };
        let iommu = match (row.setting.has_iommu(), row.driver.scheme()) {
            (true, "vhost-user") => ",iommu=on",
            _ => "",
        };
        let driver_end = format!("{}:{}{iommu}", row.driver.scheme(), socket.display());
        command.arg("bridge").arg(driver_end);
        command.arg(&device.address).args(row.bridge_settings(mode));
        let mut viaduct = match device.terminal() {
            Some(terminal) => lab.start_on_terminal("viaduct", &command, &terminal.theirs)?,
            None => lab.start("viaduct", command)?,
        };
        viaduct.listens_at(&socket)?;
        Ok(Bridged { socket, viaduct: Some(viaduct) })
    }

    /// What a driver connects to.
    pub fn attach(&self, row: &Row) -> Attach<'_> {
        // viaduct keeps the driver's connection whatever happens behind it. QEMU's other devices
        // do not wait for a connection that comes late, and fail.
        let kind = row.kind();
        let reconnects = self.viaduct.is_none() && matches!(kind, Kind::Block | Kind::Net);
        let (ring, setting) = (row.ring, row.setting);
        Attach { kind, socket: &self.socket, ring, setting, queues: row.queues(), reconnects }
    }

    /// Kills viaduct as a crash would; its socket stays.
    pub fn kill(&mut self) {
        if let Some(viaduct) = self.viaduct.take() {
            viaduct.kill();
        }
    }

    /// Whether viaduct has said `text`.
    fn says(&mut self, text: &str) -> Result<()> {
        self.viaduct.as_mut().map_or(Ok(()), |viaduct| viaduct.prints(text))
    }

    /// Sends viaduct a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.viaduct.as_ref().map_or(Ok(()), |viaduct| viaduct.signal(signal))
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
            Way::Auto => Some("auto"),
        }
    }
}

impl Ring {
    /// The other one.
    fn other(self) -> Ring {
        match self {
            Ring::Split => Ring::Packed,
            Ring::Packed => Ring::Split,
        }
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Ring::Split => "split",
            Ring::Packed => "packed",
        }
    }
}

impl Setting {
    /// How much a driver asks of a block or network device: more than a 16-bit index counts, where
    /// a request does not take a good part of a millisecond.
    pub fn requests(self) -> u32 {
        if self == Setting::Iommu { 4_000 } else { 70_000 }
    }

    /// Whether there is a virtual IOMMU.
    pub fn has_iommu(self) -> bool {
        matches!(self, Setting::IommuAtLength | Setting::Iommu)
    }

    /// For people; empty for the usual one.
    fn name(self) -> &'static str {
        match self {
            Setting::Usual => "",
            Setting::TwoQueues => ", two queues",
            Setting::OutOfOrder => ", out of order",
            Setting::Converted => ", the device sees the other format",
            Setting::IommuAtLength => ", virtual IOMMU, at length",
            Setting::Indirect => ", indirect",
            Setting::Iommu => ", virtual IOMMU",
            Setting::InBand => ", notified by message",
        }
    }
}
