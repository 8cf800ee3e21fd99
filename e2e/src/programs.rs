//! Drivers that are programs of their own: DPDK's virtio-user and libblkio.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::daemon::Daemon;
use crate::driver::Attach;
use crate::lab::Lab;
use crate::peer::{DISK_BYTES, EAL, TESTPMD, prefix, rx_and_tx_queues};
use crate::row::{Ring, Setting};

/// Sends packets and counts those that come back until the index of both rings has wrapped; the
/// other side is a testpmd that returns them.
pub fn virtio_user(lab: &Lab, to: &Attach<'_>) -> Result<()> {
    // 70,000 > 2^16, in each queue.
    let packets = 70_000 * u64::from(to.queues);
    let mut driver = testpmd(lab, to)?;
    wait_for_packets(&mut driver, packets, lab.deadline())?;
    no_errors(&driver)
}

/// testpmd that sends packets to the device at `to` and counts what comes back.
pub fn testpmd(lab: &Lab, to: &Attach<'_>) -> Result<Daemon> {
    let mut command = lab.program("dpdk-testpmd")?;
    command.args(EAL).args(["--file-prefix", &prefix(lab, "driver")]).arg("--vdev");
    command.arg(format!(
        "net_virtio_user0,path={},queues={},queue_size=256,packed_vq={},in_order={}",
        to.socket.display(),
        to.queues,
        u8::from(to.ring == Ring::Packed),
        u8::from(to.setting != Setting::OutOfOrder)
    ));
    command.args(["--", "--forward-mode=flowgen"]).args(TESTPMD);
    command.args(rx_and_tx_queues(to.queues));
    lab.start("virtio-user", command)
}

/// Waits until so many packets have come back.
pub fn wait_for_packets(testpmd: &mut Daemon, count: u64, deadline: Instant) -> Result<()> {
    let what = format!("get {count} packets back");
    testpmd.until(&what, deadline, |testpmd| packets_back(testpmd) >= count)
}

/// How many packets have come back.
pub fn packets_back(testpmd: &Daemon) -> u64 {
    figure(&testpmd.printed(), "RX-packets:").unwrap_or(0)
}

/// Whether no packet came back damaged.
pub fn no_errors(testpmd: &Daemon) -> Result<()> {
    let errors = figure(&testpmd.printed(), "RX-errors:");
    ensure!(errors == Some(0), "packets came back damaged: {errors:?}");
    Ok(())
}

/// The last value after `label` in testpmd's statistics.
fn figure(printed: &str, label: &str) -> Option<u64> {
    let after = printed.rsplit_once(label)?.1;
    after.split_whitespace().next()?.parse().ok()
}

/// Random reads and writes, deep and one by one.
pub fn blkio_bench(lab: &Lab, socket: &Path) -> Result<()> {
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
pub fn qemu_img(lab: &Lab, socket: &Path) -> Result<()> {
    let source = lab.image("source.img", DISK_BYTES, 3)?;
    lab.run("qemu-img", convert(lab, socket, &source, &[])?)?;
    compare(lab, socket, &source)?;
    let mut bench = lab.program("qemu-img")?;
    bench.args(["bench", "-c", "70000", "-d", "32", "-s", "4096", "--image-opts"]);
    bench.arg(through(socket));
    lab.run("qemu-img", bench).map(drop)
}

/// qemu-img that writes `source` to the disk at `socket`.
pub fn convert(lab: &Lab, socket: &Path, source: &Path, options: &[&str]) -> Result<Command> {
    let mut convert = lab.program("qemu-img")?;
    convert.args(["convert", "-n", "-f", "raw", "--target-image-opts"]).args(options);
    convert.arg(source).arg(through(socket));
    Ok(convert)
}

/// Compares `source` with the disk at `socket`.
pub fn compare(lab: &Lab, socket: &Path, source: &Path) -> Result<()> {
    let mut compare = lab.program("qemu-img")?;
    compare.args(["compare", "--image-opts"]).arg(through(socket));
    compare.arg(format!("driver=raw,file.driver=file,file.filename={}", source.display()));
    lab.run("qemu-img", compare).map(drop)
}

/// The disk at `socket`, in QEMU's words.
fn through(socket: &Path) -> String {
    format!("driver=virtio-blk-vhost-user,path={},cache.direct=on", socket.display())
}
