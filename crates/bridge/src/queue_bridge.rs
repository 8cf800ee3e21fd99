mod burst;
mod iommu;

use std::sync::Arc;
use std::time::{Duration, Instant};

use mem::Access;
use sys::EventFd;
use virtqueue::{Chain, ChainId, IndirectArea, QueueError, QueuePosition, QueueSpec};
use worker::{Progress, Task};

use crate::fault::Fault;
use crate::parts::Ends;
use crate::rate::Limiter;
use crate::{BridgeParts, Counters, Mover, MoverError, Request, Step};

/// After this long without a word a queue that was busy looks again, once: a peer that lies about
/// when it wants to be notified, or a notification lost on the way, costs this much and not the
/// queue.
const RECHECK: Duration = Duration::from_millis(100);

/// Carries the chains of one queue from the driver's ring to the device's, and back.
pub struct QueueBridge<M: Mover> {
    parts: BridgeParts<M>,
    chain: Chain,
    limiter: Option<Limiter>,
    /// Chains taken from the driver and handed on.
    taken: u32,
    /// A chain the device has used, whose data has to wait for an address translation.
    stuck: Option<(Request<M::Load>, u32)>,
    blocked: Blocked,
    /// The driver's ring has to be resolved again.
    unbound: bool,
    /// The device is away: it is not notified.
    gone: bool,
    /// A rule was broken: nothing is done any more.
    over: bool,
    /// Something was done since the last look without being told to.
    active: bool,
    /// When to notify the device again, in case it did not hear.
    recheck: Option<Instant>,
    /// When to look at a driver that never notifies us.
    look_at: Option<Instant>,
}

/// Why no chain is taken from the driver though there may be some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blocked {
    No,
    /// Until one comes back from the device.
    Room,
    /// Until this moment.
    Rate(Instant),
    /// Until the driver's memory changes.
    Translation,
}

impl<M: Mover> QueueBridge<M> {
    /// A bridge that has done nothing yet.
    #[must_use]
    pub fn new(parts: BridgeParts<M>) -> Self {
        Self {
            chain: Chain::with_capacity(parts.driver.size().into()),
            limiter: Limiter::new(parts.limits),
            parts,
            taken: 0,
            stuck: None,
            blocked: Blocked::No,
            unbound: false,
            gone: false,
            over: false,
            active: false,
            recheck: None,
            look_at: None,
        }
    }

    /// What the queue has done.
    #[must_use]
    pub fn counters(&self) -> &Arc<Counters> {
        &self.parts.ends.counters
    }

    /// The device went away, or came back.
    pub fn set_gone(&mut self, gone: bool) {
        self.gone = gone;
        if !gone && !self.over {
            self.parts.ends.device_kick.signal();
        }
    }

    /// Offers everything in flight again, in order, on rings made afresh for a device that came
    /// back; what the old one had completed before it went is given to the driver first. Returns
    /// false if the queue is broken.
    ///
    /// # Errors
    /// The rings can't be made.
    pub fn restart(
        &mut self,
        spec: &QueueSpec,
        indirect: Option<IndirectArea>,
    ) -> Result<bool, QueueError> {
        if self.over {
            return Ok(false);
        }
        self.sweep();
        let parts = &mut self.parts;
        parts.device.restart(&parts.device_memory, spec, indirect)?;
        parts.ends.counters.restarts.add(1);
        Ok(!self.over)
    }

    /// Ends the queue; the device has stopped before. Returns where the driver's ring goes on: with
    /// the first chain that was not completed.
    ///
    /// Chains still with the device were not begun, as a device promises when it stops, so they are
    /// the latest ones; they are taken back. A chain that was taken before one that is completed
    /// can't be: the driver may have reused the ring entry. Such a chain is lost, as with a device
    /// that was unplugged.
    #[must_use]
    pub fn finish(mut self) -> QueuePosition {
        if !self.over {
            self.sweep();
        }
        let mut left = Vec::new();
        left.extend(self.stuck.take().map(|(request, _)| request));
        self.parts.device.drain(|request| left.push(request));
        left.sort_by_key(|request| self.taken.wrapping_sub(request.ordinal));
        let mut lost = 0;
        for Request { id, ordinal, .. } in left {
            if ordinal.wrapping_add(1) == self.taken && !self.over {
                self.parts.driver.untake(id);
                self.taken = ordinal;
            } else {
                id.abandon();
                lost += 1;
            }
        }
        if !self.over {
            self.parts.ends.warn_of_lost(lost);
        }
        // Notifications were asked for and called off since it was marked last.
        self.parts.driver.spec().mark_dirty(self.parts.memory.resolver().map());
        self.parts.driver.position()
    }

    /// Takes back what the device has completed.
    fn sweep(&mut self) {
        let changed = self.parts.memory.enter();
        let result =
            self.bind(changed).and_then(|bound| if bound { self.collect(u32::MAX) } else { Ok(0) });
        self.parts.memory.leave();
        if let Err(fault) = result {
            self.over = true;
            self.parts.ends.fail(&fault);
        }
    }

