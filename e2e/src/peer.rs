//! The device side: the daemons, and what a driver needs to know to test what they offer.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::daemon::Daemon;
use crate::lab::Lab;
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
            Peer::OwnDisk | Peer::OwnEntropy | Peer::OwnEcho => "built-in device",
        }
    }

    /// What it is.
    pub fn kind(self) -> Kind {
        match self {
            Peer::QemuStorageDaemon | Peer::OwnDisk => Kind::Block,
            Peer::Passt | Peer::Testpmd | Peer::OwnEcho => Kind::Net,
            Peer::Virtiofsd => Kind::Fs,
            Peer::VhostDeviceRng | Peer::OwnEntropy => Kind::Rng,
        }
    }

    /// Starts it in `lab` and waits until it listens. `forward` is what testpmd does with packets.
    pub fn start(self, lab: &Lab, forward: &str) -> Result<Device> {
        let socket = lab.path("device");
        // Left by one that was killed; testpmd refuses to listen there.
        let _ = std::fs::remove_file(&socket);
        let mut device = Device {
            socket: socket.clone(),
            address: String::new(),
            daemons: Vec::new(),
            iperf_port: 0,
            folder: lab.path("shared"),
        };
        let mut daemon = match self {
            Peer::QemuStorageDaemon => qemu_storage_daemon(lab, &socket),
            Peer::Passt => {
                let server = iperf_server(lab)?;
                let passt = passt(lab, &socket, &server);
                device.daemons.push(server);
                device.iperf_port = IPERF_PORT;
                passt
            }
            Peer::Testpmd => testpmd(lab, &socket, forward),
            Peer::Virtiofsd => virtiofsd(lab, &socket, &device.folder),
            Peer::VhostDeviceRng => {
                // It adds the number of the device to the name it is given.
                device.socket = lab.path("device0");
                vhost_device_rng(lab, &socket)
            }
            Peer::OwnDisk | Peer::OwnEntropy | Peer::OwnEcho => {
                device.address = self.own(lab)?;
                return Ok(device);
            }
        }?;
        daemon.listens_at(&device.socket)?;
        device.daemons.insert(0, daemon);
        let kind = self.kind().scheme();
        device.address = format!("vhost-user:{},type={kind}", device.socket.display());
        if self.kind() == Kind::Fs {
            // virtiofsd leaves the device's config to others.
            device.address += &format!(",tag={TAG}");
        }
        Ok(device)
    }

    /// The address of a built-in device.
    fn own(self, lab: &Lab) -> Result<String> {
        Ok(match self {
            Peer::OwnDisk => {
                format!("blk:path={}", disk(lab)?.display())
            }
            Peer::OwnEcho => "net:echo=on".into(),
            _ => format!("{}:", self.kind().scheme()),
        })
    }
}

/// The disk's image; a test may have made it with a content of its own.
fn disk(lab: &Lab) -> Result<PathBuf> {
    let path = lab.path(DISK_NAME);
    if path.exists() { Ok(path) } else { lab.image(DISK_NAME, DISK_BYTES, 1) }
}

fn qemu_storage_daemon(lab: &Lab, socket: &Path) -> Result<Daemon> {
    let disk = disk(lab)?;
    let mut command = lab.program("qemu-storage-daemon")?;
    let file = format!("driver=file,node-name=disk,filename={}", disk.display());
    let export = format!(
        "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=1,iothread=thread,\
         addr.type=unix,addr.path={}",
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

/// iperf3's own default.
const IPERF_PORT: u16 = 5201;

/// testpmd with one vhost port, forwarding in `mode`.
pub fn testpmd(lab: &Lab, socket: &Path, mode: &str) -> Result<Daemon> {
    let mut command = lab.program("dpdk-testpmd")?;
    command.args(EAL).args(["--file-prefix", &prefix(lab, "device")]);
    command.arg("--vdev").arg(format!("net_vhost0,iface={},queues=1", socket.display()));
    command.arg("--").arg(format!("--forward-mode={mode}")).args(TESTPMD);
    lab.start("testpmd", command)
}

/// DPDK's own options: no huge pages (its memory is then one shared memfd), no hardware, the idle
/// thread and the busy one on any processor.
pub const EAL: [&str; 6] =
    ["--no-huge", "-m256", "--no-pci", "--no-telemetry", "--lcores", "0@(0-1),1@(0-1)"];
/// testpmd's options: figures once a second.
pub const TESTPMD: [&str; 4] =
    ["--auto-start", "--stats-period=1", "--total-num-mbufs=8192", "--no-mlockall"];

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

fn vhost_device_rng(lab: &Lab, socket: &Path) -> Result<Daemon> {
    let mut command = lab.program("vhost-device-rng")?;
    command.arg("-s").arg(socket);
    lab.start("vhost-device-rng", command)
}
