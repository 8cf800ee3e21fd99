//! cocotb, in the simulation that a guest uses and beside it. It comes from the package index of
//! Python, so these rows need a network.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cards;
use crate::daemon::Daemon;
use crate::guest::Guest;
use crate::lab::Lab;
use crate::runner::Case;
use crate::trace;

const LIMIT: Duration = Duration::from_secs(300);

const DMA: &[u8] = include_bytes!("../../examples/dma/verilog/dma.sv");

/// The rows, none of them run each time.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("guest 6.12, dma engine in verilog, icarus, watched by cocotb", LIMIT, watched),
        Case::new("a simulation takes a hundred times the writes of cocotb", LIMIT, rate),
        Case::new("a design in vhdl runs millions of cycles a second", LIMIT, cycles),
    ]
}

/// cocotb in a folder of its own.
struct Cocotb {
    python: PathBuf,
    /// What the simulator loads.
    module: PathBuf,
    libpython: String,
}

impl Cocotb {
    /// The machine's pip fetches it, since the root's may not know whom the machine trusts.
    fn install(lab: &Lab) -> Result<Cocotb> {
        let mut version = lab.program("python3")?;
        version.args(["-c", "import sys; print('%d.%d' % sys.version_info[:2])"]);
        let version = last_line(&lab.run("version", version)?);
        let wheels = lab.path("wheels");
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "download", "-q", "--only-binary=:all:", "--python-version"]);
        pip.arg(version).arg("-d").arg(&wheels).arg("cocotb==2.0.1");
        lab.run("pip-download", pip)?;
        let place = lab.path("venv");
        let mut venv = lab.program("python3")?;
        venv.args(["-m", "venv"]).arg(&place);
        lab.run("venv", venv)?;
        let inside =
            |name: &str| lab.root().guest_program(&place.join("bin").join(name), &lab.path(""));
        let mut install = inside("python");
        install.args(["-m", "pip", "install", "-q", "--no-index", "--find-links"]).arg(wheels);
        lab.run("pip-install", {
            install.arg("cocotb");
            install
        })?;
        let mut module = inside("cocotb-config");
        module.args(["--lib-name-path", "vpi", "icarus"]);
        let mut library = inside("cocotb-config");
        library.arg("--libpython");
        Ok(Cocotb {
            python: place.join("bin/python"),
            module: last_line(&lab.run("module", module)?).into(),
            libpython: last_line(&lab.run("libpython", library)?),
        })
    }

    /// What it reads from the environment.
    fn settings(&self, lab: &Lab, command: &mut Command, test: &str) {
        command.env("COCOTB_TEST_MODULES", test).env("COCOTB_TOPLEVEL", "dma");
        command.env("TOPLEVEL_LANG", "verilog").env("PYTHONPATH", lab.path(""));
        command.env("PYGPI_PYTHON_BIN", &self.python).env("LIBPYTHON_LOC", &self.libpython);
    }
}

fn last_line(text: &str) -> String {
    text.lines().last().unwrap_or_default().trim().to_owned()
}

/// `viaduct cosim` of a source with these words.
fn cosim(lab: &Lab, name: &str, source: &[u8], words: &[&str]) -> Result<Command> {
    let file = lab.write(name, source)?;
    let mut command = lab.viaduct_in_root()?;
    command.args(["cosim", "--top", "dma", "--build"]).arg(lab.path("build")).args(words);
    command.arg("--socket").arg(lab.path("card")).arg(file);
    Ok(command)
}

fn serve(lab: &Lab, command: Command) -> Result<Daemon> {
    let mut viaduct = lab.start("viaduct", command)?;
    viaduct.listens_at(&lab.path("card"))?;
    Ok(viaduct)
}

