//! The end-to-end table as a program: `e2e [--all] [--list] [--jobs N] [--keep] [WORD...]` runs the
//! rows whose names contain every word; without `--all` not those that are marked as seldom run.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use e2e::runner::{self, Options};
use e2e::{Root, row};

fn main() -> Result<ExitCode> {
    let mut options = Options { jobs: 2, keep: false };
    let mut words = Vec::new();
    let (mut only_list, mut all) = (false, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--list" => only_list = true,
            "--all" => all = true,
            "--keep" => options.keep = true,
            "--jobs" => {
                let count = arguments.next().context("--jobs needs a number")?;
                options.jobs = count.parse().context("--jobs needs a number")?;
            }
            word if word.starts_with("--") => bail!("unknown option {word}"),
            _ => words.push(argument),
        }
    }
    let mut cases = row::cases(all);
    cases.retain(|case| words.iter().all(|word| case.name().contains(word)));
    if cases.is_empty() {
        bail!("no row's name contains all of {words:?}; --all --list shows them");
    }
    if only_list {
        cases.iter().for_each(|case| println!("{}", case.name()));
        return Ok(ExitCode::SUCCESS);
    }
    let is_good = runner::run(&Root::find()?, cases, &options).is_good();
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
