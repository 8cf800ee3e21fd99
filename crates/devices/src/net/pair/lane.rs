use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sys::EventFd;
use virtio::{DeviceEvent, EventSink, Features, Notifier};
use worker::{Progress, Task};

use super::fast::{Fast, Moved};
use crate::net::port::{Sink, Source};
use crate::net::receive::Receive;
use crate::net::transmit::Transmit;
use crate::queue::{Fault, QueueAccess};

/// How long a receiver may take nothing before frames for it are dropped, so that it can't stop the
/// other driver for good.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often queues without a doorbell are looked at.
const POLL_INTERVAL: Duration = Duration::from_micros(200);

/// A queue of one of the two cards.
pub(super) struct Half {
    pub(super) access: QueueAccess,
    pub(super) index: u16,
    pub(super) kick: Option<Arc<EventFd>>,
    pub(super) call: Notifier,
    pub(super) header_len: usize,
    pub(super) mergeable: bool,
    pub(super) features: Features,
    pub(super) events: EventSink,
}

/// One direction of a cable.
pub(super) struct Lane {
    from: Option<Half>,
    to: Option<Half>,
    fast: Fast,
    /// For frames in several buffers, and such that do not fit one. There if both queues are.
    slow: Option<Slow>,
    /// Frames wait for the receiver since this moment.
    waiting_since: Option<Instant>,
    /// The receiver has taken nothing for so long that frames for it are dropped.
    given_up: bool,
    poll_at: Option<Instant>,
}

/// The way through private memory: gathered, checked, and delivered in as many buffers as it takes.
struct Slow {
    gather: Transmit,
    deliver: Receive,
}

/// What a poll found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Moved,
    Nothing,
    /// There are frames and no buffers for them.
    NoRoom,
}

impl Lane {
    pub(super) fn new() -> Self {
        Self {
            from: None,
            to: None,
            fast: Fast::default(),
            slow: None,
            waiting_since: None,
            given_up: false,
            poll_at: None,
        }
    }

    /// Adds a queue; false if there is one already.
    pub(super) fn put_half(&mut self, is_from: bool, half: Half) -> bool {
        let place = if is_from { &mut self.from } else { &mut self.to };
        if place.is_some() {
            return false;
        }
        *place = Some(half);
        if let (Some(from), Some(to)) = (&self.from, &self.to) {
            self.slow = Some(Slow {
                gather: Transmit::new(Sink::Nothing, from.header_len, from.features, None, None),
                deliver: Receive::new(Source::Nothing, to.header_len, to.mergeable, None, None),
            });
        }
        true
    }

    /// Takes a queue out; nothing of it is in flight.
    pub(super) fn take_half(&mut self, is_from: bool) -> Option<Half> {
        self.settle();
        let place = if is_from { &mut self.from } else { &mut self.to };
        place.take()
    }

    /// Suspends or resumes a queue; false if it is not there.
    pub(super) fn enable(&mut self, is_from: bool, enabled: bool) -> bool {
        let place = if is_from { &mut self.from } else { &mut self.to };
        place.as_mut().map(|half| half.access.enable(enabled)).is_some()
    }

    /// Forgets the frame that is delivered in part.
    fn settle(&mut self) {
        if let (Some(mut slow), Some(to)) = (self.slow.take(), &mut self.to) {
            slow.deliver.settle_now(&mut to.access);
        }
        self.waiting_since = None;
        self.given_up = false;
    }

    fn run(&mut self, budget: u32) -> Result<bool, (bool, Fault)> {
        let Some(from) = &mut self.from else { return Ok(false) };
        if !from.access.enter().map_err(|error| (true, error.into()))? {
            return Ok(false);
        }
        let (Some(to), Some(slow)) = (&mut self.to, &mut self.slow) else {
            return drop_frames(from, budget).map_err(|fault| (true, fault));
        };
        if !to.access.enter().map_err(|error| (false, error.into()))? {
            return Ok(false);
        }
        let (mut done, mut step) = (0, Step::Moved);
        while done < budget && step == Step::Moved {
            let stepped = Self::step(from, to, &mut self.fast, slow, budget - done, &mut done);
            for (is_from, half) in [(true, &mut *from), (false, &mut *to)] {
                if half.access.is_cut() {
                    return Err((is_from, Fault::CUT));
                }
            }
            step = stepped?;
        }
        if done > 0 {
            to.access.publish(&to.call);
            from.access.publish(&from.call);
        }
        if step != Step::NoRoom {
            self.waiting_since = None;
            self.given_up &= done == 0;
            return Ok(done > 0);
        }
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        self.given_up |= since.elapsed() >= PATIENCE;
        if self.given_up {
            slow.deliver.settle_now(&mut to.access);
            return drop_frames(from, budget).map_err(|fault| (true, fault));
        }
        Ok(done > 0)
    }

