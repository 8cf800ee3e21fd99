//! The device side: the daemons, and what a driver needs to know to test what they offer.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::console::{Place, Port, Terminal};
use crate::daemon::Daemon;
use crate::lab::Lab;
use crate::row::Setting;
use crate::work::TAG;

/// A vhost-user daemon.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Peer {
    /// QEMU's block daemon on a file.
    QemuStorageDaemon,
    /// User-space networking to the host's own addresses.
    Passt,
    /// DPDK's testpmd as a device that answers ARP and pings.
    Testpmd,
    /// The reference file system daemon.
    Virtiofsd,
    /// rust-vmm's entropy daemon.
    VhostDeviceRng,
    /// viaduct's own disk, on a file.
    OwnDisk,
    /// viaduct's own source of entropy.
    OwnEntropy,
    /// viaduct's own disk as a daemon of its own.
    DiskDaemon,
    /// viaduct's own network card as a daemon of its own.
    EchoDaemon,
    /// viaduct's own console at a socket.
    OwnConsole,
    /// The same with two further ports that have names.
    OwnPorts,
    /// viaduct's own console at a pseudo-terminal that it makes.
    OwnPty,
    /// viaduct's own console at the terminal on which it runs.
    OwnTerminal,
    /// viaduct's own network card on a tap interface of the host's kernel.
    OwnTap,
    /// viaduct's own network card, which sends back what it is sent.
    OwnEcho,
}

/// What kind of device it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Block.
    Block,
    /// Network card.
    Net,
    /// Entropy.
    Rng,
    /// File system.
    Fs,
    /// Console.
    Console,
}

impl Kind {
    /// VIRTIO 1.3, 5: device id.
    pub fn device_id(self) -> u32 {
        match self {
            Kind::Net => 1,
            Kind::Block => 2,
            Kind::Console => 3,
            Kind::Rng => 4,
            Kind::Fs => 26,
        }
    }

    /// The word in addresses.
    pub fn scheme(self) -> &'static str {
        match self {
            Kind::Block => "blk",
            Kind::Net => "net",
            Kind::Rng => "rng",
            Kind::Fs => "fs",
            Kind::Console => "console",
        }
    }

    /// The word for people.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Block => "block",
            Kind::Net => "net",
            Kind::Rng => "entropy",
            Kind::Fs => "fs",
            Kind::Console => "console",
        }
    }
}

/// A daemon that runs, and what it needs beside it.
pub struct Device {
    /// Where it listens; built-in devices do not.
    pub socket: PathBuf,
    /// The device end of viaduct that reaches it.
    pub address: String,
    /// The processes; the first is the daemon, if there is one.
    pub daemons: Vec<Daemon>,
    /// For a network card: the port of an iperf3 server behind it, 0 = none.
    pub iperf_port: u16,
    /// For a file system: the folder on the host.
    pub folder: PathBuf,
    /// A process in whose network viaduct is to run, if that matters.
    pub network: Option<u32>,
    /// For a console: its ports.
    pub ports: Vec<Port>,
}

impl Device {
    /// The terminal that viaduct is to run on, if it needs one.
    pub fn terminal(&self) -> Option<&Terminal> {
        self.ports.iter().find_map(|port| match &port.place {
            Place::Own(terminal) => Some(terminal),
            _ => None,
        })
    }
}

/// What the driver's side needs of a device.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// What testpmd does with packets.
    pub forward: &'static str,
    /// What is unusual.
    pub setting: Setting,
}

impl Default for Needs {
    fn default() -> Self {
        Needs { forward: "icmpecho", setting: Setting::Usual }
    }
}

impl Needs {
    /// Queues, or pairs of them.
    pub fn queues(&self) -> u32 {
        if self.setting == Setting::TwoQueues { 2 } else { 1 }
    }
}

/// The disk's size: room for a file system, small enough to be made in no time.
pub const DISK_BYTES: usize = 64 << 20;

