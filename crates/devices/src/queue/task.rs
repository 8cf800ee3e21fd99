use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sys::EventFd;
use virtio::{DeviceEvent, EventSink, Notifier, QueueSetup};
use virtqueue::{QueueError, QueuePosition};
use worker::{Progress, Task};

use super::access::QueueAccess;

/// How often a queue without a doorbell is looked at. A driver that polls accepts a wait of this
/// order; twice as often would cost a measurable part of a processor.
const POLL_INTERVAL: Duration = Duration::from_micros(200);

/// Why a queue can't go on: the driver broke a rule.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// Of the ring.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// Of the device type.
    #[error("{0}")]
    Request(&'static str),
}

impl Fault {
    /// What is read from the driver's memory now nobody wrote.
    pub(crate) const CUT: Self =
        Self::Request("the file behind the driver's memory was cut short while it was used");
}

/// What a device does with the chains of one queue.
pub(crate) trait Serve: Send + 'static {
    /// Does up to `budget` requests' worth of work without waiting; returns whether it did
    /// anything.
    fn poll(&mut self, queue: &mut QueueAccess, budget: u32) -> Result<bool, Fault>;

    /// Requests' worth of work after which the driver is shown what is done, even if there is more
    /// to do at once.
    fn part(&self) -> u32 {
        u32::MAX
    }

    /// Requests' worth of work that the last poll has done, if it may be more than its budget.
    fn spent(&self) -> u32 {
        0
    }

    /// Waits for the requests in flight and gives them back.
    fn settle(&mut self, queue: &mut QueueAccess) {
        let _ = queue;
    }

    /// The descriptors, beside the doorbell, whose readiness means work.
    fn wake_on(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    /// The control side has changed something that concerns the queues.
    fn refresh(&mut self) {}

    /// About to sleep; `available` if the driver has something for us. Returns whether to poll
    /// again instead.
    fn arm(&mut self, available: bool) -> bool {
        available
    }

    /// Awake again.
    fn disarm(&mut self) {}

    /// Whether requests are with the kernel.
    fn is_pending(&self) -> bool {
        false
    }

    /// When to poll again without any notification.
    fn deadline(&self) -> Option<Instant> {
        None
    }
}

/// A queue that runs: rings, notifications and faults here, the meaning of a request in `S`.
pub(crate) struct QueueTask<S> {
    index: u16,
    access: QueueAccess,
    serve: S,
    kick: Option<Arc<EventFd>>,
    call: Notifier,
    events: EventSink,
    /// Without a doorbell: when to look again.
    poll_at: Option<Instant>,
    broken: bool,
}

impl<S: Serve> QueueTask<S> {
    /// The queue that `setup` describes and `access` was made from.
    pub(super) fn new(setup: QueueSetup, access: QueueAccess, serve: S, events: EventSink) -> Self {
        let QueueSetup { index, kick, call, .. } = setup;
        Self { index, access, serve, kick, call, events, poll_at: None, broken: false }
    }

    /// Suspends or resumes the queue; nothing of a suspended one is in flight.
    pub(super) fn enable(&mut self, enabled: bool) {
        if !enabled {
            self.settle();
        }
        self.access.enable(enabled);
    }

    /// Waits for the requests in flight and shows the driver their results; nothing is in flight
    /// afterwards.
    pub(super) fn settle(&mut self) {
        self.serve.settle(&mut self.access);
        if !self.broken {
            self.access.publish(&self.call);
        }
    }

    /// Passes on that the control side has changed something.
    pub(super) fn refresh(&mut self) {
        self.serve.refresh();
    }

    /// Ends the queue; returns where it stands.
    pub(super) fn finish(mut self) -> (QueuePosition, S) {
        self.settle();
        (self.access.finish(), self.serve)
    }

    fn run(&mut self, budget: u32) -> Result<bool, Fault> {
        if !self.access.enter()? {
            return Ok(false);
        }
        let (mut left, mut worked) = (budget, false);
        // Bounded by the budget, of which every round takes a part.
        while left > 0 {
            let part = left.min(self.serve.part());
            let result = self.serve.poll(&mut self.access, part);
            if self.access.is_cut() {
                // Also the reason of whatever else is wrong with a ring that has become zeros.
                return Err(Fault::CUT);
            }
            let more = result?;
            self.access.publish(&self.call);
            worked |= more;
            if !more {
                break;
            }
            left = left.saturating_sub(self.serve.spent().max(part));
        }
        Ok(worked)
    }

    fn fail(&mut self, fault: &Fault) -> Progress {
        tracing::warn!(queue = self.index, "the driver broke a rule: {fault}; the queue stops");
        let reason = fault.to_string();
        self.events.send(DeviceEvent::QueueBroken { index: self.index, reason });
        self.broken = true;
        Progress::Finished
    }
}

impl<S: Serve> Task for QueueTask<S> {
    fn bells(&self) -> Vec<Arc<EventFd>> {
        self.kick.iter().map(Arc::clone).collect()
    }

    fn wake_on(&self) -> Vec<BorrowedFd<'_>> {
        self.serve.wake_on()
    }

    fn poll(&mut self, budget: u32) -> Progress {
        if self.broken {
            return Progress::Finished;
        }
        let result = self.run(budget);
        self.access.leave();
        match result {
            Ok(true) => Progress::Worked,
            Ok(false) => Progress::Idle,
            Err(fault) => self.fail(&fault),
        }
    }

    fn arm(&mut self) -> bool {
        if self.access.is_cut() {
            self.fail(&Fault::CUT);
            // Once more, so that the worker hears of it.
            return true;
        }
        if self.kick.is_none() {
            self.poll_at = Some(Instant::now() + POLL_INTERVAL);
        }
        let available = self.access.arm();
        self.serve.arm(available)
    }

    fn disarm(&mut self) {
        // The doorbell is not drained: it is waited for edge by edge.
        self.access.disarm();
        self.serve.disarm();
    }

    fn is_pending(&self) -> bool {
        self.serve.is_pending()
    }

    fn deadline(&self) -> Option<Instant> {
        match (self.poll_at, self.serve.deadline()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }
}
