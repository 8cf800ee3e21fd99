//! The built-in disk as a vhost-user daemon against qemu-storage-daemon with the same disk: one
//! driver, one thread each. Whoever may poll is held against whoever may poll.

use std::path::{Path, PathBuf};

use anyhow::Result;
use e2e::Daemon;

use crate::contest::{self, Cores, Entrant, Outcome};
use crate::disk::{Load, Waiting};
use crate::lab::Lab;
use crate::placement::CPUS;
use crate::programs::{self, Usage};
use crate::report::{Bound, Measure, Report, Target};
use crate::threads::on_one;

/// Most requests under way.
const DEPTH: usize = 32;
/// Bytes of a request.
const BLOCK: usize = 4096;
/// Bytes of the file.
const FILE: usize = 256 << 20;

/// What our `null=` is too: writes are forgotten, reads bring zeros.
const ZEROS: &str = "driver=null-co,size=1073741824,read-zeroes=on";

const MEASURES: [Measure; 6] = [
    Measure { name: "thousand/s", digits: 1 },
    Measure { name: "us each", digits: 2 },
    Measure { name: "daemon's us/request", digits: 3 },
    Measure { name: "daemon's wake-ups/request", digits: 4 },
    Measure { name: "doorbells/request", digits: 4 },
    Measure { name: "interrupts/request", digits: 4 },
];

/// A daemon and its driver.
struct Entry {
    name: &'static str,
    daemon: Daemon,
    load: Load,
}

/// Runs all measurements of this group.
pub fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    let place = programs::lab()?;
    let mut nothing = Entries { place: &place, all: Vec::new() };
    nothing.own("viaduct, polls", "null=1073741824", Some(50))?;
    nothing.peer("qemu-storage-daemon, polls", ZEROS, true)?;
    nothing.own("viaduct, sleeps", "null=1073741824", Some(0))?;
    nothing.peer("qemu-storage-daemon, sleeps", ZEROS, false)?;
    nothing.own("viaduct, as it chooses", "null=1073741824", None)?;
    // What it chooses is held against the daemon that polls, and the one that does not.
    let pairs = [(0, 1), (2, 3), (4, 1), (4, 3)];
    compare(lab, report, "no data (null, null-co)", &mut nothing.all, &pairs)?;
    drop(nothing);

    // In memory, so that no disk of this machine is measured.
    let folder = tempfile::Builder::new().prefix("vd-bench-").tempdir_in("/dev/shm")?;
    let file = folder.path().join("disk");
    std::fs::write(&file, vec![0x5a; FILE])?;
    let path = file.display();
    let mut files = Entries { place: &place, all: Vec::new() };
    files.own("viaduct, io_uring", &format!("path={path},io=uring"), None)?;
    files.own("viaduct, as it chooses", &format!("path={path}"), None)?;
    let peer = |aio| format!("driver=file,filename={path},aio={aio}");
    files.peer("qemu-storage-daemon, io_uring", &peer("io_uring"), true)?;
    files.peer("qemu-storage-daemon, threads", &peer("threads"), true)?;
    compare(lab, report, "a file in memory", &mut files.all, &[(0, 2), (1, 3)])
}

/// Several daemons.
struct Entries<'a> {
    place: &'a e2e::Lab,
    all: Vec<Entry>,
}

impl Entries<'_> {
    fn socket(&self) -> (String, PathBuf) {
        let name = format!("d{}", self.all.len());
        (name.clone(), self.place.path(&name))
    }

    /// A viaduct that polls for at most `spin` microseconds before it sleeps, or as long as it
    /// does when nobody says.
    fn own(&mut self, name: &'static str, settings: &str, spin: Option<u32>) -> Result<()> {
        let (log, socket) = self.socket();
        let mut arguments = vec!["device".to_owned(), "blk".to_owned()];
        arguments.push(format!("--socket-path={}", socket.display()));
        arguments.extend(spin.map(|spin| format!("--spin={spin}")));
        arguments.extend(settings.split(',').map(str::to_owned));
        let daemon = programs::viaduct(self.place, &log, &arguments, &socket)?;
        self.add(name, daemon, &socket)
    }

    /// A daemon whose thread polls for its usual 32 microseconds, or not at all.
    fn peer(&mut self, name: &'static str, blockdev: &str, polls: bool) -> Result<()> {
        let (log, socket) = self.socket();
        let thread = if polls { "" } else { ",poll-max-ns=0" };
        let daemon = programs::storage_daemon(self.place, &log, blockdev, thread, &[&socket])?;
        self.add(name, daemon, &socket)
    }

    fn add(&mut self, name: &'static str, daemon: Daemon, socket: &Path) -> Result<()> {
        let load = Load::vhost_user(socket, DEPTH, BLOCK)?;
        programs::own(&daemon, CPUS[0])?;
        self.all.push(Entry { name, daemon, load });
        Ok(())
    }
}

/// Drives all daemons in turn, several ways; `pairs` are ours and the peer.
fn compare(
    lab: &Lab,
    report: &mut Report,
    what: &str,
    entries: &mut [Entry],
    pairs: &[(usize, usize)],
) -> Result<()> {
    let ways = [
        (1, Waiting::Sleeps),
        (1, Waiting::Polls),
        (8, Waiting::Polls),
        (32, Waiting::Polls),
        (32, Waiting::Sleeps),
    ];
    for (depth, waiting) in ways {
        let how = if waiting == Waiting::Polls { "polling" } else { "sleeping" };
        let entrants = entries.iter_mut().map(|Entry { name, daemon, load }| {
            Entrant::new(format!("{name}, {depth} under way"), move || {
                let before = Usage::of(daemon.id())?;
                let done = on_one(CPUS[1], || load.run(depth, waiting, lab.open()))??;
                let used = Usage::of(daemon.id())?.since(before);
                let requests = done.requests as f64;
                Ok(vec![
                    done.kilo_per_second(),
                    done.latency_us(depth),
                    used.cpu_ns as f64 / 1e3 / requests,
                    used.wakes as f64 / requests,
                    done.kicks as f64 / requests,
                    done.interrupts as f64 / requests,
                ])
            })
        });
        let outcome = contest::run(lab, Cores::Two, 5, entrants.collect())?;
        let title = format!("{what}: 4 KiB reads, {depth} under way, driver {how}");
        report.table(&title, &outcome, &MEASURES);
        hold(report, &outcome, pairs);
    }
    Ok(())
}

/// Not behind the peer, in rate and in time on a processor.
fn hold(report: &mut Report, outcome: &Outcome, pairs: &[(usize, usize)]) {
    for label in outcome.labels() {
        for &pair in pairs {
            let rate = Target { row: "b-r", label, bound: Bound::AtLeast, floor: 0.9, aim: 1.0 };
            report.ratio(outcome, 0, pair, rate);
            let cost = Target { row: "b-c", label, bound: Bound::AtMost, floor: 1.1, aim: 1.0 };
            report.ratio(outcome, 2, pair, cost);
        }
    }
}
