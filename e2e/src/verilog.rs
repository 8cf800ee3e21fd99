//! PCIe devices written in Verilog, in a guest: built by the root's Verilator.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::process::Signal;

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

/// The same by descriptors, and by packets.
const STREAMS: &str = include_str!("../../examples/dma/verilog/dma_streams.sv");
const PCIE: &str = include_str!("../../examples/dma/verilog/dma_pcie.sv");
const TLP: &str = include_str!("../../examples/dma/verilog/dma_tlp.sv");

/// The rows; `all` of them, or those that are run each time.
pub fn cases(all: bool) -> Vec<Case> {
    let mut rows: Vec<(&str, Body)> = vec![
        ("guest 6.12, dma engine in verilog", dma),
        ("guest 6.12, verilog that is edited meanwhile", edited),
        ("guest 6.12, virtio rng whose data path is verilog", rng),
        ("guest 6.12, a sorting accelerator in verilog", sort),
        ("guest 6.12, dma engine in verilog by descriptors and streams", streams),
        ("guest 6.12, dma engine in verilog by xilinx's pcie streams, 512 bits", pcie),
        ("guest 6.12, dma engine in verilog by packets, 256 bits, slow", tlp),
    ];
    if all {
        rows.push(("guest 6.12, dma engine in verilog, vfio and each kind of interrupt", dma_vfio));
        rows.push(("guest 6.12, dma engine in verilog, memory by messages", dma_unshared));
        rows.push(("guest 6.12, dma engine in verilog, slow memory, paced clock", dma_slow));
        rows.push(("guest 6.12, verilog whose clock is locked to accesses, twice", locked));
        rows.push(("guest 6.12, dma engine in verilog by pcie streams, 64 bits", pcie_narrow));
        rows.push(("guest 6.12, dma engine in verilog by pcie streams, other widths", pcie_widths));
        rows.push((
            "guest 6.12, verilog by pcie streams that leaves a read without answer",
            unanswered,
        ));
        rows.push(("guest 6.12, dma engine in verilog by packets, other widths", tlp_widths));
        rows.push(("guest 6.12, dma engine in verilog by packets, vfio and interrupts", tlp_vfio));
        rows.push(("guest 6.12, dma engine in verilog by packets, by messages", tlp_unshared));
        rows.push(("guest 6.12, dma engine in verilog by descriptors, 8 bits, slow", streams_slow));
    }
    let mut cases: Vec<Case> =
        rows.into_iter().map(|(name, body)| Case::new(name, LIMIT, body)).collect();
    if all {
        let name = "guest 6.12, dma engine in verilog, edited and killed sixty times under load";
        cases.push(Case::new(name, 10 * LIMIT, edited_under_load));
    }
    cases
}

/// `viaduct cosim` with a design.
struct Card {
    viaduct: Daemon,
    socket: PathBuf,
}

impl Card {
    /// `options` come before the names of the sources.
    fn start(lab: &Lab, top: &str, source: &str, options: &[&str]) -> Result<Card> {
        Card::named(lab, "card", top, source, options)
    }

    fn named(lab: &Lab, name: &str, top: &str, source: &str, options: &[&str]) -> Result<Card> {
        let file = lab.write(&format!("{top}.sv"), source.as_bytes())?;
        let socket = lab.path(name);
        let mut command = lab.viaduct_in_root()?;
        command.args(["cosim", "--top", top, "--socket"]).arg(&socket);
        command.arg("--build").arg(lab.path(&format!("{name}.build"))).args(options).arg(file);
        let mut viaduct = lab.start(&format!("viaduct-{name}"), command)?;
        viaduct.listens_at(&socket)?;
        Ok(Card { viaduct, socket })
    }

