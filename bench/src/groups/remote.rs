//! Memory that can only be reached by messages: how many a block request takes, and how fast data
//! moves, against a server that sends one for each field.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use driver::{Counts, PciDevice};

use crate::contest::{Outcome, Sample};
use crate::disk::{self, Load, Waiting};
use crate::lab::Lab;
use crate::placement::Label;
use crate::programs::{self, Usage};
use crate::raw::NaiveDisk;
use crate::report::{Bound, Measure, Report, Target};

/// Bytes of the disks.
const DISK: u64 = 1 << 30;

const MEASURES: [Measure; 5] = [
    Measure { name: "messages/request", digits: 2 },
    Measure { name: "round trips/request", digits: 2 },
    Measure { name: "us each", digits: 1 },
    Measure { name: "MB/s", digits: 1 },
    Measure { name: "server's us/request", digits: 1 },
];

/// Runs all measurements of this group.
pub fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    let place = programs::lab()?;
    let socket = place.path("remote");
    let end = format!("vfio-user:{},spin=0", socket.display());
    let device = format!("blk:null={DISK}");
    let arguments = ["bridge".to_owned(), end, device, "mode=remote".to_owned()];
    let bridge = programs::viaduct(&place, "viaduct", &arguments, &socket)?;
    for (bytes, depth) in [(4096, 1), (4096, 32), (1 << 20, 1), (1 << 20, 4)] {
        let names = vec!["viaduct".into(), "a message per field".into()];
        let mut outcome = Outcome::new(names);
        for _ in 0..lab.rounds(5) {
            let (mut load, counts) = through(&socket, depth, bytes)?;
            let sample = window(lab, &mut load, &counts, depth, bytes, Some(bridge.id()))?;
            outcome.add(Some(Label::Counted), 0, sample);
            drop(load);
            let memory = disk::memory(depth, bytes)?;
            let naive = NaiveDisk::new(&memory, DISK / 512)?;
            let counts = naive.counts();
            let mut load = Load::open(Box::new(naive), memory, depth, bytes)?;
            let sample = window(lab, &mut load, &counts, depth, bytes, None)?;
            outcome.add(Some(Label::Counted), 1, sample);
        }
        let title = format!("reads of {} KiB, {depth} under way", bytes / 1024);
        report.table(&title, &outcome, &MEASURES);
        hold(report, &outcome, bytes, depth);
    }
    Ok(())
}

/// A disk behind the bridge.
fn through(socket: &Path, depth: usize, bytes: usize) -> Result<(Load, Arc<Counts>)> {
    let memory = disk::memory(depth, bytes)?;
    let connection = sys::connect_unix(socket).context("connect to a vfio-user socket")?;
    let mut device = PciDevice::new(connection, &memory, false)?;
    let counts = device.client().counts();
    Ok((Load::open(Box::new(device), memory, depth, bytes)?, counts))
}

fn window(
    lab: &Lab,
    load: &mut Load,
    counts: &Counts,
    depth: usize,
    bytes: usize,
    server: Option<u32>,
) -> Result<Sample> {
    load.count(depth, Waiting::Sleeps, depth as u64)?;
    let used = || server.map_or(Ok(Usage::default()), Usage::of);
    let (dma, rounds, before) = (counts.dma(), counts.rounds.load(Ordering::Relaxed), used()?);
    let done = load.run(depth, Waiting::Sleeps, lab.open())?;
    let requests = done.requests as f64;
    let rounds = counts.rounds.load(Ordering::Relaxed) - rounds;
    Ok(vec![
        (counts.dma() - dma) as f64 / requests,
        rounds as f64 / requests,
        done.latency_us(depth),
        requests * bytes as f64 / done.seconds / 1e6,
        used()?.since(before).cpu_ns as f64 / 1e3 / requests,
    ])
}

/// No row of the list has these; they are asked for beside it.
fn hold(report: &mut Report, outcome: &Outcome, bytes: usize, depth: usize) {
    let label = Label::Counted;
    let median = |measure| outcome.spread(label, 0, measure).map(|spread| spread.median);
    if let (4096, 1, Some(rounds)) = (bytes, depth, median(1)) {
        let to = Target { row: "r-t", label, bound: Bound::AtMost, floor: 3.0, aim: 3.0 };
        report.value("round trips of a 4 KiB request", rounds, to);
    }
    if let (0x10_0000, Some(rate)) = (bytes, median(3)) {
        let to = Target { row: "r-b", label, bound: Bound::AtLeast, floor: 200.0, aim: 200.0 };
        report.value(&format!("MB/s at 1 MiB, {depth} under way"), rate, to);
    }
}
