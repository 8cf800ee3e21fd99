//! What a port does of the faults that were asked for.

use std::time::{Duration, Instant};

use mem::DriverAddress;
use pcie::config::{PcieCapability, capability_id, offset, status};
use pcie::{BarAddress, Completion, ResetKind};
use wire::cosim::{AnswerKind, MAX_DATA, Record, RequestKind, flag, interrupt};

use super::{Port, Transfer};
use crate::fault::{Command, Edge, Fault, FaultKind, Reply};

/// Most interrupts and writes that are held back at a time.
const MAX_HELD_BACK: usize = 4096;

/// Most times an interrupt is repeated.
const MAX_REPEATED: u64 = 64;

/// Something that a fault has put off.
#[derive(Debug)]
pub(super) enum Late {
    Interrupt(Record<AnswerKind>),
    Write(u64, Vec<u8>),
}

impl Port {
    /// Does what whoever controls the port wants.
    pub(super) fn hear_control(&mut self) {
        let Some(control) = self.options.control.clone() else { return };
        for (command, answer) in control.take() {
            let reply = match command {
                Command::Add(fault) => match self.faults.add(fault, Instant::now()) {
                    true => Reply::Done(1),
                    false => Reply::TooMany,
                },
                Command::Clear(kind) => Reply::Done(self.faults.clear(kind)),
                Command::List => Reply::Faults(self.faults.list()),
            };
            self.faults_changed();
            // Whoever asked may not wait any longer.
            let _ = answer.send(reply);
        }
    }

    /// Faults have begun or ended.
    pub(super) fn faults_changed(&mut self) {
        for Edge { kind, begun, value } in self.faults.edges() {
            let word = if begun { "begins" } else { "is over" };
            tracing::info!("fault {} {word}", kind.info().name);
            let line = format!("fault {} {word}", kind.info().name);
            self.note(crate::trace::kind::NOTE, 0, line.as_bytes());
            match (kind, begun) {
                (FaultKind::Removed | FaultKind::LinkDown, true) => self.forget_work(),
                (FaultKind::Removed, false) => self.come_back(ResetKind::Machine),
                (FaultKind::LinkDown, false) => self.come_back(ResetKind::Function),
                (FaultKind::InterruptSpurious, true) => {
                    let vector = u16::try_from(value).unwrap_or(u16::MAX);
                    if let Some(host) = &self.host {
                        host.interrupts.signal_any(vector);
                    }
                }
                _ => {}
            }
        }
        // Transfers are seen by the port if faults concern them, and only then.
        self.tell_memory();
    }

    fn come_back(&mut self, kind: ResetKind) {
        if !self.faults.is_cut() {
            // A link that comes up resets everything that is not sticky (PCIe 6.6.1).
            self.config.reset();
            pcie::Function::reset(self, kind);
        }
    }

    /// Lets time pass for faults.
    pub(super) fn expire_faults(&mut self, now: Instant) {
        if !self.faults.is_quiet() {
            self.faults.tick(now);
            self.faults_changed();
        }
        let due: Vec<_> = self.late.extract_if(.., |late| late.0 <= now).collect();
        for (_, late) in due {
            match late {
                Late::Interrupt(record) => self.signal(&record),
                Late::Write(at, bytes) => self.write_memory(at, &bytes),
            }
        }
    }

    /// When [`Port::expire_faults`] has something to do.
    pub(super) fn faults_due(&self) -> Option<Instant> {
        let late = self.late.iter().map(|late| late.0).min();
        self.faults.deadline().into_iter().chain(late).min()
    }

    fn put_off(&mut self, by: Duration, late: Late) {
        if self.late.len() < MAX_HELD_BACK {
            self.late.push((Instant::now() + by, late));
        }
    }

    /// Answers a read if a fault does that; else it is the model's.
    pub(super) fn faulty_read(&mut self, at: BarAddress, answer: Completion) -> Option<Completion> {
        use FaultKind::*;
        if self.faults.is_cut() {
            answer.all_ones();
            return None;
        }
        let kinds = [Unsupported, Abort, Poisoned, Timeout, Stuck];
        let Some(fault) = self.faults.access(&kinds, at, answer.len()) else { return Some(answer) };
        match fault.kind {
            Stuck => {
                let bytes: Vec<u8> =
                    fault.value.to_le_bytes().iter().copied().cycle().take(answer.len()).collect();
                answer.answer(&bytes);
            }
            Timeout => {
                let ones = vec![0xff; answer.len()];
                self.reads.hold(answer, ones, Instant::now() + self.options.deadline);
            }
            kind => {
                self.note_error(kind);
                answer.all_ones();
            }
        }
        None
    }

