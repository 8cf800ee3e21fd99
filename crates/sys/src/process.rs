use std::io;
use std::os::fd::OwnedFd;
use std::process::Child;

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// A descriptor that becomes readable when `child` has ended.
///
/// # Errors
/// The system is out of file descriptors, or the child has been waited for already.
pub fn process_fd(child: &Child) -> io::Result<OwnedFd> {
    Ok(pidfd_open(Pid::from_child(child), PidfdFlags::empty())?)
}

/// Asks `child`, which has not been waited for, to end in good order (SIGTERM).
pub fn ask_to_end(child: &Child) {
    // An error is that it has ended already.
    let _ = kill_process(Pid::from_child(child), Signal::TERM);
}
