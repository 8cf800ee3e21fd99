use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use mem::AddressSpace;
use sys::{Epoll, Interest};
use virtio::{
    DeviceError, DeviceEvent, EventSink, EventSource, Features, Identity, NetworkControl,
    QueueSetup, Reach, VirtioDevice,
};
use virtqueue::QueuePosition;
use worker::{TaskHandle, Workers};

use super::access::QueueAccess;
use super::task::{QueueTask, Serve};

/// The ring features of every built-in device. IN_ORDER is not among them: a device that finishes
/// requests as they come would have to hold results back.
pub(crate) const RINGS: Features = Features(
    Features::RINGS.0
        | Features::ANY_LAYOUT.0
        | Features::ACCESS_PLATFORM.0
        | Features::ORDER_PLATFORM.0
        | Features::RING_RESET.0,
);

/// What one type of device is; everything that is the same for all is in [`BuiltIn`].
pub(crate) trait Model: Send + 'static {
    /// What its queues do.
    type Queue: Serve;

    /// Type, features, queues.
    fn identity(&self) -> &Identity;

    /// Reads the config; see [`VirtioDevice::read_config`].
    fn read_config(&self, offset: u32, into: &mut [u8]);

    /// Writes the config; see [`VirtioDevice::write_config`].
    fn write_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), DeviceError> {
        let _ = bytes;
        Err(DeviceError::BadConfigWrite(offset))
    }

    /// The driver has chosen `features`, all of them offered.
    fn accept(&mut self, features: Features) -> Result<(), DeviceError> {
        let _ = features;
        Ok(())
    }

    /// Makes the data path of queue `index`, which is about to start.
    fn make_queue(&mut self, index: u16) -> Result<Self::Queue, DeviceError>;

    /// Takes the data path of queue `index` back, which has stopped.
    fn retire_queue(&mut self, index: u16, queue: Self::Queue) {
        let _ = (index, queue);
    }

    /// A queue that runs was suspended or resumed.
    fn queue_enabled(&mut self, index: u16, enabled: bool) {
        let _ = (index, enabled);
    }

    /// Forgets the driver. The queues have stopped.
    fn reset(&mut self) {}

    /// Whether the following two are done.
    fn is_network(&self) -> bool {
        false
    }

    /// The station with this address is here now; the queues are refreshed then.
    fn announce(&mut self, mac: [u8; 6]) {
        let _ = mac;
    }

    /// The largest packet that the driver knows of.
    fn set_mtu(&mut self, mtu: u16) {
        let _ = mtu;
    }

    /// Descriptors whose readiness means work for [`Model::control_ready`]. Fixed for the life of
    /// the device.
    fn control_fds(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    /// Does what is due on the control side; returns whether the queues must hear of it, by
    /// [`Serve::refresh`].
    fn control_ready(&mut self, events: &EventSink) -> bool {
        let _ = events;
        false
    }
}

/// A built-in device: a [`Model`] with the control plane around it.
pub(crate) struct BuiltIn<M: Model> {
    model: M,
    workers: Arc<Workers>,
    /// Boxes, because a map has room for several values from the start.
    queues: BTreeMap<u16, Box<TaskHandle<QueueTask<M::Queue>>>>,
    sink: EventSink,
    source: EventSource,
    /// The event source and the model's own descriptors as one.
    control: Epoll,
}

impl<M: Model> BuiltIn<M> {
    /// The device, with its queues on the process's workers.
    pub(crate) fn new(model: M) -> Result<Self, DeviceError> {
        let failed = || DeviceError::system("starting the workers of a device");
        let workers = Workers::shared().map_err(failed())?;
        let (sink, source) = EventSource::new().map_err(failed())?;
        let control = Epoll::new().map_err(failed())?;
        control.add(&source, 0, Interest::Read).map_err(failed())?;
        for fd in model.control_fds() {
            control.add(fd, 0, Interest::Read).map_err(failed())?;
        }
        Ok(Self { model, workers, queues: BTreeMap::new(), sink, source, control })
    }

