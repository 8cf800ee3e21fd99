use std::io;
use std::sync::Arc;

use mem::MemoryMap;
use sys::EventFd;
use virtio::{Features, Notifier};
use virtqueue::{
    MAX_QUEUE_SIZE, QueueAddresses, QueuePosition, QueueSpec, RingFormat, ring_layout,
};

use super::NO_VECTOR;

/// The registers of one queue.
pub struct QueueRegisters {
    pub max_size: u16,
    pub size: u16,
    pub vector: u16,
    pub addresses: QueueAddresses,
    /// The driver has enabled it.
    pub enabled: bool,
    /// The device runs it.
    pub running: bool,
    /// It could not be stopped in an orderly way.
    pub broken: bool,
    /// It was stopped because its rings were not in memory any more.
    pub paused: bool,
    /// Where it was stopped, if it is to be started there again.
    pub resume_at: Option<QueuePosition>,
    /// Signalled by the doorbell; given out to the host, and another for the next one.
    pub kick: Arc<EventFd>,
    pub call: Notifier,
}

impl QueueRegisters {
    pub fn new(max_size: u16) -> io::Result<Self> {
        let max_size = max_size.min(MAX_QUEUE_SIZE);
        Ok(Self {
            max_size,
            size: max_size,
            vector: NO_VECTOR,
            addresses: QueueAddresses::default(),
            enabled: false,
            running: false,
            broken: false,
            paused: false,
            resume_at: None,
            kick: Arc::new(EventFd::new()?),
            call: Notifier::none(),
        })
    }

    /// A kick that the host before does not hold, who could take away what the next one signals.
    /// The queue does not run. Without descriptors left it stays as it is.
    pub fn renew_kick(&mut self) {
        if let Ok(fresh) = EventFd::new() {
            self.kick = Arc::new(fresh);
        }
    }

    /// As after a reset of the device; the queue does not run.
    pub fn reset(&mut self) {
        self.reset_ring();
        self.vector = NO_VECTOR;
        self.call.set(None);
    }

    /// As after a reset of this queue alone: it keeps its vector (VIRTIO 1.4, 2.6.1).
    pub fn reset_ring(&mut self) {
        self.size = self.max_size;
        self.addresses = QueueAddresses::default();
        self.enabled = false;
        self.running = false;
        self.broken = false;
        self.paused = false;
        self.resume_at = None;
        self.kick.drain();
    }

    /// The driver chooses a size. One that can't be is ignored; the driver reads back the old one.
    pub fn set_size(&mut self, size: u16, features: Features) {
        let any = features.has(Features::RING_PACKED);
        if size != 0 && size <= self.max_size && (any || size.is_power_of_two()) {
            self.size = size;
        }
    }

    /// The queue for the device.
    pub fn spec(&self, features: Features) -> QueueSpec {
        let format = if features.has(Features::RING_PACKED) {
            RingFormat::Packed
        } else {
            RingFormat::Split
        };
        QueueSpec {
            size: self.size,
            format,
            indirect: features.has(Features::INDIRECT_DESC),
            event_idx: features.has(Features::EVENT_IDX),
            in_order: features.has(Features::IN_ORDER),
            addresses: self.addresses,
            start_at: self.resume_at.unwrap_or(QueuePosition::start(format)),
        }
    }

    /// Whether all of the rings is in `map`.
    pub fn has_rings_in(&self, map: &MemoryMap, features: Features) -> bool {
        let spec = self.spec(features);
        let layout = ring_layout(spec.format, spec.size);
        [
            (spec.addresses.descriptor, layout.descriptor_bytes),
            (spec.addresses.driver, layout.driver_bytes),
            (spec.addresses.device, layout.device_bytes),
        ]
        .into_iter()
        .all(|(at, len)| {
            let region = map.region(at);
            region.is_ok_and(|region| region.end() - at.0 >= len as u64)
        })
    }
}
