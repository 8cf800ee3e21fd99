//! The ends a person can name: the transports' table and the built-in devices' table, looked at as
//! one.

use std::path::Path;

use devices::DEVICES;
use transports::TRANSPORTS;
use virtio::{DriverEnd, VirtioDevice};

use crate::address::Address;

/// Why an end could not be opened: a mistake in its address, or something outside.
#[derive(Debug, thiserror::Error)]
#[error("can't open the {role} end {end}: {reason}")]
pub struct NotOpened {
    role: &'static str,
    end: String,
    reason: String,
}

impl NotOpened {
    fn new(role: &'static str, address: &Address, reason: impl ToString) -> Self {
        Self { role, end: shown(address), reason: reason.to_string() }
    }
}

impl NotOpened {
    /// For a socket that is named by its path alone.
    pub fn path(role: &'static str, path: &Path, reason: impl ToString) -> Self {
        Self { role, end: path.display().to_string(), reason: reason.to_string() }
    }
}

/// Opens where a driver will be.
pub fn open_driver(address: &Address) -> Result<Box<dyn DriverEnd>, NotOpened> {
    let transport = TRANSPORTS.iter().find(|transport| transport.scheme == address.scheme);
    let not_opened = |reason| NotOpened::new("driver", address, reason);
    match transport.and_then(|transport| transport.driver_end) {
        Some(open) => open(address.parameters()).map_err(|error| not_opened(error.to_string())),
        None => Err(not_opened(format!("driver ends are {}", list(&driver_schemes())))),
    }
}

/// Opens where the device is.
pub fn open_device(address: &Address) -> Result<Box<dyn VirtioDevice>, NotOpened> {
    let not_opened = |reason| NotOpened::new("device", address, reason);
    if let Some(device) = DEVICES.iter().find(|device| device.scheme == address.scheme) {
        return (device.open)(address.parameters()).map_err(|error| not_opened(error.to_string()));
    }
    let transport = TRANSPORTS.iter().find(|transport| transport.scheme == address.scheme);
    match transport.and_then(|transport| transport.device_end) {
        Some(open) => open(address.parameters()).map_err(|error| not_opened(error.to_string())),
        None => Err(not_opened(format!("device ends are {}", list(&device_schemes())))),
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
