use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use virtqueue::{IndirectArea, QueueError, QueuePosition, QueueSpec};
use worker::{Progress, Task};

use super::chains::Fetching;
use super::queue::{Blocked, Look, RemoteQueue, link};
use crate::control::Carrier;
use crate::{MoverError, Request};

/// When to try again if the link is busy with others and no answer of ours will wake us, or to look
/// again at a driver that never notifies us.
const RETRY: Duration = Duration::from_millis(1);

/// How long a queue that ends waits for a link that takes nothing: a virtual machine waits too.
const SEND_LIMIT: Duration = Duration::from_millis(100);

/// As for other queues, see `queue_bridge`.
const RECHECK: Duration = Duration::from_millis(100);

impl Task for RemoteQueue {
    fn wake_on(&self) -> Vec<BorrowedFd<'_>> {
        let kick = self.ends.kick.as_ref().map(|kick| kick.as_fd());
        let others = [self.ends.device_call.as_fd(), self.transfers.ready_fd()];
        kick.into_iter().chain(others).collect()
    }

    fn poll(&mut self, budget: u32) -> Progress {
        if self.over {
            return Progress::Finished;
        }
        self.memory.enter();
        let result = self.work(budget);
        // Part of the driver's memory may be mapped.
        let is_cut = self.memory.is_cut();
        let result = if is_cut { Err(MoverError::Cut.into()) } else { result };
        self.memory.leave();
        match result {
            Ok(0) => Progress::Idle,
            Ok(_) => {
                self.active = true;
                Progress::Worked
            }
            Err(fault) => {
                self.over = true;
                self.ends.fail(&fault);
                Progress::Finished
            }
        }
    }

    fn arm(&mut self) -> bool {
        // An answer, or a word of the driver, that came while we were busy wakes nobody.
        let mut more = self.hear();
        match self.receive() {
            Ok(count) => more |= count > 0,
            Err(fault) => {
                self.over = true;
                self.ends.fail(&fault);
                return true;
            }
        }
        more |= self.device.arm_interrupt();
        if !more && self.active {
            self.recheck = Some(Instant::now() + RECHECK);
        }
        let unheard = self.ends.kick.is_none() && !more;
        let untranslated = self.look == Look::Entries(0);
        let waits = unheard || untranslated || self.transfers.is_held_up();
        self.retry = waits.then(|| Instant::now() + RETRY);
        self.active &= more;
        more
    }

    fn disarm(&mut self) {
        self.hear();
        self.device.disarm_interrupt();
        let now = Instant::now();
        if self.retry.take().is_some_and(|at| at <= now) && self.ends.kick.is_none() {
            self.look_again.get_or_insert(false);
        }
        // Woken by something else, it stays due: only what was lost may be what is missing.
        if self.recheck.is_some_and(|at| at <= now) {
            self.recheck = None;
            self.look_again.get_or_insert(false);
            if self.device.in_flight() > 0 && !self.gone {
                self.ends.device_kick.signal();
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let rate = match self.blocked {
            Some(Blocked::Rate(at)) => Some(at),
            _ => None,
        };
        [rate, self.recheck, self.retry].into_iter().flatten().min()
    }
}

impl Carrier for RemoteQueue {
    fn set_gone(&mut self, gone: bool) {
        self.gone = gone;
        if !gone && !self.over {
            self.ends.device_kick.signal();
        }
    }

    fn restart(
        &mut self,
        spec: &QueueSpec,
        tables: Option<IndirectArea>,
    ) -> Result<bool, QueueError> {
        if self.over {
            return Ok(false);
        }
        self.sweep();
        self.device.restart(&self.device_memory, spec, tables)?;
        self.ends.counters.restarts.add(1);
        Ok(!self.over)
    }

    /// As for other queues. The control thread, which this runs on, may be the one that reads the
    /// answers, so none is waited for: what is to be written is sent, in order.
    fn finish(mut self) -> QueuePosition {
        if !self.over {
            self.sweep();
        }
        match self.transfers.send_last(SEND_LIMIT) {
            Ok(true) | Err(_) => {}
            Ok(false) => {
                let (name, queue) = (&self.ends.name, self.ends.index);
                tracing::warn!(%name, queue, "the driver's link takes nothing; answers are lost");
            }
        }
        let mut lost = 0;
        while let Some(Fetching { id, .. }) = self.chains.pop_last() {
            if self.over { id.abandon() } else { self.driver.untake(id) }
        }
        let mut left = Vec::new();
        self.device.drain(|request| left.push(request));
        let mut next = self.chains.next_ordinal();
        for Request { id, ordinal, .. } in left.into_iter().rev() {
            if ordinal.wrapping_add(1) == next && !self.over {
                self.driver.untake(id);
                next = ordinal;
            } else {
                id.abandon();
                lost += 1;
            }
        }
        if !self.over {
            self.ends.warn_of_lost(lost);
        }
        self.driver.position()
    }
}

impl RemoteQueue {
    /// Takes back what the device has completed, and sends it.
    fn sweep(&mut self) {
        self.memory.enter();
        let result = self.collect(u32::MAX).and_then(|_| {
            // Also what waited for the answer to the batch before.
            self.tell_now();
            self.transfers.send().map_err(link)
        });
        self.memory.leave();
        if let Err(fault) = result {
            self.over = true;
            self.ends.fail(&fault);
        }
    }
}

impl Drop for RemoteQueue {
    fn drop(&mut self) {
        self.device.drain(|request| request.id.abandon());
        while let Some(Fetching { id, .. }) = self.chains.pop_last() {
            id.abandon();
        }
    }
}
