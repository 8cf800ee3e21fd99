//! Registers over vfio-user: what a read costs beside the socket it goes through, and what
//! doorbells cost.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use driver::{GuestMemory, PciDevice};
use e2e::Daemon;

use super::limits::{RoundTrips, Server, socket_round_trip};
use crate::contest::{self, Cores, Entrant, Outcome};
use crate::disk::{Load, Waiting};
use crate::halts::InUse;
use crate::lab::Lab;
use crate::placement::{CPUS, Label};
use crate::programs::{self, Usage};
use crate::raw::RegisterReader;
use crate::report::{Bound, Measure, Report, Target};
use crate::threads::{Cpu, on_one};

/// Runs all measurements of this group.
pub fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    reads(lab, report)?;
    doorbells(report)
}

/// Where clients and servers are, as in [`socket_round_trip`].
const CLIENT: Cpu = CPUS[0];
const SERVER: Cpu = CPUS[1];

/// Work of a bare server between a message and its answer. By no more than this a processor that
/// waits for the answer may halt just before it comes, or not.
const A_LITTLE: Duration = Duration::from_nanos(300);

/// A viaduct that sleeps between accesses, and one that polls for a while.
fn reads(lab: &Lab, report: &mut Report) -> Result<()> {
    let place = programs::lab()?;
    let start = |name: &str, spin: u32| {
        let socket = place.path(name);
        let end = format!("vfio-user:{},spin={spin}", socket.display());
        let arguments = ["bridge".to_owned(), end, "blk:null=1M".to_owned()];
        let program = programs::viaduct(&place, &format!("{name}-end"), &arguments, &socket)?;
        programs::own(&program, SERVER)?;
        let (region, offset) = status_register(&socket)?;
        let reader = RegisterReader::connect(&socket, region, offset, 1)?;
        anyhow::Ok(Read { lab, program, reader })
    };
    let mut reads = [start("sleeping", 0)?, start("polling", 50)?, start("both", 50)?];
    reads[2].reader.set_polling(true)?;

    for in_use in [false, true] {
        let (title, guard) = match in_use {
            false => ("a register read over vfio-user, and a bare UNIX socket", None),
            true => ("the same, client's processor in use", Some(InUse::start(CLIENT)?)),
        };
        let outcome = against_sockets(lab, &mut reads, if in_use { ", in use" } else { "" })?;
        drop(guard);
        report.table(title, &outcome, &MEASURES);
        for label in outcome.labels() {
            let bound = Bound::AtMost;
            let blocking = Target { row: "16", label, bound, floor: 1.25, aim: 1.10 };
            report.ratio(&outcome, 0, (0, 1), blocking);
            let spinning = Target { row: "17", label, bound, floor: 1.3, aim: 1.15 };
            report.ratio(&outcome, 0, (2, 3), spinning);
        }
    }
    Ok(())
}

const MEASURES: [Measure; 3] = [
    Measure { name: "us there and back", digits: 2 },
    Measure { name: "halts of the client's processor", digits: 2 },
    Measure { name: "wake-ups of the server", digits: 3 },
];

fn against_sockets(lab: &Lab, reads: &mut [Read<'_>; 3], more: &str) -> Result<Outcome> {
    let of = |trips: RoundTrips| Ok(vec![trips.us, trips.halts, trips.wakes]);
    let bare = |server, client_spins| move || of(socket_round_trip(lab, server, client_spins)?);
    let [sleeping, polling, both] = reads;
    // Each beside the one that it is held against: how soon a processor that has nothing to do
    // halts, and how fast it comes back, changes from second to second.
    let entrants = vec![
        Entrant::new(format!("read, server sleeps{more}"), || of(sleeping.window()?)),
        Entrant::new(format!("64 bytes, both block{more}"), bare(Server::Sleeps, false)),
        Entrant::new(format!("read, server polls{more}"), || of(polling.window()?)),
        Entrant::new(format!("64 bytes, server polls{more}"), bare(Server::POLLS, false)),
        Entrant::new(
            format!("64 bytes, and works 0.3 us{more}"),
            bare(Server::Polls(A_LITTLE), false),
        ),
        Entrant::new(format!("read, both poll{more}"), || of(both.window()?)),
        Entrant::new(format!("64 bytes, both poll{more}"), bare(Server::POLLS, true)),
    ];
    contest::run(lab, Cores::Two, 7, entrants)
}

/// A client of a viaduct.
struct Read<'l> {
    lab: &'l Lab,
    program: Daemon,
    reader: RegisterReader,
}

impl Read<'_> {
    /// Reads the register for the length of a window.
    fn window(&mut self) -> Result<RoundTrips> {
        let before = Usage::of(self.program.id())?;
        let trips = on_one(CLIENT, || RoundTrips::of(self.lab, || self.reader.exchange()))??;
        let wakes = Usage::of(self.program.id())?.since(before).wakes as f64 / trips.rounds;
        Ok(RoundTrips { wakes, ..trips })
    }
}

/// Where a register is that may be read freely.
fn status_register(socket: &Path) -> Result<(u32, u64)> {
    let memory = GuestMemory::new(1 << 20)?;
    let connection = sys::connect_unix(socket).context("connect to a vfio-user socket")?;
    Ok(PciDevice::new(connection, &memory, true)?.status_register())
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
