//! From a queue or a config change to the driver: MSI-X vectors, or the line with its ISR register.

use std::io;
use std::sync::Arc;

use sys::EventFd;

use super::{NO_VECTOR, VirtioPci};
use crate::InterruptKind;
use crate::config::command;

/// ISR bit: a queue.
const ISR_QUEUE: u8 = 1;
/// ISR bit: the config, or the status.
const ISR_CONFIG: u8 = 2;

/// What is pending, and where queues signal to when the driver uses the line.
pub struct Signals {
    isr: u8,
    pub config_vector: u16,
    /// Queues signal this one in INTx mode.
    line_event: Arc<EventFd>,
}

impl Signals {
    pub fn new() -> io::Result<Self> {
        Ok(Self { isr: 0, config_vector: NO_VECTOR, line_event: Arc::new(EventFd::new()?) })
    }

    pub fn line_event(&self) -> &EventFd {
        &self.line_event
    }
}

impl VirtioPci {
    /// Some queue has signalled in INTx mode.
    pub(super) fn line_signalled(&mut self) {
        if self.signals.line_event.drain() && !self.uses_msix() {
            self.raise(ISR_QUEUE);
        }
    }

    fn raise(&mut self, bit: u8) {
        self.signals.isr |= bit;
        self.update_line();
    }

    /// The line follows the ISR unless the driver has switched it off.
    pub(super) fn update_line(&mut self) {
        let off = self.config.command() & command::INTX_DISABLE != 0 || self.uses_msix();
        if let Some(host) = &self.host {
            host.interrupts.set_intx(self.signals.isr != 0 && !off);
        }
    }

    /// The driver reads the ISR, which clears it and lowers the line (VIRTIO 1.4, 4.1.4.5).
    pub(super) fn take_isr(&mut self) -> u8 {
        let isr = std::mem::take(&mut self.signals.isr);
        self.update_line();
        isr
    }

    /// Tells the driver that the config or the status has changed.
    pub(super) fn signal_config(&mut self) {
        if !self.uses_msix() {
            return self.raise(ISR_CONFIG);
        }
        let vector = self.signals.config_vector;
        if let Some(host) = self.host.as_ref().filter(|_| vector != NO_VECTOR) {
            host.interrupts.signal(InterruptKind::Msix, vector);
        }
    }

    /// A vector as the driver reads it back: only one that exists sticks (VIRTIO 1.4, 4.1.5.1.2.1).
    pub(super) fn checked_vector(&self, vector: u16) -> u16 {
        let count = self.layout.interrupts.msix.map_or(0, |msix| msix.vectors);
        if vector < count { vector } else { NO_VECTOR }
    }

    /// The driver gives a queue another vector.
    pub(super) fn set_queue_vector(&mut self, index: usize, vector: u16) {
        let vector = self.checked_vector(vector);
        if let Some(queue) = self.queues.get_mut(index) {
            queue.vector = vector;
            self.connect_call(index);
        }
    }

    /// Puts the event that the driver wants now behind every queue.
    pub(super) fn connect_calls(&mut self) {
        (0..self.queues.len()).for_each(|index| self.connect_call(index));
        self.update_line();
    }

    fn connect_call(&mut self, index: usize) {
        let uses_msix = self.uses_msix();
        let queue = &mut self.queues[index];
        let event = match &self.host {
            _ if !uses_msix => Some(Arc::clone(&self.signals.line_event)),
            Some(host) if queue.vector != NO_VECTOR => {
                host.interrupts.event(InterruptKind::Msix, queue.vector)
            }
            _ => None,
        };
        let old = queue.call.event();
        let is_same = match (&old, &event) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (None, None) => true,
            _ => false,
        };
        if !is_same {
            queue.call.set(event);
            if queue.running {
                self.device.notifier_changed(index as u16);
            }
        }
    }

    /// Nothing is pending and no vector is set.
    pub(super) fn reset_signals(&mut self) {
        self.signals.isr = 0;
        self.signals.config_vector = NO_VECTOR;
        self.signals.line_event.drain();
        self.update_line();
    }
}
