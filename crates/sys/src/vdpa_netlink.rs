//! The vDPA bus by generic netlink: puts a VDUSE device on it and takes it off (linux/vdpa.h,
//! linux/genetlink.h, linux/netlink.h). All layouts are native-endian.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::{GENERIC, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::process::WaitOptions;

/// `VDPA_GENL_NAME` and the management device of all VDUSE devices.
const FAMILY: &str = "vdpa";
const MANAGER: &str = "vduse";

/// `NLMSG_ERROR`, which is also an acknowledgement.
const ERROR: u16 = 2;
/// `GENL_ID_CTRL`: the family that knows the numbers of the others.
const CONTROL: u16 = 0x10;
/// `CTRL_CMD_GETFAMILY` and its attributes.
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// `NLM_F_REQUEST | NLM_F_ACK`.
const FLAGS: u16 = 1 | 4;
/// `VDPA_CMD_DEV_NEW`, `VDPA_CMD_DEV_DEL` and their attributes.
const DEV_NEW: u8 = 3;
const DEV_DEL: u8 = 4;
const MGMTDEV_DEV_NAME: u16 = 2;
const DEV_NAME: u16 = 4;
/// `VDPA_GENL_VERSION`, and that of the control family is the same.
const VERSION: u8 = 1;

/// Sizes of `struct nlmsghdr`, `struct genlmsghdr`, `struct nlattr`.
const HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;
const ATTRIBUTE: usize = 4;
/// Largest datagram read: an answer to our requests is well below this, and what is longer is cut.
const MAX_DATAGRAM: usize = 8192;
/// Datagrams read for one answer: the kernel sends the answer and the acknowledgement.
const MAX_DATAGRAMS: usize = 16;

/// A line to the kernel's vDPA bus. The calls wait until the bus's drivers have dealt with the
/// device, so somebody else must answer the device's messages meanwhile.
#[derive(Debug)]
pub struct VdpaBus {
    socket: OwnedFd,
    family: u16,
    sequence: u32,
}

impl VdpaBus {
    /// Finds the bus.
    ///
    /// # Errors
    /// `ENOENT` if the kernel has none (no `vdpa` module).
    pub fn open() -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(GENERIC),
        )?;
        rustix::net::connect(&socket, &SocketAddrNetlink::new(0, 0))?;
        let mut bus = Self { socket, family: CONTROL, sequence: 0 };
        let answer = bus.ask(GET_FAMILY, &[(FAMILY_NAME, FAMILY)])?;
        bus.family = attribute_u16(&answer, FAMILY_ID).ok_or_else(not_understood)?;
        Ok(bus)
    }

    /// Puts the VDUSE device `name` on the bus, where a driver takes it. If this process is killed
    /// meanwhile that goes on: a driver that was stopped on its way would wait for ever.
    ///
    /// # Errors
    /// `EPERM` without CAP_NET_ADMIN, `EINVAL` if a queue was not set up, `EEXIST` if a device of
    /// that name is on the bus.
    pub fn attach(&mut self, name: &str) -> io::Result<()> {
        let attributes = [(DEV_NAME, name), (MGMTDEV_DEV_NAME, MANAGER)];
        let request = self.request(DEV_NEW, &attributes);
        let child = crate::apart::send_apart(self.socket.as_fd(), &request)?;
        // How it ended does not matter: it may have been killed after the kernel has acted, and who
        // started us may have had children ignored. What the kernel answers is there once the
        // request is sent, so once the child is gone.
        let wait = || rustix::process::waitpid(Some(child), WaitOptions::empty());
        let _ = rustix::io::retry_on_intr(wait);
        match self.answer(RecvFlags::DONTWAIT) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(io::Error::other("the request was not sent"))
            }
            answer => answer.map(drop),
        }
    }

    /// Takes the device `name` off the bus, and so away from its driver.
    ///
    /// # Errors
    /// `ENODEV` if it is not on the bus, `EPERM` without CAP_NET_ADMIN.
    pub fn detach(&mut self, name: &str) -> io::Result<()> {
        self.ask(DEV_DEL, &[(DEV_NAME, name)]).map(drop)
    }

    /// Sends a command and reads up to its acknowledgement; the attributes of what came before.
    fn ask(&mut self, command: u8, attributes: &[(u16, &str)]) -> io::Result<Vec<u8>> {
        let request = self.request(command, attributes);
        rustix::net::send(&self.socket, &request, SendFlags::empty())?;
        self.answer(RecvFlags::empty())
    }

    /// The next request.
    fn request(&mut self, command: u8, attributes: &[(u16, &str)]) -> Vec<u8> {
        self.sequence += 1;
        encode(self.family, command, self.sequence, attributes)
    }

    /// Reads up to the acknowledgement of the last request; the attributes of what came before.
    fn answer(&mut self, flags: RecvFlags) -> io::Result<Vec<u8>> {
        let mut datagram = vec![0; MAX_DATAGRAM];
        let mut told = Vec::new();
        for _ in 0..MAX_DATAGRAMS {
            let (len, _) = match rustix::net::recv(&self.socket, datagram.as_mut_slice(), flags) {
                Err(Errno::INTR) => continue,
                received => received?,
            };
            for answer in decode(&datagram[..len], self.sequence) {
                match answer {
                    Answer::Told(attributes) => told = attributes,
                    Answer::Acknowledged => return Ok(told),
                    Answer::Refused(code) => return Err(io::Error::from_raw_os_error(code)),
                }
            }
        }
        Err(not_understood())
    }
}

