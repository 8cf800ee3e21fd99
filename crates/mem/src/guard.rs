//! A shrinking backing file must not kill the process.
//!
//! A peer that hands us a file descriptor may truncate the file later; touching the lost pages
//! raises SIGBUS. The handler installed here looks the fault address up in a table of our mappings,
//! puts zero pages over the whole mapping, and sets its flag; the access then completes and the
//! owner finds [`Mapping::is_poisoned`] set, and is told that there is something to look at by
//! [`event`]. A fault anywhere else gets the default action, as without us.
//!
//! [`Mapping::is_poisoned`]: crate::Mapping::is_poisoned

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Once, OnceLock};

use rustix::event::{EventfdFlags, eventfd};

/// How many mappings of files can exist at once. 32 bytes each; a bridge needs about 10.
pub const MAX_GUARDED: usize = 16384;

struct Slot {
    /// Address of the first byte, 0 when the slot is free, 1 while it is being filled or emptied.
    start: AtomicUsize,
    len: AtomicUsize,
    poisoned: AtomicBool,
}

static SLOTS: [Slot; MAX_GUARDED] = [const {
    Slot { start: AtomicUsize::new(0), len: AtomicUsize::new(0), poisoned: AtomicBool::new(false) }
}; MAX_GUARDED];
static USED: AtomicUsize = AtomicUsize::new(0);
/// Faults that were survived. Counted before the zero pages are there, so that whoever has read
/// zeros finds the fault counted.
static HITS: AtomicU64 = AtomicU64::new(0);
static INSTALL: Once = Once::new();

/// The descriptor of [`event`] for the handler, which must not take a lock; -1 before there is one.
static EVENT: AtomicI32 = AtomicI32::new(-1);

const FREE: usize = 0;
const BUSY: usize = 1;

/// How many faults this process has survived: as long as the number stays the same, no mapping was
/// found cut short.
#[inline]
pub(crate) fn hits() -> u64 {
    // Acquire: what was read from a mapping before stays before, on this thread (the handler ran
    // in the middle of that read) and, if another thread took the fault, because the zero pages
    // came after its count.
    fence(Ordering::Acquire);
    HITS.load(Ordering::Relaxed)
}

/// An eventfd that is signalled whenever a mapping of this process is found to have lost its file,
/// so that nobody has to look again and again. Nobody reads it: wait for it edge-triggered, after
/// which [`Mapping::is_poisoned`](crate::Mapping::is_poisoned) tells whether one's own is meant.
///
/// # Errors
/// The system is out of file descriptors.
pub fn event() -> io::Result<BorrowedFd<'static>> {
    static OWNER: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(event) = OWNER.get() {
        return Ok(event.as_fd());
    }
    let fresh = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let event = OWNER.get_or_init(|| fresh);
    // Release: pairs with the handler's Acquire; the descriptor is never closed.
    EVENT.store(event.as_raw_fd(), Ordering::Release);
    Ok(event.as_fd())
}

/// A mapping's place in the handler's table.
#[derive(Debug)]
pub(crate) struct Guard {
    slot: usize,
}

impl Guard {
    /// Registers `[start, start + len)`; `None` when [`MAX_GUARDED`] mappings exist.
    pub(crate) fn new(start: usize, len: usize) -> Option<Self> {
        INSTALL.call_once(install);
        for (index, slot) in SLOTS.iter().enumerate() {
            let free =
                slot.start.compare_exchange(FREE, BUSY, Ordering::Acquire, Ordering::Relaxed);
            if free.is_ok() {
                slot.len.store(len, Ordering::Relaxed);
                slot.poisoned.store(false, Ordering::Relaxed);
                USED.fetch_max(index + 1, Ordering::Relaxed);
                // Release: pairs with the handler's Acquire, which then reads `len`.
                slot.start.store(start, Ordering::Release);
                return Some(Self { slot: index });
            }
        }
        None
    }

    pub(crate) fn is_poisoned(&self) -> bool {
        SLOTS[self.slot].poisoned.load(Ordering::Acquire)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        SLOTS[self.slot].start.store(FREE, Ordering::Release);
    }
}

fn install() {
    // SAFETY: an all-zero sigaction is a valid value; its fields are set right below.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_sigbus as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
    // SAFETY: `action` is fully initialised and the handler has the SA_SIGINFO signature; it only
    // uses async-signal-safe calls (mmap, write, sigaction).
    let result = unsafe { libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()) };
    assert!(result == 0, "sigaction(SIGBUS) with a valid handler can't fail");
}

extern "C" fn on_sigbus(_signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to SA_SIGINFO handlers.
    let info = unsafe { &*info };
    // SAFETY: SIGBUS is one of the signals whose siginfo carries an address.
    let fault = unsafe { info.si_addr() } as usize;
    for slot in &SLOTS[..USED.load(Ordering::Relaxed)] {
        let start = slot.start.load(Ordering::Acquire);
        let len = slot.len.load(Ordering::Relaxed);
        if start > BUSY && fault >= start && fault - start < len {
            slot.poisoned.store(true, Ordering::Release);
            HITS.fetch_add(1, Ordering::Release);
            // SAFETY: the range is one of our own mappings, alive because its owner just touched
            // it; replacing it by anonymous zero pages keeps every pointer into it valid.
            let covered = unsafe {
                libc::mmap(
                    start as *mut libc::c_void,
                    len,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                    -1,
                    0,
                )
            };
            if covered != libc::MAP_FAILED {
                return tell();
            }
        }
    }
    // Not ours: back to the default action; returning repeats the fault and ends the process as
    // usual. SAFETY: SIG_DFL is a valid disposition for SIGBUS.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}

/// Signals [`event`], if anybody has asked for it.
fn tell() {
    let fd = EVENT.load(Ordering::Acquire);
    if fd >= 0 {
        let one = 1u64.to_ne_bytes();
        // SAFETY: the descriptor is never closed, the bytes are 8 as an eventfd wants; the worst
        // that can happen is that the counter is full, and then the event is signalled already.
        unsafe { libc::write(fd, one.as_ptr().cast(), one.len()) };
    }
}
