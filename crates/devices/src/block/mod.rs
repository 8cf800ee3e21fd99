//! Block device (VIRTIO 1.4, 5.2) on a file, a block device of the system, memory, or nothing.
//!
//! ```text
//! chain --> request: parse, check --> serve: on the spot, or by io_uring --> store: file, memory,
//! nothing
//! ```
//!
//! A request in flight owns the memory it works on; requests may end in another order than they
//! came. What it deliberately lacks: image formats, zones, secure erase, and a cache beside the
//! system's.

mod request;
mod serve;
mod store;

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use mem::Mapping;
use sys::{EventFd, Timer, Uring};
use virtio::config::{BlkConfig, read_bytes};
use virtio::{
    DeviceError, DeviceEvent, DeviceType, EventSink, Features, Identity, MAX_QUEUES,
    ParameterError, Parameters, VirtioDevice,
};

use crate::queue::{BuiltIn, Model, RINGS};
use crate::{DeviceKind, OpenError, not_a_power_of_two};
use request::{Limits, MAX_DISCARD_SECTORS, MAX_RANGES, MAX_ZERO_SECTORS, SECTOR};
use serve::BlockQueue;
use store::Store;

pub(crate) static DEVICE: DeviceKind = DeviceKind {
    scheme: "blk",
    help: "disk on a file, a block device, memory or nothing",
    settings: &[
        "path=FILE  regular file or block device with the data",
        "ram=SIZE  instead of path: memory, lost at the end",
        "null=SIZE  instead of path: reads zeros, forgets writes",
        "readonly=on|off  refuse writes (off)",
        "serial=TEXT  serial number, 20 bytes at most",
        "block-size=512|1024|2048|4096  logical block size (512)",
        "queues=N  request queues (1)",
        "queue-size=N  descriptors in a queue, a power of two (256)",
        "io=uring|sync|auto  let the kernel work beside us, or wait for each request (auto)",
        "discard=on|off  offer discard and write-zeroes (on)",
        "watch=on|off  look at the size every second and not only at SIGUSR2 (off)",
    ],
    open,
};

const SEG_MAX: Features = Features::bit(2);
const READ_ONLY: Features = Features::bit(5);
const BLK_SIZE: Features = Features::bit(6);
const FLUSH: Features = Features::bit(9);
const TOPOLOGY: Features = Features::bit(10);
const CONFIG_WCE: Features = Features::bit(11);
const MULTI_QUEUE: Features = Features::bit(12);
const DISCARD: Features = Features::bit(13);
const WRITE_ZEROES: Features = Features::bit(14);

/// Offset of `writeback` in the config, its only writable byte.
const WRITEBACK_OFFSET: u32 = 32;

/// Physical blocks of whatever is below: the page size of file systems and flash.
const PHYSICAL_BLOCK: u32 = 4096;

/// The queue size of drivers' sides that don't ask for ours, QEMU's vhost-user-blk among them. A
/// chain must fit the queue in use and not the largest one (VIRTIO 1.4, 2.7.5.3.1), and Linux looks
/// at `seg_max` alone.
const USUAL_QUEUE_SIZE: u16 = 128;

/// How often the size of a watched file is looked at.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Bytes of the answer to GET_ID.
const SERIAL_BYTES: usize = 20;

fn open(parameters: Parameters) -> Result<Box<dyn VirtioDevice>, OpenError> {
    Ok(Box::new(BuiltIn::new(Block::from_parameters(parameters)?)?))
}

/// How requests on files are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Io {
    Uring,
    Sync,
    Auto,
}

/// What the queues and the control side share.
#[derive(Debug)]
pub(super) struct Disk {
    store: Store,
    /// Size in sectors.
    capacity: AtomicU64,
    readonly: bool,
    discard: bool,
    serial: [u8; SERIAL_BYTES],
    /// Whether every write is to survive a power cut before it is answered.
    write_through: AtomicBool,
}

impl Disk {
    fn limits(&self) -> Limits {
        // Relaxed: a capacity that is a moment old is as good, the store itself refuses what it has
        // not.
        let capacity = self.capacity.load(Ordering::Relaxed);
        Limits { capacity, readonly: self.readonly, discard: self.discard }
    }
}

/// The control side of a disk.
struct Block {
    identity: Identity,
    config: BlkConfig,
    disk: Arc<Disk>,
    io: Io,
    watch: Option<Timer>,
    /// Signalled by [`look_at_sizes`].
    look: Arc<EventFd>,
}

/// Every disk there is, or was.
static DISKS: Mutex<Vec<Weak<EventFd>>> = Mutex::new(Vec::new());

