//! The other end of a guest's console: what a person, or a program at a port's socket, would be.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

/// A port of a console, seen from the host.
pub struct Port {
    /// The name that the guest shows; empty for the console itself.
    pub name: &'static str,
    /// Where its bytes come out.
    pub place: Place,
}

/// Where a port's bytes come out.
pub enum Place {
    /// At a socket.
    Socket(PathBuf),
    /// At a pseudo-terminal of viaduct's, of which this is the path.
    Terminal(PathBuf),
    /// At the terminal on which viaduct runs.
    Own(Terminal),
}

/// A terminal, as a person has it in front of him.
pub struct Terminal {
    ours: OwnedFd,
    /// What a program on it has as its input and output.
    pub theirs: OwnedFd,
}

/// The size of the terminal when the guest comes up, and later; columns and rows.
pub const SIZES: [(u16, u16); 2] = [(91, 33), (117, 41)];

impl Terminal {
    /// A fresh one of the first of [`SIZES`].
    pub fn new() -> Result<Terminal> {
        let ours = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        rustix::pty::grantpt(&ours)?;
        rustix::pty::unlockpt(&ours)?;
        let name = rustix::pty::ptsname(&ours, Vec::new())?;
        let theirs = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty())?;
        let terminal = Terminal { ours, theirs };
        terminal.resize(SIZES[0])?;
        Ok(terminal)
    }

    /// Makes it another size, as one does with a window; the kernel tells the programs on it.
    pub fn resize(&self, (columns, rows): (u16, u16)) -> Result<()> {
        let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&self.ours, size).context("resize the terminal")
    }
}

/// What a guest says when it has the port open.
const READY: &[u8] = b"@ready\n";

/// Waits until the guest says that it is ready, sends it `bytes`, and compares what comes back.
pub fn echo(port: &Port, bytes: &[u8], deadline: Instant) -> Result<()> {
    let file = match &port.place {
        Place::Socket(path) => File::from(OwnedFd::from(UnixStream::connect(path)?)),
        Place::Terminal(path) => File::options().read(true).write(true).open(path)?,
        Place::Own(terminal) => File::from(terminal.ours.try_clone()?),
    };
    rustix::io::ioctl_fionbio(&file, true)?;
    let mut line = Line { file, deadline, read: Vec::new() };
    while !line.has_said(READY) {
        line.wait(PollFlags::IN).context("the guest does not say that it is ready")?;
    }
    let mut sent = 0;
    while line.read.len() < bytes.len() {
        let so_far = line.read.len();
        ensure!(line.read[..] == bytes[..so_far], "other bytes came back, of the first {so_far}");
        let more = if sent < bytes.len() { PollFlags::OUT } else { PollFlags::empty() };
        let ready = line.wait(PollFlags::IN | more);
        let ready = ready.with_context(|| format!("{sent} bytes sent, {so_far} are back"))?;
        if ready.contains(PollFlags::OUT) {
            sent += line.write(&bytes[sent..])?;
        }
    }
    ensure!(line.read == bytes, "other bytes came back");
    Ok(())
}

struct Line {
    file: File,
    deadline: Instant,
    read: Vec<u8>,
}

impl Line {
    /// Waits for one of `events`, and reads what there is.
    fn wait(&mut self, events: PollFlags) -> Result<PollFlags> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let fd = self.file.as_fd();
        let mut fds = [PollFd::new(&fd, events)];
        match poll(&mut fds, Some(&Timespec::try_from(left)?)) {
            Err(rustix::io::Errno::INTR) => return Ok(PollFlags::empty()),
            count => ensure!(count? > 0, "the time is over"),
        }
        let ready = fds[0].revents();
        let mut bytes = [0; 4096];
        match self.file.read(&mut bytes) {
            Ok(0) => bail!("the other side has left"),
            Ok(count) => self.read.extend_from_slice(&bytes[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("read"),
        }
        Ok(ready)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        match self.file.write(bytes) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            outcome => outcome.context("write"),
        }
    }

    /// Whether `mark` has come; it and what was before are forgotten.
    fn has_said(&mut self, mark: &[u8]) -> bool {
        let at = self.read.windows(mark.len()).position(|bytes| bytes == mark);
        at.is_some_and(|at| self.read.drain(..at + mark.len()).count() > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::time::Duration;

    #[test]
    fn a_damaged_echo_is_seen() -> Result<()> {
        for (damage, is_fine) in [(0, true), (1, false)] {
            let folder = tempfile::tempdir()?;
            let path = folder.path().join("port");
            let listener = UnixListener::bind(&path)?;
            let guest = std::thread::spawn(move || -> Result<()> {
                let (mut line, _) = listener.accept()?;
                line.write_all(b"noise@ready\n")?;
                let mut bytes = [0; 10_000];
                line.read_exact(&mut bytes)?;
                bytes[9_999] ^= damage;
                Ok(line.write_all(&bytes)?)
            });
            let port = Port { name: "", place: Place::Socket(path) };
            let outcome = echo(&port, &[7; 10_000], Instant::now() + Duration::from_secs(20));
            assert_eq!(outcome.is_ok(), is_fine, "{outcome:?}");
            guest.join().expect("no panic")?;
        }
        Ok(())
    }
}
