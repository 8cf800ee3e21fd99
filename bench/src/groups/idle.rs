//! Devices that nobody uses: they must cost no time, and little memory.
//!
//! Each has a driver that has done one request, so that nothing is put off until later.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use driver::GuestMemory;
use e2e::Daemon;
use rustix::process::{Resource, getrlimit};

use super::pass::NOTHING;
use crate::contest::Outcome;
use crate::disk::{self, Load, Waiting};
use crate::lab::Lab;
use crate::placement::Label;
use crate::plot::Plot;
use crate::programs::{self, Memory, Usage};
use crate::report::{Bound, Measure, Report, Target};

/// Requests a driver has room for: a ring of 256 descriptors.
const DEPTH: usize = 64;
/// Bytes of a request.
const BLOCK: usize = 512;
/// Bytes of a driver's memory.
const MEMORY: usize = 1 << 20;
/// How long nothing happens.
const REST: Duration = Duration::from_secs(3);

/// What many devices are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Built-in disks behind vhost-user sockets.
    OwnVhostUser,
    /// Built-in disks behind vfio-user sockets.
    OwnVfioUser,
    /// Bridges in this mode between vhost-user sockets and the exports of one daemon.
    Bridged(&'static str),
    /// The exports of the daemon themselves.
    Exports,
}

impl Kind {
    fn name(self) -> String {
        match self {
            Self::OwnVhostUser => "built-in disk, vhost-user".into(),
            Self::OwnVfioUser => "built-in disk, vfio-user".into(),
            Self::Bridged(mode) => format!("bridged, {mode}"),
            Self::Exports => "qemu-storage-daemon".into(),
        }
    }

    /// `wanted` devices, or as many as one process may have the descriptors for.
    fn at_most(self, wanted: usize) -> usize {
        /// What a process has open beside its devices.
        const BESIDE: u64 = 100;
        let each = match self {
            Self::OwnVhostUser | Self::OwnVfioUser | Self::Bridged("pass") => 17,
            Self::Bridged(_) => 19,
            Self::Exports => 10,
        };
        let limit = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        wanted.min((limit.saturating_sub(BESIDE) / each) as usize)
    }
}

const KINDS: [Kind; 6] = [
    Kind::OwnVhostUser,
    Kind::OwnVfioUser,
    Kind::Bridged("pass"),
    Kind::Bridged("translate"),
    Kind::Bridged("copy"),
    Kind::Exports,
];

/// The kind that the others are held against.
const PEER: usize = KINDS.len() - 1;

const MEASURES: [Measure; 7] = [
    Measure { name: "RSS KiB each", digits: 1 },
    Measure { name: "PSS KiB each", digits: 1 },
    Measure { name: "anonymous KiB each", digits: 1 },
    Measure { name: "descriptors each", digits: 1 },
    Measure { name: "ticks in 3 s", digits: 0 },
    Measure { name: "wake-ups in 3 s", digits: 0 },
    Measure { name: "ms to bring up, each", digits: 2 },
];

/// Runs all measurements of this group.
pub fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    let counts: &[usize] = if lab.is_quick() { &[16, 64] } else { &[256, 1024] };
    // What a program uses before it has a device to speak of.
    const FEW: usize = 1;
    let few: Vec<Found> = KINDS.iter().map(|&kind| look(kind, FEW)).collect::<Result<_>>()?;
    for &wanted in counts {
        let count = KINDS.map(|kind| kind.at_most(wanted));
        let name = |(kind, count): (&Kind, &usize)| format!("{count} x {}", kind.name());
        let mut outcome = Outcome::new(KINDS.iter().zip(&count).map(name).collect());
        for (entrant, &kind) in KINDS.iter().enumerate() {
            let found = look(kind, count[entrant])?;
            let each = found.each(few[entrant], count[entrant] - FEW);
            outcome.add(Some(Label::Counted), entrant, each);
        }
        report.table(&format!("{wanted} idle devices, or as many as may be"), &outcome, &MEASURES);
        hold(report, &outcome);
    }
    growth(lab, report)
}

/// Rows 21 and 22.
fn hold(report: &mut Report, outcome: &Outcome) {
    let label = Label::Counted;
    for (entrant, name) in outcome.names[..PEER].iter().enumerate() {
        let to = Target { row: "21", label, bound: Bound::AtMost, floor: 0.0, aim: 0.0 };
        for (measure, what) in [(4, "ticks"), (5, "wake-ups")] {
            if let Some(spread) = outcome.spread(label, entrant, measure) {
                let what = format!("{what} in 3 s, {name}");
                report.value(&what, spread.median, to);
            }
        }
    }
    for entrant in 0..PEER {
        let to = Target { row: "22", label, bound: Bound::AtMost, floor: 1.5, aim: 0.75 };
        report.ratio(outcome, 0, (entrant, PEER), to);
    }
}

