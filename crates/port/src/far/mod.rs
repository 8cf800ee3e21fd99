//! A model on another machine: two relays with a stream between them.
//!
//! ```text
//!   Port ==rings==> machine_end ----- TCP, anything ----- model_end ==rings==> Model
//!         as if it were a model                             as if it were a port
//! ```
//!
//! The records of both rings go through the stream in their order, host memory by DmaRead and
//! DmaWrite alone, since no descriptor crosses it. Neither the port nor the model knows. A stream
//! that ends is to the port a model that has ended, and to the model a port that has gone.
//!
//! What goes through the stream is the socket protocol of `wire::cosim` without descriptors, and
//! two kinds of messages more; see `docs/transports/model.md`.
//!
//! What it deliberately lacks: the making of connections, and any proof of who is at the other end.
//! That is for the caller to have seen to before.

mod carrier;
mod relay;
mod stream;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use mem::MemoryError;
use pcie::{FunctionLayout, LayoutError};
use sys::{Connection, EventFd, Listener, Received};
use wire::cosim::{
    AnswerKind, Cosim, Hello, MAX_PAYLOAD, MemoryChange, Message, REMOTE_FILE, Record, RequestKind,
    State, Welcome, hello_flags,
};
use wire::{DecodeError, Framer};

use crate::area::Shared;
use crate::limits::{FAR_SILENCE, FAR_TICK, HELLO_LIMIT};
use crate::model::{ModelError, enter, next_message};
use crate::ring::{Consumer, Producer, RingError};
pub use carrier::Carrier;
use relay::{Relay, Side};
pub use stream::{Frame, Stream};

/// Longest wait for whoever is at this end to take a message.
const LOCAL_LIMIT: Duration = Duration::from_secs(1);