/// Has every disk in this process look at the size of what is below it, and tell its driver of a
/// change.
pub fn look_at_sizes() {
    let disks = DISKS.lock().unwrap_or_else(PoisonError::into_inner);
    disks.iter().filter_map(Weak::upgrade).for_each(|look| look.signal());
}

/// What [`look_at_sizes`] signals for one more disk.
fn add_disk() -> std::io::Result<Arc<EventFd>> {
    let look = Arc::new(EventFd::new()?);
    let mut disks = DISKS.lock().unwrap_or_else(PoisonError::into_inner);
    disks.retain(|disk| disk.strong_count() > 0);
    disks.push(Arc::downgrade(&look));
    Ok(look)
}

impl Block {
    fn from_parameters(mut parameters: Parameters) -> Result<Self, OpenError> {
        let sizes = SECTOR..=1 << 50;
        let path = parameters.path("path");
        let ram = parameters.number("ram", sizes.clone())?;
        let null = parameters.number("null", sizes)?;
        let readonly = parameters.flag("readonly", false)?;
        let serial = parameters.text("serial").unwrap_or_else(|| "viaduct".into());
        let blocks = [("512", 512), ("1024", 1024), ("2048", 2048), ("4096", 4096)];
        let block_size = parameters.choice("block-size", &blocks)?.unwrap_or(512);
        let queues = parameters.number("queues", 1..=MAX_QUEUES.into())?.unwrap_or(1) as u16;
        let queue_size = parameters.number("queue-size", 4..=1024)?.unwrap_or(256) as u16;
        let ways = [("uring", Io::Uring), ("sync", Io::Sync), ("auto", Io::Auto)];
        let io = parameters.choice("io", &ways)?.unwrap_or(Io::Auto);
        let discard = parameters.flag("discard", true)? && !readonly;
        let watch = parameters.flag("watch", false)?;
        parameters.finish()?;
        if !queue_size.is_power_of_two() {
            return Err(not_a_power_of_two(queue_size).into());
        }
        let (store, size) = open_store(path, ram, null, readonly)?;
        let disk = Arc::new(Disk {
            store,
            capacity: AtomicU64::new(sectors(size, block_size)),
            readonly,
            discard,
            serial: padded(&serial),
            write_through: AtomicBool::new(false),
        });
        let block = Self {
            identity: identity(&disk, queues, queue_size),
            config: config(block_size, queues, queue_size),
            disk,
            io,
            watch: if watch { Some(start_watch()?) } else { None },
            look: add_disk().map_err(DeviceError::system("making a disk"))?,
        };
        // So that a machine without io_uring shows now and not when the driver comes.
        drop(block.uring(queue_size)?);
        Ok(block)
    }

    fn uring(&self, depth: u16) -> Result<Option<Uring>, DeviceError> {
        let Store::File(file) = &self.disk.store else { return Ok(None) };
        // Memory has nothing to wait for: a detour through another thread of the kernel, which is
        // what io_uring takes there, only costs.
        if self.io == Io::Sync || self.io == Io::Auto && store::is_in_memory(file) {
            return Ok(None);
        }
        match (self.io, Uring::new(Arc::clone(file), depth)) {
            (_, Ok(uring)) => Ok(Some(uring)),
            (Io::Uring, Err(source)) => {
                Err(DeviceError::System { attempt: "setting up io_uring".into(), source })
            }
            (_, Err(_)) => Ok(None),
        }
    }

    /// Looks at the size of what is below; returns whether it has changed. Requests in flight
    /// beyond a new end fail.
    fn resize(&mut self) -> bool {
        let Some(Ok(size)) = self.disk.store.size() else { return false };
        let capacity = sectors(size, self.config.blk_size);
        self.disk.capacity.swap(capacity, Ordering::Relaxed) != capacity
    }
}

impl Model for Block {
    type Queue = BlockQueue;

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn read_config(&self, offset: u32, into: &mut [u8]) {
        let mut config = self.config;
        config.capacity = self.disk.capacity.load(Ordering::Relaxed);
        config.writeback = u8::from(!self.disk.write_through.load(Ordering::Relaxed));
        read_bytes(&config.encode(), offset, into);
    }

