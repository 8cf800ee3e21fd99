//! What a port can do beyond standing for one card: recordings, many cards in one process, cards
//! that are unplugged; and a card for which the guest has a driver already.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cards::{self, Card};
use crate::guest::{Guest, Plan};
use crate::lab::Lab;
use crate::monitor::Monitor;
use crate::runner::Case;

const LIMIT: Duration = Duration::from_secs(180);

/// The engine in C.
const ENGINE: &str = include_str!("../../examples/dma/c/dma.c");
/// The program that drives it.
const DRIVER: &str = include_str!("../../guest/dma.c");

/// The rows; `all` of them, or those that are run each time.
pub fn cases(all: bool) -> Vec<Case> {
    type Body = fn(&Lab) -> Result<()>;
    let usual: &[(&str, Body)] = &[
        ("guest 6.12, a serial port in c with the kernel's own driver", uart),
        ("guest 6.12, a card in python whose memory the machine maps", window),
        ("guest 6.12, a card is recorded and replayed", replayed),
        ("guest 6.12, four vectors of msi", vectors),
        ("two guests 6.12, eight cards of one process", eight),
        ("guest 6.12, a card is unplugged and plugged in again", |lab| replugged(lab, 4)),
    ];
    let seldom: &[(&str, Body)] = &[
        ("guest 6.12, a card is unplugged and plugged in twenty times", |lab| replugged(lab, 20)),
        ("guest 6.12, dma engine in c and in rust, the same to their driver", compared),
    ];
    let case = |(name, body): &(&str, Body)| Case::new(*name, LIMIT, *body);
    usual.iter().chain(if all { seldom } else { &[] }).map(case).collect()
}

fn plan<'l>(lab: &'l Lab, name: &str) -> Result<Plan<'l>> {
    Guest::plan(lab, "6.12").named(name).own_program(&cards::driver(lab, "dma", DRIVER)?)
}

fn uart(lab: &Lab) -> Result<()> {
    let program = cards::compile(lab, "uart", include_str!("../../examples/uart/uart.c"))?;
    let mut card = Card::command(lab, &program.to_string_lossy(), &[], &[])?;
    let plan = Guest::plan(lab, "6.12").program("stty");
    let mut guest = card.plug(plan).boot()?;
    guest.shell.run(include_str!("../../guest/uart.sh"))?;
    card.viaduct.prints("line 99 of many")?;
    card.viaduct.is_alive()
}

/// Memory of a card that the machine maps: no access reaches the model, and what is there stays
/// when the model goes.
fn window(lab: &Lab) -> Result<()> {
    let model = include_bytes!("../../examples/window/window.py");
    let mut card = cards::python(lab, "window.py", model)?;
    let program = cards::driver(lab, "window", include_str!("../../guest/window.c"))?;
    let mut guest = card.plug(Guest::plan(lab, "6.12").own_program(&program)?).boot()?;
    guest.shell.run("window fill")?;
    card.restart_model()?;
    guest.shell.run("window again")?;
    guest.qemu.is_alive()?;
    card.viaduct.is_alive()
}

/// A card that is recorded while a guest drives it, by a port that is killed in the end: the same
/// model does the same again without a machine, one with another register is found out.
fn replayed(lab: &Lab) -> Result<()> {
    let program = cards::compile(lab, "dma-c", ENGINE)?;
    let file = lab.path("trace");
    record(lab, &program.to_string_lossy(), &file.to_string_lossy())?;
    let trace = file.to_string_lossy();
    let command = program.to_string_lossy();
    let (good, printed) = viaduct(lab, &["replay", &trace, "--model", &command])?;
    ensure!(good && printed.contains("no difference"), "the same model: {printed}");
    let other = cards::compile(lab, "other", &ENGINE.replace("\"VDMA\"", "\"VDMB\""))?;
    let command = other.to_string_lossy();
    let (good, printed) = viaduct(lab, &["replay", &trace, "--model", &command])?;
    let is_told = printed.contains("gets 56444d41") && printed.contains("gets 56444d42");
    ensure!(!good && is_told, "another model: {printed}");
    let (good, printed) = viaduct(lab, &["show", &trace])?;
    ensure!(good && printed.contains("dma #") && printed.contains("write bar 0 + 0x1c"), "show");
    let (good, printed) = viaduct(lab, &["show", "--json", &trace])?;
    ensure!(good && printed.starts_with("[\n{\"time_ns\":") && printed.ends_with("}\n]\n"), "json");
    let (good, printed) = viaduct(lab, &["show", "--vcd", &trace])?;
    ensure!(good && printed.contains("$var wire 64") && printed.contains("\n#"), "vcd");
    Ok(())
}

/// Records 40 copies by a guest, and kills the port.
fn record(lab: &Lab, model: &str, file: &str) -> Result<()> {
    let card = Card::command(lab, model, &["--record", file], &[])?;
    let mut guest = card.plug(plan(lab, "guest")?).boot()?;
    guest.shell.run("dma sysfs 40")?;
    card.viaduct.kill();
    guest.qemu.kill();
    Ok(())
}

/// The engine in two languages, by what one driver sees of them in two guests.
fn compared(lab: &Lab) -> Result<()> {
    let program = cards::compile(lab, "dma-c", ENGINE)?;
    let rust = cards::built(lab, "dma-engine")?;
    let (first, second) = (lab.path("trace-c"), lab.path("trace-rust"));
    record(lab, &program.to_string_lossy(), &first.to_string_lossy())?;
    fs::remove_file(lab.path("card")).context("remove the socket that was left")?;
    record(lab, &rust.to_string_lossy(), &second.to_string_lossy())?;
    let words = ["diff", &first.to_string_lossy(), &second.to_string_lossy()];
    let (good, printed) = viaduct(lab, &words)?;
    ensure!(good && printed.contains("no difference"), "{printed}");
    Ok(())
}

