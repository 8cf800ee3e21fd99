//! Several ways to do the same, measured in turns.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::lab::Lab;
use crate::placement::{Label, round_trip_ns};

/// What one window found: a value for each measure of the contest.
pub type Sample = Vec<f64>;

/// One of the ways.
pub struct Entrant<'a> {
    /// What the table calls it.
    pub name: String,
    run: Box<dyn FnMut() -> Result<Sample> + 'a>,
}

impl<'a> Entrant<'a> {
    /// A way called `name`; each call of `run` is a window.
    pub fn new(name: impl Into<String>, run: impl FnMut() -> Result<Sample> + 'a) -> Self {
        Self { name: name.into(), run: Box::new(run) }
    }
}

/// What a contest is run on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Cores {
    /// One: windows need no label.
    One,
    /// Two that talk to each other.
    Two,
}

/// The windows of a contest by label, by entrant.
pub struct Outcome {
    /// Names of the entrants.
    pub names: Vec<String>,
    samples: BTreeMap<Label, Vec<Vec<Sample>>>,
    /// Windows during which the processors moved.
    pub mixed: usize,
    /// The shortest and longest round trip seen, in nanoseconds.
    pub round_trips: (f64, f64),
}

/// Least windows of one label that a contest on two cores goes on for.
const ENOUGH: usize = 3;

/// Runs `rounds` rounds in which each entrant has a window; more, up to three times as many, if
/// placement was so unsteady that no label has [`ENOUGH`].
pub fn run(
    lab: &Lab,
    cores: Cores,
    rounds: usize,
    mut entrants: Vec<Entrant<'_>>,
) -> Result<Outcome> {
    let names: Vec<String> = entrants.iter().map(|entrant| entrant.name.clone()).collect();
    let mut outcome = Outcome::new(names);
    let rounds = lab.rounds(rounds);
    for round in 0..3 * rounds {
        if round >= rounds && (cores == Cores::One || outcome.is_enough()) {
            break;
        }
        let mut before = outcome.look(cores)?;
        for (index, entrant) in entrants.iter_mut().enumerate() {
            let sample = (entrant.run)()?;
            let after = outcome.look(cores)?;
            let label = match cores {
                Cores::One => Some(Label::OneCore),
                Cores::Two => Label::of(before, after),
            };
            outcome.add(label, index, sample);
            before = after;
        }
    }
    Ok(outcome)
}

impl Outcome {
    /// No windows yet.
    pub fn new(names: Vec<String>) -> Self {
        Self { names, samples: BTreeMap::new(), mixed: 0, round_trips: (f64::INFINITY, 0.0) }
    }

    /// Adds a window of `entrant`, without a label if the processors moved.
    pub fn add(&mut self, label: Option<Label>, entrant: usize, sample: Sample) {
        let Some(label) = label else {
            self.mixed += 1;
            return;
        };
        let empty = vec![Vec::new(); self.names.len()];
        self.samples.entry(label).or_insert(empty)[entrant].push(sample);
    }

    fn look(&mut self, cores: Cores) -> Result<f64> {
        if cores == Cores::One { Ok(0.0) } else { self.look_at_placement() }
    }

    /// The round trip of a cache line at this moment, in nanoseconds.
    pub fn look_at_placement(&mut self) -> Result<f64> {
        let now = round_trip_ns()?;
        let (least, most) = self.round_trips;
        self.round_trips = (least.min(now), most.max(now));
        Ok(now)
    }

    fn is_enough(&self) -> bool {
        self.samples.values().any(|entrants| entrants.iter().all(|windows| windows.len() >= ENOUGH))
    }

    /// The labels of which every entrant has a window.
    pub fn labels(&self) -> Vec<Label> {
        let whole = self.samples.iter().filter(|(_, of)| of.iter().all(|w| !w.is_empty()));
        whole.map(|(label, _)| *label).collect()
    }

    /// What entrant `entrant` has of measure `measure`.
    pub fn spread(&self, label: Label, entrant: usize, measure: usize) -> Option<Spread> {
        let windows = self.samples.get(&label)?.get(entrant)?;
        Spread::of(windows.iter().map(|sample| sample[measure]).collect())
    }

    /// Median of `ours` by median of `peer`.
    pub fn ratio(&self, label: Label, measure: usize, ours: usize, peer: usize) -> Option<f64> {
        let ours = self.spread(label, ours, measure)?.median;
        Some(ours / self.spread(label, peer, measure)?.median)
    }
}

/// Some values, summed up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// The smallest.
    pub least: f64,
    /// The largest.
    pub most: f64,
    /// How many.
    pub windows: usize,
}

impl Spread {
    /// `None` if there are no values.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            0 => f64::midpoint(values[middle - 1], values[middle]),
            _ => values[middle],
        };
        Some(Self { median, least, most, windows: values.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(Spread::of(Vec::new()), None);
        let three = Spread::of(vec![9.0, 1.0, 2.0]).map(|s| (s.median, s.least, s.most));
        assert_eq!(three, Some((2.0, 1.0, 9.0)));
        assert_eq!(Spread::of(vec![4.0, 1.0, 2.0, 3.0]).map(|s| s.median), Some(2.5));
    }

    #[test]
    fn only_steady_windows_have_a_label() {
        assert_eq!(Label::of(60.0, 70.0), Some(Label::Near));
        assert_eq!(Label::of(360.0, 350.0), Some(Label::Far));
        assert_eq!(Label::of(60.0, 350.0), None);
        assert_eq!(Label::of(200.0, 60.0), None);
    }
}