    fn stop(&mut self, index: u16) -> Result<QueuePosition, DeviceError> {
        let handle = self.queues.remove(&index).ok_or(DeviceError::NoSuchQueue(index))?;
        let task = handle.stop();
        let died = || DeviceError::Refused(format!("the worker of queue {index} died"));
        let (position, queue) = task.ok_or_else(died)?.finish();
        self.model.retire_queue(index, queue);
        Ok(position)
    }

    /// Has the queues look at what the control side has changed.
    fn refresh(&self) {
        for handle in self.queues.values() {
            handle.post(QueueTask::refresh);
        }
    }

    fn stop_all(&mut self) {
        while let Some(&index) = self.queues.keys().next() {
            if let Err(error) = self.stop(index) {
                tracing::error!(%error, "a queue did not stop in order");
            }
        }
    }
}

impl<M: Model> Drop for BuiltIn<M> {
    fn drop(&mut self) {
        self.stop_all();
    }
}

impl<M: Model> VirtioDevice for BuiltIn<M> {
    fn identity(&self) -> &Identity {
        self.model.identity()
    }

    fn reach(&self) -> Reach {
        Reach::LOCAL
    }

    fn read_config(&mut self, offset: u32, into: &mut [u8]) {
        self.model.read_config(offset, into);
    }

    fn write_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), DeviceError> {
        self.model.write_config(offset, bytes)
    }

    fn records_in_flight(&self) -> bool {
        true
    }

    fn set_memory(&mut self, memory: &Arc<AddressSpace>) -> Result<(), DeviceError> {
        // Each queue brings its own in its setup.
        let _ = memory;
        Ok(())
    }

    fn memory_changed(&mut self) -> Result<(), DeviceError> {
        for handle in self.queues.values() {
            handle.call(QueueTask::settle);
        }
        Ok(())
    }

    fn accept_features(&mut self, features: Features) -> Result<(), DeviceError> {
        let unknown = features - self.model.identity().features;
        let packed = features.has(Features::RING_PACKED) && !features.has(Features::VERSION_1);
        if !unknown.is_empty() || packed {
            return Err(DeviceError::BadFeatures(if packed { features } else { unknown }));
        }
        self.model.accept(features)
    }

    fn start_queue(&mut self, setup: QueueSetup) -> Result<(), DeviceError> {
        let index = setup.index;
        let size = self.model.identity().queue_sizes.get(usize::from(index));
        let size = *size.ok_or(DeviceError::NoSuchQueue(index))?;
        if self.queues.contains_key(&index) {
            return Err(DeviceError::NoSuchQueue(index));
        }
        if setup.spec.size > size {
            let asked = setup.spec.size;
            return Err(DeviceError::Refused(format!(
                "queue {index} of {asked} descriptors: at most {size} are offered"
            )));
        }
        let access = QueueAccess::new(&setup)?;
        let queue = self.model.make_queue(index)?;
        let task = QueueTask::new(setup, access, queue, self.sink.clone());
        self.queues.insert(index, Box::new(self.workers.spawn(task)));
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Result<QueuePosition, DeviceError> {
        self.stop(index)
    }

    fn enable_queue(&mut self, index: u16, enabled: bool) -> Result<(), DeviceError> {
        let handle = self.queues.get(&index).ok_or(DeviceError::NoSuchQueue(index))?;
        handle.call(move |task| task.enable(enabled));
        self.model.queue_enabled(index, enabled);
        Ok(())
    }

    fn network(&mut self) -> Option<&mut dyn NetworkControl> {
        if self.model.is_network() { Some(self) } else { None }
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        self.stop_all();
        self.model.reset();
        Ok(())
    }

    fn control_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.control.as_fd())
    }

    fn control_ready(&mut self) -> Vec<DeviceEvent> {
        if self.model.control_ready(&self.sink) {
            self.refresh();
        }
        self.source.drain()
    }
}

impl<M: Model> NetworkControl for BuiltIn<M> {
    fn can_announce(&self) -> bool {
        true
    }

    fn can_set_mtu(&self) -> bool {
        true
    }

    fn announce(&mut self, mac: [u8; 6]) -> Result<(), DeviceError> {
        self.model.announce(mac);
        self.refresh();
        Ok(())
    }

    fn set_mtu(&mut self, mtu: u16) -> Result<(), DeviceError> {
        self.model.set_mtu(mtu);
        Ok(())
    }
}
