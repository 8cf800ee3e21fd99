use std::os::fd::BorrowedFd;
use std::sync::Arc;

use mem::{AddressSpace, MemoryError};
use virtqueue::{QueueError, QueuePosition};

use crate::{DeviceEvent, DeviceType, Features, NetworkControl, QueueSetup, Status};

/// What a device is, before a driver has touched it.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its type.
    pub device: DeviceType,
    /// The features it offers.
    pub features: Features,
    /// The largest size of each queue; one entry per queue.
    pub queue_sizes: Vec<u16>,
    /// Length of the device config in bytes.
    pub config_len: u32,
}

/// What a device can reach by itself, so that a bridge knows how much it may get out of the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// It can map the driver's memory: buffers need no copy.
    pub maps_memory: bool,
    /// It works on the driver's rings itself, given their addresses and eventfds; else somebody
    /// must relay.
    pub runs_rings: bool,
    /// Most memory regions it takes; a driver with more needs a copy.
    pub max_regions: usize,
    /// It records what it writes in the address space's dirty log, so that its driver can be
    /// migrated.
    pub records_writes: bool,
    /// It works on rings and buffers whose addresses come and go behind an IOMMU.
    pub follows_iommu: bool,
}

impl Reach {
    /// A device in this process, which reaches all that we reach.
    pub const LOCAL: Self = Self {
        maps_memory: true,
        runs_rings: true,
        max_regions: mem::MAX_REGIONS,
        records_writes: true,
        follows_iommu: true,
    };
}

/// What of a driver's memory another process is given to work in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// All: it works on the driver's rings.
    All,
    /// The buffers; the rings are worked on in this process.
    Buffers,
    /// Nothing.
    Nothing,
}

/// Who starts the queues again when a device that went away ([`DeviceEvent::Gone`]) is back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recovery {
    /// The device itself, on the same rings where they had stopped: the driver's own rings, which
    /// nobody can make afresh.
    #[default]
    InPlace,
    /// Whoever called [`VirtioDevice::set_recovery`]: the rings are its own and it knows what was
    /// in flight.
    ByCaller,
}

/// Why a device did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// There is no queue with this number, or not in that state.
    #[error("queue {0} does not exist or is not in the right state")]
    NoSuchQueue(u16),
    /// The driver accepted something that was not offered, or a combination that does not exist.
    #[error("the features {0} were not offered or do not go together")]
    BadFeatures(Features),
    /// The config can't be written there.
    #[error("the device config can't be written at byte {0}")]
    BadConfigWrite(u32),
    /// A ring rule was broken.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// Memory is not as it should be.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The device is away; it may come back.
    #[error("the device is away: {0}")]
    Gone(String),
    /// The device refused or broke its protocol.
    #[error("{0}")]
    Refused(String),
    /// The system failed us.
    #[error("{attempt}: {source}")]
    System {
        /// What was attempted, on what.
        attempt: String,
        /// What went wrong.
        source: std::io::Error,
    },
}

impl DeviceError {
    /// For `map_err`: the system failed while we attempted this.
    pub fn system(attempt: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::System { attempt: attempt.into(), source }
    }
}

/// The control plane of a virtio device.
///
/// Called by one thread, the one that serves the driver end. The order of calls is the
/// specification's: [`set_memory`], then [`accept_features`], then [`start_queue`] for each queue
/// in use, then [`set_status`] with DRIVER_OK; [`stop_queue`] and [`reset`] at any time. No call
/// may take long (a driver end blocks its virtual machine meanwhile): 100 ms is much.
///
/// [`set_memory`]: VirtioDevice::set_memory
/// [`accept_features`]: VirtioDevice::accept_features
/// [`start_queue`]: VirtioDevice::start_queue
/// [`set_status`]: VirtioDevice::set_status
/// [`stop_queue`]: VirtioDevice::stop_queue
/// [`reset`]: VirtioDevice::reset
pub trait VirtioDevice: Send {
    /// What the device is. May change until [`VirtioDevice::accept_features`] is called (a bridge
    /// learns from [`VirtioDevice::set_memory`] what it must do), so ask again rather than keep it.
    fn identity(&self) -> &Identity;

    /// What the device can reach by itself.
    fn reach(&self) -> Reach;

    /// What of the driver's memory goes to another process as things stand. May change with
    /// [`VirtioDevice::set_memory`] if the memory can't be had so.
    fn sharing(&self) -> Sharing {
        Sharing::Nothing
    }