/// Why a session with another machine is over.
#[derive(Debug, thiserror::Error)]
pub enum FarError {
    /// The stream has ended.
    #[error("the other end has gone")]
    Gone,
    /// Nothing came, not even a sign of life.
    #[error("nothing was heard from the other end for {FAR_SILENCE:?}")]
    Silent,
    /// The other end breaks the rules.
    #[error("the other end broke the rules: {0}")]
    Rules(#[from] DecodeError),
    /// The other end says what can be no function.
    #[error("what the other end has can't be a function: {0}")]
    Layout(#[from] LayoutError),
    /// One end can't take the other.
    #[error("refused: {0}")]
    Refused(String),
    /// The port or model at this end has gone.
    #[error("its process at this end has gone")]
    LocalGone,
    /// The model takes nothing any more.
    #[error("the model has taken nothing for {0:?}")]
    Stuck(Duration),
    /// The port at this end does not go on.
    #[error("the port at this end: {0}")]
    Port(#[from] ModelError),
    /// The rings at this end make no sense.
    #[error("{0}")]
    Ring(#[from] RingError),
    /// No memory for the rings.
    #[error("no memory for the rings: {0}")]
    Memory(#[from] MemoryError),
    /// The system failed us.
    #[error("{0}")]
    System(#[from] io::Error),
}

/// Stands for the model at the port that listens at `port`: relays what goes to and fro through
/// `carrier`, until `stop` becomes readable.
///
/// # Errors
/// The session is over for another reason.
pub fn machine_end(
    carrier: Box<dyn Carrier>,
    port: &Path,
    stop: BorrowedFd<'_>,
) -> Result<(), FarError> {
    let mut stream = Stream::new(carrier);
    let heard = await_message::<AnswerKind>(&mut stream, stop, None)?;
    let mut hello = match heard {
        None => return Ok(()),
        Some(Message::Hello(hello)) => hello,
        Some(_) => return Err(unexpected("first message")),
    };
    if let Err(why) = can_be_far(&hello) {
        stream.say_last(&Message::Refused(why.clone()));
        return Err(FarError::Refused(why));
    }
    hello.flags &= !hello_flags::DIRECT_MEMORY;
    let local = sys::connect_unix(port)?;
    let mut bytes = Vec::new();
    Message::Hello(hello).encode(&mut bytes);
    local.send_all(&bytes, &[], LOCAL_LIMIT)?;
    let mut framer = Framer::new(MAX_PAYLOAD);
    let (welcome, fds) = match next_message(&local, &mut framer)? {
        (Message::Welcome(welcome), fds) => (welcome, fds),
        (Message::Refused(why), _) => {
            stream.say_last(&Message::Refused(why.clone()));
            return Err(FarError::Refused(why));
        }
        _ => return Err(unexpected("answer to a hello")),
    };
    let (shared, [wake_us, wake_port], _) = enter(welcome, fds, &FunctionLayout::default())?;
    stream.put_message(&Message::Welcome(Welcome { area_len: 0, mapped: 0, ..welcome }));
    let mut relay = Relay::new(
        stream,
        Consumer::<RequestKind>::new(shared.requests()),
        Producer::<AnswerKind>::new(shared.answers()),
        [EventFd::from_fd(wake_us)?, EventFd::from_fd(wake_port)?],
        None,
    );
    relay.run(&mut AtMachine { local: &local, framer }, local.as_fd(), stop)
}

/// Stands for the port to the model that connects to `gate`: relays what goes to and fro through
/// `carrier`, until `stop` becomes readable. A model that takes nothing for longer than `patience`
/// ends the session. `attached` is called when the port has let the model in.
///
/// # Errors
/// The session is over for another reason.
pub fn model_end(
    carrier: Box<dyn Carrier>,
    gate: &Listener,
    patience: Option<Duration>,
    stop: BorrowedFd<'_>,
    attached: impl FnOnce(),
) -> Result<(), FarError> {
    let mut stream = Stream::new(carrier);
    let Some((hello, local)) = await_model(&mut stream, gate, stop)? else { return Ok(()) };
    stream.put_message(&Message::Hello(hello));
    let limit = Some(Instant::now() + FAR_SILENCE);
    let welcome = match await_message::<RequestKind>(&mut stream, stop, limit)? {
        None => return Ok(()),
        Some(Message::Welcome(welcome)) => welcome,
        Some(Message::Refused(why)) => {
            let mut bytes = Vec::new();
            Message::Refused(why.clone()).encode(&mut bytes);
            let _ = local.send_all(&bytes, &[], LOCAL_LIMIT);
            return Err(FarError::Refused(why));
        }
        Some(_) => return Err(unexpected("answer to a hello")),
    };
    let (shared, file, area_len) = Shared::create()?;
    shared.set_state(State::from_word(welcome.state));
    let (wake_model, wake_us) = (EventFd::new()?, EventFd::new()?);
    let mut bytes = Vec::new();
    Message::Welcome(Welcome { area_len, mapped: 0, ..welcome }).encode(&mut bytes);
    let fds = [file.as_fd(), wake_model.as_fd(), wake_us.as_fd()];
    local.send_all(&bytes, &fds, LOCAL_LIMIT)?;
    attached();
    let mut relay = Relay::new(
        stream,
        Consumer::<AnswerKind>::new(shared.answers()),
        Producer::<RequestKind>::new(shared.requests()),
        [wake_us, wake_model],
        patience,
    );
    let mut side = AtModel { local: &local, shared, announced: None };
    relay.run(&mut side, local.as_fd(), stop)
}

fn unexpected(field: &'static str) -> FarError {
    DecodeError::Value { field, value: 0 }.into()
}

/// Whether a stream can carry what this function needs.
fn can_be_far(hello: &Hello) -> Result<(), String> {
    if hello.bars.iter().any(|bar| bar.mapped.1 != 0) {
        return Err("a card with BARs that the machine maps has to be on the same machine".into());
    }
    crate::shape::function(hello).map(drop).map_err(|error| error.to_string())
}

/// The next message of the other end; `None` if `stop` became readable first.
fn await_message<K: wire::cosim::Kind>(
    stream: &mut Stream,
    stop: BorrowedFd<'_>,
    limit: Option<Instant>,
) -> Result<Option<Message>, FarError> {
    let mut wait = Duration::ZERO;
    loop {
        if sys::wait_for_any(&[stop, stream.as_fd()], wait)?[0] {
            return Ok(None);
        }
        wait = match stream.receive::<K>(&mut Vec::new())? {
            Some(Frame::Message(message)) => return Ok(Some(message)),
            Some(Frame::Alive) => Duration::ZERO,
            Some(Frame::Record(_)) => return Err(unexpected("record before a welcome")),
            None => FAR_TICK,
        };
        if limit.is_some_and(|limit| limit < Instant::now()) {
            return Err(FarError::Silent);
        }
        stream.tick()?;
    }
}

/// The next model at the gate; `None` if `stop` became readable first.
fn await_model(
    stream: &mut Stream,
    gate: &Listener,
    stop: BorrowedFd<'_>,
) -> Result<Option<(Box<Hello>, Connection)>, FarError> {
    let mut arriving: Option<(Connection, Framer<Cosim>, Instant)> = None;
    loop {
        let nearer = arriving.as_ref().map_or(gate.as_fd(), |(socket, ..)| socket.as_fd());
        if sys::wait_for_any(&[stop, stream.as_fd(), nearer], FAR_TICK)?[0] {
            return Ok(None);
        }
        match stream.receive::<RequestKind>(&mut Vec::new())? {
            None | Some(Frame::Alive) => {}
            Some(_) => return Err(unexpected("message before a hello")),
        }
        stream.tick()?;
        if arriving.is_none() {
            let somebody = gate.accept()?;
            let begin = Instant::now();
            arriving = somebody.map(|socket| (socket, Framer::new(MAX_PAYLOAD), begin));
        }
        let Some((socket, framer, since)) = &mut arriving else { continue };
        match hear_hello(socket, framer) {
            Ok(Some(hello)) if !is_closed(socket) => {
                return Ok(arriving.take().map(|(socket, ..)| (hello, socket)));
            }
            Ok(None) if since.elapsed() < HELLO_LIMIT => {}
            // One that has ended meanwhile, or was none.
            Ok(_) => arriving = None,
            Err(error) => {
                tracing::warn!("whoever connected as a model is none: {error}");
                arriving = None;
            }
        }
    }
}

/// The Hello, if all of it is there.
fn hear_hello(
    socket: &Connection,
    framer: &mut Framer<Cosim>,
) -> Result<Option<Box<Hello>>, FarError> {
    let mut fds = Vec::new();
    loop {
        match socket.receive(framer.space(), &mut fds)? {
            Received::Bytes(len) => framer.commit(len)?,
            Received::Nothing => return Ok(None),
            Received::Closed => return Err(FarError::LocalGone),
        }
        let Some((header, payload)) = framer.message() else { continue };
        return match Message::decode(&header, payload, fds.len())? {
            Message::Hello(hello) => Ok(Some(hello)),
            _ => Err(unexpected("first message")),
        };
    }
}

fn is_closed(socket: &Connection) -> bool {
    matches!(socket.receive(&mut [0; 1], &mut Vec::new()), Ok(Received::Closed))
}

/// Between a port and the stream.
struct AtMachine<'a> {
    local: &'a Connection,
    framer: Framer<Cosim>,
}

impl Side<RequestKind, AnswerKind> for AtMachine<'_> {
    fn leaves(&mut self, record: &Record<RequestKind>, out: &mut Stream) -> Result<(), FarError> {
        if record.kind != RequestKind::Memory {
            return Ok(());
        }
        // The port has sent it before the record.
        match next_message(self.local, &mut self.framer)? {
            (Message::Memory(change), _) if change.number == record.tag && is_remote(&change) => {
                out.put_message(&Message::Memory(change));
                Ok(())
            }
            _ => Err(unexpected("memory message of the port")),
        }
    }

    fn arrives(&mut self, _: &Record<AnswerKind>) -> Result<(), FarError> {
        Ok(())
    }

    fn message(&mut self, _: Message) -> Result<(), FarError> {
        Err(unexpected("message of a model"))
    }
}

/// Between the stream and a model.
struct AtModel<'a> {
    local: &'a Connection,
    shared: Shared,
    /// The memory message whose record comes next.
    announced: Option<u64>,
}

impl Side<AnswerKind, RequestKind> for AtModel<'_> {
    fn leaves(&mut self, _: &Record<AnswerKind>, _: &mut Stream) -> Result<(), FarError> {
        Ok(())
    }

    fn arrives(&mut self, record: &Record<RequestKind>) -> Result<(), FarError> {
        let announced = self.announced.take();
        if announced != (record.kind == RequestKind::Memory).then_some(record.tag) {
            return Err(unexpected("record of a memory message"));
        }
        if record.kind == RequestKind::State {
            self.shared.set_state(State::from_word(record.value));
        }
        Ok(())
    }

    fn message(&mut self, message: Message) -> Result<(), FarError> {
        match message {
            Message::Memory(change) if self.announced.is_none() && is_remote(&change) => {
                self.announced = Some(change.number);
                let mut bytes = Vec::new();
                Message::Memory(change).encode(&mut bytes);
                Ok(self.local.send_all(&bytes, &[], LOCAL_LIMIT)?)
            }
            _ => Err(unexpected("message of a port")),
        }
    }
}

/// Whether all that it adds is reached by messages.
fn is_remote(change: &MemoryChange) -> bool {
    change.files.is_empty() && change.added.iter().all(|region| region.file == REMOTE_FILE)
}
