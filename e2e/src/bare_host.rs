//! A guest that plays a machine without a hypervisor: viaduct runs inside, and the guest's own
//! kernel is the driver, by VDUSE.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::guest::{Guest, Plan};
use crate::lab::Lab;
use crate::runner::Case;

/// Everything is emulated here, the device too.
pub(crate) const LIMIT: Duration = Duration::from_secs(240);

/// For what is done many times.
pub(crate) const LONG: Duration = Duration::from_secs(1800);

/// What serves the disk.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Device {
    BuiltIn,
    QemuStorageDaemon,
}

/// The rows that are run each time, or `all`.
pub fn cases(all: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    if all {
        cases.extend(seldom());
    }
    for (kernel, admitted) in [("6.12", "net, blk"), ("7.2", "net, blk, fs")] {
        for mode in ["pass", "translate", "copy"] {
            cases.push(disk(kernel, Device::BuiltIn, mode));
        }
        for mode in ["pass", "copy"] {
            cases.push(disk(kernel, Device::QemuStorageDaemon, mode));
        }
        let name = format!("bare host {kernel}, a type that vduse refuses");
        cases.push(Case::new(name, LIMIT, move |lab| refused(lab, kernel, admitted)));
        for (what, script, programs) in SCRIPTS {
            let name = format!("bare host {kernel}, {what}");
            cases.push(Case::new(name, LIMIT, move |lab| serving(lab, kernel, script, programs)));
        }
    }
    for (kernel, served, daemon, device, mode) in CRASHES {
        let name = format!("bare host {kernel}, killed under load, {served}, {mode}");
        let crash = Crash { kernel, daemon, device, mode, rounds: KILLS };
        cases.push(Case::new(name, LIMIT, move |lab| crashes(lab, &crash)));
    }
    let name = "bare host 6.12, memory that can't be locked, qemu-storage-daemon";
    let locked = format!("daemon='{QSD}'\n{}", include_str!("../../guest/vduse-locked.sh"));
    let programs = &["fio", "setpriv", "qemu-storage-daemon"];
    cases.push(Case::new(name, LIMIT, move |lab| serving(lab, "6.12", &locked, programs)));
    let attach = include_str!("../../guest/attach.sh");
    let name = "bare host 6.12, viaduct attach, qemu-storage-daemon";
    let programs = &["setpriv", "qemu-storage-daemon"];
    cases.push(Case::new(name, LIMIT, move |lab| serving(lab, "6.12", attach, programs)));
    let name = "bare host 6.12, the vdpa device end on a vduse device, translate";
    cases.push(Case::new(name, LIMIT, |lab| chained(lab, "6.12", "translate")));
    let name = "bare host 6.12, two queues of a daemon, and a disk that grows";
    let queues = include_str!("../../guest/vduse-queues.sh");
    cases.push(Case::new(name, LIMIT, move |lab| {
        let plan = bare_host(lab, "6.12").processors(2).program("fio");
        script_on_bare_host(lab, plan, queues)
    }));
    let name = "bare host 6.12, a daemon that hangs can't keep its device, pass";
    cases.push(Case::new(name, LIMIT, |lab| hung(lab, "pass")));
    let name = "systemd takes the units of dist";
    cases.push(Case::new(name, Duration::from_secs(60), units));
    let fs = include_str!("../../guest/vduse-fs.sh");
    let name = "bare host 7.2, fs on virtiofsd by vduse, mode chosen by itself";
    cases.push(Case::new(name, LIMIT, move |lab| serving(lab, "7.2", fs, &["virtiofsd"])));
    cases.extend(crate::bare_peers::cases(all));
    cases
}

