use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::mpsc::channel;
use std::thread::{Builder, JoinHandle};

use rustix::process::Pid;

use crate::EventFd;

/// Runs `work` in a thread that has none of this process's descriptors beyond the three standard
/// ones and `done`, which is signalled at the end. For calls in which the kernel may keep the
/// thread even when the process is killed: what the process has open is closed then all the same,
/// and the next process can open it. No signal is taken there, nor by children of `work`: what ends
/// a whole process group, as a terminal that is closed does, does not end them.
///
/// `work` and what is moved into it must not hold descriptors: there they are closed. Those it
/// opens are its own.
///
/// # Errors
/// The system is out of threads or descriptors.
pub fn spawn_apart(
    name: String,
    done: &EventFd,
    work: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let theirs = done.try_clone()?;
    let number = theirs.as_raw_fd();
    let (tell, told) = channel();
    let thread = Builder::new().name(name).spawn(move || {
        block_signals();
        // Linux before 5.9 can't. Then the thread is only in the way if the process is killed.
        let _ = tell.send(leave_descriptors(&theirs).is_ok());
        work();
        theirs.signal();
    })?;
    if told.recv() == Ok(true) {
        // SAFETY: the thread closes this number in a table of its own; in ours it is nobody's.
        drop(unsafe { OwnedFd::from_raw_fd(number) });
    }
    Ok(thread)
}

/// Has this thread, and the children it makes, take no signal that can be kept from them.
fn block_signals() {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: there is room for a set, which it fills.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: the set is filled; the old one is not asked for. Nothing else of the thread changes.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), std::ptr::null_mut()) };
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
    use std::fs;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use rustix::process::{Signal, WaitOptions};

    use super::*;

    #[test]
    fn what_the_process_closes_is_closed() {
        let done = EventFd::new().unwrap();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let ((ready, is_ready), (go, may_go)) = (channel(), channel());
        let work = move || {
            ready.send(()).unwrap();
            may_go.recv().unwrap();
        };
        let thread = spawn_apart("apart".into(), &done, work).unwrap();
        is_ready.recv().unwrap();
        drop(theirs);
        // The other end is open in no table any more, though that thread was there before.
        assert_eq!(ours.read(&mut [0]).unwrap(), 0);
        assert!(!done.drain());
        go.send(()).unwrap();
        thread.join().unwrap();
        assert!(done.drain());
    }

    /// What the kernel calls the event of a descriptor.
    fn event_id(descriptor: &str) -> Option<String> {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).ok()?;
        Some(info.lines().find(|line| line.starts_with("eventfd-id:"))?.to_owned())
    }

    #[test]
    fn who_goes_before_the_end_leaves_no_descriptor() {
        let done = EventFd::new().unwrap();
        // Linux before 5.2 does not tell.
        let Some(event) = event_id(&done.as_raw_fd().to_string()) else { return };
        let (go, may_go) = channel::<()>();
        let thread = spawn_apart("apart".into(), &done, move || may_go.recv().unwrap()).unwrap();
        drop(done);
        // The thread has it still, so the kernel has given its name to no other.
        let ours = fs::read_dir("/proc/self/fd").unwrap().flatten();
        let same = |name: &str| event_id(name).as_ref() == Some(&event);
        assert_eq!(ours.filter(|entry| same(&entry.file_name().to_string_lossy())).count(), 0);
        go.send(()).unwrap();
        thread.join().unwrap();
    }

    #[test]
    fn nothing_short_of_a_kill_ends_a_child_that_sends() {
        let (tell, told) = channel();
        let work = move || {
            let (ours, theirs) = UnixStream::pair().unwrap();
            // A full socket keeps the child in its call.
            ours.set_nonblocking(true).unwrap();
            while (&ours).write(&[0; 4096]).is_ok() {}
            ours.set_nonblocking(false).unwrap();
            let child = send_apart(ours.as_fd(), b"last").unwrap();
            for signal in [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM] {
                rustix::process::kill_process(child, signal).unwrap();
            }
            drop(ours);
            let mut received = Vec::new();
            (&theirs).read_to_end(&mut received).unwrap();
            rustix::process::waitpid(Some(child), WaitOptions::empty()).unwrap();
            tell.send(received.ends_with(b"last")).unwrap();
        };
        let done = EventFd::new().unwrap();
        spawn_apart("apart".into(), &done, work).unwrap().join().unwrap();
        assert!(told.recv().unwrap());
    }
}
