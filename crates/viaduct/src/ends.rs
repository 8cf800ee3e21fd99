//! The ends a person can name: the transports' table and the built-in devices' table, looked at as
//! one.

use std::path::Path;

use anyhow::{Error, Result};
use devices::DEVICES;
use transports::TRANSPORTS;
use virtio::{DriverEnd, ParameterError, VirtioDevice};

use crate::address::{Address, Usage};

/// Why an end could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("can't open the {role} end {end}: {reason}")]
pub struct NotOpened {
    role: &'static str,
    end: String,
    reason: String,
}

impl NotOpened {
    /// For a socket that is named by its path alone.
    pub fn path(role: &'static str, path: &Path, reason: impl ToString) -> Self {
        Self { role, end: path.display().to_string(), reason: reason.to_string() }
    }
}

/// Opens where a driver will be.
///
/// # Errors
/// A mistake in the address, or [`NotOpened`] for something outside.
pub fn open_driver(address: &Address) -> Result<Box<dyn DriverEnd>> {
    let transport = TRANSPORTS.iter().find(|transport| transport.scheme == address.scheme);
    match transport.and_then(|transport| transport.driver_end) {
        Some(open) => {
            open(address.parameters()).map_err(|error| explained("driver", address, error))
        }
        None => Err(unknown("driver", address, &driver_schemes())),
    }
}

/// Opens where the device is.
///
/// # Errors
/// A mistake in the address, or [`NotOpened`] for something outside.
pub fn open_device(address: &Address) -> Result<Box<dyn VirtioDevice>> {
    if let Some(device) = DEVICES.iter().find(|device| device.scheme == address.scheme) {
        return (device.open)(address.parameters()).map_err(|error| match error {
            devices::OpenError::Parameter(error) => misread(address, error),
            other => not_opened("device", address, other),
        });
    }
    let transport = TRANSPORTS.iter().find(|transport| transport.scheme == address.scheme);
    match transport.and_then(|transport| transport.device_end) {
        Some(open) => {
            open(address.parameters()).map_err(|error| explained("device", address, error))
        }
        None => Err(unknown("device", address, &device_schemes())),
    }
}

/// What to say of a transport that did not open.
pub fn explained(role: &'static str, address: &Address, error: transports::OpenError) -> Error {
    match error {
        transports::OpenError::Parameter(error) => misread(address, error),
        other => not_opened(role, address, other),
    }
}

fn misread(address: &Address, error: ParameterError) -> Error {
    Error::new(error).context(format!("in {address}"))
}

/// An end that did not open for a reason outside.
pub fn not_opened(role: &'static str, address: &Address, reason: impl ToString) -> Error {
    NotOpened { role, end: address.to_string(), reason: reason.to_string() }.into()
}

fn unknown(role: &str, address: &Address, schemes: &[&'static str]) -> Error {
    let scheme = &address.scheme;
    let meant = virtio::closest(scheme, schemes.iter().copied());
    let meant = meant.map(|scheme| format!(", did you mean {scheme}:?")).unwrap_or_default();
    Usage(format!("there is no {role} end '{scheme}:'{meant}; there are {}", list(schemes))).into()
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
