//! A client that says anything, right or wrong, and remembers what it hears.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use sys::{Connection, Received};
use wire::Framer;
use wire::vfio_user::{Capabilities, Header, MAX_PAYLOAD, Reply, Request, Version, VfioUser};

/// How long a test waits for an answer.
const LIMIT: Duration = Duration::from_secs(5);

pub struct Raw {
    pub connection: Connection,
    next_id: u16,
}

/// A message that has come: header, payload, descriptors.
pub type Message = (Header, Vec<u8>, Vec<OwnedFd>);

impl Raw {
    pub fn connect(path: &Path) -> Self {
        Self { connection: sys::connect_unix(path).unwrap(), next_id: 1 }
    }

    /// Connected and greeted.
    pub fn greeted(path: &Path) -> Self {
        let mut client = Self::connect(path);
        let capabilities = Capabilities { max_msg_fds: 16, ..Capabilities::default() };
        let version = Version { major: 0, minor: 0, capabilities };
        let reply = client.ask(&Request::Version(version), &[]);
        assert_ne!(errno(&reply), Some(0), "no version");
        assert!(!reply.0.is_error());
        client
    }

    pub fn send_bytes(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        // A service that has hung up already is as good.
        let _ = self.connection.send_all(bytes, fds, LIMIT);
    }

    pub fn send(&mut self, request: &Request<'_>, flags: u32, fds: &[BorrowedFd<'_>]) -> u16 {
        let id = self.next_id;
        self.next_id += 1;
        let mut bytes = Vec::new();
        request.encode(id, flags, &mut bytes);
        self.send_bytes(&bytes, fds);
        id
    }

    /// The next message, or `None` when the service has hung up.
    pub fn receive(&mut self) -> Option<Message> {
        let mut framer = Framer::<VfioUser>::new(MAX_PAYLOAD);
        let mut fds = Vec::new();
        loop {
            match self.connection.receive(framer.space(), &mut fds).unwrap() {
                Received::Bytes(n) => framer.commit(n).unwrap(),
                Received::Nothing => {
                    self.connection.wait_readable(LIMIT).expect("the service says nothing");
                }
                Received::Closed => return None,
            }
            if let Some((header, payload)) = framer.message() {
                return Some((header, payload.to_vec(), fds));
            }
        }
    }

    /// Sends a request and returns its answer.
    pub fn ask(&mut self, request: &Request<'_>, fds: &[BorrowedFd<'_>]) -> Message {
        let id = self.send(request, 0, fds);
        let message = self.receive().expect("the service has hung up");
        assert!(message.0.is_reply() && message.0.message_id == id, "{:?}", message.0);
        message
    }

    pub fn read(&mut self, region: u32, offset: u64, len: u32) -> Result<Vec<u8>, u32> {
        let request = Request::RegionRead { offset, region, count: len };
        let (header, payload, _) = self.ask(&request, &[]);
        match Reply::decode(&header, &payload, 0).unwrap() {
            Reply::RegionRead { data, .. } => Ok(data.to_vec()),
            Reply::Failed(errno) => Err(errno),
            other => panic!("{other:?}"),
        }
    }

    pub fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), u32> {
        let request = Request::RegionWrite { offset, region, data };
        match errno(&self.ask(&request, &[])) {
            None => Ok(()),
            Some(errno) => Err(errno),
        }
    }

    /// Whether the service has hung up; eats what it says before.
    pub fn is_hung_up(&mut self) -> bool {
        (0..100).any(|_| self.receive().is_none())
    }
}

/// The errno of a failure.
pub fn errno(message: &Message) -> Option<u32> {
    message.0.is_error().then_some(message.0.error)
}

/// How many descriptors this process has.
pub fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
