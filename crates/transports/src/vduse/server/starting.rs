//! The moment a driver is ready: what is written down for the next process, in which memory the
//! driver's data goes, what the device gets.

use std::sync::Arc;

use mem::AddressSpace;
use sys::{EventFd, Interest};
use virtio::{DeviceError, Features, Sharing};

use super::{FIRST_KICK, Server};
use crate::vduse::memory::{self, Pool};
use crate::vduse::queues::Shared;
use crate::vduse::state::{Record, State};
use crate::vduse::sysfs;

impl Server {
    /// Writes down what the next process must know.
    pub(super) fn note(&mut self, change: impl FnOnce(&mut Record)) {
        let result = self.state.as_mut().map_or(Ok(()), |state| state.change(change));
        self.keep_state_if(result);
    }

    pub(super) fn begin_record(&mut self) {
        let result = self.state.as_mut().map_or(Ok(()), State::begin_record);
        self.keep_state_if(result);
    }

    /// A state that is not true is worse than none: the device works, and can't be resumed.
    fn keep_state_if(&mut self, written: std::io::Result<()>) {
        let Err(error) = written else { return };
        let Some(state) = self.state.take() else { return };
        let (name, path) = (&self.name, state.path());
        tracing::warn!("{name} can't be resumed from now on: writing {}: {error}", path.display());
        if let Err(error) = State::remove(path) {
            tracing::warn!("removing {}, which says what is not true: {error}", path.display());
        }
    }

    /// Settles in which memory the driver's data goes; false if that has to wait for its first
    /// request.
    fn choose_pool(&mut self) -> Result<bool, DeviceError> {
        if matches!(self.pool, Pool::Registered(_)) {
            // It stays registered from one driver to the next.
            return Ok(true);
        }
        self.pool = Pool::Kernels;
        let Some(bytes) = sysfs::bounce_bytes(&self.name) else { return Ok(true) };
        if self.device.sharing() != Sharing::Buffers || !memory::is_kernels(&self.node)? {
            return Ok(true);
        }
        match Pool::register(&self.node, bytes) {
            Ok(Some(pool)) => self.pool = pool,
            Ok(None) if self.first_kick.is_none() => return Ok(false),
            Ok(None) => {
                tracing::warn!("the kernel takes no pool for {} from us", self.name);
                self.pool = Pool::Hidden;
            }
            Err(error) => {
                tracing::warn!("{} is not shared with its daemon: {error}", self.name);
                self.pool = Pool::Hidden;
            }
        }
        Ok(true)
    }

    fn wait_for_the_driver(&mut self) -> std::io::Result<()> {
        let event = EventFd::new()?;
        self.epoll.add(&event, FIRST_KICK, Interest::Read)?;
        self.queues.listen(&self.node, Some(&event))?;
        self.first_kick = Some(event);
        Ok(())
    }

    pub(super) fn stop_waiting(&mut self) {
        if let Some(event) = self.first_kick.take() {
            self.epoll.remove(&event);
            // A device that is broken in the kernel's eyes notifies nobody anyhow.
            let _ = self.queues.listen(&self.node, None);
        }
    }

    pub(super) fn hear_the_driver(&mut self) {
        let heard = self.first_kick.as_ref().is_some_and(EventFd::drain);
        if heard && let Err(error) = self.start(false) {
            self.fail(error.into());
        }
    }

    /// Gives the device the driver's memory and queues.
    pub(super) fn start(&mut self, resumed: bool) -> Result<(), DeviceError> {
        if !self.choose_pool()? {
            let attempt = format!("waiting for the driver of {}", self.name);
            return self.wait_for_the_driver().map_err(DeviceError::system(attempt));
        }
        self.stop_waiting();
        let attempt = format!("asking for the features of {}", self.name);
        let accepted = Features(self.node.features().map_err(DeviceError::system(attempt))?);
        let features = accepted & self.device.identity().features;
        let space = Arc::new(AddressSpace::new(memory::read(&self.node, &self.pool)?));
        let in_flight = self.state.as_mut().map(State::in_flight).transpose()?;
        let shared = Shared { features, memory: Arc::clone(&space), in_flight, resumed };
        self.queues.learn(&self.node, &self.epoll, &shared)?;
        self.memory = Some(Arc::clone(&space));
        let prepared =
            self.device.set_memory(&space).and_then(|()| self.device.accept_features(features));
        match prepared {
            // It is told when it is back, and then gets the queues.
            Err(DeviceError::Gone(why)) => {
                tracing::warn!("{} waits for its device: {why}", self.name);
                return Ok(());
            }
            result => result?,
        }
        self.queues.start(&self.node, &mut *self.device)?;
        match self.device.set_status(self.status) {
            Err(DeviceError::Gone(_)) => Ok(()),
            result => result,
        }
    }

    /// The addresses have changed their meaning.
    pub(super) fn update_memory(&mut self) -> bool {
        let Some(space) = &self.memory else { return true };
        let followed = memory::read(&self.node, &self.pool).and_then(|map| {
            space.replace(map);
            self.device.memory_changed()
        });
        match followed {
            Ok(()) | Err(DeviceError::Gone(_)) => true,
            Err(error) => {
                tracing::warn!("{} can't follow the driver's memory: {error}", self.name);
                false
            }
        }
    }
}
