//! More on the machine without a hypervisor: a daemon that turns against it, daemons for its
//! network card, what passes viaduct in pass mode, drivers that come and go.

use anyhow::Result;

use crate::bare_host::{LIMIT, LONG, OWN_DAEMON, QSD, bare_host, script_within};
use crate::cards;
use crate::guest::Plan;
use crate::lab::Lab;
use crate::runner::Case;

/// The rows that are run each time, or `all`.
pub fn cases(all: bool) -> Vec<Case> {
    let mut cases = vec![
        case("6.12, a hostile daemon finds its own device's memory only", |lab| {
            hostile(lab, "6.12", "pass translate:spoil")
        }),
        case("6.12, net on passt by vduse, mode chosen by itself", |lab| {
            passt(lab, "6.12", "auto", "translate")
        }),
        case("6.12, net on testpmd by vduse, pass", |lab| testpmd(lab, "6.12", "pass")),
        case("6.12, pass mode costs interrupts only, a daemon that records", |lab| {
            direct(lab, "6.12", OWN_DAEMON, "")
        }),
        case("6.12, a driver comes and goes thirty times", |lab| cycles(lab, "6.12", 30)),
    ];
    if all {
        cases.extend(seldom());
    }
    cases
}

/// The rows of the long run only.
fn seldom() -> Vec<Case> {
    let mut cases = vec![
        case("6.12, a hostile daemon that spoils what it can", |lab| {
            hostile(lab, "6.12", "translate copy translate:spoil copy:spoil")
        }),
        case("7.2, a hostile daemon finds its own device's memory only", |lab| {
            hostile(lab, "7.2", "pass translate copy translate:spoil copy:spoil")
        }),
        case("6.12, pass mode costs interrupts only, qemu-storage-daemon", |lab| {
            direct(lab, "6.12", QSD, "mode=pass")
        }),
        case("7.2, pass mode costs interrupts only, a daemon that records", |lab| {
            direct(lab, "7.2", OWN_DAEMON, "")
        }),
    ];
    for kernel in ["6.12", "7.2"] {
        for mode in ["pass", "copy"] {
            let name = format!("{kernel}, net on passt by vduse, {mode}");
            cases.push(case(&name, move |lab| passt(lab, kernel, mode, mode)));
        }
        let name = format!("{kernel}, net on testpmd by vduse, translate");
        cases.push(case(&name, move |lab| testpmd(lab, kernel, "translate")));
        let name = format!("bare host {kernel}, a driver comes and goes a thousand times");
        cases.push(Case::new(name, LONG, move |lab| cycles(lab, kernel, 1000)));
    }
    cases
}

fn case(name: &str, body: impl Fn(&Lab) -> Result<()> + Send + Sync + 'static) -> Case {
    Case::new(format!("bare host {name}"), LIMIT, body)
}

/// A daemon that has no rights of its own, and looks through all it is given.
fn hostile(lab: &Lab, kernel: &str, ways: &str) -> Result<()> {
    let spy = cards::driver(lab, "spy", include_str!("../models/spy.c"))?;
    let plan = bare_host(lab, kernel).program("setpriv").own_program(&spy)?;
    let script = include_str!("../../guest/vduse-spy.sh");
    script_within(LIMIT, lab, plan, &format!("ways='{ways}'\n{script}")).map(drop)
}

fn passt(lab: &Lab, kernel: &str, mode: &str, expected: &str) -> Result<()> {
    let plan = bare_host(lab, kernel).program("passt").program("iperf3");
    card(lab, plan, &format!("daemon=passt\nmode={mode}\nexpected={expected}\n"))
}

fn testpmd(lab: &Lab, kernel: &str, mode: &str) -> Result<()> {
    let mut plan = bare_host(lab, kernel).program("dpdk-testpmd");
    // Loaded by name.
    for library in ["librte_vhost.so.25", "dpdk/pmds-25.0/librte_net_vhost.so.25"]
        .into_iter()
        .chain(["dpdk/pmds-25.0/librte_mempool_ring.so.25"])
    {
        let path = lab.root().file(&format!("{LIBRARIES}/{library}"));
        plan = plan.own_program(&path)?;
    }
    let plan = plan.processors(2).memory_mib(768);
    let values = format!("plugins={LIBRARIES}/dpdk/pmds-25.0\nmode={mode}\nexpected={mode}\n");
    card(lab, plan, &format!("daemon=testpmd\n{values}"))
}

/// Where Debian has them.
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";

fn card(lab: &Lab, plan: Plan<'_>, values: &str) -> Result<()> {
    let script = include_str!("../../guest/vduse-net-daemons.sh");
    script_within(LIMIT, lab, plan.program("ping"), &format!("{values}{script}")).map(drop)
}

fn direct(lab: &Lab, kernel: &str, daemon: &str, setting: &str) -> Result<()> {
    let mut plan = bare_host(lab, kernel).program("fio");
    if daemon == QSD {
        plan = plan.program("qemu-storage-daemon");
    }
    let script = include_str!("../../guest/vduse-direct.sh");
    let values = format!("daemon='{daemon}'\nsetting='{setting}'\n");
    script_within(LIMIT, lab, plan, &format!("{values}{script}")).map(drop)
}

/// The first requests are made while the kernel notes that the driver is ready.
fn cycles(lab: &Lab, kernel: &str, cycles: u32) -> Result<()> {
    let script = include_str!("../../guest/vduse-ready.sh");
    let limit = if cycles > 100 { LONG } else { LIMIT };
    let values = format!("cycles={cycles}\nmode=pass\n");
    script_within(limit, lab, bare_host(lab, kernel), &format!("{values}{script}")).map(drop)
}
