//! The machine's own disk by VDUSE: qemu-storage-daemon behind viaduct, against its own VDUSE
//! export. All three in one emulated machine with one processor, whose clock counts instructions
//! (one is a nanosecond): the rate is what a request costs in instructions of kernel and processes,
//! whatever else this machine does. Caches and the price of a switch between processes, beyond its
//! instructions, are not in it.

use std::cell::RefCell;

use anyhow::{Context, Result, ensure};
use e2e::{Guest, Shell};

use crate::contest::{self, Cores, Entrant};
use crate::lab::Lab;
use crate::placement::Label;
use crate::programs;
use crate::report::{Bound, Measure, Report, Target};

/// Name, disk in the machine.
const WAYS: [(&str, &str); 3] = [
    ("qemu-storage-daemon, its own VDUSE export", "vda"),
    ("viaduct, pass", "vdb"),
    ("viaduct, translate", "vdc"),
];
const PEER: usize = 0;
const PASS: usize = 1;
const TRANSLATE: usize = 2;

/// fio's pattern, bytes of a request, how many are under way; gate and aim of pass and of translate
/// against the peer. Known to be missed with one request under way, where an interrupt that goes
/// through a second process costs as much as the request.
const LOADS: [(Load, Goals); 4] = [
    (("randread", "4k", 1), [(1.0, 1.2), (0.9, 1.0)]),
    (("randread", "4k", 32), [(1.0, 1.2), (0.9, 1.0)]),
    (("randwrite", "4k", 32), [(1.0, 1.2), (0.9, 1.0)]),
    (("randread", "64k", 32), [(1.0, 1.2), (0.9, 1.0)]),
];

type Load = (&'static str, &'static str, u32);
type Goals = [(f64, f64); 2];

const MEASURES: [Measure; 4] = [
    Measure { name: "requests/s", digits: 0 },
    Measure { name: "MiB/s", digits: 2 },
    Measure { name: "us each", digits: 0 },
    Measure { name: "us of processor/request", digits: 1 },
];

/// Runs all measurements of this group.
pub fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    let place = programs::lab()?;
    let mut plan = Guest::plan(&place, "6.12").module("vduse").module("virtio_vdpa");
    for program in ["fio", "qemu-storage-daemon", "vdpa"] {
        plan = plan.program(program);
    }
    let plan = plan
        .option("icount", "shift=0,sleep=off")
        .memory_mib(768)
        .own_program(&place.viaduct_path()?)?;
    let mut guest = plan.boot()?;
    let functions = include_str!("../../../guest/vduse-serve.sh");
    let script = include_str!("../../../guest/loopback-bench.sh");
    guest.shell.run(&format!("{functions}{script}"))?;
    say_idle(report, &mut guest.shell)?;
    let shell = RefCell::new(&mut guest.shell);
    for ((pattern, bytes, depth), goals) in LOADS {
        let entrants = WAYS.iter().map(|(name, disk)| {
            let shell = &shell;
            Entrant::new(*name, move || {
                window(&mut shell.borrow_mut(), disk, (pattern, bytes, depth))
            })
        });
        let outcome = contest::run(lab, Cores::One, 3, entrants.collect())?;
        report.table(&format!("{pattern}, {bytes}, {depth} under way"), &outcome, &MEASURES);
        let label = Label::OneCore;
        for (ours, (floor, aim)) in [PASS, TRANSLATE].into_iter().zip(goals) {
            let rate = Target { row: "l-r", label, bound: Bound::AtLeast, floor, aim };
            report.ratio(&outcome, 0, (ours, PEER), rate);
        }
    }
    Ok(())
}

/// Works on a disk for a moment.
fn window(
    shell: &mut Shell,
    disk: &str,
    (pattern, bytes, depth): (&str, &str, u32),
) -> Result<Vec<f64>> {
    let printed = shell.run(&format!(
        "set -eu
        busy() {{ awk '/^cpu / {{ print $2 + $3 + $4 + $7 + $8 }}' /proc/stat; }}
        before=$(busy)
        /bin/fio --name=load --filename=/dev/{disk} --direct=1 --ioengine=libaio --rw={pattern} \
            --bs={bytes} --iodepth={depth} --runtime=1 --time_based --size=512M --minimal \
            --norandommap --output=/tmp/fio
        echo \"figures $(($(busy) - before)) $(cut -d';' -f6,8,9,47,49,50 /tmp/fio | tr ';' ' ')\""
    ))?;
    let line = figures_in(&printed)?;
    let figures: Vec<f64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    // Processor in ticks of 10 ms; then KiB, requests/s and milliseconds of reads and of writes.
    ensure!(figures.len() == 7, "fio says {line}");
    let ticks = figures[0];
    let side = if figures[1] > 0.0 { &figures[1..4] } else { &figures[4..7] };
    let (kib, rate, milliseconds) = (side[0], side[1], side[2]);
    let requests = rate * milliseconds / 1e3;
    let mib = kib / 1024.0 / (milliseconds / 1e3);
    Ok(vec![rate, mib, f64::from(depth) * 1e6 / rate, ticks * 1e4 / requests])
}

/// What a script says behind the word; fio may have left its line unfinished.
fn figures_in(printed: &str) -> Result<&str> {
    let (_, rest) = printed.rsplit_once("figures ").with_context(|| format!("what? {printed}"))?;
    Ok(rest.lines().next().unwrap_or_default())
}

/// Memory of the processes of each disk, and what they use when nobody does anything.
fn say_idle(report: &mut Report, shell: &mut Shell) -> Result<()> {
    report.line("\n## nobody does anything\n");
    for (name, disk) in WAYS {
        let printed = shell.run(&format!(
            "ticks() {{
                for pid in $(cat /tmp/{disk}.pids); do sed 's/.*) //' /proc/$pid/stat; done |
                    awk '{{ n += $12 + $13 }} END {{ print n }}'
            }}
            before=$(ticks)
            sleep 10
            memory=0
            for pid in $(cat /tmp/{disk}.pids); do
                memory=\"$memory $(awk '/^Pss:/ {{ print $2 }}' /proc/$pid/smaps_rollup)\"
            done
            echo \"figures $(($(ticks) - before)) $memory\""
        ))?;
        let line = printed.lines().find_map(|line| line.trim().strip_prefix("figures "));
        let line = line.with_context(|| format!("no figures in {printed}"))?;
        let figures: Vec<u64> = line.split_whitespace().filter_map(|w| w.parse().ok()).collect();
        let (ticks, memory) = figures.split_first().context("no figures")?;
        // The first of them is the 0 that the list begins with.
        let memory: Vec<String> = memory.iter().skip(1).map(|kib| format!("{kib} KiB")).collect();
        report.line(&format!(
            "{name}: {} ms of processor in 10 s; memory of each process: {}",
            ticks * 10,
            memory.join(", ")
        ));
    }
    Ok(())
}
