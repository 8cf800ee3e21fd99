//! Each fault of a card, as its driver in a guest sees it.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cards::{self, Card};
use crate::guest::Guest;
use crate::lab::Lab;
use crate::runner::Case;

/// An IOMMU is emulated too.
const LIMIT: Duration = Duration::from_secs(180);

/// What the driver does and gets: words of `guest/faults.c`, and its answer. `A..B` stands for a
/// decimal number from A to B.
type Sight = (&'static str, &'static str);

/// A copy that goes well.
const WORKS: Sight = ("copy 0 0", "2 256 0..5000 1 256 1");
/// Bus mastering and memory, which a reset takes away.
const MASTER: Sight = ("set 4 2 6", "");

/// A fault, what is seen of it, and what is seen when it is over, before the engine works again.
#[rustfmt::skip]
const SIGHTS: &[(&str, &[Sight], &[Sight])] = &[
    ("removed",
     &[("config 0 4 read 0 write 30 55 config 100 4", "ffffffff ffffffff ffffffff"),
       ("write 1c 1 interrupts 100", "0")],
     &[("config 0 4 config 4 2 read 28 read 30", "da71234 0 0 0"), MASTER]),
    ("link-down",
     &[("config 0 4 read 0 write 30 55", "ffffffff ffffffff")],
     &[("config 0 4 config 4 2 read 30", "da71234 0 0"), MASTER]),
    ("unsupported,bar=0,at=0x30",
     &[("write 34 7 write 30 55 read 30 read 34 config 52 1", "ffffffff 7 a")],
     &[("set 52 1 f config 52 1 read 30", "0 0")]),
    ("abort,bar=0,at=0x30,count=1",
     &[("read 30 read 30 config 6 2 config 52 1", "ffffffff 0 810 2")],
     &[("set 6 2 f900 set 52 1 f config 6 2", "10")]),
    ("poisoned,bar=0,at=0x30",
     &[("write 30 55 read 30 config 6 2", "ffffffff 8010")],
     &[("set 6 2 f900 set 52 1 f config 6 2 read 30", "10 0")]),
    ("timeout,bar=0,at=0x30,count=1",
     &[("timed 30 write 30 55 read 30", "95..3000 55")], &[]),
    ("slow,bar=0,at=0x30,delay=50ms",
     &[("write 30 55 timed 30 read 30", "50..3000 55")], &[]),
    ("slow,bar=0,at=0x30,delay=1us,jitter=60ms",
     &[("spread 30 10", "15..3000")], &[]),
    ("stuck,bar=0,at=0x30,value=0x1234",
     &[("write 30 55 read 30", "1234")],
     &[("read 30", "55")]),
    ("flipped,bar=0,at=0x30,value=0x80000001",
     &[("write 30 55 read 30 read 34", "80000054 7")],
     &[("read 30", "55")]),
    ("short,bar=0,at=0x30,value=2",
     &[("write 30 11223344 read 30", "ffff3344")],
     &[("read 30", "11223344")]),
    ("lost-writes,bar=0,at=0x30,skip=1,count=1",
     &[("write 30 1 write 30 2 read 30 write 30 3 read 30", "1 3")], &[]),
    ("doubled-writes,bar=0,at=0x1c",
     &[("copy 100 0", "2 256 0..100 1..2 256 2")], &[]),
    ("config-flipped,at=8,value=0xff",
     &[("config 8 1 config 9 1", "ff 0")],
     &[("config 8 1", "0")]),
    ("ids",
     &[("config 0 4", "deadbeef")],
     &[("config 0 4", "da71234")]),
    ("config-lost,at=0x50",
     &[("set 50 2 1f config 50 2", "0")],
     &[("set 50 2 1f config 50 2 set 50 2 0", "1f")]),
    ("flr-ignored",
     &[("write 30 77 set 51 1 80 read 30", "77")],
     &[("set 51 1 80 read 30", "0"), MASTER]),
    ("power-stuck",
     &[("write 30 77 set 44 2 3 config 44 2 set 44 2 0 config 44 2", "3 3")],
     &[("set 44 2 0 config 44 2 read 30", "0 0"), MASTER]),
    ("interrupt-lost",
     &[("copy 200 0", "2 256 -1 0 256 1")], &[]),
    ("interrupt-doubled,value=2,delay=150ms",
     &[("copy 600 0", "2 256 0..600 3 256 1")], &[]),
    ("interrupt-late,delay=300ms",
     &[("copy 0 0", "2 256 250..5000 1 256 1")], &[]),
    ("interrupt-spurious",
     &[("interrupts 200 read 24", "1 0")], &[]),
    ("dma-refused",
     &[("copy 0 0 config 6 2", "6 0 0..5000 1 0 1 2010")],
     &[("set 6 2 f900 config 6 2", "10")]),
    ("dma-lost",
     &[("copy 0 0", "2 0 0..5000 1 0 1")], &[]),
    ("dma-late,delay=300ms",
     &[("copy 600 0", "2 0 0..600 1 256 1")], &[]),
    ("dma-torn,delay=300ms",
     &[("copy 600 0", "2 128 0..600 1 256 1")], &[]),
    ("dma-reordered,delay=300ms",
     &[("copy 600 0", "2 64 0..600 1 256 1")], &[]),
    ("dma-flipped",
     &[("copy 0 0", "2 255 0..5000 1 255 1")], &[]),
    ("dma-misplaced,value=64",
     &[("copy 0 40", "2 256 0..5000 1 256 1")], &[]),
    ("dma-short,value=16",
     &[("copy 0 0", "2 16 0..5000 1 16 1")], &[]),
];

