use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

/// Bytes of the `virtio_net_hdr` in front of each frame: the long one, with `num_buffers`.
pub const TAP_HEADER_BYTES: usize = 12;

/// What the other side of a tap may leave to us (`TUN_F_*` of linux/if_tun.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TapOffloads {
    /// Frames without checksums.
    pub checksum: bool,
    /// TCP over IPv4 in frames longer than the MTU.
    pub tso4: bool,
    /// TCP over IPv6 likewise.
    pub tso6: bool,
    /// TCP with congestion notification likewise.
    pub ecn: bool,
}

/// One queue of a network interface whose other end is the kernel's. A frame is a read or a write,
/// behind a header of
/// [`TAP_HEADER_BYTES`].
#[derive(Debug)]
pub struct Tap(File);

impl Tap {
    /// Attaches to the interface called `name`, and makes it if it does not exist. An interface of
    /// several queues is attached to once for each.
    ///
    /// # Errors
    /// The name is too long, the interface is not ours, or it was made with another number of
    /// queues in mind.
    pub fn open(name: &str, multi_queue: bool) -> io::Result<Self> {
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains('\0') {
            let what = "an interface name has 1 to 15 bytes";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        let tap = Self(options.open("/dev/net/tun")?);
        // SAFETY: an all-zero ifreq is a valid value; name and flags are set right below.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        let queues = if multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | queues;
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        tap.pointer(libc::TUNSETIFF, &mut request)?;
        let mut header = TAP_HEADER_BYTES as libc::c_int;
        tap.pointer(libc::TUNSETVNETHDRSZ, &mut header)?;
        tap.set_offloads(TapOffloads::default())?;
        Ok(tap)
    }

    /// Says which work the reader of this queue is ready to do.
    ///
    /// # Errors
    /// The kernel does not know one of them.
    pub fn set_offloads(&self, offloads: TapOffloads) -> io::Result<()> {
        let bits = [
            (offloads.checksum, libc::TUN_F_CSUM),
            (offloads.tso4, libc::TUN_F_TSO4),
            (offloads.tso6, libc::TUN_F_TSO6),
            (offloads.ecn, libc::TUN_F_TSO_ECN),
        ];
        let bits = bits.iter().filter(|(on, _)| *on).fold(0, |all, (_, bit)| all | bit);
        // SAFETY: this request takes a number and touches no memory of ours.
        let result = unsafe {
            libc::ioctl(self.0.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(bits))
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Takes part in the distribution of incoming frames, or not.
    ///
    /// # Errors
    /// The interface has only one queue.
    pub fn attach(&self, attached: bool) -> io::Result<()> {
        // SAFETY: an all-zero ifreq is a valid value; only the flags are looked at.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let flag = if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        request.ifr_ifru.ifru_flags = flag as libc::c_short;
        self.pointer(libc::TUNSETQUEUE, &mut request)
    }

    /// Takes the next frame, header first; returns its length with the header, or `None` if there
    /// is none now. A longer frame than `into` is cut.
    ///
    /// # Errors
    /// The interface is gone.
    pub fn read(&self, into: &mut [u8]) -> io::Result<Option<usize>> {
        crate::calls::note();
        match rustix::io::read(&self.0, into) {
            Ok(n) => Ok(Some(n)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a frame, header first.
    ///
    /// # Errors
    /// `WouldBlock` if there is no room now; others if the kernel does not take the frame: its
    /// header makes no sense, or the interface is down.
    pub fn write(&self, frame: &[u8]) -> io::Result<()> {
        crate::calls::note();
        rustix::io::write(&self.0, frame)?;
        Ok(())
    }

    /// An ioctl with a pointer.
    fn pointer<T>(&self, request: libc::Ioctl, argument: &mut T) -> io::Result<()> {
        // SAFETY: each caller passes the type that its request reads or writes.
        let result =
            unsafe { libc::ioctl(self.0.as_raw_fd(), request, std::ptr::from_mut(argument)) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
