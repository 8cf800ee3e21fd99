use virtqueue::QueueError;

use crate::MoverError;

/// Why a queue's task gives up.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The driver broke a rule: its queue is broken, the others go on.
    Driver(MoverError),
    /// The device broke a rule: it needs a reset.
    Device(QueueError),
}

impl From<MoverError> for Fault {
    fn from(error: MoverError) -> Self {
        Self::Driver(error)
    }
}
