//! The driver side: who connects to a device's socket and uses it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::guest::{Guest, Plan};
use crate::lab::Lab;
use crate::peer::{DISK_BYTES, Device, EAL, Kind, TESTPMD, prefix};
use crate::row::Ring;
use crate::uml::Uml;
use crate::work::{self, Names, TAG};

/// What a driver connects to.
pub struct Attach<'a> {
    /// The kind of device there.
    pub kind: Kind,
    /// Where.
    pub socket: &'a Path,
    /// The format of the rings the driver is to use.
    pub ring: Ring,
    /// Whether QEMU is to connect again by itself when the other side goes.
    pub reconnects: bool,
}

/// Software that has a virtio driver.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Driver {
    /// A guest with this kernel whose QEMU speaks vhost-user.
    Guest(&'static str),
    /// A guest with this kernel whose QEMU has a `vfio-user-pci` device: only through viaduct.
    VfioUser(&'static str),
    /// The same with memory that cannot be shared.
    Unshared(&'static str),
    /// User Mode Linux with its own vhost-user driver.
    Uml,
    /// DPDK's virtio-user, in testpmd.
    VirtioUser,
    /// libblkio's benchmark.
    Blkio,
    /// QEMU's image tools on libblkio.
    QemuImg,
}

impl Driver {
    /// For people.
    pub fn name(self) -> String {
        match self {
            Driver::Guest(kernel) => format!("guest {kernel} vhost-user"),
            Driver::VfioUser(kernel) => format!("guest {kernel} vfio-user"),
            Driver::Unshared(kernel) => format!("guest {kernel} vfio-user, not shared"),
            Driver::Uml => "user mode linux".into(),
            Driver::VirtioUser => "dpdk virtio-user".into(),
            Driver::Blkio => "blkio-bench".into(),
            Driver::QemuImg => "qemu-img".into(),
        }
    }

    /// What a testpmd on the other side must do with packets.
    pub fn forward_mode(self) -> &'static str {
        match self {
            Driver::VirtioUser => "macswap",
            _ => "icmpecho",
        }
    }

    /// The kind of driver end that viaduct must offer it.
    pub fn scheme(self) -> &'static str {
        match self {
            Driver::VfioUser(_) | Driver::Unshared(_) => "vfio-user",
            _ => "vhost-user",
        }
    }

    /// A guest that has the device and the programs to work with it.
    pub fn guest<'l>(self, lab: &'l Lab, to: &Attach<'_>) -> Result<Plan<'l>> {
        let plan = match self {
            Driver::Guest(kernel) => vhost_user_device(Guest::plan(lab, kernel), to)?,
            Driver::VfioUser(kernel) => vfio_user_device(Guest::plan(lab, kernel), to),
            Driver::Unshared(kernel) => {
                vfio_user_device(Guest::plan(lab, kernel).without_shared_memory(), to)
            }
            _ => bail!("{} is no guest of QEMU", self.name()),
        };
        Ok(work::programs(to.kind).iter().fold(plan, |plan, program| plan.program(program)))
    }

    /// Connects and does the work of the kind of device; `device` is what is behind.
    pub fn drive(self, lab: &Lab, to: &Attach<'_>, device: &Device) -> Result<()> {
        match self {
            Driver::Guest(_) | Driver::VfioUser(_) | Driver::Unshared(_) => {
                let mut guest = self.guest(lab, to)?.boot()?;
                let names = Names { disk: "/dev/vda", card: "eth0" };
                work::exercise(&mut guest.shell, to.kind, &names, device)?;
                guest.qemu.is_alive()
            }
            Driver::Uml => user_mode_linux(lab, to, device),
            Driver::VirtioUser => virtio_user(lab, to),
            Driver::Blkio => blkio_bench(lab, to.socket),
            Driver::QemuImg => qemu_img(lab, to.socket),
        }
    }
}

/// QEMU's own vhost-user devices.
fn vhost_user_device<'l>(plan: Plan<'l>, to: &Attach<'_>) -> Result<Plan<'l>> {
    let again = if to.reconnects { ",reconnect-ms=100" } else { "" };
    let chardev = format!("socket,id=peer,path={}{again}", to.socket.display());
    let plan = plan.option("chardev", chardev);
    let packed = if to.ring == Ring::Packed { ",packed=on" } else { "" };
    Ok(match to.kind {
        Kind::Block => plan.device(format!("vhost-user-blk-pci,chardev=peer,num-queues=1{packed}")),
        Kind::Net => plan
            .option("netdev", "vhost-user,chardev=peer,id=net")
            .device(format!("virtio-net-pci,netdev=net,romfile={packed}")),
        Kind::Fs => plan.device(format!("vhost-user-fs-pci,chardev=peer,tag={TAG}{packed}")),
        // The generic device, because it takes any type.
        Kind::Rng => plan.device(format!(
            "vhost-user-test-device-pci,chardev=peer,virtio-id=4,num_vqs=1,vq_size=64,\
             config_size=0{packed}"
        )),
        Kind::Console => bail!("QEMU has no vhost-user console"),
    })
}

