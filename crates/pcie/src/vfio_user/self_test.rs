//! Finds out whether what a client calls its memory is its memory.
//!
//! QEMU passes a descriptor also for memory that it has mapped privately; what is read there are
//! zeros, and a driver hangs without an error anywhere. So a few pages are read by message and
//! compared with the mapping.

use std::sync::Arc;
use std::time::Instant;

use mem::remote::{RemoteChannel, RemoteMemory};
use mem::{Mapping, Span};

use super::limits::SELF_TEST_LIMIT;
use super::messages::MessageMemory;
use super::service::Plug;
use super::session::Peer;

/// Size in bytes of what is compared at one place.
const PAGE: usize = 4096;
/// Most places in one round.
const MAX_PAGES: usize = 16;
/// Most rounds for one connection, decided or not.
const MAX_ROUNDS: u32 = 16;
/// Rounds that must find a difference before memory counts as not shared.
const ROUNDS_TO_CONDEMN: u32 = 2;
/// Where in a region something is likely to be: its start (interrupt vectors, device tree), 1 MiB
/// and 16 MiB (kernels).
const LIKELY: [u64; 3] = [0, 1 << 20, 15 << 20];

/// The test, of one connection.
pub struct SelfTest {
    memory: MessageMemory,
    is_allowed: bool,
    is_due: bool,
    channel: Option<Box<dyn RemoteChannel>>,
    round: Vec<Page>,
    deadline: Option<Instant>,
    rounds: u32,
    /// Files that are known to be the client's memory.
    shared: Vec<Arc<Mapping>>,
    /// Files in which a difference was found, and in how many rounds.
    suspects: Vec<(Arc<Mapping>, u32)>,
}

struct Page {
    file: Arc<Mapping>,
    offset: usize,
    before: Box<[u8; PAGE]>,
    verdict: Option<Verdict>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    Different,
    Unknown,
}

impl SelfTest {
    pub fn new(memory: MessageMemory) -> Self {
        Self {
            memory,
            is_allowed: false,
            is_due: false,
            channel: None,
            round: Vec::new(),
            deadline: None,
            rounds: 0,
            shared: Vec::new(),
            suspects: Vec::new(),
        }
    }

    /// Whether the client understands DMA messages.
    pub fn allow(&mut self, is_allowed: bool) {
        self.is_allowed = is_allowed;
    }

    /// Has a round begin with the next tick, when the answer to what is handled now is on its way.
    pub fn ask(&mut self) {
        self.is_due = true;
    }

