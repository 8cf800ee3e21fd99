use std::sync::Arc;
use std::time::Instant;

use mem::remote::{RemoteError, RemoteMemory};
use mem::{Access, Backing, MapReader, MemoryMap};
use virtio::DeviceError;
use virtqueue::{Chain, DeviceQueue, DriverQueue, QueueSpec, Segment};

use super::chains::{Bring, Chains, Fetching, bring, check_known, check_writable};
use super::mirror::Mirror;
use super::transfers::{Done, MAX_FLYING, Purpose, Transfers};
use crate::blocks::Blocks;
use crate::fault::Fault;
use crate::rate::Limiter;
use crate::{Ends, MoverError, PoolPlace, RateLimits, Request};

/// Everything a [`RemoteQueue`] is made of.
pub struct RemoteParts {
    /// Names, notifications and reports.
    pub ends: Ends,
    /// The driver's ring.
    pub spec: QueueSpec,
    /// The driver's memory.
    pub memory: MapReader,
    /// The device's ring, where we are the driver.
    pub device: DriverQueue<Request<u32>>,
    /// Where the device's ring lies.
    pub device_memory: Arc<MemoryMap>,
    /// Where the bytes are while the device has them.
    pub pool: PoolPlace,
    /// Speed limits.
    pub limits: RateLimits,
}

/// Carries the chains of one queue whose ring can only be reached by transfers.
pub struct RemoteQueue {
    pub(super) ends: Ends,
    pub(super) memory: MapReader,
    /// What the transfers go to.
    pub(super) remote: Arc<dyn RemoteMemory>,
    pub(super) transfers: Transfers,
    pub(super) mirror: Mirror,
    pub(super) driver: DeviceQueue,
    pub(super) device: DriverQueue<Request<u32>>,
    pub(super) device_memory: Arc<MemoryMap>,
    pub(super) blocks: Blocks,
    pub(super) chains: Chains,
    pub(super) chain: Chain,
    pub(super) limiter: Option<Limiter>,
    pub(super) look: Look,
    /// There may be something new at the driver; true if it said so.
    pub(super) look_again: Option<bool>,
    /// Batches whose used elements are on their way to the driver.
    pub(super) telling: u32,
    /// The chains in them: their blocks are in use until all has arrived.
    pub(super) told: Vec<u32>,
    /// Chains given back that are in no batch yet.
    pub(super) untold: Vec<u32>,
    pub(super) done: Vec<Done>,
    pub(super) blocked: Option<Blocked>,
    pub(super) gone: bool,
    pub(super) over: bool,
    pub(super) active: bool,
    /// When to look and to notify again, in case somebody did not hear.
    pub(super) recheck: Option<Instant>,
    /// When to try again what nobody will wake us for.
    pub(super) retry: Option<Instant>,
}

