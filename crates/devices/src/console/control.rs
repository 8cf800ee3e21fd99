use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sys::EventFd;

use crate::queue::{Reader, Writer};

/// Events of `virtio_console_control` (VIRTIO 1.4, 5.3.6.2).
mod event {
    pub const DEVICE_READY: u16 = 0;
    pub const DEVICE_ADD: u16 = 1;
    pub const PORT_READY: u16 = 3;
    pub const CONSOLE_PORT: u16 = 4;
    pub const RESIZE: u16 = 5;
    pub const PORT_OPEN: u16 = 6;
    pub const PORT_NAME: u16 = 7;
}

/// Bytes of a message without what follows it: port, event, value.
const MESSAGE: usize = 8;

/// Most messages kept for a driver that does not read them. A driver that asks for more than it
/// reads loses the oldest.
const MAX_MESSAGES: usize = 1024;

/// A port as both sides of the device know it.
#[derive(Debug)]
pub(super) struct Port {
    /// What the driver shows for it; empty for the console itself.
    pub(super) name: String,
    /// Whether a program in the guest has it open. Without MULTIPORT nobody says, and it counts as
    /// open.
    open: AtomicBool,
    /// Signalled when it is opened.
    pub(super) opened: EventFd,
}

impl Port {
    pub(super) fn new(name: String) -> std::io::Result<Arc<Self>> {
        Ok(Arc::new(Self { name, open: AtomicBool::new(true), opened: EventFd::new()? }))
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    pub(super) fn set_open(&self, open: bool) {
        self.open.store(open, Ordering::Release);
        if open {
            self.opened.signal();
        }
    }
}

/// The messages between driver and device about ports.
#[derive(Debug)]
pub(super) struct Messages {
    ports: Vec<Arc<Port>>,
    state: Mutex<State>,
    /// Signalled when there is something for the driver.
    pub(super) wake: EventFd,
}

#[derive(Debug, Default)]
struct State {
    to_driver: VecDeque<Vec<u8>>,
    /// The ports the driver knows of, by number.
    ready: Vec<bool>,
    /// Whether somebody is at the other end, by port.
    connected: Vec<bool>,
    /// Columns and rows.
    size: Option<(u16, u16)>,
}

impl Messages {
    pub(super) fn new(ports: Vec<Arc<Port>>) -> std::io::Result<Self> {
        let state = State {
            ready: vec![false; ports.len()],
            connected: vec![true; ports.len()],
            ..State::default()
        };
        Ok(Self { ports, state: Mutex::new(state), wake: EventFd::new()? })
    }

    /// Forgets the driver.
    pub(super) fn reset(&self) {
        let mut state = self.lock();
        state.to_driver.clear();
        state.ready.fill(false);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().to_driver.is_empty()
    }

    /// Writes the next message for the driver; `None` if there is none. One that does not fit is
    /// cut.
    pub(super) fn next(&self, writer: &mut Writer<'_>) -> Option<u32> {
        let message = self.lock().to_driver.pop_front()?;
        Some(writer.write(&message) as u32)
    }

    /// Somebody came to the other end of a port, or went.
    pub(super) fn set_connected(&self, port: usize, connected: bool) {
        let mut state = self.lock();
        if std::mem::replace(&mut state.connected[port], connected) != connected
            && state.ready[port]
        {
            state.push(port, event::PORT_OPEN, connected.into(), &[]);
            self.wake.signal();
        }
    }

    /// The console has another size.
    pub(super) fn set_size(&self, columns: u16, rows: u16) {
        let mut state = self.lock();
        state.size = Some((columns, rows));
        if state.ready[0] {
            state.push_size();
            self.wake.signal();
        }
    }

    /// Does what a message from the driver asks for. What makes no sense is ignored.
    pub(super) fn accept(&self, mut reader: Reader<'_>) {
        let Some(message) = reader.array::<MESSAGE>() else { return };
        let number = u32::from_le_bytes([message[0], message[1], message[2], message[3]]) as usize;
        let event = u16::from_le_bytes([message[4], message[5]]);
        let value = u16::from_le_bytes([message[6], message[7]]);
        let mut state = self.lock();
        match (event, value, self.ports.get(number)) {
            (event::DEVICE_READY, 1, _) => {
                (0..self.ports.len()).for_each(|port| state.push(port, event::DEVICE_ADD, 0, &[]));
            }
            (event::PORT_READY, 1, Some(port)) => {
                state.ready[number] = true;
                if number == 0 {
                    state.push(0, event::CONSOLE_PORT, 1, &[]);
                    state.push_size();
                }
                if !port.name.is_empty() {
                    state.push(number, event::PORT_NAME, 1, port.name.as_bytes());
                }
                if state.connected[number] {
                    state.push(number, event::PORT_OPEN, 1, &[]);
                }
            }
            (event::PORT_OPEN, open, Some(port)) => port.set_open(open != 0),
            _ => return,
        }
        self.wake.signal();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push(&mut self, port: usize, event: u16, value: u16, rest: &[u8]) {
        if self.to_driver.len() == MAX_MESSAGES {
            self.to_driver.pop_front();
        }
        let mut message = (port as u32).to_le_bytes().to_vec();
        message.extend(event.to_le_bytes());
        message.extend(value.to_le_bytes());
        message.extend(rest);
        self.to_driver.push_back(message);
    }

    /// Columns first, as the specification has it; Linux before 6.15 took the first number for the
    /// rows.
    fn push_size(&mut self) {
        if let Some((columns, rows)) = self.size {
            let [a, b] = columns.to_le_bytes();
            let [c, d] = rows.to_le_bytes();
            self.push(0, event::RESIZE, 0, &[a, b, c, d]);
        }
    }
}
