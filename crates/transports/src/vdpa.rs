//! vdpa: a device of this machine's vDPA bus, bound to the kernel's `vhost_vdpa`: hardware, a
//! simulator, or VDUSE of another process.
//!
//! ```text
//!   accept_features   status up to FEATURES_OK, features between; memory as IOTLB entries
//!   start_queue       NUM, BASE, ADDR, CALL, KICK, ENABLE
//!   set_status        DRIVER_OK: it runs; the kick eventfds are the driver's own
//!   stop_queue        SUSPEND, BASE of all queues; where it can't: status 0, the used index
//!   reset             status 0; IOTLB entries taken away
//! ```
//!
//! All queues stop together, as the bus has no other way, and start together again with the next
//! one that is started. A device that can't be suspended loses what is in flight when it is
//! stopped: the driver's requests from the used index on are done again, which is right for devices
//! that complete in order.
//!
//! What it deliberately lacks: address spaces for some queues only, and a device that is taken off
//! the bus meanwhile: the kernel waits until we let go.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;

use mem::{Access, AddressSpace, Backing, DriverAddress, Mapping, MemoryMap};
use sys::{EventFd, VdpaQueue, VdpaRange, VhostVdpa};
use virtio::{
    DeviceError, DeviceEvent, DeviceType, Features, Identity, ParameterError, Parameters,
    QueueSetup, Reach, Sharing, Status, VirtioDevice, config,
};
use virtqueue::{QueuePosition, RingFormat};

use crate::{Findings, OpenError, Transport};

/// Most IOTLB entries: `max_iotlb_entries` of the kernel's vhost.
const MAX_ENTRIES: usize = 2048;

/// Bits that mean something only between a driver and another bus, or that we deal with: addresses
/// are the bus's, always.
const NOT_THE_DRIVERS: Features = Features(
    Features::ACCESS_PLATFORM.0
        | Features::SR_IOV.0
        | Features::NOTIFICATION_DATA.0
        | Features::NOTIF_CONFIG_DATA.0
        | Features::RING_RESET.0
        | Features::ADMIN_VQ.0,
);

/// The table's entry.
pub(crate) static TRANSPORT: Transport = Transport {
    scheme: "vdpa",
    help: "a device of this machine's vDPA bus, by the kernel's vhost_vdpa",
    settings: &["path=PATH           its node, as /dev/vhost-vdpa-0"],
    driver_end: None,
    device_end: Some(open),
    probe: Some(probe),
};

fn open(parameters: Parameters) -> Result<Box<dyn VirtioDevice>, OpenError> {
    Ok(Box::new(open_node(parameters)?))
}

fn open_node(mut parameters: Parameters) -> Result<VdpaDevice, OpenError> {
    let path = parameters.text("path").ok_or(ParameterError::Missing("path"))?;
    parameters.finish()?;
    let path = PathBuf::from(path);
    let node = VhostVdpa::open(&path).map_err(|error| explain(&path, error))?;
    Ok(VdpaDevice::new(path, node)?)
}

/// Why the node could not be opened, and what to do.
fn explain(path: &std::path::Path, source: std::io::Error) -> DeviceError {
    let mend = match source.kind() {
        std::io::ErrorKind::NotFound => {
            " (modprobe vhost_vdpa, and bind the device to it: 'echo vhost_vdpa > \
             /sys/bus/vdpa/devices/NAME/driver_override', then NAME to its unbind and bind)"
        }
        std::io::ErrorKind::ResourceBusy => " (another process has it)",
        std::io::ErrorKind::Unsupported => " (this kernel's vhost_vdpa is too old)",
        _ => "",
    };
    DeviceError::System { attempt: format!("opening {}{mend}", path.display()), source }
}

fn probe(parameters: Parameters) -> Result<Findings, OpenError> {
    let mut device = open_node(parameters)?;
    let Identity { device: kind, features, queue_sizes, config_len } = device.identity.clone();
    let mut config = vec![0; config_len as usize];
    device.read_config(0, &mut config);
    let abilities = device.node.abilities();
    let names = [(abilities.suspends(), "SUSPEND"), (abilities.enables_late(), "ENABLE_LATE")];
    Ok(Findings {
        device: Some(kind),
        features: features | device.platform,
        protocol_features: names.iter().filter(|has| has.0).map(|has| has.1.into()).collect(),
        queues: Some(queue_sizes.len() as u64),
        memory_slots: MAX_ENTRIES,
        config,
    })
}

