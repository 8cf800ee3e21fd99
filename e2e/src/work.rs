//! What a driver does with a device to say that it works. The scripts run in the guest; each fails
//! on the first wrong byte.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::console::{self, SIZES};
use crate::driver::Attach;
use crate::peer::{Device, GUEST_ADDRESS, Kind, PEER_ADDRESS};
use crate::row::{Ring, Setting};
use crate::shell::Shell;

/// The tag of the shared file system.
pub const TAG: &str = "shared";

/// Time for one script: all work takes seconds on a free machine.
const LIMIT: Duration = Duration::from_secs(150);

/// Programs of the root that the work on a kind of device needs in the guest.
pub fn programs(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Block => &["fio", "mkfs.ext4"],
        Kind::Net => &["iperf3", "ping"],
        Kind::Rng | Kind::Fs | Kind::Console => &[],
    }
}

/// Names that a guest gives to its devices.
pub struct Names {
    /// The disk.
    pub disk: &'static str,
    /// The network card.
    pub card: &'static str,
}

/// Does the work of the kind of device in the guest behind `shell`; `device` is what it is
/// connected to.
pub fn exercise(shell: &mut Shell, to: &Attach<'_>, names: &Names, device: &Device) -> Result<()> {
    let requests = to.setting.requests();
    match to.kind {
        Kind::Block => block(shell, names.disk, requests),
        Kind::Net => net(shell, names.card, device.iperf_port, requests),
        Kind::Rng => script(shell, "rng.sh", include_str!("../../guest/rng.sh"), &[]),
        Kind::Fs => fs(shell, device),
        Kind::Console => console(shell, device),
    }
}

/// The same in a guest with busybox and nothing else.
pub fn exercise_plainly(shell: &mut Shell, kind: Kind, names: &Names) -> Result<()> {
    match kind {
        Kind::Block => {
            let text = include_str!("../../guest/plain-block.sh");
            script(shell, "plain-block.sh", text, &[("disk", names.disk)])
        }
        Kind::Net => {
            let text = include_str!("../../guest/plain-net.sh");
            let values = [("card", names.card), ("address", GUEST_ADDRESS), ("peer", PEER_ADDRESS)];
            script(shell, "plain-net.sh", text, &values)
        }
        Kind::Rng => script(shell, "rng.sh", include_str!("../../guest/rng.sh"), &[]),
        Kind::Fs | Kind::Console => bail!("no plain work for {}", kind.name()),
    }
}

/// Checks what driver and device have agreed on: the format of the rings and what is unusual.
pub fn check_agreement(shell: &mut Shell, to: &Attach<'_>) -> Result<()> {
    let packed = u8::from(to.ring == Ring::Packed).to_string();
    let is = |setting| if to.setting == setting { "1" } else { "0" };
    let values = [
        ("packed", packed.as_str()),
        ("iommu", if to.setting.has_iommu() { "1" } else { "0" }),
        ("two_queues", is(Setting::TwoQueues)),
        ("indirect", is(Setting::Indirect)),
    ];
    script(shell, "agreement.sh", include_str!("../../guest/agreement.sh"), &values)
}

/// Writes verified, so many requests, a file system, the driver unbound and back.
fn block(shell: &mut Shell, disk: &str, requests: u32) -> Result<()> {
    let values = [("disk", disk), ("requests", &requests.to_string())];
    script(shell, "block.sh", include_str!("../../guest/block.sh"), &values)
}

/// Pings, streams both ways and so many packets.
fn net(shell: &mut Shell, card: &str, iperf_port: u16, requests: u32) -> Result<()> {
    let values = [
        ("card", card),
        ("address", GUEST_ADDRESS),
        ("peer", PEER_ADDRESS),
        ("port", &iperf_port.to_string()),
        ("requests", &requests.to_string()),
    ];
    script(shell, "net.sh", include_str!("../../guest/net.sh"), &values)
}

fn fs(shell: &mut Shell, device: &Device) -> Result<()> {
    script(shell, "fs.sh", include_str!("../../guest/fs.sh"), &[("tag", TAG)])?;
    let mut check = Command::new("sha256sum");
    check.args(["--check", "--quiet", "sums-of-guest"]).current_dir(&device.folder);
    ensure!(check.status()?.success(), "the host sees other bytes than the guest wrote");
    Ok(())
}

