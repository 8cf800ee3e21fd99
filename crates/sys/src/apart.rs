use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use rustix::process::Pid;

use crate::EventFd;

/// Runs `work` in a thread that has none of this process's descriptors beyond the three standard
/// ones and `done`, which is signalled at the end. For calls in which the kernel may keep the
/// thread even when the process is killed: what the process has open is closed then all the same,
/// and the next process can open it.
///
/// `work` and what is moved into it must not hold descriptors: there they are closed. Those it
/// opens are its own.
///
/// # Errors
/// The system is out of threads.
pub fn spawn_apart(
    name: String,
    done: Arc<EventFd>,
    work: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name).spawn(move || {
        // Linux before 5.9 can't. Then the thread is only in the way if the process is killed.
        let _ = leave_descriptors(&done);
        work();
        done.signal();
    })
}

/// Gives this thread a table of descriptors of its own, with 0 to 2 and `keep` in it.
fn leave_descriptors(keep: &EventFd) -> io::Result<()> {
    const FIRST: u32 = 3;
    let keep = keep.as_raw_fd().unsigned_abs();
    // The first of the two makes the table: nothing is closed in anybody else's.
    close_range(FIRST.max(keep.saturating_add(1)), u32::MAX, libc::CLOSE_RANGE_UNSHARE)?;
    if keep > FIRST { close_range(FIRST, keep - 1, 0) } else { Ok(()) }
}

fn close_range(first: u32, last: u32, flags: u32) -> io::Result<()> {
    // SAFETY: the callers close in a table that is this thread's alone, or becomes it with this
    // very call, and it uses none of these descriptors: `spawn_apart` asks for it, and a child that
    // only sends has no other use.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends `request` from a process of its own, which has no descriptor but `socket` and ends then.
/// For sockets whose messages the kernel acts on while they are sent: what it does goes on when
/// this process is killed, down to the last step. The caller waits for the child.
pub(crate) fn send_apart(socket: BorrowedFd<'_>, request: &[u8]) -> io::Result<Pid> {
    let socket = socket.as_raw_fd();
    // SAFETY: the child makes nothing but system calls, which need no lock that another thread may
    // have held, and does not return.
    let child = unsafe { libc::fork() };
    if child != 0 {
        return Pid::from_raw(child).filter(|_| child > 0).ok_or_else(io::Error::last_os_error);
    }
    let keep = socket.unsigned_abs();
    // Linux before 5.9 can't: then it keeps them until it ends.
    let _ = close_range(keep + 1, u32::MAX, 0);
    if keep > 0 {
        let _ = close_range(0, keep - 1, 0);
    }
    // SAFETY: the bytes are there; an error shows in the answer that does not come.
    let sent = unsafe { libc::send(socket, request.as_ptr().cast(), request.len(), 0) };
    // SAFETY: it ends the child without running anything of the parent's.
    unsafe { libc::_exit(i32::from(sent < 0)) }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn what_the_process_closes_is_closed() {
        let done = Arc::new(EventFd::new().unwrap());
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let ((ready, is_ready), (go, may_go)) = (channel(), channel());
        let work = move || {
            ready.send(()).unwrap();
            may_go.recv().unwrap();
        };
        let thread = spawn_apart("apart".into(), Arc::clone(&done), work).unwrap();
        is_ready.recv().unwrap();
        drop(theirs);
        // The other end is open in no table any more, though that thread was there before.
        assert_eq!(ours.read(&mut [0]).unwrap(), 0);
        assert!(!done.drain());
        go.send(()).unwrap();
        thread.join().unwrap();
        assert!(done.drain());
    }
}