/// A device behind `/dev/vhost-vdpa-N`.
struct VdpaDevice {
    path: PathBuf,
    node: VhostVdpa,
    identity: Identity,
    /// ACCESS_PLATFORM, if the device has it: then it must be accepted.
    platform: Features,
    /// Signalled when the config or the status changes.
    changed: EventFd,
    memory: Option<Arc<AddressSpace>>,
    /// What the device has of it.
    entries: Vec<Entry>,
    accepted: Option<Features>,
    /// As the driver wants them.
    queues: BTreeMap<u16, QueueSetup>,
    /// The driver is ready.
    ready: bool,
    /// The device is.
    live: bool,
}

/// An IOTLB entry.
#[derive(Clone, Debug)]
struct Entry {
    range: VdpaRange,
    mapping: Arc<Mapping>,
}

impl Entry {
    fn is(&self, other: &Self) -> bool {
        self.range == other.range && Arc::ptr_eq(&self.mapping, &other.mapping)
    }
}

impl VdpaDevice {
    fn new(path: PathBuf, node: VhostVdpa) -> Result<Self, DeviceError> {
        let system = || DeviceError::system(format!("asking {} what it is", path.display()));
        let offered = Features(node.features().map_err(system())?);
        let device = DeviceType(node.device_id().map_err(system())? as u16);
        let identity = Identity {
            device,
            features: offered - NOT_THE_DRIVERS,
            queue_sizes: node.queue_sizes().map_err(system())?,
            config_len: node.config_len().unwrap_or_else(|_| config::len_of(device)),
        };
        let changed = EventFd::new().map_err(system())?;
        node.signal_config(&changed).map_err(system())?;
        Ok(Self {
            platform: offered & Features::ACCESS_PLATFORM,
            path,
            node,
            identity,
            changed,
            memory: None,
            entries: Vec::new(),
            accepted: None,
            queues: BTreeMap::new(),
            ready: false,
            live: false,
        })
    }

    fn system(&self, doing: &str) -> impl FnOnce(std::io::Error) -> DeviceError + use<> {
        DeviceError::system(format!("{doing} {}", self.path.display()))
    }

    fn write_status(&self, status: Status) -> Result<(), DeviceError> {
        self.node.set_status(status.0).map_err(self.system("writing the status of"))
    }

    /// Up to where queues can be set up.
    fn begin(&mut self) -> Result<(), DeviceError> {
        let Some(accepted) = self.accepted else { return Ok(()) };
        let known = Status::ACKNOWLEDGE.with(Status::DRIVER);
        self.write_status(Status::RESET)?;
        self.write_status(known)?;
        let features = accepted | self.platform;
        self.node.set_features(features.0).map_err(self.system("accepting the features of"))?;
        self.write_status(known.with(Status::FEATURES_OK))?;
        let status = self.node.status().map_err(self.system("reading the status of"))?;
        if !Status(status).has(Status::FEATURES_OK) {
            return Err(DeviceError::BadFeatures(accepted));
        }
        self.share_memory()
    }

    /// Gives the device the memory as it is now.
    fn share_memory(&mut self) -> Result<(), DeviceError> {
        let wanted = match &self.memory {
            Some(memory) => self.plan(&memory.current())?,
            None => Vec::new(),
        };
        let gone: Vec<VdpaRange> = self
            .entries
            .iter()
            .filter(|old| !wanted.iter().any(|new| new.is(old)))
            .map(|old| old.range)
            .collect();
        let new: Vec<(VdpaRange, &Mapping)> = wanted
            .iter()
            .filter(|new| !self.entries.iter().any(|old| old.is(new)))
            .map(|new| (new.range, &*new.mapping))
            .collect();
        let changed = self.node.change_memory(&gone, &new);
        changed.map_err(self.system("giving the driver's memory to"))?;
        self.entries = wanted;
        Ok(())
    }