/// The name of its image in the test's folder.
pub const DISK_NAME: &str = "disk.img";

/// The guest's address. It and the next are what passt gives out where there is no other network.
pub const GUEST_ADDRESS: &str = "169.254.2.1";
/// The address that answers.
pub const PEER_ADDRESS: &str = "169.254.2.2";

impl Peer {
    /// The program's name.
    pub fn name(self) -> &'static str {
        match self {
            Peer::QemuStorageDaemon => "qemu-storage-daemon",
            Peer::Passt => "passt",
            Peer::Testpmd => "testpmd",
            Peer::Virtiofsd => "virtiofsd",
            Peer::VhostDeviceRng => "vhost-device-rng",
            Peer::DiskDaemon | Peer::EchoDaemon => "viaduct device",
            Peer::OwnTap => "built-in device on a tap",
            Peer::OwnPorts => "built-in device with ports",
            Peer::OwnPty => "built-in device at a pty",
            Peer::OwnTerminal => "built-in device at a terminal",
            Peer::OwnDisk | Peer::OwnEntropy | Peer::OwnEcho | Peer::OwnConsole => {
                "built-in device"
            }
        }
    }

    /// What it is.
    pub fn kind(self) -> Kind {
        match self {
            Peer::QemuStorageDaemon | Peer::OwnDisk | Peer::DiskDaemon => Kind::Block,
            Peer::Passt | Peer::Testpmd | Peer::OwnEcho | Peer::EchoDaemon | Peer::OwnTap => {
                Kind::Net
            }
            Peer::Virtiofsd => Kind::Fs,
            Peer::VhostDeviceRng | Peer::OwnEntropy => Kind::Rng,
            Peer::OwnConsole | Peer::OwnPorts | Peer::OwnPty | Peer::OwnTerminal => Kind::Console,
        }
    }

    /// Starts it in `lab` and waits until it listens.
    pub fn start(self, lab: &Lab, needs: &Needs) -> Result<Device> {
        let socket = lab.path("device");
        // Left by one that was killed; testpmd refuses to listen there.
        let _ = std::fs::remove_file(&socket);
        let mut device = Device {
            socket: socket.clone(),
            address: String::new(),
            daemons: Vec::new(),
            iperf_port: 0,
            folder: lab.path("shared"),
            network: None,
            ports: self.ports(lab)?,
        };
        let mut daemon = match self {
            Peer::QemuStorageDaemon => qemu_storage_daemon(lab, &socket, needs.queues()),
            Peer::Passt => {
                let server = iperf_server(lab)?;
                let passt = passt(lab, &socket, &server);
                device.daemons.push(server);
                device.iperf_port = IPERF_PORT;
                passt
            }
            Peer::Testpmd => testpmd(lab, &socket, needs),
            Peer::Virtiofsd => virtiofsd(lab, &socket, &device.folder),
            Peer::VhostDeviceRng => {
                // It adds the number of the device to the name it is given.
                device.socket = lab.path("device0");
                vhost_device_rng(lab, &socket)
            }
            Peer::DiskDaemon | Peer::EchoDaemon => viaduct_device(lab, self, &socket, needs),
            Peer::OwnTap => {
                let server = tap_server(lab, needs.queues())?;
                device.iperf_port = IPERF_PORT;
                device.network = Some(server.id());
                device.daemons.push(server);
                device.address = self.own(lab, needs)?;
                return Ok(device);
            }
            _ => {
                device.address = self.own(lab, needs)?;
                return Ok(device);
            }
        }?;
        daemon.listens_at(&device.socket)?;
        device.daemons.insert(0, daemon);
        let kind = self.kind().scheme();
        device.address = format!("vhost-user:{},type={kind}", device.socket.display());
        if needs.queues() > 1 && self.kind() == Kind::Net {
            device.address += &format!(",queues={}", needs.queues());
        }
        if self.kind() == Kind::Fs {
            // virtiofsd leaves the device's config to others.
            device.address += &format!(",tag={TAG}");
        }
        Ok(device)
    }

    /// The address of a built-in device.
    fn own(self, lab: &Lab, needs: &Needs) -> Result<String> {
        let queues = needs.queues();
        Ok(match self {
            Peer::OwnDisk => format!("blk:path={},queues={queues}", disk(lab)?.display()),
            Peer::OwnEcho => format!("net:echo=on,queues={queues}"),
            Peer::OwnTap => format!("net:tap=tap0,queues={queues}"),
            Peer::OwnConsole => format!("console:socket={}", lab.path("console").display()),
            Peer::OwnPorts => format!(
                "console:socket={},port-dir={},ports=one:two",
                lab.path("console").display(),
                lab.path("").display()
            ),
            Peer::OwnPty => format!("console:pty=on,link={}", lab.path("console").display()),
            Peer::OwnTerminal => "console:stdio=on".into(),
            _ => format!("{}:", self.kind().scheme()),
        })
    }

    /// The ports of a console.
    fn ports(self, lab: &Lab) -> Result<Vec<Port>> {
        let console = lab.path("console");
        let named = |name| Port { name, place: Place::Socket(lab.path(name)) };
        let first = match self {
            Peer::OwnConsole | Peer::OwnPorts => Place::Socket(console),
            Peer::OwnPty => Place::Terminal(console),
            Peer::OwnTerminal => Place::Own(Terminal::new()?),
            _ => return Ok(Vec::new()),
        };
        let mut ports = vec![Port { name: "", place: first }];
        if self == Peer::OwnPorts {
            ports.extend([named("one"), named("two")]);
        }
        Ok(ports)
    }
}

