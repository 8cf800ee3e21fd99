//! Cards in VHDL: what `viaduct cosim` makes of them, in a guest.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use crate::cards;
use crate::daemon::Daemon;
use crate::guest::{Guest, Plan};
use crate::lab::Lab;
use crate::runner::Case;

/// Compilers are slow on a busy machine.
const LIMIT: Duration = Duration::from_secs(240);

/// The rows; `all` of them, or those that are run each time.
pub fn cases(all: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut row = |name: &str, body: fn(&Lab) -> Result<()>| {
        cases.push(Case::new(name, LIMIT, body));
    };
    row("guest 6.12, two cards for vpcie's entity in vhdl, ghdl llvm and mcode", |lab| {
        entities(lab, ["ghdl-llvm", "ghdl-mcode"])
    });
    row("guest 6.12, dma engine in vhdl, synthesised", synthesised);
    if all {
        row("guest 6.12, two cards for vpcie's entity in vhdl, ghdl mcode and llvm", |lab| {
            entities(lab, ["ghdl-mcode", "ghdl-llvm"])
        });
    }
    cases
}

/// A design that acknowledges requests and writes host memory; one of the older kind that does not,
/// as VHDL-93.
fn entities(lab: &Lab, [first, second]: [&str; 2]) -> Result<()> {
    let pattern = lab.write("pattern.vhd", include_bytes!("../../examples/vpcie/pattern.vhd"))?;
    let leds = lab.write("leds.vhd", include_bytes!("../../examples/vpcie/leds.vhd"))?;
    let mut pattern = Simulation::start(lab, "pattern", &["--sim", "ghdl"], &pattern, first)?;
    let old = ["--sim", "ghdl", "--option=--std=93c"];
    let mut leds = Simulation::start(lab, "leds", &old, &leds, second)?;
    let plan = Guest::plan(lab, "6.12").own_program(&cards::driver(lab, "poke", cards::POKE)?)?;
    let mut guest = leds.plug(pattern.plug(plan)).boot()?;
    guest.shell.run(include_str!("../../guest/vpcie-vhdl.sh"))?;
    pattern.viaduct.prints("leds 3")?;
    leds.viaduct.prints("leds 10")?;
    pattern.viaduct.is_alive()?;
    leds.viaduct.is_alive()
}

/// The DMA engine, the quick way.
fn synthesised(lab: &Lab) -> Result<()> {
    let source = lab.write("dma.vhd", include_bytes!("../../examples/dma/vhdl/dma.vhd"))?;
    let mut card = Simulation::start(lab, "dma", &["--sim", "ghdl-synth"], &source, "ghdl-mcode")?;
    let plan = Guest::plan(lab, "6.12").own_program(&cards::driver(lab, "dma", cards::DRIVER)?)?;
    let mut guest = card.plug(plan).boot()?;
    guest.shell.run("dma sysfs 500")?;
    card.viaduct.is_alive()
}

/// A simulation and its port.
struct Simulation {
    viaduct: Daemon,
    top: String,
    socket: PathBuf,
}

impl Simulation {
    /// Builds and serves `top` of one source; `ghdl` is the program to use.
    fn start(
        lab: &Lab,
        top: &str,
        options: &[&str],
        source: &std::path::Path,
        ghdl: &str,
    ) -> Result<Simulation> {
        let socket = lab.path(&format!("{top}.sock"));
        let mut command = lab.viaduct_in_root()?;
        command.arg("cosim").args(options).args(["--top", top]).arg("--socket").arg(&socket);
        command.arg("--build").arg(lab.path(&format!("{top}.build"))).arg(source);
        command.env("VIADUCT_GHDL", ghdl);
        let mut viaduct = lab.start(&format!("viaduct-{top}"), command)?;
        viaduct.listens_at(&socket)?;
        Ok(Simulation { viaduct, top: top.to_owned(), socket })
    }

    fn plug<'l>(&self, plan: Plan<'l>) -> Plan<'l> {
        let Simulation { top, socket, .. } = self;
        let number = if top == "leds" { 2 } else { 1 };
        let path = socket.display();
        let socket = format!(r#"{{"type":"unix","path":"{path}"}}"#);
        plan.device(format!("pcie-root-port,id={top},chassis={number}"))
            .device(format!(r#"{{"driver":"vfio-user-pci","bus":"{top}","socket":{socket}}}"#))
    }
}
