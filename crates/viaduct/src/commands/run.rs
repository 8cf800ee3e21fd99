//! `viaduct run`: many bridges in one process, from a TOML file.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::address::{self, Address, Usage};
use crate::cli::Run;
use crate::commands::bridge;
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
    if file.bridge.is_empty() {
        bail!(Usage(format!("{path} has no [bridge.NAME] table: see 'viaduct run --help'")));
    }
    let spin = file.spin.map(|us| Duration::from_micros(us.min(bridge::MAX_SPIN_US)));
    bridge::start_workers(file.workers.unwrap_or(1), spin)?;
    let mut bridges = Vec::new();
    let mut reports = Reports::default();
    for (name, entry) in &file.bridge {
        let opened = open(name, entry).with_context(|| format!("bridge {name} of {path}"))?;
        println!("{name}:\n{}", opened.bridge.driver.attach_hint(opened.bridge.device.as_ref()));
        reports.add(Some(name), &opened.monitor, opened.stats);
        bridges.push(opened.bridge);
    }
    supervisor::run(bridges, Some(reports))
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
