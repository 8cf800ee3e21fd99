//! Joining two drivers: two of our network cards at a cable against testpmd with two vhost ports.
//!
//! Both drivers are one testpmd with two virtio-user ports that forwards what it receives, on a
//! processor of its own; who is between them has the other one.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use devices::DEVICES;
use e2e::Root;
use sys::{Realtime, cycles};
use transports::TRANSPORTS;
use virtio::{EndError, Parameters, Stop, Value};
use worker::{MAX_SPIN, PollCycles, PoolOptions, Workers};

use crate::contest::{Outcome, Sample};
use crate::lab::Lab;
use crate::placement::{CPUS, Label};
use crate::report::{Bound, Measure, Report, Target};
use crate::testpmd::{RING, Testpmd};
use crate::threads::on_one_below;

const MEASURES: &[Measure] = &[
    Measure { name: "busy cycles/packet", digits: 0 },
    Measure { name: "million packets/s", digits: 2 },
];

/// Where the kernel keeps the number of huge pages; DPDK needs them.
const HUGE_PAGES: &str = "/proc/sys/vm/nr_hugepages";

/// Enough for two testpmds of 256 MiB.
const PAGES_NEEDED: u64 = 320;

/// Bursts of 16 packets under way per port.
const BURSTS: u32 = 16;

/// Runs all measurements of this group.
pub fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    let root = Root::find()?;
    let folder = tempfile::tempdir()?;
    let _pages = HugePages::reserve()?;
    let cycles = Arc::new(PollCycles::default());
    let options = PoolOptions { threads: 1, max_spin: MAX_SPIN, cycles: Some(Arc::clone(&cycles)) };
    // The worker inherits processor and priority from the thread that starts it.
    on_one_below(CPUS[0], || Workers::configure(&options))??;
    for (packed, bytes) in [(false, 64), (true, 64), (false, 1518), (true, 1518)] {
        let mut outcome = Outcome::new(vec!["viaduct pair".into(), "testpmd".into()]);
        for _ in 0..lab.rounds(3) {
            let scene = Scene { lab, root: &root, folder: folder.path(), packed, bytes };
            let bridge = Bridge::start(folder.path())?;
            scene.measure(&mut outcome, 0, None, Some(&cycles))?;
            bridge.stop()?;
            let ports = |n: u32| format!("net_vhost{n},iface={},queues=1", scene.socket(n));
            let mut peer =
                Testpmd::start(&root, folder.path(), "vhost", CPUS[0], &[ports(0), ports(1)])?;
            peer.command("start")?;
            scene.measure(&mut outcome, 1, Some(&mut peer), None)?;
        }
        let format = if packed { "packed" } else { "split" };
        report.table(&format!("{format} rings, {bytes} bytes"), &outcome, MEASURES);
        hold(report, &outcome, packed, bytes);
    }
    Ok(())
}

/// The targets of rows 1 to 5.
fn hold(report: &mut Report, outcome: &Outcome, packed: bool, bytes: u32) {
    use Bound::{AtLeast, AtMost};
    use Label::{Far, Near};
    let targets: &[(usize, &'static str, Label, Bound, f64, f64)] = match (packed, bytes) {
        (false, 64) => &[
            (0, "1", Near, AtMost, 0.60, 0.35),
            (0, "1", Far, AtMost, 0.85, 0.60),
            (1, "3", Near, AtLeast, 1.15, 1.3),
            (1, "4", Far, AtLeast, 0.90, 1.0),
        ],
        (true, 64) => &[
            (0, "2", Near, AtMost, 0.85, 0.55),
            (0, "2", Far, AtMost, 1.0, 0.70),
            (1, "3", Near, AtLeast, 1.15, 1.2),
            (1, "4", Far, AtLeast, 1.05, 1.2),
        ],
        (false, _) => &[(1, "5", Near, AtLeast, 2.0, 2.7), (1, "5", Far, AtLeast, 1.25, 1.7)],
        (true, _) => &[(1, "5", Near, AtLeast, 2.0, 2.3), (1, "5", Far, AtLeast, 1.25, 1.4)],
    };
    for &(measure, row, label, bound, floor, aim) in targets {
        report.ratio(outcome, measure, (0, 1), Target { row, label, bound, floor, aim });
    }
}

/// One way to run it.
struct Scene<'a> {
    lab: &'a Lab,
    root: &'a Root,
    folder: &'a Path,
    packed: bool,
    bytes: u32,
}

