//! What comes from the model.

use mem::DriverAddress;
use pcie::InterruptKind;
use pcie::config::command;
use sys::Ready;
use wire::cosim::{AnswerKind, MAX_DATA, Record, RequestKind, flag, interrupt, status};

use super::{Port, Transfer, key};
use crate::limits::{MAX_RECORDS_PER_TURN, MAX_TRANSFERS};
use crate::link::{Link, Lost};

impl Port {
    /// Does what events ask for.
    pub(super) fn attend(&mut self, ready: &[Ready]) {
        for event in ready {
            match event.key {
                key::LISTENER | key::ARRIVING => self.somebody_comes(),
                key::SOCKET => self.hear_socket(),
                key::WAKE => {
                    self.woken();
                    if let Some(link) = &self.link {
                        link.forget_event();
                    }
                    self.pump();
                    self.with_link(Link::flush);
                }
                key::DMA => self.collect_transfers(),
                key::TIMER => self.expire(),
                key::CONTROL => self.hear_control(),
                _ => {}
            }
        }
    }

    /// Takes what has come in the ring.
    pub(super) fn pump(&mut self) {
        let mut data = std::mem::take(&mut self.data);
        for _ in 0..MAX_RECORDS_PER_TURN {
            let next = self.with_link(|link| link.receive(&mut data));
            let Some(Some(record)) = next else { break };
            self.obey(record, &data);
        }
        self.data = data;
    }

    /// A model says nothing on its socket after its Hello: this is its end, or noise.
    fn hear_socket(&mut self) {
        let Some(link) = &self.link else { return };
        match link.socket.receive(&mut [0; 64], &mut Vec::new()) {
            Ok(sys::Received::Nothing) => {}
            Ok(sys::Received::Bytes(_)) | Ok(sys::Received::Closed) | Err(_) => {
                // What it said before it went is still heard.
                self.pump();
                self.lose(&Lost::Gone);
            }
        }
    }

    fn obey(&mut self, record: Record<AnswerKind>, data: &[u8]) {
        if self.resetting.is_some() {
            return self.obey_in_reset(record);
        }
        match record.kind {
            AnswerKind::ReadDone => {
                let answer = (record.detail == status::OK).then_some(data);
                self.reads.answer(record.tag, answer);
            }
            AnswerKind::ResetDone => {}
            AnswerKind::MemoryDone => self.memory_done = self.memory_done.max(record.tag),
            AnswerKind::DmaRead | AnswerKind::DmaWrite => self.transfer(record, data),
            AnswerKind::Interrupt if self.is_writing() => self.held.push_back(record),
            AnswerKind::Interrupt => self.interrupt(&record),
            AnswerKind::ConfigPut => {
                if let Ok(at) = usize::try_from(record.address) {
                    self.config.put(at, data);
                }
            }
            AnswerKind::Log => log(&record, data),
        }
    }

    /// Until the model has told the end of its reset, what it says belongs to the time before.
    fn obey_in_reset(&mut self, record: Record<AnswerKind>) {
        match record.kind {
            AnswerKind::ResetDone if Some(record.tag) == self.resetting => self.resetting = None,
            AnswerKind::MemoryDone => self.memory_done = self.memory_done.max(record.tag),
            AnswerKind::DmaRead | AnswerKind::DmaWrite => {
                let wanted = record.flags & flag::POSTED == 0;
                self.transfer_done(Transfer { tag: record.tag, wanted, right: None }, None);
            }
            _ => {}
        }
    }

    fn transfer(&mut self, mut record: Record<AnswerKind>, data: &[u8]) {
        let is_read = record.kind == AnswerKind::DmaRead;
        let wanted = is_read || record.flags & flag::POSTED == 0;
        let mut transfer = Transfer { tag: record.tag, wanted, right: None };
        let is_master = self.config.command() & command::BUS_MASTER != 0;
        let fits = !is_read || record.value <= MAX_DATA as u64;
        if !is_master || !fits || self.transfers.len() >= 2 * MAX_TRANSFERS {
            return self.transfer_done(transfer, None);
        }
        let mut changed = Vec::new();
        let mut data = data;
        if !self.faults.is_quiet() {
            changed.extend_from_slice(data);
            if self.faulty_transfer(&mut record, &mut changed, &mut transfer).is_some() {
                return;
            }
            data = &changed;
        }
        let Some(dma) = &mut self.dma else { return self.transfer_done(transfer, None) };
        let number = self.next_transfer;
        self.next_transfer += 1;
        self.transfers.insert(number, transfer);
        let at = DriverAddress(record.address);
        if is_read {
            dma.read(number, at, record.value as usize);
        } else {
            dma.write(number, at, data);
        }
        self.collect_transfers();
    }

    pub(super) fn collect_transfers(&mut self) {
        let Some(dma) = &mut self.dma else { return };
        let mut done = Vec::new();
        dma.poll(|number, result| done.push((number, result.map(<[u8]>::to_vec).ok())));
        for (number, mut result) in done {
            if let Some(transfer) = self.transfers.remove(&number) {
                if let (Some(right), Some(bytes)) = (transfer.right, &mut result) {
                    bytes.iter_mut().skip(right).for_each(|byte| *byte = 0xff);
                }
                self.transfer_done(transfer, result.as_deref());
            }
        }
        if !self.is_writing() {
            while let Some(record) = self.held.pop_front() {
                self.interrupt(&record);
            }
        }
    }

    /// Tells the model, if it wants to know, what was read, or that the transfer failed.
    pub(super) fn transfer_done(&mut self, transfer: Transfer, result: Option<&[u8]>) {
        if !transfer.wanted {
            return;
        }
        let detail = if result.is_some() { status::OK } else { status::FAILED };
        let record = Record::new(RequestKind::DmaDone).tag(transfer.tag).detail(detail);
        self.with_link(|link| link.send(record, result.unwrap_or_default()));
    }

    /// Whether bytes are on their way by messages, which an interrupt must not overtake.
    fn is_writing(&self) -> bool {
        self.dma.as_ref().is_some_and(pcie::Dma::is_busy)
    }

    pub(super) fn signal(&self, record: &Record<AnswerKind>) {
        let Some(host) = &self.host else { return };
        // A vector that does not fit is one that there is not.
        let vector = u16::try_from(record.value).unwrap_or(u16::MAX);
        match record.detail {
            interrupt::LINE => host.interrupts.set_intx(record.flags & flag::RAISED != 0),
            interrupt::MSI => host.interrupts.signal(InterruptKind::Msi, vector),
            interrupt::MSIX => host.interrupts.signal(InterruptKind::Msix, vector),
            _ => host.interrupts.signal_any(vector),
        }
    }
}

/// A line of the model's, made fit to be shown.
fn log(record: &Record<AnswerKind>, data: &[u8]) {
    /// Longest line.
    const MOST: usize = 512;
    let text = String::from_utf8_lossy(&data[..data.len().min(MOST)]);
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if record.detail == 0 {
        tracing::info!("model: {text}");
    } else {
        tracing::warn!("model: {text}");
    }
}
