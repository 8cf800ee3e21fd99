//! The control thread: the kernel's messages, interrupts, the bus.

mod ending;
mod starting;

use std::sync::Arc;
use std::time::{Duration, Instant};

use mem::{AddressSpace, MemoryMap};
use sys::{Epoll, EventFd, Interest, Timer, VduseDevice, VduseMessage, VduseRequest};
use virtio::{DeviceEvent, EndError, Features, Status, Stop, VirtioDevice};

use super::bus::{self, Call, Pending};
use super::create::Made;
use super::memory::Pool;
use super::queues::{self, Queues};
use super::refuse::Refuser;
use super::state::State;
use super::{Attached, Settings, sysfs};

/// Longest wait for the kernel to take its driver away from the device: a disk's requests are
/// completed first. Then we leave and say what is left.
pub(super) const END_LIMIT: Duration = Duration::from_secs(30);
/// How soon an interrupt is tried again that the kernel did not take: it is about to note that the
/// driver is ready, and tells nobody.
const TRY_AGAIN: Duration = Duration::from_millis(1);
/// How often it is looked, at the end, whether it takes too long.
const END_CHECK: Duration = Duration::from_millis(500);
/// Messages taken before other things have their turn.
const MESSAGES_PER_TURN: usize = 16;

/// Keys of what the control thread waits for.
const STOP: u64 = 0;
const DEVICE: u64 = 1;
const NODE: u64 = 2;
const TIMER: u64 = 3;
const BUS: u64 = 4;
const FIRST_KICK: u64 = 5;
/// Pages were not there: the data path only sees zeros.
const POISON: u64 = 6;
/// Plus the number of the queue that is to interrupt.
const CALL: u64 = 16;

/// Where the device is on its way through life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Attaching,
    Attached,
    Detaching,
    Off,
}

/// Serves the kernel's driver with a device.
pub(super) struct Server {
    name: String,
    node: Arc<VduseDevice>,
    offered: Features,
    config: Vec<u8>,
    /// Where the next process finds what it must know; `None` if nowhere.
    state: Option<State>,
    device: Box<dyn VirtioDevice>,
    attached: Attached,
    stop: Stop,
    epoll: Epoll,
    timer: Timer,
    phase: Phase,
    /// Another process has made it, and maybe had it attached.
    resumed: bool,
    /// People have been told what it is.
    announced: bool,
    bus: Option<Pending>,
    /// As the kernel has it, or is about to.
    status: Status,
    /// There while the device has the driver's memory.
    memory: Option<Arc<AddressSpace>>,
    pool: Pool,
    /// Signalled by the driver's first request; there while that is waited for.
    first_kick: Option<EventFd>,
    queues: Queues,
    /// How long the driver may wait for its requests when it is to let go.
    patience: Duration,
    /// There once it has waited so long.
    refuser: Option<Refuser>,
    config_due: bool,
    /// Why we are ending.
    failure: Option<EndError>,
}

impl Server {
    pub(super) fn new(
        settings: &Settings,
        made: Made,
        device: Box<dyn VirtioDevice>,
        stop: Stop,
        attached: Attached,
    ) -> Result<Self, EndError> {
        let Made { node, resumed, record, state } = made;
        let name = &settings.name;
        let system = || EndError::system(format!("serving {name}"));
        let epoll = Epoll::new().map_err(system())?;
        let timer = Timer::new().map_err(system())?;
        epoll.add(&stop, STOP, Interest::Read).map_err(system())?;
        epoll.add(&node, NODE, Interest::Read).map_err(system())?;
        epoll.add(&timer, TIMER, Interest::Read).map_err(system())?;
        let poison = mem::guard::event().map_err(system())?;
        epoll.add(poison, POISON, Interest::ReadEdge).map_err(system())?;
        if let Some(control) = device.control_fd() {
            epoll.add(control, DEVICE, Interest::Read).map_err(system())?;
        }
        Ok(Self {
            name: name.clone(),
            patience: settings.patience,
            refuser: None,
            node: Arc::new(node),
            offered: record.offered,
            queues: Queues::new(record.queue_sizes.len() as u16, CALL),
            config: record.config,
            state,
            device,
            attached,
            stop,
            epoll,
            timer,
            // Even if it is on the bus: the process that was killed may have begun to take it off,
            // and then it goes when its driver has let go. The answer tells.
            phase: Phase::Attaching,
            resumed,
            announced: false,
            bus: None,
            status: record.status,
            memory: None,
            pool: Pool::Kernels,
            first_kick: None,
            config_due: false,
            failure: None,
        })
    }

