//! Reads that wait for the model.

use std::collections::VecDeque;
use std::time::Instant;

use pcie::Completion;
use wire::cosim::MAX_DATA;

use crate::fault::Edit;

/// A read on its way, in as many parts as records have room for.
#[derive(Debug)]
struct Read {
    first_tag: u64,
    parts_left: usize,
    bytes: Vec<u8>,
    answer: Completion,
    deadline: Instant,
    edit: Option<Edit>,
}

/// Reads in order of their deadlines.
#[derive(Debug, Default)]
pub struct Reads {
    waiting: VecDeque<Read>,
    next_tag: u64,
    /// Answers that are held back until their time has come.
    held: Vec<(Instant, Completion, Vec<u8>)>,
}

impl Reads {
    pub fn len(&self) -> usize {
        self.waiting.len() + self.held.len()
    }

    /// Whether none waits for the model.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// A read that gets `bytes`, but not before `until`.
    pub fn hold(&mut self, answer: Completion, bytes: Vec<u8>, until: Instant) {
        self.held.push((until, answer, bytes));
    }

    /// A read that wants an answer before `deadline`, changed by `edit`; the tag of its first part.
    pub fn begin(&mut self, answer: Completion, deadline: Instant, edit: Option<Edit>) -> u64 {
        let first_tag = self.next_tag;
        let parts = answer.len().div_ceil(MAX_DATA);
        self.next_tag += parts as u64;
        let bytes = vec![0xff; answer.len()];
        let parts_left = parts;
        self.waiting.push_back(Read { first_tag, parts_left, bytes, answer, deadline, edit });
        first_tag
    }

    /// The part `tag` is answered; what there is no answer to stays all ones. An answer to nothing,
    /// or a late one, changes nothing.
    pub fn answer(&mut self, tag: u64, data: Option<&[u8]>) {
        let is_it = |read: &Read| (tag.wrapping_sub(read.first_tag) as usize) < read.parts();
        let Some(at) = self.waiting.iter().position(is_it) else { return };
        let read = &mut self.waiting[at];
        let place = (tag - read.first_tag) as usize * MAX_DATA;
        if let Some(data) = data {
            let room = (read.bytes.len() - place).min(MAX_DATA);
            let len = data.len().min(room);
            read.bytes[place..place + len].copy_from_slice(&data[..len]);
        }
        read.parts_left -= 1;
        if read.parts_left == 0
            && let Some(read) = self.waiting.remove(at)
        {
            self.finish(read);
        }
    }

    fn finish(&mut self, mut read: Read) {
        let Some(edit) = read.edit else { return read.answer.answer(&read.bytes) };
        edit.apply(&mut read.bytes);
        match edit.until {
            Some(until) => self.hold(read.answer, read.bytes, until),
            None => read.answer.answer(&read.bytes),
        }
    }

    /// When the next one is too late.
    pub fn deadline(&self) -> Option<Instant> {
        let held = self.held.iter().map(|held| held.0).min();
        self.waiting.front().map(|read| read.deadline).into_iter().chain(held).min()
    }

    /// Gives up those that are too late, how many there were; answers those whose time has come.
    pub fn expire(&mut self, now: Instant) -> usize {
        for (_, answer, bytes) in self.held.extract_if(.., |held| held.0 <= now) {
            answer.answer(&bytes);
        }
        let late = self.waiting.partition_point(|read| read.deadline <= now);
        self.waiting.drain(..late).for_each(|read| read.answer.all_ones());
        late
    }

    /// Gives up all.
    pub fn answer_all_with_ones(&mut self) {
        self.waiting.drain(..).for_each(|read| read.answer.all_ones());
        self.held.drain(..).for_each(|(_, answer, _)| answer.all_ones());
    }
}

impl Read {
    fn parts(&self) -> usize {
        self.bytes.len().div_ceil(MAX_DATA)
    }
}
