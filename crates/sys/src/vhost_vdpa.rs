//! `/dev/vhost-vdpa-N`: a device on the vDPA bus, for a process to drive (linux/vhost.h,
//! linux/vhost_types.h). All layouts are native-endian.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::EventFd;

/// `VHOST_VIRTIO`.
const BASE: u64 = 0xaf;
/// Directions of an ioctl (asm-generic/ioctl.h).
const NONE: u64 = 0;
const WRITE: u64 = 1;
const READ: u64 = 2;

/// An ioctl's number from direction, number and size of its argument (asm-generic/ioctl.h).
const fn ioctl_number(direction: u64, number: u64, size: usize) -> u64 {
    direction << 30 | (size as u64) << 16 | BASE << 8 | number
}

const GET_FEATURES: u64 = ioctl_number(READ, 0x00, 8);
const SET_FEATURES: u64 = ioctl_number(WRITE, 0x00, 8);
const SET_OWNER: u64 = ioctl_number(NONE, 0x01, 0);
const SET_VRING_NUM: u64 = ioctl_number(WRITE, 0x10, STATE_BYTES);
const SET_VRING_ADDR: u64 = ioctl_number(WRITE, 0x11, ADDRESSES_BYTES);
const SET_VRING_BASE: u64 = ioctl_number(WRITE, 0x12, STATE_BYTES);
const GET_VRING_BASE: u64 = ioctl_number(READ | WRITE, 0x12, STATE_BYTES);
const SET_VRING_KICK: u64 = ioctl_number(WRITE, 0x20, STATE_BYTES);
const SET_VRING_CALL: u64 = ioctl_number(WRITE, 0x21, STATE_BYTES);
const SET_BACKEND_FEATURES: u64 = ioctl_number(WRITE, 0x25, 8);
const GET_BACKEND_FEATURES: u64 = ioctl_number(READ, 0x26, 8);
const GET_DEVICE_ID: u64 = ioctl_number(READ, 0x70, 4);
const GET_STATUS: u64 = ioctl_number(READ, 0x71, 1);
const SET_STATUS: u64 = ioctl_number(WRITE, 0x72, 1);
const GET_CONFIG: u64 = ioctl_number(READ, 0x73, CONFIG_HEADER_BYTES);
const SET_CONFIG: u64 = ioctl_number(WRITE, 0x74, CONFIG_HEADER_BYTES);
const SET_VRING_ENABLE: u64 = ioctl_number(WRITE, 0x75, STATE_BYTES);
const GET_VRING_NUM: u64 = ioctl_number(READ, 0x76, 2);
const SET_CONFIG_CALL: u64 = ioctl_number(WRITE, 0x77, 4);
const GET_IOVA_RANGE: u64 = ioctl_number(READ, 0x78, 16);
const GET_CONFIG_SIZE: u64 = ioctl_number(READ, 0x79, 4);
const SUSPEND: u64 = ioctl_number(NONE, 0x7d, 0);
const GET_VQS_COUNT: u64 = ioctl_number(READ, 0x80, 4);
const GET_VRING_SIZE: u64 = ioctl_number(READ | WRITE, 0x82, STATE_BYTES);

/// `struct vhost_vring_state`, and `struct vhost_vring_file`: a queue's number and a value.
const STATE_BYTES: usize = 8;
/// `struct vhost_vring_addr`: index, flags, descriptor, used, available, log.
const ADDRESSES_BYTES: usize = 40;
/// `struct vhost_vdpa_config` without its bytes: offset, length.
const CONFIG_HEADER_BYTES: usize = 8;

/// `struct vhost_msg_v2`: type, address space, then `struct vhost_iotlb_msg` in 64 bytes.
mod message {
    pub(super) const KIND: usize = 0;
    pub(super) const START: usize = 8;
    pub(super) const SIZE: usize = 16;
    pub(super) const OUR_ADDRESS: usize = 24;
    pub(super) const PERMISSION: usize = 32;
    pub(super) const WHAT: usize = 33;
    pub(super) const BYTES: usize = 72;
    /// `VHOST_IOTLB_MSG_V2`.
    pub(super) const VERSION_2: u32 = 2;
    /// `VHOST_IOTLB_UPDATE` and its companions.
    pub(super) const UPDATE: u8 = 2;
    pub(super) const INVALIDATE: u8 = 3;
    pub(super) const BATCH_BEGIN: u8 = 5;
    pub(super) const BATCH_END: u8 = 6;
    /// `VHOST_ACCESS_RO`, `VHOST_ACCESS_RW`.
    pub(super) const READ: u8 = 1;
    pub(super) const READ_WRITE: u8 = 3;
}

/// What the kernel's side of a [`VhostVdpa`] can do beyond the beginning (`VHOST_BACKEND_F_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VdpaAbilities(u64);

