use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, OFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, Termios, Winsize};
use sys::Received;

use crate::link::{Peering, View};

/// Where a port's bytes come from.
pub(super) enum Input {
    /// A terminal, pipe or file.
    File(Arc<File>),
    /// Whoever is connected.
    Peer(View, Vec<OwnedFd>),
    /// Nowhere, or it has ended.
    Nothing,
}

/// Where a port's bytes go.
pub(super) enum Output {
    /// A terminal, pipe or file.
    File(Arc<File>),
    /// Whoever is connected.
    Peer(View),
    /// Nowhere.
    Nothing,
}

/// Both ways of a port, and what must be kept or undone.
pub(super) struct Line {
    pub(super) input: Option<Input>,
    pub(super) output: Option<Output>,
    /// For output outside the queues.
    pub(super) emergency: Output,
    pub(super) peering: Option<Peering>,
    /// The terminal whose size is that of the console.
    pub(super) terminal: Option<Arc<File>>,
    _keep: Vec<Keep>,
}

/// What lives as long as a line.
enum Keep {
    /// A terminal that gets its old settings back.
    Raw(Arc<File>, Box<Termios>),
    /// The other end of a pseudo-terminal, so that it is never without one.
    Open(#[expect(dead_code, reason = "held, not used")] OwnedFd),
    /// A link in the file system that is removed.
    Link(PathBuf),
}

impl Line {
    /// A line to nowhere.
    pub(super) fn nothing() -> Self {
        Self::new(Input::Nothing, Output::Nothing, Output::Nothing)
    }

    fn new(input: Input, output: Output, emergency: Output) -> Self {
        let (input, output) = (Some(input), Some(output));
        Self { input, output, emergency, peering: None, terminal: None, _keep: Vec::new() }
    }

    fn of_files(input: Arc<File>, output: Arc<File>) -> Self {
        let emergency = Output::File(Arc::clone(&output));
        Self::new(Input::File(input), Output::File(output), emergency)
    }

    /// The process's own input and output; a terminal is made to pass every key on.
    pub(super) fn stdio() -> io::Result<Self> {
        let input = Arc::new(reopen(rustix::stdio::stdin(), OFlags::RDONLY)?);
        let output = Arc::new(reopen(rustix::stdio::stdout(), OFlags::WRONLY)?);
        let mut line = Self::of_files(Arc::clone(&input), Arc::clone(&output));
        if let Ok(before) = rustix::termios::tcgetattr(&input) {
            make_raw(&input, &before)?;
            line._keep.push(Keep::Raw(input, Box::new(before)));
        }
        if rustix::termios::isatty(&output) {
            line.terminal = Some(output);
        }
        Ok(line)
    }

    /// A fresh pseudo-terminal, and its path.
    pub(super) fn pty() -> io::Result<(Self, PathBuf)> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let ours = rustix::pty::openpt(flags)?;
        rustix::pty::grantpt(&ours)?;
        rustix::pty::unlockpt(&ours)?;
        let name = rustix::pty::ptsname(&ours, Vec::new())?;
        let path = PathBuf::from(name.to_string_lossy().into_owned());
        let flags = (OFlags::NOCTTY | OFlags::CLOEXEC).bits() as i32;
        let theirs = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path)?;
        make_raw(&theirs, &rustix::termios::tcgetattr(&theirs)?)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        let ours = Arc::new(File::from(ours));
        let mut line = Self::of_files(Arc::clone(&ours), ours);
        line._keep.push(Keep::Open(theirs.into()));
        Ok((line, path))
    }

    /// Makes `link` point to `path` for as long as the line lives; a link that is there is
    /// replaced.
    pub(super) fn link(&mut self, path: &Path, link: PathBuf) -> io::Result<()> {
        if std::fs::symlink_metadata(&link).is_ok_and(|found| found.is_symlink()) {
            std::fs::remove_file(&link)?;
        }
        std::os::unix::fs::symlink(path, &link)?;
        self._keep.push(Keep::Link(link));
        Ok(())
    }

    /// A socket at `path` for one client at a time. What is written while there is none is lost.
    pub(super) fn socket(path: &Path) -> io::Result<Self> {
        let peering = Peering::listen(path)?;
        let view = || View::new(Arc::clone(peering.link()));
        let (input, output, emergency) = (view(), view(), view());
        let input = Input::Peer(input, Vec::new());
        let mut line = Self::new(input, Output::Peer(output), Output::Peer(emergency));
        line.peering = Some(peering);
        Ok(line)
    }

    /// Whether somebody is at the other end.
    pub(super) fn is_open(&self) -> bool {
        self.peering.as_ref().is_none_or(|peering| peering.link().is_up())
    }

    /// Columns and rows of the terminal, if there is one.
    pub(super) fn size(&self) -> Option<(u16, u16)> {
        let Winsize { ws_col, ws_row, .. } =
            rustix::termios::tcgetwinsize(self.terminal.as_ref()?).ok()?;
        Some((ws_col, ws_row))
    }
}

