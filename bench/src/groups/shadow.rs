//! Relaying descriptors between two rings: the bridge's data path without any device.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use bridge::{Mover, TranslateMover};
use virtqueue::{QueueSpec, RingFormat};
use worker::{Progress, Task};

use crate::contest::{self, Cores, Entrant, Outcome, Sample};
use crate::lab::Lab;
use crate::memory::{Guest, POOL, copy_mover};
use crate::placement::Label;
use crate::plot::Plot;
use crate::raw::{Buffers, RawDevice, RawDriver, RawRelay};
use crate::report::{Bound, Measure, Report, Target};
use crate::threads::{Busy, on_both};

const SIZE: u16 = 1024;
const BURST: u16 = 32;
const MEMORY: usize = 64 << 20;
/// One small buffer.
const SMALL: &[(u32, bool)] = &[(64, true)];
/// A block request: header, data, status.
const BLOCK: &[(u32, bool)] = &[(16, false), (4096, true), (1, true)];

const MEASURES: &[Measure] = &[
    Measure { name: "bridge ns/chain", digits: 1 },
    Measure { name: "million chains/s", digits: 2 },
    Measure { name: "busy", digits: 2 },
];

/// Two rings and the buffers of the first.
struct Scene {
    guest: Guest,
    /// The driver's ring.
    a: QueueSpec,
    /// The device's ring.
    b: QueueSpec,
    buffers: Buffers,
}

/// What goes through.
#[derive(Clone, Copy)]
struct Load {
    formats: (RingFormat, RingFormat),
    chain: &'static [(u32, bool)],
    in_flight: u16,
}

const USUAL: Load =
    Load { formats: (RingFormat::Split, RingFormat::Split), chain: SMALL, in_flight: 512 };

impl Scene {
    fn new(load: Load) -> Result<Self> {
        let mut guest = Guest::new(MEMORY, 4)?;
        let (a, b) = (guest.queue(load.formats.0, SIZE), guest.queue(load.formats.1, SIZE));
        let base = guest.allocate(usize::from(SIZE) * 4096).0;
        Ok(Self { guest, a, b, buffers: Buffers { base, stride: 4096, chain: load.chain } })
    }

    /// Both ends on one core, `poll` on the other, for a window.
    fn measure(
        &self,
        lab: &Lab,
        in_flight: u16,
        mut poll: impl FnMut() -> Result<u64> + Send,
    ) -> Result<Sample> {
        let stop = AtomicBool::new(false);
        let map = self.guest.map();
        let mut driver = RawDriver::new(&map, &self.a)?;
        let mut device = RawDevice::new(&map, &self.b)?;
        let (bridge, (done, seconds)) = on_both(
            || {
                let window = lab.open();
                let mut busy = Busy::default();
                let mut outcome = Ok(());
                while window.is_open() && outcome.is_ok() {
                    busy.poll(|| {
                        poll().unwrap_or_else(|error| {
                            outcome = Err(error);
                            0
                        })
                    });
                }
                stop.store(true, Ordering::Relaxed);
                outcome.map(|()| busy)
            },
            || {
                let start = std::time::Instant::now();
                let (mut out, mut done) = (0, 0u64);
                while !stop.load(Ordering::Relaxed) {
                    let used = driver.take_used(BURST, &self.buffers);
                    out -= used;
                    done += u64::from(used);
                    let more = (in_flight - out).min(BURST);
                    driver.offer(more, &self.buffers);
                    out += more;
                    // All of a readable buffer is read and all of a writable one written, as far as
                    // the ring can tell.
                    device.serve(BURST, |addr, len| {
                        std::hint::black_box(addr);
                        if self.buffers.chain.len() == 1 { len } else { 0 }
                    });
                }
                (done, start.elapsed().as_secs_f64())
            },
        )?;
        let bridge = bridge?;
        ensure!(done > 0, "nothing came through");
        Ok(vec![
            lab.ns(bridge.busy as f64 / done as f64),
            done as f64 / seconds / 1e6,
            bridge.fraction(),
        ])
    }
}

/// The bare relay for one window.
fn bare(lab: &Lab, load: Load) -> Result<Sample> {
    let scene = Scene::new(load)?;
    let mut relay = RawRelay::new(&scene.guest.map(), &scene.a, &scene.b, POOL)?;
    scene.measure(lab, load.in_flight, || relay.poll(BURST))
}

/// A bridge that hands addresses on, for one window.
fn translate(lab: &Lab, load: Load) -> Result<Sample> {
    let scene = Scene::new(load)?;
    bridged(lab, &scene, load, TranslateMover::new())
}

