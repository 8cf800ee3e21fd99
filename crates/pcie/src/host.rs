use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mem::{AddressSpace, Mapping};

use crate::Interrupts;

/// A function's way to the machine it is plugged into. Cheap to clone, usable from any thread.
#[derive(Clone, Debug)]
pub struct HostPort {
    /// Host memory: mapped where it is shared, reached by messages ([`mem::Backing::Remote`]) where
    /// it is not.
    pub memory: Arc<AddressSpace>,
    /// Interrupts towards the host.
    pub interrupts: Arc<Interrupts>,
    settled: Arc<AtomicBool>,
    bars: Arc<[Option<Arc<Mapping>>; 6]>,
}

impl HostPort {
    /// A port with no memory and no interrupts connected yet.
    #[must_use]
    pub fn new(interrupts: Interrupts) -> Self {
        Self {
            memory: Arc::new(AddressSpace::default()),
            interrupts: Arc::new(interrupts),
            settled: Arc::new(AtomicBool::new(true)),
            bars: Arc::default(),
        }
    }

    /// The same with memory behind BARs.
    #[must_use]
    pub fn with_bars(mut self, bars: [Option<Arc<Mapping>>; 6]) -> Self {
        self.bars = Arc::new(bars);
        self
    }

    /// The memory behind BAR `index`, if there is any: its first byte is the BAR's. The machine
    /// reads and writes it at any time.
    #[must_use]
    pub fn bar(&self, index: usize) -> Option<&Arc<Mapping>> {
        self.bars.get(index)?.as_ref()
    }

    /// Whether it is known how each region of memory is to be reached. While it is being found out,
    /// a function had better not begin to use memory; [`Function::memory_changed`] is called when
    /// it is known.
    ///
    /// [`Function::memory_changed`]: crate::Function::memory_changed
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    /// Whoever serves the function says whether the memory is known.
    pub fn set_settled(&self, settled: bool) {
        self.settled.store(settled, Ordering::Release);
    }
}
