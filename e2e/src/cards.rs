//! PCIe devices of a person's own: the models of `examples/` in a guest, behind a port or in the
//! process that serves them.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::daemon::Daemon;
use crate::guest::{Guest, Plan};
use crate::lab::Lab;
use crate::runner::Case;

/// Some rows emulate an IOMMU too.
const LIMIT: Duration = Duration::from_secs(180);

/// The program that drives the DMA engine from inside the guest.
pub(crate) const DRIVER: &str = include_str!("../../guest/dma.c");
/// One that reads and writes any register.
pub(crate) const POKE: &str = include_str!("../../guest/poke.c");

/// What the model is written in.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Model {
    Rust,
    C,
}

/// What a row does.
type Body = fn(&Lab) -> Result<()>;

/// The rows.
pub fn cases(all: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for model in [Model::Rust, Model::C] {
        let name = format!("guest 6.12, dma engine in {} behind a port", model.name());
        let mut long = |rest: &str, limit, body: fn(&Lab, Model) -> Result<()>| {
            cases.push(Case::new(format!("{name}{rest}"), limit, move |lab| body(lab, model)));
        };
        if all {
            let body: fn(&Lab, Model) -> Result<()> = |lab, model| killed(lab, model, 1000);
            long(", killed a thousand times", 6 * LIMIT, body);
        }
        let mut row = |rest: &str, body| long(rest, LIMIT, body);
        row("", by_sysfs);
        row(", vfio and each kind of interrupt", by_vfio);
        row(", memory by messages", unshared);
        row(", reset by the kernel", resets);
        row(", killed again and again", |lab, model| killed(lab, model, 60));
    }
    let more: [(&str, Body); 9] = [
        ("guest 6.12, dma engine in rust in process", in_process),
        ("guest 6.12, leds in python behind a port", leds),
        ("guest 6.12, a program written for vpcie behind a port", vpcie),
        ("guest 6.12, every function of vpcie's interface", vpcie_whole),
        ("guest 6.12, reads that are hard to answer", |lab| hesitant(lab, true)),
        ("guest 6.12, reads that are hard to answer, memory by messages", |lab| {
            hesitant(lab, false)
        }),
        ("guest 6.12, what lspci shows of a card, q35", |lab| lspci(lab, Slot::Q35)),
        ("guest 6.12, what lspci shows of a card, pc", |lab| lspci(lab, Slot::Pc)),
        ("guest arm64, what lspci shows of a card, virt", |lab| lspci(lab, Slot::Arm)),
    ];
    cases.extend(more.map(|(name, body)| Case::new(name, LIMIT, body)));
    cases
}

impl Model {
    fn name(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::C => "c",
        }
    }

    /// The model's program, built if need be.
    fn program(self, lab: &Lab) -> Result<PathBuf> {
        match self {
            Self::Rust => built(lab, "dma-engine"),
            Self::C => {
                let source = include_str!("../../examples/dma/c/dma.c");
                compile(lab, "dma-c", source)
            }
        }
    }
}

/// Something of ours that cargo has built beside the program under test.
pub fn built(lab: &Lab, name: &str) -> Result<PathBuf> {
    let path = lab.viaduct_path()?.with_file_name(name);
    ensure!(path.exists(), "no {}: cargo build --release --workspace", path.display());
    Ok(path)
}

/// A C program linked with the static library, by this machine's compiler.
pub(crate) fn compile(lab: &Lab, name: &str, source: &str) -> Result<PathBuf> {
    let library = built(lab, "libviaduct.a")?;
    let file = lab.write(&format!("{name}.c"), source.as_bytes())?;
    lab.write("viaduct.h", include_bytes!("../../crates/sdk/include/viaduct.h"))?;
    let program = lab.path(name);
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-Wall", "-Wextra", "-Werror", "-I"]).arg(lab.path(""));
    cc.arg("-o").arg(&program).arg(file).arg(library).args(["-lpthread", "-ldl", "-lm"]);
    lab.run(&format!("cc-{name}"), cc)?;
    Ok(program)
}

