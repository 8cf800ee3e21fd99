mod carry;
mod pause;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use mem::{AddressSpace, MemoryError, MemoryMap};
use sys::{Epoll, EventFd, Interest};
use virtio::{
    DeviceError, DeviceEvent, EventSink, EventSource, Features, Identity, NetworkControl, Notifier,
    QueueSetup, Reach, Recovery, Sharing, Status, VirtioDevice,
};
use virtqueue::{IndirectArea, QueuePosition, RingFormat};

use crate::arena::Arena;
use crate::control::Control;
use crate::mode::{Choice, Situation, choose};
use crate::spaces::Spaces;
use crate::{BridgeOptions, CopyMover, Counters, Mode, features};

/// Keys of the two things that wake the control side; it does not matter which it was.
const INNER: u64 = 0;
const OWN: u64 = 1;

/// A device around another device, with rings of its own for the other one to work on.
///
/// How much it does is its [`Mode`], which is decided when the driver's memory is known and, unless
/// it was asked for, may change until the driver has accepted its features.
pub struct Shadow {
    inner: Box<dyn VirtioDevice>,
    name: Arc<str>,
    options: BridgeOptions,
    choice: Choice,
    /// As offered to the driver.
    identity: Identity,
    /// The driver's memory, whatever the mode.
    memory: Option<Arc<AddressSpace>>,
    /// There unless the mode is pass or no memory was set.
    spaces: Option<Spaces>,
    /// What the driver accepted, and what the device got for it.
    accepted: Option<(Features, Features)>,
    /// The device went away and is not back.
    gone: bool,
    /// Why it did not take the driver's memory, if it did not.
    refused: Option<String>,
    /// Boxes, here and in the next: what does not run is to take no memory.
    queues: Vec<Option<Box<Queue>>>,
    /// How queues that the driver has disabled go on.
    paused: Vec<Option<Box<QueueSetup>>>,
    counters: Vec<Arc<Counters>>,
    sink: EventSink,
    events: EventSource,
    epoll: Epoll,
}

/// A running queue.
struct Queue {
    control: Box<dyn Control>,
    /// What the driver started it with.
    driver: QueueSetup,
    /// What the device was, and after a failure will be, started with.
    setup: QueueSetup,
    tables: Option<IndirectArea>,
}

impl Shadow {
    /// A shadow of `inner`, which people know as `name`.
    ///
    /// # Errors
    /// The system is out of file descriptors, or the device can't be used as the options say.
    pub fn new(
        inner: Box<dyn VirtioDevice>,
        name: &str,
        options: BridgeOptions,
    ) -> Result<Self, DeviceError> {
        let (sink, events) = EventSource::new().map_err(system)?;
        let epoll = Epoll::new().map_err(system)?;
        epoll.add(&events, OWN, Interest::Read).map_err(system)?;
        let situation = Situation::of(&*inner, None);
        let choice = choose(&options, &situation)?;
        let mut shadow = Self {
            identity: inner.identity().clone(),
            inner,
            name: name.into(),
            options,
            choice,
            memory: None,
            spaces: None,
            accepted: None,
            gone: false,
            refused: None,
            queues: Vec::new(),
            paused: Vec::new(),
            counters: Vec::new(),
            sink,
            events,
            epoll,
        };
        shadow.watch_inner();
        shadow.look_at_inner();
        Ok(shadow)
    }

