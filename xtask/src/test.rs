//! `cargo xtask test`: everything, in the order in which a fault is cheapest to find.

use std::process::Command;

use anyhow::{Result, bail};
use clap::Args;

use crate::check::{self, cargo, workspace};
use crate::fuzz;
use crate::root;

/// Options of `cargo xtask test`.
#[derive(Args)]
pub struct Options {
    /// Only the end-to-end rows whose name contains every one of these words.
    words: Vec<String>,
    /// Go straight to the end-to-end table.
    #[arg(long)]
    no_check: bool,
    /// All rows of the table, also those that take nearly the same path as others: an hour.
    #[arg(long)]
    all: bool,
    /// How many rows run at once.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
}

/// `cargo xtask test`. Its last line is `N passed, N failed`, printed by the table's runner.
pub fn run(options: &Options) -> Result<()> {
    if !options.no_check {
        check::run()?;
        fuzz::run(&fuzz::Options::brief())?;
    }
    let root = root::ensure()?;
    println!("== the program and the table");
    let build = ["build", "--quiet", "--locked", "--release", "-p", "viaduct", "-p", "e2e"];
    // The devices that a person would write, and what they link.
    let examples = ["-p", "dma-engine", "-p", "viaduct-sdk"];
    if !cargo().args(build).args(examples).status()?.success() {
        bail!("the build failed");
    }
    let programs = workspace().join("target/release");
    let mut table = Command::new(programs.join("e2e"));
    table.env("VIADUCT_ROOT", root).env("VIADUCT", programs.join("viaduct"));
    table.arg("--jobs").arg(options.jobs.to_string()).args(&options.words);
    if options.all {
        table.arg("--all");
    }
    let status = table.status()?;
    if !status.success() {
        std::process::exit(status.code().unwrap_or(1));
    }
    Ok(())
}
