//! `cargo xtask check`: the gate that runs before every commit, in a minute, anywhere.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::process::step;
use crate::tidy;

/// `cargo xtask check`. The cheap steps come first.
pub fn run() -> Result<()> {
    let started = Instant::now();
    tidy::run()?;
    step("format", cargo().args(["fmt", "--all", "--check"]))?;
    let lints = ["clippy", "--quiet", "--locked", "--workspace", "--all-targets"];
    step("lints", cargo().args(lints).args(["--", "-D", "warnings"]))?;
    step("unit and property tests", cargo().args(["test", "--quiet", "--locked", "--workspace"]))?;
    loom()?;
    println!("== check: {:.1} s", started.elapsed().as_secs_f32());
    Ok(())
}

/// Every `tests/loom*.rs`, with the atomics of crate `loom`; a target folder of its own because the
/// flag is part of every crate's identity.
fn loom() -> Result<()> {
    for (folder, tests) in loom_tests()? {
        let mut command = cargo();
        command.env("RUSTFLAGS", "--cfg loom").current_dir(&folder);
        command.args(["test", "--quiet", "--locked", "--release"]);
        command.arg("--target-dir").arg(workspace().join("target/loom"));
        for test in &tests {
            command.args(["--test", test]);
        }
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        step(&format!("loom: {name}"), &mut command)?;
    }
    Ok(())
}

/// The folders of crates that have loom tests, each with the names of those tests.
fn loom_tests() -> Result<Vec<(PathBuf, Vec<String>)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(workspace().join("crates")).context("list the crates")? {
        let folder = entry?.path();
        let Ok(files) = fs::read_dir(folder.join("tests")) else { continue };
        let mut tests: Vec<String> = files
            .filter_map(|file| {
                Some(file.ok()?.file_name().to_str()?.strip_suffix(".rs")?.to_owned())
            })
            .filter(|name| name.starts_with("loom"))
            .collect();
        tests.sort();
        if !tests.is_empty() {
            found.push((folder, tests));
        }
    }
    found.sort();
    Ok(found)
}

/// The cargo that runs this task.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

/// The workspace's folder.
pub fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}
