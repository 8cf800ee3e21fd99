use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use io_uring::{IoUring, opcode, squeue, types};
use mem::{OwnedSpan, Span};

/// Most spans of one transfer (the kernel's `UIO_MAXIOV`).
pub const MAX_SPANS_PER_TRANSFER: usize = 1024;

/// Which way a transfer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// From the file into memory.
    Read,
    /// From memory into the file.
    Write,
    /// The same, and done only when it would survive a power cut (`RWF_DSYNC`).
    DurableWrite,
}

/// An operation that has ended.
#[derive(Debug)]
pub struct Completed<'a> {
    /// What [`Uring::transfer`] or [`Uring::sync_data`] returned.
    pub slot: u16,
    /// Bytes transferred, fewer than asked for at the end of the file.
    pub result: io::Result<u64>,
    /// The memory of the transfer.
    pub spans: &'a [OwnedSpan],
}

/// Operations on one file, many at once (io_uring). Each occupies a slot, which owns the memory
/// until the kernel is done.
pub struct Uring {
    ring: IoUring,
    slots: Box<[Slot]>,
    free: Vec<u16>,
    unsubmitted: usize,
    file: Arc<File>,
}

#[derive(Default)]
struct Slot {
    spans: Vec<OwnedSpan>,
    vectors: Vec<Vector>,
    /// The first vector the kernel has not finished.
    first: usize,
    /// What kind of transfer, from where in the file, and the bytes done before; `None` for
    /// anything else.
    transfer: Option<(Transfer, u64, u64)>,
}

#[repr(transparent)]
struct Vector(libc::iovec);

// SAFETY: an address and a length that are only handed to the kernel; the memory is owned by the
// slot's spans.
unsafe impl Send for Vector {}

impl Uring {
    /// A ring for up to `depth` operations at once on `file`.
    ///
    /// # Errors
    /// The kernel has no io_uring, or does not allow it here.
    pub fn new(file: Arc<File>, depth: u16) -> io::Result<Self> {
        let depth = depth.max(1);
        let ring = IoUring::new(depth.next_power_of_two().into())?;
        let slots = (0..depth).map(|_| Slot::default()).collect();
        Ok(Self { ring, slots, free: (0..depth).rev().collect(), unsubmitted: 0, file })
    }

