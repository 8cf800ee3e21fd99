//! Faults on request: what a device of silicon may do wrong, done on purpose, at a port that runs.
//!
//! A [`Fault`] says what goes wrong, where, how often and for how long. The port asks [`Faults`] at
//! each access, transfer and interrupt; while there is no fault that costs one comparison.
//!
//! What it deliberately lacks: the words by which people name a fault's place and numbers, and the
//! socket on which they ask. `docs/faults.md` says what each fault is in a real device.

mod active;
mod control;
mod kinds;

use std::time::Duration;

pub(crate) use active::{Edge, Edit};
pub use active::{FaultStatus, Faults};
pub use control::{Command, Control, ControlError, Reply};
pub use kinds::{Class, FaultKind, KINDS, KindInfo};

/// Longest delay of an access or an interrupt. QEMU waits 5 s for an answer, and its guest stands
/// still meanwhile.
pub const MAX_DELAY: Duration = Duration::from_secs(4);

/// A fault: what goes wrong, where, how often, when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What goes wrong.
    pub kind: FaultKind,
    /// Only in this BAR.
    pub bar: Option<u8>,
    /// Only accesses that touch the bytes from here on: an offset in a BAR or the configuration
    /// space, or an address in host memory.
    pub at: u64,
    /// How many bytes from there on.
    pub len: u64,
    /// A number whose meaning depends on the kind.
    pub value: u64,
    /// How late, for what is late.
    pub delay: Duration,
    /// How much later still, at random, at most.
    pub jitter: Duration,
    /// How many times it happens; for ever if `None`.
    pub count: Option<u64>,
    /// How many times it does not happen first.
    pub skip: u64,
    /// How long after it was asked for it begins.
    pub begins: Duration,
    /// How long it lasts from then on; for ever if `None`.
    pub lasts: Option<Duration>,
}

impl Fault {
    /// A fault of this kind with its usual number and delay, everywhere and for ever.
    #[must_use]
    pub fn new(kind: FaultKind) -> Self {
        let info = kind.info();
        Self {
            kind,
            bar: None,
            at: 0,
            len: u64::MAX,
            value: info.value,
            delay: info.delay,
            jitter: Duration::ZERO,
            count: None,
            skip: 0,
            begins: Duration::ZERO,
            lasts: None,
        }
    }

    /// Whether `len` bytes from `at` on are concerned.
    fn touches(&self, at: u64, len: u64) -> bool {
        let end = self.at.saturating_add(self.len);
        at < end && at.saturating_add(len) > self.at
    }
}
