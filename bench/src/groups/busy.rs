//! What a block request takes of the system while there is always another one: driver, bridge and
//! device in this process, so that all of it is counted.

use std::path::Path;

use anyhow::{Context, Result};
use bridge::{BridgeOptions, Mode, Shadow};
use devices::DEVICES;
use driver::Direct;
use virtio::VirtioDevice;
use worker::{MAX_SPIN, PoolOptions, Workers};

use crate::contest::{Outcome, Sample};
use crate::disk::{self, Load, Waiting};
use crate::lab::Lab;
use crate::placement::{CPUS, Label};
use crate::programs::settings;
use crate::report::{Bound, Measure, Report, Target};
use crate::threads::{on_one, on_one_below};

/// Requests under way.
const DEPTH: usize = 32;
/// Bytes of a request.
const BLOCK: usize = 4096;
/// Bytes of the file.
const FILE: usize = 64 << 20;

const MEASURES: [Measure; 4] = [
    Measure { name: "system calls/request", digits: 4 },
    Measure { name: "doorbells/request", digits: 4 },
    Measure { name: "allocations/request", digits: 4 },
    Measure { name: "thousand/s", digits: 1 },
];

/// A disk that does nothing.
const NULL: (&str, &str) = ("null", "1073741824");

/// Runs all measurements of this group.
pub fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    let options = PoolOptions { threads: 1, max_spin: MAX_SPIN, cycles: None };
    // The worker inherits processor and priority from the thread that starts it.
    on_one_below(CPUS[0], || Workers::configure(&options))??;
    let folder = tempfile::Builder::new().prefix("vd-bench-").tempdir_in("/dev/shm")?;
    let file = folder.path().join("disk");
    std::fs::write(&file, vec![0x5a; FILE])?;
    let ways: [(&str, Open<'_>); 5] = [
        ("built-in disk, no data", Box::new(|| built_in(&[NULL]))),
        ("built-in disk, file, io_uring", Box::new(|| on_file(&file, "uring"))),
        ("built-in disk, file, plain calls", Box::new(|| on_file(&file, "sync"))),
        ("translate to it", Box::new(|| bridged(built_in(&[NULL])?, Mode::Translate))),
        ("copy to it", Box::new(|| bridged(built_in(&[NULL])?, Mode::Copy))),
    ];
    let names = ways.iter().map(|(name, _)| (*name).to_owned()).collect();
    let mut outcome = Outcome::new(names);
    for _ in 0..lab.rounds(3) {
        for (entrant, (_, open)) in ways.iter().enumerate() {
            outcome.add(Some(Label::Counted), entrant, window(lab, open()?)?);
        }
    }
    report.table("4 KiB reads, 32 under way, driver polling", &outcome, &MEASURES);
    for (entrant, (name, _)) in ways.iter().enumerate() {
        let label = Label::Counted;
        // What is left over from warming up; and looks of a worker that finds nothing are calls
        // too.
        for (measure, what, row, floor, aim) in
            [(2, "allocations", "a-r", 0.001, 0.0001), (0, "system calls", "s-r", 1.1, 0.1)]
        {
            if let Some(spread) = outcome.spread(label, entrant, measure) {
                let to = Target { row, label, bound: Bound::AtMost, floor, aim };
                report.value(&format!("{what}/request, {name}"), spread.median, to);
            }
        }
    }
    Ok(())
}

/// Makes a device.
type Open<'a> = Box<dyn Fn() -> Result<Box<dyn VirtioDevice>> + 'a>;

fn built_in(pairs: &[(&str, &str)]) -> Result<Box<dyn VirtioDevice>> {
    let disk = DEVICES.iter().find(|kind| kind.scheme == "blk").context("no built-in disk")?;
    Ok((disk.open)(settings(pairs))?)
}

fn on_file(file: &Path, io: &str) -> Result<Box<dyn VirtioDevice>> {
    built_in(&[("path", file.to_str().context("a file's path is UTF-8")?), ("io", io)])
}

fn bridged(device: Box<dyn VirtioDevice>, mode: Mode) -> Result<Box<dyn VirtioDevice>> {
    let options = BridgeOptions { mode, ..BridgeOptions::default() };
    Ok(Box::new(Shadow::new(device, "bench", options)?))
}

fn window(lab: &Lab, device: Box<dyn VirtioDevice>) -> Result<Sample> {
    let memory = disk::memory(DEPTH, BLOCK)?;
    let mut load = Load::open(Box::new(Direct::new(device, &memory)?), memory, DEPTH, BLOCK)?;
    on_one(CPUS[1], || {
        // The first requests find out how much room is needed.
        load.run(DEPTH, Waiting::Polls, lab.open_short())?;
        let (calls, allocations) = (sys::system_calls(), sys::allocations());
        let done = load.run(DEPTH, Waiting::Polls, lab.open())?;
        let requests = done.requests as f64;
        Ok(vec![
            (sys::system_calls() - calls) as f64 / requests,
            done.kicks as f64 / requests,
            (sys::allocations() - allocations) as f64 / requests,
            done.kilo_per_second(),
        ])
    })?
}
