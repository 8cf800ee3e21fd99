//! Pass mode: memory and events are handed on, so the daemon must be as fast as without us, and we
//! must not run at all while requests are under way.

use std::cell::Cell;
use std::path::Path;

use anyhow::Result;

use crate::contest::{self, Cores, Entrant};
use crate::disk::{Load, Waiting};
use crate::lab::Lab;
use crate::placement::{CPUS, Label};
use crate::programs::{self, Usage};
use crate::report::{Bound, Measure, Report, Target};
use crate::threads::on_one;

/// Most requests under way.
const DEPTH: usize = 32;
/// Bytes of a request.
const BLOCK: usize = 4096;

/// A disk that does nothing, so that the way there is what is measured.
pub const NOTHING: &str = "driver=null-co,size=1073741824,read-zeroes=off";

/// Runs all measurements of this group.
pub fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    let place = programs::lab()?;
    let (near, far, front) = (place.path("near"), place.path("far"), place.path("front"));
    // Two daemons, so that none serves two drivers: each entrant's connection stays.
    let direct = programs::storage_daemon(&place, "direct", NOTHING, "", &[&near])?;
    let behind = programs::storage_daemon(&place, "behind", NOTHING, "", &[&far])?;
    let arguments = [
        "bridge".to_owned(),
        format!("vhost-user:{}", front.display()),
        format!("vhost-user:{},type=blk", far.display()),
        "mode=pass".to_owned(),
    ];
    let bridge = programs::viaduct(&place, "viaduct", &arguments, &front)?;
    for program in [&direct, &behind, &bridge] {
        programs::own(program, CPUS[0])?;
    }
    let open = |socket: &Path| Load::vhost_user(socket, DEPTH, BLOCK);
    let mut loads = [open(&front)?, open(&near)?];
    let before = Usage::of(bridge.id())?;
    let mut windows = 0;
    for way in WAYS {
        windows += measure(lab, report, &mut loads, way)?;
    }
    let used = Usage::of(bridge.id())?.since(before);
    report.line(&format!(
        "\nviaduct during {windows} windows: {} us on a processor, put there {} times",
        used.cpu_ns / 1000,
        used.wakes,
    ));
    let to = Target { row: "6", label: Label::Counted, bound: Bound::AtMost, floor: 0.0, aim: 0.0 };
    report.value("ticks of viaduct on the data path in pass mode", used.ticks as f64, to);
    Ok(())
}

/// How the two are compared.
struct Way {
    depth: usize,
    waiting: Waiting,
    /// Row of the targets, which of the measures, and gate and aim.
    target: Option<(&'static str, usize, Bound, f64, f64)>,
}

const WAYS: &[Way] = &[
    Way {
        depth: DEPTH,
        waiting: Waiting::Polls,
        target: Some(("6", 0, Bound::AtLeast, 0.97, 0.99)),
    },
    Way {
        depth: DEPTH,
        waiting: Waiting::Sleeps,
        target: Some(("6", 0, Bound::AtLeast, 0.97, 0.99)),
    },
    Way { depth: 1, waiting: Waiting::Polls, target: None },
    Way { depth: 1, waiting: Waiting::Sleeps, target: Some(("7", 1, Bound::AtMost, 1.08, 1.03)) },
];

/// Compares them one way; returns how many windows there were.
fn measure(lab: &Lab, report: &mut Report, loads: &mut [Load; 2], way: &Way) -> Result<usize> {
    let how = if way.waiting == Waiting::Polls { "polling" } else { "sleeping" };
    let depth = way.depth;
    let windows = Cell::new(0);
    let names = ["through viaduct", "direct"];
    let entrants = names.iter().zip(loads).map(|(name, load)| {
        let windows = &windows;
        Entrant::new(format!("{name}, {depth} under way, {how}"), move || {
            windows.set(windows.get() + 1);
            let done = on_one(CPUS[1], || load.run(depth, way.waiting, lab.open()))??;
            Ok(vec![done.kilo_per_second(), done.latency_us(depth)])
        })
    });
    let outcome = contest::run(lab, Cores::Two, 9, entrants.collect())?;
    let measures =
        [Measure { name: "thousand/s", digits: 1 }, Measure { name: "us each", digits: 2 }];
    report.table(&format!("4 KiB reads, {depth} under way, driver {how}"), &outcome, &measures);
    if let Some((row, measure, bound, floor, aim)) = way.target {
        for label in outcome.labels() {
            report.ratio(&outcome, measure, (0, 1), Target { row, label, bound, floor, aim });
        }
    }
    Ok(windows.get())
}