/// How memory and the time to bring a device up grow with the number of devices.
fn growth(lab: &Lab, report: &mut Report) -> Result<()> {
    let wanted: &[usize] = if lab.is_quick() { &[1, 16, 64] } else { &[1, 4, 16, 64, 256, 1024] };
    let counts: Vec<usize> =
        wanted.iter().map(|&count| Kind::Bridged("copy").at_most(count)).collect();
    let names = counts.iter().map(|count| format!("{count} devices")).collect();
    let mut outcome = Outcome::new(names);
    for (point, &count) in counts.iter().enumerate() {
        let own = look(Kind::Bridged("copy"), count)?;
        let peer = look(Kind::Exports, count)?;
        let sample = vec![
            own.memory.resident as f64,
            peer.memory.resident as f64,
            own.seconds * 1e3 / count as f64,
        ];
        outcome.add(Some(Label::Counted), point, sample);
    }
    let measures = [
        Measure { name: "bridges in copy mode, RSS KiB", digits: 0 },
        Measure { name: "qemu-storage-daemon, RSS KiB", digits: 0 },
        Measure { name: "bridges, ms to bring up each", digits: 2 },
    ];
    let title = "memory of all, and time to bring one up, by devices";
    let plot = Plot::new("idle-devices", title, "devices", "KiB or ms");
    let points: Vec<f64> = counts.iter().map(|&count| count as f64).collect();
    report.curve(plot, &points, &outcome, &measures);
    Ok(())
}

/// What a program with so many idle devices uses.
#[derive(Clone, Copy)]
struct Found {
    memory: Memory,
    descriptors: usize,
    rest: Usage,
    /// Time to bring all devices up and do a request on each.
    seconds: f64,
}

impl Found {
    /// What each of `more` devices added to `few`.
    fn each(self, few: Self, more: usize) -> Vec<f64> {
        let each = |all: u64, few: u64| (all as f64 - few as f64) / more as f64;
        vec![
            each(self.memory.resident, few.memory.resident),
            each(self.memory.proportional, few.memory.proportional),
            each(self.memory.anonymous, few.memory.anonymous),
            each(self.descriptors as u64, few.descriptors as u64),
            self.rest.ticks as f64,
            self.rest.wakes as f64,
            (self.seconds - few.seconds) * 1e3 / more as f64,
        ]
    }
}

/// Brings `count` devices up and looks at the program while nothing happens.
fn look(kind: Kind, count: usize) -> Result<Found> {
    let place = programs::lab()?;
    let front = |n: usize| place.path(&format!("f{n}"));
    let fronts: Vec<PathBuf> = (0..count).map(front).collect();
    let backs: Vec<PathBuf> = (0..count).map(|n| place.path(&format!("b{n}"))).collect();
    let exports = if kind == Kind::Exports { &fronts } else { &backs };
    let mut behind = None;
    if matches!(kind, Kind::Exports | Kind::Bridged(_)) {
        let sockets: Vec<_> = exports.iter().map(PathBuf::as_path).collect();
        behind = Some(programs::storage_daemon(&place, "exports", NOTHING, "", &sockets)?);
    }
    let start = Instant::now();
    let program = match (kind, behind.take()) {
        (Kind::Exports, Some(exports)) => exports,
        (_, exports) => {
            behind = exports;
            many_bridges(&place, kind, &fronts, &backs)?
        }
    };
    let load = |n: usize| -> Result<Load> {
        let memory = GuestMemory::new(MEMORY)?;
        let access = match kind {
            Kind::OwnVfioUser => disk::vfio_user(&fronts[n], &memory, true)?,
            _ => disk::vhost_user(&fronts[n], &memory)?,
        };
        let mut load = Load::open(access, memory, DEPTH, BLOCK)?;
        load.count(1, Waiting::Sleeps, 1)?;
        Ok(load)
    };
    let drivers = (0..count).map(|n| load(n).with_context(|| format!("device {n} of {count}")));
    let drivers: Vec<Load> = drivers.collect::<Result<_>>().with_context(|| place.logs())?;
    let seconds = start.elapsed().as_secs_f64();
    // What still happens after the last request, as a queue that stops polling.
    std::thread::sleep(REST / 3);
    let before = Usage::of(program.id())?;
    std::thread::sleep(REST);
    let rest = Usage::of(program.id())?.since(before);
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", program.id()))?.count();
    let memory = Memory::of(program.id())?;
    drop((drivers, behind));
    Ok(Found { memory, descriptors, rest, seconds })
}

/// One viaduct with a bridge for each socket.
fn many_bridges(
    place: &e2e::Lab,
    kind: Kind,
    fronts: &[PathBuf],
    backs: &[PathBuf],
) -> Result<Daemon> {
    let mut text = String::new();
    for (number, (front, back)) in fronts.iter().zip(backs).enumerate() {
        let (driver, device, mode) = match kind {
            Kind::OwnVfioUser => ("vfio-user", "blk:null=1M".to_owned(), "auto"),
            Kind::Bridged(mode) => {
                ("vhost-user", format!("vhost-user:{},type=blk", back.display()), mode)
            }
            Kind::OwnVhostUser | Kind::Exports => ("vhost-user", "blk:null=1M".to_owned(), "auto"),
        };
        let front = front.display();
        writeln!(
            text,
            "[bridge.b{number}]\ndriver = \"{driver}:{front}\"\ndevice = \"{device}\"\n\
             mode = \"{mode}\""
        )?;
    }
    let file = place.write("bridges.toml", text.as_bytes())?;
    let mut command = place.viaduct()?;
    command.arg("run").arg(file);
    let mut program = place.start("viaduct", command)?;
    for front in fronts {
        program.listens_at(front).with_context(|| place.logs())?;
    }
    Ok(program)
}
