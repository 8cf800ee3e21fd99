use std::sync::Arc;

use sys::{Connection, EventFd};
use virtio::{DeviceType, Features, Status};
use virtqueue::QueueSpec;
use wire::vfio_user::{Reply, Request, irq_index};

use crate::{Access, Bell, Client, DriverError, GuestMemory};

/// The region of the config space.
const CONFIG: u32 = 7;

/// Fields of the common configuration (VIRTIO 1.4, 4.1.4.3).
mod common {
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub const DEVICE_FEATURE: u64 = 0x04;
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0c;
    pub const CONFIG_MSIX_VECTOR: u64 = 0x10;
    pub const DEVICE_STATUS: u64 = 0x14;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_MSIX_VECTOR: u64 = 0x1a;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub const QUEUE_DESC: u64 = 0x20;
    pub const QUEUE_DRIVER: u64 = 0x28;
    pub const QUEUE_DEVICE: u64 = 0x30;
}

/// Types of the virtio capabilities (VIRTIO 1.4, 4.1.4).
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_DEVICE: u8 = 4;

/// Where a structure is: which BAR, and where in it.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    bar: u32,
    offset: u64,
}

/// A virtio device on PCI, driven over a vfio-user connection as a guest's driver would.
pub struct PciDevice {
    client: Client,
    device: DeviceType,
    common: Place,
    notify: Place,
    notify_multiplier: u64,
    config: Place,
    vectors: u32,
    /// Whether doorbells are events where the device offers them.
    by_event: bool,
}

impl PciDevice {
    /// Finds the virtio structures in the device's config space. Memory is mapped by descriptor if
    /// `shared`, else reached by messages.
    ///
    /// # Errors
    /// It is no modern virtio device.
    pub fn new(
        connection: Connection,
        memory: &GuestMemory,
        shared: bool,
    ) -> Result<Self, DriverError> {
        let mut client = Client::new(connection, memory, shared)?;
        let mut space = [0; 256];
        client.read(CONFIG, 0, &mut space)?;
        let id = u16::from_le_bytes([space[2], space[3]]);
        let subsystem = u16::from_le_bytes([space[0x2e], space[0x2f]]);
        let device = match id {
            0x1040.. => DeviceType(id - 0x1040),
            _ => DeviceType(subsystem),
        };
        let none = Place::default();
        let (common, notify, config) = (none, none, none);
        let mut pci = Self {
            client,
            device,
            common,
            notify,
            notify_multiplier: 0,
            config,
            vectors: 0,
            by_event: false,
        };
        pci.find_structures(&space)?;
        // Memory space and bus mastering on, as a driver does.
        pci.client.write(CONFIG, 4, &6u16.to_le_bytes())?;
        Ok(pci)
    }

    fn find_structures(&mut self, space: &[u8; 256]) -> Result<(), DriverError> {
        /// Vendor-specific capability, which virtio uses for its structures.
        const VENDOR: u8 = 9;
        const MSIX: u8 = 0x11;
        let byte = |at: usize| space.get(at).copied().unwrap_or(0);
        let word =
            |at: usize| u32::from_le_bytes([byte(at), byte(at + 1), byte(at + 2), byte(at + 3)]);
        let mut at = usize::from(space[0x34]);
        // A list in 192 bytes has at most 48 entries.
        for _ in 0..48 {
            if at == 0 {
                break;
            }
            if byte(at) == MSIX {
                self.vectors = (word(at) >> 16 & 0x7ff) + 1;
            }
            if byte(at) == VENDOR {
                let place = Place { bar: byte(at + 4).into(), offset: word(at + 8).into() };
                match byte(at + 3) {
                    CAP_COMMON => self.common = place,
                    CAP_NOTIFY => {
                        self.notify = place;
                        self.notify_multiplier = word(at + 16).into();
                    }
                    CAP_DEVICE => self.config = place,
                    _ => {}
                }
            }
            at = byte(at + 1).into();
        }
        if self.notify_multiplier == 0 {
            return Err(DriverError::Protocol("no virtio structures in the config space".into()));
        }
        Ok(())
    }

    /// The connection, to measure bare register accesses.
    pub fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    /// From now on queues that are started are kicked by the events that the device offers for its
    /// doorbells (DEVICE_GET_REGION_IO_FDS), without a message. QEMU 11.1 never asks for them.
    #[must_use]
    pub fn kicking_by_event(mut self) -> Self {
        self.by_event = true;
        self
    }

    /// The event for the doorbell at `offset` of the notification BAR.
    fn doorbell_event(&mut self, offset: u64) -> Result<EventFd, DriverError> {
        /// Room for an entry of 40 bytes per queue.
        const ARGSZ: u32 = 16 + 40 * 256;
        let index = self.notify.bar;
        let request = Request::DeviceGetRegionIoFds { argsz: ARGSZ, index };
        self.client.ask(&request, &[], |reply, mut fds| {
            let Reply::RegionIoFds(offer) = &reply else {
                return Err(DriverError::Protocol(format!("an unexpected answer: {reply:?}")));
            };
            let found = offer.sub_regions.iter().find(|bell| bell.offset == offset);
            let at = found.map(|bell| bell.fd_index as usize).filter(|&at| at < fds.len());
            let at = at.ok_or_else(|| DriverError::Protocol("no event for a doorbell".into()))?;
            let taken = EventFd::from_fd(fds.swap_remove(at));
            taken.map_err(DriverError::system("taking over a doorbell's event"))
        })
    }

