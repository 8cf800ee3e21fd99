//! Text tables: what was measured, the ratios, and how they stand to the targets.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::contest::{Outcome, Spread};
use crate::lab::Lab;
use crate::placement::Label;
use crate::plot::Plot;

/// What lines about targets begin with, so that a summary can be made of all files.
const TARGET: &str = "target";

/// Something that a sample has a value for.
#[derive(Clone, Copy)]
pub struct Measure {
    /// What it is, with its unit.
    pub name: &'static str,
    /// Digits after the point.
    pub digits: usize,
}

/// What a ratio or a value is held against.
#[derive(Clone, Copy)]
pub struct Target {
    /// Number of the row in the list of targets.
    pub row: &'static str,
    /// Which windows it is for.
    pub label: Label,
    /// Whether less is better.
    pub bound: Bound,
    /// The release gate.
    pub floor: f64,
    /// What we are after.
    pub aim: f64,
}

/// Which side of a target is good.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Less is better.
    AtMost,
    /// More is better.
    AtLeast,
}

/// The results of one group of measurements.
pub struct Report {
    name: &'static str,
    text: String,
    plots: Vec<(String, String)>,
}

impl Report {
    /// An empty report that will be `NAME.txt`.
    pub fn new(name: &'static str, about: &str) -> Self {
        let mut report = Self { name, text: String::new(), plots: Vec::new() };
        report.line(&format!("{about}\n{}\n", machine()));
        report
    }

    /// Adds a line and shows it.
    pub fn line(&mut self, line: &str) {
        println!("{line}");
        let _ = writeln!(self.text, "{line}");
    }

    /// Adds a table of medians and their spread, one for each label.
    pub fn table(&mut self, title: &str, outcome: &Outcome, measures: &[Measure]) {
        self.line(&format!("\n## {title}"));
        let (least, most) = outcome.round_trips;
        if most > 0.0 {
            let mixed = outcome.mixed;
            self.line(&format!(
                "cache line {least:.0}-{most:.0} ns, {mixed} mixed windows dropped"
            ));
        }
        let width = outcome.names.iter().map(String::len).max().unwrap_or(0);
        let mut head = format!("{:width$}  {:8}", "", "");
        for measure in measures {
            let _ = write!(head, "  {:>36}", measure.name);
        }
        self.line(head.trim_end());
        for label in outcome.labels() {
            for (entrant, name) in outcome.names.iter().enumerate() {
                let mut line = format!("{name:width$}  {label:8}");
                for (index, measure) in measures.iter().enumerate() {
                    let cell = outcome.spread(label, entrant, index);
                    let cell = cell.map_or("-".into(), |spread| shown(spread, measure.digits));
                    let _ = write!(line, "  {cell:>36}");
                }
                self.line(line.trim_end());
            }
        }
    }

    /// Holds the ratio of two entrants' medians against a target, if there are windows of that
    /// label.
    pub fn ratio(&mut self, outcome: &Outcome, measure: usize, pair: (usize, usize), to: Target) {
        let (ours, peer) = pair;
        let Some(ratio) = outcome.ratio(to.label, measure, ours, peer) else { return };
        let what = format!("{} / {}", outcome.names[ours], outcome.names[peer]);
        self.value(&what, ratio, to);
    }

    /// Holds a value against a target.
    pub fn value(&mut self, what: &str, value: f64, to: Target) {
        let sign = if to.bound == Bound::AtMost { "<=" } else { ">=" };
        let meets = |limit: f64| match to.bound {
            Bound::AtMost => value <= limit,
            Bound::AtLeast => value >= limit,
        };
        let verdict = match (meets(to.aim), meets(to.floor)) {
            (true, _) => "aim met",
            (false, true) => "gate met",
            (false, false) => "MISSED",
        };
        self.line(&format!(
            "{TARGET} {:>3} {:8} {what}: {value:.3} (gate {sign} {}, aim {sign} {}) {verdict}",
            to.row, to.label, to.floor, to.aim,
        ));
    }

    /// Adds a curve of medians: entrants are the points, and `measures` of each point the lines.
    pub fn curve(&mut self, plot: Plot, points: &[f64], outcome: &Outcome, measures: &[Measure]) {
        self.table(&plot.title, outcome, measures);
        let mut plot = plot;
        for label in outcome.labels() {
            for (index, measure) in measures.iter().enumerate() {
                let median = |entrant| outcome.spread(label, entrant, index).map(|s| s.median);
                let line = points.iter().enumerate().filter_map(|(e, &x)| Some((x, median(e)?)));
                let name = match label {
                    Label::OneCore => measure.name.to_owned(),
                    label => format!("{}, {label}", measure.name),
                };
                plot.add(name, line.collect());
            }
        }
        self.plots.push((plot.file.to_owned(), plot.svg()));
    }

    /// Writes everything, and the summary of all files there are.
    pub fn finish(self, lab: &Lab) -> Result<()> {
        let folder = lab.results();
        write(folder, &format!("{}.txt", self.name), &self.text)?;
        for (name, svg) in &self.plots {
            write(folder, &format!("{name}.svg"), svg)?;
        }
        summarise(folder)
    }
}

/// `median [least..most] nWINDOWS`.
fn shown(spread: Spread, digits: usize) -> String {
    let Spread { median, least, most, windows } = spread;
    format!("{median:.digits$} [{least:.digits$}..{most:.digits$}] n{windows}")
}

/// The targets of all result files in `folder`.
fn summarise(folder: &Path) -> Result<()> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(folder).context("list the results")? {
        let path = entry?.path();
        let is_result = path.extension().is_some_and(|end| end == "txt");
        if is_result && !path.ends_with("summary.txt") {
            let text =
                fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let own = text.lines().filter(|line| line.starts_with(TARGET));
            lines.extend(own.map(|line| format!("{} ({name})\n", line[TARGET.len()..].trim_end())));
        }
    }
    lines.sort();
    write(folder, "summary.txt", &lines.concat())
}

fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    let path = folder.join(name);
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}

/// The machine in a line: processor, how many, kernel.
fn machine() -> String {
    let first = |path: &str, key: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default().to_owned();
        line.rsplit(": ").next().unwrap_or_default().trim().to_owned()
    };
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "{cpus} x {} (family {} model {}), Linux {}",
        first("/proc/cpuinfo", "model name"),
        first("/proc/cpuinfo", "cpu family"),
        first("/proc/cpuinfo", "model\t"),
        first("/proc/sys/kernel/osrelease", ""),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_look_at_the_right_side() {
        let to = |bound| {
            let (floor, aim) = if bound == Bound::AtMost { (0.6, 0.35) } else { (1.0, 1.3) };
            Target { row: "1", label: Label::Near, bound, floor, aim }
        };
        let mut report = Report { name: "test", text: String::new(), plots: Vec::new() };
        for value in [0.3, 0.5, 0.7] {
            report.value("less", value, to(Bound::AtMost));
        }
        for value in [1.4, 1.1, 0.9] {
            report.value("more", value, to(Bound::AtLeast));
        }
        let verdicts: Vec<&str> =
            report.text.lines().filter_map(|line| line.rsplit(") ").next()).collect();
        assert_eq!(verdicts, ["aim met", "gate met", "MISSED", "aim met", "gate met", "MISSED"]);
    }
}
