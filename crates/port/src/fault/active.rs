//! The faults of a port at the moment.

use std::time::{Duration, Instant};

use pcie::BarAddress;

use super::{Class, Fault, FaultKind, MAX_DELAY};

/// Most faults at a time: each access looks at all of them.
const MAX_FAULTS: usize = 64;

/// A fault, and what it has done.
#[derive(Clone, Debug)]
pub struct FaultStatus {
    /// The fault.
    pub fault: Fault,
    /// How many times it has happened.
    pub happened: u64,
    /// Whether it has begun.
    pub is_on: bool,
}

/// A fault has begun, or is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Edge {
    pub kind: FaultKind,
    pub begun: bool,
    pub value: u64,
}

/// What becomes of the answer to a read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Edit {
    /// Bits that are inverted, and the offset of the first byte.
    pub flip: Option<(u64, usize)>,
    /// How many bytes are right.
    pub right: Option<usize>,
    /// Not before.
    pub until: Option<Instant>,
}

impl Edit {
    /// Does it.
    pub fn apply(&self, bytes: &mut [u8]) {
        if let Some((mask, first)) = self.flip {
            let bytes = bytes.iter_mut().skip(first);
            bytes.zip(mask.to_le_bytes()).for_each(|(byte, bits)| *byte ^= bits);
        }
        if let Some(right) = self.right {
            bytes.iter_mut().skip(right).for_each(|byte| *byte = 0xff);
        }
    }
}

#[derive(Debug)]
struct Active {
    fault: Fault,
    seen: u64,
    happened: u64,
    begins: Instant,
    ends: Option<Instant>,
    is_on: bool,
}

/// The faults that were asked for.
#[derive(Debug, Default)]
pub struct Faults {
    active: Vec<Active>,
    /// State of a generator of random numbers.
    random: u64,
    edges: Vec<Edge>,
}

impl Faults {
    /// Whether there are none.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.active.is_empty()
    }

    /// One more; false if there are too many.
    pub fn add(&mut self, fault: Fault, now: Instant) -> bool {
        if self.active.len() >= MAX_FAULTS {
            return false;
        }
        let begins = now + fault.begins;
        let ends = fault.lasts.map(|lasts| begins + lasts);
        self.active.push(Active { fault, seen: 0, happened: 0, begins, ends, is_on: false });
        self.tick(now);
        true
    }

    /// Ends those of `kind`, or all; how many there were.
    pub fn clear(&mut self, kind: Option<FaultKind>) -> usize {
        let before = self.active.len();
        let edges = &mut self.edges;
        self.active.retain(|active| {
            let stays = kind.is_some_and(|kind| kind != active.fault.kind);
            if !stays && active.is_on {
                edges.push(active.edge(false));
            }
            stays
        });
        before - self.active.len()
    }

    /// What there is.
    #[must_use]
    pub fn list(&self) -> Vec<FaultStatus> {
        let status = |active: &Active| FaultStatus {
            fault: active.fault.clone(),
            happened: active.happened,
            is_on: active.is_on,
        };
        self.active.iter().map(status).collect()
    }

    /// Lets time pass; what has begun or ended since is told by [`Faults::edges`].
    pub fn tick(&mut self, now: Instant) {
        let edges = &mut self.edges;
        self.active.retain_mut(|active| {
            if !active.is_on && active.begins <= now {
                active.is_on = true;
                edges.push(active.edge(true));
            }
            let once = active.fault.kind == FaultKind::InterruptSpurious && active.is_on;
            let is_over = once || active.ends.is_some_and(|ends| ends <= now);
            if is_over && active.is_on {
                edges.push(active.edge(false));
            }
            !is_over
        });
    }

    /// What has begun and ended since this was last asked.
    pub(crate) fn edges(&mut self) -> Vec<Edge> {
        std::mem::take(&mut self.edges)
    }

    /// When [`Faults::tick`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let next = |active: &Active| if active.is_on { active.ends } else { Some(active.begins) };
        self.active.iter().filter_map(next).min()
    }

    /// Whether the function is out of reach.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        let cuts = [FaultKind::Removed, FaultKind::LinkDown];
        self.active.iter().any(|active| active.is_on && cuts.contains(&active.fault.kind))
    }

    /// Whether transfers must go through the port: by messages, so that it sees them.
    #[must_use]
    pub fn concern_dma(&self) -> bool {
        let concerns = |active: &Active| {
            matches!(active.fault.kind.info().class, Class::Dma | Class::Function)
        };
        self.active.iter().any(concerns)
    }

    /// The first fault of `kinds` that happens to an access to `len` bytes at `at`.
    pub fn access(&mut self, kinds: &[FaultKind], at: BarAddress, len: usize) -> Option<Fault> {
        let wants = |fault: &Fault| {
            fault.bar.is_none_or(|bar| bar == at.bar) && fault.touches(at.offset, len as u64)
        };
        self.hit(kinds, wants)
    }

    /// The first fault of `kinds` that happens to `len` bytes at `at` of what is no BAR.
    pub fn bytes(&mut self, kinds: &[FaultKind], at: u64, len: usize) -> Option<Fault> {
        self.hit(kinds, |fault| fault.touches(at, len as u64))
    }

    fn hit(&mut self, kinds: &[FaultKind], wants: impl Fn(&Fault) -> bool) -> Option<Fault> {
        for active in &mut self.active {
            if !active.is_on || !kinds.contains(&active.fault.kind) || !wants(&active.fault) {
                continue;
            }
            active.seen += 1;
            let is_due = active.seen > active.fault.skip
                && active.fault.count.is_none_or(|count| active.happened < count);
            if is_due {
                active.happened += 1;
                return Some(active.fault.clone());
            }
        }
        None
    }

    /// What becomes of the answer to a read of `len` bytes at `at`, if anything.
    pub(crate) fn edit(&mut self, at: BarAddress, len: usize, now: Instant) -> Option<Edit> {
        let mut edit = Edit::default();
        if let Some(fault) = self.access(&[FaultKind::Flipped], at, len) {
            edit.flip = Some((fault.value, fault.at.saturating_sub(at.offset) as usize));
        }
        if let Some(fault) = self.access(&[FaultKind::Short], at, len) {
            edit.right = Some(fault.value as usize);
        }
        if let Some(fault) = self.access(&[FaultKind::Slow], at, len) {
            edit.until = Some(now + self.delay(&fault));
        }
        (edit != Edit::default()).then_some(edit)
    }

    /// How late it is this time.
    pub fn delay(&mut self, fault: &Fault) -> Duration {
        // Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators": SplitMix64.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        let share = ((mixed ^ mixed >> 31) >> 32) as u32;
        let jitter = fault.jitter.min(MAX_DELAY).as_nanos() as u64;
        let more = ((u128::from(jitter) * u128::from(share)) >> 32) as u64;
        (fault.delay + Duration::from_nanos(more)).min(MAX_DELAY)
    }
}

