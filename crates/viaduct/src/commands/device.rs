//! `viaduct device`: a built-in device as a vhost-user daemon, with the options that QEMU's
//! conventions for back-end programs ask for.

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use virtio::DeviceType;

use crate::address::{self, Address, Usage};
use crate::cli;
use crate::commands::bridge;
use crate::ends;
use crate::supervisor::{self, Bridge};

/// Runs one device until stopped.
pub fn run(options: &cli::Device) -> Result<()> {
    if !devices::DEVICES.iter().any(|device| device.scheme == options.kind) {
        bail!(no_such_device(&options.kind));
    }
    if options.print_capabilities {
        println!("{}", capabilities(&options.kind)?);
        return Ok(());
    }
    let mut device =
        Address { scheme: options.kind.clone(), values: address::settings(&options.settings)? };
    if let Some(file) = &options.blk_file {
        let file = file.to_str().context("--blk-file: the path is not UTF-8")?;
        device.values.insert("path".into(), address::value(file));
    }
    if options.read_only {
        device.values.insert("readonly".into(), address::value("on"));
    }
    let driver = match (&options.socket_path, options.fd) {
        (Some(path), None) => {
            let path = path.to_str().context("--socket-path: the path is not UTF-8")?;
            endpoint("path", path)
        }
        (None, Some(fd)) => endpoint("fd", &fd.to_string()),
        _ => bail!(Usage("give --socket-path=PATH or --fd=FDNUM".into())),
    };
    bridge::start_workers(1, options.spin.map(Duration::from_micros))?;
    let device = ends::open_device(&device)?;
    let driver = ends::open_driver(&driver)?;
    println!("{}", driver.attach_hint(device.as_ref()));
    supervisor::run(vec![Bridge { name: options.kind.clone(), driver, device }], None)
}

fn endpoint(key: &str, text: &str) -> Address {
    let values = [(key.to_owned(), address::value(text))].into();
    Address { scheme: "vhost-user".into(), values }
}

/// The JSON that the conventions define: the type, and which of its optional features there are.
fn capabilities(kind: &str) -> Result<String> {
    let (name, features): (&str, &[&str]) = match DeviceType::by_name(kind) {
        Some(DeviceType::BLOCK) => ("block", &["read-only", "blk-file"]),
        Some(DeviceType::NET) => ("net", &[]),
        Some(DeviceType::CONSOLE) => ("console", &[]),
        Some(DeviceType::ENTROPY) => ("rng", &[]),
        _ => bail!(no_such_device(kind)),
    };
    let mut text = format!("{{\n  \"type\": \"{name}\",\n  \"features\": [");
    for (index, feature) in features.iter().enumerate() {
        let comma = if index > 0 { "," } else { "" };
        write!(text, "{comma}\n    \"{feature}\"")?;
    }
    let close = if features.is_empty() { "]\n}" } else { "\n  ]\n}" };
    Ok(text + close)
}

fn no_such_device(kind: &str) -> Usage {
    let known: Vec<&str> = devices::DEVICES.iter().map(|device| device.scheme).collect();
    let meant = virtio::closest(kind, known.iter().copied());
    let meant = meant.map(|kind| format!(", did you mean {kind}?")).unwrap_or_default();
    Usage(format!("there is no built-in device '{kind}'{meant}; there are {}", known.join(", ")))
}