/// viaduct's PCI function behind a port of its own. QEMU takes the socket's address as JSON only.
fn vfio_user_device<'l>(plan: Plan<'l>, to: &Attach<'_>) -> Plan<'l> {
    plan.device("pcie-root-port,id=rp0,chassis=1").device(format!(
        r#"{{"driver":"vfio-user-pci","bus":"rp0","socket":{{"type":"unix","path":"{}"}}}}"#,
        to.socket.display()
    ))
}

fn user_mode_linux(lab: &Lab, to: &Attach<'_>, device: &Device) -> Result<()> {
    let mut plan = Uml::plan(lab).device(to.socket, to.kind.device_id());
    for program in work::programs(to.kind) {
        plan = plan.program(program);
    }
    let mut uml = plan.boot()?;
    let names = Names { disk: "/dev/vda", card: "eth0" };
    work::exercise(&mut uml.shell, to.kind, &names, device)?;
    uml.kernel.is_alive()
}

/// Sends packets and counts those that come back until the index of both rings has wrapped; the
/// other side is a testpmd that returns them.
fn virtio_user(lab: &Lab, to: &Attach<'_>) -> Result<()> {
    const PACKETS: u64 = 70_000;
    let packed = u8::from(to.ring == Ring::Packed);
    let mut command = lab.program("dpdk-testpmd")?;
    command.args(EAL).args(["--file-prefix", &prefix(lab, "driver")]).arg("--vdev");
    command.arg(format!(
        "net_virtio_user0,path={},queues=1,queue_size=256,packed_vq={packed}",
        to.socket.display()
    ));
    command.args(["--", "--forward-mode=flowgen"]).args(TESTPMD);
    let mut driver = lab.start("virtio-user", command)?;
    while figure(&driver.printed(), "RX-packets:").unwrap_or(0) < PACKETS {
        if let Some(status) = driver.ended_within(Duration::from_millis(200))? {
            bail!("testpmd ended early ({status})");
        }
        ensure!(std::time::Instant::now() < lab.deadline(), "too few packets came back");
    }
    let printed = driver.printed();
    let errors = figure(&printed, "RX-errors:");
    ensure!(errors == Some(0), "packets came back damaged: {errors:?}");
    Ok(())
}

/// The last value after `label` in testpmd's statistics.
fn figure(printed: &str, label: &str) -> Option<u64> {
    let after = printed.rsplit_once(label)?.1;
    after.split_whitespace().next()?.parse().ok()
}

fn blkio_bench(lab: &Lab, socket: &Path) -> Result<()> {
    for (mode, depth) in [("randread", 32), ("randwrite", 32), ("randread", 1)] {
        let mut command = lab.program("blkio-bench")?;
        command.args(["--runtime=2", "--readwrite"]).arg(mode);
        command.arg(format!("--iodepth={depth}")).arg("virtio-blk-vhost-user");
        command.arg(format!("path={}", socket.display()));
        lab.run("blkio-bench", command)?;
    }
    Ok(())
}

/// Writes an image through the device, compares all of it, and asks for more requests than the
/// index counts.
fn qemu_img(lab: &Lab, socket: &Path) -> Result<()> {
    let disk = format!("driver=virtio-blk-vhost-user,path={},cache.direct=on", socket.display());
    let source = lab.image("source.img", DISK_BYTES, 3)?;
    let mut convert = lab.program("qemu-img")?;
    convert.args(["convert", "-n", "-f", "raw", "--target-image-opts"]).arg(&source).arg(&disk);
    lab.run("qemu-img", convert)?;
    let mut compare = lab.program("qemu-img")?;
    compare.args(["compare", "--image-opts"]).arg(&disk);
    compare.arg(format!("driver=raw,file.driver=file,file.filename={}", source.display()));
    lab.run("qemu-img", compare)?;
    let mut bench = lab.program("qemu-img")?;
    bench.args(["bench", "-c", "70000", "-d", "32", "-s", "4096", "--image-opts"]).arg(&disk);
    lab.run("qemu-img", bench).map(drop)
}
