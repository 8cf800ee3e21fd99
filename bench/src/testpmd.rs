//! DPDK's testpmd, spoken to as a person would: it answers only on a terminal.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use e2e::Root;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::threads::Cpu;

const PROMPT: &str = "testpmd> ";

/// How long an answer may take: the start of DPDK is the longest.
const PATIENCE: Duration = Duration::from_secs(20);

/// Descriptors of its queues; the same on both sides.
pub const RING: u16 = 1024;

/// A testpmd that runs. Killed when dropped.
pub struct Testpmd {
    child: Child,
    terminal: std::fs::File,
}

impl Testpmd {
    /// Starts one on `cpu` with these ports, forwarding nothing yet.
    pub fn start(
        root: &Root,
        folder: &Path,
        name: &str,
        cpu: Cpu,
        ports: &[String],
    ) -> Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).context("open a terminal")?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let slave = ptsname(&master, Vec::new())?;
        let slave = std::fs::File::options().read(true).write(true).open(slave.to_str()?)?;
        let mut command: Command = root.program("dpdk-testpmd", folder)?;
        let cores = format!("0@{0},1@{0}", cpu.0);
        command.args(["--lcores", &cores, "--no-pci", "--in-memory", "--single-file-segments"]);
        command.args(["-m", "256", "--no-telemetry"]).arg(format!("--file-prefix=bench-{name}"));
        for port in ports {
            command.arg("--vdev").arg(port);
        }
        command.args(["--", "-i", "--forward-mode=io", "--record-core-cycles", "--no-mlockall"]);
        command.args(["--burst=32", "--total-num-mbufs=20000"]);
        command.arg(format!("--txd={RING}")).arg(format!("--rxd={RING}"));
        let log = std::fs::File::create(folder.join(format!("{name}.log")))?;
        command.stdin(Stdio::from(OwnedFd::from(slave.try_clone()?)));
        command.stdout(Stdio::from(OwnedFd::from(slave))).stderr(log);
        let child = command.spawn().context("start testpmd")?;
        let mut started = Self { child, terminal: std::fs::File::from(master) };
        started.answer().with_context(|| format!("start testpmd ({name})"))?;
        Ok(started)
    }

    /// Types a command and returns what is printed until the next prompt.
    pub fn command(&mut self, command: &str) -> Result<String> {
        self.terminal.write_all(format!("{command}\n").as_bytes())?;
        self.answer().with_context(|| format!("testpmd's answer to {command:?}"))
    }

    fn answer(&mut self) -> Result<String> {
        let (mut raw, deadline) = (Vec::new(), Instant::now() + PATIENCE);
        let mut piece = [0; 16384];
        loop {
            let limit = Timespec::try_from(Duration::from_millis(200))?;
            let fd = PollFd::new(&self.terminal, PollFlags::IN);
            if poll(&mut [fd], Some(&limit))? > 0 {
                let got = self.terminal.read(&mut piece).unwrap_or(0);
                raw.extend_from_slice(&piece[..got]);
                let text = without_escapes(&String::from_utf8_lossy(&raw));
                // The command's own line begins with a prompt too.
                if text.ends_with(PROMPT) && text.trim_start().contains('\n') {
                    return Ok(text);
                }
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended ({status}): {}", String::from_utf8_lossy(&raw));
            }
            if Instant::now() > deadline {
                bail!("none came: {}", String::from_utf8_lossy(&raw));
            }
        }
    }

    /// Packets a second received at all ports since the last call.
    pub fn received_per_second(&mut self) -> Result<f64> {
        Ok(figures(&self.command("show port stats all")?, "Rx-pps:").iter().sum())
    }

    /// Forgets the cycles counted so far.
    pub fn clear_cycles(&mut self) -> Result<()> {
        self.command("clear fwd stats all").map(drop)
    }

    /// Busy cycles per packet since [`Testpmd::clear_cycles`].
    pub fn cycles_per_packet(&mut self) -> Result<f64> {
        let text = self.command("show fwd stats all")?;
        let found = figures(&text, "CPU cycles/packet=");
        found.first().copied().with_context(|| format!("no cycles in {text}"))
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The numbers after `label`.
fn figures(text: &str, label: &str) -> Vec<f64> {
    let after = text.split(label).skip(1);
    after
        .filter_map(|rest| {
            let word = rest.trim_start().split(|c: char| c != '.' && !c.is_ascii_digit()).next()?;
            word.parse().ok()
        })
        .collect()
}

/// Text without the terminal's control sequences.
fn without_escapes(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\x1b') {
        out.push_str(before);
        let end = after.find(|c: char| c.is_ascii_alphabetic()).map_or(after.len(), |at| at + 1);
        rest = &after[end..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_behind_their_labels() {
        let text = "  Rx-pps:      12345          Rx-bps: 7\n  Rx-pps: 5\n";
        assert_eq!(figures(text, "Rx-pps:"), [12345.0, 5.0]);
        assert_eq!(figures("  CPU cycles/packet=181.25 (x)", "CPU cycles/packet="), [181.25]);
    }

    #[test]
    fn control_sequences_are_taken_out() {
        assert_eq!(without_escapes("a\x1b[0Kb\x1b[?25hc"), "abc");
    }
}
