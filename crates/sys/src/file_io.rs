use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::AsFd;

use mem::Span;

/// Most spans given to the kernel in one call; the rest is left for the next one.
const MAX_SPANS: usize = 64;

/// Reads from `file` at byte `offset` into the spans in order; returns how many bytes arrived,
/// fewer at the end of the file or when there are more than 64 spans.
///
/// # Errors
/// The read failed, or a span is read-only.
pub fn read_at(file: impl AsFd, spans: &[Span<'_>], offset: u64) -> io::Result<usize> {
    let spans = &spans[..spans.len().min(MAX_SPANS)];
    if spans.iter().any(|span| !span.is_writable()) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let mut slices: [IoSliceMut<'_>; MAX_SPANS] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
    for (slice, span) in slices.iter_mut().zip(spans) {
        // SAFETY: writable mapped bytes, alive while the span is borrowed; the slice is only handed
        // to the kernel.
        let bytes = unsafe { std::slice::from_raw_parts_mut(span.as_ptr(), span.len()) };
        *slice = IoSliceMut::new(bytes);
    }
    crate::calls::note();
    let read = rustix::io::preadv(file, &mut slices[..spans.len()], offset)?;
    let mut left = read;
    for span in spans {
        span.mark_dirty(left.min(span.len()));
        left = left.saturating_sub(span.len());
    }
    Ok(read)
}

/// Writes the spans in order to `file` at byte `offset`; returns how many bytes went, fewer when
/// the medium is full or when there are more than 64 spans.
///
/// # Errors
/// The write failed.
pub fn write_at(file: impl AsFd, spans: &[Span<'_>], offset: u64) -> io::Result<usize> {
    let spans = &spans[..spans.len().min(MAX_SPANS)];
    let mut slices = [IoSlice::new(&[]); MAX_SPANS];
    for (slice, span) in slices.iter_mut().zip(spans) {
        // SAFETY: the slice is only handed to the kernel.
        *slice = unsafe { span.as_io_slice() };
    }
    crate::calls::note();
    Ok(rustix::io::pwritev(file, &slices[..spans.len()], offset)?)
}
