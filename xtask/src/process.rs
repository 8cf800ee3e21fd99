//! Running other programs: say what, measure, fail with a message for people.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// Runs one step of a task with its output shown, and says how long it took.
pub fn step(what: &str, command: &mut Command) -> Result<()> {
    println!("== {what}");
    let started = Instant::now();
    let status = command.status().with_context(|| format!("start {}", shown(command)))?;
    if !status.success() {
        bail!("{what} failed ({status}): {}", shown(command));
    }
    println!("== {what}: {:.1} s", started.elapsed().as_secs_f32());
    Ok(())
}

/// Runs a long noisy program: its output goes to `log`, only its lines that start with `==` are
/// shown, and the end of the log if it fails.
pub fn quietly(what: &str, command: &mut Command, log: &Path) -> Result<()> {
    const TAIL_LINES: usize = 30;
    println!("== {what}");
    let started = Instant::now();
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file.try_clone()?);
    let mut child = command.spawn().with_context(|| format!("start {}", shown(command)))?;
    let output = child.stdout.take().context("no pipe to the program")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        if line.starts_with("==") {
            println!("   {:6.1} s {line}", started.elapsed().as_secs_f32());
        }
        writeln!(file, "{line}")?;
    }
    let status = child.wait()?;
    if !status.success() {
        let text = String::from_utf8_lossy(&std::fs::read(log)?).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
        bail!("{what} failed ({status}); the end of {}:\n{tail}", log.display());
    }
    println!("== {what}: {:.1} s", started.elapsed().as_secs_f32());
    Ok(())
}

/// What a program prints, or an error if it fails.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("start {}", shown(command)))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed ({}): {}", shown(command), output.status, why.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether a program of this name is on PATH.
pub fn on_path(name: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|p| std::env::split_paths(&p).any(|d| d.join(name).is_file()))
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}
