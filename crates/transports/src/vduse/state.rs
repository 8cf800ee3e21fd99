//! What must outlive this process, because the kernel gives none of it back: what the device was
//! made as, the status, and which requests are in flight.
//!
//! ```text
//!   PATH            text, replaced as a whole: device, features, queues, config, status
//!   PATH.in-flight  vhost-user's record of requests in flight, one per queue; whoever works on the
//!                   driver's rings writes it, ourselves or the daemon
//! ```
//!
//! The status is written down before the kernel is answered, and a message that was not answered
//! comes again when the device is opened anew. So the file is never behind the kernel by more than
//! a message that we will get. The record is made afresh at each DRIVER_OK, before that is written
//! down: a file that says DRIVER_OK has a record of this driver's rings.
//!
//! A file whose device is not there any more, was made by somebody else since, or belongs to an
//! earlier boot means nothing and is replaced.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mem::Mapping;
use virtio::{DeviceError, DeviceType, Features, InFlightArea, Status};
use virtqueue::{InFlightLog, RingFormat};

/// First line of the file.
const TITLE: &str = "viaduct vduse 1";
/// Largest file that is read: a device config is a page at most, two digits a byte.
const MAX_BYTES: u64 = 64 << 10;

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub device: DeviceType,
    /// As offered to the driver.
    pub offered: Features,
    pub queue_sizes: Vec<u16>,
    pub config: Vec<u8>,
    /// It has been on the bus, so a driver may have had it.
    pub attached: bool,
    pub status: Status,
}

/// A device's file and record.
#[derive(Debug)]
pub(super) struct State {
    path: PathBuf,
    /// Says that this is the device the file was written for.
    mark: String,
    pub record: Record,
    in_flight: Option<Arc<InFlightArea>>,
}

impl State {
    /// The file at `path`, if it is about the device that is called `name` now.
    pub(super) fn read(path: &Path, name: &str) -> Option<Self> {
        let mark = mark(name).ok()?;
        if fs::metadata(path).ok()?.len() > MAX_BYTES {
            return None;
        }
        let text = fs::read_to_string(path).ok()?;
        let record = parse(&text, &mark)?;
        Some(Self { path: path.into(), mark, record, in_flight: None })
    }

    /// A new file for the device called `name`, which has just been made.
    pub(super) fn create(path: &Path, name: &str, record: Record) -> io::Result<Self> {
        let state = Self { path: path.into(), mark: mark(name)?, record, in_flight: None };
        state.write()?;
        Ok(state)
    }

    /// Changes what the file says.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Record)) -> io::Result<()> {
        let before = self.record.clone();
        change(&mut self.record);
        if before == self.record { Ok(()) } else { self.write() }
    }

    /// The record of requests in flight for queues that begin.
    pub(super) fn begin_record(&mut self) -> io::Result<()> {
        // Another file, not the same one cut: a daemon may still have the old one.
        let path = record_path(&self.path);
        remove(&path)?;
        let file = private().create_new(true).read(true).write(true).open(&path)?;
        file.set_len(self.record_bytes() as u64)?;
        self.in_flight = None;
        Ok(())
    }

    /// The record as the driver's queues have it now.
    pub(super) fn in_flight(&mut self) -> Result<Arc<InFlightArea>, DeviceError> {
        if let Some(area) = &self.in_flight {
            return Ok(Arc::clone(area));
        }
        let path = record_path(&self.path);
        let attempt = format!("opening {}", path.display());
        let file = private().read(true).write(true).open(&path);
        let file = file.map_err(DeviceError::system(attempt))?;
        let area = Arc::new(InFlightArea {
            mapping: Mapping::of_file(file.into(), 0, self.record_bytes())?,
            queues: self.record.queue_sizes.len() as u16,
            queue_size: self.largest_queue(),
        });
        self.in_flight = Some(Arc::clone(&area));
        Ok(area)
    }

    /// Removes the files at `path`: the device is no more, or no more what they say.
    pub(super) fn remove(path: &Path) -> io::Result<()> {
        remove(path)?;
        remove(&record_path(path))
    }

    /// For messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn largest_queue(&self) -> u16 {
        self.record.queue_sizes.iter().copied().max().unwrap_or(0)
    }

    fn record_bytes(&self) -> usize {
        InFlightLog::bytes(RingFormat::Split, self.largest_queue()) * self.record.queue_sizes.len()
    }

    /// Replaces the file as a whole: killed in between, the old one is there.
    fn write(&self) -> io::Result<()> {
        if let Some(folder) = self.path.parent() {
            make_folder(folder)?;
        }
        let new = with_ending(&self.path, ".new");
        let mut file = private().create(true).truncate(true).write(true).open(&new)?;
        file.write_all(text(&self.record, &self.mark).as_bytes())?;
        fs::rename(&new, &self.path)
    }
}

/// Where the file of the device called `name` is, unless somebody says otherwise.
pub(super) fn default_path(name: &str) -> PathBuf {
    const FOLDER: &str = "/run/viaduct";
    let file = format!("vduse-{name}");
    let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|_| make_folder(FOLDER.as_ref()).is_err());
    let folder = own.map_or(FOLDER.into(), |folder| Path::new(&folder).join("viaduct"));
    folder.join(file)
}