    /// Resolves the driver's ring again if it may have moved; returns whether it can be used.
    fn bind(&mut self, changed: bool) -> Result<bool, Fault> {
        self.unbound |= changed;
        if self.unbound {
            let map = Arc::clone(self.parts.memory.resolver().map());
            match self.parts.driver.rebind(&map) {
                Ok(()) => self.unbound = false,
                Err(QueueError::Miss(at)) => self.miss(at, Access::Read),
                Err(error) => return Err(Fault::Driver(error.into())),
            }
        }
        Ok(!self.unbound)
    }

    fn work(&mut self, changed: bool, budget: u32) -> Result<u32, Fault> {
        if (changed || self.unbound) && !self.bind(changed)? {
            return Ok(0);
        }
        Ok(self.collect(budget)? + self.submit(budget)?)
    }

    /// Carries what the device has used back to the driver.
    #[inline]
    fn collect(&mut self, budget: u32) -> Result<u32, Fault> {
        let (mut done, mut bytes) = (0, 0);
        let in_bursts = self.parts.mover.is_one_way() && self.parts.ends.observer.is_none();
        if in_bursts {
            done = self.collect_bursts(budget, &mut bytes)?;
        }
        let mut next = self.stuck.take();
        while done < budget && !in_bursts {
            let used = match next.take() {
                Some(stuck) => Some(stuck),
                None => self.parts.device.take_used().map_err(Fault::Device)?,
            };
            let Some((request, written)) = used else { break };
            if !self.complete(request, written)? {
                break;
            }
            done += 1;
            bytes += u64::from(written);
        }
        if done > 0 {
            self.check_whole()?;
            self.parts.ends.counters.bytes_in.add(bytes);
            self.publish_used(done);
        }
        Ok(done)
    }

    /// One chain back to the driver; returns whether it went.
    #[inline]
    fn complete(&mut self, request: Request<M::Load>, written: u32) -> Result<bool, Fault> {
        let parts = &mut self.parts;
        match parts.mover.inbound(parts.memory.resolver(), &request.load, written) {
            Ok(()) => {}
            Err(error) => return self.incomplete(request, written, error),
        }
        parts.ends.completed(request.id.index(), written);
        parts.driver.give_back(request.id, written);
        Ok(true)
    }

    #[cold]
    fn incomplete(
        &mut self,
        request: Request<M::Load>,
        written: u32,
        error: MoverError,
    ) -> Result<bool, Fault> {
        match error.miss() {
            Some(at) => {
                self.stuck = Some((request, written));
                self.miss(at, Access::ReadWrite);
                Ok(false)
            }
            None => {
                request.id.abandon();
                Err(error.into())
            }
        }
    }

    #[inline]
    fn publish_used(&mut self, done: u32) {
        let parts = &mut self.parts;
        parts.driver.publish_used();
        parts.ends.counters.completions.add(done.into());
        let map = parts.memory.resolver().map();
        if map.dirty_log().is_some() {
            parts.driver.spec().mark_dirty(map);
        }
        parts.ends.interrupt(parts.driver.wants_interrupt());
    }

    /// Carries what the driver has made available to the device.
    #[inline]
    fn submit(&mut self, budget: u32) -> Result<u32, Fault> {
        self.blocked = Blocked::No;
        let mut bytes = 0;
        let mut done = self.submit_burst(budget, &mut bytes);
        // What comes behind a burst waits for the next poll.
        let in_burst = done > 0;
        while done < budget && !in_burst {
            match self.next()? {
                Some(id) => match self.pass_on(id)? {
                    Some(len) => bytes += len,
                    None => break,
                },
                None => break,
            }
            done += 1;
        }
        if done > 0 {
            self.check_whole()?;
            self.parts.ends.counters.chains.add(done.into());
            self.parts.ends.counters.bytes_out.add(bytes);
            self.parts.device.publish_available();
            let wanted = self.parts.device.wants_kick() && !self.gone;
            self.parts.ends.kick_device(wanted);
        }
        Ok(done)
    }

    /// The driver's next chain, if it may be taken now.
    #[inline]
    fn next(&mut self) -> Result<Option<ChainId>, Fault> {
        if !self.parts.device.room_for(1) {
            self.blocked = Blocked::Room;
            return Ok(None);
        }
        if let Some(at) = self.limiter.as_ref().and_then(|l| l.wait_until(Instant::now())) {
            if self.parts.driver.has_available() {
                self.parts.ends.counters.throttled.add(1);
                self.blocked = Blocked::Rate(at);
            }
            return Ok(None);
        }
        let parts = &mut self.parts;
        match parts.driver.take(parts.memory.resolver(), &mut self.chain) {
            Ok(id) => Ok(id),
            Err(QueueError::Miss(at)) => {
                self.miss(at, Access::Read);
                Ok(None)
            }
            Err(error) => Err(Fault::Driver(error.into())),
        }
    }

