//! The common config (VIRTIO 1.4, 4.1.4.3), at any width and offset.

use mem::DriverAddress;
use virtio::{Features, Status};

use super::VirtioPci;
use super::layout::COMMON_LEN;

/// What the driver has selected.
#[derive(Clone, Copy, Debug, Default)]
pub struct Selectors {
    pub device_feature: u32,
    pub driver_feature: u32,
    pub queue: u16,
}

/// The registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    DeviceFeatureSelect,
    DeviceFeature,
    DriverFeatureSelect,
    DriverFeature,
    ConfigVector,
    NumQueues,
    DeviceStatus,
    ConfigGeneration,
    QueueSelect,
    QueueSize,
    QueueVector,
    QueueEnable,
    QueueNotifyOffset,
    QueueDescriptor,
    QueueDriver,
    QueueDevice,
    QueueNotifyData,
    QueueReset,
    AdminQueueIndex,
    AdminQueueCount,
}

use Register as R;

/// With offset and size in bytes, in the order of offsets.
const REGISTERS: [(Register, usize, usize); 20] = [
    (R::DeviceFeatureSelect, 0, 4),
    (R::DeviceFeature, 4, 4),
    (R::DriverFeatureSelect, 8, 4),
    (R::DriverFeature, 12, 4),
    (R::ConfigVector, 16, 2),
    (R::NumQueues, 18, 2),
    (R::DeviceStatus, 20, 1),
    (R::ConfigGeneration, 21, 1),
    (R::QueueSelect, 22, 2),
    (R::QueueSize, 24, 2),
    (R::QueueVector, 26, 2),
    (R::QueueEnable, 28, 2),
    (R::QueueNotifyOffset, 30, 2),
    (R::QueueDescriptor, 32, 8),
    (R::QueueDriver, 40, 8),
    (R::QueueDevice, 48, 8),
    (R::QueueNotifyData, 56, 2),
    (R::QueueReset, 58, 2),
    (R::AdminQueueIndex, 60, 2),
    (R::AdminQueueCount, 62, 2),
];

impl VirtioPci {
    /// A driver reads from byte `offset` of the common config on; bytes beyond its end read as 0.
    pub(super) fn read_common(&mut self, offset: usize, into: &mut [u8]) {
        into.fill(0);
        for (register, at, size) in touched(offset, into.len()) {
            let bytes = self.register(register).to_le_bytes();
            for (n, byte) in bytes[..size].iter().enumerate() {
                if let Some(place) = (at + n).checked_sub(offset).and_then(|n| into.get_mut(n)) {
                    *place = *byte;
                }
            }
        }
    }

    /// A driver writes from byte `offset` of the common config on. A write of part of a register
    /// changes that part.
    pub(super) fn write_common(&mut self, offset: usize, from: &[u8]) {
        for (register, at, size) in touched(offset, from.len()) {
            let mut bytes = self.register(register).to_le_bytes();
            for (n, byte) in bytes[..size].iter_mut().enumerate() {
                if let Some(new) = (at + n).checked_sub(offset).and_then(|n| from.get(n)) {
                    *byte = *new;
                }
            }
            self.set_register(register, u64::from_le_bytes(bytes));
        }
    }

