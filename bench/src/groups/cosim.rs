//! Cards in Verilog and VHDL: how many cycles a second of a processor simulates, what an access
//! and a copy cost, how long an edit takes.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use driver::{Buffer, Client, GuestMemory};
use e2e::Daemon;
use rustix::process::Signal;

use crate::lab::Lab;
use crate::placement::Label;
use crate::programs;
use crate::report::{Bound, Report, Target};

/// The DMA engine; 256 bits wide.
const DMA: &str = include_str!("../../../examples/dma/verilog/dma.sv");
/// The same in VHDL, by way of synthesis.
const VHDL: &str = include_str!("../../../examples/dma/vhdl/dma.vhd");
/// Bytes of a copy, the most that the engine takes.
const COPY: usize = 1 << 20;
/// A clock that no simulation keeps up with: it never sleeps.
const FLAT_OUT: &[&str] = &["--clock", "paced:1000M"];
/// The way that makes a language's files quick.
const BY_SYNTHESIS: &[&str] = &["--sim", "ghdl-synth", "--clock", "paced:1000M"];

/// Runs all measurements of this group.
pub fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    let place = programs::lab()?;
    let work = 8 * lab.window();
    let (cycles, seconds) = Card::start(&place, "idle", FLAT_OUT)?.after(|_| {
        std::thread::sleep(work);
        Ok(())
    })?;
    let ns = seconds * 1e9 / cycles;
    value(report, "Mcycles a second of processor, idle", 1e3 / ns, (8.0, 11.0), false);
    let (_, cycles, seconds) = copies(&place, "busy", FLAT_OUT, work)?;
    value(report, "Mcycles, copying", cycles / seconds / 1e6, (8.0, 11.0), false);
    let (copied, _, seconds) = copies(&place, "free", &[], work)?;
    let rate = copied as f64 / seconds / 1e6;
    value(report, "MB copied a second of processor", rate, (250.0, 300.0), false);
    let (cycles, seconds) = Card::start(&place, "vhdl-idle", BY_SYNTHESIS)?.after(|_| {
        std::thread::sleep(work);
        Ok(())
    })?;
    let rate = cycles / seconds / 1e6;
    value(report, "Mcycles in VHDL by synthesis, idle", rate, (4.0, 6.0), false);
    let (_, cycles, seconds) = copies(&place, "vhdl-busy", BY_SYNTHESIS, work)?;
    let rate = cycles / seconds / 1e6;
    value(report, "Mcycles in VHDL by synthesis, copying", rate, (4.0, 6.0), false);
    let accesses = 20_000;
    let locked = Card::start(&place, "locked", &["--clock", "locked:1"])?;
    let (cycles, _) = locked.after(|card| {
        (0..accesses).try_for_each(|_| {
            ensure!(card.read(0)? == 0x414d_4456, "the card has another name");
            Ok(())
        })
    })?;
    let cost = cycles / f64::from(accesses) * ns / 1e3;
    value(report, "us of simulation a register read", cost, (0.3, 0.25), true);
    edit(&place, report)
}

/// Copies for as long as `work`; bytes, cycles, and seconds of processor.
fn copies(
    place: &e2e::Lab,
    name: &str,
    options: &[&str],
    work: Duration,
) -> Result<(usize, f64, f64)> {
    let mut copied = 0;
    let (cycles, seconds) = Card::start(place, name, options)?.after(|card| {
        let end = Instant::now() + work;
        while Instant::now() < end {
            card.copy()?;
            copied += COPY;
        }
        Ok(())
    })?;
    Ok((copied, cycles, seconds))
}

/// From the moment a source is written to the moment the new card serves.
fn edit(place: &e2e::Lab, report: &mut Report) -> Result<()> {
    let mut card = Card::start(place, "edited", &["--watch"])?;
    let begin = Instant::now();
    place.write("edited.sv", DMA.replace("32'h414d4456", "32'h0").as_bytes())?;
    let is_new = |viaduct: &Daemon| viaduct.printed().matches("is here").count() == 2;
    card.viaduct.until("serve the new card", begin + Duration::from_secs(100), is_new)?;
    ensure!(card.read(0)? == 0, "the card has its old name");
    let took = begin.elapsed().as_secs_f64();
    value(report, "s from an edit to a card that serves", took, (5.0, 3.0), true);
    Ok(())
}

fn value(report: &mut Report, what: &str, value: f64, (floor, aim): (f64, f64), less: bool) {
    let bound = if less { Bound::AtMost } else { Bound::AtLeast };
    report.value(what, value, Target { row: "cosim", label: Label::OneCore, bound, floor, aim });
}

/// The engine behind a port, and its driver.
struct Card {
    viaduct: Daemon,
    client: Client,
    memory: GuestMemory,
    buffers: [Buffer; 2],
}

impl Card {
    fn start(place: &e2e::Lab, name: &str, options: &[&str]) -> Result<Self> {
        let (ending, text) =
            if options.contains(&"ghdl-synth") { ("vhd", VHDL) } else { ("sv", DMA) };
        let source = place.write(&format!("{name}.{ending}"), text.as_bytes())?;
        let socket: PathBuf = place.path(name);
        let mut command = place.viaduct_in_root()?;
        command.args(["cosim", "--top", "dma", "--socket"]).arg(&socket);
        command.arg("--build").arg(place.path(&format!("{name}.build")));
        command.args(options).arg(source);
        let mut viaduct = place.start(&format!("viaduct-{name}"), command)?;
        viaduct.listens_at(&socket)?;
        let mut memory = GuestMemory::new(4 * COPY)?;
        let buffers = [memory.allocate(COPY, 4096)?, memory.allocate(COPY, 4096)?];
        let connection = sys::connect_unix(&socket).context("connect to the card")?;
        let mut client = Client::new(connection, &memory, true)?;
        // Memory space and bus mastering (PCI 3.0, 6.2.2).
        client.write(7, 4, &6u16.to_le_bytes())?;
        Ok(Self { viaduct, client, memory, buffers })
    }

    /// Does `work`, and ends; the cycles that were simulated, and the processor's seconds.
    fn after(mut self, work: impl FnOnce(&mut Self) -> Result<()>) -> Result<(f64, f64)> {
        work(&mut self)?;
        self.viaduct.signal(Signal::TERM)?;
        self.viaduct.succeeds()?;
        let printed = self.viaduct.printed();
        let line = printed.lines().find(|line| line.starts_with("simulation: "));
        let words: Vec<&str> = line.context("no count of cycles")?.split(' ').collect();
        Ok((words[1].parse()?, words[4].parse()?))
    }

    fn read(&mut self, at: u64) -> Result<u32> {
        let mut bytes = [0; 4];
        self.client.read(0, at, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Copies a buffer, from and to addresses that are no multiples of anything.
    fn copy(&mut self) -> Result<()> {
        let [from, to] = self.buffers;
        let len = COPY - 64;
        self.memory.span(from).copy_from(&[0x5a; 4096]);
        for (at, value) in [(0x08, from.address.0 + 3), (0x10, to.address.0 + 17)] {
            self.client.write(0, at, &value.to_le_bytes())?;
        }
        for (at, value) in [(0x18, len as u32), (0x1c, 1)] {
            self.client.write(0, at, &value.to_le_bytes())?;
        }
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            match self.read(0x20)? {
                2 => return Ok(()),
                1 => ensure!(Instant::now() < end, "the copy did not end"),
                status => anyhow::bail!("the copy failed: status {status:#x}"),
            }
        }
    }
}
