use virtio::DeviceError;
use virtqueue::{IndirectArea, QueueError, QueuePosition, QueueSpec};
use worker::{Task, TaskHandle, Workers};

use crate::{Mover, QueueBridge};

/// What the control thread does with a running queue, whatever moves its bytes.
pub(crate) trait Control: Send {
    /// Makes the queue look at everything again.
    fn wake(&self);

    /// The device went away, or came back.
    fn set_gone(&self, gone: bool);

    /// As [`QueueBridge::restart`].
    fn restart(&self, spec: QueueSpec, tables: Option<IndirectArea>) -> Result<bool, QueueError>;

    /// As [`QueueBridge::finish`]; `None` if the queue's thread died.
    fn finish(self: Box<Self>) -> Option<QueuePosition>;
}

/// A task that carries a queue's chains, whatever moves their bytes.
pub trait Carrier: Task {
    /// The device went away, or came back.
    fn set_gone(&mut self, gone: bool);

    /// As [`QueueBridge::restart`].
    ///
    /// # Errors
    /// The rings can't be made.
    fn restart(
        &mut self,
        spec: &QueueSpec,
        tables: Option<IndirectArea>,
    ) -> Result<bool, QueueError>;

    /// As [`QueueBridge::finish`].
    fn finish(self) -> QueuePosition;
}

impl<M: Mover> Carrier for QueueBridge<M> {
    fn set_gone(&mut self, gone: bool) {
        Self::set_gone(self, gone);
    }

    fn restart(
        &mut self,
        spec: &QueueSpec,
        tables: Option<IndirectArea>,
    ) -> Result<bool, QueueError> {
        Self::restart(self, spec, tables)
    }

    fn finish(self) -> QueuePosition {
        Self::finish(self)
    }
}

impl<T: Carrier> Control for TaskHandle<T> {
    fn wake(&self) {
        Self::wake(self);
    }

    fn set_gone(&self, gone: bool) {
        self.post(move |task| task.set_gone(gone));
    }

    fn restart(&self, spec: QueueSpec, tables: Option<IndirectArea>) -> Result<bool, QueueError> {
        // A thread that died has no queue to restart.
        self.call(move |task| task.restart(&spec, tables)).unwrap_or(Ok(false))
    }

    fn finish(self: Box<Self>) -> Option<QueuePosition> {
        (*self).stop().map(Carrier::finish)
    }
}

/// Gives a queue to one of the process's workers.
pub(crate) fn spawn<T: Carrier>(task: T) -> Result<Box<dyn Control>, DeviceError> {
    let workers = Workers::shared().map_err(DeviceError::system("starting a worker thread"))?;
    Ok(Box::new(workers.spawn(task)))
}