/// A bridge that copies through a pool, for one window.
fn copy(lab: &Lab, load: Load) -> Result<Sample> {
    let scene = Scene::new(load)?;
    bridged(lab, &scene, load, copy_mover(SIZE)?)
}

fn bridged<M: Mover>(lab: &Lab, scene: &Scene, load: Load, mover: M) -> Result<Sample> {
    let mut bridge = scene.guest.bridge(&scene.a, &scene.b, mover)?;
    scene.measure(lab, load.in_flight, || match bridge.poll(BURST.into()) {
        Progress::Worked => Ok(1),
        Progress::Idle => Ok(0),
        Progress::Finished => anyhow::bail!("the bridge stopped"),
    })
}

/// Runs all measurements of this group.
pub fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    descriptors(lab, report)?;
    requests(lab, report)?;
    depth(lab, report)
}

/// Rows 8 and 9: the rate of one core.
fn descriptors(lab: &Lab, report: &mut Report) -> Result<()> {
    use RingFormat::{Packed, Split};
    let formats = [(Split, Split), (Packed, Packed), (Split, Packed), (Packed, Split)];
    let with = |formats| Load { formats, ..USUAL };
    let mut entrants: Vec<Entrant<'_>> = formats
        .iter()
        .map(|&(a, b)| {
            Entrant::new(format!("translate {a} to {b}"), move || translate(lab, with((a, b))))
        })
        .collect();
    for &(a, b) in &formats[..2] {
        entrants.push(Entrant::new(format!("bare relay {a}"), move || bare(lab, with((a, b)))));
    }
    let outcome = contest::run(lab, Cores::Two, 5, entrants)?;
    report.table("one buffer a chain, no data copied, 512 in flight", &outcome, MEASURES);
    for label in outcome.labels() {
        let bound = Bound::AtLeast;
        let same = Target { row: "8", label, bound, floor: 0.6, aim: 0.9 };
        let mixed = Target { row: "9", label, bound, floor: 0.5, aim: 0.75 };
        for (pair, to) in [((0, 4), same), ((1, 5), same), ((2, 4), mixed), ((3, 5), mixed)] {
            report.ratio(&outcome, 1, pair, to);
        }
    }
    Ok(())
}

/// Row 10: what a block request costs more because of us.
fn requests(lab: &Lab, report: &mut Report) -> Result<()> {
    let load = |formats| Load { formats, chain: BLOCK, in_flight: 256 };
    let same = |format| load((format, format));
    let entrants = vec![
        Entrant::new("translate split", move || translate(lab, same(RingFormat::Split))),
        Entrant::new("translate packed", move || translate(lab, same(RingFormat::Packed))),
        Entrant::new("copy split", move || copy(lab, same(RingFormat::Split))),
    ];
    let outcome = contest::run(lab, Cores::Two, 5, entrants)?;
    let title = "block requests of three buffers, 256 in flight (copy: the header's 16 bytes)";
    report.table(title, &outcome, MEASURES);
    for label in outcome.labels() {
        let (floor, aim) = if label == Label::Near { (120.0, 40.0) } else { (150.0, 150.0) };
        let to = Target { row: "10", label, bound: Bound::AtMost, floor, aim };
        for entrant in 0..2 {
            if let Some(spread) = outcome.spread(label, entrant, 0) {
                let what = format!("ns per request, {}", outcome.names[entrant]);
                report.value(&what, spread.median, to);
            }
        }
    }
    Ok(())
}

/// How cost and rate depend on how many chains are under way.
fn depth(lab: &Lab, report: &mut Report) -> Result<()> {
    const DEPTHS: &[u16] = &[1, 4, 16, 64, 256, 1000];
    let entrants = DEPTHS.iter().map(|&in_flight| {
        Entrant::new(format!("{in_flight} in flight"), move || {
            let mut all = Vec::new();
            for format in [RingFormat::Split, RingFormat::Packed] {
                let load = Load { formats: (format, format), in_flight, ..USUAL };
                all.push(1e3 / translate(lab, load)?[1]);
            }
            Ok(all)
        })
    });
    let outcome: Outcome = contest::run(lab, Cores::Two, 3, entrants.collect())?;
    let measures = [
        Measure { name: "split ns/chain", digits: 1 },
        Measure { name: "packed ns/chain", digits: 1 },
    ];
    let title = "time per chain through a translating bridge, by chains in flight";
    let plot = Plot::new("shadow-depth", title, "chains in flight", "ns per chain");
    let points: Vec<f64> = DEPTHS.iter().map(|&depth| f64::from(depth)).collect();
    report.curve(plot, &points, &outcome, &measures);
    Ok(())
}