impl Scene<'_> {
    fn socket(&self, number: u32) -> String {
        self.folder.join(format!("s{number}")).display().to_string()
    }

    /// Sends the first packets round. They are lost if the other port's queues are not running yet,
    /// as a card without a peer drops them: the drivers are not told when they are.
    fn set_off(&self, drivers: &mut Testpmd) -> Result<()> {
        const TRIES: u32 = 5;
        drivers.command(&format!("set txpkts {}", self.bytes))?;
        for _ in 0..TRIES {
            drivers.command(&format!("start tx_first {BURSTS}"))?;
            drivers.received_per_second()?;
            std::thread::sleep(Duration::from_millis(300));
            // Looked at again a little later: those that arrived may have been lost on their way
            // back.
            drivers.received_per_second()?;
            std::thread::sleep(Duration::from_millis(100));
            if drivers.received_per_second()? > 0.0 {
                return Ok(());
            }
            eprintln!("the first packets were lost: sent again");
            drivers.command("stop")?;
        }
        bail!("no packet comes back")
    }

    /// Some windows with whoever listens at the sockets now: `peer`, or our own worker, whose
    /// cycles are in `own`.
    fn measure(
        &self,
        outcome: &mut Outcome,
        entrant: usize,
        mut peer: Option<&mut Testpmd>,
        own: Option<&PollCycles>,
    ) -> Result<()> {
        const WINDOWS: usize = 4;
        let packed = u8::from(self.packed);
        let port = |n: u32| {
            let path = self.socket(n);
            format!(
                "net_virtio_user{n},mac=00:01:02:03:04:0{n},path={path},queues=1,\
                 packed_vq={packed},queue_size={RING}"
            )
        };
        let ports = [port(0), port(1)];
        let mut drivers = Testpmd::start(self.root, self.folder, "drivers", CPUS[1], &ports)?;
        self.set_off(&mut drivers)?;
        // From here on both processors belong to threads that poll, and this one must come first.
        let _first = Realtime::start(20).ok();
        let peers = peer.as_ref().map(|peer| peer.id());
        [Some(drivers.id()), peers].into_iter().flatten().try_for_each(raise)?;
        drivers.received_per_second()?;
        let mut before = outcome.look_at_placement()?;
        for _ in 0..WINDOWS {
            if let Some(peer) = &mut peer {
                peer.clear_cycles()?;
            }
            drivers.received_per_second()?;
            let (start, busy) = (cycles(), own.map(|own| own.busy.load(Ordering::Relaxed)));
            std::thread::sleep(self.lab.window());
            let rate = drivers.received_per_second()?;
            let spent = (cycles() - start) as f64 / self.lab.cycles_per_ns / 1e9;
            let per_packet = match (&mut peer, own, busy) {
                (Some(peer), ..) => peer.cycles_per_packet()?,
                (None, Some(own), Some(busy)) => {
                    (own.busy.load(Ordering::Relaxed) - busy) as f64 / (rate * spent)
                }
                _ => 0.0,
            };
            if rate <= 0.0 {
                bail!("no packet came through: {}", drivers.command("show port stats all")?);
            }
            let after = outcome.look_at_placement()?;
            let sample: Sample = vec![per_packet, rate / 1e6];
            outcome.add(Label::of(before, after), entrant, sample);
            before = after;
        }
        Ok(())
    }
}

/// Gives a testpmd's polling thread real-time priority, and its others a higher one, so that they
/// answer.
fn raise(process: u32) -> Result<()> {
    for task in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let task = task?.path();
        let name = std::fs::read_to_string(task.join("comm")).unwrap_or_default();
        let priority = if name.starts_with("dpdk-worker") { "10" } else { "20" };
        let id = task.file_name().context("a thread's number")?.to_owned();
        // Not a failure: without the right to do that the figures are noisier.
        let _ = Command::new("chrt").args(["-f", "-p", priority]).arg(id).status()?;
    }
    Ok(())
}

/// Two of our cards at a cable, each behind a vhost-user socket.
struct Bridge {
    stop: Stop,
    ends: Vec<JoinHandle<Result<(), EndError>>>,
}

impl Bridge {
    fn start(folder: &Path) -> Result<Self> {
        let stop = Stop::new()?;
        let transport = TRANSPORTS.iter().find(|transport| transport.scheme == "vhost-user");
        let driver_end = transport.and_then(|transport| transport.driver_end);
        let driver_end = driver_end.context("no vhost-user driver end")?;
        let net = DEVICES.iter().find(|kind| kind.scheme == "net").context("no network card")?;
        let mut ends = Vec::new();
        for number in 0..2 {
            let socket = folder.join(format!("s{number}"));
            let _ = std::fs::remove_file(&socket);
            let path = socket.display().to_string();
            let end = driver_end(parameters(&[("path", path)]))?;
            let ring = RING.to_string();
            let card = (net.open)(parameters(&[("pair", "bench".into()), ("queue-size", ring)]))?;
            let stop = stop.clone();
            ends.push(std::thread::spawn(move || end.serve(card, stop)));
        }
        Ok(Self { stop, ends })
    }

    fn stop(self) -> Result<()> {
        self.stop.ask();
        for end in self.ends {
            end.join().map_err(|_| anyhow::anyhow!("a driver end panicked"))??;
        }
        Ok(())
    }
}

fn parameters(pairs: &[(&str, String)]) -> Parameters {
    let value =
        |text: &String| Value { text: text.clone(), number: text.parse().ok(), ..Value::default() };
    let pair = |(key, text): &(&str, String)| ((*key).to_owned(), value(text));
    Parameters::new(pairs.iter().map(pair).collect::<BTreeMap<_, _>>())
}

/// Huge pages for DPDK, given back in the end.
struct HugePages {
    before: String,
}

impl HugePages {
    fn reserve() -> Result<Self> {
        let before = std::fs::read_to_string(HUGE_PAGES).context("look at the huge pages")?;
        if before.trim().parse::<u64>().unwrap_or(0) < PAGES_NEEDED {
            std::fs::write(HUGE_PAGES, PAGES_NEEDED.to_string()).context("reserve huge pages")?;
        }
        Ok(Self { before })
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = std::fs::write(HUGE_PAGES, &self.before);
    }
}
