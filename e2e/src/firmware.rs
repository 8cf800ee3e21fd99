//! A machine that starts from the device: firmware has virtio drivers of its own, small and old
//! fashioned, that poll and know no interrupts.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::guest::Guest;
use crate::lab::Lab;
use crate::peer::{DISK_BYTES, DISK_NAME, GUEST_ADDRESS, Kind};
use crate::row::{Bridged, Row};

/// Lets the firmware find its way over the device.
pub fn boots(lab: &Lab, row: &Row) -> Result<()> {
    let (kind, driver) = (row.kind(), row.driver);
    if kind == Kind::Block {
        make_boot_disk(lab)?;
    }
    let device = row.start_device(lab)?;
    let mut bridge = Bridged::start(lab, row, &device)?;
    let to = bridge.attach(row);
    match kind {
        Kind::Block => {
            let mut guest = driver.guest(lab, &to)?.by_firmware().boot()?;
            // The boot loader names the file it has loaded.
            guest.shell.run("grep BOOT_IMAGE=linux /proc/cmdline && test -b /dev/vda")?;
            guest.qemu.is_alive()?;
        }
        Kind::Net => {
            // As a program of the machine and not of the card, whatever ids the card has.
            let plan = driver.guest(lab, &to)?.by_firmware();
            let plan = plan.option("option-rom", "pxe-virtio.rom").option("boot", "n");
            let mut qemu = plan.power_on()?;
            // iPXE says so when it has got the address by DHCP.
            let words = format!("net0: {GUEST_ADDRESS}/");
            qemu.writes(&lab.path("guest.kernel.log"), &words)?;
        }
        _ => bail!("no firmware boots from {}", kind.name()),
    }
    bridge.has_not_failed()
}

/// A disk that is one FAT file system with a boot loader, a kernel and an initrd.
fn make_boot_disk(lab: &Lab) -> Result<()> {
    let disk = lab.path(DISK_NAME);
    let (kernel, initrd, words) = Guest::plan(lab, "6.12").boot_files()?;
    let config =
        format!("DEFAULT linux\nLABEL linux\nKERNEL linux\nINITRD initrd\nAPPEND {words}\n");
    let config = lab.write("syslinux.cfg", config.as_bytes())?;
    fs::File::create(&disk)?.set_len(DISK_BYTES as u64)?;
    let mut format = lab.program("mkfs.vfat")?;
    format.arg(&disk);
    lab.run("mkfs", format)?;
    let copies: [(&Path, &str); 3] =
        [(&kernel, "::/linux"), (&initrd, "::/initrd"), (&config, "::/syslinux.cfg")];
    for (from, to) in copies {
        let mut copy: Command = lab.program("mcopy")?;
        copy.arg("-i").arg(&disk).arg(from).arg(to);
        lab.run("mcopy", copy).with_context(|| format!("copy {}", from.display()))?;
    }
    let mut loader = lab.program("syslinux")?;
    loader.arg("--install").arg(&disk);
    lab.run("syslinux", loader).map(drop)
}