/// Starts the load that a device must carry while something is done to it.
pub fn start_load(shell: &mut Shell, kind: Kind) -> Result<()> {
    const RATE: &str = "800";
    match kind {
        Kind::Block => {
            let text = include_str!("../../guest/load-block.sh");
            script(shell, "load-block.sh", text, &[("disk", "/dev/vda"), ("rate", RATE)])
        }
        Kind::Net => {
            let text = include_str!("../../guest/load-net.sh");
            let values = [("card", "eth0"), ("address", GUEST_ADDRESS), ("peer", PEER_ADDRESS)];
            script(shell, "load-net.sh", text, &values)?;
            load_goes_on(shell, kind)
        }
        Kind::Rng | Kind::Fs | Kind::Console => bail!("no load for {}", kind.name()),
    }
}

/// Waits until the load makes progress: what was asked since is answered.
pub fn load_goes_on(shell: &mut Shell, kind: Kind) -> Result<()> {
    match kind {
        // One request that goes past the page cache; the ring is in order enough to wait behind.
        Kind::Block => script(
            shell,
            "a read while the load runs",
            "dd if=/dev/vda of=/dev/null bs=4096 count=64 iflag=direct",
            &[],
        ),
        _ => {
            let text = include_str!("../../guest/answers.sh");
            script(shell, "answers.sh", text, &[("card", "eth0"), ("more", "500")])
        }
    }
}

/// Reads a part of the disk that the load leaves alone, over and over, until
/// [`end_reading`]: what is read is different memory each time, and must be the same bytes.
pub fn start_reading(shell: &mut Shell, kind: Kind) -> Result<()> {
    let text = "(until test -e /tmp/read.stop; do
            dd if=/dev/vda bs=1M skip=32 count=8 iflag=direct 2>/dev/null | sha256sum
        done >/tmp/read.sums; touch /tmp/read.done) </dev/null >/dev/null 2>&1 &
        until test -s /tmp/read.sums; do sleep 0.05; done";
    if kind == Kind::Block { script(shell, "reading starts", text, &[]) } else { Ok(()) }
}

/// Ends what [`start_reading`] began and compares.
pub fn end_reading(shell: &mut Shell, kind: Kind) -> Result<()> {
    let text = "touch /tmp/read.stop
        until test -e /tmp/read.done; do sleep 0.05; done
        sort /tmp/read.sums | uniq -c
        test $(sort -u /tmp/read.sums | wc -l) = 1";
    if kind == Kind::Block { script(shell, "reading ends", text, &[]) } else { Ok(()) }
}

/// Waits for the end of the load, which must have seen no wrong byte.
pub fn end_load(shell: &mut Shell, kind: Kind) -> Result<()> {
    match kind {
        Kind::Block => script(
            shell,
            "the end of the load",
            "until test -e /tmp/load.status; do sleep 0.1; done; cat /tmp/load.log
             test \"$(cat /tmp/load.status)\" = 0",
            &[],
        ),
        _ => load_goes_on(shell, kind),
    }
}

/// Runs the script `name` with variables set.
fn script(shell: &mut Shell, name: &str, text: &str, values: &[(&str, &str)]) -> Result<()> {
    let values: String = values.iter().map(|(name, value)| format!("{name}='{value}'\n")).collect();
    // The first line is what messages show.
    shell.run_within(LIMIT, &format!(": {name}\n{values}{text}")).map(drop)
}

/// Bytes out and back at every port, and another size if there is a terminal.
fn console(shell: &mut Shell, device: &Device) -> Result<()> {
    for port in &device.ports {
        let is_console = port.name.is_empty();
        // Linux gives its console 16 bytes a request, a port a page and more.
        let bytes = pattern(if is_console { 40_000 } else { 2_000_000 });
        let deadline = Instant::now() + LIMIT;
        std::thread::scope(|scope| -> Result<()> {
            let host = scope.spawn(|| console::echo(port, &bytes, deadline));
            let count = bytes.len().to_string();
            let values = [("name", port.name), ("bytes", count.as_str())];
            let guest =
                script(shell, "console.sh", include_str!("../../guest/console.sh"), &values);
            let host = host.join().unwrap_or_else(|_| Err(anyhow!("the test panicked")));
            host.with_context(|| format!("port {:?}, at the host", port.name)).and(guest)
        })?;
    }
    let Some(terminal) = device.terminal() else { return Ok(()) };
    for size in SIZES {
        terminal.resize(size)?;
        let (columns, rows) = (size.0.to_string(), size.1.to_string());
        let values = [("columns", columns.as_str()), ("rows", rows.as_str())];
        script(shell, "resize.sh", include_str!("../../guest/resize.sh"), &values)?;
    }
    Ok(())
}

/// Bytes of every value in no short period.
fn pattern(len_bytes: usize) -> Vec<u8> {
    (0..len_bytes as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}