    /// Puts the device on the bus, serves it until the end is asked for or it can't go on, and
    /// takes it off again.
    pub(super) fn run(&mut self) -> Result<(), EndError> {
        if !sysfs::has_virtio_vdpa() {
            tracing::warn!("no driver will take {}: modprobe virtio_vdpa", self.name);
        }
        if self.resumed {
            self.resume()?;
        }
        self.call_bus(Call::Attach)?;
        let mut ready = Vec::new();
        let mut ending = None;
        while self.phase != Phase::Off {
            if self.is_ending() {
                let ending = *ending.get_or_insert_with(Instant::now);
                if ending.elapsed() >= END_LIMIT {
                    return Err(self.stuck());
                }
                self.refuse_if_due(ending);
                if self.phase == Phase::Attached {
                    self.call_bus(Call::Detach)?;
                }
            }
            let limit = self.longest_wait();
            self.epoll.wait(&mut ready, limit).map_err(self.system("waiting"))?;
            for key in ready.iter().map(|ready| ready.key) {
                self.turn(key);
            }
        }
        self.reset();
        self.failure.take().map_or(Ok(()), Err)
    }

    /// Goes on where another process was killed.
    fn resume(&mut self) -> Result<(), EndError> {
        if self.state.as_ref().is_some_and(|state| state.record.attached) {
            self.announce(", resumed");
        }
        if self.status.has(Status::DRIVER_OK) {
            self.start(true)?;
        }
        self.config_changed();
        Ok(())
    }

    /// Says what people know the device by.
    fn announce(&mut self, how: &str) {
        let (name, found) = (&self.name, sysfs::appeared(&self.name));
        let told: Vec<String> = found.iter().map(ToString::to_string).collect();
        tracing::info!("{name} is attached: {}{how}", told.join(", "));
        let names: Vec<String> = found.into_iter().map(sysfs::Appeared::into_name).collect();
        (self.attached)(&names);
        self.announced = true;
    }

    fn is_ending(&self) -> bool {
        self.failure.is_some() || self.stop.is_asked()
    }

    /// Does what has become due.
    fn turn(&mut self, key: u64) {
        match key {
            STOP => {
                // Seen for good; it would wake us for ever.
                self.epoll.remove(&self.stop);
            }
            DEVICE => self.listen_to_device(),
            NODE => self.take_messages(),
            TIMER => {
                self.timer.drain();
                let again = self.queues.interrupt_again(&self.node);
                self.check(again, "interrupting the driver");
                self.interrupt_config();
            }
            BUS => self.hear_from_bus(),
            FIRST_KICK => self.hear_the_driver(),
            POISON => self.look_at_memory(),
            key => {
                let result = self.queues.interrupt(&self.node, key);
                self.check(result, "interrupting the driver");
            }
        }
        if (self.queues.is_due() || self.config_due) && self.status.has(Status::DRIVER_OK) {
            let result = self.timer.set(TRY_AGAIN, Duration::ZERO);
            self.check(result, "setting a timer");
        }
    }

    fn call_bus(&mut self, call: Call) -> Result<(), EndError> {
        let pending =
            Pending::start(call, &self.name).map_err(self.system("calling the bus of"))?;
        self.epoll.add(&pending, BUS, Interest::Read).map_err(self.system("calling the bus of"))?;
        self.bus = Some(pending);
        self.phase = match call {
            Call::Attach => Phase::Attaching,
            Call::Detach => Phase::Detaching,
        };
        Ok(())
    }

    fn hear_from_bus(&mut self) {
        let Some(result) = self.bus.as_ref().and_then(Pending::result) else { return };
        let Some(pending) = self.bus.take() else { return };
        self.epoll.remove(&pending);
        // An error, and it is there: by the call of the process that was killed, which is over.
        let is_theirs = result.is_err() && self.resumed && sysfs::is_on_bus(&self.name);
        match (pending.call, result) {
            (Call::Attach, Err(error)) if !is_theirs => {
                self.phase = Phase::Off;
                self.fail(EndError::Driver(bus::explain(Call::Attach, &self.name, &error)));
            }
            (Call::Attach, _) => {
                self.phase = Phase::Attached;
                self.note(|record| record.attached = true);
                if !(is_theirs && self.announced) {
                    self.announce("");
                }
            }
            (Call::Detach, result) => {
                self.phase = Phase::Off;
                // Somebody else may have done it.
                if let Err(error) = result
                    && sysfs::is_on_bus(&self.name)
                {
                    self.fail(EndError::Driver(bus::explain(Call::Detach, &self.name, &error)));
                }
            }
        }
    }

    fn take_messages(&mut self) {
        for _ in 0..MESSAGES_PER_TURN {
            match self.node.receive() {
                Ok(Some(message)) => self.answer(message),
                Ok(None) => return,
                Err(source) => {
                    // Nothing will come any more, and this would wake us for ever.
                    self.epoll.remove(&self.node);
                    let attempt = format!("the kernel has given up on {}", self.name);
                    self.fail(EndError::System { attempt, source });
                    return;
                }
            }
        }
    }

    fn answer(&mut self, message: VduseMessage) {
        let id = message.id;
        let answered = match message.request {
            VduseRequest::SetStatus(bits) => {
                let result = self.set_status(id, Status(bits));
                self.check(result, "answering the kernel");
                return;
            }
            VduseRequest::QueueState(index) => {
                match self.queues.state(&self.node, &mut *self.device, index) {
                    Some(state) => self.node.answer_state(id, index, state),
                    None => self.node.answer(id, false),
                }
            }
            VduseRequest::UpdateIotlb { .. } => {
                let done = self.update_memory();
                self.node.answer(id, done)
            }
            VduseRequest::Unknown(kind) => {
                tracing::debug!("the kernel wants {kind} of {}, which is not known", self.name);
                self.node.answer(id, false)
            }
        };
        self.check(answered, "answering the kernel");
    }