/// The rows of the long run only.
fn seldom() -> Vec<Case> {
    let mut cases = Vec::new();
    let probe = include_str!("../../guest/vduse-probe.sh");
    let name = "bare host 6.12, viaduct killed while the driver finds its device";
    cases.push(Case::new(name, LIMIT, move |lab| serving(lab, "6.12", probe, &[])));
    for kernel in ["6.12", "7.2"] {
        let name = format!("bare host {kernel}, the vdpa device end on a vduse device, all modes");
        let modes = "pass translate copy";
        cases.push(Case::new(name, LIMIT, move |lab| chained(lab, kernel, modes)));
    }
    let name = "bare host 6.12, libblkio and QEMU on a vduse device by vhost-vdpa";
    cases.push(Case::new(name, LIMIT, on_vhost_vdpa));
    let name = "bare host 6.12, a daemon that hangs can't keep its device, translate and copy";
    cases.push(Case::new(name, LIMIT, |lab| hung(lab, "translate copy")));
    for (kernel, served, daemon, device, mode) in CRASHES {
        let name = format!("bare host {kernel}, killed fifty times, {served}, {mode}");
        let crash = Crash { kernel, daemon, device, mode, rounds: 50 };
        cases.push(Case::new(name, LONG, move |lab| crashes(lab, &crash)));
    }
    let rounds = format!("rounds=100\n{}", include_str!("../../guest/vduse-rounds.sh"));
    let name = "bare host 6.12, a device comes and goes a hundred times beside a busy one";
    cases.push(Case::new(name, LONG, move |lab| {
        script_within(LONG, lab, bare_host(lab, "6.12"), &rounds).map(drop)
    }));
    cases
}

/// Sentences, scripts, and the programs of the root they need.
const SCRIPTS: &[(&str, &str, &[&str])] = &[
    (
        "a device comes and goes beside a busy one, and eight at once",
        include_str!("../../guest/vduse-rounds.sh"),
        &[],
    ),
    (
        "viaduct killed, its device replaced on request",
        include_str!("../../guest/vduse-killed.sh"),
        &[],
    ),
    ("a small bounce pool and a deep queue", include_str!("../../guest/vduse-bounce.sh"), &["fio"]),
    ("a network card that echoes", include_str!("../../guest/vduse-net.sh"), &["ping"]),
];

/// Rounds of a device that comes and goes; each takes half a second here.
const ROUNDS: u32 = 20;

/// Kernels, who serves, the daemon's command, the device end, and the mode that must be chosen.
const CRASHES: &[(&str, &str, &str, &str, &str)] = &[
    ("6.12", "viaduct's own disk", "", "blk:path=/tmp/disk.img", "pass"),
    ("6.12", "a daemon that records", OWN_DAEMON, "vhost-user:/tmp/disk.sock,type=blk", "pass"),
    ("6.12", "qemu-storage-daemon", QSD, "vhost-user:/tmp/disk.sock,type=blk", "translate"),
    ("7.2", "qemu-storage-daemon", QSD, "vhost-user:/tmp/disk.sock,type=blk mode=copy", "copy"),
];

pub(crate) const OWN_DAEMON: &str =
    "viaduct device blk --socket-path=/tmp/disk.sock path=/tmp/disk.img";

pub(crate) const QSD: &str = "qemu-storage-daemon \
    --blockdev driver=file,node-name=disk,filename=/tmp/disk.img \
    --export type=vhost-user-blk,id=export,node-name=disk,writable=on,\
addr.type=unix,addr.path=/tmp/disk.sock";

/// Kills of each of daemon, viaduct and both.
const KILLS: u32 = 5;

/// Who is killed how often.
struct Crash {
    kernel: &'static str,
    daemon: &'static str,
    device: &'static str,
    mode: &'static str,
    rounds: u32,
}

fn crashes(lab: &Lab, crash: &Crash) -> Result<()> {
    let Crash { kernel, daemon, device, mode, rounds } = *crash;
    let mut plan = bare_host(lab, kernel).program("fio");
    if daemon == QSD {
        plan = plan.program("qemu-storage-daemon");
    }
    let mut guest = plan.own_program(&lab.viaduct_path()?)?.boot()?;
    let functions = include_str!("../../guest/vduse-serve.sh");
    let script = include_str!("../../guest/vduse-crashes.sh");
    let values = format!("rounds={rounds}\ndaemon='{daemon}'\ndevice='{device}'\nmode={mode}\n");
    let script = format!(": vduse-crashes.sh\n{values}{functions}{script}");
    guest.shell.run_within(if rounds > KILLS { LONG } else { LIMIT }, &script)?;
    Ok(())
}