impl Active {
    fn edge(&self, begun: bool) -> Edge {
        Edge { kind: self.fault.kind, begun, value: self.fault.value }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: BarAddress = BarAddress { bar: 0, offset: 0x20 };

    fn one(change: impl FnOnce(&mut Fault)) -> (Faults, Instant) {
        let mut fault = Fault::new(FaultKind::Stuck);
        change(&mut fault);
        let (mut faults, now) = (Faults::default(), Instant::now());
        assert!(faults.add(fault, now));
        (faults, now)
    }

    fn happens(faults: &mut Faults, at: BarAddress, len: usize) -> bool {
        faults.access(&[FaultKind::Stuck], at, len).is_some()
    }

    #[test]
    fn a_fault_happens_where_and_as_often_as_it_says() {
        let (mut faults, _) = one(|fault| {
            (fault.bar, fault.at, fault.len) = (Some(0), 0x22, 2);
            (fault.skip, fault.count) = (1, Some(2));
        });
        assert!(!happens(&mut faults, BarAddress { bar: 1, ..AT }, 4));
        assert!(!happens(&mut faults, AT, 2) && !happens(&mut faults, AT, 1));
        assert!(!happens(&mut faults, AT, 4), "the first is spared");
        assert!(happens(&mut faults, AT, 3) && happens(&mut faults, AT, 4));
        assert!(!happens(&mut faults, AT, 4), "twice is enough");
        assert!(!happens(&mut faults, BarAddress { bar: 0, offset: 0x24 }, 4));
        assert_eq!(faults.list()[0].happened, 2);
    }

    #[test]
    fn a_fault_begins_and_ends_in_time() {
        let (mut faults, now) = one(|fault| {
            fault.begins = Duration::from_secs(1);
            fault.lasts = Some(Duration::from_secs(2));
        });
        assert!(!happens(&mut faults, AT, 4) && faults.edges().is_empty());
        assert_eq!(faults.deadline(), Some(now + Duration::from_secs(1)));
        faults.tick(now + Duration::from_secs(1));
        assert!(happens(&mut faults, AT, 4) && faults.edges()[0].begun);
        assert_eq!(faults.deadline(), Some(now + Duration::from_secs(3)));
        faults.tick(now + Duration::from_secs(3));
        assert!(!happens(&mut faults, AT, 4) && !faults.edges()[0].begun && faults.is_quiet());
    }

    #[test]
    fn delays_stay_within_their_bounds_and_differ() {
        let (mut faults, _) = one(|_| {});
        let mut fault = Fault::new(FaultKind::Slow);
        (fault.delay, fault.jitter) = (Duration::from_millis(5), Duration::from_millis(10));
        let mut delays: Vec<_> = (0..100).map(|_| faults.delay(&fault)).collect();
        delays.sort_unstable();
        assert!(delays[0] >= fault.delay && delays[99] <= fault.delay + fault.jitter);
        assert!(delays[99] - delays[0] > Duration::from_millis(5), "{delays:?}");
        fault.delay = Duration::from_secs(100);
        assert_eq!(faults.delay(&fault), MAX_DELAY);
    }

    #[test]
    fn there_are_only_so_many() {
        let (mut faults, now) = one(|_| {});
        let more = (0..100).filter(|_| faults.add(Fault::new(FaultKind::Slow), now)).count();
        assert_eq!(more, MAX_FAULTS - 1);
        assert_eq!(faults.clear(Some(FaultKind::Slow)), MAX_FAULTS - 1);
        assert_eq!(faults.clear(None), 1);
    }
}
