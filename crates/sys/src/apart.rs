use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use crate::EventFd;

/// Runs `work` in a thread that has none of this process's descriptors beyond the three standard
/// ones and `done`, which is signalled at the end. For calls in which the kernel may keep a thread
/// even when the process is killed: what the process has open is closed then all the same, and
/// the next process can open it.
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
    // SAFETY: callers close in a table that is this thread's alone, or becomes it with this very
    // call, and this thread uses none of these descriptors: `spawn_apart` asks for it.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
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