    fn plug<'l>(&self, plan: Plan<'l>) -> Plan<'l> {
        cards::plug(plan, &self.socket)
    }

    fn kill_simulation(&self) -> Result<()> {
        let mut all = Vec::new();
        for task in std::fs::read_dir(format!("/proc/{}/task", self.viaduct.id()))? {
            let list = std::fs::read_to_string(task?.path().join("children"));
            all.extend(list.unwrap_or_default().split_whitespace().map(str::to_owned));
        }
        // Compilers are its children too.
        let name = |pid: &String| std::fs::read_to_string(format!("/proc/{pid}/comm"));
        let found = all.iter().find(|pid| name(pid).is_ok_and(|name| name.trim() == "model"));
        found.map_or(Ok(()), |pid| cards::signal(pid.parse()?, "KILL"))
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

/// Sorts pages that the guest's program fills, and checks.
fn sort(lab: &Lab) -> Result<()> {
    lab.write("axi_dma.sv", include_bytes!("../../examples/sort/axi_dma.sv"))?;
    let dma = lab.path("axi_dma.sv");
    let source = include_str!("../../examples/sort/sort.sv");
    let mut card = Card::start(lab, "sort", source, &[&dma.to_string_lossy()])?;
    let program = cards::driver(lab, "sorter", include_str!("../../guest/sort.c"))?;
    let mut guest = card.plug(Guest::plan(lab, "6.12").own_program(&program)?).boot()?;
    guest.shell.run("sorter 50")?;
    card.is_well()
}

/// The guest's own driver of virtio-rng, and an engine that knows nothing of virtio.
fn rng(lab: &Lab) -> Result<()> {
    let mut card = Card::start(lab, "rng", include_str!("../../examples/rng/rng.sv"), &[])?;
    let mut guest = card.plug(Guest::plan(lab, "6.12")).boot()?;
    guest.shell.run(include_str!("../../guest/rng.sh"))?;
    card.is_well()
}

fn streams(lab: &Lab) -> Result<()> {
    engine(lab, "dma_streams", STREAMS, &[], 300)
}

fn streams_slow(lab: &Lab) -> Result<()> {
    let slow = ["-G", "WIDTH=8", "--set", "latency=20", "--set", "stalls=30"];
    engine(lab, "dma_streams", STREAMS, &slow, 100)
}

fn pcie(lab: &Lab) -> Result<()> {
    engine(lab, "dma_pcie", PCIE, &["-G", "WIDTH=512"], 300)
}

fn pcie_narrow(lab: &Lab) -> Result<()> {
    let slow = ["-G", "WIDTH=64", "--set", "latency=20", "--set", "stalls=30"];
    engine(lab, "dma_pcie", PCIE, &slow, 100)
}

fn pcie_widths(lab: &Lab) -> Result<()> {
    at_widths(lab, "dma_pcie", PCIE, &["WIDTH=128", "WIDTH=256"])
}

/// A design that takes one read at a time, and never answers those of its last register: the
/// harness gives them up, and those that then wait, and the write behind them arrives.
fn unanswered(lab: &Lab) -> Result<()> {
    let mut source = PCIE.to_owned();
    for (old, new) in [
        ("output logic irq,", "output logic irq, pcie_cq_np_req,"),
        ("!is_write && !cc_busy;", "!is_write && !cc_busy && at != 15;"),
        ("(is_write || cc_start)) cq_there", "(is_write || cc_start || at == 15)) cq_there"),
        (
            "assign irq = pending;",
            "assign irq = pending;
             logic was_on;
             always_ff @(posedge clk) was_on <= rst_n;
             assign pcie_cq_np_req =
                 rst_n && !was_on || cc_start || cq_there && is_write && at == 15;",
        ),
    ] {
        ensure!(source.matches(old).count() == 1, "the design has not one {old:?}");
        source = source.replace(old, new);
    }
    let mut card = Card::start(lab, "dma_pcie", &source, &["-G", "WIDTH=64"])?;
    let poke = cards::driver(lab, "poke", cards::POKE)?;
    let mut guest = card.plug(Guest::plan(lab, "6.12").own_program(&poke)?).boot()?;
    let id = guest.shell.run("poke 1234:0da7 r 0")?;
    ensure!(id.trim() == "0x414d4456", "before, the register is {id:?}");
    let lost = guest.shell.run("poke 1234:0da7 r 0x3c r 0x30 w 0x3c 5")?;
    ensure!(lost.trim() == "0xffffffff\n0xffffffff", "without an answer they are {lost:?}");
    // Two million cycles later at most.
    let again = "poke 1234:0da7 u 0 0x414d4456";
    guest.shell.run(&format!("{again} || {again} || {again}"))?;
    card.is_well()
}

/// Completions come in any order and in pieces of any length.
fn tlp(lab: &Lab) -> Result<()> {
    let slow = ["-G", "WIDTH=256", "--set", "latency=20", "--set", "stalls=30"];
    engine(lab, "dma_tlp", TLP, &slow, 300)
}

fn tlp_widths(lab: &Lab) -> Result<()> {
    at_widths(lab, "dma_tlp", TLP, &["WIDTH=64", "WIDTH=128", "WIDTH=512"])
}

/// One card of each width in one machine, quick and slow.
fn at_widths(lab: &Lab, top: &str, source: &str, widths: &[&str]) -> Result<()> {
    let mut cards = Vec::new();
    let mut plan = plan(lab)?;
    for width in widths {
        for stalls in ["stalls=0", "stalls=40"] {
            let name = format!("card-{width}-{stalls}");
            let options = ["-G", width, "--set", stalls];
            let card = Card::named(lab, &name, top, source, &options)?;
            let bus = format!("rp{}", cards.len());
            let socket = format!(r#"{{"type":"unix","path":"{}"}}"#, card.socket.display());
            plan = plan
                .device(format!("pcie-root-port,id={bus},chassis={}", cards.len() + 1))
                .device(format!(r#"{{"driver":"vfio-user-pci","bus":"{bus}","socket":{socket}}}"#));
            cards.push(card);
        }
    }
    let mut guest = plan.boot()?;
    for (number, card) in cards.iter_mut().enumerate() {
        guest.shell.run(&format!("CARD={number} dma sysfs 200"))?;
        card.is_well()?;
    }
    Ok(())
}

fn tlp_vfio(lab: &Lab) -> Result<()> {
    vfio(lab, "dma_tlp", TLP, "WIDTH=512")
}

/// By messages a driver that waits for the interrupt finds what was written before it; the one of
/// MSI-X is a pulse of one cycle, while those writes are under way.
fn tlp_unshared(lab: &Lab) -> Result<()> {
    let plan = plan(lab)?.without_shared_memory();
    vfio_in(lab, plan, "dma_tlp", TLP, "WIDTH=128")
}

/// An engine with the same registers and another way to host memory.
fn engine(lab: &Lab, top: &str, source: &str, options: &[&str], copies: u32) -> Result<()> {
    let mut card = Card::start(lab, top, source, options)?;
    let mut guest = card.plug(plan(lab)?).boot()?;
    guest.shell.run(&format!("dma sysfs {copies}"))?;
    card.is_well()
}

fn dma_vfio(lab: &Lab) -> Result<()> {
    vfio(lab, "dma", DMA, "WIDTH=512")
}

fn vfio(lab: &Lab, top: &str, source: &str, width: &str) -> Result<()> {
    vfio_in(lab, plan(lab)?, top, source, width)
}

fn vfio_in(lab: &Lab, plan: Plan<'_>, top: &str, source: &str, width: &str) -> Result<()> {
    let mut card = Card::start(lab, top, source, &["-G", width])?;
    let iommu = plan.device("intel-iommu,caching-mode=on,intremap=off");
    let modules = iommu.module("vfio_iommu_type1").module("vfio_pci").append("intel_iommu=on");
    let mut guest = card.plug(modules).boot()?;
    guest.shell.run_within(LIMIT, include_str!("../../guest/dma-vfio.sh"))?;
    card.is_well()
}

/// Host memory that answers late and stalls at random cycles: what was right stays right.
fn dma_slow(lab: &Lab) -> Result<()> {
    let slow = ["--set", "latency=40", "--set", "stalls=60", "--clock", "paced:20M"];
    let mut card = Card::start(lab, "dma", DMA, &slow)?;
    let mut guest = card.plug(plan(lab)?).boot()?;
    guest.shell.run("dma sysfs 300")?;
    card.is_well()
}

/// Two cards get the same accesses, in the same order and at other times: cycle by cycle they do
/// the same.
fn locked(lab: &Lab) -> Result<()> {
    let source = include_str!("../models/version.sv");
    let mut plan =
        Guest::plan(lab, "6.12").own_program(&cards::driver(lab, "poke", cards::POKE)?)?;
    let mut cards = Vec::new();
    for (number, name) in ["one", "two"].into_iter().enumerate() {
        let wave = lab.path(&format!("{name}.vcd"));
        let id = format!("id=1234:0f0{number}");
        let words = ["--clock", "locked:20", "--set", &id, "--wave", &wave.to_string_lossy()];
        let card = Card::named(lab, name, "version", source, &words)?;
        let socket = format!(r#"{{"type":"unix","path":"{}"}}"#, card.socket.display());
        plan = plan
            .device(format!("pcie-root-port,id={name},chassis={}", number + 1))
            .device(format!(r#"{{"driver":"vfio-user-pci","bus":"{name}","socket":{socket}}}"#));
        cards.push((card, wave));
    }
    let mut guest = plan.boot()?;
    guest
        .shell
        .run("poke 1234:0f00 r 0 w 4 5 r 4; poke 1234:0f01 r 0; poke 1234:0f01 w 4 5 r 4")?;
    let mut waves = Vec::new();
    for (mut card, wave) in cards {
        card.viaduct.signal(Signal::TERM)?;
        card.viaduct.succeeds()?;
        waves.push(std::fs::read(wave)?);
    }
    ensure!(waves[0].len() > 2000, "the waveform is empty");
    ensure!(waves[0] == waves[1], "the same accesses gave two waveforms");
    Ok(())
}

/// Edits, mistakes and ends of the simulation under load: no byte is wrong, the machine lives, and
/// what is served after an edit is what was written last.
fn edited_under_load(lab: &Lab) -> Result<()> {
    const COUNT: &str = "10:               s_axil_rdata <= count;";
    ensure!(DMA.contains(COUNT), "the design has no such line");
    let edit = |text: &str| lab.write("dma.sv", DMA.replace(COUNT, text).as_bytes());
    let mut card = Card::start(lab, "dma", DMA, &["--watch", "-G", "WIDTH=64"])?;
    let plan = plan(lab)?.own_program(&cards::driver(lab, "poke", cards::POKE)?)?;
    let mut guest = card.plug(plan).boot()?;
    guest.shell.run(
        "(dma faults 1000000 >/tmp/load.log 2>&1; echo $? >/tmp/load.status) </dev/null &
         sleep 1; test ! -e /tmp/load.status",
    )?;
    let times = |viaduct: &Daemon, what: &str| viaduct.printed().matches(what).count();
    let version = |round: usize| format!("{:#x}", round + 1);
    for round in 0..60 {
        let (built, replaced) = (round + 1, times(&card.viaduct, "the model is replaced"));
        if round % 5 == 2 {
            let before = times(&card.viaduct, "the old simulation goes on");
            edit("a mistake")?;
            let is_told = |viaduct: &Daemon| times(viaduct, "the old simulation goes on") > before;
            card.viaduct.until("find the mistake", lab.deadline(), is_told)?;
        }
        edit(&format!("{COUNT}\n                11: s_axil_rdata <= {};", round + 1))?;
        if round % 3 == 1 {
            // While the new one is being built.
            card.kill_simulation()?;
        }
        let is_replaced = |viaduct: &Daemon| times(viaduct, "the model is replaced") > replaced;
        card.viaduct.until("replace the simulation", lab.deadline(), is_replaced)?;
        let end = Instant::now() + Duration::from_secs(30);
        while guest.shell.run("poke 1234:0da7 r 0x2c")?.trim() != version(round) {
            ensure!(Instant::now() < end, "version {round} is not served");
        }
        ensure!(times(&card.viaduct, "built anew") >= built, "it was not built anew");
        guest.qemu.is_alive()?;
        guest.shell.run("test ! -e /tmp/load.status || { cat /tmp/load.log; exit 1; }")?;
    }
    let took = replacements(&card.viaduct.printed());
    ensure!(took.len() == 60, "{} replacements were seen to end", took.len());
    println!("a new simulation was back in {:?}, {:?} at most", took[30], took[59]);
    ensure!(took[30] < Duration::from_millis(200), "back in service after {took:?}");
    card.viaduct.is_alive()
}

/// How long each replacement took, by the times in the log; the shortest first.
fn replacements(log: &str) -> Vec<Duration> {
    let seconds = |line: &str| -> Option<f64> {
        let mut words = line.get(11..26)?.split(':').map(str::parse::<f64>);
        Some((words.next()?.ok()? * 60.0 + words.next()?.ok()?) * 60.0 + words.next()?.ok()?)
    };
    let (mut took, mut began) = (Vec::new(), None);
    for line in log.lines() {
        if line.contains("the model is replaced") {
            began = seconds(line);
        } else if line.contains("is here")
            && let (Some(from), Some(to)) = (began.take(), seconds(line))
        {
            // Midnight may be between them.
            took.push(Duration::from_secs_f64((to - from).rem_euclid(86400.0)));
        }
    }
    took.sort_unstable();
    took
}

/// A source is edited, wrongly edited, and edited again while a guest uses the card.
fn edited(lab: &Lab) -> Result<()> {
    let source = include_str!("../models/version.sv");
    let wave = lab.path("version.vcd");
    let options = ["--watch", "--wave", &wave.to_string_lossy()];
    let mut card = Card::start(lab, "version", source, &options)?;
    let plan = Guest::plan(lab, "6.12").own_program(&cards::driver(lab, "poke", cards::POKE)?)?;
    let mut guest = card.plug(plan).boot()?;
    guest.shell.run("poke 1234:0e01 w 4 0x77")?;
    let asked = guest.shell.run("poke 1234:0e01 r 0 r 4")?;
    ensure!(asked.trim() == "0x1\n0x77", "the first version says {asked:?}");
    let edit = |text: &str| lab.write("version.sv", source.replace("32'd1", text).as_bytes());
    edit("32'd2 +")?;
    card.viaduct.prints("the old simulation goes on")?;
    edit("32'd3")?;
    let end = lab.deadline();
    let is_new = |viaduct: &Daemon| viaduct.printed().matches("is here").count() == 2;
    card.viaduct.until("serve the new version", end, is_new)?;
    let asked = guest.shell.run("poke 1234:0e01 r 0 r 4")?;
    ensure!(asked.trim() == "0x3\n0", "the third version says {asked:?}");
    card.is_well()?;
    // Ended in good order, it leaves a whole waveform.
    card.viaduct.signal(Signal::TERM)?;
    card.viaduct.succeeds()?;
    let wave = std::fs::read_to_string(&wave)?;
    let three = format!("b{:032b} ", 3);
    ensure!(wave.contains("s_axi_rdata") && wave.contains(&three), "the waveform has no such read");
    Ok(())
}