fn not_understood() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer makes no sense")
}

/// A request with text attributes.
fn encode(family: u16, command: u8, sequence: u32, attributes: &[(u16, &str)]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes[4..6].copy_from_slice(&family.to_ne_bytes());
    bytes[6..8].copy_from_slice(&FLAGS.to_ne_bytes());
    bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
    bytes.extend([command, VERSION, 0, 0]);
    for (kind, text) in attributes {
        // With the terminating zero, which does not fit less than 64 KiB of name.
        let len = (ATTRIBUTE + text.len() + 1) as u16;
        bytes.extend(len.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(text.as_bytes());
        bytes.resize((bytes.len() + 1).next_multiple_of(4), 0);
    }
    let len = bytes.len() as u32;
    bytes[..4].copy_from_slice(&len.to_ne_bytes());
    bytes
}

/// A message from the kernel.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// With these attributes.
    Told(Vec<u8>),
    Acknowledged,
    /// An error number.
    Refused(i32),
}

/// The messages of a datagram that answer request `sequence`; what makes no sense ends it.
fn decode(mut datagram: &[u8], sequence: u32) -> Vec<Answer> {
    let mut answers = Vec::new();
    // Each round takes at least a header off the datagram.
    while let Some(len) = u32_at(datagram, 0).map(|len| len as usize) {
        if len < HEADER || len > datagram.len() {
            break;
        }
        let (message, rest) = datagram.split_at(len);
        datagram = rest.get(len.next_multiple_of(4) - len..).unwrap_or_default();
        if u32_at(message, 8) != Some(sequence) {
            continue;
        }
        let body = &message[HEADER..];
        answers.push(match (u16_at(message, 4), u32_at(body, 0)) {
            (Some(ERROR), Some(0)) => Answer::Acknowledged,
            (Some(ERROR), Some(code)) => Answer::Refused((code as i32).wrapping_neg()),
            _ => Answer::Told(body.get(GENERIC_HEADER..).unwrap_or_default().to_vec()),
        });
    }
    answers
}

