//! The legacy register file (VIRTIO 1.4, 4.1.4.10): one split ring per queue in one piece, page
//! numbers instead of addresses, no VERSION_1. Native byte order of the machine, which is
//! little-endian wherever this runs.

use mem::DriverAddress;
use virtio::{Features, Status};
use virtqueue::{QueueAddresses, RingFormat, ring_layout};

use super::VirtioPci;

/// Alignment in bytes of the used ring, and unit of the page number.
const PAGE: u64 = 4096;
/// Offset of the device's config without MSI-X.
const CONFIG: usize = 20;
/// Offset of the device's config with MSI-X, behind the two vectors.
const CONFIG_MSIX: usize = 24;

/// The registers, with offset and size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    DeviceFeatures,
    DriverFeatures,
    QueueAddress,
    QueueSize,
    QueueSelect,
    QueueNotify,
    Status,
    Isr,
    ConfigVector,
    QueueVector,
}

use Register as R;

const REGISTERS: [(Register, usize, usize); 10] = [
    (R::DeviceFeatures, 0, 4),
    (R::DriverFeatures, 4, 4),
    (R::QueueAddress, 8, 4),
    (R::QueueSize, 12, 2),
    (R::QueueSelect, 14, 2),
    (R::QueueNotify, 16, 2),
    (R::Status, 18, 1),
    (R::Isr, 19, 1),
    (R::ConfigVector, 20, 2),
    (R::QueueVector, 22, 2),
];

impl VirtioPci {
    fn legacy_config_offset(&self) -> usize {
        if self.uses_msix() { CONFIG_MSIX } else { CONFIG }
    }

    /// A driver reads from byte `offset` of the register file on.
    pub(super) fn read_legacy(&mut self, offset: usize, into: &mut [u8]) {
        into.fill(0);
        let config = self.legacy_config_offset();
        let end = offset.saturating_add(into.len());
        for (register, at, size) in touched(offset, end.min(config)) {
            let bytes = self.legacy_register(register).to_le_bytes();
            for (n, byte) in bytes[..size].iter().enumerate() {
                if let Some(place) = (at + n).checked_sub(offset).and_then(|n| into.get_mut(n)) {
                    *place = *byte;
                }
            }
        }
        if end > config {
            let skip = config.saturating_sub(offset);
            let from = offset.max(config) - config;
            self.device.read_config(from as u32, &mut into[skip..]);
        }
    }

    /// A driver writes from byte `offset` of the register file on.
    pub(super) fn write_legacy(&mut self, offset: usize, from: &[u8]) {
        let config = self.legacy_config_offset();
        let end = offset.saturating_add(from.len());
        for (register, at, size) in touched(offset, end.min(config)) {
            let mut bytes = [0; 4];
            if register != R::Isr {
                bytes = self.legacy_register(register).to_le_bytes();
            }
            for (n, byte) in bytes[..size].iter_mut().enumerate() {
                if let Some(new) = (at + n).checked_sub(offset).and_then(|n| from.get(n)) {
                    *byte = *new;
                }
            }
            self.set_legacy_register(register, u32::from_le_bytes(bytes));
        }
        if end > config {
            let skip = config.saturating_sub(offset);
            let at = offset.max(config) - config;
            self.write_device_config(at as u32, &from[skip..]);
        }
    }

    fn legacy_register(&mut self, register: Register) -> u32 {
        let queue = self.queues.get(usize::from(self.selectors.queue));
        match register {
            R::DeviceFeatures => self.legacy_features().0 as u32,
            R::DriverFeatures => self.driver_features.0 as u32,
            R::QueueAddress => queue
                .filter(|queue| queue.enabled)
                .map_or(0, |queue| (queue.addresses.descriptor.0 / PAGE) as u32),
            R::QueueSize => queue.map_or(0, |queue| queue.max_size.into()),
            R::QueueSelect => self.selectors.queue.into(),
            R::QueueNotify => 0,
            R::Status => self.status.status().0.into(),
            R::Isr => self.take_isr().into(),
            R::ConfigVector => self.signals.config_vector.into(),
            R::QueueVector => queue.map_or(super::NO_VECTOR, |queue| queue.vector).into(),
        }
    }

    fn set_legacy_register(&mut self, register: Register, value: u32) {
        let index = usize::from(self.selectors.queue);
        match register {
            R::DriverFeatures if !self.are_features_fixed() => {
                let features = Features(value.into()) & self.legacy_features();
                self.driver_features = features;
            }
            R::QueueAddress => self.set_legacy_ring(index, value),
            R::QueueSelect => self.selectors.queue = value as u16,
            R::QueueNotify => self.ring_doorbell(value as usize & 0xffff),
            R::Status => self.write_status(Status(value as u8), true),
            R::ConfigVector => self.signals.config_vector = self.checked_vector(value as u16),
            R::QueueVector => self.set_queue_vector(index, value as u16),
            _ => {}
        }
    }

    /// The features a legacy driver can see: bits 0 to 31, of what the device itself offers.
    fn legacy_features(&self) -> Features {
        self.device.identity().features & Features(0xffff_ffff)
    }

    /// The ring in one piece: descriptors, available ring, and the used ring at the next page
    /// (VIRTIO 1.4, 2.7.2).
    fn set_legacy_ring(&mut self, index: usize, page: u32) {
        if page == 0 {
            return self.disable_queue(index);
        }
        let Some(queue) = self.queues.get_mut(index).filter(|queue| !queue.enabled) else { return };
        let layout = ring_layout(RingFormat::Split, queue.max_size);
        let start = u64::from(page) * PAGE;
        let driver = start + layout.descriptor_bytes as u64;
        let device = (driver + layout.driver_bytes as u64).next_multiple_of(PAGE);
        queue.size = queue.max_size;
        queue.addresses = QueueAddresses {
            descriptor: DriverAddress(start),
            driver: DriverAddress(driver),
            device: DriverAddress(device),
        };
        self.enable_queue(index);
    }
}

fn touched(offset: usize, end: usize) -> impl Iterator<Item = (Register, usize, usize)> {
    REGISTERS.into_iter().filter(move |(_, at, size)| *at < end && at + size > offset)
}