    /// Reads the device config from byte `offset` on; bytes beyond its end read as 0.
    fn read_config(&mut self, offset: u32, into: &mut [u8]);

    /// Writes the device config.
    ///
    /// # Errors
    /// [`DeviceError::BadConfigWrite`] where it is read-only or ends.
    fn write_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), DeviceError>;

    /// The driver's memory. Called before anything that needs it, and again only with another
    /// address space.
    ///
    /// # Errors
    /// The device can't work with such memory.
    fn set_memory(&mut self, memory: &Arc<AddressSpace>) -> Result<(), DeviceError>;

    /// The regions of the driver's memory have changed. Memory that was removed is not touched any
    /// more when this returns.
    ///
    /// # Errors
    /// The device can't work with the new regions.
    fn memory_changed(&mut self) -> Result<(), DeviceError>;

    /// The driver has chosen these features.
    ///
    /// # Errors
    /// [`DeviceError::BadFeatures`]; the driver then finds FEATURES_OK clear.
    fn accept_features(&mut self, features: Features) -> Result<(), DeviceError>;

    /// Starts a queue; it is enabled.
    ///
    /// # Errors
    /// The ring is not acceptable, or the device is away.
    fn start_queue(&mut self, setup: QueueSetup) -> Result<(), DeviceError>;

    /// Stops a queue; when this returns nothing of it is touched any more. Returns where to start
    /// it again: with the first request that was not completed.
    ///
    /// # Errors
    /// [`DeviceError::NoSuchQueue`] if it does not run.
    fn stop_queue(&mut self, index: u16) -> Result<QueuePosition, DeviceError>;

    /// Suspends or resumes a started queue without stopping it (vhost-user's enable; network queue
    /// pairs). When this returns nothing of the ring of a suspended queue is touched any more.
    ///
    /// # Errors
    /// [`DeviceError::NoSuchQueue`] if it does not run.
    fn enable_queue(&mut self, index: u16, enabled: bool) -> Result<(), DeviceError> {
        let _ = (index, enabled);
        Ok(())
    }

    /// The event behind a running queue's [`QueueSetup::call`] has changed; of interest only to who
    /// has handed it on.
    fn notifier_changed(&mut self, index: u16) {
        let _ = index;
    }

    /// Settles who starts the queues again when the device went away and came back; of interest to
    /// devices that can.
    ///
    /// With [`Recovery::ByCaller`], every queue counts as stopped from [`DeviceEvent::Gone`] on:
    /// the device touches no ring any more and [`VirtioDevice::stop_queue`] fails with
    /// [`DeviceError::NoSuchQueue`], which the caller takes for done. At [`DeviceEvent::Back`]
    /// features and memory are in force again, and the caller calls [`VirtioDevice::start_queue`]
    /// for each queue with a fresh ring in which it offers again what was in flight. With
    /// [`Recovery::InPlace`] the device has started them itself when it reports
    /// [`DeviceEvent::Back`].
    fn set_recovery(&mut self, recovery: Recovery) {
        let _ = recovery;
    }

    /// Whether the device keeps the record that a [`QueueSetup::in_flight`] holds, and goes on from
    /// one that another process has left.
    fn records_in_flight(&self) -> bool {
        false
    }

    /// The driver's side keeps the record and relies on it: if the device writes none, somebody
    /// before it must work on the driver's rings and write it. Called before the driver is told
    /// what the device is.
    fn want_record(&mut self) {}

    /// What is particular to a network device, if this is one and can be told.
    fn network(&mut self) -> Option<&mut dyn NetworkControl> {
        None
    }

    /// The driver has written the device status; of interest to devices that live elsewhere.
    ///
    /// # Errors
    /// The device refuses to go there.
    fn set_status(&mut self, status: Status) -> Result<(), DeviceError> {
        let _ = status;
        Ok(())
    }

    /// Stops everything and forgets the driver. Afterwards the device is as after its creation,
    /// memory included.
    ///
    /// # Errors
    /// The device could not be brought back to a defined state; it must not be used further.
    fn reset(&mut self) -> Result<(), DeviceError>;

    /// Becomes readable when [`VirtioDevice::control_ready`] has something to do; `None` if it
    /// never does.
    fn control_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Does what is due on the control side and returns what the driver end should know.
    fn control_ready(&mut self) -> Vec<DeviceEvent>;
}