    /// The driver has written the status. What takes long comes after the answer, except a reset:
    /// the answer says that nothing of the driver's is touched any more.
    fn set_status(&mut self, id: u32, status: Status) -> std::io::Result<()> {
        let added = status.without(self.status);
        if status == Status::RESET {
            self.reset();
            self.note(|record| record.status = status);
            return self.node.answer(id, true);
        }
        if added.has(Status::FEATURES_OK) {
            let accepted = Features(self.node.features()?);
            if !self.offered.has(accepted) {
                tracing::warn!("the driver accepts {accepted}, where {} is offered", self.offered);
                return self.node.answer(id, false);
            }
        }
        self.status = status;
        if added.has(Status::DRIVER_OK) {
            self.begin_record();
        }
        self.note(|record| record.status = status);
        self.node.answer(id, true)?;
        if added.has(Status::DRIVER_OK)
            && let Err(error) = self.start(false)
        {
            self.fail(error.into());
        }
        Ok(())
    }

    /// Everything stops and is forgotten. Rings that come later may lie at the same addresses in
    /// other pages, so the memory is mapped anew then.
    fn reset(&mut self) {
        if self.status == Status::RESET {
            return;
        }
        self.status = Status::RESET;
        self.config_due = false;
        self.refuser = None;
        self.stop_waiting();
        self.queues.stop(&self.node, &self.epoll, &mut *self.device);
        if let Some(space) = self.memory.take() {
            if let Err(error) = self.device.reset() {
                self.fail(error.into());
            }
            space.replace(MemoryMap::default());
        }
    }

    fn listen_to_device(&mut self) {
        for event in self.device.control_ready() {
            match event {
                DeviceEvent::ConfigChanged => self.config_changed(),
                // The kernel has no way to be told of either, and applications would wait for ever.
                DeviceEvent::NeedsReset(why) => self.fail(EndError::Driver(format!(
                    "the device of {} can't go on and is taken away: {why}",
                    self.name
                ))),
                DeviceEvent::QueueBroken { index, reason } => {
                    self.fail(EndError::Driver(format!(
                        "queue {index} of {} is broken and the device is taken away: {reason}",
                        self.name
                    )));
                }
                DeviceEvent::Gone(why) => tracing::warn!("{}: {why}", self.name),
                DeviceEvent::Back => {
                    tracing::info!("the device of {} is back", self.name);
                    if self.memory.is_some()
                        && let Err(error) = self.queues.start(&self.node, &mut *self.device)
                    {
                        self.fail(error.into());
                    }
                }
            }
        }
    }

    fn config_changed(&mut self) {
        let mut config = vec![0; self.config.len()];
        self.device.read_config(0, &mut config);
        if config == self.config {
            return;
        }
        let result = self.node.set_config(0, &config);
        self.check(result, "changing the config of");
        self.note(|record| record.config.clone_from(&config));
        self.config = config;
        self.config_due = true;
        self.interrupt_config();
    }

    fn interrupt_config(&mut self) {
        if !self.config_due || !self.status.has(Status::DRIVER_OK) {
            self.config_due = false;
            return;
        }
        match queues::taken(self.node.interrupt_config()) {
            Ok(taken) => self.config_due = !taken,
            Err(source) => self.check(Err(source), "interrupting the driver"),
        }
    }

    fn look_at_memory(&mut self) {
        let is_poisoned = self.memory.as_ref().is_some_and(|space| {
            space.current().regions().iter().any(|region| match &region.backing {
                mem::Backing::Mapped { mapping, .. } => mapping.is_poisoned(),
                mem::Backing::Remote(_) => false,
            })
        });
        if is_poisoned && self.failure.is_none() {
            let what = format!("the driver of {} named memory that is not there", self.name);
            self.fail(EndError::Driver(what));
        }
    }

    fn check(&mut self, result: std::io::Result<()>, doing: &str) {
        if let Err(source) = result {
            let attempt = format!("{doing} ({})", self.name);
            self.fail(EndError::System { attempt, source });
        }
    }

    /// Ends the service; the first reason is the one that is told.
    fn fail(&mut self, error: EndError) {
        tracing::error!("{error}");
        self.failure.get_or_insert(error);
    }

    fn stuck(&mut self) -> EndError {
        let name = &self.name;
        let first = self.failure.take().map_or(String::new(), |error| format!("{error}; then "));
        EndError::Driver(format!(
            "{first}the kernel did not take {name} from its driver in {} s: requests wait that \
             nobody completes",
            END_LIMIT.as_secs()
        ))
    }

    fn system(&self, doing: &str) -> impl FnOnce(std::io::Error) -> EndError + use<> {
        EndError::system(format!("{doing} {}", self.name))
    }
}