    /// Whether every slot is taken.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Operations that have not been handed to a caller of [`Uring::complete`].
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Prepares a transfer between byte `offset` of the file and `spans`,
    /// [`MAX_SPANS_PER_TRANSFER`] at most; `None` if there is no slot, there are more spans, or one
    /// can't be written that should be. It starts with [`Uring::submit`].
    pub fn transfer<'s>(
        &mut self,
        transfer: Transfer,
        offset: u64,
        spans: impl Iterator<Item = Span<'s>>,
    ) -> Option<u16> {
        let index = *self.free.last()?;
        let slot = &mut self.slots[usize::from(index)];
        slot.clear();
        for span in spans {
            let unfit = transfer == Transfer::Read && !span.is_writable();
            if unfit || slot.spans.len() == MAX_SPANS_PER_TRANSFER {
                slot.clear();
                return None;
            }
            let base = span.as_ptr().cast();
            slot.vectors.push(Vector(libc::iovec { iov_base: base, iov_len: span.len() }));
            slot.spans.push(span.to_owned());
        }
        slot.transfer = Some((transfer, offset, 0));
        self.free.pop();
        self.push(index);
        Some(index)
    }

    /// Prepares making all writes that have ended survive a power cut (`fdatasync`); `None` if
    /// there is no slot.
    pub fn sync_data(&mut self) -> Option<u16> {
        let index = self.free.pop()?;
        self.slots[usize::from(index)].clear();
        self.push(index);
        Some(index)
    }

    /// Starts what was prepared.
    ///
    /// # Errors
    /// The kernel is out of memory for now; call again.
    pub fn submit(&mut self) -> io::Result<()> {
        while self.unsubmitted > 0 {
            crate::calls::note();
            match self.ring.submit() {
                Ok(n) => self.unsubmitted -= n.min(self.unsubmitted),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether something prepared has not started.
    #[must_use]
    pub fn has_unsubmitted(&self) -> bool {
        self.unsubmitted > 0
    }

    /// Whether [`Uring::complete`] would find something.
    #[must_use]
    pub fn has_completed(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Waits until something has ended.
    ///
    /// # Errors
    /// The kernel is out of memory for now; call again.
    pub fn wait(&mut self) -> io::Result<()> {
        if self.in_flight() == 0 || self.has_completed() {
            return Ok(());
        }
        crate::calls::note();
        match self.ring.submit_and_wait(1) {
            Ok(n) => self.unsubmitted -= n.min(self.unsubmitted),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Hands each operation that has ended to `done` and frees its slot; returns how many there
    /// were. The rest of a transfer that was cut short is started again first.
    pub fn complete(&mut self, mut done: impl FnMut(Completed<'_>)) -> usize {
        let mut count = 0;
        let mut resumed = false;
        loop {
            let Some(entry) = self.ring.completion().next() else { break };
            let index = entry.user_data() as u16;
            let slot = &mut self.slots[usize::from(index)];
            let result = length_or_error(entry.result());
            if slot.goes_on(&result) {
                self.push(index);
                resumed = true;
                continue;
            }
            let before = slot.transfer.map_or(0, |(_, _, before)| before);
            let result = result.map(|n| before + n);
            if let (Some((Transfer::Read, ..)), Ok(read)) = (slot.transfer, &result) {
                slot.mark_dirty(*read);
            }
            done(Completed { slot: index, result, spans: &slot.spans });
            slot.clear();
            self.free.push(index);
            count += 1;
        }
        if resumed {
            // If the kernel refuses now, `has_unsubmitted` tells the caller.
            let _ = self.submit();
        }
        count
    }

    fn push(&mut self, index: u16) {
        let slot = &self.slots[usize::from(index)];
        let fd = types::Fd(self.file.as_raw_fd());
        let entry = match slot.transfer {
            Some((transfer, offset, before)) => {
                let vectors = &slot.vectors[slot.first..];
                let (at, len) = (vectors.as_ptr().cast::<libc::iovec>(), vectors.len() as u32);
                let offset = offset + before;
                match transfer {
                    Transfer::Read => opcode::Readv::new(fd, at, len).offset(offset).build(),
                    Transfer::Write => opcode::Writev::new(fd, at, len).offset(offset).build(),
                    Transfer::DurableWrite => {
                        let write = opcode::Writev::new(fd, at, len).offset(offset);
                        write.rw_flags(libc::RWF_DSYNC).build()
                    }
                }
            }
            None => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
        };
        self.push_entry(&entry.user_data(index.into()));
    }

    fn push_entry(&mut self, entry: &squeue::Entry) {
        // SAFETY: the file, the vectors and the memory they point to live until the operation has
        // ended: the slot owns them and is not touched before, and `drop` waits for all.
        let pushed = unsafe { self.ring.submission().push(entry) };
        assert!(pushed.is_ok(), "the queue has an entry for each slot");
        self.unsubmitted += 1;
    }
}

impl Slot {
    fn clear(&mut self) {
        self.spans.clear();
        self.vectors.clear();
        self.first = 0;
        self.transfer = None;
    }

    /// Whether a transfer was cut short but not at the end of the file; then the vectors begin
    /// where it stopped.
    fn goes_on(&mut self, result: &io::Result<u64>) -> bool {
        let (Some((_, _, before)), Ok(mut n @ 1..)) =
            (&mut self.transfer, result.as_ref().copied())
        else {
            return false;
        };
        let left: usize = self.vectors[self.first..].iter().map(|vector| vector.0.iov_len).sum();
        if n >= left as u64 {
            return false;
        }
        *before += n;
        while n >= self.vectors[self.first].0.iov_len as u64 {
            n -= self.vectors[self.first].0.iov_len as u64;
            self.first += 1;
        }
        let vector = &mut self.vectors[self.first].0;
        vector.iov_base = vector.iov_base.cast::<u8>().wrapping_add(n as usize).cast();
        vector.iov_len -= n as usize;
        true
    }

    fn mark_dirty(&self, bytes: u64) {
        let mut left = bytes;
        for span in &self.spans {
            let len = left.min(span.get().len() as u64);
            span.mark_dirty(len as usize);
            left -= len;
        }
    }
}

/// The kernel's convention: a length, or a negative error number.
fn length_or_error(result: i32) -> io::Result<u64> {
    u64::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

impl AsFd for Uring {
    /// Readable when [`Uring::complete`] would find something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to the ring, which lives as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

impl Drop for Uring {
    /// Waits for the operations in flight: the kernel writes to their memory until then.
    fn drop(&mut self) {
        while self.in_flight() > 0 {
            if self.wait().is_err() {
                std::thread::yield_now();
            }
            self.complete(|_| ());
        }
    }
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Uring[{} of {} in flight]", self.in_flight(), self.slots.len())
    }
}
