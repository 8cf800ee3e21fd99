use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mem::AddressSpace;

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
}

impl HostPort {
    /// A port with no memory and no interrupts connected yet.
    #[must_use]
    pub fn new(interrupts: Interrupts) -> Self {
        Self {
            memory: Arc::new(AddressSpace::default()),
            interrupts: Arc::new(interrupts),
            settled: Arc::new(AtomicBool::new(true)),
        }
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
