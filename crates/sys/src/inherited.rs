use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

/// Takes over the descriptor `number` that this process was started with, by a parent or by socket
/// activation. Each can be taken once. It is closed on exec from then on.
///
/// # Errors
/// It is one of the standard streams, not open, or was taken before.
pub fn inherited_fd(number: RawFd) -> io::Result<OwnedFd> {
    static TAKEN: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());
    if number <= 2 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: borrowed for one call that only asks whether the number is an open descriptor.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = rustix::io::fcntl_getfd(borrowed)?;
    // A descriptor that Rust code opened is closed on exec; one that was inherited can't be, or it
    // would not be here.
    if flags.contains(rustix::io::FdFlags::CLOEXEC) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not an inherited descriptor"));
    }
    if !TAKEN.lock().unwrap_or_else(PoisonError::into_inner).insert(number) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is in use already"));
    }
    rustix::io::fcntl_setfd(borrowed, flags | rustix::io::FdFlags::CLOEXEC)?;
    // SAFETY: open, inherited (so nobody in this process owns it), and the set above lets only one
    // caller come here.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Whether a socket is listening, as opposed to connected.
#[must_use]
pub fn is_listening(socket: impl AsFd) -> bool {
    rustix::net::sockopt::socket_acceptconn(socket).unwrap_or(false)
}