/// The rows.
pub fn cases() -> Vec<Case> {
    vec![Case::new("guest 6.12, faults of a card, each seen by its driver", LIMIT, faults)]
}

fn faults(lab: &Lab) -> Result<()> {
    // As the C compiler finds it.
    lab.write("guest-dma.c", include_bytes!("../../guest/dma.c"))?;
    let program = cards::driver(lab, "faults", include_str!("../../guest/faults.c"))?;
    let mut card = Card::start_rust(lab)?;
    let plan = Guest::plan(lab, "6.12").own_program(&program)?;
    let plan = plan.device("intel-iommu,caching-mode=on,intremap=off");
    let plan = plan.module("vfio_iommu_type1").module("vfio_pci").append("intel_iommu=on");
    let mut guest = card.plug(plan).boot()?;
    guest.shell.run_within(LIMIT, include_str!("../../guest/faults.sh"))?;
    see(&mut guest, WORKS).context("before any fault")?;
    for (fault, during, after) in SIGHTS {
        fault_command(lab, &card, &[fault])?;
        let name = fault.split(',').next().unwrap_or(fault);
        during.iter().try_for_each(|sight| see(&mut guest, *sight)).context(*fault)?;
        fault_command(lab, &card, &["clear", name])?;
        let after = after.iter().chain([&WORKS]);
        after.into_iter().try_for_each(|sight| see(&mut guest, *sight)).context(*fault)?;
    }
    let kinds = fault_command_alone(lab, &["pcie", "fault"])?;
    for kind in kinds.lines().filter_map(|line| line.split_whitespace().next()) {
        let is_seen = SIGHTS.iter().any(|(fault, ..)| fault.split(',').next() == Some(kind));
        ensure!(is_seen, "nobody looks at the fault {kind}");
    }
    guest.qemu.is_alive()?;
    card.viaduct.is_alive()
}

/// Has the driver do something, and looks at what it gets.
fn see(guest: &mut Guest, (words, wanted): Sight) -> Result<()> {
    let script = format!("echo {words} >/tmp/ask; read -r line </tmp/answer; echo \"$line\"");
    let seen = guest.shell.run(&script).context("the driver does not answer")?;
    let (got, want) = (seen.split_whitespace(), wanted.split_whitespace());
    let fits = |(got, want): (&str, &str)| match want.split_once("..") {
        Some((least, most)) => {
            let (Ok(least), Ok(most)) = (least.parse(), most.parse::<i64>()) else { return false };
            got.parse().is_ok_and(|number: i64| (least..=most).contains(&number))
        }
        None => got == want,
    };
    let is_it = got.clone().count() == want.clone().count() && got.zip(want).all(fits);
    ensure!(is_it, "`{words}`: the driver sees `{}` and not `{wanted}`", seen.trim());
    Ok(())
}

fn fault_command(lab: &Lab, card: &Card, words: &[&str]) -> Result<String> {
    let socket = card.socket.to_string_lossy();
    fault_command_alone(lab, &[&["pcie", "fault", &socket], words].concat())
}

fn fault_command_alone(lab: &Lab, words: &[&str]) -> Result<String> {
    let mut command: Command = lab.viaduct()?;
    let output = command.args(words).output().context("run viaduct")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{words:?}: {error}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
