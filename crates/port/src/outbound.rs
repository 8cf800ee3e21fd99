//! A model's way to its port: the ring of answers, for any thread.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pcie::{InterruptKind, InterruptSink};
use sys::EventFd;
use wire::cosim::{AnswerKind, Record, State, flag, interrupt};

use crate::area::Shared;
use crate::limits::MAX_ANSWERS_WAITING;
use crate::ring::{Producer, Pushed};

/// The ring of answers.
#[derive(Debug)]
pub struct Outbound {
    state: Mutex<Queue>,
    wake_port: EventFd,
    shared: Shared,
    is_closed: AtomicBool,
}

#[derive(Debug)]
struct Queue {
    producer: Producer<AnswerKind>,
    /// What the ring has no room for.
    waiting: VecDeque<(Record<AnswerKind>, Vec<u8>)>,
}

impl Outbound {
    pub(crate) fn new(shared: Shared, wake_port: OwnedFd) -> std::io::Result<Self> {
        let producer = Producer::new(shared.answers());
        Ok(Self {
            state: Mutex::new(Queue { producer, waiting: VecDeque::new() }),
            wake_port: EventFd::from_fd(wake_port)?,
            shared,
            is_closed: AtomicBool::new(false),
        })
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a record, or keeps it until there is room. Beyond a bound it is lost: a port that has
    /// not looked at tens of thousands is not going to.
    pub fn send(&self, record: Record<AnswerKind>, data: &[u8]) {
        let mut queue = self.queue();
        if queue.waiting.is_empty() {
            match queue.producer.push(record, data) {
                Ok(Pushed::Seen) => return,
                Ok(Pushed::WantsEvent) => return self.wake_port.signal(),
                Ok(Pushed::Full) => {}
                Err(_) => return self.close(),
            }
        }
        if queue.waiting.len() < MAX_ANSWERS_WAITING {
            queue.waiting.push_back((record, data.to_vec()));
        }
        self.flush_locked(&mut queue);
    }

    /// Tells the port that there is room in the ring of requests.
    pub(crate) fn nudge(&self) {
        self.wake_port.signal();
    }

    /// Sends what waits for room; whether something still does.
    pub(crate) fn flush(&self) -> bool {
        let mut queue = self.queue();
        if !queue.waiting.is_empty() {
            self.flush_locked(&mut queue);
        }
        !queue.waiting.is_empty()
    }

    fn flush_locked(&self, queue: &mut Queue) {
        let Queue { producer, waiting } = queue;
        while let Some((record, data)) = waiting.front() {
            match producer.push(*record, data) {
                Ok(Pushed::Full) => match producer.wait_for_room() {
                    Ok(true) => return,
                    Ok(false) => continue,
                    Err(_) => return self.close(),
                },
                Ok(Pushed::WantsEvent) => self.wake_port.signal(),
                Ok(Pushed::Seen) => {}
                Err(_) => return self.close(),
            }
            waiting.pop_front();
        }
    }

    /// What the port last said of the host and the configuration.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared.state()
    }

    /// Whether the port is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    pub(crate) fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
    }

    /// Sets bytes of the configuration space, whatever a driver may write there.
    pub fn put_config(&self, at: u64, bytes: &[u8]) {
        for (part, data) in bytes.chunks(wire::cosim::MAX_DATA).enumerate() {
            let at = at + (part * wire::cosim::MAX_DATA) as u64;
            self.send(Record::new(AnswerKind::ConfigPut).at(at), data);
        }
    }

    /// A line for people, in the port's log.
    pub fn log(&self, is_error: bool, line: &str) {
        /// Longest line.
        const MOST: usize = 512;
        let bytes = &line.as_bytes()[..line.len().min(MOST)];
        self.send(Record::new(AnswerKind::Log).detail(is_error.into()), bytes);
    }
}

impl InterruptSink for Outbound {
    fn signal(&self, kind: InterruptKind, vector: u16) {
        let detail = if kind == InterruptKind::Msi { interrupt::MSI } else { interrupt::MSIX };
        let record = Record::new(AnswerKind::Interrupt).detail(detail).value(vector.into());
        self.send(record, &[]);
    }

    fn set_intx(&self, asserted: bool) {
        let flags = if asserted { flag::RAISED } else { 0 };
        self.send(Record::new(AnswerKind::Interrupt).detail(interrupt::LINE).flags(flags), &[]);
    }

    fn is_used(&self, kind: InterruptKind) -> bool {
        let state = self.state();
        match kind {
            InterruptKind::Intx => state.intx,
            InterruptKind::Msi => state.msi,
            InterruptKind::Msix => state.msix,
        }
    }
}
