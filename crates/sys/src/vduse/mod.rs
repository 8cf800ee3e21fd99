//! VDUSE: virtio devices for the kernel's own drivers, made by a process (linux/vduse.h of Linux
//! 7.2; Documentation/userspace-api/vduse.rst). All layouts are native-endian C structs.

mod layout;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::io::Errno;

use self::layout::*;
use crate::EventFd;

/// Longest name of a device with its terminating zero (`VDUSE_NAME_MAX`).
pub const VDUSE_NAME_MAX: usize = 256;
/// The newest version of the interface spoken here: 1 knows groups of queues (Linux 7.0).
pub const VDUSE_API_LATEST: u64 = 1;

/// What a device is to be.
#[derive(Clone, Debug)]
pub struct VduseConfig {
    /// Its name: 1 to 255 bytes.
    pub name: String,
    /// Virtio vendor id.
    pub vendor: u32,
    /// Virtio device id.
    pub device: u32,
    /// Features offered.
    pub features: u64,
    /// Number of queues.
    pub queues: u32,
    /// Alignment of queues in bytes: at most a page.
    pub alignment: u32,
    /// The device config: at most a page.
    pub config: Vec<u8>,
}

/// `/dev/vduse/control`: makes devices and removes them.
#[derive(Debug)]
pub struct VduseControl {
    file: File,
    version: u64,
}

impl VduseControl {
    /// Opens it and settles on the newest version of the interface that the kernel has, at most
    /// `newest`.
    ///
    /// # Errors
    /// The node is not there (no `vduse` module) or not ours to open.
    pub fn open(newest: u64) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open("/dev/vduse/control")?;
        let mut version = [0; 8];
        ioctl(&file, GET_API_VERSION, &mut version)?;
        let version = u64::from_ne_bytes(version).min(newest);
        ioctl(&file, SET_API_VERSION, &mut version.to_ne_bytes())?;
        Ok(Self { file, version })
    }

    /// The version of the interface in use.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Makes a device, which appears as `/dev/vduse/NAME` and not yet on any bus.
    ///
    /// # Errors
    /// `EEXIST` if the name is taken, `EINVAL` if the kernel does not admit such a device, `EPERM`
    /// for network devices without CAP_NET_ADMIN.
    pub fn create(&self, config: &VduseConfig) -> io::Result<()> {
        ioctl(&self.file, CREATE_DEV, &mut config.encode(self.version)?).map(drop)
    }

    /// Removes a device.
    ///
    /// # Errors
    /// `EBUSY` while it is on a bus or its node is open; `EINVAL` if there is none of that name.
    pub fn destroy(&self, name: &str) -> io::Result<()> {
        ioctl(&self.file, DESTROY_DEV, &mut name_bytes(name)?).map(drop)
    }
}

/// Something the kernel wants of a device, to be answered within 30 s (or what the device's
/// `msg_timeout` in sysfs says), or the device is broken for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VduseMessage {
    /// To answer with.
    pub id: u32,
    /// What is wanted.
    pub request: VduseRequest,
}

/// What the kernel can want.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VduseRequest {
    /// Where a queue is.
    QueueState(u32),
    /// The driver has written the status; 0 is a reset.
    SetStatus(u8),
    /// What these addresses mean has changed; the old meaning is not used any more once this is
    /// answered.
    UpdateIotlb {
        /// First address.
        start: u64,
        /// Last address.
        last: u64,
    },
    /// Something else; to be refused.
    Unknown(u32),
}

/// How a queue was set up by the driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VduseQueueInfo {
    /// Number of descriptors.
    pub size: u32,
    /// Descriptor area.
    pub descriptor: u64,
    /// Driver area.
    pub driver: u64,
    /// Device area.
    pub device: u64,
    /// Where it starts. Split: the available index, then zeros. Packed: wrap counter and index of
    /// the next available, then of the next used descriptor.
    pub state: [u16; 4],
    /// Whether the driver uses it.
    pub ready: bool,
}