/// Only for us: a config may hold a secret, and the record decides what is done again.
fn private() -> fs::OpenOptions {
    let mut options = File::options();
    options.mode(0o600);
    options
}

fn make_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(folder)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn record_path(path: &Path) -> PathBuf {
    with_ending(path, ".in-flight")
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut path = OsString::from(path);
    path.push(ending);
    path.into()
}

/// What tells a device from one of the same name that was made at another time: the boot, and the
/// inode of its node, which the kernel counts up.
fn mark(name: &str) -> io::Result<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let node = fs::metadata(Path::new("/dev/vduse").join(name))?.ino();
    Ok(format!("{} {node}", boot.trim()))
}

fn text(record: &Record, mark: &str) -> String {
    let Record { device, offered, queue_sizes, config, attached, status } = record;
    let mut text = format!("{TITLE}\nmark {mark}\ndevice {}\noffered {:#x}\n", device.0, offered.0);
    text += "queues";
    // Writing to a string does not fail.
    for size in queue_sizes {
        let _ = write!(text, " {size}");
    }
    text += "\nconfig ";
    for byte in config {
        let _ = write!(text, "{byte:02x}");
    }
    let _ = write!(text, "\nattached {}\nstatus {:#x}\nend\n", u8::from(*attached), status.0);
    text
}

/// The record, if the text is whole, of our version and for the device with this mark.
fn parse(text: &str, mark: &str) -> Option<Record> {
    let mut lines = text.lines();
    if lines.next()? != TITLE || !text.ends_with("\nend\n") {
        return None;
    }
    let mut field = |name: &str| {
        lines.next()?.strip_prefix(name).map(|value| value.strip_prefix(' ').unwrap_or(value))
    };
    if field("mark")? != mark {
        return None;
    }
    let number = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    let record = Record {
        device: DeviceType(field("device")?.parse().ok()?),
        offered: Features(number(field("offered")?)?),
        queue_sizes: field("queues")?.split(' ').map(|n| n.parse().ok()).collect::<Option<_>>()?,
        config: bytes(field("config")?)?,
        attached: field("attached")? == "1",
        status: Status(u8::try_from(number(field("status")?)?).ok()?),
    };
    let queues = record.queue_sizes.len();
    (1..=usize::from(virtio::MAX_QUEUES)).contains(&queues).then_some(record)
}

fn bytes(digits: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    if rest.is_empty() { pairs.iter().map(byte).collect() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            device: DeviceType::BLOCK,
            offered: Features::VERSION_1 | Features::EVENT_IDX,
            queue_sizes: vec![128, 256],
            config: vec![0, 1, 0xfe, 255],
            attached: true,
            status: Status(15),
        }
    }

    /// A state that says it is for a device with this mark.
    fn state(folder: &Path, record: Record) -> State {
        let path = folder.join("below").join("disk0");
        State { path, mark: "boot 7".into(), record, in_flight: None }
    }

    #[test]
    fn what_is_written_is_read() {
        let empty = Record { config: vec![], attached: false, status: Status::RESET, ..record() };
        for record in [record(), empty] {
            let text = text(&record, "boot 7");
            assert_eq!(parse(&text, "boot 7"), Some(record));
            assert_eq!(parse(&text, "boot 8"), None, "another device");
        }
    }

    #[test]
    fn half_a_file_is_none() {
        let text = text(&record(), "m");
        for at in 0..text.len() {
            assert_eq!(parse(&text[..at], "m"), None, "{at} bytes");
        }
        assert_eq!(parse(&text.replace("vduse 1", "vduse 2"), "m"), None);
        assert_eq!(parse(&text.replace("queues 128 256", "queues"), "m"), None);
        assert_eq!(parse(&text.replace("0001fe", "0001f"), "m"), None);
        assert_eq!(parse(&text.replace("status 0xf", "status 0xfff"), "m"), None);
    }

    #[test]
    fn the_file_changes_as_a_whole_and_goes() {
        let folder = tempfile::tempdir().unwrap();
        let mut state = state(folder.path(), record());
        state.write().unwrap();
        state.change(|record| record.status = Status::RESET).unwrap();
        let read = fs::read_to_string(&state.path).unwrap();
        assert_eq!(parse(&read, "boot 7").unwrap().status, Status::RESET);
        assert_eq!(fs::metadata(&state.path).unwrap().mode() & 0o777, 0o600);
        state.begin_record().unwrap();
        State::remove(&state.path).unwrap();
        assert_eq!(fs::read_dir(folder.path().join("below")).unwrap().count(), 0);
    }

    #[test]
    fn a_record_begins_empty_and_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = state(folder.path(), record());
        first.write().unwrap();
        first.begin_record().unwrap();
        let area = first.in_flight().unwrap();
        assert_eq!((area.queues, area.queue_size), (2, 256));
        let byte = |area: &InFlightArea| {
            area.mapping.table::<std::sync::atomic::AtomicU8>(0, 1).unwrap()[0]
                .fetch_add(1, std::sync::atomic::Ordering::SeqCst)
        };
        assert_eq!(byte(&area), 0);
        let mut second = state(folder.path(), record());
        assert_eq!(byte(&second.in_flight().unwrap()), 1, "the same record");
        second.begin_record().unwrap();
        assert_eq!(byte(&second.in_flight().unwrap()), 0, "a new one");
        assert_eq!(byte(&area), 2, "whoever has the old one does no harm");
    }
}
