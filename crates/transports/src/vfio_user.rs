//! vfio-user: a virtual machine monitor connects to a socket and sees a virtio device on its PCI
//! bus.
//!
//! Everything is in the `pcie` crate; here are the settings, and what a person types on the other
//! side.

use std::os::fd::RawFd;
use std::path::Path;
use std::time::Duration;

use pcie::vfio_user::{Service, ServiceError, Source};
use pcie::virtio_pci::{Legacy, VirtioPci, VirtioPciOptions};
use sys::{Connection, Listener};
use virtio::{DriverEnd, EndError, ParameterError, Parameters, Stop, VirtioDevice};
use worker::{MAX_SPIN, usual_spin};

use crate::{OpenError, Transport};

/// The entry in the table of transports.
pub const TRANSPORT: Transport = Transport {
    scheme: "vfio-user",
    help: "a PCI device in a virtual machine, for QEMU's vfio-user-pci",
    settings: &[
        "path=PATH              listen on this socket (also listen=PATH)",
        "fd=N                   an inherited socket, listening or connected, instead",
        "legacy=off|io|mem      also serve drivers from before virtio 1.0 (off)",
        "bus=pcie|pci           look like a PCI Express or a conventional device (pcie)",
        "vectors=N              MSI-X vectors, 0 for INTx alone (one per queue, one for config)",
        "subsystem-vendor=ID    PCI subsystem vendor id (0x1af4)",
        "subsystem=ID           PCI subsystem id (0x1100, or the device type if legacy)",
        "serial=NUMBER          PCI Express device serial number",
        "spin=MICROSECONDS      longest polling after an access, 50 at most, while that saves \
         wake-ups (50 with more than two processors, else 0)",
    ],
    driver_end: Some(open),
    device_end: None,
    probe: None,
};

fn open(mut parameters: Parameters) -> Result<Box<dyn DriverEnd>, OpenError> {
    let fd = parameters.number("fd", 3..=i32::MAX as u64)?;
    let listen = parameters.path("listen");
    let path = parameters.path("path").or(listen);
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
    let spin = parameters.number("spin", 0..=MAX_SPIN.as_micros() as u64)?;
    let spin = spin.map_or_else(|| usual_spin(1), Duration::from_micros);
    parameters.finish()?;
    let (source, name) = match (path, fd) {
        (Some(path), None) => {
            // QEMU may be started in another folder.
            let name = std::path::absolute(&path).unwrap_or_else(|_| path.clone());
            (listen_at(&path)?, name.to_string_lossy().into_owned())
        }
        (None, Some(number)) => {
            let source = inherited(number as RawFd)?;
            let path = match &source {
                Source::Listener(listener) => listener.path(),
                Source::Connection(_) => None,
            };
            let name = path.map(|path| path.to_string_lossy().into_owned());
            (source, name.unwrap_or_else(|| "SOCKET".into()))
        }
        (None, None) => return Err(ParameterError::Missing("path").into()),
        (Some(_), Some(_)) => {
            return Err(ParameterError::Together("give one of path= and fd=, not both").into());
        }
    };
    Ok(Box::new(VfioUserEnd { name, source, options, spin }))
}

fn listen_at(path: &Path) -> Result<Source, EndError> {
    let attempt = format!("listen for a virtual machine at {}", path.display());
    sys::listen_unix(path).map(Source::Listener).map_err(EndError::system(attempt))
}

fn inherited(number: RawFd) -> Result<Source, EndError> {
    let attempt = || format!("take over descriptor {number}");
    let fd = sys::inherited_fd(number).map_err(EndError::system(attempt()))?;
    let source = if sys::is_listening(&fd) {
        Listener::from_fd(fd).map(Source::Listener)
    } else {
        Connection::new(fd).map(Source::Connection)
    };
    source.map_err(EndError::system(attempt()))
}

/// One for each of the most queues, and one for the config.
const MAX_VECTORS: u64 = virtio::MAX_QUEUES as u64 + 1;

/// A socket that virtual machine monitors connect to, one after the other.
struct VfioUserEnd {
    /// As whoever attaches must write it.
    name: String,
    source: Source,
    options: VirtioPciOptions,
    /// Longest polling of the socket.
    spin: Duration,
}

impl DriverEnd for VfioUserEnd {
    fn attach_hint(&self, _device: &dyn VirtioDevice) -> String {
        options(&self.name, self.options.express)
    }

    fn serve(self: Box<Self>, device: Box<dyn VirtioDevice>, stop: Stop) -> Result<(), EndError> {
        self.service(device)?.run(&stop).map_err(end_error)
    }
}

impl VfioUserEnd {
    /// Not on the stack, of which an idle thread keeps whole pages; nor is what it is made of.
    #[inline(never)]
    fn service(self, device: Box<dyn VirtioDevice>) -> Result<Box<Service>, EndError> {
        let function = VirtioPci::new(device, self.options)?;
        let service = Service::new(Box::new(function), self.source).map_err(end_error)?;
        Ok(Box::new(service.spinning(self.spin)))
    }
}

/// QEMU's options for a function at the socket `path`.
#[must_use]
pub fn qemu_options(path: &Path, conventional: bool) -> String {
    // QEMU may be started in another folder.
    let name = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    options(&name.to_string_lossy(), !conventional)
}

fn options(name: &str, express: bool) -> String {
    let (machine, port, bus) = if express {
        ("q35", "-device pcie-root-port,id=rp0,chassis=1\n", r#""bus":"rp0","#)
    } else {
        ("pc", "", "")
    };
    let path = json_string(name);
    format!(
        "-m 1G -object memory-backend-memfd,id=mem,size=1G,share=on\n\
         -machine {machine},memory-backend=mem\n\
         {port}\
         -device '{{\"driver\":\"vfio-user-pci\",{bus}\
         \"socket\":{{\"type\":\"unix\",\"path\":{path}}}}}'"
    )
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
    use virtio::Value;

    fn parameters(pairs: &[(&str, &str)]) -> Parameters {
        let value = |text: &str| Value { text: text.into(), number: text.parse().ok(), flag: None };
        Parameters::new(pairs.iter().map(|(key, text)| ((*key).into(), value(text))).collect())
    }

    fn refusal(pairs: &[(&str, &str)]) -> String {
        open(parameters(pairs)).err().expect("it can't be opened").to_string()
    }

    #[test]
    fn settings_that_do_not_go_are_refused() {
        assert_eq!(refusal(&[]), "path= is missing");
        assert_eq!(refusal(&[("path", "a"), ("fd", "9")]), "give one of path= and fd=, not both");
        assert!(refusal(&[("path", "a"), ("legacy", "no")]).contains("one of off, io, mem"));
        assert!(refusal(&[("path", "a"), ("vectors", "300")]).contains("from 0 to 257"));
        assert!(refusal(&[("path", "a"), ("connect", "b")]).contains("unknown setting connect="));
        assert!(refusal(&[("fd", "987654")]).starts_with("take over descriptor 987654"));
    }

    #[test]
    fn a_socket_is_made_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let end = open(parameters(&[("listen", path.to_str().unwrap())])).unwrap();
        assert!(refusal(&[("path", path.to_str().unwrap())]).contains("listen for a virtual"));
        drop(end);
        assert!(!path.exists());
    }

    #[test]
    fn paths_survive_json_and_shell() {
        assert_eq!(json_string("/run/a.sock"), r#""/run/a.sock""#);
        assert_eq!(json_string("a\"b\\c'd"), r#""a\"b\\c\u0027d""#);
    }
}