    /// How it stands between the two sides now.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.choice.mode
    }

    /// The mode and why it was chosen, for people.
    #[must_use]
    pub fn reason(&self) -> String {
        format!("{}: {}", self.choice.mode, self.choice.reason)
    }

    /// What each queue has done since this shadow was made; all zeros in pass mode.
    #[must_use]
    pub fn counters(&self) -> &[Arc<Counters>] {
        &self.counters
    }

    fn situation(&self, map: Option<&MemoryMap>) -> Situation {
        Situation::of(&*self.inner, map).after(self.refused.as_ref())
    }

    /// The device does not take the driver's memory, which shows only now: it gets ours.
    fn copy_instead(&mut self, why: String) -> Result<(), DeviceError> {
        tracing::warn!(name = %self.name, "the device does not take the driver's memory: {why}");
        self.refused = Some(why);
        self.inner.reset()?;
        self.adopt_memory()
    }

    fn passes(&self) -> bool {
        self.choice.mode == Mode::Pass
    }

    /// Works out what to offer, from what the device offers now.
    fn look_at_inner(&mut self) {
        let inner = self.inner.identity();
        self.identity = inner.clone();
        let (mode, wanted) = (self.choice.mode, self.options.require);
        let limit = self.options.queue_size.unwrap_or(u16::MAX);
        let largest = inner.queue_sizes.iter().copied().max().unwrap_or(0).min(limit);
        self.identity.features =
            features::offered(mode, inner.features, largest, wanted) - self.options.hide;
        self.queues.resize_with(inner.queue_sizes.len(), || None);
        self.paused.resize_with(inner.queue_sizes.len(), || None);
        self.counters.resize_with(inner.queue_sizes.len(), Arc::default);
        if self.passes() {
            return;
        }
        let needs_power = !inner.features.has(Features::RING_PACKED)
            || self.options.device_format == Some(RingFormat::Split);
        for size in &mut self.identity.queue_sizes {
            *size = (*size).min(limit);
            if needs_power && *size > 0 {
                *size = 1 << size.ilog2();
            }
        }
    }

    /// The device's descriptor may be another one after it did something.
    fn watch_inner(&self) {
        if let Some(fd) = self.inner.control_fd() {
            // Still in the set, mostly: then this is refused, and all is well.
            let _ = self.epoll.add(fd, INNER, Interest::Read);
        }
    }

    /// Chooses the mode for the memory as it is, and gives the device what it is to see.
    fn adopt_memory(&mut self) -> Result<(), DeviceError> {
        let Some(memory) = self.memory.clone() else { return Ok(()) };
        let map = memory.current();
        let situation = self.situation(Some(&map));
        let choice = choose(&self.options, &situation)?;
        if choice != self.choice {
            tracing::info!(name = %self.name, mode = %choice.mode, reason = %choice.reason, "mode");
        }
        self.choice = choice;
        self.look_at_inner();
        if self.passes() {
            self.spaces = None;
            self.inner.set_recovery(Recovery::InPlace);
            return self.inner.set_memory(&memory);
        }
        self.inner.set_recovery(Recovery::ByCaller);
        let pool_bytes = match self.choice.mode {
            Mode::Translate => 0,
            _ => self.options.pool_size(),
        };
        let arena = Arena::new(&self.identity.queue_sizes, pool_bytes, &map)?;
        let spaces = Spaces::new(&memory, self.choice.mode, arena)?;
        let result = self.inner.set_memory(&spaces.device);
        self.spaces = Some(spaces);
        result
    }

    fn queue_mut(&mut self, index: u16) -> Option<&mut Option<Box<Queue>>> {
        self.queues.get_mut(usize::from(index))
    }

    fn start_shadow(&mut self, setup: QueueSetup) -> Result<(), DeviceError> {
        let index = setup.index;
        self.take_paused(index);
        if !matches!(self.queue_mut(index), Some(None)) {
            return Err(DeviceError::NoSuchQueue(index));
        }
        let wrong = || DeviceError::Refused("a queue before memory and features".into());
        let spaces = self.spaces.as_ref().ok_or_else(wrong)?;
        let (_, given) = self.accepted.ok_or_else(wrong)?;
        if setup.spec.size > spaces.arena.size(index) {
            let most = spaces.arena.size(index);
            let size = setup.spec.size;
            return Err(DeviceError::Refused(format!("a queue of {size}, where {most} is most")));
        }
        let (spec, tables) = spaces.arena.ring(&setup, given);
        let shown = QueueSetup {
            index,
            spec,
            features: given,
            memory: Arc::clone(&spaces.device),
            kick: Some(Arc::new(EventFd::new().map_err(system)?)),
            call: Notifier::new(Arc::new(EventFd::new().map_err(system)?)),
            // What is in flight on our rings is known here.
            in_flight: None,
        };
        let control = match self.choice.mode {
            Mode::Copy => {
                let place = spaces.arena.pool(index, self.options.pool_size());
                let mover = CopyMover::new(place, shown.spec.size);
                self.carry(spaces, &setup, &shown, tables, mover)?
            }
            Mode::Remote => self.carry_far(spaces, &setup, &shown, tables)?,
            _ => self.carry(spaces, &setup, &shown, tables, spaces.mover(shown.spec.size))?,
        };
        match self.inner.start_queue(shown.clone()) {
            Ok(()) => {}
            // It may come back, and is started then.
            Err(DeviceError::Gone(_)) => control.set_gone(true),
            Err(error) => return Err(error),
        }
        if let Some(slot) = self.queue_mut(index) {
            *slot = Some(Box::new(Queue { control, driver: setup, setup: shown, tables }));
        }
        Ok(())
    }

    /// Starts the queues again on a device that came back.
    fn bring_back(&mut self) -> Result<(), DeviceError> {
        let running = self.queues.iter().flatten();
        for queue in running {
            let spec = queue.setup.spec.clone();
            if queue.control.restart(spec, queue.tables)? {
                self.inner.start_queue(queue.setup.clone())?;
                queue.control.set_gone(false);
            }
        }
        Ok(())
    }

    fn stop_all(&mut self) {
        self.paused.fill(None);
        for queue in self.queues.iter_mut().filter_map(Option::take) {
            let _position = queue.control.finish();
        }
    }
}

