//! The driver side: who connects to a device's socket and uses it.

use std::path::Path;

use anyhow::{Result, bail};

use crate::architecture::Architecture;
use crate::guest::{Guest, Plan};
use crate::lab::Lab;
use crate::peer::{Device, Kind};
use crate::programs;
use crate::row::{Ring, Setting};
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
    /// What is unusual.
    pub setting: Setting,
    /// Queues there are, pairs for a network card.
    pub queues: u32,
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

    /// Whether it uses packed rings if and only if it is offered them. QEMU's generic device does,
    /// whatever is said to it; its other devices ask for what they are told to ask for.
    pub fn takes_what_it_is_offered(self, kind: Kind) -> bool {
        match self {
            Driver::VfioUser(_) | Driver::Unshared(_) | Driver::Uml => true,
            Driver::Guest(_) => matches!(kind, Kind::Console | Kind::Rng),
            _ => false,
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
        let (Driver::Guest(kernel) | Driver::VfioUser(kernel) | Driver::Unshared(kernel)) = self
        else {
            bail!("{} is no guest of QEMU", self.name());
        };
        let mut plan = Guest::plan(lab, kernel);
        match to.setting {
            Setting::TwoQueues => plan = plan.processors(2),
            // Before the device that goes through it.
            Setting::IommuAtLength | Setting::Iommu => {
                // Only VFIO has to hear of each page that is mapped. Without that Linux lets pages
                // go many at a time, which is how vhost-user is mostly used.
                let caching = on_off(!matches!(self, Driver::Guest(_)));
                plan = plan
                    .device(format!("intel-iommu,caching-mode={caching}"))
                    .append("intel_iommu=on iommu=nopt");
            }
            _ => {}
        }
        let plan = match self {
            Driver::Guest(_) => vhost_user_device(plan, to)?,
            Driver::VfioUser(_) => vfio_user_device(plan, to),
            _ => vfio_user_device(plan.without_shared_memory(), to),
        };
        if !Architecture::of(kernel).has_programs() {
            return Ok(plan);
        }
        Ok(work::programs(to.kind).iter().fold(plan, |plan, program| plan.program(program)))
    }

    /// Connects and does the work of the kind of device; `device` is what is behind.
    pub fn drive(self, lab: &Lab, to: &Attach<'_>, device: &Device) -> Result<()> {
        match self {
            Driver::Guest(kernel) | Driver::VfioUser(kernel) | Driver::Unshared(kernel) => {
                let mut guest = self.guest(lab, to)?.boot()?;
                work::check_agreement(&mut guest.shell, to)?;
                match Architecture::of(kernel).has_programs() {
                    true => work::exercise(&mut guest.shell, to, &NAMES, device)?,
                    false => work::exercise_plainly(&mut guest.shell, to.kind, &NAMES)?,
                }
                guest.qemu.is_alive()
            }
            Driver::Uml => {
                let mut uml = user_mode_linux(lab, to)?;
                work::check_agreement(&mut uml.shell, to)?;
                work::exercise(&mut uml.shell, to, &NAMES, device)?;
                uml.kernel.is_alive()
            }
            Driver::VirtioUser => programs::virtio_user(lab, to),
            Driver::Blkio => programs::blkio_bench(lab, to.socket),
            Driver::QemuImg => programs::qemu_img(lab, to.socket),
        }
    }
}

/// What guests call their only disk, or their only card.
const NAMES: Names = Names { disk: "/dev/vda", card: "eth0" };

/// QEMU's own vhost-user devices.
fn vhost_user_device<'l>(plan: Plan<'l>, to: &Attach<'_>) -> Result<Plan<'l>> {
    let again = if to.reconnects { ",reconnect-ms=100" } else { "" };
    let chardev = format!("socket,id=peer,path={}{again}", to.socket.display());
    let plan = plan.option("chardev", chardev);
    let queues = to.queues;
    let mut more = String::new();
    if to.ring == Ring::Packed {
        more += ",packed=on";
    }
    if to.setting.has_iommu() {
        more += ",iommu_platform=on";
        // The other types never had a legacy form.
        if matches!(to.kind, Kind::Block | Kind::Net) {
            more += ",disable-legacy=on";
        }
    }
    Ok(match to.kind {
        Kind::Block => {
            plan.device(format!("vhost-user-blk-pci,chardev=peer,num-queues={queues}{more}"))
        }
        Kind::Net => plan
            .option("netdev", format!("vhost-user,chardev=peer,id=net,queues={queues}"))
            .device(format!("virtio-net-pci,netdev=net,romfile=,mq={}{more}", on_off(queues > 1))),
        Kind::Fs => plan.device(format!("vhost-user-fs-pci,chardev=peer,tag={TAG}{more}")),
        // The generic device, because it takes any type.
        Kind::Console => plan.device(format!(
            "vhost-user-test-device-pci,chardev=peer,virtio-id=3,num_vqs={},vq_size=256,\
             config_size=12{more}",
            to.queues
        )),
        Kind::Rng => plan.device(format!(
            "vhost-user-test-device-pci,chardev=peer,virtio-id=4,num_vqs=1,vq_size=64,\
             config_size=0{more}"
        )),
    })
}

fn on_off(is_on: bool) -> &'static str {
    if is_on { "on" } else { "off" }
}

/// viaduct's PCI function behind a port of its own. QEMU takes the socket's address as JSON only.
fn vfio_user_device<'l>(plan: Plan<'l>, to: &Attach<'_>) -> Plan<'l> {
    plan.device("pcie-root-port,id=rp0,chassis=1").device(format!(
        r#"{{"driver":"vfio-user-pci","bus":"rp0","socket":{{"type":"unix","path":"{}"}}}}"#,
        to.socket.display()
    ))
}

/// User Mode Linux that has the device and the programs to work with it.
pub fn user_mode_linux(lab: &Lab, to: &Attach<'_>) -> Result<Uml> {
    let plan = Uml::plan(lab).device(to.socket, to.kind.device_id());
    let programs = work::programs(to.kind);
    programs.iter().fold(plan, |plan, program| plan.program(program)).boot()
}
