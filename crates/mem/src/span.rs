use std::io::IoSlice;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::mapping::alias_of;
use crate::{DriverAddress, Mapping, MemoryMap};

/// A checked window on data bytes that another party may be changing: copied to and from, never
/// borrowed.
///
/// A span may be shorter than what was asked for when a buffer crosses into another region; see
/// [`MemoryMap::span`](crate::MemoryMap::span).
#[derive(Clone, Copy)]
pub struct Span<'m> {
    base: NonNull<u8>,
    len: usize,
    writable: bool,
    mapping: &'m Arc<Mapping>,
    /// For the dirty log: the map that knows it, and the span's address there.
    origin: Option<(&'m MemoryMap, DriverAddress)>,
    _memory: PhantomData<&'m Mapping>,
}

impl<'m> Span<'m> {
    /// The `len` bytes at `offset` of `mapping`; `None` if they do not fit.
    #[must_use]
    #[inline]
    pub fn of_mapping(mapping: &'m Arc<Mapping>, offset: usize, len: usize) -> Option<Self> {
        if offset.checked_add(len)? > mapping.len() {
            return None;
        }
        // SAFETY: offset + len <= mapping.len(), checked above.
        Some(unsafe { Self::within(mapping, offset, len) })
    }

    /// The same for bytes that are known to fit.
    ///
    /// # Safety
    /// `offset + len` must be at most the mapping's length.
    #[inline]
    pub(crate) unsafe fn within(mapping: &'m Arc<Mapping>, offset: usize, len: usize) -> Self {
        debug_assert!(offset + len <= mapping.len(), "a span lies in its mapping");
        // SAFETY: the caller's promise.
        let base = unsafe { mapping.base().add(offset) };
        let writable = mapping.is_writable();
        Self { base, len, writable, mapping, origin: None, _memory: PhantomData }
    }

    #[inline]
    pub(crate) fn with_origin(
        mut self,
        map: &'m MemoryMap,
        at: DriverAddress,
        writable: bool,
    ) -> Self {
        self.writable &= writable;
        if map.dirty_log().is_some() {
            self.origin = Some((map, at));
        }
        self
    }

    /// Where its first byte is, in the terms of [`Mapping::alias`].
    #[must_use]
    #[inline]
    pub fn alias(&self) -> u64 {
        alias_of(self.base)
    }

    /// Length in bytes.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the owner of the memory lets us write to it.
    #[must_use]
    #[inline]
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// The part of the span from `offset` on, `len` bytes at most.
    #[must_use]
    #[inline]
    pub fn slice(&self, offset: usize, len: usize) -> Self {
        let offset = offset.min(self.len);
        let mut part = *self;
        // SAFETY: offset <= self.len, so the pointer stays inside the span or one past its end.
        part.base = unsafe { self.base.add(offset) };
        part.len = len.min(self.len - offset);
        if let Some((_, at)) = &mut part.origin {
            at.0 += offset as u64;
        }
        part
    }

    /// Copies the first bytes of the span into `into`, as many as both have; returns how many.
    #[inline]
    pub fn copy_to(&self, into: &mut [u8]) -> usize {
        let len = self.len.min(into.len());
        // SAFETY: `len` bytes are readable at `base` and writable at `into`; `into` is private
        // memory, so they can't overlap. A peer writing meanwhile only changes which bytes arrive.
        unsafe { std::ptr::copy_nonoverlapping(self.base.as_ptr(), into.as_mut_ptr(), len) };
        len
    }

    /// Copies `from` over the first bytes of the span, as many as both have; returns how many. 0 if
    /// it is not writable.
    #[inline]
    pub fn copy_from(&self, from: &[u8]) -> usize {
        if !self.writable {
            return 0;
        }
        let len = self.len.min(from.len());
        // SAFETY: `len` bytes are writable at `base` (checked when the span was made) and readable
        // at `from`, which is private memory and can't overlap.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.base.as_ptr(), len) };
        self.mark_dirty(len);
        len
    }

    /// Copies as many bytes as both spans have from this one to `to`; returns how many. 0 if `to`
    /// is not writable.
    #[inline]
    pub fn copy_to_span(&self, to: &Span<'_>) -> usize {
        if !to.writable {
            return 0;
        }
        let len = self.len.min(to.len);
        // SAFETY: both ranges are mapped, `to` writable; `copy` allows the overlap that a peer may
        // arrange by registering the same memory twice.
        unsafe { std::ptr::copy(self.base.as_ptr(), to.base.as_ptr(), len) };
        to.mark_dirty(len);
        len
    }

