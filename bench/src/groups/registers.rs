//! Registers over vfio-user: what a read costs beside the socket it goes through, and what
//! doorbells cost.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, Result};
use driver::{GuestMemory, PciDevice};

use super::limits::socket_round_trip;
use crate::contest::{self, Cores, Entrant};
use crate::disk::{Load, Waiting};
use crate::lab::Lab;
use crate::placement::{CPUS, Label};
use crate::programs::{self, Usage};
use crate::raw::RegisterReader;
use crate::report::{Bound, Measure, Report, Target};
use crate::threads::on_one;

/// Runs all measurements of this group.
pub fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    reads(lab, report)?;
    doorbells(report)
}

/// A viaduct that sleeps between accesses, and one that polls for a while.
fn reads(lab: &Lab, report: &mut Report) -> Result<()> {
    let place = programs::lab()?;
    let (sleeping, polling) = (place.path("sleeping"), place.path("polling"));
    let both = place.path("both");
    let start = |name: &str, socket: &Path, spin: u32| {
        let end = format!("vfio-user:{},spin={spin}", socket.display());
        let arguments = ["bridge".to_owned(), end, "blk:null=1M".to_owned()];
        let program = programs::viaduct(&place, name, &arguments, socket)?;
        programs::own(&program, CPUS[0])?;
        anyhow::Ok(program)
    };
    let _programs = [start("a", &sleeping, 0)?, start("b", &polling, 50)?, start("c", &both, 50)?];
    let (region, offset) = status_register(&sleeping)?;
    let reader = |socket| RegisterReader::connect(socket, region, offset, 1);
    let (mut to_sleeping, mut to_polling) = (reader(&sleeping)?, reader(&polling)?);
    let mut both_poll = reader(&both)?;
    both_poll.set_polling(true)?;
    let entrants = vec![
        Entrant::new("read, server sleeps", || Ok(vec![timed(lab, &mut to_sleeping)?])),
        Entrant::new("read, server polls", || Ok(vec![timed(lab, &mut to_polling)?])),
        Entrant::new("read, both poll", || Ok(vec![timed(lab, &mut both_poll)?])),
        Entrant::new("64 bytes, both block", || Ok(vec![socket_round_trip(lab, false, false)?])),
        Entrant::new("64 bytes, server polls", || Ok(vec![socket_round_trip(lab, true, false)?])),
        Entrant::new("64 bytes, both poll", || Ok(vec![socket_round_trip(lab, true, true)?])),
    ];
    let outcome = contest::run(lab, Cores::Two, 7, entrants)?;
    let measure = Measure { name: "us there and back", digits: 2 };
    report.table("a register read over vfio-user, and a bare UNIX socket", &outcome, &[measure]);
    for label in outcome.labels() {
        let bound = Bound::AtMost;
        let blocking = Target { row: "16", label, bound, floor: 1.25, aim: 1.10 };
        report.ratio(&outcome, 0, (0, 3), blocking);
        let spinning = Target { row: "17", label, bound, floor: 1.3, aim: 1.15 };
        report.ratio(&outcome, 0, (1, 4), spinning);
    }
    Ok(())
}

/// Where a register is that may be read freely.
fn status_register(socket: &Path) -> Result<(u32, u64)> {
    let memory = GuestMemory::new(1 << 20)?;
    let connection = sys::connect_unix(socket).context("connect to a vfio-user socket")?;
    Ok(PciDevice::new(connection, &memory, true)?.status_register())
}

/// Microseconds per read in a window.
fn timed(lab: &Lab, reader: &mut RegisterReader) -> Result<f64> {
    on_one(CPUS[1], || {
        let (start, mut reads) = (Instant::now(), 0u32);
        while start.elapsed() < lab.window() {
            reader.exchange()?;
            reads += 1;
        }
        Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(reads))
    })?
}

/// Row 18: messages per kick, where the client asks for the doorbells' events and where, as QEMU,
/// it does not.
fn doorbells(report: &mut Report) -> Result<()> {
    const REQUESTS: u64 = 2000;
    let place = programs::lab()?;
    let socket = place.path("doorbells");
    let end = format!("vfio-user:{}", socket.display());
    let arguments = ["bridge".to_owned(), end, "blk:null=1M".to_owned()];
    let program = programs::viaduct(&place, "doorbells", &arguments, &socket)?;
    report.line("\n## doorbells of block requests, one under way, driver sleeping");
    for by_event in [true, false] {
        let memory = GuestMemory::new(1 << 20)?;
        let connection = sys::connect_unix(&socket).context("connect to a vfio-user socket")?;
        let mut device = PciDevice::new(connection, &memory, true)?;
        if by_event {
            device = device.kicking_by_event();
        }
        let counts = device.client().counts();
        let mut load =
            Load::open(Box::new(device), memory, 1, 512).with_context(|| place.logs())?;
        load.count(1, Waiting::Sleeps, 100)?;
        let (sent, used) = (counts.sent.load(Ordering::Relaxed), Usage::of(program.id())?);
        let done = load.count(1, Waiting::Sleeps, REQUESTS)?;
        let sent = counts.sent.load(Ordering::Relaxed) - sent;
        let used = Usage::of(program.id())?.since(used);
        let how = if by_event { "by event" } else { "by message" };
        report.line(&format!(
            "{how:10}  {} kicks, {sent} messages, {:.2} wake-ups and {:.1} us of viaduct a request",
            done.kicks,
            used.wakes as f64 / REQUESTS as f64,
            used.cpu_ns as f64 / 1e3 / REQUESTS as f64,
        ));
        if by_event {
            let to = Target {
                row: "18",
                label: Label::Counted,
                bound: Bound::AtMost,
                floor: 0.0,
                aim: 0.0,
            };
            let per_kick = sent as f64 / done.kicks.max(1) as f64;
            report.value("messages per kick, client asks for events", per_kick, to);
        }
    }
    Ok(())
}
