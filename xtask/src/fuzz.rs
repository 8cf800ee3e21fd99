//! `cargo xtask fuzz`: every fuzz target, each for a while. The targets share their checks with the
//! property tests, which is what a machine without a nightly compiler runs instead.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cache;
use crate::check::{cargo, workspace};
use crate::process::{quietly, step};

/// Seconds for each target unless told: what rust-vmm gives its targets for every change.
const LONG_SECONDS: u32 = 15 * 60;
/// One input may take so long. Most take microseconds.
const INPUT_SECONDS: u32 = 10;
/// A target needs up to 2 GiB of memory, the limit that libFuzzer has.
const MOST_AT_ONCE: usize = 8;
/// Lines of a failed run that are shown.
const TAIL_LINES: usize = 40;

/// Options of `cargo xtask fuzz`.
#[derive(Args)]
pub struct Options {
    /// Only these targets; all when there are none.
    targets: Vec<String>,
    /// How long each target runs.
    #[arg(long, default_value_t = LONG_SECONDS)]
    seconds: u32,
}

impl Options {
    /// All targets, a few seconds each: enough to find what was broken just now.
    pub fn brief() -> Self {
        Self { targets: Vec::new(), seconds: 5 }
    }
}

/// `cargo xtask fuzz`.
pub fn run(options: &Options) -> Result<()> {
    let all = targets()?;
    if let Some(unknown) = options.targets.iter().find(|name| !all.contains(name)) {
        bail!("no fuzz target '{unknown}': there are {}", all.join(", "));
    }
    let chosen = if options.targets.is_empty() { &all } else { &options.targets };
    if !has_nightly() {
        println!("== fuzz: skipped, no nightly toolchain (the property tests ran the same checks)");
        return Ok(());
    }
    let tool = tool()?;
    step("build the fuzz targets", fuzz(&tool).arg("build"))?;
    let lanes = thread::available_parallelism().map_or(1, usize::from).min(MOST_AT_ONCE);
    let next = AtomicUsize::new(0);
    let lane = || {
        while let Some(target) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
            one(&tool, target, options.seconds)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let lanes: Vec<_> = (0..lanes).map(|_| scope.spawn(lane)).collect();
        lanes.into_iter().try_for_each(|lane| lane.join().expect("a lane does not panic"))
    })
}

/// The targets that `fuzz/Cargo.toml` names.
pub fn targets() -> Result<Vec<String>> {
    let manifest = workspace().join("fuzz/Cargo.toml");
    let text =
        fs::read_to_string(&manifest).with_context(|| format!("read {}", manifest.display()))?;
    let bins = text.split("[[bin]]").skip(1);
    let names = bins.filter_map(|bin| bin.split_once("name = \"")?.1.split('"').next());
    Ok(names.map(str::to_owned).collect())
}

/// Whether rustup has a nightly compiler, which the sanitizer and the coverage counters need.
fn has_nightly() -> bool {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", "rustc", "--version"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// The program cargo-fuzz, installed into the cache folder on first use.
fn tool() -> Result<PathBuf> {
    let folder = cache::folder()?.join("cargo-fuzz");
    let program = folder.join("bin/cargo-fuzz");
    if !program.exists() {
        let mut install = cargo();
        install.args(["install", "--quiet", "--locked", "cargo-fuzz", "--root"]).arg(&folder);
        quietly("install cargo-fuzz", &mut install, &folder.with_extension("log"))?;
    }
    Ok(program)
}

/// cargo-fuzz with the nightly compiler, whatever compiler runs this task.
fn fuzz(tool: &Path) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly"]).arg(tool).current_dir(workspace());
    for name in ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN", "RUSTFLAGS"] {
        command.env_remove(name);
    }
    command
}

/// Runs one target, with its output in a file beside the targets' build.
fn one(tool: &Path, target: &str, seconds: u32) -> Result<()> {
    let (corpus, seeds) = (folder("corpus", target)?, workspace().join("fuzz/seeds").join(target));
    let log = workspace().join("fuzz/target").join(format!("{target}.log"));
    let mut command = fuzz(tool);
    command.args(["run", target]).arg(corpus);
    if seeds.is_dir() {
        command.arg(seeds);
    }
    command.arg("--").args([
        format!("-max_total_time={seconds}"),
        format!("-timeout={INPUT_SECONDS}"),
        "-print_final_stats=1".to_owned(),
    ]);
    let output = File::create(&log).with_context(|| format!("create {}", log.display()))?;
    command.stdout(output.try_clone()?).stderr(output);
    let started = Instant::now();
    let status = command.status().context("start cargo-fuzz")?;
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    if !status.success() {
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
        bail!("fuzz target {target} failed; the end of {}:\n{tail}", log.display());
    }
    let ran = started.elapsed().as_secs_f32();
    println!("== fuzz {target}: {} inputs in {ran:.0} s, no fault", executed(&text));
    Ok(())
}

fn folder(kind: &str, target: &str) -> Result<PathBuf> {
    let folder = workspace().join("fuzz").join(kind).join(target);
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    Ok(folder)
}

/// How many inputs libFuzzer says it ran.
fn executed(log: &str) -> u64 {
    let number =
        |line: &str| line.strip_prefix("stat::number_of_executed_units:")?.trim().parse().ok();
    log.lines().find_map(number).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_a_file_and_every_file_is_a_target() {
        let mut named = targets().unwrap();
        let files = fs::read_dir(workspace().join("fuzz/fuzz_targets")).unwrap();
        let mut found: Vec<String> = files
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .map(|file| file.trim_end_matches(".rs").to_owned())
            .collect();
        named.sort();
        found.sort();
        assert_eq!(named, found);
        assert!(named.len() >= 6);
    }

    #[test]
    fn the_number_of_inputs_is_found() {
        let log = "#5 DONE\nstat::number_of_executed_units: 1234\nstat::average_exec_per_sec: 7\n";
        assert_eq!(executed(log), 1234);
        assert_eq!(executed("cut"), 0);
    }
}
