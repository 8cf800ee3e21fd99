//! A device in a process of its own, behind a port: the way through the rings, and what a driver
//! has of it beside the same device served by its own process.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Daemon, Guest, cards};
use pcie::{BarAddress, CompletionQueue, Function};
use port::limits::SPIN_VARIABLE;
use port::{PORT_VARIABLE, Port, PortOptions};
use sys::{EventFd, cycles};

use crate::contest::{self, Cores, Entrant, Outcome};
use crate::lab::Lab;
use crate::placement::{CPUS, Label};
use crate::programs;
use crate::raw::{Poster, RegisterReader};
use crate::report::{Bound, Measure, Report, Target};
use crate::threads::{on_both, on_one};

/// The DMA engine's registers: its name, and one that keeps what is written.
const NAME: u64 = 0x00;
const SCRATCH: u64 = 0x30;
/// The name itself.
const VDMA: [u8; 4] = *b"VDMA";

/// How many microseconds all poll where there are as many processors as parties.
const POLLING: &str = "50";

/// Runs all measurements of this group.
pub fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    rings(lab, report)?;
    let place = programs::lab()?;
    let cards = Cards::start(&place)?;
    cards.pin()?;
    reads(lab, &cards, report)?;
    posts(lab, &cards, report)?;
    drop(cards);
    in_a_guest(lab, report)
}

/// A read from a port to the model and back: there is no socket on the way, and both poll.
fn rings(lab: &Lab, report: &mut Report) -> Result<()> {
    let place = programs::lab()?;
    let path = place.path("model.sock");
    let listener = sys::listen_unix(&path).context("listen for a model")?;
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(cards::built(&place, "dma-engine")?);
    command.env(PORT_VARIABLE, &path).env(SPIN_VARIABLE, POLLING).current_dir("/");
    let model = place.start("model", command)?;
    let never = EventFd::new().context("make an eventfd")?;
    let port = Port::await_model(listener, PortOptions::default(), never.as_fd())?;
    let mut port = port.context("there is no model")?;
    programs::own(&model, CPUS[0])?;
    let answers = CompletionQueue::new().context("make an eventfd")?;
    let mut read = || -> Result<u64> {
        let (_, answer) = answers.begin(4);
        let begin = cycles();
        port.read(BarAddress { bar: 0, offset: NAME }, answer);
        let (mut took, mut is_right) = (None, false);
        loop {
            answers.collect(|_, data| {
                (took, is_right) = (Some(cycles() - begin), data == VDMA);
            });
            let Some(took) = took else {
                // It came to sleep before the answer came.
                port.events_ready();
                continue;
            };
            ensure!(is_right, "the device has another name");
            return Ok(took);
        }
    };
    let entrants = vec![Entrant::new("port to model and back", || {
        on_one(CPUS[1], || {
            let (mut took, window) = (Vec::with_capacity(1 << 20), lab.open());
            while window.is_open() {
                took.push(read()?);
            }
            took.sort_unstable();
            let at = |share: f64| lab.ns(took[(took.len() as f64 * share) as usize] as f64) / 1e3;
            Ok(vec![at(0.5), at(0.99), at(0.999)])
        })?
    })];
    let outcome = contest::run(lab, Cores::Two, 9, entrants)?;
    let measure = |name| Measure { name, digits: 3 };
    let measures = [measure("us, half"), measure("99 of 100"), measure("999 of 1000")];
    report.table("a register read by the rings alone", &outcome, &measures);
    for label in outcome.labels() {
        if let Some(spread) = outcome.spread(label, 0, 0) {
            let to = Target { row: "port", label, bound: Bound::AtMost, floor: 1.0, aim: 0.8 };
            report.value("us from a port to its model and back, p50", spread.median, to);
        }
    }
    Ok(())
}

/// The same device twice.
struct Cards {
    own: PathBuf,
    port: PathBuf,
    programs: [Daemon; 2],
}

impl Cards {
    fn start(place: &e2e::Lab) -> Result<Self> {
        let engine = cards::built(place, "dma-engine")?;
        let (own, port) = (place.path("own.sock"), place.path("port.sock"));
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(&engine).arg(&own).current_dir("/");
        let mut server = place.start("own", command)?;
        server.listens_at(&own)?;
        let words = ["pcie", "--socket"].map(str::to_owned);
        let words = [&words[..], &[port.display().to_string(), "--model".to_owned()]].concat();
        let words = [&words[..], &[engine.display().to_string()]].concat();
        let viaduct = programs::viaduct(place, "port", &words, &port)?;
        Ok(Self { own, port, programs: [server, viaduct] })
    }

