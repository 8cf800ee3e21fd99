//! What the driver's side has told about each ring, and what can be made of it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;

use mem::{DriverAddress, MemoryMap};
use sys::EventFd;
use virtio::{Features, Notifier};
use virtqueue::{
    MAX_QUEUE_SIZE, QueueAddresses, QueuePosition, QueueSpec, RingFormat, ring_layout,
};
use wire::vhost_user::VringAddr;

/// How the driver tells us that it has made something available.
#[derive(Clone, Debug)]
pub(super) enum Kick {
    /// It has not said yet: the ring is stopped.
    Unset,
    /// Not at all: we poll.
    Polled,
    /// By an event, or by messages that we turn into one.
    Event(Arc<EventFd>),
}

/// One ring.
#[derive(Debug)]
pub(super) struct Ring {
    /// 0 until told.
    pub size: u16,
    /// Where it starts next, in the bits of the message.
    pub base: u32,
    pub addresses: Option<VringAddr>,
    pub kick: Kick,
    pub call: Notifier,
    /// In-band interrupts: what the device signals and we turn into messages.
    pub inband_call: Option<Arc<EventFd>>,
    pub broken: Option<EventFd>,
    /// Told by SET_VRING_ENABLE; without protocol features rings are always enabled.
    pub enabled: bool,
    /// The device has it.
    pub running: bool,
}

impl Ring {
    pub(super) fn new() -> Self {
        Self {
            size: 0,
            base: 0,
            addresses: None,
            kick: Kick::Unset,
            call: Notifier::none(),
            inband_call: None,
            broken: None,
            enabled: false,
            running: false,
        }
    }

    /// Whether everything is known that a start needs.
    pub(super) fn is_complete(&self) -> bool {
        self.size > 0 && self.addresses.is_some() && !matches!(self.kick, Kick::Unset)
    }

    /// The driver can't go on with this ring.
    pub(super) fn signal_broken(&self) {
        if let Some(event) = &self.broken {
            event.signal();
        }
    }

    /// What to start, given the areas' addresses.
    pub(super) fn spec(
        &self,
        features: Features,
        addresses: QueueAddresses,
        memory: &MemoryMap,
    ) -> QueueSpec {
        let packed = features.has(Features::RING_PACKED);
        let format = if packed { RingFormat::Packed } else { RingFormat::Split };
        QueueSpec {
            size: self.size,
            format,
            indirect: features.has(Features::INDIRECT_DESC),
            event_idx: features.has(Features::EVENT_IDX),
            in_order: features.has(Features::IN_ORDER),
            addresses,
            start_at: match format {
                RingFormat::Split => QueuePosition::split(self.base as u16),
                RingFormat::Packed => packed_start(self.base, addresses.descriptor, memory),
            },
        }
    }
}

/// A packed ring's position. Some drivers say 0 for a fresh ring, where the wrap counters should be
/// 1; but 0 is also the right position after one lap. Then the device has marked the first
/// descriptor as used in the first lap, so that tells them apart.
fn packed_start(base: u32, descriptors: DriverAddress, memory: &MemoryMap) -> QueuePosition {
    /// Offset of the flags in a packed descriptor (VIRTIO 1.4, 2.8.13).
    const FLAGS: u64 = 14;
    /// The used bit of the flags (VIRTIO 1.4, 2.8.1).
    const USED: u16 = 1 << 15;
    let mut flags = [0; 2];
    if base != 0 {
        return QueuePosition(base);
    }
    let read = memory.read(DriverAddress(descriptors.0.wrapping_add(FLAGS)), &mut flags);
    if read.is_ok() && u16::from_le_bytes(flags) & USED != 0 {
        return QueuePosition(base);
    }
    QueuePosition::start(RingFormat::Packed)
}

/// A size that some ring can have; whether it suits the format is seen when the ring starts.
pub(super) fn checked_size(num: u32, features: Option<Features>) -> Option<u16> {
    let size = u16::try_from(num).ok().filter(|size| (1..=MAX_QUEUE_SIZE).contains(size))?;
    let split = features.is_some_and(|features| !features.has(Features::RING_PACKED));
    (!split || size.is_power_of_two()).then_some(size)
}

/// The first page of the ring that has no translation yet, if there is one.
pub(super) fn missing_page(spec: &QueueSpec, map: &MemoryMap) -> Option<DriverAddress> {
    let layout = ring_layout(spec.format, spec.size);
    let areas = [
        (spec.addresses.descriptor, layout.descriptor_bytes),
        (spec.addresses.driver, layout.driver_bytes),
        (spec.addresses.device, layout.device_bytes),
    ];
    areas.into_iter().find_map(|(at, bytes)| {
        let end = at.0.checked_add(bytes as u64)?;
        let mut next = at.0;
        // Every round goes on to another region, of which there are only so many.
        while next < end {
            match map.region(DriverAddress(next)) {
                Ok(region) => next = region.end(),
                Err(_) => return Some(DriverAddress(next)),
            }
        }
        None
    })
}

/// The event that a driver signals. It is waited for change by change and not read, so a pipe, as
/// User Mode Linux uses for interrupts, would fill up.
pub(super) fn kick_from(fd: OwnedFd) -> io::Result<EventFd> {
    let file = File::from(fd);
    let kind = file.metadata()?.file_type();
    if kind.is_fifo() || kind.is_socket() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not an eventfd"));
    }
    event_from(OwnedFd::from(file))
}

/// The event behind a descriptor from the peer. Files and devices are refused: some are always
/// readable, and waiting for them would be a busy loop. User Mode Linux sends pipes.
pub(super) fn event_from(fd: OwnedFd) -> io::Result<EventFd> {
    let file = File::from(fd);
    let kind = file.metadata()?.file_type();
    if kind.is_file() || kind.is_dir() || kind.is_char_device() || kind.is_block_device() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not an eventfd"));
    }
    EventFd::from_fd(OwnedFd::from(file))
}