/// A program that runs inside the guest, built by the root's compiler.
pub fn driver(lab: &Lab, name: &str, source: &str) -> Result<PathBuf> {
    let source = lab.write(&format!("guest-{name}.c"), source.as_bytes())?;
    let program = lab.path(name);
    let mut gcc = lab.program("gcc")?;
    gcc.args(["-O2", "-static", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&program).arg(source);
    lab.run(&format!("gcc-{name}"), gcc)?;
    Ok(program)
}

/// A card whose model is a program in Python.
pub(crate) fn python(lab: &Lab, name: &str, model: &[u8]) -> Result<Card> {
    lab.write(name, model)?;
    std::fs::create_dir(lab.path("viaduct")).context("make a folder")?;
    let module = include_bytes!("../../python/viaduct/__init__.py");
    lab.write("viaduct/__init__.py", module)?;
    let python = format!("python3 {}", lab.path(name).display());
    let library = built(lab, "libviaduct.so")?;
    let settings = [("VIADUCT_LIBRARY", library)];
    Card::command(lab, &python, &[], &settings)
}

fn leds(lab: &Lab) -> Result<()> {
    let mut card = python(lab, "led.py", include_bytes!("../../examples/led/led.py"))?;
    let plan = Guest::plan(lab, "6.12").own_program(&driver(lab, "poke", POKE)?)?;
    let mut guest = card.plug(plan).boot()?;
    guest.shell.run(include_str!("../../guest/leds.sh"))?;
    card.viaduct.prints("*.*.*.*.")?;
    card.viaduct.is_alive()
}

fn vpcie(lab: &Lab) -> Result<()> {
    lab.write("pcie.h", include_bytes!("../../crates/sdk/include/pcie.h"))?;
    let program = compile(lab, "pattern", include_str!("../../examples/vpcie/pattern.c"))?;
    // Addresses and ports, as VPCIe's programs want them.
    let command = format!("{} 127.0.0.1 42425 127.0.0.1 42424", program.display());
    let mut card = Card::command(lab, &command, &[], &[])?;
    let plan = Guest::plan(lab, "6.12").own_program(&driver(lab, "poke", POKE)?)?;
    let mut guest = card.plug(plan).boot()?;
    guest.shell.run(include_str!("../../guest/vpcie.sh"))?;
    card.viaduct.is_alive()
}

fn vpcie_whole(lab: &Lab) -> Result<()> {
    lab.write("pcie.h", include_bytes!("../../crates/sdk/include/pcie.h"))?;
    let program = compile(lab, "vpcie", include_str!("../models/vpcie.c"))?;
    let mut card = Card::command(lab, &program.to_string_lossy(), &[], &[])?;
    let plan = Guest::plan(lab, "6.12").own_program(&driver(lab, "poke", POKE)?)?;
    let mut guest = card.plug(plan).boot()?;
    guest.shell.run(include_str!("../../guest/vpcie-api.sh"))?;
    card.viaduct.prints("the model ended (exit status: 0)")
}

/// A read that needs host memory first: from shared memory it is answered; where QEMU is needed for
/// that, which waits for the very read, it gets all ones in time, and the machine goes on.
fn hesitant(lab: &Lab, is_shared: bool) -> Result<()> {
    let program = compile(lab, "hesitant", include_str!("../models/hesitant.c"))?;
    let mut card = Card::command(lab, &program.to_string_lossy(), &[], &[])?;
    let plan = Guest::plan(lab, "6.12").own_program(&driver(lab, "poke", POKE)?)?;
    let plan = if is_shared { plan } else { plan.without_shared_memory() };
    let mut guest = card.plug(plan).boot()?;
    let fetched = if is_shared { "0x5a5a5a5a" } else { "0xffffffff" };
    let script = include_str!("../../guest/hesitant.sh");
    guest.shell.run(&format!(": hesitant.sh\nfetched={fetched}\n{script}"))?;
    card.viaduct.is_alive()
}

/// A port with its model.
pub(crate) struct Card {
    pub(crate) viaduct: Daemon,
    pub(crate) socket: PathBuf,
}

impl Card {
    fn start(lab: &Lab, model: Model) -> Result<Card> {
        let program = model.program(lab)?;
        Card::command(lab, &program.to_string_lossy(), &[], &[])
    }

    /// The DMA engine in Rust.
    pub(crate) fn start_rust(lab: &Lab) -> Result<Card> {
        Card::start(lab, Model::Rust)
    }

    pub(crate) fn command(
        lab: &Lab,
        model: &str,
        options: &[&str],
        settings: &[(&str, PathBuf)],
    ) -> Result<Card> {
        let socket = lab.path("card");
        let mut command = lab.viaduct()?;
        command.arg("pcie").arg("--socket").arg(&socket).args(["--model", model]).args(options);
        command.envs(settings.iter().map(|(name, value)| (name, value)));
        let mut viaduct = lab.start("viaduct", command)?;
        viaduct.listens_at(&socket)?;
        Ok(Card { viaduct, socket })
    }

    /// Kills the model and waits until it is back.
    pub(crate) fn restart_model(&mut self) -> Result<()> {
        let before = attached(&self.viaduct);
        signal(child_of(self.viaduct.id())?, "KILL")?;
        wait_until(self, |card| attached(&card.viaduct) > before)
    }

    pub(crate) fn plug<'l>(&self, plan: Plan<'l>) -> Plan<'l> {
        plug(plan, &self.socket)
    }
}