    fn step(
        from: &mut Half,
        to: &mut Half,
        fast: &mut Fast,
        slow: &mut Slow,
        budget: u32,
        done: &mut u32,
    ) -> Result<Step, (bool, Fault)> {
        if !slow.deliver.is_pending() {
            match fast.run(from, to, budget) {
                Moved::Frames(frames) => {
                    *done += frames;
                    return Ok(Step::Moved);
                }
                Moved::NoRoom => return Ok(Step::NoRoom),
                Moved::NothingSimple => {}
            }
            let id = from.access.take().map_err(|error| (true, error.into()))?;
            let Some(id) = id else { return Ok(Step::Nothing) };
            let mut reader = from.access.buffers().reader();
            if let Some(len) = slow.gather.gather(&mut reader) {
                slow.deliver.load(slow.gather.packet(), len);
            }
            from.access.give_back(id, 0);
            *done += 1;
        }
        match slow.deliver.deliver_pending(&mut to.access).map_err(|fault| (false, fault))? {
            true => Ok(Step::Moved),
            false => Ok(Step::NoRoom),
        }
    }

    /// A driver broke a rule: its queue goes, the other stays.
    fn fail(&mut self, is_from: bool, fault: &Fault) {
        let Some(half) = self.take_half(is_from) else { return };
        tracing::warn!(queue = half.index, "the driver broke a rule: {fault}; the queue stops");
        let reason = fault.to_string();
        half.events.send(DeviceEvent::QueueBroken { index: half.index, reason });
    }

    fn halves(&mut self) -> impl Iterator<Item = &mut Half> {
        self.from.iter_mut().chain(self.to.iter_mut())
    }
}

/// Forgets what is transmitted: there is nobody at the other end.
fn drop_frames(from: &mut Half, budget: u32) -> Result<bool, Fault> {
    let mut done = 0;
    while done < budget {
        let Some(id) = from.access.take()? else { break };
        from.access.give_back(id, 0);
        done += 1;
    }
    if done > 0 {
        from.access.publish(&from.call);
    }
    Ok(done > 0)
}

impl Task for Lane {
    fn wake_on(&self) -> Vec<BorrowedFd<'_>> {
        let halves = self.from.iter().chain(self.to.iter());
        halves.filter_map(|half| half.kick.as_ref()).map(|kick| kick.as_fd()).collect()
    }

    fn poll(&mut self, budget: u32) -> Progress {
        let result = self.run(budget);
        self.halves().for_each(|half| half.access.leave());
        match result {
            Ok(true) => Progress::Worked,
            Ok(false) => Progress::Idle,
            Err((is_from, fault)) => {
                self.fail(is_from, &fault);
                Progress::Worked
            }
        }
    }

    fn arm(&mut self) -> bool {
        for is_from in [true, false] {
            let half = if is_from { &mut self.from } else { &mut self.to };
            if half.as_mut().is_some_and(|half| half.access.is_cut()) {
                self.fail(is_from, &Fault::CUT);
                return true;
            }
        }
        let unbelled = self.halves().any(|half| half.kick.is_none());
        self.poll_at = unbelled.then(|| Instant::now() + POLL_INTERVAL);
        // While frames wait for buffers it is buffers that are news.
        let starved = self.waiting_since.is_some() && !self.given_up;
        let from = self.from.as_mut().is_some_and(|half| half.access.arm());
        let to = starved && self.to.as_mut().is_some_and(|half| half.access.arm());
        if starved { to } else { from }
    }

    fn disarm(&mut self) {
        for half in self.halves() {
            if let Some(kick) = &half.kick {
                kick.drain();
            }
            half.access.disarm();
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let waiting_since = self.waiting_since.filter(|_| !self.given_up);
        let patience = waiting_since.map(|since| since + PATIENCE);
        match (self.poll_at, patience) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }
}