    /// Hands the chain just taken to the device; returns its readable bytes, or `None` if it was
    /// put back.
    #[inline]
    fn pass_on(&mut self, id: ChainId) -> Result<Option<u64>, Fault> {
        let parts = &mut self.parts;
        let segments = self.chain.readable().len() + self.chain.writable().len();
        let step = if parts.device.room_for(segments) {
            parts.mover.outbound(parts.memory.resolver(), &self.chain)
        } else if segments > parts.device.max_segments() {
            let limit = parts.device.max_segments();
            Err(MoverError::TooManySegments { segments, limit })
        } else {
            Ok(Step::Wait)
        };
        let load = match step {
            Ok(Step::Ready(load)) => load,
            Ok(Step::Wait) => {
                parts.ends.counters.backpressure.add(1);
                parts.driver.untake(id);
                self.blocked = Blocked::Room;
                return Ok(None);
            }
            Err(error) => match error.miss() {
                Some(at) => {
                    parts.driver.untake(id);
                    self.miss(at, self.chain.wants(at));
                    self.ask_for_buffers();
                    return Ok(None);
                }
                None => {
                    id.abandon();
                    return Err(error.into());
                }
            },
        };
        let (readable, writable) = parts.mover.segments(&self.chain);
        let pieces = readable.len() + writable.len();
        if pieces > segments && !parts.device.room_for(pieces) {
            // Only a mover that keeps nothing makes more of them.
            drop(load);
            return self.too_many_pieces(id, pieces);
        }
        parts.ends.offered(id.index(), readable, writable);
        let request = Request { id, ordinal: self.taken, load };
        let offered = parts.device.offer(readable, writable, request);
        assert!(offered.is_ok(), "there was room a moment ago");
        self.taken = self.taken.wrapping_add(1);
        if let Some(limiter) = &mut self.limiter {
            limiter.charge(Instant::now(), self.chain.readable_len() + self.chain.writable_len());
        }
        Ok(Some(self.chain.readable_len()))
    }

    /// Makes sure that what was read from the driver's memory is what was there: neither side sees
    /// a batch of which it may not be.
    #[inline]
    fn check_whole(&mut self) -> Result<(), Fault> {
        if self.parts.memory.is_cut() { Err(MoverError::Cut.into()) } else { Ok(()) }
    }
}

impl<M: Mover> Task for QueueBridge<M> {
    fn bells(&self) -> Vec<Arc<EventFd>> {
        let kick = self.parts.ends.kick.iter();
        kick.chain([&self.parts.ends.device_call]).map(Arc::clone).collect()
    }

    fn poll(&mut self, budget: u32) -> Progress {
        if self.over {
            return Progress::Finished;
        }
        let changed = self.parts.memory.enter();
        let result = self.work(changed, budget);
        // A ring that has become zeros breaks all kinds of rules, none of which is the reason.
        let result = self.check_whole().and(result);
        self.parts.memory.leave();
        let copied = self.parts.mover.take_copied();
        if copied > 0 {
            self.parts.ends.counters.copied_bytes.add(copied);
        }
        match result {
            Ok(0) => Progress::Idle,
            Ok(_) => {
                self.active = true;
                Progress::Worked
            }
            Err(fault) => {
                self.over = true;
                self.parts.ends.fail(&fault);
                Progress::Finished
            }
        }
    }

    fn arm(&mut self) -> bool {
        let changed = self.parts.memory.enter();
        let mut more = changed;
        if !changed && !self.unbound {
            // While something else is waited for, what the driver makes available is no news, and a
            // stuck chain keeps those behind it waiting.
            more |= self.parts.device.arm_interrupt() && self.stuck.is_none();
            more |= self.blocked == Blocked::No && self.parts.driver.arm_kick();
        }
        self.unbound |= changed;
        more |= self.parts.memory.is_cut();
        self.parts.memory.leave();
        if self.parts.device.in_flight() == 0 {
            self.recheck = None;
        } else if !more && self.active {
            self.recheck = Some(Instant::now() + RECHECK);
        }
        let unheard = self.parts.ends.kick.is_none() && !more;
        self.look_at = unheard.then(|| Instant::now() + Ends::POLL_INTERVAL);
        self.active &= more;
        more
    }

    fn disarm(&mut self) {
        // The eventfds are not drained: they are waited for edge by edge.
        self.unbound |= self.parts.memory.enter();
        if !self.unbound {
            self.parts.driver.disarm_kick();
        }
        self.parts.memory.leave();
        self.parts.device.disarm_interrupt();
        // Woken by something else, it stays due: only what was lost may be what is missing.
        if self.recheck.is_some_and(|at| at <= Instant::now()) {
            self.recheck = None;
            if !self.gone {
                self.parts.ends.device_kick.signal();
            }
        }
    }

    fn is_pending(&self) -> bool {
        self.parts.device.in_flight() > 0
    }

    fn deadline(&self) -> Option<Instant> {
        let rate = match self.blocked {
            Blocked::Rate(at) => Some(at),
            _ => None,
        };
        [rate, self.recheck, self.look_at].into_iter().flatten().min()
    }
}

impl<M: Mover> Drop for QueueBridge<M> {
    fn drop(&mut self) {
        self.parts.device.drain(|request| request.id.abandon());
        if let Some((request, _)) = self.stuck.take() {
            request.id.abandon();
        }
    }
}
