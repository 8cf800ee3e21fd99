//! A driver that works while something is done to the other side, and must not notice more than
//! silence.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::daemon::Daemon;
use crate::driver::{self, Attach, Driver};
use crate::lab::Lab;
use crate::peer::{DISK_BYTES, DISK_NAME, Kind};
use crate::programs;
use crate::row::Row;
use crate::shell::Shell;
use crate::work;

/// A driver at work.
pub enum Load {
    /// A guest or User Mode Linux.
    System {
        /// The line to it.
        shell: Shell,
        /// The machine.
        process: Daemon,
        /// What it works with.
        kind: Kind,
    },
    /// testpmd, counting the packets that come back.
    Packets {
        /// testpmd.
        driver: Daemon,
        /// When the test has failed.
        deadline: Instant,
    },
    /// qemu-img, writing an image slowly.
    Image {
        /// qemu-img.
        writer: Daemon,
        /// What it writes.
        source: PathBuf,
        /// Where the device puts it.
        disk: PathBuf,
        /// When the test has failed.
        deadline: Instant,
    },
}

/// Packets that show that a card works.
const MORE_PACKETS: u64 = 10_000;
/// Bytes that show that a disk works.
const MORE_BYTES: usize = 1 << 20;
/// What qemu-img writes a second: the image lasts longer than what is done meanwhile.
const BYTES_PER_SECOND: &str = "6M";

impl Load {
    /// Connects the driver of `row` and waits until it works.
    pub fn start(lab: &Lab, row: &Row, to: &Attach<'_>) -> Result<Load> {
        let kind = to.kind;
        let deadline = lab.deadline();
        let mut load = match row.driver {
            Driver::VirtioUser => Load::Packets { driver: programs::testpmd(lab, to)?, deadline },
            Driver::Blkio | Driver::QemuImg => {
                let source = lab.image("source.img", DISK_BYTES, 3)?;
                let writer = programs::convert(lab, to.socket, &source, &["-r", BYTES_PER_SECOND])?;
                let writer = lab.start("qemu-img", writer)?;
                Load::Image { writer, source, disk: lab.path(DISK_NAME), deadline }
            }
            Driver::Uml => {
                let uml = driver::user_mode_linux(lab, to)?;
                Load::System { shell: uml.shell, process: uml.kernel, kind }
            }
            _ => {
                let guest = row.driver.guest(lab, to)?.boot()?;
                Load::System { shell: guest.shell, process: guest.qemu, kind }
            }
        };
        match &mut load {
            Load::System { shell, .. } => {
                work::check_agreement(shell, to)?;
                work::start_load(shell, kind)?;
            }
            other => other.goes_on()?,
        }
        Ok(load)
    }

    /// Checks that it is well while its device is gone.
    pub fn is_well(&mut self) -> Result<()> {
        match self {
            Load::System { shell, .. } => shell.run("true").map(drop),
            Load::Packets { driver, .. } => driver.is_alive(),
            Load::Image { writer, .. } => writer.is_alive(),
        }
    }

    /// Waits until it makes progress.
    pub fn goes_on(&mut self) -> Result<()> {
        match self {
            Load::System { shell, kind, .. } => work::load_goes_on(shell, *kind),
            Load::Packets { driver, deadline } => {
                let seen = programs::packets_back(driver);
                programs::wait_for_packets(driver, seen + MORE_PACKETS, *deadline)
            }
            Load::Image { writer, source, disk, deadline } => {
                let source = fs::read(source)?;
                let wanted = written(&source, &fs::read(&disk)?) + MORE_BYTES;
                let path = disk.clone();
                let what = format!("write {wanted} bytes");
                writer.until(&what, *deadline, |_| {
                    let disk = fs::read(&path).unwrap_or_default();
                    written(&source, &disk) >= wanted.min(source.len())
                })
            }
        }
    }

    /// Waits for its end: it must have seen no wrong byte. `to` is where the device is.
    pub fn end(self, lab: &Lab, to: &Attach<'_>) -> Result<()> {
        match self {
            Load::System { mut shell, mut process, kind } => {
                work::end_load(&mut shell, kind)?;
                process.is_alive()
            }
            Load::Packets { mut driver, .. } => {
                programs::no_errors(&driver)?;
                driver.is_alive()
            }
            Load::Image { mut writer, source, .. } => {
                writer.succeeds().context("writing the image")?;
                programs::compare(lab, to.socket, &source)
            }
        }
    }
}

/// How much of `source` is at the beginning of `disk`.
fn written(source: &[u8], disk: &[u8]) -> usize {
    const PIECE: usize = 64 << 10;
    let pieces = source.chunks(PIECE).zip(disk.chunks(PIECE));
    pieces.take_while(|(a, b)| a == b).count() * PIECE
}

#[cfg(test)]
mod tests {
    use super::written;

    #[test]
    fn what_is_written_is_a_beginning() {
        let source = [3_u8; 200 << 10];
        let mut disk = [0_u8; 300 << 10];
        assert_eq!(written(&source, &disk), 0);
        disk[..128 << 10].fill(3);
        disk[140 << 10..].fill(3);
        assert_eq!(written(&source, &disk), 128 << 10);
    }
}
