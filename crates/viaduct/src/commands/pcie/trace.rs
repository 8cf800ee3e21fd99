//! `viaduct pcie replay`, `diff` and `show`: what is done with recordings.

use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use port::trace::{self, Outcome, Trace};
use sys::StopSignal;

use super::listen;
use crate::cli;

/// Replays a recording.
pub fn replay(options: &cli::PcieReplay) -> Result<()> {
    let trace = read(&options.file)?;
    let signal = StopSignal::install().context("can't take over SIGTERM")?;
    let folder = tempfile::tempdir().context("can't make a folder for a socket")?;
    let socket = folder.path().join("model");
    let gate = listen("model", &socket)?;
    let _model = match &options.model {
        Some(command) => Some(start(command, &socket)?),
        None => {
            println!("VIADUCT_PORT={}", socket.display());
            None
        }
    };
    let limit = Duration::from_millis(options.deadline);
    match trace::replay(&trace, gate, limit, signal.as_fd())? {
        Outcome::Same { told, compared } => {
            println!("no difference: {told} told, {compared} compared");
            Ok(())
        }
        Outcome::Differs { entry, time_ns, then, now } => {
            println!("entry {entry}, {}\n  then: {then}\n  now:  {now}", at(time_ns));
            bail!("the model does something else");
        }
    }
}

/// A model that ends with us.
struct Model(Child);

impl Drop for Model {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(command: &str, socket: &Path) -> Result<Model> {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("exec {command}")]).stdin(Stdio::null());
    let child = shell.env(port::PORT_VARIABLE, socket).spawn();
    Ok(Model(child.with_context(|| format!("can't start '{command}'"))?))
}

/// Compares two recordings.
pub fn diff(options: &cli::PcieDiff) -> Result<()> {
    let (first, second) = (read(&options.first)?, read(&options.second)?);
    match trace::difference(&first, &second) {
        Ok(steps) => {
            println!("no difference in {steps} steps");
            Ok(())
        }
        Err(found) => {
            println!("{} steps are the same", found.common);
            found.before.iter().for_each(|step| println!("  {step}"));
            let or_end = |step: Option<String>| step.unwrap_or_else(|| "is over".into());
            println!("{}: {}", options.first.display(), or_end(found.first));
            println!("{}: {}", options.second.display(), or_end(found.second));
            bail!("the recordings differ");
        }
    }
}

/// Prints a recording.
pub fn show(options: &cli::PcieShow) -> Result<()> {
    let trace = read(&options.file)?;
    let mut out = std::io::stdout().lock();
    if options.json {
        out.write_all(trace::json(&trace).as_bytes())?;
        return Ok(());
    }
    if options.vcd {
        out.write_all(trace::vcd(&trace).as_bytes())?;
        return Ok(());
    }
    writeln!(out, "{}: {} entries", trace.hello.name, trace.entries.len())?;
    for (number, entry) in trace.entries.iter().enumerate() {
        writeln!(out, "{number:6} {} {}", at(entry.time_ns), trace::describe(entry))?;
    }
    if trace.torn > 0 {
        writeln!(out, "the last {} bytes are no whole entry", trace.torn)?;
    }
    Ok(())
}

fn at(time_ns: u64) -> String {
    format!("{:>14.6} ms", time_ns as f64 / 1e6)
}

fn read(path: &Path) -> Result<Trace> {
    let shown = path.display();
    let bytes = std::fs::read(path).with_context(|| format!("can't read {shown}"))?;
    Trace::decode(&bytes).with_context(|| format!("can't make sense of {shown}"))
}
