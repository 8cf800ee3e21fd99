use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use super::control::{Messages, Port};
use super::line::{Input, Output};
use crate::patience::Patience;
use crate::queue::{Fault, Outcome, QueueAccess, Reader, Serve};

/// Bytes moved at a time.
const PIECE: usize = 4096;

/// The bytes to the driver of one port.
pub(super) struct Receive {
    input: Input,
    port: Arc<Port>,
    piece: Box<[u8; PIECE]>,
    /// The latest poll ended for want of bytes, or of a reader; more show on their descriptors.
    drained: bool,
}

impl Receive {
    pub(super) fn new(input: Input, port: Arc<Port>) -> Self {
        Self { input, port, piece: Box::new([0; PIECE]), drained: false }
    }

    pub(super) fn into_input(self) -> Input {
        self.input
    }
}

impl Serve for Receive {
    fn poll(&mut self, queue: &mut QueueAccess, budget: u32) -> Result<bool, Fault> {
        self.drained = !self.port.is_open();
        if self.drained {
            return Ok(false);
        }
        queue.each(budget, |buffers| {
            let mut writer = buffers.writer();
            let room = writer.left().min(PIECE as u64) as usize;
            if room == 0 {
                return Ok(Outcome::Done(0));
            }
            let got = self.input.read(&mut self.piece[..room]);
            self.drained = got == 0;
            writer.write(&self.piece[..got]);
            Ok(if self.drained { Outcome::Later } else { Outcome::Done(got as u32) })
        })
    }

    fn wake_on(&self) -> Vec<BorrowedFd<'_>> {
        let mut fds = vec![self.port.opened.as_fd()];
        fds.extend(self.input.wake_on());
        fds
    }

    fn refresh(&mut self) {
        self.input.refresh();
    }

    fn arm(&mut self, available: bool) -> bool {
        available && !self.drained
    }

    fn disarm(&mut self) {
        self.port.opened.drain();
    }
}

/// The bytes from the driver of one port.
pub(super) struct Transmit {
    output: Output,
    piece: Box<[u8; PIECE]>,
    /// Bytes of the chain that comes next that are out already.
    sent: u64,
    patience: Patience,
}

impl Transmit {
    pub(super) fn new(output: Output) -> Self {
        Self { output, piece: Box::new([0; PIECE]), sent: 0, patience: Patience::new() }
    }

    pub(super) fn into_output(self) -> Output {
        self.output
    }

    fn serve(&mut self, mut reader: Reader<'_>) -> Outcome {
        reader.0.skip(self.sent);
        while reader.left() > 0 {
            let mut ahead = reader;
            let got = ahead.read(&mut self.piece[..]);
            match self.output.write(&self.piece[..got]) {
                Some(n) => {
                    self.patience.went();
                    reader.0.skip(n as u64);
                    self.sent += n as u64;
                }
                None if self.patience.blocked() => return Outcome::Later,
                // The rest of the chain is lost.
                None => break,
            }
        }
        self.sent = 0;
        Outcome::Done(0)
    }
}

impl Serve for Transmit {
    fn poll(&mut self, queue: &mut QueueAccess, budget: u32) -> Result<bool, Fault> {
        self.patience.begin();
        queue.each(budget, |buffers| Ok(self.serve(buffers.reader())))
    }

    fn arm(&mut self, available: bool) -> bool {
        available && self.patience.retry_at().is_none()
    }

    fn deadline(&self) -> Option<Instant> {
        self.patience.retry_at()
    }
}

/// The queues of a console.
pub(super) enum ConsoleQueue {
    Receive(Receive),
    Transmit(Transmit),
    /// Messages to the driver.
    ControlReceive(Arc<Messages>),
    /// Messages from the driver.
    ControlTransmit(Arc<Messages>),
}

impl Serve for ConsoleQueue {
    fn poll(&mut self, queue: &mut QueueAccess, budget: u32) -> Result<bool, Fault> {
        match self {
            Self::Receive(serve) => serve.poll(queue, budget),
            Self::Transmit(serve) => serve.poll(queue, budget),
            Self::ControlReceive(messages) => queue.each(budget, |buffers| {
                let written = messages.next(&mut buffers.writer());
                Ok(written.map_or(Outcome::Later, Outcome::Done))
            }),
            Self::ControlTransmit(messages) => queue.each(budget, |buffers| {
                messages.accept(buffers.reader());
                Ok(Outcome::Done(0))
            }),
        }
    }

    fn wake_on(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Receive(serve) => serve.wake_on(),
            Self::ControlReceive(messages) => vec![messages.wake.as_fd()],
            Self::Transmit(_) | Self::ControlTransmit(_) => Vec::new(),
        }
    }

    fn refresh(&mut self) {
        if let Self::Receive(serve) = self {
            serve.refresh();
        }
    }

    fn arm(&mut self, available: bool) -> bool {
        match self {
            Self::Receive(serve) => serve.arm(available),
            Self::Transmit(serve) => serve.arm(available),
            Self::ControlReceive(messages) => available && !messages.is_empty(),
            Self::ControlTransmit(_) => available,
        }
    }

    fn disarm(&mut self) {
        match self {
            Self::Receive(serve) => serve.disarm(),
            Self::ControlReceive(messages) => drop(messages.wake.drain()),
            Self::Transmit(_) | Self::ControlTransmit(_) => {}
        }
    }

    fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Transmit(serve) => serve.deadline(),
            _ => None,
        }
    }
}