fn serving(lab: &Lab, kernel: &str, script: &str, programs: &[&str]) -> Result<()> {
    let plan = programs.iter().fold(bare_host(lab, kernel), |plan, name| plan.program(name));
    script_on_bare_host(lab, plan, script)
}

fn script_on_bare_host(lab: &Lab, plan: Plan<'_>, script: &str) -> Result<()> {
    script_within(LIMIT, lab, plan, &format!("rounds={ROUNDS}\n{script}")).map(drop)
}

/// Runs a script on a bare host; what it printed.
pub(crate) fn script_within(
    limit: Duration,
    lab: &Lab,
    plan: Plan<'_>,
    script: &str,
) -> Result<String> {
    let mut guest = plan.own_program(&lab.viaduct_path()?)?.boot()?;
    let functions = include_str!("../../guest/vduse-serve.sh");
    guest.shell.run_within(limit, &format!(": on a bare host\n{functions}{script}"))
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
    let mut plan = bare_host(lab, kernel).program("fio").program("mkfs.ext4");
    if device == Device::QemuStorageDaemon {
        plan = plan.program("qemu-storage-daemon");
    }
    let mut guest = plan.own_program(&lab.viaduct_path()?)?.boot()?;
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
    let plan = bare_host(lab, kernel);
    let mut guest = plan.own_program(&lab.viaduct_path()?)?.boot()?;
    let script = include_str!("../../guest/vduse-refused.sh");
    guest.shell.run(&format!(": vduse-refused.sh\nadmitted='{admitted}'\n{script}"))?;
    Ok(())
}

fn hung(lab: &Lab, modes: &str) -> Result<()> {
    let script = include_str!("../../guest/vduse-hung.sh");
    script_on_bare_host(lab, bare_host(lab, "6.12"), &format!("modes='{modes}'\n{script}"))
}

fn chained(lab: &Lab, kernel: &str, modes: &str) -> Result<()> {
    let plan = bare_host(lab, kernel).module("vhost_vdpa").program("fio");
    let script = include_str!("../../guest/vdpa.sh");
    script_on_bare_host(lab, plan, &format!("modes='{modes}'\n{script}"))
}

fn on_vhost_vdpa(lab: &Lab) -> Result<()> {
    let firmware = lab.root().file("/usr/share/seabios/bios-256k.bin");
    let plan = bare_host(lab, "6.12").module("vhost_vdpa").program("blkio-bench");
    let plan = plan.program("qemu-system-x86_64").own_program(&firmware)?.memory_mib(768);
    script_on_bare_host(lab, plan, include_str!("../../guest/vdpa-others.sh"))
}

/// The units as they are shipped, but for the program, which is not installed.
const UNITS: &[(&str, &str)] = &[
    ("viaduct@disk0.service", include_str!("../../dist/systemd/viaduct@.service")),
    ("viaduct-vduse@disk0.service", include_str!("../../dist/systemd/viaduct-vduse@.service")),
    ("viaduct-disk.service", include_str!("../../dist/systemd/viaduct-disk.service")),
    ("viaduct-disk.socket", include_str!("../../dist/systemd/viaduct-disk.socket")),
];

fn units(lab: &Lab) -> Result<()> {
    let program = "/usr/bin/viaduct";
    let write =
        |name: &str, text: &str| lab.write(name, text.replace(program, "/usr/bin/true").as_bytes());
    // They name one another.
    for (name, text) in UNITS {
        write(name, text)?;
    }
    let verify = |name: &str, text: &str| {
        let path = write(name, text)?;
        let mut command = lab.program("systemd-analyze")?;
        command.args(["--man=no", "verify"]).arg(path);
        lab.run("verify", command)
    };
    for (name, text) in UNITS {
        verify(name, text).with_context(|| format!("{name} is not good"))?;
    }
    let (name, text) = UNITS[1];
    ensure!(verify(name, &text.replace(program, "nothing here")).is_err(), "it takes anything");
    Ok(())
}

/// A machine whose devices go to `virtio_vdpa`, unless a module that comes later is asked for.
pub(crate) fn bare_host<'l>(lab: &'l Lab, kernel: &str) -> Plan<'l> {
    Guest::plan(lab, kernel).module("vduse").module("virtio_vdpa").memory_mib(512)
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
