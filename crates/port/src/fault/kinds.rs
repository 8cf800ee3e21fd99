//! The table of faults.

use std::time::Duration;

/// What goes wrong. [`KINDS`] says more of each.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    Removed,
    LinkDown,
    Unsupported,
    Abort,
    Poisoned,
    Timeout,
    Slow,
    Stuck,
    Flipped,
    Short,
    LostWrites,
    DoubledWrites,
    ConfigFlipped,
    Ids,
    ConfigLost,
    FlrIgnored,
    PowerStuck,
    InterruptLost,
    InterruptDoubled,
    InterruptLate,
    InterruptSpurious,
    DmaRefused,
    DmaLost,
    DmaLate,
    DmaTorn,
    DmaReordered,
    DmaFlipped,
    DmaMisplaced,
    DmaShort,
}

/// What a fault concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The function as a whole.
    Function,
    /// Reads and writes of BARs.
    Access,
    /// The configuration space.
    Config,
    /// Interrupts.
    Interrupt,
    /// Transfers to and from host memory.
    Dma,
}

/// A line of the table of faults.
#[derive(Clone, Copy, Debug)]
pub struct KindInfo {
    /// The fault.
    pub kind: FaultKind,
    /// What people call it.
    pub name: &'static str,
    /// What it concerns.
    pub class: Class,
    /// Its number unless told otherwise.
    pub value: u64,
    /// Its delay unless told otherwise.
    pub delay: Duration,
    /// What happens.
    pub help: &'static str,
}

const NONE: Duration = Duration::ZERO;
/// Long enough to be seen from inside a guest, short enough to be waited for.
const VISIBLE: Duration = Duration::from_millis(200);
/// Two edges of an event that are closer together may be taken for one.
const APART: Duration = Duration::from_millis(20);

/// All faults.
#[rustfmt::skip]
pub const KINDS: &[KindInfo] = {
    use {Class::*, FaultKind::*};
    const fn line(
        kind: FaultKind, name: &'static str, class: Class, value: u64, delay: Duration,
        help: &'static str,
    ) -> KindInfo {
        KindInfo { kind, name, class, value, delay, help }
    }
    &[
        line(Removed, "removed", Function, 0, NONE,
             "the card is pulled out; when this ends it is back as after power-on"),
        line(LinkDown, "link-down", Function, 0, NONE,
             "the link is lost; when this ends it is back, and the function was reset"),
        line(Unsupported, "unsupported", Access, 0, NONE,
             "accesses are unsupported requests: all ones, writes dropped, error bits set"),
        line(Abort, "abort", Access, 0, NONE,
             "accesses are aborted by the completer: all ones, writes dropped, error bits set"),
        line(Poisoned, "poisoned", Access, 0, NONE,
             "data is poisoned: reads get all ones, writes are dropped, error bits set"),
        line(Timeout, "timeout", Access, 0, NONE,
             "reads are not answered; all ones after the deadline"),
        line(Slow, "slow", Access, 0, APART,
             "reads take 'delay', and up to 'jitter' more"),
        line(Stuck, "stuck", Access, 0, NONE,
             "reads get 'value' whatever the register holds"),
        line(Flipped, "flipped", Access, 1, NONE,
             "reads have the bits of 'value' inverted"),
        line(Short, "short", Access, 1, NONE,
             "of a read only the first 'value' bytes are right, the others are ones"),
        line(LostWrites, "lost-writes", Access, 0, NONE,
             "writes are lost"),
        line(DoubledWrites, "doubled-writes", Access, 0, NONE,
             "writes arrive twice"),
        line(ConfigFlipped, "config-flipped", Config, 1, NONE,
             "the configuration space from 'at' on reads with the bits of 'value' inverted"),
        line(Ids, "ids", Config, 0xdead_beef, NONE,
             "vendor (low half) and device id read as 'value'"),
        line(ConfigLost, "config-lost", Config, 0, NONE,
             "writes of the configuration space are lost"),
        line(FlrIgnored, "flr-ignored", Config, 0, NONE,
             "function level reset does nothing"),
        line(PowerStuck, "power-stuck", Config, 0, NONE,
             "the function does not come back from D3hot"),
        line(InterruptLost, "interrupt-lost", Interrupt, 0, NONE,
             "interrupts are lost"),
        line(InterruptDoubled, "interrupt-doubled", Interrupt, 1, APART,
             "interrupts come 'value' times more, 'delay' apart"),
        line(InterruptLate, "interrupt-late", Interrupt, 0, VISIBLE,
             "interrupts come 'delay' late"),
        line(InterruptSpurious, "interrupt-spurious", Interrupt, 0, NONE,
             "vector 'value' is signalled once, for no reason"),
        line(DmaRefused, "dma-refused", Dma, 0, NONE,
             "the host refuses transfers; the device is told"),
        line(DmaLost, "dma-lost", Dma, 0, NONE,
             "what the device writes is lost; the device is not told"),
        line(DmaLate, "dma-late", Dma, 0, VISIBLE,
             "what the device writes is in memory only after 'delay': interrupts overtake it"),
        line(DmaTorn, "dma-torn", Dma, 0, VISIBLE,
             "the second half of what the device writes is in memory only after 'delay'"),
        line(DmaReordered, "dma-reordered", Dma, 64, VISIBLE,
             "the last 'value' bytes of what the device writes come 'delay' before the others"),
        line(DmaFlipped, "dma-flipped", Dma, 1, NONE,
             "what the device writes has the bits of 'value' inverted in its first 8 bytes"),
        line(DmaMisplaced, "dma-misplaced", Dma, 64, NONE,
             "what the device writes goes 'value' bytes further than it should"),
        line(DmaShort, "dma-short", Dma, 1, NONE,
             "of what the device reads only the first 'value' bytes are right, others are ones"),
    ]
};

impl FaultKind {
    /// Its line in the table.
    ///
    /// # Panics
    /// Never: a test sees that each kind has a line.
    #[must_use]
    pub fn info(self) -> &'static KindInfo {
        KINDS.iter().find(|info| info.kind == self).unwrap_or(&KINDS[0])
    }

    /// The fault of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        KINDS.iter().find(|info| info.name == name).map(|info| info.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_stands_once_in_the_table_and_on_its_page() {
        let page = include_str!("../../../../docs/faults.md");
        for (number, info) in KINDS.iter().enumerate() {
            assert_eq!(info.kind as usize, number, "{} is out of order", info.name);
            assert_eq!(FaultKind::from_name(info.name), Some(info.kind));
            assert_eq!(info.kind.info().name, info.name);
            assert!(page.contains(&format!("| `{}` |", info.name)), "{} has no line", info.name);
        }
    }
}