impl VirtioDevice for Shadow {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn reach(&self) -> Reach {
        if self.passes() { self.inner.reach() } else { Reach::LOCAL }
    }

    fn sharing(&self) -> Sharing {
        match (self.choice.mode, self.inner.sharing()) {
            (Mode::Pass, sharing) => sharing,
            (Mode::Translate, Sharing::All | Sharing::Buffers) => Sharing::Buffers,
            _ => Sharing::Nothing,
        }
    }

    fn records_in_flight(&self) -> bool {
        match self.choice.mode {
            Mode::Pass => self.inner.records_in_flight(),
            mode => mode != Mode::Remote,
        }
    }

    fn want_record(&mut self) {
        self.inner.want_record();
        self.options.record = true;
        // What could not be had before can't now, and is said when the memory is known.
        if let Ok(choice) = choose(&self.options, &self.situation(None)) {
            self.choice = choice;
        }
        self.look_at_inner();
    }

    fn read_config(&mut self, offset: u32, into: &mut [u8]) {
        self.inner.read_config(offset, into);
    }

    fn write_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), DeviceError> {
        self.inner.write_config(offset, bytes)
    }

    fn set_memory(&mut self, memory: &Arc<AddressSpace>) -> Result<(), DeviceError> {
        self.memory = Some(Arc::clone(memory));
        self.adopt_memory()
    }

    fn memory_changed(&mut self) -> Result<(), DeviceError> {
        if self.accepted.is_none() {
            let before = self.choice.mode;
            let map = self.memory.as_ref().map(|memory| memory.current());
            let situation = self.situation(map.as_deref());
            let suits = match (&self.spaces, &map) {
                (Some(spaces), Some(map)) => spaces.suit(map),
                _ => true,
            };
            if !suits || choose(&self.options, &situation)?.mode != before {
                return self.adopt_memory();
            }
        }
        match &self.spaces {
            None => self.inner.memory_changed(),
            Some(spaces) => {
                let result = spaces.follow(self.inner.as_mut());
                self.queues.iter().flatten().for_each(|queue| queue.control.wake());
                match result {
                    // The driver's memory has come to where ours was. While no queue runs it can go
                    // elsewhere.
                    Err(DeviceError::Memory(MemoryError::Overlap(_)))
                        if self.queues.iter().all(Option::is_none) =>
                    {
                        self.adopt_memory()
                    }
                    result => result,
                }
            }
        }
    }

    fn accept_features(&mut self, accepted: Features) -> Result<(), DeviceError> {
        let is_acceptable = match self.passes() {
            // Whether it was offered is for the device to say.
            true => features::is_consistent(accepted),
            false => features::acceptable(accepted, self.identity.features),
        };
        if !is_acceptable {
            return Err(DeviceError::BadFeatures(accepted));
        }
        let (offered, format) = (self.inner.identity().features, self.options.device_format);
        let given = match self.passes() {
            true => accepted,
            false => features::for_device(accepted, offered, format),
        };
        let shares = matches!(self.choice.mode, Mode::Pass | Mode::Translate);
        match self.inner.accept_features(given) {
            Err(DeviceError::Refused(why)) if shares && self.options.mode == Mode::Auto => {
                self.copy_instead(why)?;
                return self.accept_features(accepted);
            }
            result => result?,
        }
        self.accepted = Some((accepted, given));
        let names = |features: Features| features.names(Some(self.identity.device)).join(" ");
        tracing::info!(name = %self.name, mode = %self.choice.mode, reason = %self.choice.reason,
            driver = %names(accepted), device = %names(given), "features agreed");
        Ok(())
    }

    fn start_queue(&mut self, setup: QueueSetup) -> Result<(), DeviceError> {
        if self.passes() { self.inner.start_queue(setup) } else { self.start_shadow(setup) }
    }

    fn stop_queue(&mut self, index: u16) -> Result<QueuePosition, DeviceError> {
        if self.passes() {
            return self.inner.stop_queue(index);
        }
        self.stop_shadow(index)
    }

    fn enable_queue(&mut self, index: u16, enabled: bool) -> Result<(), DeviceError> {
        self.enable(index, enabled)
    }

    fn notifier_changed(&mut self, index: u16) {
        if self.passes() {
            self.inner.notifier_changed(index);
        }
    }

    fn network(&mut self) -> Option<&mut dyn NetworkControl> {
        self.inner.network()
    }

    fn set_status(&mut self, status: Status) -> Result<(), DeviceError> {
        self.inner.set_status(status)
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        // The device first: it may be working on memory that goes away with the queues.
        let result = self.inner.reset();
        self.stop_all();
        // What the queues had to say is of no interest any more.
        drop(self.events.drain());
        self.accepted = None;
        self.spaces = None;
        self.memory = None;
        if self.options.record
            && let Ok(choice) = choose(&self.options, &self.situation(None))
        {
            // What the last driver's memory did not allow, the next one's may.
            self.choice = choice;
        }
        self.watch_inner();
        self.look_at_inner();
        result
    }

    fn control_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }

    fn control_ready(&mut self) -> Vec<DeviceEvent> {
        let mut events = self.inner.control_ready();
        self.watch_inner();
        if !self.passes() {
            for event in &mut events {
                match event {
                    DeviceEvent::Gone(_) => {
                        self.gone = true;
                        self.queues.iter().flatten().for_each(|q| q.control.set_gone(true));
                    }
                    DeviceEvent::Back => {
                        self.gone = false;
                        if let Err(error) = self.bring_back() {
                            let name = &self.name;
                            let why = format!("{name} came back and can't be used: {error}");
                            *event = DeviceEvent::NeedsReset(why);
                        }
                    }
                    _ => {}
                }
            }
        }
        events.extend(self.events.drain());
        events
    }
}

fn system(source: io::Error) -> DeviceError {
    DeviceError::System { attempt: "making a bridge".into(), source }
}