/// The disk's image; a test may have made it with a content of its own.
fn disk(lab: &Lab) -> Result<PathBuf> {
    let path = lab.path(DISK_NAME);
    if path.exists() { Ok(path) } else { lab.image(DISK_NAME, DISK_BYTES, 1) }
}

fn qemu_storage_daemon(lab: &Lab, socket: &Path, queues: u32) -> Result<Daemon> {
    let disk = disk(lab)?;
    let mut command = lab.program("qemu-storage-daemon")?;
    let file = format!("driver=file,node-name=disk,filename={}", disk.display());
    let export = format!(
        "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues={queues},\
         iothread=thread,addr.type=unix,addr.path={}",
        socket.display()
    );
    command.args(["--object", "iothread,id=thread", "--blockdev"]).arg(file);
    command.arg("--export").arg(export);
    lab.start("qemu-storage-daemon", command)
}

/// passt in the network namespace of `server`, whose loopback is then what a guest reaches.
fn passt(lab: &Lab, socket: &Path, server: &Daemon) -> Result<Daemon> {
    let mut command = lab.program("nsenter")?;
    command.arg(format!("--net=/proc/{}/ns/net", server.id())).arg("passt");
    command.args(["--vhost-user", "--foreground", "--runas", "0:0", "-4"]);
    command.args(["-t", "none", "-u", "none"]);
    command.arg("--socket").arg(socket);
    lab.start("passt", command)
}

/// An iperf3 server in a network namespace of its own: every test has all ports to itself, and
/// nobody outside sees a packet. Programs may send pings in there.
fn iperf_server(lab: &Lab) -> Result<Daemon> {
    const SETUP: &str = "ip link set lo up
        echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range
        exec iperf3 -s -B 127.0.0.1 --forceflush -p \"$0\"";
    let mut command = lab.program("unshare")?;
    command.args(["--net", "sh", "-euc", SETUP]).arg(IPERF_PORT.to_string());
    let mut server = lab.start("iperf3", command)?;
    server.prints("Server listening")?;
    Ok(server)
}

