//! The ends a person can name: the transports' table and the built-in devices' table, looked at as
//! one.

use anyhow::{Context, Result, bail};
use devices::DEVICES;
use transports::TRANSPORTS;
use virtio::{DriverEnd, VirtioDevice};

use crate::address::Address;

/// Opens where a driver will be.
pub fn open_driver(address: &Address) -> Result<Box<dyn DriverEnd>> {
    let transport = TRANSPORTS.iter().find(|transport| transport.scheme == address.scheme);
    let open = transport.and_then(|transport| transport.driver_end);
    let Some(open) = open else {
        bail!("'{}:' can't be a driver end; driver ends are {}", address.scheme, list(&driver_schemes()));
    };
    open(address.parameters()).with_context(|| format!("can't open the driver end {}", shown(address)))
}

/// Opens where the device is.
pub fn open_device(address: &Address) -> Result<Box<dyn VirtioDevice>> {
    let context = || format!("can't open the device end {}", shown(address));
    if let Some(device) = DEVICES.iter().find(|device| device.scheme == address.scheme) {
        return (device.open)(address.parameters()).with_context(context);
    }
    let transport = TRANSPORTS.iter().find(|transport| transport.scheme == address.scheme);
    match transport.and_then(|transport| transport.device_end) {
        Some(open) => open(address.parameters()).with_context(context),
        None => {
            bail!("'{}:' can't be a device end; device ends are {}", address.scheme, list(&device_schemes()))
        }
    }
}

fn shown(address: &Address) -> String {
    let path = address.values.get("path").map_or("", |path| path.text.as_str());
    format!("{}:{path}", address.scheme)
}

fn driver_schemes() -> Vec<&'static str> {
    TRANSPORTS.iter().filter(|row| row.driver_end.is_some()).map(|row| row.scheme).collect()
}

fn device_schemes() -> Vec<&'static str> {
    let transports = TRANSPORTS.iter().filter(|row| row.device_end.is_some()).map(|row| row.scheme);
    transports.chain(DEVICES.iter().map(|device| device.scheme)).collect()
}

fn list(schemes: &[&str]) -> String {
    schemes.iter().map(|scheme| format!("{scheme}:")).collect::<Vec<_>>().join(", ")
}

/// The two tables as help text.
pub fn help() -> String {
    let mut text = String::from("Ends:\n");
    for row in TRANSPORTS {
        let roles = match (row.driver_end.is_some(), row.device_end.is_some()) {
            (true, true) => "driver or device end",
            (true, false) => "driver end",
            _ => "device end",
        };
        text += &entry(row.scheme, &format!("{} ({roles})", row.help), row.settings);
    }
    text += "\nBuilt-in devices (device ends):\n";
    for row in DEVICES {
        text += &entry(row.scheme, row.help, row.settings);
    }
    text
}

fn entry(scheme: &str, help: &str, settings: &[&str]) -> String {
    let mut text = format!("  {:<13}{help}\n", format!("{scheme}:"));
    for setting in settings {
        text += &format!("      {setting}\n");
    }
    text
}
