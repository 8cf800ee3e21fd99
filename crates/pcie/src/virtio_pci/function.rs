//! The [`Function`] made of the register files.

use std::os::fd::{AsFd, BorrowedFd};

use mem::MemoryMap;
use virtio::Status;

use super::VirtioPci;
use super::layout::{DOORBELL, LEGACY_BAR, MODERN_BAR, MSIX_BAR, PART, part};
use crate::config::{ConfigEffect, ConfigSpace};
use crate::{BarAddress, Completion, Doorbell, Function, FunctionLayout, HostPort, ResetKind};

/// Most bytes of an access that is served without allocating.
const SMALL: usize = 64;

impl VirtioPci {
    pub(super) fn read_bar(&mut self, bar: u8, offset: u64, into: &mut [u8]) {
        match bar {
            LEGACY_BAR => self.read_legacy(offset as usize, into),
            MSIX_BAR => {
                into.fill(0);
                if let Some(rest) = self.msix_table.get(offset as usize..) {
                    let len = rest.len().min(into.len());
                    into[..len].copy_from_slice(&rest[..len]);
                }
            }
            MODERN_BAR => {
                for (place, at, range) in parts(offset, into.len()) {
                    self.read_part(place, at, &mut into[range]);
                }
            }
            _ => into.fill(0xff),
        }
    }

    fn read_part(&mut self, place: u64, at: u64, into: &mut [u8]) {
        into.fill(0);
        match place {
            part::COMMON => self.read_common(at as usize, into),
            part::ISR if at == 0 => into[0] = self.take_isr(),
            part::DEVICE => self.device.read_config(at as u32, into),
            _ => {}
        }
    }

    pub(super) fn write_bar(&mut self, bar: u8, offset: u64, from: &[u8]) {
        match bar {
            LEGACY_BAR => self.write_legacy(offset as usize, from),
            MSIX_BAR => self.write_msix(offset as usize, from),
            MODERN_BAR => {
                for (place, at, range) in parts(offset, from.len()) {
                    self.write_part(place, at, &from[range]);
                }
            }
            _ => {}
        }
    }

    fn write_part(&mut self, place: u64, at: u64, from: &[u8]) {
        match place {
            part::COMMON => self.write_common(at as usize, from),
            part::DEVICE => self.write_device_config(at as u32, from),
            // The place says which queue; the value, with or without a position, adds nothing.
            part::NOTIFY => self.ring_doorbell((at / DOORBELL) as usize),
            _ => {}
        }
    }

    pub(super) fn write_device_config(&mut self, at: u32, from: &[u8]) {
        if let Err(error) = self.device.write_config(at, from) {
            tracing::debug!(%error, "a write to the device's config is ignored");
        }
    }

    /// Bells of queues that do not exist or are not enabled make no sound.
    pub(super) fn ring_doorbell(&mut self, index: usize) {
        if let Some(queue) = self.queues.get(index).filter(|queue| queue.enabled) {
            queue.kick.signal();
        }
    }

    /// The table is the virtual machine's business; here it is only remembered. Pending bits can't
    /// be written.
    fn write_msix(&mut self, offset: usize, from: &[u8]) {
        let places = self.msix_table.iter_mut().skip(offset);
        places.zip(from).for_each(|(place, byte)| *place = *byte);
    }
}

/// Cuts an access to the modern BAR into accesses to its parts: number, offset there, and range of
/// the bytes.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, u64, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let here = offset + done as u64;
        let take = (PART - here % PART).min((len - done) as u64) as usize;
        let range = done..done + take;
        done += take;
        (take > 0).then_some((here / PART, here % PART, range))
    })
}

impl Function for VirtioPci {
    fn layout(&self) -> &FunctionLayout {
        &self.layout
    }

    fn config(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn connect(&mut self, host: HostPort) {
        self.host = Some(host);
        self.connect_calls();
    }

    fn read(&mut self, at: BarAddress, answer: Completion) {
        self.resume();
        let mut small = [0; SMALL];
        match small.get_mut(..answer.len()) {
            Some(bytes) => {
                self.read_bar(at.bar, at.offset, bytes);
                answer.answer(bytes);
            }
            None => {
                let mut bytes = vec![0; answer.len()];
                self.read_bar(at.bar, at.offset, &mut bytes);
                answer.answer(&bytes);
            }
        }
    }

    fn write(&mut self, at: BarAddress, bytes: &[u8]) {
        self.write_bar(at.bar, at.offset, bytes);
        // Afterwards, because a reset leaves nothing to go on with: another driver must not find
        // the one before's queues at work in its memory.
        self.resume();
    }

    fn reset(&mut self, kind: ResetKind) {
        self.reset_device();
        self.reasons.clear();
        if kind == ResetKind::Machine || self.config.power_state() == 0 {
            self.config.reset();
        }
        self.connect_calls();
    }

    fn computes_config(&self) -> bool {
        true
    }

    fn config_read(&mut self, at: u64, into: &mut [u8]) {
        self.refresh_window(at, into.len());
        self.config.read(at, into);
    }

    fn config_write(&mut self, at: u64, bytes: &[u8]) -> ConfigEffect {
        let effect = self.config.write(at, bytes);
        if effect.reset {
            self.reset(ResetKind::Function);
        }
        if effect.interrupts {
            self.connect_calls();
        }
        if effect.command {
            self.update_line();
        }
        self.forward_window(at, bytes.len());
        effect
    }

    fn doorbells(&self) -> Vec<Doorbell> {
        let modern = self.queues.iter().enumerate().map(|(index, queue)| Doorbell {
            at: BarAddress {
                bar: MODERN_BAR,
                offset: part::NOTIFY * PART + index as u64 * DOORBELL,
            },
            size: 0,
            data: None,
            event: std::sync::Arc::clone(&queue.kick),
        });
        modern.collect()
    }

    fn memory_changing(&mut self, map: &MemoryMap) {
        self.pause_without_rings(map);
    }

    fn memory_changed(&mut self) {
        self.memory_has_changed();
    }

    fn interrupts_changed(&mut self) {
        self.connect_calls();
    }

    fn host_present(&mut self, present: bool) {
        if present {
            return;
        }
        if self.status.status() != Status::RESET {
            self.suspend();
        }
        for queue in self.queues.iter_mut().filter(|queue| !queue.running) {
            queue.renew_kick();
        }
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.events.as_fd())
    }

    fn events_ready(&mut self) {
        self.line_signalled();
        for event in self.device.control_ready() {
            self.device_event(event);
        }
        self.watch_device();
    }
}