/// A test in Python sees a guest's copies and changes a register, which the guest's driver reads.
fn watched(lab: &Lab) -> Result<()> {
    let cocotb = Cocotb::install(lab)?;
    lab.write("watch.py", include_bytes!("../../examples/dma/cocotb/watch.py"))?;
    let mut command = cosim(lab, "dma.sv", DMA, &["--sim", "icarus"])?;
    cocotb.settings(lab, &mut command, "watch");
    command.env("VIADUCT_VPI", &cocotb.module);
    let mut viaduct = serve(lab, command)?;
    let plan = Guest::plan(lab, "6.12").own_program(&cards::driver(lab, "dma", cards::DRIVER)?);
    let plan = plan?.own_program(&cards::driver(lab, "poke", cards::POKE)?)?;
    let mut guest = cards::plug(plan, &lab.path("card")).boot()?;
    guest.shell.run("dma sysfs 20 && poke 1234:0da7 u 60 0xc0c07b")?;
    viaduct.prints("cocotb: copy 4 of")?;
    viaduct.is_alive()
}

/// Writes for each second of the simulating process's time, on one design.
fn rate(lab: &Lab) -> Result<()> {
    // Fewer than what a port keeps for a model that is busy, of 48 bytes each.
    const WRITES: u32 = 60_000;
    let cocotb = Cocotb::install(lab)?;
    lab.write("plain.py", include_bytes!("../../examples/dma/cocotb/plain.py"))?;
    let only = cosim(lab, "dma.sv", DMA, &["--sim", "icarus", "--build-only"])?;
    lab.run("build", only)?;
    let mut alone = lab.program("vvp")?;
    let (folder, name) = (cocotb.module.parent(), cocotb.module.file_name());
    alone.arg("-M").arg(folder.context("no folder")?).arg("-m").arg(name.context("no name")?);
    alone.arg(lab.path("build/design.vvp"));
    cocotb.settings(lab, &mut alone, "plain");
    let said = lab.run("plain", alone)?;
    let line = said.lines().find(|line| line.starts_with("cocotb: 2000 writes in"));
    let took = line.and_then(|line| line.split(' ').nth(4)).context("cocotb did not finish")?;
    let alone = 2000.0 / took.parse::<f64>()?;

    let viaduct = serve(lab, cosim(lab, "dma.sv", DMA, &["--patience", "60000"])?)?;
    let model = cards::child_of(viaduct.id())?;
    let before = processor_time(model)?;
    // They wait while it is stopped, so that it does nothing but take them afterwards.
    cards::signal(model, "STOP")?;
    trace::writes(&lab.path("card"), WRITES, || cards::signal(model, "CONT"))?;
    let ours = f64::from(WRITES) / (processor_time(model)? - before);
    println!("writes a second of processor time: {ours:.0}, cocotb {alone:.0}");
    ensure!(ours > 100.0 * alone, "{ours:.0} writes a second, cocotb {alone:.0}");
    Ok(())
}

/// Seconds of the first thread, which is the one that simulates.
fn processor_time(pid: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
    let first = text.split(' ').next().context("an empty line")?;
    Ok(first.parse::<f64>()? / 1e9)
}

/// Cycles a second while it copies: VHDL by way of synthesis, and Verilog beside it.
fn cycles(lab: &Lab) -> Result<()> {
    let vhdl = include_bytes!("../../examples/dma/vhdl/dma.vhd");
    let vhdl = cycle_rate(lab, cosim(lab, "dma.vhd", vhdl, &["--sim", "ghdl-synth"])?)?;
    let verilog = cycle_rate(lab, cosim(lab, "dma.sv", DMA, &[])?)?;
    println!("cycles a second of processor time: {vhdl:.0} in VHDL, {verilog:.0} in Verilog");
    // On a busy machine all figures are lower.
    ensure!(vhdl > 0.25 * verilog, "{vhdl:.0} cycles a second in VHDL, {verilog:.0} in Verilog");
    Ok(())
}

fn cycle_rate(lab: &Lab, command: Command) -> Result<f64> {
    let mut viaduct = serve(lab, command)?;
    trace::copies(&lab.path("card"), 400)?;
    // It counts at its end.
    cards::signal(cards::child_of(viaduct.id())?, "TERM")?;
    viaduct.prints("s of processor time")?;
    let said = viaduct.printed();
    let line = said.lines().find(|line| line.starts_with("simulation: "));
    let words: Vec<&str> = line.context("it did not count")?.split(' ').collect();
    Ok(words[1].parse::<f64>()? / words[4].parse::<f64>()?)
}