    /// What of `map` the device can have: memory of ours in files.
    fn plan(&self, map: &MemoryMap) -> Result<Vec<Entry>, DeviceError> {
        let (first, last) =
            self.node.address_range().map_err(self.system("asking for the addresses of"))?;
        let mut wanted = Vec::new();
        for region in map.regions().iter().filter(|region| region.access != Access::Ours) {
            let Backing::Mapped { mapping, offset } = &region.backing else { continue };
            let start = region.start.0;
            if start < first || start.saturating_add(region.len - 1) > last {
                return Err(DeviceError::Refused(format!(
                    "{} only knows the addresses {first:#x} to {last:#x}, not {start:#x}",
                    self.path.display()
                )));
            }
            let writable = region.access == Access::ReadWrite;
            let range = VdpaRange { start, len: region.len, offset: *offset as u64, writable };
            wanted.push(Entry { range, mapping: Arc::clone(mapping) });
        }
        if wanted.len() > MAX_ENTRIES {
            let why = format!("{} regions of memory, {MAX_ENTRIES} at most", wanted.len());
            return Err(DeviceError::Refused(why));
        }
        Ok(wanted)
    }

    fn set_up(&self, setup: &QueueSetup) -> Result<(), DeviceError> {
        let index = u32::from(setup.index);
        let at = setup.spec.addresses;
        let queue = VdpaQueue {
            index,
            size: setup.spec.size,
            position: setup.spec.start_at.0,
            descriptor: at.descriptor.0,
            driver: at.driver.0,
            device: at.device.0,
        };
        let system = || self.system("setting up a queue of");
        self.node.set_up_queue(&queue).map_err(system())?;
        self.node.set_interrupt(index, setup.call.event().as_deref()).map_err(system())?;
        self.node.set_doorbell(index, setup.kick.as_deref()).map_err(system())?;
        self.node.enable_queue(index, true).map_err(system())
    }

    fn go_live(&mut self) -> Result<(), DeviceError> {
        let known = Status::ACKNOWLEDGE.with(Status::DRIVER).with(Status::FEATURES_OK);
        let done = known.with(Status::DRIVER_OK);
        self.write_status(done)?;
        self.live = true;
        // What was available before is in the rings, and nobody has said so.
        self.queues.values().filter_map(|queue| queue.kick.as_ref()).for_each(|kick| kick.signal());
        Ok(())
    }

    /// Stops all queues, and notes where they are.
    fn halt(&mut self) -> Result<(), DeviceError> {
        if !std::mem::take(&mut self.live) {
            return Ok(());
        }
        let suspends = self.node.abilities().suspends();
        if suspends {
            self.node.suspend().map_err(self.system("suspending"))?;
            for (index, queue) in &mut self.queues {
                let position = self.node.position((*index).into());
                let attempt = format!("asking {} where it is", self.path.display());
                queue.spec.start_at =
                    QueuePosition(position.map_err(DeviceError::system(attempt))?);
            }
        }
        self.write_status(Status::RESET)?;
        if !suspends {
            for queue in self.queues.values_mut() {
                queue.spec.start_at = used_position(queue)?;
            }
        }
        Ok(())
    }

    /// Starts all again, after [`VdpaDevice::halt`].
    fn restart(&mut self) -> Result<(), DeviceError> {
        self.begin()?;
        self.queues.values().try_for_each(|queue| self.set_up(queue))?;
        self.go_live()
    }
}

/// Up to where a device that was reset has completed.
fn used_position(setup: &QueueSetup) -> Result<QueuePosition, DeviceError> {
    /// Offset of the index in the used ring (VIRTIO 1.4, 2.7.8).
    const USED_INDEX: u64 = 2;
    if setup.spec.format == RingFormat::Packed {
        let why = "a packed queue of a vDPA device that can't be suspended can't be stopped";
        return Err(DeviceError::Refused(why.into()));
    }
    let mut index = [0; 2];
    let at = DriverAddress(setup.spec.addresses.device.0 + USED_INDEX);
    setup.memory.current().read(at, &mut index)?;
    Ok(QueuePosition::split(u16::from_le_bytes(index)))
}