    /// How many times a write arrives.
    pub(super) fn faulty_write(&mut self, at: BarAddress, len: usize) -> usize {
        use FaultKind::*;
        if self.faults.is_cut() || self.faults.access(&[LostWrites], at, len).is_some() {
            return 0;
        }
        if let Some(fault) = self.faults.access(&[Unsupported, Abort, Poisoned], at, len) {
            self.note_error(fault.kind);
            return 0;
        }
        1 + usize::from(self.faults.access(&[DoubledWrites], at, len).is_some())
    }

    /// The error bits that a function sets which treats a request like that.
    fn note_error(&mut self, kind: FaultKind) {
        let express = self.config.capability(capability_id::PCI_EXPRESS);
        let device = express.map(|at| at + PcieCapability::DEVICE_STATUS);
        let (bits, device_bits) = match kind {
            FaultKind::Unsupported => (0, PcieCapability::UNSUPPORTED | PcieCapability::NON_FATAL),
            FaultKind::Abort => (status::SIGNALED_ABORT, PcieCapability::NON_FATAL),
            FaultKind::Poisoned => (status::DETECTED_PARITY, PcieCapability::NON_FATAL),
            _ => (status::RECEIVED_MASTER_ABORT, 0),
        };
        self.config.set_bits(offset::STATUS + 1, (bits >> 8) as u8, true);
        if let Some(at) = device {
            self.config.set_bits(at, device_bits, true);
        }
        self.tell_config();
    }

    /// What the configuration space reads as.
    pub(super) fn faulty_config(&mut self, at: u64, into: &mut [u8]) {
        use FaultKind::*;
        if self.faults.is_cut() {
            return into.fill(0xff);
        }
        let ids = self.faults.bytes(&[Ids], at, into.len());
        for (place, byte) in into.iter_mut().enumerate().take(4) {
            let from = at as usize + place;
            if let Some(fault) = ids.as_ref().filter(|_| from < 4) {
                *byte = fault.value.to_le_bytes()[from];
            }
        }
        if let Some(fault) = self.faults.bytes(&[ConfigFlipped], at, into.len()) {
            for (place, bits) in fault.value.to_le_bytes().into_iter().enumerate() {
                let byte = (fault.at + place as u64).checked_sub(at);
                if let Some(byte) = byte.and_then(|byte| into.get_mut(byte as usize)) {
                    *byte ^= bits;
                }
            }
        }
    }

    /// What of a write of the configuration space arrives.
    pub(super) fn faulty_config_write(&mut self, at: u64, bytes: &mut [u8]) -> bool {
        use FaultKind::*;
        if self.faults.is_cut() || self.faults.bytes(&[ConfigLost], at, bytes.len()).is_some() {
            return false;
        }
        let place = |cap: Option<usize>, byte: usize| {
            cap.and_then(|cap| ((cap + byte) as u64).checked_sub(at)).map(|place| place as usize)
        };
        let express = self.config.capability(capability_id::PCI_EXPRESS);
        let flr = place(express, PcieCapability::FLR_BYTE).and_then(|place| bytes.get_mut(place));
        if let Some(byte) = flr.filter(|byte| **byte & PcieCapability::FLR_BIT != 0)
            && self.faults.bytes(&[FlrIgnored], at, 1).is_some()
        {
            *byte &= !PcieCapability::FLR_BIT;
        }
        let power = self.config.capability(capability_id::POWER_MANAGEMENT);
        let state = self.config.power_state();
        if let Some(byte) = place(power, 4).and_then(|place| bytes.get_mut(place))
            && state != 0
            && self.faults.bytes(&[PowerStuck], at, 1).is_some()
        {
            *byte = *byte & !3 | state;
        }
        true
    }