    /// Each on a processor: those who serve on one, the model on the driver's, which sleeps while
    /// it waits for the model.
    fn pin(&self) -> Result<()> {
        let [server, viaduct] = &self.programs;
        programs::own_process(cards::child_of(viaduct.id())?, CPUS[1])?;
        programs::own(viaduct, CPUS[0])?;
        programs::own(server, CPUS[0])
    }
}

/// A register read over vfio-user, by a client that sleeps until the answer is there.
fn reads(lab: &Lab, cards: &Cards, report: &mut Report) -> Result<()> {
    let entrant = |name, socket: &Path| {
        let mut reader = RegisterReader::connect(socket, 0, NAME, 4)?;
        anyhow::Ok(Entrant::new(name, move || {
            on_one(CPUS[1], || {
                let (start, mut reads) = (Instant::now(), 0u32);
                while start.elapsed() < lab.window() {
                    reader.exchange()?;
                    reads += 1;
                }
                Ok(vec![start.elapsed().as_secs_f64() * 1e6 / f64::from(reads)])
            })?
        }))
    };
    let entrants =
        vec![entrant("behind a port", &cards.port)?, entrant("in one process", &cards.own)?];
    let outcome = contest::run(lab, Cores::Two, 9, entrants)?;
    let measure = Measure { name: "us there and back", digits: 2 };
    report.table("a register read over vfio-user", &outcome, &[measure]);
    for label in outcome.labels() {
        let to = Target { row: "port", label, bound: Bound::AtMost, floor: 1.1, aim: 1.0 };
        report.ratio(&outcome, 0, (0, 1), to);
    }
    Ok(())
}

/// How many writes are posted at once.
const BURST: usize = 64;
/// Long enough for whoever takes a post to sleep again.
const PAUSE: Duration = Duration::from_micros(200);

/// Writes that nobody answers: what they take of the one who posts them.
fn posts(lab: &Lab, cards: &Cards, report: &mut Report) -> Result<()> {
    let outcome = bursts(lab, cards)?;
    let measures = [
        Measure { name: "ns in a post", digits: 0 },
        Measure { name: "ns a post until all are taken", digits: 0 },
    ];
    report.table("64 posted writes at once, then a read", &outcome, &measures);
    targets(&outcome, report);
    let outcome = single(lab, cards)?;
    report.table("a posted write each 200 us", &outcome, &measures[..1]);
    targets(&outcome, report);
    Ok(())
}

fn targets(outcome: &Outcome, report: &mut Report) {
    for label in outcome.labels() {
        let to = Target { row: "port", label, bound: Bound::AtMost, floor: 1.0, aim: 1.0 };
        report.ratio(outcome, 0, (0, 1), to);
    }
}

fn bursts(lab: &Lab, cards: &Cards) -> Result<Outcome> {
    let mut reader = RegisterReader::connect(&cards.port, 0, SCRATCH, 4)?;
    let mut poster = Poster::new(reader.socket()?, 0, SCRATCH);
    let entrants = vec![
        Entrant::new("posted to a port", || {
            on_one(CPUS[1], || burst_window(lab, &mut poster, || reader.exchange()))?
        }),
        Entrant::new("posted, and dropped", || {
            let (ours, theirs) = UnixStream::pair().context("make a pair of sockets")?;
            let mut waiting = ours.try_clone()?;
            let mut poster = Poster::new(ours, 0, SCRATCH);
            let answer_each = BURST * poster.len_bytes();
            let (sample, taken) = on_both(
                || {
                    let sample =
                        burst_window(lab, &mut poster, || Ok(waiting.read_exact(&mut [0])?));
                    waiting.shutdown(std::net::Shutdown::Both)?;
                    sample
                },
                || drop_bytes(theirs, answer_each),
            )?;
            taken?;
            sample
        }),
    ];
    contest::run(lab, Cores::Two, 9, entrants)
}

/// Bursts of posts, each followed by `wait`; nanoseconds of a post, alone and with what follows.
fn burst_window(
    lab: &Lab,
    poster: &mut Poster,
    mut wait: impl FnMut() -> Result<()>,
) -> Result<Vec<f64>> {
    let (window, mut posting, mut all, mut posts) = (lab.open(), 0, 0, 0u64);
    while window.is_open() {
        let begin = cycles();
        for _ in 0..BURST {
            poster.post()?;
        }
        posting += cycles() - begin;
        wait()?;
        all += cycles() - begin;
        posts += BURST as u64;
    }
    Ok([posting, all].map(|cycles| lab.ns(cycles as f64) / posts as f64).into())
}