    /// Begins to fetch the first bytes of the span into the cache, to be read or, if `write`, to be
    /// written soon: two cache lines, which is all of a small packet, and with the rest the
    /// processor's own prefetching helps. Nothing happens where there is no such instruction.
    #[inline]
    pub fn prefetch(&self, write: bool) {
        const LINE: usize = 64;
        for offset in [0, LINE] {
            if offset < self.len {
                // SAFETY: offset < len, so the pointer stays inside the span.
                let line = unsafe { self.base.add(offset) };
                prefetch_line(line.as_ptr(), write);
            }
        }
    }

    /// Fills the span with zeros.
    #[inline]
    pub fn zero(&self) {
        if self.writable {
            // SAFETY: `len` writable bytes at `base`, checked when the span was made.
            unsafe { std::ptr::write_bytes(self.base.as_ptr(), 0, self.len) };
            self.mark_dirty(self.len);
        }
    }

    /// Whether every byte is zero at this moment.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        let mut block = [0u8; 4096];
        (0..self.len).step_by(block.len()).all(|at| {
            let n = self.slice(at, block.len()).copy_to(&mut block);
            block[..n].iter().all(|&byte| byte == 0)
        })
    }

    /// A span that keeps its mapping alive by itself, for requests that outlive the snapshot they
    /// came from.
    #[must_use]
    pub fn to_owned(&self) -> OwnedSpan {
        OwnedSpan {
            base: self.base,
            len: self.len,
            writable: self.writable,
            mapping: Arc::clone(self.mapping),
            log: self.origin.and_then(|(map, at)| map.dirty_log().map(|log| (Arc::clone(log), at))),
        }
    }

    /// Tells the dirty log, if there is one, that the first `len` bytes were written.
    #[inline]
    pub fn mark_dirty(&self, len: usize) {
        if let Some((map, at)) = self.origin {
            map.mark_dirty(at, len as u64);
        }
    }

    /// As an address and length for the kernel's vectored I/O.
    ///
    /// The slice stands for memory that a peer may write: it must only be passed on to a system
    /// call, never read. That is why this is for this crate and `sys` alone and says `unsafe`.
    ///
    /// # Safety
    /// The bytes behind the result must not be read or written through it by Rust code.
    #[must_use]
    #[inline]
    pub unsafe fn as_io_slice(&self) -> IoSlice<'m> {
        // SAFETY: `len` readable bytes at `base`, alive for 'm; the caller promises not to look at
        // them.
        IoSlice::new(unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) })
    }

    /// Address of the first byte in this process, for the kernel.
    #[must_use]
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn prefetch_line(line: *const u8, write: bool) {
    use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    if write {
        // The compiler makes an ordinary prefetch of `_MM_HINT_ET0` unless it may assume PRFCHW,
        // and that fetches a line that has to be asked for a second time before it can be written.
        // SAFETY: a hint that never faults, whatever the address, and writes nothing; x86-64
        // processors too old to know it do nothing.
        unsafe {
            core::arch::asm!(
                "prefetchw byte ptr [{0}]", in(reg) line, options(nostack, preserves_flags)
            );
        };
    } else {
        // SAFETY: a hint that never faults, whatever the address; part of every x86-64 processor.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline]
pub(crate) fn prefetch_line(_line: *const u8, _write: bool) {}

impl std::fmt::Debug for Span<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Span[{}{}]", self.len, if self.writable { ", writable" } else { "" })
    }
}

/// A [`Span`] that holds its mapping, for I/O in flight.
pub struct OwnedSpan {
    base: NonNull<u8>,
    len: usize,
    writable: bool,
    mapping: Arc<Mapping>,
    log: Option<(Arc<crate::DirtyLog>, DriverAddress)>,
}

// SAFETY: an address range and the `Arc` that keeps it mapped; nothing tied to a thread.
unsafe impl Send for OwnedSpan {}

impl OwnedSpan {
    /// The span itself.
    #[must_use]
    #[inline]
    pub fn get(&self) -> Span<'_> {
        Span {
            base: self.base,
            len: self.len,
            writable: self.writable,
            mapping: &self.mapping,
            origin: None,
            _memory: PhantomData,
        }
    }

    /// Tells the dirty log, if there is one, that the first `len` bytes were written (by the
    /// kernel, say).
    pub fn mark_dirty(&self, len: usize) {
        if let Some((log, at)) = &self.log {
            log.mark(*at, len as u64);
        }
    }
}

impl std::fmt::Debug for OwnedSpan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.get().fmt(f)
    }
}