/// The same where a guest reaches it over a tap interface.
fn tap_server(lab: &Lab, queues: u32) -> Result<Daemon> {
    const SETUP: &str = "ip link set lo up
        ip tuntap add dev tap0 mode tap $2
        ip address add \"$1/24\" dev tap0
        ip link set tap0 up
        exec iperf3 -s --forceflush -p \"$0\"";
    let mut command = lab.program("unshare")?;
    command.args(["--net", "sh", "-euc", SETUP]).arg(IPERF_PORT.to_string()).arg(PEER_ADDRESS);
    command.arg(if queues > 1 { "multi_queue" } else { "" });
    let mut server = lab.start("iperf3", command)?;
    server.prints("Server listening")?;
    Ok(server)
}

/// iperf3's own default.
const IPERF_PORT: u16 = 5201;

/// testpmd with one vhost port.
fn testpmd(lab: &Lab, socket: &Path, needs: &Needs) -> Result<Daemon> {
    let (mode, queues) = (needs.forward, needs.queues());
    let iommu = if needs.setting.has_iommu() { ",iommu-support=1" } else { "" };
    let mut command = lab.program("dpdk-testpmd")?;
    command.args(EAL).args(["--file-prefix", &prefix(lab, "device")]);
    command
        .arg("--vdev")
        .arg(format!("net_vhost0,iface={},queues={queues}{iommu}", socket.display()));
    command.arg("--").arg(format!("--forward-mode={mode}")).args(TESTPMD);
    command.args(rx_and_tx_queues(queues));
    lab.start("testpmd", command)
}

/// DPDK's own options: no huge pages (its memory is then one shared memfd), no hardware, the idle
/// thread and the busy one on any processor.
pub const EAL: [&str; 6] =
    ["--no-huge", "-m256", "--no-pci", "--no-telemetry", "--lcores", "0@(0-1),1@(0-1)"];
/// testpmd's options: figures once a second.
pub const TESTPMD: [&str; 4] =
    ["--auto-start", "--stats-period=1", "--total-num-mbufs=8192", "--no-mlockall"];

/// testpmd's options for so many queues a way.
pub fn rx_and_tx_queues(queues: u32) -> [String; 2] {
    [format!("--rxq={queues}"), format!("--txq={queues}")]
}

/// A name for DPDK's runtime files that no other process uses.
pub fn prefix(lab: &Lab, role: &str) -> String {
    format!("{}-{role}", lab.path("").file_name().unwrap_or_default().to_string_lossy())
}

fn virtiofsd(lab: &Lab, socket: &Path, folder: &Path) -> Result<Daemon> {
    std::fs::create_dir_all(folder)?;
    std::fs::copy(lab.image("host-file", 300_000, 2)?, folder.join("host-file"))?;
    let mut sum = Command::new("sha256sum");
    sum.arg("host-file").current_dir(folder).stdout(File::create(folder.join("sums-of-host"))?);
    ensure!(sum.status().context("start sha256sum")?.success(), "sha256sum failed");
    let mut command = lab.program("virtiofsd")?;
    command.args(["--sandbox", "none", "--socket-path"]).arg(socket);
    command.arg("--shared-dir").arg(folder);
    lab.start("virtiofsd", command)
}

/// `viaduct device`, as a daemon.
fn viaduct_device(lab: &Lab, peer: Peer, socket: &Path, needs: &Needs) -> Result<Daemon> {
    let mut command = lab.viaduct()?;
    command.args(["device", peer.kind().scheme(), "--socket-path"]).arg(socket);
    match peer {
        Peer::DiskDaemon => command.arg("--blk-file").arg(disk(lab)?),
        _ => command.arg("echo=on"),
    };
    command.arg(format!("queues={}", needs.queues()));
    lab.start("viaduct-device", command)
}

fn vhost_device_rng(lab: &Lab, socket: &Path) -> Result<Daemon> {
    let mut command = lab.program("vhost-device-rng")?;
    command.arg("-s").arg(socket);
    lab.start("vhost-device-rng", command)
}
