//! `cargo xtask bench`: measures against the peers in the same run and keeps the tables.

use std::process::Command;

use anyhow::{Result, bail};
use clap::Args;

use crate::check::{cargo, workspace};
use crate::root;

/// Options of `cargo xtask bench`.
#[derive(Args)]
pub struct Options {
    /// Only the groups whose name contains one of these words.
    words: Vec<String>,
    /// Say which groups there are.
    #[arg(long)]
    list: bool,
    /// Short windows and few of them, written to `target/bench`: to see that everything works.
    #[arg(long)]
    quick: bool,
}

/// `cargo xtask bench`.
pub fn run(options: &Options) -> Result<()> {
    let build = ["build", "--quiet", "--locked", "--release", "-p", "viaduct", "-p", "bench"];
    // The devices behind a port, and what simulations link.
    let examples = ["-p", "dma-engine", "-p", "viaduct-sdk"];
    if !cargo().args(build).args(examples).status()?.success() {
        bail!("the build failed");
    }
    let programs = workspace().join("target/release");
    let mut bench = Command::new(programs.join("bench"));
    bench.current_dir(workspace()).args(&options.words);
    if options.list {
        bench.arg("--list");
    } else {
        bench.env("VIADUCT_ROOT", root::ensure()?).env("VIADUCT", programs.join("viaduct"));
    }
    if options.quick {
        bench.args(["--quick", "--results", "target/bench"]);
    }
    let status = bench.status()?;
    if !status.success() {
        std::process::exit(status.code().unwrap_or(1));
    }
    Ok(())
}
