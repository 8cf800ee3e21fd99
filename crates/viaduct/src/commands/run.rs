//! `viaduct run`: many bridges and ports in one process, from a TOML file.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;

use crate::address::{self, Address, Usage};
use crate::cli::{self, Run};
use crate::commands::{bridge, pcie};
use crate::monitor::Reports;
use crate::supervisor;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    workers: Option<usize>,
    /// Microseconds.
    #[serde(default)]
    spin: Option<u64>,
    #[serde(default)]
    bridge: BTreeMap<String, Entry>,
    #[serde(default)]
    pcie: BTreeMap<String, Port>,
}

/// A PCIe device whose model is another process, as `viaduct pcie` serves one.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Port {
    socket: PathBuf,
    model: Option<String>,
    #[serde(rename = "model-socket")]
    model_socket: Option<PathBuf>,
    /// Milliseconds.
    deadline: Option<u64>,
    /// Milliseconds.
    patience: Option<u64>,
    #[serde(default)]
    faults: Vec<String>,
    record: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Entry {
    driver: String,
    device: String,
    #[serde(flatten)]
    settings: BTreeMap<String, toml::Value>,
}

/// Runs the file's bridges until stopped.
pub fn run(options: &Run) -> Result<()> {
    let path = options.file.display();
    let text = fs::read_to_string(&options.file).with_context(|| format!("can't read {path}"))?;
    let file: File = toml::from_str(&text)
        .map_err(|error| Usage(format!("can't make sense of {path}: {error}")))?;
    drop(text);
    if file.bridge.is_empty() && file.pcie.is_empty() {
        let tables = "[bridge.NAME] or [pcie.NAME] table";
        bail!(Usage(format!("{path} has no {tables}: see 'viaduct run --help'")));
    }
    let spin = file.spin.map(|us| Duration::from_micros(us.min(bridge::MAX_SPIN_US)));
    bridge::start_workers(file.workers.unwrap_or(1), spin)?;
    let mut bridges = Vec::new();
    let mut reports = Reports::default();
    // By value: there may be many, and what was read of each is not kept while it runs.
    for (name, entry) in file.bridge {
        let opened = open(&name, &entry).with_context(|| format!("bridge {name} of {path}"))?;
        println!("{name}:\n{}", opened.bridge.driver.attach_hint(opened.bridge.device.as_ref()));
        reports.add(Some(&name), &opened.monitor, opened.stats);
        bridges.push(opened.bridge);
    }
    let mut ports = Vec::new();
    for (name, entry) in file.pcie {
        println!("{name}:");
        ports.push(start_port(&name, &entry).with_context(|| format!("pcie {name} of {path}"))?);
    }
    let result = match bridges.is_empty() {
        true => {
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
            Ok(())
        }
        false => supervisor::run(bridges, Some(reports)),
    };
    for (name, thread) in ports {
        let ended = thread.join().map_err(|_| anyhow!("the thread of {name} panicked"))?;
        ended.with_context(|| format!("pcie {name} of {path}"))?;
    }
    result
}

/// Serves a PCIe device in a thread of its own until the program is stopped.
fn start_port(name: &str, entry: &Port) -> Result<(String, JoinHandle<Result<()>>)> {
    let usual = cli::CardService::default();
    let options = cli::CardService {
        model_socket: entry.model_socket.clone(),
        deadline: entry.deadline.unwrap_or(usual.deadline).clamp(1, 4000),
        patience: entry.patience.unwrap_or(usual.patience),
        faults: entry.faults.clone(),
        record: entry.record.clone(),
        ..usual
    };
    let opened = pcie::Opened::open(&entry.socket, entry.model.as_deref(), &options)?;
    let thread = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || opened.serve(|| {}))
        .context("can't start a thread")?;
    Ok((name.to_owned(), thread))
}

fn open(name: &str, entry: &Entry) -> Result<bridge::Opened> {
    let settings = entry
        .settings
        .iter()
        .map(|(key, value)| Ok((key.clone(), address::value(&plain(key, value)?))))
        .collect::<Result<_>>()?;
    let driver = Address::parse(&entry.driver)?;
    let device = Address::parse(&entry.device)?;
    bridge::open(name, &driver, &device, settings)
}

/// A setting as it would be typed on the command line.
fn plain(key: &str, value: &toml::Value) -> Result<String> {
    match value {
        toml::Value::String(text) => Ok(text.clone()),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Boolean(flag) => Ok(if *flag { "on" } else { "off" }.into()),
        other => {
            bail!(Usage(format!("{key} = {other}: expected a text, a whole number, true or false")))
        }
    }
}
