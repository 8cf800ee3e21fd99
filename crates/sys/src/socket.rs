use std::ffi::OsStr;
use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// Most file descriptors with one message: what the kernel's SCM_RIGHTS allows is 253; no protocol
/// here needs more than vhost-user's 8 memory regions and vfio-user's `max_msg_fds` of 16.
pub const MAX_FDS_PER_MESSAGE: usize = 32;

/// What one `recvmsg` brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// This many bytes; the descriptors that came with them were appended.
    Bytes(usize),
    /// Nothing there now.
    Nothing,
    /// The peer closed the connection.
    Closed,
}

/// A stream socket whose messages may carry file descriptors.
#[derive(Debug)]
pub struct Connection(OwnedFd);

impl Connection {
    /// Takes over a connected socket and makes it non-blocking.
    ///
    /// # Errors
    /// The descriptor is not a socket.
    pub fn new(socket: impl Into<OwnedFd>) -> io::Result<Self> {
        let fd = socket.into();
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self(fd))
    }

    /// Two connected ends.
    ///
    /// # Errors
    /// The system is out of file descriptors.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = UnixStream::pair()?;
        Ok((Self::new(a)?, Self::new(b)?))
    }

    /// Reads into `bytes`, never more, so that descriptors stay with the message they came with;
    /// appends received descriptors to `fds`. Descriptors beyond [`MAX_FDS_PER_MESSAGE`] are closed
    /// and reported as an error.
    ///
    /// # Errors
    /// The connection broke, or a message carried too many descriptors.
    pub fn receive(&self, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<Received> {
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS_PER_MESSAGE))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(bytes)];
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let message = loop {
            crate::calls::note();
            match rustix::net::recvmsg(&self.0, &mut slices, &mut control, flags) {
                Ok(message) => break message,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Received::Nothing),
                Err(Errno::CONNRESET) => return Ok(Received::Closed),
                Err(error) => return Err(error.into()),
            }
        };
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = part {
                fds.extend(received);
            }
        }
        if message.flags.contains(ReturnFlags::CTRUNC) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "too many file descriptors in a message",
            ));
        }
        match message.bytes {
            0 => Ok(Received::Closed),
            n => Ok(Received::Bytes(n)),
        }
    }

    /// Sends the first bytes of `bytes`, with `fds` attached to the first of them; returns how many
    /// went, or `None` when the socket's buffer is full.
    ///
    /// # Errors
    /// The connection broke.
    pub fn send(&self, bytes: &[IoSlice<'_>], fds: &[BorrowedFd<'_>]) -> io::Result<Option<usize>> {
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS_PER_MESSAGE))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many file descriptors"));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            crate::calls::note();
            let sent = match (bytes, fds) {
                // The same for less: the kernel has no list of pieces to fetch.
                ([bytes], []) => rustix::net::send(&self.0, bytes, flags),
                _ => rustix::net::sendmsg(&self.0, bytes, &mut control, flags),
            };
            match sent {
                Ok(n) => return Ok(Some(n)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends all of `bytes`, waiting for room up to `limit` in total.
    ///
    /// # Errors
    /// The connection broke, or the peer did not read within `limit`.
    pub fn send_all(
        &self,
        bytes: &[u8],
        fds: &[BorrowedFd<'_>],
        limit: std::time::Duration,
    ) -> io::Result<()> {
        let deadline = std::time::Instant::now() + limit;
        let mut sent = 0;
        while sent < bytes.len() {
            let fds = if sent == 0 { fds } else { &[] };
            match self.send(&[IoSlice::new(&bytes[sent..])], fds)? {
                Some(n) => sent += n,
                None => self.wait(rustix::event::PollFlags::OUT, deadline)?,
            }
        }
        Ok(())
    }

    /// Ends the connection in both directions; the peer and every waiting thread find it closed.
    pub fn shutdown(&self) {
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Both);
    }

    /// Refuses what the peer sends from now on: its sends fail. What it has sent already is still
    /// received, and sending to it goes on.
    ///
    /// # Errors
    /// The socket is not connected.
    pub fn stop_receiving(&self) -> io::Result<()> {
        Ok(rustix::net::shutdown(&self.0, rustix::net::Shutdown::Read)?)
    }

    /// Waits until there is something to read, up to `limit`.
    ///
    /// # Errors
    /// `TimedOut` when nothing came.
    pub fn wait_readable(&self, limit: std::time::Duration) -> io::Result<()> {
        let now = std::time::Instant::now();
        // A limit beyond the clock's range is as good as none.
        let deadline =
            now.checked_add(limit).unwrap_or(now + std::time::Duration::from_secs(1 << 32));
        self.wait(rustix::event::PollFlags::IN, deadline)
    }

    fn wait(
        &self,
        events: rustix::event::PollFlags,
        deadline: std::time::Instant,
    ) -> io::Result<()> {
        loop {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let limit =
                rustix::event::Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
            let mut fds = [rustix::event::PollFd::new(&self.0, events)];
            crate::calls::note();
            match rustix::event::poll(&mut fds, Some(&limit)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until there is something to read from any of `fds`, for up to `limit`; returns for each
/// whether there is.
///
/// # Errors
/// None in practice; an interruption by a signal counts as nothing ready.
pub fn wait_for_any(fds: &[BorrowedFd<'_>], limit: std::time::Duration) -> io::Result<Vec<bool>> {
    let limit =
        rustix::event::Timespec::try_from(limit).map_err(|_| io::ErrorKind::InvalidInput)?;
    let input = rustix::event::PollFlags::IN;
    let polled = |fd| rustix::event::PollFd::from_borrowed_fd(fd, input);
    let mut polled: Vec<_> = fds.iter().copied().map(polled).collect();
    crate::calls::note();
    match rustix::event::poll(&mut polled, Some(&limit)) {
        Ok(_) => Ok(polled.iter().map(|fd| !fd.revents().is_empty()).collect()),
        Err(Errno::INTR) => Ok(vec![false; fds.len()]),
        Err(error) => Err(error.into()),
    }
}

/// Waits until there is room to write to `fd`, or it is closed, for up to `limit`.
///
/// # Errors
/// `TimedOut` when there came to be none.
pub fn wait_for_room(fd: BorrowedFd<'_>, limit: std::time::Duration) -> io::Result<()> {
    let limit =
        rustix::event::Timespec::try_from(limit).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut polled = [rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::OUT)];
    crate::calls::note();
    match rustix::event::poll(&mut polled, Some(&limit)) {
        Ok(0) => Err(io::ErrorKind::TimedOut.into()),
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A listening UNIX socket that removes its path when dropped.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    path: Option<PathBuf>,
}

impl Listener {
    /// Takes over a listening socket, from socket activation say; its path is left alone.
    ///
    /// # Errors
    /// The descriptor is not a socket.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self { socket: fd, path: None })
    }

    /// Where it listens, if that is a path.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        let address = rustix::net::getsockname(&self.socket).ok()?;
        let address = rustix::net::SocketAddrUnix::try_from(address).ok()?;
        let path = address.path()?;
        Some(PathBuf::from(OsStr::from_bytes(path.to_bytes())))
    }

    /// The next waiting connection, if there is one.
    ///
    /// # Errors
    /// The socket is not listening, or the system is out of file descriptors.
    pub fn accept(&self) -> io::Result<Option<Connection>> {
        let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
        loop {
            match rustix::net::accept_with(&self.socket, flags) {
                Ok(fd) => return Ok(Some(Connection(fd))),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

/// Listens at `path`. A socket that nobody listens on any more is replaced; a live one, or a file
/// that is no socket, is left alone and reported.
///
/// # Errors
/// `AddrInUse` when somebody is listening there; the system's refusal otherwise.
pub fn listen_unix(path: &Path) -> io::Result<Listener> {
    if let Ok(found) = fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "a file that is not a socket is there",
            ));
        }
        match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path)?
            }
            _ => return Err(io::ErrorKind::AddrInUse.into()),
        }
    }
    let socket = UnixListener::bind(path)?;
    socket.set_nonblocking(true)?;
    Ok(Listener { socket: socket.into(), path: Some(path.to_path_buf()) })
}

/// Connects to the socket at `path`.
///
/// # Errors
/// Nobody listens there, or (`WouldBlock`) too many are waiting to be accepted.
pub fn connect_unix(path: &Path) -> io::Result<Connection> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Connection::new(socket)
}
