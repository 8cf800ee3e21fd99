//! `viaduct attach`: a device becomes this machine's own. What `viaduct bridge vduse:NAME` does,
//! for a person: says all that is missing at once, picks a name, prints what appears, and gives up
//! the rights that are not needed any more.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use sys::Capability;
use transports::NameUse;
use virtio::{DriverEnd, Value};

use crate::address::{self, Address};
use crate::cli;
use crate::commands::bridge::Settings;
use crate::ends::{self, NotOpened};
use crate::monitor::Reports;
use crate::supervisor::{self, Bridge};

/// Settings that are the driver end's and not the bridge's.
const DRIVER_SETTINGS: [&str; 6] =
    ["bounce-size", "message-timeout", "api", "state", "release-timeout", "replace"];

/// Most names that are tried.
const MAX_NAMES: u32 = 99;

/// Attaches one device until stopped.
pub fn run(options: &cli::Attach) -> Result<()> {
    let device = Address::parse(&options.device_end)?;
    let (for_driver, for_bridge) = address::settings(&options.settings)?
        .into_iter()
        .partition(|(key, _)| DRIVER_SETTINGS.contains(&key.as_str()));
    let settings = Settings::read(for_bridge)?;
    let inner = settings.open_device(&device)?;
    let missing = transports::missing_for(inner.identity().device);
    if !missing.is_empty() {
        let all = missing.iter().map(|line| format!("\n  {line}")).collect::<String>();
        return Err(ends::not_opened(
            "driver",
            &end("NAME"),
            format!("missing on this machine:{all}"),
        ));
    }
    let name = match &options.name {
        Some(name) => name.clone(),
        None => pick_name(&options.device_end, &usual_name(&device))?,
    };
    let driver = open_driver(&name, for_driver)?;
    // No thread has been started yet: each has the rights of the one that makes it.
    give_up_rights(&device)?;
    settings.start_workers()?;
    let (shadow, monitor, stats) = settings.shadow(inner, &name, &device.scheme)?;
    let mut reports = Reports::default();
    reports.add(None, &monitor, stats);
    let bridge = Bridge { name, driver, device: Box::new(shadow) };
    // It is there when the kernel's driver has taken it, not before.
    supervisor::run_with(vec![bridge], Some(reports), || ())
}

fn end(name: &str) -> Address {
    Address { scheme: "vduse".into(), values: [("path".into(), address::value(name))].into() }
}

fn open_driver(name: &str, settings: BTreeMap<String, Value>) -> Result<Box<dyn DriverEnd>> {
    let mut address = end(name);
    address.values.extend(settings);
    let told = Box::new(|appeared: &[String]| {
        let mut out = std::io::stdout().lock();
        for name in appeared {
            // Nobody may be listening, and the device is there all the same.
            let _ = writeln!(out, "{name}");
        }
        let _ = out.flush();
        supervisor::tell_ready();
    });
    transports::open_on_host(address.parameters(), told)
        .map_err(|error| ends::explained("driver", &address, error))
}

/// A name after the device's socket or file, `qsd` for `vhost-user:/run/qsd.sock`, else after its
/// kind.
fn usual_name(device: &Address) -> String {
    let path = device.values.get("path").map(|path| Path::new(&path.text));
    let stem = path.and_then(Path::file_stem).and_then(|stem| stem.to_str());
    let good = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
    let name: String = stem.unwrap_or(&device.scheme).chars().map(good).take(32).collect();
    if name == "control" || name.is_empty() { device.scheme.clone() } else { name }
}

/// The first name that is free. What a killed process has left is not passed over: the same device
/// would be there twice, and the first one's requests wait.
fn pick_name(device: &str, usual: &str) -> Result<String> {
    let names = (2..=MAX_NAMES).map(|number| format!("{usual}-{number}"));
    for name in std::iter::once(usual.to_owned()).chain(names) {
        match transports::use_of_name(&name) {
            NameUse::Free => return Ok(name),
            NameUse::Taken => {}
            NameUse::Left => {
                return Err(ends::not_opened(
                    "driver",
                    &end(&name),
                    format!(
                        "a process that served it was killed: 'viaduct attach --name {name} \
                         {device}' goes on with it if {device} is its device, another --name \
                         leaves it alone"
                    ),
                ));
            }
        }
    }
    Err(NotOpened::path("driver", Path::new(usual), "all names like it are taken").into())
}

/// Keeps what taking the device away needs, and what finding its daemon again needs.
fn give_up_rights(device: &Address) -> Result<()> {
    const FOLDER: &str = "/run/viaduct";
    let mut keep = vec![Capability::NetAdmin];
    let daemon = device.values.get("path").map(|path| Path::new(&path.text));
    for path in daemon.into_iter().chain([Path::new(FOLDER)]).filter(|path| path.exists()) {
        let is_ours =
            sys::is_writable_without_override(path).context("can't look at our rights")?;
        if !is_ours && !keep.contains(&Capability::DacOverride) {
            tracing::info!("{} is another user's: CAP_DAC_OVERRIDE is kept", path.display());
            keep.push(Capability::DacOverride);
        }
    }
    sys::keep_capabilities(&keep).context("can't give up rights that are not needed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_called_after_its_socket() {
        let name = |text: &str| usual_name(&Address::parse(text).unwrap());
        assert_eq!(name("vhost-user:/run/qsd.sock"), "qsd");
        assert_eq!(name("vhost-user:/run/a b.1.sock,type=blk"), "a-b-1");
        assert_eq!(name("blk:path=/srv/disk.img"), "disk");
        assert_eq!(name("blk:ram=1M"), "blk");
        assert_eq!(name("vhost-user:/run/control.sock"), "vhost-user");
        assert!(name(&format!("vhost-user:/{}", "x".repeat(300))).len() <= 32);
    }
}
