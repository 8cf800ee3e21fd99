//! Whether this machine is ready for a device of its own, and under which name.

use std::io;
use std::path::Path;

use sys::{Capability, VduseControl, VduseDevice};
use virtio::DeviceType;

use super::{create, sysfs};

/// Who has a name on the vDPA bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameUse {
    /// Nobody.
    Free,
    /// A process serves a device of that name, or the bus has one that is not VDUSE's.
    Taken,
    /// A device is left of a process that was killed; nobody serves it.
    Left,
}

/// Looks who has the name.
#[must_use]
pub fn use_of_name(name: &str) -> NameUse {
    if !Path::new("/dev/vduse").join(name).exists() {
        return if sysfs::is_on_bus(name) { NameUse::Taken } else { NameUse::Free };
    }
    // Only one process can have it open. Who may not open it at all can't tell.
    match VduseDevice::open(name) {
        Ok(_) => NameUse::Left,
        Err(_) => NameUse::Taken,
    }
}

/// What is missing on this machine, and how to get it, for a device of this type to be its own; all
/// of it, one line each.
#[must_use]
pub fn missing_for(device: DeviceType) -> Vec<String> {
    let mut missing = Vec::new();
    match VduseControl::open(sys::VDUSE_API_LATEST) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            missing.push("VDUSE (Linux 5.15 or later): modprobe vduse".into());
        }
        Err(error) => {
            let why = create::explain_control(error);
            missing.push(format!("a right: {why}"));
        }
    }
    if !sys::has_capability(Capability::NetAdmin) {
        missing.push("a right: only CAP_NET_ADMIN uses the vDPA bus, run as root".into());
    }
    if !sysfs::has_virtio_vdpa() {
        missing.push("the bus of the drivers: modprobe virtio_vdpa".into());
    }
    if let Some((driver, module)) = driver_of(device)
        && !Path::new("/sys/bus/virtio/drivers").join(driver).exists()
    {
        missing.push(format!("the driver of a {device} device: modprobe {module}"));
    }
    missing
}

/// The kernel's driver of a type, and the module it is in.
fn driver_of(device: DeviceType) -> Option<(&'static str, &'static str)> {
    match device {
        DeviceType::BLOCK => Some(("virtio_blk", "virtio_blk")),
        DeviceType::NET => Some(("virtio_net", "virtio_net")),
        DeviceType::FS => Some(("virtiofs", "virtiofs")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_vduse_is_told_all_that_is_missing() {
        if Path::new("/dev/vduse/control").exists() {
            return;
        }
        let missing = missing_for(DeviceType::BLOCK).join("\n");
        assert!(missing.contains("modprobe vduse\n"), "{missing}");
        assert!(missing.contains("modprobe virtio_vdpa"), "{missing}");
        assert_eq!(use_of_name("disk0"), NameUse::Free);
    }
}