    /// BAR and offset of a register that may be read freely: the device status.
    #[must_use]
    pub fn status_register(&self) -> (u32, u64) {
        (self.common.bar, self.common.offset + common::DEVICE_STATUS)
    }

    fn read<const N: usize>(&mut self, field: u64) -> Result<[u8; N], DriverError> {
        let mut bytes = [0; N];
        self.client.read(self.common.bar, self.common.offset + field, &mut bytes)?;
        Ok(bytes)
    }

    fn write(&mut self, field: u64, bytes: &[u8]) -> Result<(), DriverError> {
        self.client.write(self.common.bar, self.common.offset + field, bytes)
    }

    fn write_checked(&mut self, field: u64, value: u16, what: &str) -> Result<(), DriverError> {
        self.write(field, &value.to_le_bytes())?;
        match u16::from_le_bytes(self.read(field)?) {
            found if found == value => Ok(()),
            found => Err(DriverError::Protocol(format!("{what}: wrote {value}, reads {found}"))),
        }
    }

    fn add_status(&mut self, bits: Status) -> Result<Status, DriverError> {
        let status = self.status()?.with(bits);
        self.write(common::DEVICE_STATUS, &[status.0])?;
        self.status()
    }
}

impl Access for PciDevice {
    fn device_type(&self) -> DeviceType {
        self.device
    }

    fn reset(&mut self) -> Result<(), DriverError> {
        self.write(common::DEVICE_STATUS, &[0])?;
        // A device may take its time over a reset; reads are round trips of tens of microseconds.
        for _ in 0..100_000 {
            if self.status()? == Status::RESET {
                self.add_status(Status::ACKNOWLEDGE)?;
                self.add_status(Status::DRIVER)?;
                return Ok(());
            }
        }
        Err(DriverError::TimedOut("waiting for the reset"))
    }

    fn features(&mut self) -> Result<Features, DriverError> {
        let mut features = 0;
        for half in 0..2u32 {
            self.write(common::DEVICE_FEATURE_SELECT, &half.to_le_bytes())?;
            features |=
                u64::from(u32::from_le_bytes(self.read(common::DEVICE_FEATURE)?)) << (32 * half);
        }
        Ok(Features(features))
    }

    fn accept(&mut self, features: Features) -> Result<(), DriverError> {
        for half in 0..2u32 {
            self.write(common::DRIVER_FEATURE_SELECT, &half.to_le_bytes())?;
            self.write(
                common::DRIVER_FEATURE,
                &((features.0 >> (32 * half)) as u32).to_le_bytes(),
            )?;
        }
        if self.add_status(Status::FEATURES_OK)?.has(Status::FEATURES_OK) {
            return Ok(());
        }
        Err(DriverError::Protocol(format!("the device does not accept the features {features}")))
    }

    fn read_config(&mut self, offset: u32, into: &mut [u8]) -> Result<(), DriverError> {
        // Config registers are read in pieces of at most 4 bytes, as a guest does.
        for (index, piece) in into.chunks_mut(4).enumerate() {
            let at = self.config.offset + u64::from(offset) + 4 * index as u64;
            self.client.read(self.config.bar, at, piece)?;
        }
        Ok(())
    }

    fn max_queue_size(&mut self, index: u16) -> Result<u16, DriverError> {
        self.write(common::QUEUE_SELECT, &index.to_le_bytes())?;
        Ok(u16::from_le_bytes(self.read(common::QUEUE_SIZE)?))
    }

    fn start_queue(&mut self, index: u16, spec: &QueueSpec) -> Result<Bell, DriverError> {
        let event = EventFd::new().map_err(DriverError::system("making an eventfd"))?;
        let interrupt = Arc::new(event);
        // Vector 0 is for config changes.
        let vector = (index + 1).min(self.vectors.saturating_sub(1) as u16);
        self.client.set_interrupts(irq_index::MSIX, vector.into(), &[Arc::clone(&interrupt)])?;
        self.write(common::QUEUE_SELECT, &index.to_le_bytes())?;
        self.write_checked(common::QUEUE_SIZE, spec.size, "queue size")?;
        self.write_checked(common::QUEUE_MSIX_VECTOR, vector, "queue vector")?;
        let areas = [
            (common::QUEUE_DESC, spec.addresses.descriptor),
            (common::QUEUE_DRIVER, spec.addresses.driver),
            (common::QUEUE_DEVICE, spec.addresses.device),
        ];
        for (field, address) in areas {
            self.write(field, &address.0.to_le_bytes())?;
        }
        let notify_off = u16::from_le_bytes(self.read(common::QUEUE_NOTIFY_OFF)?);
        self.write_checked(common::QUEUE_ENABLE, 1, "queue enable")?;
        let doorbell = self.notify.offset + u64::from(notify_off) * self.notify_multiplier;
        if self.by_event {
            let event = self.doorbell_event(doorbell)?;
            return Ok(Bell { ring: Box::new(move || event.signal()), interrupt });
        }
        let ring = self.client.poster(self.notify.bar, doorbell, index.to_le_bytes().to_vec());
        Ok(Bell { ring, interrupt })
    }

    fn go(&mut self) -> Result<(), DriverError> {
        self.write(common::CONFIG_MSIX_VECTOR, &0u16.to_le_bytes())?;
        let status = self.add_status(Status::DRIVER_OK)?;
        if status.has(Status::NEEDS_RESET) {
            return Err(DriverError::Protocol("the device needs a reset at DRIVER_OK".into()));
        }
        Ok(())
    }

    fn status(&mut self) -> Result<Status, DriverError> {
        let [status] = self.read(common::DEVICE_STATUS)?;
        Ok(Status(status))
    }
}