    fn register(&self, register: Register) -> u64 {
        let queue = self.queues.get(usize::from(self.selectors.queue));
        // Of a queue that does not exist every field reads as 0 (VIRTIO 1.4, 4.1.4.3.1).
        let of_queue = |field: fn(&super::QueueRegisters) -> u64| queue.map_or(0, field);
        match register {
            R::DeviceFeatureSelect => self.selectors.device_feature.into(),
            R::DeviceFeature => half(self.offered(), self.selectors.device_feature),
            R::DriverFeatureSelect => self.selectors.driver_feature.into(),
            R::DriverFeature => half(self.driver_features, self.selectors.driver_feature),
            R::ConfigVector => self.signals.config_vector.into(),
            R::NumQueues => self.queues.len() as u64,
            R::DeviceStatus => self.status.status().0.into(),
            R::ConfigGeneration => self.generation.into(),
            R::QueueSelect => self.selectors.queue.into(),
            R::QueueSize => of_queue(|queue| queue.size.into()),
            R::QueueVector => of_queue(|queue| queue.vector.into()),
            R::QueueEnable => of_queue(|queue| queue.enabled.into()),
            R::QueueNotifyOffset => queue.map_or(0, |_| self.selectors.queue.into()),
            // There only for drivers that agreed to write it in place of the queue's number
            // (VIRTIO 1.4, 4.1.4.3, 4.1.5.2). The doorbell's place says as much.
            R::QueueNotifyData => {
                let agreed = self.driver_features.has(Features::NOTIF_CONFIG_DATA);
                queue.filter(|_| agreed).map_or(0, |_| self.selectors.queue.into())
            }
            R::QueueDescriptor => of_queue(|queue| queue.addresses.descriptor.0),
            R::QueueDriver => of_queue(|queue| queue.addresses.driver.0),
            R::QueueDevice => of_queue(|queue| queue.addresses.device.0),
            // A reset is over when the write that asks for it returns.
            R::QueueReset | R::AdminQueueIndex | R::AdminQueueCount => 0,
        }
    }

    fn set_register(&mut self, register: Register, value: u64) {
        let index = usize::from(self.selectors.queue);
        match register {
            R::DeviceFeatureSelect => self.selectors.device_feature = value as u32,
            R::DriverFeatureSelect => self.selectors.driver_feature = value as u32,
            R::DriverFeature => self.set_driver_feature(value as u32),
            R::ConfigVector => self.signals.config_vector = self.checked_vector(value as u16),
            R::DeviceStatus => self.write_status(Status(value as u8), false),
            R::QueueSelect => self.selectors.queue = value as u16,
            R::QueueVector => self.set_queue_vector(index, value as u16),
            R::QueueEnable if value == 1 => self.enable_queue(index),
            R::QueueReset if value == 1 => self.reset_queue(index),
            R::QueueSize | R::QueueDescriptor | R::QueueDriver | R::QueueDevice => {
                self.set_ring(register, index, value);
            }
            _ => {}
        }
    }

    fn set_driver_feature(&mut self, value: u32) {
        let shift = match self.selectors.driver_feature {
            0 => 0,
            1 => 32,
            _ => return,
        };
        if !self.are_features_fixed() {
            let kept = self.driver_features.0 & !(0xffff_ffff << shift);
            self.driver_features = Features(kept | u64::from(value) << shift);
        }
    }

    /// The fields that say where a ring is; fixed once it is enabled (VIRTIO 1.4, 4.1.4.3.2).
    fn set_ring(&mut self, register: Register, index: usize, value: u64) {
        let features = self.driver_features;
        let Some(queue) = self.queues.get_mut(index).filter(|queue| !queue.enabled) else { return };
        let address = DriverAddress(value);
        match register {
            R::QueueSize => queue.set_size(value as u16, features),
            R::QueueDescriptor => queue.addresses.descriptor = address,
            R::QueueDriver => queue.addresses.driver = address,
            _ => queue.addresses.device = address,
        }
    }
}

/// The registers that `[offset, offset + len)` touches.
fn touched(offset: usize, len: usize) -> impl Iterator<Item = (Register, usize, usize)> {
    let end = offset.saturating_add(len).min(COMMON_LEN);
    let first = REGISTERS.partition_point(|(_, at, size)| at + size <= offset);
    REGISTERS[first..].iter().copied().take_while(move |(_, at, _)| *at < end)
}

fn half(features: Features, select: u32) -> u64 {
    match select {
        0 => features.0 & 0xffff_ffff,
        1 => features.0 >> 32,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_touches_what_overlaps_it() {
        for offset in 0..COMMON_LEN + 8 {
            for len in (1..20).chain([COMMON_LEN, usize::MAX]) {
                let end = offset.saturating_add(len);
                let overlaps = |&(_, at, size): &(_, usize, usize)| at < end && at + size > offset;
                let expected: Vec<_> = REGISTERS.into_iter().filter(overlaps).collect();
                assert_eq!(touched(offset, len).collect::<Vec<_>>(), expected, "{len} at {offset}");
            }
        }
    }
}