impl VdpaAbilities {
    const MESSAGE_V2: u64 = 1 << 1;
    const BATCH: u64 = 1 << 2;
    const SUSPEND: u64 = 1 << 4;
    const ENABLE_AFTER_DRIVER_OK: u64 = 1 << 6;
    /// What is of use here.
    const WANTED: u64 =
        Self::MESSAGE_V2 | Self::BATCH | Self::SUSPEND | Self::ENABLE_AFTER_DRIVER_OK;

    /// Changes of memory can be made as one.
    fn batches(self) -> bool {
        self.0 & Self::BATCH != 0
    }

    /// It can be stopped without losing where its queues are.
    #[must_use]
    pub fn suspends(self) -> bool {
        self.0 & Self::SUSPEND != 0
    }

    /// Queues can be added while it runs.
    #[must_use]
    pub fn enables_late(self) -> bool {
        self.0 & Self::ENABLE_AFTER_DRIVER_OK != 0
    }
}

/// A range of the device's addresses and the memory of ours that it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VdpaRange {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Byte of the mapping that the first address means.
    pub offset: u64,
    /// Whether the device may write.
    pub writable: bool,
}

/// A queue as the device is to have it. Addresses are the device's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VdpaQueue {
    /// Its number.
    pub index: u32,
    /// Descriptors: a power of two.
    pub size: u16,
    /// Where it starts, in vhost's bits.
    pub position: u32,
    /// Descriptor area.
    pub descriptor: u64,
    /// Driver area.
    pub driver: u64,
    /// Device area.
    pub device: u64,
}

/// An open `/dev/vhost-vdpa-N`. One process at a time has it.
#[derive(Debug)]
pub struct VhostVdpa {
    file: File,
    abilities: VdpaAbilities,
}