/// The machine with the card of this socket in it.
pub(crate) fn plug<'l>(plan: Plan<'l>, socket: &std::path::Path) -> Plan<'l> {
    plan.device("pcie-root-port,id=rp0,chassis=1").device(format!(
        r#"{{"driver":"vfio-user-pci","bus":"rp0","socket":{{"type":"unix","path":"{}"}}}}"#,
        socket.display()
    ))
}

pub(crate) fn plan(lab: &Lab) -> Result<Plan<'_>> {
    Guest::plan(lab, "6.12").own_program(&driver(lab, "dma", DRIVER)?)
}

fn by_sysfs(lab: &Lab, model: Model) -> Result<()> {
    let mut card = Card::start(lab, model)?;
    let mut guest = card.plug(plan(lab)?).boot()?;
    guest.shell.run("dma sysfs 500")?;
    card.viaduct.is_alive()
}

fn in_process(lab: &Lab) -> Result<()> {
    let socket = lab.path("card");
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(Model::Rust.program(lab)?).arg(&socket);
    let mut model = lab.start("model", command)?;
    model.listens_at(&socket)?;
    let mut guest = plug(plan(lab)?, &socket).boot()?;
    guest.shell.run("dma sysfs 500")?;
    model.is_alive()
}

fn unshared(lab: &Lab, model: Model) -> Result<()> {
    let card = Card::start(lab, model)?;
    let mut guest = card.plug(plan(lab)?.without_shared_memory()).boot()?;
    guest.shell.run("dma sysfs 100").map(drop)
}

fn by_vfio(lab: &Lab, model: Model) -> Result<()> {
    let card = Card::start(lab, model)?;
    let iommu = plan(lab)?.device("intel-iommu,caching-mode=on,intremap=off");
    let modules = iommu.module("vfio_iommu_type1").module("vfio_pci").append("intel_iommu=on");
    let mut guest = card.plug(modules).boot()?;
    guest.shell.run_within(LIMIT, include_str!("../../guest/dma-vfio.sh")).map(drop)
}

fn resets(lab: &Lab, model: Model) -> Result<()> {
    let card = Card::start(lab, model)?;
    let mut guest = card.plug(plan(lab)?).boot()?;
    guest.shell.run(include_str!("../../guest/dma-power.sh")).map(drop)
}

/// Rounds of a model that is killed, or stopped for a while, under load.
fn killed(lab: &Lab, model: Model, rounds: u32) -> Result<()> {
    let mut card = Card::start(lab, model)?;
    let mut guest = card.plug(plan(lab)?).boot()?;
    guest.shell.run(
        "(dma faults 1000000 >/tmp/load.log 2>&1; echo $? >/tmp/load.status) </dev/null &
         sleep 1; test ! -e /tmp/load.status",
    )?;
    let mut took = Vec::new();
    for round in 0..rounds {
        let before = attached(&card.viaduct);
        let pid = child_of(card.viaduct.id())?;
        let is_stop = round % 4 == 3;
        signal(pid, if is_stop { "STOP" } else { "KILL" })?;
        if is_stop {
            let before = silences(&card.viaduct);
            wait_until(&mut card, |card| silences(&card.viaduct) > before)?;
            signal(pid, "CONT")?;
            continue;
        }
        let begin = Instant::now();
        wait_until(&mut card, |card| attached(&card.viaduct) > before)?;
        took.push(begin.elapsed());
        guest.qemu.is_alive()?;
    }
    guest.shell.run("test ! -e /tmp/load.status || { cat /tmp/load.log; exit 1; }")?;
    took.sort_unstable();
    let median = took[took.len() / 2];
    // The guest's own work on a busy machine is in it; on one that is not, nearly all is the pause
    // before a model is started again (20 ms).
    let most = took[took.len() * 9 / 10];
    let is_quick = median < Duration::from_millis(100) && most < Duration::from_millis(200);
    ensure!(is_quick, "the model needed {took:?} to come back");
    card.viaduct.is_alive()
}