    /// Gives an interrupt on, as faults have it.
    pub(super) fn interrupt(&mut self, record: &Record<AnswerKind>) {
        use FaultKind::*;
        if self.faults.is_quiet() {
            return self.signal(record);
        }
        let vector = record.value;
        let lowers = record.detail == interrupt::LINE && record.flags & flag::RAISED == 0;
        if lowers {
            return self.signal(record);
        }
        if self.faults.is_cut() || self.faults.bytes(&[InterruptLost], vector, 1).is_some() {
            return;
        }
        if let Some(fault) = self.faults.bytes(&[InterruptLate], vector, 1) {
            let delay = self.faults.delay(&fault);
            return self.put_off(delay, Late::Interrupt(*record));
        }
        self.signal(record);
        if let Some(fault) = self.faults.bytes(&[InterruptDoubled], vector, 1) {
            for n in 1..=fault.value.min(MAX_REPEATED) as u32 {
                self.put_off(fault.delay * n, Late::Interrupt(*record));
            }
        }
    }

    /// A transfer that a fault takes care of; `None` if it goes on as usual, with `data` and
    /// `address` as they are then.
    pub(super) fn faulty_transfer(
        &mut self,
        record: &mut Record<AnswerKind>,
        data: &mut [u8],
        transfer: &mut Transfer,
    ) -> Option<()> {
        use FaultKind::*;
        let at = record.address;
        if record.kind == AnswerKind::DmaRead {
            let len = record.value as usize;
            if self.faults.is_cut() || self.faults.bytes(&[DmaRefused], at, len).is_some() {
                return self.refuse_transfer(*transfer);
            }
            let short = self.faults.bytes(&[DmaShort], at, len);
            transfer.right = short.map(|fault| fault.value as usize);
            return None;
        }
        if self.faults.is_cut() || self.faults.bytes(&[DmaRefused], at, data.len()).is_some() {
            return self.refuse_transfer(*transfer);
        }
        if let Some(fault) = self.faults.bytes(&[DmaFlipped], at, data.len()) {
            data.iter_mut().zip(fault.value.to_le_bytes()).for_each(|(byte, bits)| *byte ^= bits);
        }
        if let Some(fault) = self.faults.bytes(&[DmaMisplaced], at, data.len()) {
            record.address = at.wrapping_add(fault.value);
        }
        let fault =
            self.faults.bytes(&[DmaLost, DmaLate, DmaTorn, DmaReordered], at, data.len())?;
        self.write_in_parts(record.address, data, &fault);
        self.transfer_done(*transfer, Some(&[]));
        Some(())
    }

    fn refuse_transfer(&mut self, transfer: Transfer) -> Option<()> {
        self.note_error(FaultKind::DmaRefused);
        self.transfer_done(transfer, None);
        Some(())
    }

    /// Writes what comes in time, and puts the rest off.
    fn write_in_parts(&mut self, at: u64, data: &[u8], fault: &Fault) {
        let half = data.len() / 2;
        let split = match fault.kind {
            FaultKind::DmaTorn => half,
            FaultKind::DmaReordered => {
                let last = usize::try_from(fault.value).unwrap_or(usize::MAX);
                data.len() - if last < data.len() { last } else { half }
            }
            _ => 0,
        };
        let (first, second) = data.split_at(split);
        let second_at = at.wrapping_add(split as u64);
        let (now, later) = match fault.kind {
            FaultKind::DmaLost => return,
            FaultKind::DmaReordered => ((second_at, second), (at, first)),
            _ => ((at, first), (second_at, second)),
        };
        if !now.1.is_empty() {
            self.write_memory(now.0, now.1);
        }
        let delay = self.faults.delay(fault);
        self.put_off(delay, Late::Write(later.0, later.1.to_vec()));
    }

    /// Writes host memory, and nobody wants to know how that ends.
    fn write_memory(&mut self, at: u64, bytes: &[u8]) {
        let nobody = Transfer { tag: 0, wanted: false, right: None };
        let number = self.next_transfer;
        self.next_transfer += 1;
        if let Some(dma) = &mut self.dma {
            self.transfers.insert(number, nobody);
            dma.write(number, DriverAddress(at), bytes);
        }
        self.collect_transfers();
    }

    /// Sends a write as often as it arrives.
    pub(super) fn send_write(&mut self, at: BarAddress, bytes: &[u8]) {
        for (part, data) in bytes.chunks(MAX_DATA).enumerate() {
            let offset = at.offset + (part * MAX_DATA) as u64;
            let record = Record::new(RequestKind::Write).detail(at.bar).at(offset);
            self.with_link(|link| link.send(record, data));
        }
    }
}