impl VirtioDevice for VdpaDevice {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn reach(&self) -> Reach {
        Reach { records_writes: false, max_regions: MAX_ENTRIES, ..Reach::LOCAL }
    }

    fn sharing(&self) -> Sharing {
        Sharing::All
    }

    fn read_config(&mut self, offset: u32, into: &mut [u8]) {
        into.fill(0);
        let rest = self.identity.config_len.saturating_sub(offset) as usize;
        let len = into.len().min(rest);
        if len > 0
            && let Err(error) = self.node.read_config(offset, &mut into[..len])
        {
            tracing::warn!("reading the config of {}: {error}", self.path.display());
        }
    }

    fn write_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), DeviceError> {
        let written = self.node.write_config(offset, bytes);
        written.map_err(|_| DeviceError::BadConfigWrite(offset))
    }

    fn set_memory(&mut self, memory: &Arc<AddressSpace>) -> Result<(), DeviceError> {
        self.memory = Some(Arc::clone(memory));
        self.memory_changed()
    }

    fn memory_changed(&mut self) -> Result<(), DeviceError> {
        // Before the features are accepted the device may change its mind about addresses.
        if self.accepted.is_none() { Ok(()) } else { self.share_memory() }
    }

    fn accept_features(&mut self, features: Features) -> Result<(), DeviceError> {
        if !self.identity.features.has(features) {
            return Err(DeviceError::BadFeatures(features - self.identity.features));
        }
        self.accepted = Some(features);
        self.begin()
    }

    fn start_queue(&mut self, setup: QueueSetup) -> Result<(), DeviceError> {
        let index = setup.index;
        let known = usize::from(index) < self.identity.queue_sizes.len();
        if !known || self.queues.contains_key(&index) {
            return Err(DeviceError::NoSuchQueue(index));
        }
        setup.spec.check()?;
        let late = self.live;
        if late && !self.node.abilities().enables_late() {
            self.halt()?;
        }
        self.queues.insert(index, setup);
        let result = if self.ready && !self.live {
            self.restart()
        } else {
            let set_up = self.set_up(&self.queues[&index]);
            if late && let Some(kick) = &self.queues[&index].kick {
                kick.signal();
            }
            set_up
        };
        if result.is_err() {
            self.queues.remove(&index);
        }
        result
    }

    fn stop_queue(&mut self, index: u16) -> Result<QueuePosition, DeviceError> {
        if !self.queues.contains_key(&index) {
            return Err(DeviceError::NoSuchQueue(index));
        }
        let halted = self.halt();
        let setup = self.queues.remove(&index).ok_or(DeviceError::NoSuchQueue(index))?;
        halted?;
        Ok(setup.spec.start_at)
    }

    fn enable_queue(&mut self, index: u16, enabled: bool) -> Result<(), DeviceError> {
        if !self.queues.contains_key(&index) {
            return Err(DeviceError::NoSuchQueue(index));
        }
        let result = self.node.enable_queue(index.into(), enabled);
        result.map_err(self.system("enabling a queue of"))
    }

    fn notifier_changed(&mut self, index: u16) {
        let Some(setup) = self.queues.get(&index) else { return };
        if let Err(error) = self.node.set_interrupt(index.into(), setup.call.event().as_deref()) {
            tracing::debug!("moving the interrupt of queue {index}: {error}");
        }
    }

    fn set_status(&mut self, status: Status) -> Result<(), DeviceError> {
        self.ready = status.has(Status::DRIVER_OK);
        if self.ready && !self.live && self.accepted.is_some() { self.go_live() } else { Ok(()) }
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        self.live = false;
        self.ready = false;
        self.accepted = None;
        self.queues.clear();
        self.memory = None;
        self.write_status(Status::RESET)?;
        self.share_memory()
    }

    fn control_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.changed.as_fd())
    }

    fn control_ready(&mut self) -> Vec<DeviceEvent> {
        if !self.changed.drain() {
            return Vec::new();
        }
        let status = self.node.status().map_or(Status::RESET, Status);
        if status.has(Status::NEEDS_RESET) {
            return vec![DeviceEvent::NeedsReset(format!("{} says so", self.path.display()))];
        }
        vec![DeviceEvent::ConfigChanged]
    }
}
