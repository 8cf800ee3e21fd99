//! Where models come in: one at a time, each says who it is.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use sys::{Connection, Epoll, Interest, Listener, Received};
use wire::Framer;
use wire::cosim::{Cosim, Hello, MAX_PAYLOAD, Message, hello_flags};

use super::{Port, PortError, key, system};
use crate::limits::HELLO_LIMIT;
use crate::link::Link;
use crate::trace::kind;

/// The listener, and whoever is just saying who it is.
#[derive(Debug)]
pub struct Gate {
    listener: Listener,
    arriving: Option<Arriving>,
}

#[derive(Debug)]
struct Arriving {
    socket: Connection,
    framer: Framer<Cosim>,
    deadline: Instant,
}

/// How far somebody is with its Hello.
enum Heard {
    All(Box<Hello>),
    Part,
    Nonsense(String),
}

impl Arriving {
    fn new(socket: Connection) -> Self {
        let deadline = Instant::now() + HELLO_LIMIT;
        Self { socket, framer: Framer::new(MAX_PAYLOAD), deadline }
    }

    fn hear(&mut self) -> Heard {
        let mut fds: Vec<OwnedFd> = Vec::new();
        loop {
            match self.socket.receive(self.framer.space(), &mut fds) {
                Ok(Received::Bytes(len)) => {
                    if let Err(error) = self.framer.commit(len) {
                        return Heard::Nonsense(error.to_string());
                    }
                }
                Ok(Received::Nothing) => return Heard::Part,
                Ok(Received::Closed) => return Heard::Nonsense("it closed the socket".into()),
                Err(error) => return Heard::Nonsense(error.to_string()),
            }
            let Some((header, payload)) = self.framer.message() else { continue };
            return match Message::decode(&header, payload, fds.len()) {
                Ok(Message::Hello(hello)) => Heard::All(hello),
                Ok(_) => Heard::Nonsense("its first message is no hello".into()),
                Err(error) => Heard::Nonsense(error.to_string()),
            };
        }
    }
}

impl Gate {
    pub fn new(listener: Listener) -> Self {
        Self { listener, arriving: None }
    }

    pub fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.arriving.as_ref().map(|arriving| arriving.deadline)
    }

    pub fn expire(&mut self, now: Instant) {
        if self.deadline().is_some_and(|at| at <= now) {
            self.arriving = None;
            tracing::warn!("somebody connected as a model and said nothing");
        }
    }

    /// Waits for the first model; `None` if `stop` became readable first.
    pub fn await_first(
        &mut self,
        stop: impl AsFd,
    ) -> Result<Option<(Hello, Connection)>, PortError> {
        let epoll = Epoll::new().map_err(system("make an epoll set"))?;
        let stop_key = u64::MAX;
        epoll.add(&self.listener, key::LISTENER, Interest::Read).map_err(system("wait"))?;
        epoll.add(stop, stop_key, Interest::Read).map_err(system("wait"))?;
        let mut ready = Vec::new();
        loop {
            let limit = self.deadline().map(|at| at.saturating_duration_since(Instant::now()));
            epoll.wait(&mut ready, limit).map_err(system("wait for a model"))?;
            if ready.iter().any(|event| event.key == stop_key) {
                return Ok(None);
            }
            self.expire(Instant::now());
            let was = self.arriving.is_some();
            if let Some(found) = self.step() {
                return Ok(Some(found));
            }
            if let (false, Some(arriving)) = (was, &self.arriving) {
                epoll
                    .add(&arriving.socket, key::ARRIVING, Interest::Read)
                    .map_err(system("wait for a model"))?;
            }
        }
    }

    /// Accepts, and hears whoever is there.
    fn step(&mut self) -> Option<(Hello, Connection)> {
        if self.arriving.is_none() {
            self.arriving = self.listener.accept().ok().flatten().map(Arriving::new);
        }
        let arriving = self.arriving.as_mut()?;
        match arriving.hear() {
            Heard::All(hello) => {
                let arriving = self.arriving.take()?;
                Some((*hello, arriving.socket))
            }
            Heard::Part => None,
            Heard::Nonsense(why) => {
                tracing::warn!("whoever connected as a model is none: {why}");
                self.arriving = None;
                None
            }
        }
    }
}

impl Port {
    /// Somebody connects, or says more.
    pub(super) fn somebody_comes(&mut self) {
        let was = self.gate.arriving.is_some();
        let found = self.gate.step();
        if let (false, Some(arriving)) = (was, &self.gate.arriving) {
            let _ = self.epoll.add(&arriving.socket, key::ARRIVING, Interest::Read);
        }
        let Some((hello, socket)) = found else { return };
        self.epoll.remove(&socket);
        let is_gone = |link: &Link| {
            matches!(link.socket.receive(&mut [0; 1], &mut Vec::new()), Ok(Received::Closed))
        };
        if self.link.as_ref().is_some_and(is_gone) {
            self.lose(&crate::link::Lost::Gone);
        }
        if self.link.is_some() {
            return refuse(&socket, "another model is attached");
        }
        if let Some(difference) = crate::shape::difference(&self.hello, &hello) {
            let why = format!("{difference}; start the virtual machine and its port again");
            return refuse(&socket, &why);
        }
        self.attach(&hello, socket);
    }

    /// Lets a model in.
    pub(super) fn attach(&mut self, hello: &Hello, socket: Connection) {
        let direct = hello.flags & hello_flags::DIRECT_MEMORY != 0;
        let limit = self.options.backlog_bytes;
        let link = match Link::welcome(socket, hello.name.clone(), direct, limit, &self.layout) {
            Ok(link) => link,
            Err(error) => return tracing::warn!("the model could not be let in: {error}"),
        };
        for set in [&self.epoll, &self.waiter] {
            let socket = set.add(&link.socket, key::SOCKET, Interest::Read);
            let wake = set.add(&link.wake_port, key::WAKE, Interest::Read);
            if let Err(error) = socket.and(wake) {
                return tracing::warn!("the model could not be let in: {error}");
            }
        }
        tracing::info!("the model {} is here", hello.name);
        let mut link = link;
        if let Some(recorder) = &self.options.recorder {
            recorder.begin(&self.hello);
            recorder.event(kind::ATTACHED, 0, &[]);
            link.record_by(Some(recorder.clone()));
        }
        if let Some(tell) = &mut self.options.on_attached {
            tell();
        }
        self.link = Some(link);
        self.told = crate::memory::Told::default();
        self.memory_done = 0;
        self.resetting = None;
        self.silent_since = None;
        self.tell_config();
        self.tell_state();
        self.tell_memory();
    }
}

fn refuse(socket: &Connection, why: &str) {
    tracing::warn!("a model was refused: {why}");
    let mut bytes = Vec::new();
    Message::Refused(why.to_owned()).encode(&mut bytes);
    let _ = socket.send(&[std::io::IoSlice::new(&bytes)], &[]);
}