/// How far a look at the driver's ring has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// None under way.
    No,
    /// The index is asked for, and if the entries are too, so many bytes of them are missing.
    Index { entries: Option<u64> },
    /// The index is there and differs; so many bytes of entries are missing.
    Entries(u64),
    /// The entries are there; so many bytes of indirect tables are missing.
    Tables(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blocked {
    /// Until a chain comes back.
    Room,
    Rate(Instant),
    Translation,
}

impl RemoteQueue {
    /// A queue that has done nothing yet.
    ///
    /// # Errors
    /// Of a ring that is not behind one link, packed, or can't be mirrored for want of memory.
    pub fn new(parts: RemoteParts) -> Result<Self, DeviceError> {
        let RemoteParts { ends, spec, mut memory, device, device_memory, pool, limits } = parts;
        let map = Arc::clone(memory.resolver().map());
        let remote = remote_of(&map, &spec)?;
        let channel = remote.open().map_err(|error| DeviceError::Refused(error.to_string()))?;
        let (mirror, driver) = Mirror::new(&spec)?;
        let blocks = Blocks::new(pool, device.size());
        Ok(Self {
            transfers: Transfers::new(channel, blocks.capacity() + MAX_FLYING),
            ends,
            memory,
            remote,
            mirror,
            driver,
            chains: Chains::new(spec.size),
            chain: Chain::with_capacity(spec.size.into()),
            limiter: Limiter::new(limits),
            look: Look::No,
            look_again: Some(true),
            telling: 0,
            told: Vec::with_capacity(device.size().into()),
            untold: Vec::with_capacity(device.size().into()),
            done: Vec::with_capacity(MAX_FLYING),
            blocks,
            device,
            device_memory,
            blocked: None,
            gone: false,
            over: false,
            active: false,
            recheck: None,
            retry: None,
        })
    }

    pub(super) fn work(&mut self, budget: u32) -> Result<u32, Fault> {
        let mut worked = self.receive()?;
        self.finish_look()?;
        worked += self.collect(budget)?;
        self.tell();
        worked += self.take(budget)?;
        worked += self.offer();
        self.look();
        self.transfers.send().map_err(link)?;
        Ok(worked)
    }

    /// Takes the answers that have come.
    pub(super) fn receive(&mut self) -> Result<u32, Fault> {
        self.done.clear();
        self.transfers.receive(&mut self.done).map_err(link)?;
        for at in 0..self.done.len() {
            let Done { purpose, len } = self.done[at];
            match purpose {
                Purpose::Index => self.index_arrived(),
                Purpose::Entries => self.entries_arrived(len),
                Purpose::Data(ordinal) => self.chains.arrived(ordinal, len),
                Purpose::Wish => self.wish_arrived(),
                Purpose::Written => {}
            }
        }
        Ok(self.done.len() as u32)
    }

    fn index_arrived(&mut self) {
        let Look::Index { entries } = self.look else { return };
        let is_news = self.mirror.index() != self.driver.position().index();
        self.look = match entries {
            None if is_news => Look::Entries(self.mirror.ask_entries(&mut self.transfers).into()),
            None => Look::No,
            Some(missing) => Look::Entries(missing),
        };
    }

    fn entries_arrived(&mut self, len: u32) {
        let missing = match &mut self.look {
            // Answers may come in any order.
            Look::Index { entries: Some(missing) }
            | Look::Entries(missing)
            | Look::Tables(missing) => missing,
            _ => return,
        };
        *missing = missing.saturating_sub(len.into());
    }

    /// Asks for the indirect tables of what is new, if there are any, and lets the queue see all
    /// that is complete.
    fn finish_look(&mut self) -> Result<(), Fault> {
        if self.look == Look::Entries(0) {
            let map = Arc::clone(self.memory.resolver().map());
            let next = self.driver.position().index();
            match self.mirror.ask_tables(next, &map, &self.remote, &mut self.transfers) {
                Ok(missing) => self.look = Look::Tables(missing),
                // Tried again until then.
                Err(error) => match error.miss() {
                    Some(at) => {
                        self.ends.counters.misses.add(1);
                        self.memory.space().report_miss(at, Access::Read);
                    }
                    None => return Err(error.into()),
                },
            }
        }
        if self.look == Look::Tables(0) {
            self.look = Look::No;
            self.mirror.show_index();
        }
        Ok(())
    }

    /// The driver has all of the last batch, and has said whether it wants to know.
    fn wish_arrived(&mut self) {
        self.telling = self.telling.saturating_sub(1);
        if self.telling > 0 {
            return;
        }
        for first in self.told.drain(..) {
            self.blocks.release(first);
        }
        self.ends.interrupt(self.driver.wants_interrupt());
    }

    /// Takes what the device has used; the bytes are on their way to the driver afterwards.
    pub(super) fn collect(&mut self, budget: u32) -> Result<u32, Fault> {
        let map = Arc::clone(self.memory.resolver().map());
        let (mut count, mut bytes) = (0, 0);
        while count < budget {
            let used = self.device.take_used().map_err(Fault::Device)?;
            let Some((Request { id, load, .. }, written)) = used else { break };
            if let Err(error) = self.bring_back(&map, load, written) {
                id.abandon();
                self.blocks.release(load);
                return Err(error.into());
            }
            self.ends.completed(id.index(), written);
            self.driver.give_back(id, written);
            self.untold.push(load);
            count += 1;
            bytes += u64::from(written);
        }
        if count > 0 {
            self.ends.counters.completions.add(count.into());
            self.ends.counters.bytes_in.add(bytes);
            self.ends.counters.copied_bytes.add(bytes);
        }
        Ok(count)
    }

    fn bring_back(&mut self, map: &MemoryMap, first: u32, written: u32) -> Result<(), MoverError> {
        let (mut at, mut left) = (first, written);
        while let Some(cell) = self.blocks.cell(at).filter(|_| left > 0) {
            if cell.writable {
                let len = cell.segment.len.min(left);
                let here = (Arc::clone(self.blocks.mapping()), self.blocks.offset(&cell));
                let written = Bring::write(Segment { len, ..cell.segment }, here);
                bring(map, &self.remote, written, &mut self.transfers)?;
                left -= len;
            }
            at = cell.next;
        }
        Ok(())
    }

    /// Tells the driver what was given back, one batch after the other: the answer to its wish is
    /// for exactly one.
    fn tell(&mut self) {
        if self.telling == 0 && !self.untold.is_empty() {
            self.tell_now();
        }
    }

    pub(super) fn tell_now(&mut self) {
        self.driver.publish_used();
        self.told.append(&mut self.untold);
        self.telling += u32::from(self.mirror.tell_used(&mut self.transfers));
    }

    /// Takes chains from the mirror and asks for their readable bytes.
    fn take(&mut self, budget: u32) -> Result<u32, Fault> {
        self.blocked = None;
        let map = Arc::clone(self.memory.resolver().map());
        let mut count = 0;
        while count < budget {
            let throttled = self.limiter.as_ref().and_then(|l| l.wait_until(Instant::now()));
            if let Some(at) = throttled.filter(|_| self.driver.has_available()) {
                self.ends.counters.throttled.add(1);
                self.blocked = Some(Blocked::Rate(at));
                break;
            }
            let taken = self.driver.take(self.mirror.tables.resolver(), &mut self.chain);
            let Some(id) = taken.map_err(|error| Fault::Driver(error.into()))? else { break };
            let segments = self.chain.readable().len() + self.chain.writable().len();
            if segments > self.device.max_segments() {
                id.abandon();
                let limit = self.device.max_segments();
                return Err(MoverError::TooManySegments { segments, limit }.into());
            }
            match self.fetch(&map) {
                Ok(Some((first, missing))) => {
                    self.chains.push(Fetching { id, first, missing, segments });
                }
                Ok(None) => {
                    self.ends.counters.backpressure.add(1);
                    self.driver.untake(id);
                    self.blocked = Some(Blocked::Room);
                    break;
                }
                Err(error) => match error.miss() {
                    Some(at) => {
                        self.driver.untake(id);
                        self.ends.counters.misses.add(1);
                        self.memory.space().report_miss(at, self.chain.wants(at));
                        self.blocked = Some(Blocked::Translation);
                        break;
                    }
                    None => {
                        id.abandon();
                        return Err(error.into());
                    }
                },
            }
            if let Some(limiter) = &mut self.limiter {
                let bytes = self.chain.readable_len() + self.chain.writable_len();
                limiter.charge(Instant::now(), bytes);
            }
            self.ends.counters.bytes_out.add(self.chain.readable_len());
            self.ends.counters.copied_bytes.add(self.chain.readable_len());
            count += 1;
        }
        if count > 0 {
            self.look_again.get_or_insert(false);
        }
        Ok(count)
    }

    /// Reserves blocks for the chain just taken and asks for its readable bytes; returns the chain
    /// and how many bytes are missing.
    fn fetch(&mut self, map: &MemoryMap) -> Result<Option<(u32, u64)>, MoverError> {
        // Everything is checked before the first transfer: what is begun is not called back.
        for segment in self.chain.readable() {
            check_known(map, *segment)?;
        }
        for segment in self.chain.writable() {
            check_writable(map, *segment)?;
        }
        let Some(first) = self.blocks.reserve(&self.chain)? else { return Ok(None) };
        let ordinal = self.chains.next_ordinal();
        let (mut at, mut missing) = (first, 0);
        while let Some(cell) = self.blocks.cell(at).filter(|cell| !cell.writable) {
            let here = (Arc::clone(self.blocks.mapping()), self.blocks.offset(&cell));
            let data = Bring::read(cell.segment, here, Purpose::Data(ordinal));
            missing += bring(map, &self.remote, data, &mut self.transfers)?;
            at = cell.next;
        }
        Ok(Some((first, missing)))
    }

    /// Offers the chains whose bytes have all arrived, in order.
    fn offer(&mut self) -> u32 {
        let mut count = 0;
        while let Some(chain) = self.chains.first_complete() {
            if !self.device.room_for(chain.segments) {
                break;
            }
            let Some((ordinal, Fetching { id, first, .. })) = self.chains.pop_first() else {
                break;
            };
            self.blocks.show(first);
            let (readable, writable) = self.blocks.shown();
            self.ends.offered(id.index(), readable, writable);
            let request = Request { id, ordinal, load: first };
            let offered = self.device.offer(readable, writable, request);
            assert!(offered.is_ok(), "there was room a moment ago");
            count += 1;
        }
        if count > 0 {
            self.ends.counters.chains.add(count.into());
            self.device.publish_available();
            self.ends.kick_device(self.device.wants_kick() && !self.gone);
        }
        count
    }

    /// Looks at the driver's ring, if there is a reason and all that is known of was taken. When
    /// the driver has spoken everything is asked for at once; to see whether there is more, only
    /// the index.
    fn look(&mut self) {
        if self.look != Look::No || self.blocked.is_some() || self.driver.has_available() {
            return;
        }
        if let Some(spoken) = self.look_again.take() {
            self.mirror.ask_index(self.driver.position().index(), &mut self.transfers);
            let entries = spoken.then(|| self.mirror.ask_entries(&mut self.transfers).into());
            self.look = Look::Index { entries };
        }
    }

    /// Whether the driver has spoken since the last time.
    pub(super) fn hear(&mut self) -> bool {
        let spoken = self.ends.kick.as_ref().is_some_and(|kick| kick.drain());
        if spoken {
            self.look_again = Some(true);
        }
        spoken
    }
}

/// What the ring's three areas lie behind.
fn remote_of(map: &MemoryMap, spec: &QueueSpec) -> Result<Arc<dyn RemoteMemory>, DeviceError> {
    let mut found: Option<Arc<dyn RemoteMemory>> = None;
    let at = spec.addresses;
    for address in [at.descriptor, at.driver, at.device] {
        let Backing::Remote(memory) = &map.region(address)?.backing else {
            let why = "a ring in mapped memory, where most memory is reached by messages";
            return Err(DeviceError::Refused(why.into()));
        };
        if found.as_ref().is_some_and(|other| !Arc::ptr_eq(other, memory)) {
            return Err(DeviceError::Refused("a ring behind two different links".into()));
        }
        found = Some(Arc::clone(memory));
    }
    found.ok_or_else(|| DeviceError::Refused("a ring nowhere".into()))
}

pub(super) fn link(error: RemoteError) -> Fault {
    Fault::Driver(MoverError::Link(error))
}