/// Runs `viaduct pcie` to its end; whether it was a success, and what it printed.
fn viaduct(lab: &Lab, words: &[&str]) -> Result<(bool, String)> {
    let output = lab.viaduct()?.arg("pcie").args(words).output().context("run viaduct")?;
    let printed = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    Ok((output.status.success(), printed.into_owned()))
}

/// Eight cards that one process serves, half of them in each of two guests, all at work.
fn eight(lab: &Lab) -> Result<()> {
    const EACH: usize = 4;
    let engine = cards::built(lab, "dma-engine")?;
    let socket = |n: usize| lab.path(&format!("card{n}"));
    let mut file = String::new();
    for n in 0..2 * EACH {
        let (socket, engine) = (socket(n), engine.display());
        writeln!(file, "[pcie.c{n}]\nsocket = {socket:?}\nmodel = \"{engine}\"")?;
    }
    let file = lab.write("cards.toml", file.as_bytes())?;
    let mut command = lab.viaduct()?;
    command.arg("run").arg(file);
    let mut viaduct = lab.start("viaduct", command)?;
    let mut guests = Vec::new();
    for name in ["one", "two"] {
        let mut plan = plan(lab, name)?;
        for n in 0..EACH {
            let number = guests.len() * EACH + n;
            viaduct.listens_at(&socket(number))?;
            let path = socket(number);
            plan = plan.device(format!("pcie-root-port,id=rp{n},chassis={n}"));
            plan = plan.device(card("", n, &path));
        }
        guests.push(plan.boot()?);
    }
    for guest in &mut guests {
        guest.shell.run(
            "for n in 0 1 2 3; do
                 (CARD=$n dma sysfs 20 >/tmp/$n.log 2>&1; echo $? >/tmp/$n.status) </dev/null &
             done",
        )?;
    }
    for guest in &mut guests {
        guest.shell.run(
            "for n in 0 1 2 3; do
                 until test -s /tmp/$n.status; do sleep 0.05; done
                 test \"$(cat /tmp/$n.status)\" = 0 || { cat /tmp/$n.log; exit 1; }
             done",
        )?;
    }
    viaduct.is_alive()
}

/// QEMU's words for the card behind `socket`, at root port `n`.
fn card(more: &str, n: usize, socket: &Path) -> String {
    let socket = format!(r#"{{"type":"unix","path":{socket:?}}}"#);
    format!(r#"{{"driver":"vfio-user-pci",{more}"bus":"rp{n}","socket":{socket}}}"#)
}

/// The engine with four vectors of MSI. They need an IOMMU that remaps interrupts.
fn vectors(lab: &Lab) -> Result<()> {
    let source = ENGINE.replace("viaduct_set_msi(dev, 1);", "viaduct_set_msi(dev, 4);").replace(
        "viaduct_interrupt(engine->dev, 0);",
        "viaduct_msi(engine->dev, get(engine, COUNT, 4) % 4);",
    );
    ensure!(source.contains("% 4"), "the engine interrupts in other words");
    let program = cards::compile(lab, "dma-vectors", &source)?;
    let mut card = Card::command(lab, &program.to_string_lossy(), &[], &[])?;
    lab.write("guest-dma.c", DRIVER.as_bytes())?;
    let program = cards::driver(lab, "vectors", include_str!("../../guest/vectors.c"))?;
    let plan = Guest::plan(lab, "6.12").own_program(&program)?.machine("q35,kernel-irqchip=split");
    let plan = plan.device("intel-iommu,caching-mode=on,intremap=on").append("intel_iommu=on");
    let plan = plan.module("vfio_iommu_type1").module("vfio_pci");
    let mut guest = card.plug(plan).boot()?;
    let printed = guest.shell.run(include_str!("../../guest/vectors.sh"))?;
    ensure!(printed.contains("12 interrupts by 4 vectors"), "{printed}");
    card.viaduct.is_alive()
}

/// A card that is pulled out of the running machine and plugged in again. QEMU 11.1 aborts when
/// that is done to a vfio-user device with MSI-X, so this one has none.
fn replugged(lab: &Lab, rounds: u32) -> Result<()> {
    let source = ENGINE.replace("viaduct_set_msix(dev, 1, 0, 0x800, 0xc00);", "");
    ensure!(source != ENGINE, "the engine sets MSI-X up in other words");
    let program = cards::compile(lab, "dma-plain", &source)?;
    let mut card = Card::command(lab, &program.to_string_lossy(), &[], &[])?;
    let plan = plan(lab, "guest")?.device("pcie-root-port,id=rp0,chassis=1");
    let mut guest = plan.boot()?;
    let mut monitor = Monitor::connect(&guest.monitor, lab.deadline())?;
    let device = self::card(r#""id":"card","#, 0, &card.socket);
    let here = "grep -l 0x0da7 /sys/bus/pci/devices/*/device >/dev/null 2>&1";
    for _ in 0..rounds {
        monitor.execute("device_add", &device)?;
        let waits = format!("until {here}; do sleep 0.02; done; dma sysfs 5");
        guest.shell.run(&waits).context("plugged in")?;
        monitor.execute("device_del", r#"{"id":"card"}"#)?;
        monitor.event("DEVICE_DELETED")?;
        guest.shell.run(&format!("while {here}; do sleep 0.02; done")).context("pulled out")?;
        guest.qemu.is_alive()?;
    }
    card.viaduct.is_alive()
}
