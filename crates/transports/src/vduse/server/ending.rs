//! The end: a driver that waits for requests nobody answers is not left waiting.

use std::time::{Duration, Instant};

use virtio::{DeviceError, Features, Status};

use super::{END_CHECK, Phase, Server};
use crate::vduse::memory;
use crate::vduse::refuse::{self, Refuser, Remains};
use crate::vduse::state::State;

/// How often requests are looked for that come after the first ones were failed.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

impl Server {
    /// How long to wait for something to happen; `None` is for ever.
    pub(super) fn longest_wait(&self) -> Option<Duration> {
        match self.refuser {
            Some(_) => Some(LOOK_AGAIN),
            None => self.is_ending().then_some(END_CHECK),
        }
    }

    /// Fails what waits, if the driver has been waited for long enough since `ending` began.
    pub(super) fn refuse_if_due(&mut self, ending: Instant) {
        // A driver that is still finding its disk is not taken away before it has.
        let due = matches!(self.phase, Phase::Attaching | Phase::Detaching)
            && self.status.has(Status::DRIVER_OK)
            && ending.elapsed() >= self.patience
            && refuse::waits_for_requests(self.device.identity().device);
        if !due {
            return;
        }
        let failed = self.refuse();
        if let Err(error) = failed {
            // The next look is no better.
            self.patience = Duration::MAX;
            tracing::warn!("failing what waits on {}: {error}", self.name);
        }
    }

    fn refuse(&mut self) -> Result<(), DeviceError> {
        let mut refuser = match self.refuser.take() {
            Some(refuser) => refuser,
            None => self.take_over()?,
        };
        let failed = refuser.refuse(&self.node)?;
        if failed > 0 {
            let (name, waited) = (&self.name, self.patience.as_secs());
            tracing::warn!("{failed} requests to {name} fail: nobody answered within {waited} s");
        }
        self.refuser = Some(refuser);
        Ok(())
    }

    fn take_over(&mut self) -> Result<Refuser, DeviceError> {
        self.stop_waiting();
        // From here on nobody of ours works on the rings. A daemon that hangs is given its time,
        // and is cut off.
        self.queues.stop(&self.node, &self.epoll, &mut *self.device);
        let attempt = format!("asking for the features of {}", self.name);
        let features = self.node.features().map_err(DeviceError::system(attempt))?;
        Refuser::take_over(Remains {
            node: &self.node,
            device: self.device.identity().device,
            queues: self.queues.count(),
            features: Features(features),
            memory: memory::read(&self.node, &self.pool)?,
            in_flight: self.state.as_mut().map(State::in_flight).transpose()?,
        })
    }
}
