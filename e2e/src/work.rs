//! What a driver does with a device to say that it works. The scripts run in the guest; each fails
//! on the first wrong byte.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::peer::{Device, GUEST_ADDRESS, Kind, PEER_ADDRESS};
use crate::shell::Shell;

/// The tag of the shared file system.
pub const TAG: &str = "shared";

/// Time for one script: all work takes seconds on a free machine.
const LIMIT: Duration = Duration::from_secs(120);

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

/// Does the work of `kind` in the guest behind `shell`; `device` is what it is connected to.
pub fn exercise(shell: &mut Shell, kind: Kind, names: &Names, device: &Device) -> Result<()> {
    match kind {
        Kind::Block => block(shell, names.disk),
        Kind::Net => net(shell, names.card, device.iperf_port),
        Kind::Rng => script(shell, "rng.sh", include_str!("../../guest/rng.sh"), &[]),
        Kind::Fs => fs(shell, device),
        Kind::Console => console(shell),
    }
}

/// Writes verified, more requests than the index counts, a file system, the driver unbound and
/// back.
pub fn block(shell: &mut Shell, disk: &str) -> Result<()> {
    script(shell, "block.sh", include_str!("../../guest/block.sh"), &[("disk", disk)])
}

/// Pings, streams both ways and more packets than the index counts.
pub fn net(shell: &mut Shell, card: &str, iperf_port: u16) -> Result<()> {
    let port = iperf_port.to_string();
    let values =
        [("card", card), ("address", GUEST_ADDRESS), ("peer", PEER_ADDRESS), ("port", &port)];
    script(shell, "net.sh", include_str!("../../guest/net.sh"), &values)
}

fn fs(shell: &mut Shell, device: &Device) -> Result<()> {
    script(shell, "fs.sh", include_str!("../../guest/fs.sh"), &[("tag", TAG)])?;
    let mut check = Command::new("sha256sum");
    check.args(["--check", "--quiet", "sums-of-guest"]).current_dir(&device.folder);
    ensure!(check.status()?.success(), "the host sees other bytes than the guest wrote");
    Ok(())
}

/// Runs the script `name` with variables set.
fn script(shell: &mut Shell, name: &str, text: &str, values: &[(&str, &str)]) -> Result<()> {
    let values: String = values.iter().map(|(name, value)| format!("{name}='{value}'\n")).collect();
    // The first line is what messages show.
    shell.run_within(LIMIT, &format!(": {name}\n{values}{text}")).map(drop)
}

fn console(shell: &mut Shell) -> Result<()> {
    script(shell, "console", "test -c /dev/hvc0", &[])
}
