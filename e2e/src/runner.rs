//! Runs cases, some at once, and says what became of each.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::lab::Lab;
use crate::root::Root;

type Body = Box<dyn Fn(&Lab) -> Result<()> + Send + Sync>;

/// A test: a sentence, a time limit, what to do.
pub struct Case {
    name: String,
    limit: Duration,
    body: Body,
}

impl Case {
    /// A case.
    pub fn new(
        name: impl Into<String>,
        limit: Duration,
        body: impl Fn(&Lab) -> Result<()> + Send + Sync + 'static,
    ) -> Case {
        Case { name: name.into(), limit, body: Box::new(body) }
    }

    /// The sentence.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// How to run.
pub struct Options {
    /// How many cases at once.
    pub jobs: usize,
    /// Leave the folder of a failed case behind.
    pub keep: bool,
}

/// What became of the cases.
#[derive(Default)]
pub struct Tally {
    passed: usize,
    failed: Vec<String>,
}

impl Tally {
    /// Whether nothing failed and something passed.
    pub fn is_good(&self) -> bool {
        self.failed.is_empty() && self.passed > 0
    }
}

/// Runs all cases; prints a line for each when it is over and `N passed, N failed` at the end.
pub fn run(root: &Root, cases: Vec<Case>, options: &Options) -> Tally {
    let total = cases.len();
    let queue = Mutex::new(cases.iter().collect::<VecDeque<_>>());
    let tally = Mutex::new(Tally::default());
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.clamp(1, total.max(1)) {
            scope.spawn(|| {
                while let Some(case) = next(&queue) {
                    let (seconds, outcome) = run_one(root, case, options);
                    report(&tally, case, total, seconds, outcome);
                }
            });
        }
    });
    let mut tally = tally.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    run_again(root, &cases, options, &mut tally);
    for name in &tally.failed {
        println!("failed: {name}");
    }
    println!("{} passed, {} failed", tally.passed, tally.failed.len());
    tally
}

fn next<'c>(queue: &Mutex<VecDeque<&'c Case>>) -> Option<&'c Case> {
    queue.lock().ok()?.pop_front()
}

/// Most cases that get a second try: more than that is no accident of a busy machine.
const MAX_SECOND_TRIES: usize = 5;

/// Gives the few cases that failed a second try, alone on the machine. Emulated guests on a busy
/// machine run into time limits now and then; what is broken fails again.
fn run_again(root: &Root, cases: &[Case], options: &Options, tally: &mut Tally) {
    if tally.failed.len() > MAX_SECOND_TRIES {
        return;
    }
    for name in std::mem::take(&mut tally.failed) {
        let Some(case) = cases.iter().find(|case| case.name == name) else { continue };
        let (seconds, outcome) = run_one(root, case, options);
        match outcome {
            Ok(()) => {
                tally.passed += 1;
                println!("second try: ok {seconds:5.1} s  {name}");
            }
            Err(why) => {
                println!("second try: FAILED {seconds:5.1} s  {name}\n{why}");
                tally.failed.push(name);
            }
        }
    }
}

/// Runs one case. Programs that it starts die with this thread at the latest, so a case gets a
/// thread of its own.
fn run_one(root: &Root, case: &Case, options: &Options) -> (f32, Result<(), String>) {
    let started = Instant::now();
    let body = || {
        let lab = Lab::new(root, case.limit).map_err(|error| format!("{error:#}"))?;
        let outcome = catch_unwind(AssertUnwindSafe(|| (case.body)(&lab)));
        let error = match outcome {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error,
            Err(_) => anyhow!("the test itself panicked"),
        };
        let mut text = format!("{}{error:#}", lab.logs());
        if options.keep {
            text += &format!("\nkept: {}", lab.keep().display());
        }
        Err(text)
    };
    let outcome = std::thread::scope(|scope| scope.spawn(body).join());
    let outcome = outcome.unwrap_or_else(|_| Err("the test's thread panicked".into()));
    (started.elapsed().as_secs_f32(), outcome)
}

fn report(
    tally: &Mutex<Tally>,
    case: &Case,
    total: usize,
    seconds: f32,
    outcome: Result<(), String>,
) {
    let mut tally = tally.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let number = tally.passed + tally.failed.len() + 1;
    match outcome {
        Ok(()) => {
            tally.passed += 1;
            println!("[{number}/{total}] ok {seconds:5.1} s  {}", case.name);
        }
        Err(why) => {
            tally.failed.push(case.name.clone());
            println!("[{number}/{total}] FAILED {seconds:5.1} s  {}\n{why}", case.name);
        }
    }
}