/// The 16-bit attribute of this kind.
fn attribute_u16(mut attributes: &[u8], wanted: u16) -> Option<u16> {
    // Each round takes at least an attribute's header off.
    loop {
        let len = usize::from(u16_at(attributes, 0)?);
        let kind = u16_at(attributes, 2)?;
        let value = attributes.get(ATTRIBUTE..len)?;
        if kind == wanted {
            return u16_at(value, 0);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn a_request_is_laid_out_as_the_kernel_reads_it() {
        let bytes = encode(0x21, DEV_NEW, 7, &[(DEV_NAME, "disk0"), (MGMTDEV_DEV_NAME, "vduse")]);
        assert_eq!(bytes.len(), 16 + 4 + 12 + 12);
        assert_eq!((u32_at(&bytes, 0), u16_at(&bytes, 4)), (Some(44), Some(0x21)));
        assert_eq!((u16_at(&bytes, 6), u32_at(&bytes, 8)), (Some(5), Some(7)));
        assert_eq!(&bytes[16..20], [3, 1, 0, 0]);
        assert_eq!((u16_at(&bytes, 20), u16_at(&bytes, 22)), (Some(10), Some(4)));
        assert_eq!(&bytes[24..32], b"disk0\0\0\0");
        assert_eq!(&bytes[36..42], b"vduse\0");
    }

    #[test]
    fn names_of_every_length_end_in_a_zero_and_on_a_boundary() {
        for len in 1..=9 {
            let name = "x".repeat(len);
            let bytes = encode(0x21, DEV_DEL, 1, &[(DEV_NAME, &name)]);
            assert_eq!(bytes.len() % 4, 0);
            assert_eq!(u16_at(&bytes, 20), Some(4 + len as u16 + 1));
            assert_eq!(bytes[24 + len], 0);
        }
    }

    fn message(kind: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        bytes[..4].copy_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        bytes.extend(body);
        bytes
    }

    #[test]
    fn answers_are_told_from_refusals_and_from_other_traffic() {
        let mut datagram = message(ERROR, 6, &(-17_i32).to_ne_bytes());
        datagram.extend(message(CONTROL, 7, &[1, 2, 0, 0, 6, 0, 1, 0, 0x22, 0, 0, 0]));
        datagram.extend(message(ERROR, 7, &[0; 4]));
        let answers = decode(&datagram, 7);
        assert_eq!(answers.len(), 2);
        let Answer::Told(attributes) = &answers[0] else { panic!("{answers:?}") };
        assert_eq!(attribute_u16(attributes, FAMILY_ID), Some(0x22));
        assert_eq!(attribute_u16(attributes, FAMILY_NAME), None);
        assert_eq!(answers[1], Answer::Acknowledged);
        assert_eq!(decode(&datagram, 6), [Answer::Refused(17)]);
    }

    #[test]
    fn the_kernels_answer_counts_however_the_child_ended() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        // The child can't send, and says so.
        ours.shutdown(Shutdown::Write).unwrap();
        let mut bus = VdpaBus { socket: ours.into(), family: 0x21, sequence: 0 };
        theirs.send(&message(ERROR, 1, &[0; 4])).unwrap();
        bus.attach("disk0").unwrap();
        theirs.send(&message(ERROR, 2, &(-17_i32).to_ne_bytes())).unwrap();
        assert_eq!(bus.attach("disk0").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        let silent = bus.attach("disk0").unwrap_err();
        assert_eq!(silent.to_string(), "the request was not sent");
    }

    #[test]
    fn no_bytes_make_it_panic_or_go_on_for_ever() {
        let whole = message(CONTROL, 7, &[1, 2, 0, 0, 6, 0, 1, 0, 0x22, 0, 0, 0]);
        for len in 0..whole.len() {
            for value in [0, 1, 3, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[len] = value;
                for answer in decode(&bytes[..], 7).into_iter().chain(decode(&bytes[..len], 7)) {
                    if let Answer::Told(attributes) = answer {
                        let _ = attribute_u16(&attributes, FAMILY_ID);
                    }
                }
            }
        }
        let refusal = message(ERROR, 7, &i32::MIN.to_ne_bytes());
        assert_eq!(decode(&refusal, 7), [Answer::Refused(i32::MIN)]);
        assert_eq!(attribute_u16(&[0; 8], 1), None, "attributes without length");
    }
}
