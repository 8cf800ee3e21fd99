//! Reads and writes of BARs, and what happens between events.

use std::time::{Duration, Instant};

use pcie::{BarAddress, Completion};
use wire::cosim::{MAX_DATA, Record, RequestKind};

use super::Port;
use crate::limits::{MAX_READ_BYTES, MAX_READS};
use crate::link::Lost;

impl Port {
    pub(super) fn read_bar(&mut self, at: BarAddress, answer: Completion) {
        let len = answer.len();
        let mut edit = None;
        let answer = if self.faults.is_quiet() {
            answer
        } else {
            edit = self.faults.edit(at, len, Instant::now());
            let Some(answer) = self.faulty_read(at, answer) else { return };
            answer
        };
        if !self.can_ask() || self.reads.len() >= MAX_READS || len > MAX_READ_BYTES {
            return answer.all_ones();
        }
        let begin = Instant::now();
        let first = self.reads.begin(answer, begin + self.options.deadline, edit);
        if let Some(link) = &self.link {
            link.wake();
        }
        for (tag, part) in (first..).zip((0..len).step_by(MAX_DATA)) {
            let value = (len - part).min(MAX_DATA) as u64;
            let record = Record::new(RequestKind::Read).tag(tag).detail(at.bar);
            let record = record.at(at.offset + part as u64).value(value);
            self.with_link(|link| link.send(record, &[]));
        }
        self.spin(begin);
    }

    pub(super) fn write_bar(&mut self, at: BarAddress, bytes: &[u8]) {
        let times = if self.faults.is_quiet() { 1 } else { self.faulty_write(at, bytes.len()) };
        (0..times).for_each(|_| self.send_write(at, bytes));
    }

    /// Whether there is a model that listens.
    fn can_ask(&mut self) -> bool {
        self.hear_silence();
        self.link.is_some() && self.silent_since.is_none()
    }

    /// Looks whether a silent model has come to itself.
    fn hear_silence(&mut self) {
        let Some(since) = self.silent_since else { return };
        if self.with_link(|link| link.is_drained()) == Some(true) {
            self.silent_since = None;
            tracing::info!("the model takes what it is told again");
        } else if self.options.patience.is_some_and(|patience| since.elapsed() >= patience) {
            self.lose(&Lost::Silent);
        }
    }

    /// Polls for answers for as long as that has been worth it lately.
    fn spin(&mut self, begin: Instant) {
        loop {
            self.pump();
            if self.reads.is_empty() {
                self.window.found();
                return;
            }
            if begin.elapsed() >= self.window.length() {
                break;
            }
            std::hint::spin_loop();
        }
        self.window.passed_empty();
        self.asleep_since = Some(Instant::now());
    }

    /// An answer has woken us: the next time it may be worth polling a little longer.
    pub(super) fn woken(&mut self) {
        if let Some(since) = self.asleep_since.take() {
            self.window.woken_after(since.elapsed());
        }
    }

    /// Before going back to wait for events: asks to be woken, and sets the clock.
    pub(super) fn settle(&mut self) {
        if let Some(recorder) = &self.options.recorder {
            recorder.flush();
        }
        // Bounded: each turn takes answers, of which a ring holds only so many; a model that goes
        // on for ever is attended to again when others have been.
        for _ in 0..4 {
            if self.link.as_ref().is_none_or(|link| link.sleep()) {
                break;
            }
            self.pump();
        }
        if let Some(link) = self.link.as_ref().filter(|link| !link.sleep()) {
            link.wake_port.signal();
        }
        let given_up = self.silent_since.zip(self.options.patience).map(|(at, for_)| at + for_);
        let due = [self.reads.deadline(), self.gate.deadline(), given_up, self.faults_due()];
        let due = due.into_iter().flatten().min();
        // A timer that is set for earlier stays: most reads are answered long before, and going off
        // once for nothing costs less than two calls of the kernel for each of them.
        if let Some(at) = due.filter(|at| self.timer_at.is_none_or(|set| *at < set)) {
            self.timer_at = due;
            let delay = at.saturating_duration_since(Instant::now());
            let _ = self.timer.set(delay, Duration::ZERO);
        }
    }

    /// Gives up what is too late.
    pub(super) fn expire(&mut self) {
        self.timer.drain();
        self.timer_at = None;
        let now = Instant::now();
        self.gate.expire(now);
        self.hear_silence();
        self.expire_faults(now);
        let late = self.reads.expire(now);
        if late == 0 {
            return;
        }
        let took_it = self.with_link(|link| link.is_drained()).unwrap_or(true);
        let deadline = self.options.deadline;
        if took_it {
            tracing::warn!("the model did not answer a read within {deadline:?}: all ones");
        } else if self.silent_since.is_none() {
            self.silent_since = Some(now);
            tracing::warn!("the model has taken nothing for {deadline:?}: all ones until it does");
        }
    }
}
