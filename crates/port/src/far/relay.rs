//! One ring out into the stream, the stream into the other ring.
//!
//! What waits is bounded at every step: a stream that takes nothing leaves the records in their
//! ring, whose producer then waits for room; a ring that is full leaves what comes in the socket,
//! and the other machine waits.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use sys::{Epoll, EventFd, Interest};
use wire::cosim::{Kind, Message, Record};

use super::FarError;
use super::stream::{Frame, Stream};
use crate::limits::{FAR_TICK, MAX_RECORDS_PER_TURN};
use crate::ring::{Consumer, Producer, Pushed};

/// What an end does about records of its own concern.
pub trait Side<From: Kind, To: Kind> {
    /// Before a record goes into the stream.
    fn leaves(&mut self, record: &Record<From>, out: &mut Stream) -> Result<(), FarError>;
    /// Before a record goes into the ring.
    fn arrives(&mut self, record: &Record<To>) -> Result<(), FarError>;
    /// A message has come.
    fn message(&mut self, message: Message) -> Result<(), FarError>;
}

mod key {
    pub const STOP: u64 = 0;
    pub const WAKE: u64 = 1;
    pub const LOCAL: u64 = 2;
    pub const STREAM: u64 = 3;
}

/// Two rings at one end of a stream.
pub struct Relay<From: Kind, To: Kind> {
    stream: Stream,
    consumer: Consumer<From>,
    producer: Producer<To>,
    wake_us: EventFd,
    wake_local: EventFd,
    patience: Option<Duration>,
    /// What was taken last, and since when that is so.
    taken: (u64, Instant),
    /// Has come, and waits for room in the ring; its data is in `incoming`.
    waiting: Option<Record<To>>,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// What the stream is watched for.
    watched: Option<Interest>,
}

impl<From: Kind, To: Kind> Relay<From, To> {
    /// With the events of this end and of whoever is at the other end of the rings.
    pub fn new(
        stream: Stream,
        consumer: Consumer<From>,
        producer: Producer<To>,
        [wake_us, wake_local]: [EventFd; 2],
        patience: Option<Duration>,
    ) -> Self {
        Self {
            stream,
            consumer,
            producer,
            wake_us,
            wake_local,
            patience,
            taken: (0, Instant::now()),
            waiting: None,
            incoming: Vec::new(),
            outgoing: Vec::new(),
            watched: None,
        }
    }

    /// Relays until `stop` becomes readable; `local` is closed when whoever is at the other end of
    /// the rings has gone.
    pub fn run(
        &mut self,
        side: &mut impl Side<From, To>,
        local: BorrowedFd<'_>,
        stop: BorrowedFd<'_>,
    ) -> Result<(), FarError> {
        let epoll = Epoll::new()?;
        epoll.add(stop, key::STOP, Interest::Read)?;
        epoll.add(&self.wake_us, key::WAKE, Interest::Read)?;
        // Once per arrival: messages there are read when their record says so.
        epoll.add(local, key::LOCAL, Interest::ReadEdge)?;
        let mut ready = Vec::new();
        loop {
            self.consumer.wake();
            self.send(side)?;
            let has_more = self.receive(side)?;
            if self.waiting.is_some() {
                self.stream.excuse();
            }
            self.stream.tick()?;
            self.check_patience()?;
            self.watch(&epoll)?;
            let can_sleep = !has_more && (!self.stream.has_room() || self.consumer.sleep());
            let limit = if can_sleep { FAR_TICK } else { Duration::ZERO };
            epoll.wait(&mut ready, Some(limit))?;
            for event in &ready {
                match event.key {
                    key::STOP => return Ok(()),
                    key::WAKE => {
                        self.wake_us.drain();
                    }
                    key::LOCAL if event.closed => return Err(FarError::LocalGone),
                    _ => {}
                }
            }
        }
    }

    /// From the ring into the stream, as long as there is room.
    fn send(&mut self, side: &mut impl Side<From, To>) -> Result<(), FarError> {
        for _ in 0..MAX_RECORDS_PER_TURN {
            if !self.stream.has_room() {
                break;
            }
            let Some(record) = self.consumer.pop(&mut self.outgoing)? else {
                if self.consumer.give_room() {
                    self.wake_local.signal();
                }
                break;
            };
            side.leaves(&record, &mut self.stream)?;
            self.stream.put_record(&record, &self.outgoing);
        }
        self.stream.flush()
    }

    /// From the stream into the ring, as long as there is room; whether there may be more.
    fn receive(&mut self, side: &mut impl Side<From, To>) -> Result<bool, FarError> {
        for _ in 0..MAX_RECORDS_PER_TURN {
            if !self.push()? {
                return Ok(false);
            }
            match self.stream.receive(&mut self.incoming)? {
                None => return Ok(false),
                Some(Frame::Alive) => {}
                Some(Frame::Message(message)) => side.message(message)?,
                Some(Frame::Record(record)) => {
                    side.arrives(&record)?;
                    self.waiting = Some(record);
                }
            }
        }
        self.push()
    }

    /// Puts what waits into the ring; false if there is no room.
    fn push(&mut self) -> Result<bool, FarError> {
        while let Some(record) = self.waiting {
            match self.producer.push(record, &self.incoming)? {
                Pushed::Full if self.producer.wait_for_room()? => return Ok(false),
                Pushed::Full => continue,
                Pushed::WantsEvent => self.wake_local.signal(),
                Pushed::Seen => {}
            }
            self.waiting = None;
        }
        Ok(true)
    }

    fn check_patience(&mut self) -> Result<(), FarError> {
        let Some(limit) = self.patience else { return Ok(()) };
        let is_drained = self.producer.is_drained()?;
        let taken = self.producer.taken();
        if is_drained || taken != self.taken.0 {
            self.taken = (taken, Instant::now());
        } else if self.taken.1.elapsed() > limit {
            return Err(FarError::Stuck(limit));
        }
        Ok(())
    }

    /// Waits for what the stream can be used for.
    fn watch(&mut self, epoll: &Epoll) -> Result<(), FarError> {
        let wanted = match (self.waiting.is_none(), self.stream.has_output()) {
            (true, true) => Some(Interest::ReadWrite),
            (true, false) => Some(Interest::Read),
            (false, true) => Some(Interest::Write),
            (false, false) => None,
        };
        match (self.watched, wanted) {
            (was, wanted) if was == wanted => {}
            (None, Some(interest)) => epoll.add(&self.stream, key::STREAM, interest)?,
            (Some(_), Some(interest)) => epoll.modify(&self.stream, key::STREAM, interest)?,
            (_, None) => epoll.remove(&self.stream),
        }
        self.watched = wanted;
        Ok(())
    }
}
