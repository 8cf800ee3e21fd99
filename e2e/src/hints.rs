//! What a bridge prints for QEMU is given to QEMU as it stands.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::lab::Lab;
use crate::monitor::Monitor;
use crate::runner::Case;

/// Driver ends, and devices behind them: what is printed differs by these.
const ENDS: &[(&str, &str)] = &[
    ("vhost-user:HERE", "blk:null=1M,queues=2"),
    ("vhost-user:HERE,iommu=on", "blk:null=1M"),
    ("vhost-user:HERE", "net:echo=on,queues=2"),
    ("vhost-user:HERE,iommu=on", "net:null=on"),
    ("vhost-user:HERE", "rng:"),
    ("vhost-user:HERE,iommu=on", "rng:"),
    ("vhost-user:HERE", "console:null=on"),
    ("vfio-user:HERE", "blk:null=1M"),
    ("vfio-user:HERE,legacy=io,bus=pci", "net:null=on"),
];

/// The row.
pub fn case() -> Case {
    const LIMIT: Duration = Duration::from_secs(120);
    Case::new("qemu takes the options that a bridge prints", LIMIT, |lab| {
        ENDS.iter().enumerate().try_for_each(|(number, (driver, device))| {
            attach(lab, number, driver, device).with_context(|| format!("{driver} {device}"))
        })
    })
}

fn attach(lab: &Lab, number: usize, driver: &str, device: &str) -> Result<()> {
    let socket = lab.path(&format!("bridge{number}"));
    let mut command = lab.viaduct()?;
    command.arg("bridge").arg(driver.replace("HERE", &socket.display().to_string())).arg(device);
    let mut viaduct = lab.start(&format!("viaduct{number}"), command)?;
    viaduct.listens_at(&socket)?;
    viaduct.prints("\n-device")?;
    let printed = viaduct.printed();
    let options: Vec<String> =
        printed.lines().filter(|line| line.starts_with('-')).flat_map(words).collect();
    ensure!(options.iter().any(|word| word == "-device"), "no device in\n{printed}");
    let monitor = lab.path(&format!("monitor{number}"));
    let mut command = lab.program("qemu-system-x86_64")?;
    command.args(["-accel", "tcg", "-nodefaults", "-display", "none", "-S", "-qmp"]);
    command.arg(format!("unix:{},server=on,wait=off", monitor.display())).args(&options);
    let mut qemu = lab.start(&format!("qemu{number}"), command)?;
    // QEMU talks to its devices before it listens to anybody.
    qemu.listens_at(&monitor)?;
    let status = Monitor::connect(&monitor, lab.deadline())?.execute("query-status", "{}")?;
    ensure!(status.contains("prelaunch"), "QEMU is to wait with all its devices: {status}");
    viaduct.prints(" connected")
}

/// The words of a line, as a shell reads it if it has no quotes but single ones.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut is_quoted = false;
    for c in line.chars() {
        match (c, words.last_mut()) {
            ('\'', _) => is_quoted = !is_quoted,
            (' ', _) if !is_quoted => words.push(String::new()),
            (c, Some(word)) => word.push(c),
            (_, None) => {}
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_keep_words_together() {
        assert_eq!(words("-device '{\"a\": \"b c\"}'"), ["-device", "{\"a\": \"b c\"}"]);
    }
}