/// A range of the driver's addresses and the file that holds their bytes.
#[derive(Debug)]
pub struct VduseIotlbEntry {
    /// First address.
    pub start: u64,
    /// Last address.
    pub last: u64,
    /// Byte of the file that the first address means.
    pub offset: u64,
    /// Whether it may be written.
    pub writable: bool,
    /// The file. The kernel's own has size 0 and no position; it can be mapped all the same.
    pub fd: OwnedFd,
}

/// `/dev/vduse/NAME`: a device, as its maker sees it. One process at a time has it open.
#[derive(Debug)]
pub struct VduseDevice(File);

impl VduseDevice {
    /// Opens the device called `name`.
    ///
    /// # Errors
    /// `EBUSY` if another process has it.
    pub fn open(name: &str) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        Ok(Self(options.open(format!("/dev/vduse/{name}"))?))
    }

    /// Gives a queue its largest size; each needs one before the device goes on a bus.
    ///
    /// # Errors
    /// No such queue, or the device is on a bus.
    pub fn set_up_queue(&self, index: u32, max_size: u16) -> io::Result<()> {
        let mut bytes = [0; VQ_CONFIG_BYTES];
        put_u32(&mut bytes, 0, index);
        bytes[4..6].copy_from_slice(&max_size.to_ne_bytes());
        self.call(VQ_SETUP, &mut bytes)
    }

    /// The features the driver has accepted.
    ///
    /// # Errors
    /// The device is broken.
    pub fn features(&self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.call(DEV_GET_FEATURES, &mut bytes)?;
        Ok(u64::from_ne_bytes(bytes))
    }

    /// How the driver has set up a queue.
    ///
    /// # Errors
    /// No such queue, or the device is broken.
    pub fn queue_info(&self, index: u32) -> io::Result<VduseQueueInfo> {
        let mut bytes = [0; info::BYTES];
        put_u32(&mut bytes, info::INDEX, index);
        self.call(VQ_GET_INFO, &mut bytes)?;
        Ok(decode_info(&bytes))
    }

    /// Has the driver's notifications about a queue signal `event`.
    ///
    /// # Errors
    /// No such queue, or the device is broken.
    pub fn set_kick(&self, index: u32, event: Option<&EventFd>) -> io::Result<()> {
        /// `VDUSE_EVENTFD_DEASSIGN`.
        const NOTHING: i32 = -1;
        let mut bytes = [0; 8];
        put_u32(&mut bytes, 0, index);
        let fd = event.map_or(NOTHING, EventFd::as_raw_fd);
        bytes[4..].copy_from_slice(&fd.to_ne_bytes());
        self.call(VQ_SETUP_KICKFD, &mut bytes)
    }

    /// Interrupts the driver about a queue.
    ///
    /// # Errors
    /// `EINVAL` until the kernel has noted that the driver is ready, which it does a moment after
    /// it was told that we know.
    pub fn interrupt(&self, index: u32) -> io::Result<()> {
        crate::calls::note();
        self.call(VQ_INJECT_IRQ, &mut index.to_ne_bytes())
    }

    /// Changes the device config from byte `offset` on.
    ///
    /// # Errors
    /// Beyond its end.
    pub fn set_config(&self, offset: u32, config: &[u8]) -> io::Result<()> {
        let mut bytes = vec![0; CONFIG_DATA_BYTES];
        put_u32(&mut bytes, 0, offset);
        put_u32(&mut bytes, 4, config.len() as u32);
        bytes.extend_from_slice(config);
        self.call(DEV_SET_CONFIG, &mut bytes)
    }

    /// Tells the driver that the config has changed.
    ///
    /// # Errors
    /// As [`VduseDevice::interrupt`].
    pub fn interrupt_config(&self) -> io::Result<()> {
        self.call(DEV_INJECT_CONFIG_IRQ, &mut [])
    }

    /// The first mapped range that overlaps addresses `start` to `last`, if there is one.
    ///
    /// # Errors
    /// The device is broken, or the system is out of file descriptors.
    pub fn iotlb_entry(&self, start: u64, last: u64) -> io::Result<Option<VduseIotlbEntry>> {
        let mut bytes = [0; iotlb::BYTES];
        put_u64(&mut bytes, iotlb::START, start);
        put_u64(&mut bytes, iotlb::LAST, last);
        let number = match ioctl(&self.0, IOTLB_GET_FD, &mut bytes) {
            Ok(number) => number,
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        // SAFETY: this ioctl returns a descriptor it has just made, which nobody else knows.
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        Ok(Some(VduseIotlbEntry {
            start: get_u64(&bytes, iotlb::START),
            last: get_u64(&bytes, iotlb::LAST),
            offset: get_u64(&bytes, iotlb::OFFSET),
            writable: bytes[iotlb::PERMISSION] & iotlb::MAY_WRITE != 0,
            fd,
        }))
    }

    /// Has the kernel copy all data through `pool` instead of pages of its own; what is in those is
    /// copied over. It stays so until the device is closed. The pool must be as long as the
    /// device's `bounce_size` says.
    ///
    /// # Errors
    /// `EINVAL` until the driver has used the pool for the first time, or if the length is another
    /// one; `ENOMEM` if so much can't be locked ([`raise_lock_limit`](crate::raise_lock_limit)).
    pub fn register_pool(&self, pool: &mem::Mapping) -> io::Result<()> {
        // The kernel pins the pages, which are a file's: what happens to the mapping later does
        // not matter. The addresses are those from 0 on.
        let mut bytes = [0; umem::BYTES];
        put_u64(&mut bytes, umem::ADDRESS, pool.address() as u64);
        put_u64(&mut bytes, umem::SIZE, pool.len() as u64);
        self.call(IOTLB_REG_UMEM, &mut bytes)
    }

    /// The next thing the kernel wants, if there is one now.
    ///
    /// # Errors
    /// The device is broken.
    pub fn receive(&self) -> io::Result<Option<VduseMessage>> {
        let mut bytes = [0; message::BYTES];
        match (&self.0).read(&mut bytes) {
            Ok(message::BYTES) => Ok(Some(decode_message(&bytes))),
            Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Answers a message: done, or not.
    ///
    /// # Errors
    /// The kernel does not wait for this answer (any more).
    pub fn answer(&self, id: u32, done: bool) -> io::Result<()> {
        (&self.0).write_all(&encode_answer(id, done))
    }

    /// Answers [`VduseRequest::QueueState`] with a state as in [`VduseQueueInfo::state`].
    ///
    /// # Errors
    /// As [`VduseDevice::answer`].
    pub fn answer_state(&self, id: u32, index: u32, state: [u16; 4]) -> io::Result<()> {
        let mut bytes = encode_answer(id, true);
        put_u32(&mut bytes, message::BODY, index);
        for (n, word) in state.iter().enumerate() {
            bytes[message::STATE + 2 * n..][..2].copy_from_slice(&word.to_ne_bytes());
        }
        (&self.0).write_all(&bytes)
    }

    fn call(&self, number: u64, bytes: &mut [u8]) -> io::Result<()> {
        ioctl(&self.0, number, bytes).map(drop)
    }
}

impl AsFd for VduseDevice {
    /// Readable when there is a message.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// An ioctl on one of the two nodes; what it returned.
fn ioctl(file: &File, number: u64, bytes: &mut [u8]) -> io::Result<i32> {
    let size = (number >> 16 & 0x3fff) as usize;
    assert!(bytes.len() >= size, "an ioctl's argument is as long as its number says");
    // SAFETY: each of these requests reads or writes the bytes its number says, which are there;
    // the two with a tail (CREATE_DEV, DEV_SET_CONFIG) also say its length in the bytes and only
    // callers here that have appended it make them.
    let result =
        unsafe { libc::ioctl(file.as_raw_fd(), number as libc::Ioctl, bytes.as_mut_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
