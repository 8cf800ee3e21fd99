use super::{Again, LogMemory};
use crate::QueueError;

/// features u64, version u16, `desc_num` u16, `last_batch_head` u16, `used_idx` u16.
pub(super) const HEADER_BYTES: usize = 16;
const LAST_BATCH_HEAD: usize = 12;
const USED_INDEX: usize = 14;

/// inflight u8, padding, next u16 at 6, counter u64 at 8.
pub(super) const ENTRY_BYTES: usize = 16;
const IN_FLIGHT: usize = 0;
const NEXT: usize = 6;
const COUNTER: usize = 8;

/// The log of a split queue: an entry per head.
#[derive(Debug)]
pub(crate) struct SplitLog {
    memory: LogMemory,
    counter: u64,
    last_batch_head: u16,
    /// Heads given back and not published.
    batch: Vec<u16>,
    /// Heads to take again.
    pub again: Again<u16>,
}

fn entry(head: u16, field: usize) -> usize {
    HEADER_BYTES + ENTRY_BYTES * usize::from(head) + field
}

impl SplitLog {
    /// Takes over the log of a queue whose used ring says it stands at `ring_used`; `start` is
    /// where it stands if the log was never used. Returns also the next used index, if the log
    /// knows it.
    pub(crate) fn recover(
        memory: LogMemory,
        start: u16,
        ring_used: u16,
    ) -> Result<(Self, Option<u16>), QueueError> {
        let size = memory.size;
        let fresh = memory.is_fresh()?;
        if fresh {
            memory.set_u16(USED_INDEX, start);
        }
        let used = if fresh { start } else { ring_used };
        let last_batch_head = memory.get_u16(LAST_BATCH_HEAD);
        let batch = used.wrapping_sub(memory.get_u16(USED_INDEX));
        if batch > size {
            return Err(QueueError::BadInFlightLog("disagrees with the used index"));
        }
        // The driver saw the last batch, but we were killed before all of it was unmarked.
        let mut head = last_batch_head;
        for _ in 0..batch {
            if head >= size {
                return Err(QueueError::BadInFlightLog("has a head out of range"));
            }
            memory.set_u8(entry(head, IN_FLIGHT), 0);
            head = memory.get_u16(entry(head, NEXT));
        }
        memory.set_u16(USED_INDEX, used);
        memory.begin();
        // Nobody has marked anything in a fresh one, and reading it would make its pages.
        let heads = if fresh { 0..0 } else { 0..size };
        let marked = heads.filter(|&head| memory.get_u8(entry(head, IN_FLIGHT)) != 0);
        let mut marked: Vec<(u64, u16)> =
            marked.map(|head| (memory.get_u64(entry(head, COUNTER)), head)).collect();
        marked.sort_unstable();
        let log = Self {
            memory,
            counter: marked.last().map_or(0, |&(counter, _)| counter.wrapping_add(1)),
            last_batch_head,
            batch: Vec::new(),
            again: Again::new(marked.into_iter().map(|(_, head)| head).collect(), size),
        };
        Ok((log, (!fresh).then_some(used)))
    }

    /// A chain was taken from the ring.
    pub(crate) fn take(&mut self, head: u16) {
        self.memory.set_u64(entry(head, COUNTER), self.counter);
        self.memory.set_u8(entry(head, IN_FLIGHT), 1);
        self.counter = self.counter.wrapping_add(1);
    }

    /// A chain goes back to where it was; returns whether that was the log.
    pub(crate) fn untake(&mut self, head: u16) -> bool {
        if self.again.untake(head) {
            return true;
        }
        self.memory.set_u8(entry(head, IN_FLIGHT), 0);
        false
    }

    /// A chain was given back, not yet visible to the driver.
    pub(crate) fn give_back(&mut self, head: u16) {
        self.again.finish(head);
        self.memory.set_u16(entry(head, NEXT), self.last_batch_head);
        self.memory.set_u16(LAST_BATCH_HEAD, head);
        self.last_batch_head = head;
        self.batch.push(head);
    }

    /// Chains given back and not yet visible to the driver.
    pub(crate) fn unpublished(&self) -> usize {
        self.batch.len()
    }

    /// The driver sees all of the batch: the used index is now `used`.
    pub(crate) fn published(&mut self, used: u16) {
        for &head in &self.batch {
            self.memory.set_u8(entry(head, IN_FLIGHT), 0);
        }
        self.batch.clear();
        self.memory.set_u16(USED_INDEX, used);
    }
}
