//! A guest that plays a machine without a hypervisor: viaduct runs inside, and the guest's own
//! kernel is the driver, by VDUSE.

use std::time::Duration;

use anyhow::Result;

use crate::guest::Guest;
use crate::lab::Lab;
use crate::runner::Case;

/// Everything is emulated here, the device too.
const LIMIT: Duration = Duration::from_secs(240);

/// What serves the disk.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Device {
    BuiltIn,
    QemuStorageDaemon,
}

/// The rows.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (kernel, admitted) in [("6.12", "net, blk"), ("7.2", "net, blk, fs")] {
        for mode in ["pass", "translate", "copy"] {
            cases.push(disk(kernel, Device::BuiltIn, mode));
        }
        for mode in ["pass", "copy"] {
            cases.push(disk(kernel, Device::QemuStorageDaemon, mode));
        }
        let name = format!("bare host {kernel}, a type that vduse refuses");
        cases.push(Case::new(name, LIMIT, move |lab| refused(lab, kernel, admitted)));
    }
    cases
}

fn disk(kernel: &'static str, device: Device, mode: &'static str) -> Case {
    let served_by = match device {
        Device::BuiltIn => "built-in device",
        Device::QemuStorageDaemon => "qemu-storage-daemon",
    };
    let name = format!("bare host {kernel}, block on {served_by} by vduse, {mode}");
    Case::new(name, LIMIT, move |lab| block(lab, kernel, device, mode))
}

fn block(lab: &Lab, kernel: &str, device: Device, mode: &str) -> Result<()> {
    let mut plan = Guest::plan(lab, kernel).program("fio").program("mkfs.ext4");
    if device == Device::QemuStorageDaemon {
        plan = plan.program("qemu-storage-daemon");
    }
    let mut guest = on_bare_host(plan).own_program(&lab.viaduct_path()?)?.boot()?;
    let address = match device {
        Device::BuiltIn => "blk:ram=32M",
        Device::QemuStorageDaemon => {
            guest.shell.run(START_DAEMON)?;
            "vhost-user:/tmp/qsd.sock,type=blk"
        }
    };
    let script = include_str!("../../guest/vduse-block.sh");
    let values = format!("disk=/dev/vda\nmode={mode}\nbridge='{address} mode={mode}'\n");
    guest.shell.run_within(LIMIT, &format!(": vduse-block.sh\n{values}{script}"))?;
    Ok(())
}

fn refused(lab: &Lab, kernel: &str, admitted: &str) -> Result<()> {
    let plan = on_bare_host(Guest::plan(lab, kernel));
    let mut guest = plan.own_program(&lab.viaduct_path()?)?.boot()?;
    let script = include_str!("../../guest/vduse-refused.sh");
    guest.shell.run(&format!(": vduse-refused.sh\nadmitted='{admitted}'\n{script}"))?;
    Ok(())
}

fn on_bare_host(plan: crate::guest::Plan<'_>) -> crate::guest::Plan<'_> {
    plan.module("vduse").module("virtio_vdpa").memory_mib(512)
}

/// The storage daemon on a file in memory, as it is documented; waits until it listens.
const START_DAEMON: &str = "set -eu
    truncate -s 32M /tmp/disk.img
    setsid qemu-storage-daemon \
        --blockdev driver=file,node-name=disk,filename=/tmp/disk.img \
        --export type=vhost-user-blk,id=export,node-name=disk,writable=on,\
addr.type=unix,addr.path=/tmp/qsd.sock >/tmp/qsd.log 2>&1 </dev/null &
    pid=$!
    until test -S /tmp/qsd.sock; do
        sleep 0.1
        kill -0 $pid || { cat /tmp/qsd.log; exit 1; }
    done";