/// Where a card is plugged in.
#[derive(Clone, Copy, PartialEq)]
enum Slot {
    /// PCI Express of a PC.
    Q35,
    /// Conventional PCI.
    Pc,
    /// PCI Express of an ARM board, which no firmware has set up.
    Arm,
}

/// What the guest's tools say of a card is what its author said.
fn lspci(lab: &Lab, slot: Slot) -> Result<()> {
    let express = slot != Slot::Pc;
    let source = include_str!("../../examples/showcase/showcase.c");
    let program = compile(lab, "showcase", source)?;
    let kind = if express { "express" } else { "conventional" };
    let command = format!("{} {kind}", program.display());
    let card = Card::command(lab, &command, &[], &[])?;
    let kernel = if slot == Slot::Arm { "arm64" } else { "6.12" };
    let plan = Guest::plan(lab, kernel).program("lspci").program("setpci");
    let plan = if express {
        card.plug(plan)
    } else {
        let socket = card.socket.display();
        plan.machine("pc").device(format!(
            r#"{{"driver":"vfio-user-pci","socket":{{"type":"unix","path":"{socket}"}}}}"#
        ))
    };
    let mut guest = plan.boot()?;
    if slot == Slot::Arm {
        // What a PC's firmware does: decode I/O ports and memory, SERR, fast back-to-back.
        guest.shell.run("setpci -d 1234:5c0e COMMAND=0303 2>/dev/null")?;
    }
    let shown = guest.shell.run("lspci -n -d 1234:5c0e -vvv 2>/dev/null")?;
    let wanted = match express {
        true => include_str!("../../examples/showcase/express.lspci"),
        false => include_str!("../../examples/showcase/conventional.lspci"),
    };
    let normal = |text: &str| -> Vec<String> {
        let lines = text.lines().map(|line| line.trim_end().to_owned());
        // Where it is plugged and what firmware gave it is the machine's business.
        let is_its_own = |line: &String| !line.is_empty() && !line.contains("Physical Slot");
        lines.filter(is_its_own).map(|line| without_places(&line)).collect()
    };
    let (shown, wanted) = (normal(&shown), normal(wanted));
    ensure!(shown == wanted, "lspci shows\n{}\nand not\n{}", shown.join("\n"), wanted.join("\n"));
    Ok(())
}

/// A line of lspci without places, addresses and numbers of interrupts.
fn without_places(line: &str) -> String {
    let mut words: Vec<&str> = line.split(' ').collect();
    if !line.starts_with(char::is_whitespace) {
        words[0] = "...";
    }
    for n in 1..words.len() {
        if ["at", "IRQ"].contains(&words[n - 1]) {
            words[n] = "...";
        }
    }
    words.join(" ")
}

/// Waits for something that the port says.
fn wait_until(card: &mut Card, happened: impl Fn(&Card) -> bool) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    while !happened(card) {
        ensure!(Instant::now() < end, "it did not happen in time");
        let ended = card.viaduct.ended_within(Duration::from_millis(1))?;
        ensure!(ended.is_none(), "the port has ended");
    }
    Ok(())
}

/// How many times the model was found to take nothing.
fn silences(viaduct: &Daemon) -> usize {
    viaduct.printed().matches("has taken nothing").count()
}

/// How many times a model was let in.
fn attached(viaduct: &Daemon) -> usize {
    viaduct.printed().matches("is here").count()
}

/// The only child of a process.
pub fn child_of(pid: u32) -> Result<u32> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let found = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))?;
        let all = tasks
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("children")).ok());
        let found = all.fold(found, |all, some| all + " " + &some);
        if let Some(child) = found.split_whitespace().next() {
            return child.parse().context("the number of a process");
        }
        ensure!(Instant::now() < end, "the port has no model");
        std::thread::yield_now();
    }
}

pub(crate) fn signal(pid: u32, name: &str) -> Result<()> {
    let raw = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    let pid = raw.context("no process")?;
    let signal = match name {
        "STOP" => rustix::process::Signal::STOP,
        "CONT" => rustix::process::Signal::CONT,
        "TERM" => rustix::process::Signal::TERM,
        _ => rustix::process::Signal::KILL,
    };
    Ok(rustix::process::kill_process(pid, signal)?)
}
