//! What the kernel says about a device in files, and the settings that are only there.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Most entries looked at in a folder of sysfs.
const MAX_ENTRIES: usize = 256;

/// Sets one of a VDUSE device's own settings: `bounce_size`, `msg_timeout`.
///
/// # Errors
/// The kernel does not know it, or it is too late.
pub(super) fn set(name: &str, key: &str, value: u64) -> io::Result<()> {
    fs::write(Path::new("/sys/class/vduse").join(name).join(key), value.to_string())
}

/// Bytes through which the kernel copies a device's data.
pub(super) fn bounce_bytes(name: &str) -> Option<u64> {
    let text = fs::read_to_string(Path::new("/sys/class/vduse").join(name).join("bounce_size"));
    text.ok()?.trim().parse().ok()
}

/// Whether a device of that name is on the vDPA bus.
pub(super) fn is_on_bus(name: &str) -> bool {
    on_bus(name).exists()
}

/// Whether the driver that joins the vDPA bus to virtio's drivers is there.
pub(super) fn has_virtio_vdpa() -> bool {
    Path::new("/sys/bus/vdpa/drivers/virtio_vdpa").exists()
}

/// Something that people know a device by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Appeared {
    /// `/dev/vda`.
    Disk(String),
    /// The name of a network interface.
    Card(String),
    /// The tag of a file system.
    FileSystem(String),
    /// A virtio device that nobody took, or that has no name.
    Virtio(String),
}

impl Appeared {
    /// What one types.
    pub(super) fn into_name(self) -> String {
        match self {
            Self::Disk(name) | Self::Card(name) | Self::FileSystem(name) | Self::Virtio(name) => {
                name
            }
        }
    }
}

impl fmt::Display for Appeared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(name) => f.write_str(name),
            Self::Card(name) => write!(f, "network interface {name}"),
            Self::FileSystem(name) => write!(f, "file system {name}"),
            Self::Virtio(name) => write!(f, "{name}, without a driver or a name"),
        }
    }
}

/// What people know the device by.
pub(super) fn appeared(name: &str) -> Vec<Appeared> {
    let mut found = Vec::new();
    for virtio in entries(&on_bus(name)) {
        let Some(id) = file_name(&virtio).filter(|id| id.starts_with("virtio")) else { continue };
        let disks = entries(&virtio.join("block"));
        let cards = entries(&virtio.join("net"));
        let before = found.len();
        let disk = |path: &PathBuf| Some(Appeared::Disk(format!("/dev/{}", file_name(path)?)));
        found.extend(disks.iter().filter_map(disk));
        found.extend(cards.iter().filter_map(|card| file_name(card).map(Appeared::Card)));
        if let Ok(tag) = fs::read_to_string(virtio.join("tag")) {
            found.push(Appeared::FileSystem(tag.trim().into()));
        }
        if found.len() == before {
            found.push(Appeared::Virtio(id));
        }
    }
    found
}

fn on_bus(name: &str) -> PathBuf {
    Path::new("/sys/bus/vdpa/devices").join(name)
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let listed = fs::read_dir(folder).into_iter().flatten().flatten();
    listed.take(MAX_ENTRIES).map(|entry| entry.path()).collect()
}

fn file_name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_string_lossy().into_owned())
}