fn single(lab: &Lab, cards: &Cards) -> Result<Outcome> {
    let reader = RegisterReader::connect(&cards.port, 0, SCRATCH, 4)?;
    let mut poster = Poster::new(reader.socket()?, 0, SCRATCH);
    let entrants = vec![
        Entrant::new("posted to a port", || on_one(CPUS[1], || single_window(lab, &mut poster))?),
        Entrant::new("posted, and dropped", || {
            let (ours, theirs) = UnixStream::pair().context("make a pair of sockets")?;
            let mut poster = Poster::new(ours.try_clone()?, 0, SCRATCH);
            let (sample, taken) = on_both(
                || {
                    let sample = single_window(lab, &mut poster);
                    ours.shutdown(std::net::Shutdown::Both)?;
                    sample
                },
                || drop_bytes(theirs, usize::MAX),
            )?;
            taken?;
            sample
        }),
    ];
    contest::run(lab, Cores::Two, 9, entrants)
}

/// Posts with pauses; the median nanoseconds of a post.
fn single_window(lab: &Lab, poster: &mut Poster) -> Result<Vec<f64>> {
    let (window, mut took) = (lab.open(), Vec::with_capacity(4096));
    while window.is_open() {
        let begin = cycles();
        poster.post()?;
        took.push(cycles() - begin);
        let pause = Instant::now();
        while pause.elapsed() < PAUSE {
            std::hint::spin_loop();
        }
    }
    took.sort_unstable();
    Ok(vec![lab.ns(took[took.len() / 2] as f64)])
}

/// Takes bytes until the end, and answers with one after each `answer_each` of them.
fn drop_bytes(mut socket: UnixStream, answer_each: usize) -> Result<()> {
    let (mut bytes, mut have) = (vec![0; 64 << 10], 0);
    loop {
        let len = socket.read(&mut bytes)?;
        if len == 0 {
            return Ok(());
        }
        have += len;
        while have >= answer_each {
            have -= answer_each;
            socket.write_all(&[1])?;
        }
    }
}

/// What a driver in an emulated machine has of both, which have no processor of their own.
fn in_a_guest(lab: &Lab, report: &mut Report) -> Result<()> {
    let place = programs::lab()?;
    let cards = Cards::start(&place)?;
    let program = cards::driver(&place, "accesses", include_str!("../../../guest/accesses.c"))?;
    let device = |slot: u32, socket: &Path| {
        format!(
            r#"{{"driver":"vfio-user-pci","addr":"{slot:#x}",
                "socket":{{"type":"unix","path":"{}"}}}}"#,
            socket.display()
        )
    };
    let mut guest = Guest::plan(&place, "6.12")
        .own_program(&program)?
        .device(device(0x10, &cards.port))
        .device(device(0x11, &cards.own))
        .boot()
        .with_context(|| place.logs())?;
    let names = ["behind a port", "in one process"].map(str::to_owned).to_vec();
    let mut outcome = Outcome::new(names);
    let window = if lab.is_quick() { 200 } else { 500 };
    for _ in 0..lab.rounds(7) {
        for (entrant, slot) in ["10", "11"].iter().enumerate() {
            let words = format!("accesses 0000:00:{slot}.0 {SCRATCH:#x} {window}");
            let printed = guest.shell.run(&words)?;
            let line = printed.lines().find_map(|line| line.strip_prefix("ns "));
            let values = line.context("no figures")?.split(' ').map(|word| word.trim().parse());
            let sample = values.collect::<Result<Vec<f64>, _>>()?;
            ensure!(sample.len() == 2, "not two figures: {printed}");
            outcome.add(Some(Label::Counted), entrant, sample);
        }
    }
    let measures = ["ns a read", "ns a write, of 64"].map(|name| Measure { name, digits: 0 });
    report.table("accesses by a driver in a guest", &outcome, &measures);
    let (row, label, bound) = ("port", Label::Counted, Bound::AtMost);
    for measure in [0, 1] {
        report.line(if measure == 0 { "a read:" } else { "a write:" });
        report.ratio(&outcome, measure, (0, 1), Target { row, label, bound, floor: 1.1, aim: 1.0 });
    }
    Ok(())
}
