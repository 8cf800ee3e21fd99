//! vfio-user: a virtual machine monitor connects to a socket and sees a virtio device on its PCI
//! bus.
//!
//! Everything is in the `pcie` crate; here are the settings, and what a person types on the other
//! side.

use std::path::PathBuf;

use pcie::vfio_user::{Service, ServiceError, Source};
use pcie::virtio_pci::{Legacy, VirtioPci, VirtioPciOptions};
use sys::Listener;
use virtio::{DriverEnd, EndError, Parameters, Stop, VirtioDevice};

use crate::{OpenError, Transport};

/// The entry in the table of transports.
pub const TRANSPORT: Transport = Transport {
    scheme: "vfio-user",
    help: "a PCI device in a virtual machine, for QEMU's vfio-user-pci",
    settings: &[
        "path=PATH              listen on this socket (also listen=PATH)",
        "legacy=off|io|mem      also serve drivers from before virtio 1.0 (off)",
        "bus=pcie|pci           look like a PCI Express or a conventional device (pcie)",
        "vectors=N              MSI-X vectors, 0 for INTx alone (one per queue, one for config)",
        "subsystem-vendor=ID    PCI subsystem vendor id (0x1af4)",
        "subsystem=ID           PCI subsystem id (0x1100, or the device type if legacy)",
        "serial=NUMBER          PCI Express device serial number",
    ],
    driver_end: Some(open),
    device_end: None,
    probe: None,
};

fn open(mut parameters: Parameters) -> Result<Box<dyn DriverEnd>, OpenError> {
    let path = match parameters.path("listen") {
        Some(path) => path,
        None => parameters.required_path("path")?,
    };
    let legacy = [("off", Legacy::Off), ("io", Legacy::Io), ("mem", Legacy::Memory)];
    let id = |number: u64| number as u16;
    let options = VirtioPciOptions {
        legacy: parameters.choice("legacy", &legacy)?.unwrap_or_default(),
        express: parameters.choice("bus", &[("pcie", true), ("pci", false)])?.unwrap_or(true),
        vectors: parameters.number("vectors", 0..=MAX_VECTORS)?.map(id),
        subsystem_vendor: parameters.number("subsystem-vendor", 0..=0xffff)?.map(id),
        subsystem: parameters.number("subsystem", 0..=0xffff)?.map(id),
        serial: parameters.number("serial", 0..=u64::MAX)?,
    };
    parameters.finish()?;
    let listener = sys::listen_unix(&path)
        .map_err(EndError::system(format!("listen for a virtual machine at {}", path.display())))?;
    Ok(Box::new(VfioUserEnd { path, listener, options }))
}

/// One for each of the most queues, and one for the config.
const MAX_VECTORS: u64 = virtio::MAX_QUEUES as u64 + 1;

/// A socket that virtual machine monitors connect to, one after the other.
struct VfioUserEnd {
    path: PathBuf,
    listener: Listener,
    options: VirtioPciOptions,
}

impl DriverEnd for VfioUserEnd {
    fn attach_hint(&self, _device: &dyn VirtioDevice) -> String {
        let (port, bus) = if self.options.express {
            ("-device pcie-root-port,id=rp0,chassis=1\n", r#""bus":"rp0","#)
        } else {
            ("", "")
        };
        let path = json_string(&self.path.to_string_lossy());
        format!(
            "-m 1G -object memory-backend-memfd,id=mem,size=1G,share=on\n\
             -machine q35,memory-backend=mem\n\
             {port}\
             -device '{{\"driver\":\"vfio-user-pci\",{bus}\
             \"socket\":{{\"type\":\"unix\",\"path\":{path}}}}}'"
        )
    }

    fn serve(self: Box<Self>, device: Box<dyn VirtioDevice>, stop: Stop) -> Result<(), EndError> {
        let function = VirtioPci::new(device, self.options)?;
        let source = Source::Listener(self.listener);
        let mut service = Service::new(Box::new(function), source).map_err(end_error)?;
        service.run(&stop).map_err(end_error)
    }
}

fn end_error(error: ServiceError) -> EndError {
    match error {
        ServiceError::Layout(error) => EndError::Driver(error.to_string()),
        ServiceError::System { attempt, source } => {
            EndError::System { attempt: attempt.to_owned(), source }
        }
    }
}

/// A JSON string in a shell's single quotes.
fn json_string(text: &str) -> String {
    let mut json = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => json.extend(['\\', c]),
            '\'' => json.push_str(r"\u0027"),
            c if c.is_control() => json.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => json.push(c),
        }
    }
    json + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_survive_json_and_shell() {
        assert_eq!(json_string("/run/a.sock"), r#""/run/a.sock""#);
        assert_eq!(json_string("a\"b\\c'd"), r#""a\"b\\c\u0027d""#);
    }
}
