use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use mem::MemoryMap;
use sys::EventFd;

use crate::config::{ConfigEffect, ConfigSpace};
use crate::{Completion, FunctionLayout, HostPort};

/// A place in a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarAddress {
    /// Which BAR, 0 to 5.
    pub bar: u8,
    /// Offset in bytes.
    pub offset: u64,
}

/// What kind of reset it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetKind {
    /// The machine is reset, or the driver's side asks for it from outside: the configuration space
    /// is reset too.
    Machine,
    /// Function level reset, or the way back from D3hot, by the driver.
    Function,
}

/// A register whose writes may be turned into an event without anybody looking at them.
#[derive(Clone, Debug)]
pub struct Doorbell {
    /// The register.
    pub at: BarAddress,
    /// Size in bytes of the write, 0 for any.
    pub size: u8,
    /// The value that must be written, if not any.
    pub data: Option<u64>,
    /// What is signalled.
    pub event: Arc<EventFd>,
}

/// A PCIe function: anything that has a configuration space, BARs and interrupts.
///
/// Called by one thread. No call may take long or wait for host memory: whoever serves the function
/// blocks a virtual machine meanwhile, and the answer to a transfer may need that very machine to
/// go on. A read that can't be answered at once is answered later, from any thread, through its
/// [`Completion`].
pub trait Function: Send {
    /// BARs and interrupts. Fixed for the life of the function.
    fn layout(&self) -> &FunctionLayout;

    /// The configuration space.
    fn config(&mut self) -> &mut ConfigSpace;

    /// The way to host memory and interrupts, before anything else is called.
    fn connect(&mut self, host: HostPort);

    /// A driver reads `answer.len()` bytes at `at`; the range lies in the BAR.
    fn read(&mut self, at: BarAddress, answer: Completion);

    /// A driver writes at `at`; the range lies in the BAR.
    fn write(&mut self, at: BarAddress, bytes: &[u8]);

    /// Everything as after power-on, no transfer to host memory in flight, no interrupt pending
    /// when this returns.
    fn reset(&mut self, kind: ResetKind);

    /// Whether the function has a [`Function::config_read`] or [`Function::config_write`] of its
    /// own. Such a one can be served from its own process only: a port holds the configuration
    /// space itself, and what a model puts there.
    fn computes_config(&self) -> bool {
        false
    }

    /// A driver reads the configuration space. See [`Function::computes_config`].
    fn config_read(&mut self, at: u64, into: &mut [u8]) {
        self.config().read(at, into);
    }

    /// A driver writes the configuration space. Returns the consequences; a reset among them has
    /// been done. See [`Function::computes_config`].
    fn config_write(&mut self, at: u64, bytes: &[u8]) -> ConfigEffect {
        let effect = self.config().write(at, bytes);
        if effect.reset {
            self.reset(ResetKind::Function);
        }
        effect
    }

    /// The driver has changed `len` bytes of the configuration space from `at` on, and somebody
    /// else did what there was to do: told to a function that lives in another process than its
    /// configuration space, in place of [`Function::config_write`].
    fn config_changed(&mut self, at: u64, len: usize) {
        let _ = (at, len);
    }

    /// Registers whose writes may come as events instead.
    fn doorbells(&self) -> Vec<Doorbell> {
        Vec::new()
    }

    /// The regions of host memory are about to become those of `map`. A virtual machine takes its
    /// RAM away for a moment while firmware arranges the first megabyte, so what needs memory that
    /// is not in `map` had better pause than fail.
    fn memory_changing(&mut self, map: &MemoryMap) {
        let _ = map;
    }

    /// The regions of host memory have changed. Memory that was removed is not touched any more
    /// when this returns, except by readers that [`mem::AddressSpace::synchronize`] waits for.
    fn memory_changed(&mut self) {}

    /// The events behind interrupts have changed: interrupts that were handed on must be looked up
    /// again.
    fn interrupts_changed(&mut self) {}

    /// The virtual machine is there (again), or gone. What the function has in host memory is gone
    /// with it.
    fn host_present(&mut self, present: bool) {
        let _ = present;
    }

    /// How long a read may wait for its answer, before the driver gets all ones.
    fn read_limit(&self) -> Duration {
        crate::vfio_user::limits::READ_LIMIT
    }

    /// Becomes readable when [`Function::events_ready`] has something to do; `None` if it never
    /// does.
    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Does what is due.
    fn events_ready(&mut self) {}
}
