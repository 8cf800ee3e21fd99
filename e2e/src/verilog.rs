//! PCIe devices written in Verilog, in a guest: built by the root's Verilator.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::cards;
use crate::daemon::Daemon;
use crate::guest::{Guest, Plan};
use crate::lab::Lab;
use crate::runner::Case;

/// Compilers are slow on a busy machine.
const LIMIT: Duration = Duration::from_secs(240);

/// What a row does.
type Body = fn(&Lab) -> Result<()>;

/// The DMA engine.
const DMA: &str = include_str!("../../examples/dma/verilog/dma.sv");

/// The rows; `all` of them, or those that are run each time.
pub fn cases(all: bool) -> Vec<Case> {
    let mut rows: Vec<(&str, Body)> = vec![("guest 6.12, dma engine in verilog", dma)];
    if all {
        rows.push(("guest 6.12, dma engine in verilog, memory by messages", dma_unshared));
    }
    rows.into_iter().map(|(name, body)| Case::new(name, LIMIT, body)).collect()
}

/// `viaduct cosim` with a design.
struct Card {
    viaduct: Daemon,
    socket: PathBuf,
}

impl Card {
    /// `options` come before the names of the sources.
    fn start(lab: &Lab, top: &str, source: &str, options: &[&str]) -> Result<Card> {
        let file = lab.write(&format!("{top}.sv"), source.as_bytes())?;
        let socket = lab.path("card");
        let mut command = lab.viaduct_in_root()?;
        command.args(["cosim", "--top", top, "--socket"]).arg(&socket);
        command.arg("--build").arg(lab.path("build")).args(options).arg(file);
        let mut viaduct = lab.start("viaduct", command)?;
        viaduct.listens_at(&socket)?;
        Ok(Card { viaduct, socket })
    }

    fn plug<'l>(&self, plan: Plan<'l>) -> Plan<'l> {
        cards::plug(plan, &self.socket)
    }

    /// Everything is as it should be at the end.
    fn is_well(&mut self) -> Result<()> {
        self.viaduct.is_alive()?;
        let printed = self.viaduct.printed();
        ensure!(!printed.contains("the model ended"), "the simulation has ended meanwhile");
        Ok(())
    }
}

fn plan(lab: &Lab) -> Result<Plan<'_>> {
    Guest::plan(lab, "6.12").own_program(&cards::driver(lab, "dma", cards::DRIVER)?)
}

fn dma(lab: &Lab) -> Result<()> {
    let mut card = Card::start(lab, "dma", DMA, &[])?;
    let mut guest = card.plug(plan(lab)?).boot()?;
    guest.shell.run("dma sysfs 500")?;
    card.is_well()
}

fn dma_unshared(lab: &Lab) -> Result<()> {
    let mut card = Card::start(lab, "dma", DMA, &["-G", "WIDTH=64"])?;
    let mut guest = card.plug(plan(lab)?.without_shared_memory()).boot()?;
    guest.shell.run("dma sysfs 100")?;
    card.is_well()
}