    /// When the running round ends at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    fn is_shared(&self, file: &Arc<Mapping>) -> bool {
        self.shared.iter().any(|known| Arc::ptr_eq(known, file))
    }

    /// Asks for pages of files that nothing is known about yet; returns whether there were any.
    fn begin<'a>(&mut self, maps: impl Iterator<Item = (u64, u64, &'a Arc<Mapping>, u64)>) -> bool {
        if !self.is_allowed || self.deadline.is_some() || self.rounds >= MAX_ROUNDS {
            return false;
        }
        let mut places = Vec::new();
        for (address, len, file, offset) in maps.filter(|(_, _, file, _)| !self.is_shared(file)) {
            let fits = |at: &&u64| **at + PAGE as u64 <= len;
            for at in LIKELY.iter().filter(fits).take(MAX_PAGES - places.len()) {
                places.push((address + at, Arc::clone(file), (offset + at) as usize));
            }
        }
        if places.is_empty() {
            return false;
        }
        if self.channel.is_none() {
            self.channel = self.memory.open().ok();
        }
        let Some(channel) = &mut self.channel else { return false };
        self.round.clear();
        for (address, file, offset) in places {
            let tag = self.rounds << 16 | self.round.len() as u32;
            if channel.read(tag, address, PAGE as u32).is_err() {
                break;
            }
            let mut before = Box::new([0; PAGE]);
            copy(&file, offset, &mut before);
            self.round.push(Page { file, offset, before, verdict: None });
        }
        if channel.flush().is_err() || self.round.is_empty() {
            return false;
        }
        self.deadline = Some(Instant::now() + SELF_TEST_LIMIT);
        true
    }

    /// Takes answers; returns whether the round is over.
    fn poll(&mut self, now: Instant) -> bool {
        let (Some(deadline), Some(channel)) = (self.deadline, &mut self.channel) else {
            return false;
        };
        let (round, rounds) = (&mut self.round, self.rounds);
        let answered = channel.poll(&mut |tag, answer| {
            let page = round.get_mut((tag & 0xffff) as usize).filter(|_| tag >> 16 == rounds);
            if let Some(page) = page {
                page.verdict = Some(answer.map_or(Verdict::Unknown, |bytes| page.compare(bytes)));
            }
        });
        let is_over = answered.is_err()
            || now >= deadline
            || self.round.iter().all(|page| page.verdict.is_some());
        if is_over {
            self.deadline = None;
            self.rounds += 1;
        }
        is_over
    }

    /// Files that this round has shown not to be the client's memory.
    fn condemned(&mut self) -> Vec<Arc<Mapping>> {
        let mut differs: Vec<Arc<Mapping>> = Vec::new();
        for page in std::mem::take(&mut self.round) {
            match page.verdict {
                Some(Verdict::Same) if !self.is_shared(&page.file) => self.shared.push(page.file),
                Some(Verdict::Different)
                    if !differs.iter().any(|file| Arc::ptr_eq(file, &page.file)) =>
                {
                    differs.push(page.file);
                }
                _ => {}
            }
        }
        let mut condemned = Vec::new();
        for file in differs.into_iter().filter(|file| !self.is_shared(file)).collect::<Vec<_>>() {
            let known = self.suspects.iter_mut().find(|(other, _)| Arc::ptr_eq(other, &file));
            match known {
                Some((_, times)) => *times += 1,
                None => self.suspects.push((Arc::clone(&file), 1)),
            }
            let times = self.suspects.iter().find(|(other, _)| Arc::ptr_eq(other, &file));
            if times.is_some_and(|(_, times)| *times >= ROUNDS_TO_CONDEMN) {
                condemned.push(file);
            }
        }
        condemned
    }

    /// Whether some file differed once and waits for a second look.
    fn has_suspects(&self) -> bool {
        let open = |times| times < ROUNDS_TO_CONDEMN;
        self.suspects.iter().any(|(file, times)| open(*times) && !self.is_shared(file))
    }
}

impl Page {
    fn compare(&self, answer: &[u8]) -> Verdict {
        let mut after = Box::new([0; PAGE]);
        copy(&self.file, self.offset, &mut after);
        let is_blank = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0);
        if is_blank(answer) {
            // Fresh memory looks the same everywhere.
            return Verdict::Unknown;
        }
        if answer == &self.before[..] || answer == &after[..] {
            return Verdict::Same;
        }
        // A page that is being written proves nothing.
        if self.before == after { Verdict::Different } else { Verdict::Unknown }
    }
}

fn copy(file: &Arc<Mapping>, offset: usize, into: &mut [u8; PAGE]) {
    if let Some(span) = Span::of_mapping(file, offset, PAGE) {
        span.copy_to(into);
    }
}

impl Peer {
    pub(super) fn self_test_tick(&mut self, plug: &mut Plug, now: Instant) {
        if std::mem::take(&mut self.self_test.is_due) && self.self_test.begin(self.dma.shared()) {
            plug.host.set_settled(false);
        }
        if !self.self_test.poll(now) {
            return;
        }
        let condemned = self.self_test.condemned();
        for file in &condemned {
            tracing::error!(
                "guest memory is not shared (share=on missing); it is reached by messages, slowly"
            );
            self.dma.give_up(file);
        }
        if self.self_test.has_suspects() && self.self_test.begin(self.dma.shared()) {
            return;
        }
        plug.host.set_settled(true);
        if condemned.is_empty() {
            plug.function.memory_changed();
        } else {
            self.apply_memory(plug);
        }
    }
}