impl Drop for Keep {
    fn drop(&mut self) {
        match self {
            Self::Raw(terminal, before) => {
                let _ = rustix::termios::tcsetattr(terminal, OptionalActions::Now, before);
            }
            Self::Link(path) => {
                let _ = std::fs::remove_file(path);
            }
            Self::Open(_) => {}
        }
    }
}

/// Opens what `fd` is once more, without waiting, so that others who have it keep theirs as it is.
fn reopen(fd: BorrowedFd<'_>, way: OFlags) -> io::Result<File> {
    let kind = FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode);
    if kind == FileType::RegularFile {
        // Never waits, and has a place in the file that is to be kept.
        return Ok(fd.try_clone_to_owned()?.into());
    }
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = way | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    match rustix::fs::open(&path, flags, rustix::fs::Mode::empty()) {
        Ok(fd) => Ok(fd.into()),
        // A socket can't be opened, and is not a terminal that others would miss.
        Err(_) => {
            let copy = fd.try_clone_to_owned()?;
            rustix::io::ioctl_fionbio(&copy, true)?;
            Ok(copy.into())
        }
    }
}

fn make_raw(terminal: &File, before: &Termios) -> io::Result<()> {
    let mut raw = before.clone();
    raw.make_raw();
    Ok(rustix::termios::tcsetattr(terminal, OptionalActions::Now, &raw)?)
}

impl Input {
    /// Reads what there is; 0 if there is nothing now.
    pub(super) fn read(&mut self, into: &mut [u8]) -> usize {
        match self {
            Self::File(file) => match (&**file).read(into) {
                Ok(0) => {
                    *self = Self::Nothing;
                    0
                }
                Ok(n) => n,
                Err(_) => 0,
            },
            Self::Peer(view, strays) => {
                view.refresh();
                let Some(connection) = view.connection() else { return 0 };
                let result = connection.receive(into, strays);
                strays.clear();
                match result {
                    Ok(Received::Bytes(n)) => n,
                    Ok(Received::Nothing) => 0,
                    Ok(Received::Closed) | Err(_) => {
                        view.lose();
                        0
                    }
                }
            }
            Self::Nothing => 0,
        }
    }

    /// What becomes readable when there is more.
    pub(super) fn wake_on(&self) -> Option<BorrowedFd<'_>> {
        match self {
            // A file is always ready and can't be waited for.
            Self::File(file) => {
                let waitable = file.metadata().is_ok_and(|found| !found.is_file());
                waitable.then(|| file.as_fd())
            }
            Self::Peer(view, _) => view.connection().map(|connection| connection.as_fd()),
            Self::Nothing => None,
        }
    }

    pub(super) fn refresh(&mut self) {
        if let Self::Peer(view, _) = self {
            view.refresh();
        }
    }
}

impl Output {
    /// Writes what there is room for; `None` if there is no room now. What nobody wants counts as
    /// written.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Option<usize> {
        match self {
            Self::File(file) => match (&**file).write(bytes) {
                Ok(n) => Some(n),
                Err(error) if error.kind() == ErrorKind::WouldBlock => None,
                Err(error) if error.kind() == ErrorKind::Interrupted => Some(0),
                Err(_) => Some(bytes.len()),
            },
            Self::Peer(view) => {
                view.refresh();
                let Some(connection) = view.connection() else { return Some(bytes.len()) };
                match connection.send(&[IoSlice::new(bytes)], &[]) {
                    Ok(sent) => sent,
                    Err(_) => {
                        view.lose();
                        Some(bytes.len())
                    }
                }
            }
            Self::Nothing => Some(bytes.len()),
        }
    }
}
