//! Cards in VHDL, and in simulators other than Verilator: what `viaduct cosim` makes of them.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cards;
use crate::daemon::Daemon;
use crate::guest::{Guest, Plan};
use crate::lab::Lab;
use crate::runner::Case;
use crate::trace;

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
    row("a design in vhdl is the same in ghdl and synthesised, cycle by cycle", golden);
    row("guest 6.12, dma engine in verilog, icarus", icarus);
    if all {
        row("guest 6.12, dma engine in vhdl, ghdl", |lab| in_ghdl(lab, "ghdl-mcode"));
        row("guest 6.12, dma engine in vhdl, ghdl llvm", |lab| in_ghdl(lab, "ghdl-llvm"));
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
    copies(lab, Simulation::start(lab, "dma", &["--sim", "ghdl-synth"], &source, "ghdl-mcode")?)
}

/// The same without synthesis.
fn in_ghdl(lab: &Lab, ghdl: &str) -> Result<()> {
    let source = lab.write("dma.vhd", include_bytes!("../../examples/dma/vhdl/dma.vhd"))?;
    copies(lab, Simulation::start(lab, "dma", &["--sim", "ghdl"], &source, ghdl)?)
}

/// The one in Verilog, interpreted.
fn icarus(lab: &Lab) -> Result<()> {
    let source = lab.write("dma.sv", include_bytes!("../../examples/dma/verilog/dma.sv"))?;
    copies(lab, Simulation::start(lab, "dma", &["--sim", "icarus"], &source, "ghdl")?)
}

fn copies(lab: &Lab, mut card: Simulation) -> Result<()> {
    let plan = Guest::plan(lab, "6.12").own_program(&cards::driver(lab, "dma", cards::DRIVER)?)?;
    let mut guest = card.plug(plan).boot()?;
    guest.shell.run("dma sysfs 100")?;
    card.viaduct.is_alive()
}

/// The same accesses, a fixed number of cycles each, in GHDL and in what synthesis makes of the
/// design: each answer and every byte of memory is the same.
fn golden(lab: &Lab) -> Result<()> {
    let source = lab.write("dma.vhd", include_bytes!("../../examples/dma/vhdl/dma.vhd"))?;
    let locked = ["--clock", "locked:20", "--sim"];
    let mut answers = Vec::new();
    for simulator in ["ghdl", "ghdl-synth"] {
        let folder = format!("{simulator}-dma");
        let options: Vec<&str> = locked.iter().copied().chain([simulator]).collect();
        let card = Simulation::named(lab, &folder, "dma", &options, &source, "ghdl-mcode")?;
        answers.push(trace::run(&card.socket).context(simulator)?);
    }
    let (golden, quick) = (&answers[0], &answers[1]);
    let differs = golden.iter().zip(quick).position(|(one, other)| one != other);
    ensure!(differs.is_none(), "answer {differs:?} differs");
    ensure!(golden.len() == quick.len(), "one has more answers");
    let copied = golden.iter().filter(|answer| **answer == 2).count();
    ensure!(copied > 10, "only {copied} copies were seen to end");
    Ok(())
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
        Simulation::named(lab, top, top, options, source, ghdl)
    }

    /// The same, with names of its own for files.
    fn named(
        lab: &Lab,
        name: &str,
        top: &str,
        options: &[&str],
        source: &std::path::Path,
        ghdl: &str,
    ) -> Result<Simulation> {
        let socket = lab.path(&format!("{name}.sock"));
        let mut command = lab.viaduct_in_root()?;
        command.arg("cosim").args(options).args(["--top", top]).arg("--socket").arg(&socket);
        command.arg("--build").arg(lab.path(&format!("{name}.build"))).arg(source);
        command.env("VIADUCT_GHDL", ghdl);
        let mut viaduct = lab.start(&format!("viaduct-{name}"), command)?;
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