impl VhostVdpa {
    /// Opens the node, resets the device and makes it this process's.
    ///
    /// # Errors
    /// `EBUSY` if another process has it; `EOPNOTSUPP` if the kernel is too old (before 5.7).
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        let mut node = Self { file, abilities: VdpaAbilities::default() };
        node.call(SET_OWNER, &mut [])?;
        let offered = node.number::<8>(GET_BACKEND_FEATURES)?;
        let abilities = VdpaAbilities(u64::from_ne_bytes(offered) & VdpaAbilities::WANTED);
        if abilities.0 & VdpaAbilities::MESSAGE_V2 == 0 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        node.call(SET_BACKEND_FEATURES, &mut abilities.0.to_ne_bytes())?;
        node.abilities = abilities;
        Ok(node)
    }

    /// What the kernel's side can do.
    #[must_use]
    pub fn abilities(&self) -> VdpaAbilities {
        self.abilities
    }

    /// The virtio device id.
    ///
    /// # Errors
    /// The device is gone.
    pub fn device_id(&self) -> io::Result<u32> {
        self.number(GET_DEVICE_ID).map(u32::from_ne_bytes)
    }

    /// The features the device offers.
    ///
    /// # Errors
    /// The device is gone.
    pub fn features(&self) -> io::Result<u64> {
        self.number(GET_FEATURES).map(u64::from_ne_bytes)
    }

    /// Accepts features.
    ///
    /// # Errors
    /// `EINVAL` if they do not go together, `EBUSY` after FEATURES_OK.
    pub fn set_features(&self, features: u64) -> io::Result<()> {
        self.call(SET_FEATURES, &mut features.to_ne_bytes())
    }

    /// The largest size of each queue.
    ///
    /// # Errors
    /// The device is gone.
    pub fn queue_sizes(&self) -> io::Result<Vec<u16>> {
        /// Before GET_VQS_COUNT (Linux 5.18) there were no others.
        const QUEUES: u32 = 2;
        let largest = u16::from_ne_bytes(self.number(GET_VRING_NUM)?);
        let count = self.number(GET_VQS_COUNT).map_or(QUEUES, u32::from_ne_bytes);
        let size = |index: u32| {
            // Since Linux 6.7.
            let size = self.state(GET_VRING_SIZE, index, 0).map_or(0, |size| size as u16);
            if size == 0 { largest } else { size }
        };
        Ok((0..count.min(u16::MAX.into())).map(size).collect())
    }

    /// The device's addresses: first and last.
    ///
    /// # Errors
    /// The device is gone.
    pub fn address_range(&self) -> io::Result<(u64, u64)> {
        let bytes: [u8; 16] = self.number(GET_IOVA_RANGE)?;
        let (first, last) = bytes.split_at(8);
        let word = |half: &[u8]| u64::from_ne_bytes(half.try_into().unwrap_or_default());
        Ok((word(first), word(last)))
    }

    /// Length of the device config in bytes.
    ///
    /// # Errors
    /// The kernel does not tell (before 5.18).
    pub fn config_len(&self) -> io::Result<u32> {
        self.number(GET_CONFIG_SIZE).map(u32::from_ne_bytes)
    }

    /// Reads the device config from `offset` on.
    ///
    /// # Errors
    /// Beyond its end.
    pub fn read_config(&self, offset: u32, into: &mut [u8]) -> io::Result<()> {
        let mut bytes = config_bytes(offset, into);
        self.call(GET_CONFIG, &mut bytes)?;
        into.copy_from_slice(&bytes[CONFIG_HEADER_BYTES..]);
        Ok(())
    }

    /// Writes the device config from `offset` on.
    ///
    /// # Errors
    /// Beyond its end, or the device has none that is written.
    pub fn write_config(&self, offset: u32, config: &[u8]) -> io::Result<()> {
        self.call(SET_CONFIG, &mut config_bytes(offset, config))
    }

    /// Has `event` signalled when the config or the status changes.
    ///
    /// # Errors
    /// The device is gone.
    pub fn signal_config(&self, event: &EventFd) -> io::Result<()> {
        self.call(SET_CONFIG_CALL, &mut event.as_raw_fd().to_ne_bytes())
    }

    /// The device status.
    ///
    /// # Errors
    /// The device is gone.
    pub fn status(&self) -> io::Result<u8> {
        self.number::<1>(GET_STATUS).map(|[status]| status)
    }

    /// Writes the device status; 0 is a reset, after which nothing of ours is touched.
    ///
    /// # Errors
    /// The device refuses.
    pub fn set_status(&self, status: u8) -> io::Result<()> {
        self.call(SET_STATUS, &mut [status])
    }

    /// Stops the device where it is.
    ///
    /// # Errors
    /// It can't ([`VdpaAbilities::suspends`]).
    pub fn suspend(&self) -> io::Result<()> {
        self.call(SUSPEND, &mut [])
    }

    /// Tells the device about a queue, which it does not use before
    /// [`VhostVdpa::enable_queue`].
    ///
    /// # Errors
    /// It does not take such a queue.
    pub fn set_up_queue(&self, queue: &VdpaQueue) -> io::Result<()> {
        self.state(SET_VRING_NUM, queue.index, queue.size.into())?;
        self.state(SET_VRING_BASE, queue.index, queue.position)?;
        let mut bytes = [0; ADDRESSES_BYTES];
        put(&mut bytes, 0, &queue.index.to_ne_bytes());
        put(&mut bytes, 8, &queue.descriptor.to_ne_bytes());
        put(&mut bytes, 16, &queue.device.to_ne_bytes());
        put(&mut bytes, 24, &queue.driver.to_ne_bytes());
        self.call(SET_VRING_ADDR, &mut bytes)
    }

    /// Has `event`, or nothing, notify the device about a queue.
    ///
    /// # Errors
    /// No such queue.
    pub fn set_doorbell(&self, index: u32, event: Option<&EventFd>) -> io::Result<()> {
        self.state(SET_VRING_KICK, index, fd_of(event)).map(drop)
    }

    /// Has the device's interrupts of a queue signal `event`, or nothing.
    ///
    /// # Errors
    /// No such queue.
    pub fn set_interrupt(&self, index: u32, event: Option<&EventFd>) -> io::Result<()> {
        self.state(SET_VRING_CALL, index, fd_of(event)).map(drop)
    }

    /// Has the device use a queue, or not.
    ///
    /// # Errors
    /// No such queue, or it is too late.
    pub fn enable_queue(&self, index: u32, enabled: bool) -> io::Result<()> {
        self.state(SET_VRING_ENABLE, index, enabled.into()).map(drop)
    }

    /// Where a queue of a suspended device is, in vhost's bits.
    ///
    /// # Errors
    /// No such queue, or it runs.
    pub fn position(&self, index: u32) -> io::Result<u32> {
        self.state(GET_VRING_BASE, index, 0)
    }

    /// Takes ranges away from the device and gives it others, as one change if the kernel can.
    ///
    /// # Errors
    /// `ENOMEM` if memory that the device pins can't be locked; `EEXIST` if they overlap.
    pub fn change_memory(
        &self,
        gone: &[VdpaRange],
        new: &[(VdpaRange, &mem::Mapping)],
    ) -> io::Result<()> {
        if gone.is_empty() && new.is_empty() {
            return Ok(());
        }
        if self.abilities.batches() {
            self.tell(message::BATCH_BEGIN, None, 0)?;
        }
        let result = self.change_ranges(gone, new);
        if self.abilities.batches() {
            self.tell(message::BATCH_END, None, 0)?;
        }
        result
    }

    fn change_ranges(
        &self,
        gone: &[VdpaRange],
        new: &[(VdpaRange, &mem::Mapping)],
    ) -> io::Result<()> {
        for range in gone {
            self.tell(message::INVALIDATE, Some(range), 0)?;
        }
        for (range, mapping) in new {
            let end = range.offset.checked_add(range.len);
            if end.is_none_or(|end| end > mapping.len() as u64) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            // The kernel keeps the file, or the pages, and not the address: what happens to the
            // mapping later does not matter.
            self.tell(message::UPDATE, Some(range), mapping.address() as u64 + range.offset)?;
        }
        Ok(())
    }

    fn tell(&self, what: u8, range: Option<&VdpaRange>, our_address: u64) -> io::Result<()> {
        (&self.file).write_all(&message_bytes(what, range, our_address))
    }

    /// An ioctl that reads a number.
    fn number<const N: usize>(&self, request: u64) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.call(request, &mut bytes)?;
        Ok(bytes)
    }

    /// An ioctl on a queue and a value; the value then.
    fn state(&self, request: u64, index: u32, value: u32) -> io::Result<u32> {
        let mut bytes = [0; STATE_BYTES];
        put(&mut bytes, 0, &index.to_ne_bytes());
        put(&mut bytes, 4, &value.to_ne_bytes());
        self.call(request, &mut bytes)?;
        Ok(u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]))
    }

    fn call(&self, request: u64, bytes: &mut [u8]) -> io::Result<()> {
        let size = (request >> 16 & 0x3fff) as usize;
        assert!(bytes.len() >= size, "an ioctl's argument is as long as its number says");
        // SAFETY: each of these requests reads or writes the bytes its number says, which are
        // there; the two with a tail (GET_CONFIG, SET_CONFIG) also say its length in the bytes, and
        // `config_bytes` has appended it.
        let result = unsafe {
            libc::ioctl(self.file.as_raw_fd(), request as libc::Ioctl, bytes.as_mut_ptr())
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn fd_of(event: Option<&EventFd>) -> u32 {
    /// `VHOST_FILE_UNBIND`.
    const NOTHING: i32 = -1;
    event.map_or(NOTHING, EventFd::as_raw_fd).cast_unsigned()
}

/// `struct vhost_vdpa_config` with its bytes.
fn config_bytes(offset: u32, config: &[u8]) -> Vec<u8> {
    let mut bytes = offset.to_ne_bytes().to_vec();
    bytes.extend((config.len() as u32).to_ne_bytes());
    bytes.extend(config);
    bytes
}

fn message_bytes(what: u8, range: Option<&VdpaRange>, our_address: u64) -> [u8; message::BYTES] {
    let mut bytes = [0; message::BYTES];
    put(&mut bytes, message::KIND, &message::VERSION_2.to_ne_bytes());
    bytes[message::WHAT] = what;
    if let Some(range) = range {
        put(&mut bytes, message::START, &range.start.to_ne_bytes());
        put(&mut bytes, message::SIZE, &range.len.to_ne_bytes());
        put(&mut bytes, message::OUR_ADDRESS, &our_address.to_ne_bytes());
        bytes[message::PERMISSION] =
            if range.writable { message::READ_WRITE } else { message::READ };
    }
    bytes
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_header() {
        // As `printf("%#lx")` of the macros in linux/vhost.h shows them on x86-64.
        assert_eq!(GET_FEATURES, 0x8008_af00);
        assert_eq!(SET_OWNER, 0xaf01);
        assert_eq!(SET_VRING_ADDR, 0x4028_af11);
        assert_eq!(GET_VRING_BASE, 0xc008_af12);
        assert_eq!(GET_BACKEND_FEATURES, 0x8008_af26);
        assert_eq!(GET_DEVICE_ID, 0x8004_af70);
        assert_eq!(SET_STATUS, 0x4001_af72);
        assert_eq!(GET_CONFIG, 0x8008_af73);
        assert_eq!(GET_VRING_NUM, 0x8002_af76);
        assert_eq!(GET_IOVA_RANGE, 0x8010_af78);
        assert_eq!(SUSPEND, 0xaf7d);
    }

    #[test]
    fn a_range_is_told_as_the_kernel_reads_it() {
        let range = VdpaRange { start: 0x1000, len: 0x2000, offset: 0, writable: false };
        let bytes = message_bytes(message::UPDATE, Some(&range), 0x7000);
        assert_eq!(bytes.len(), 72);
        let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!((bytes[0], word(8), word(16), word(24)), (2, 0x1000, 0x2000, 0x7000));
        assert_eq!((bytes[32], bytes[33]), (1, 2));
        let batch = message_bytes(message::BATCH_END, None, 0);
        assert!(batch.iter().enumerate().all(|(at, byte)| match at {
            0 => *byte == 2,
            33 => *byte == 6,
            _ => *byte == 0,
        }));
    }

    #[test]
    fn a_config_window_says_where_and_how_long() {
        assert_eq!(config_bytes(8, &[1, 2, 3]), [8, 0, 0, 0, 3, 0, 0, 0, 1, 2, 3]);
    }
}