    fn write_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), DeviceError> {
        match (offset, bytes) {
            (WRITEBACK_OFFSET, [writeback]) => {
                self.disk.write_through.store(*writeback == 0, Ordering::Relaxed);
                Ok(())
            }
            _ => Err(DeviceError::BadConfigWrite(offset)),
        }
    }

    fn accept(&mut self, features: Features) -> Result<(), DeviceError> {
        // A driver that can't flush must find its writes safe when they are answered (VIRTIO 1.4,
        // 5.2.5.2).
        let can_flush = features.has(FLUSH) || features.has(CONFIG_WCE);
        self.disk.write_through.store(!can_flush, Ordering::Relaxed);
        Ok(())
    }

    fn make_queue(&mut self, index: u16) -> Result<BlockQueue, DeviceError> {
        let depth = self.identity.queue_sizes[usize::from(index)];
        Ok(BlockQueue::new(Arc::clone(&self.disk), self.uring(depth)?, depth))
    }

    fn reset(&mut self) {
        self.disk.write_through.store(false, Ordering::Relaxed);
    }

    fn control_fds(&self) -> Vec<BorrowedFd<'_>> {
        let watch = self.watch.iter().map(|timer| timer.as_fd());
        watch.chain([self.look.as_fd()]).collect()
    }

    fn control_ready(&mut self, events: &EventSink) -> bool {
        let due = self.watch.as_ref().is_some_and(Timer::drain);
        if (self.look.drain() || due) && self.resize() {
            let sectors = self.disk.capacity.load(Ordering::Relaxed);
            tracing::info!("the disk has {} MiB now", (sectors * SECTOR) >> 20);
            events.send(DeviceEvent::ConfigChanged);
        }
        false
    }
}

fn open_store(
    path: Option<PathBuf>,
    ram: Option<u64>,
    null: Option<u64>,
    readonly: bool,
) -> Result<(Store, u64), OpenError> {
    match (path, ram, null) {
        (Some(path), None, None) => {
            let attempt = || DeviceError::system(format!("opening the disk {}", path.display()));
            let store = Store::open(&path, readonly).map_err(attempt())?;
            let size = store.size().unwrap_or(Ok(0)).map_err(attempt())?;
            if size < SECTOR {
                let what = format!("the disk {} holds less than a sector", path.display());
                return Err(DeviceError::Refused(what).into());
            }
            Ok((store, size))
        }
        (None, Some(size), None) => {
            let len = usize::try_from(size).map_err(|_| mem::MemoryError::Overflow);
            let memory = len.and_then(|len| Mapping::new_memfd("disk", len));
            Ok((Store::Ram(memory.map_err(DeviceError::from)?), size))
        }
        (None, None, Some(size)) => Ok((Store::Null, size)),
        _ => {
            let what = "a disk needs one of path=FILE, ram=SIZE and null=SIZE";
            Err(ParameterError::Together(what).into())
        }
    }
}

/// Whole logical blocks of `bytes`, in sectors.
fn sectors(bytes: u64, block_size: u32) -> u64 {
    (bytes - bytes % u64::from(block_size)) / SECTOR
}

fn padded(serial: &str) -> [u8; SERIAL_BYTES] {
    let mut bytes = [0; SERIAL_BYTES];
    let len = serial.len().min(SERIAL_BYTES);
    bytes[..len].copy_from_slice(&serial.as_bytes()[..len]);
    bytes
}

fn start_watch() -> Result<Timer, DeviceError> {
    let start = || {
        let timer = Timer::new()?;
        timer.set(WATCH_INTERVAL, WATCH_INTERVAL)?;
        Ok(timer)
    };
    start().map_err(DeviceError::system("starting the watch on a disk's size"))
}

fn identity(disk: &Disk, queues: u16, queue_size: u16) -> Identity {
    let mut features = RINGS | SEG_MAX | BLK_SIZE | FLUSH | TOPOLOGY | CONFIG_WCE;
    if disk.readonly {
        features = features | READ_ONLY;
    }
    if disk.discard {
        features = features | DISCARD | WRITE_ZEROES;
    }
    if queues > 1 {
        features = features | MULTI_QUEUE;
    }
    Identity {
        device: DeviceType::BLOCK,
        features,
        queue_sizes: vec![queue_size; usize::from(queues)],
        config_len: BlkConfig::LEN as u32,
    }
}

/// What does not change; capacity and writeback are filled in when it is read.
fn config(block_size: u32, queues: u16, queue_size: u16) -> BlkConfig {
    let physical = (PHYSICAL_BLOCK / block_size).max(1);
    BlkConfig {
        // Header and status take a descriptor each.
        seg_max: u32::from(queue_size.min(USUAL_QUEUE_SIZE)) - 2,
        blk_size: block_size,
        physical_block_exp: physical.trailing_zeros() as u8,
        min_io_size: physical as u16,
        num_queues: queues,
        max_discard_sectors: MAX_DISCARD_SECTORS,
        max_discard_seg: MAX_RANGES,
        discard_sector_alignment: PHYSICAL_BLOCK / SECTOR as u32,
        max_write_zeroes_sectors: MAX_ZERO_SECTORS,
        max_write_zeroes_seg: MAX_RANGES,
        write_zeroes_may_unmap: 1,
        ..BlkConfig::default()
    }
}
