//! Calls to the vDPA bus, each in a thread of its own: the kernel makes the driver probe or remove
//! the device within the call, and meanwhile somebody must answer the device's messages.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use sys::{Epoll, EventFd, Interest, VdpaBus, VduseDevice, VduseRequest};
use virtio::EndError;

use super::refuse::Refuser;
use super::server::END_LIMIT;
use super::sysfs;

/// What is asked of the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Attach,
    Detach,
}

/// A call that is under way.
#[derive(Debug)]
pub(super) struct Pending {
    pub call: Call,
    done: EventFd,
    result: Receiver<io::Result<()>>,
}

impl Pending {
    pub(super) fn start(call: Call, name: &str) -> io::Result<Self> {
        let done = EventFd::new()?;
        let (tell, result) = channel();
        let (thread, name) = (format!("vdpa-{name}"), name.to_owned());
        // The driver reads a new disk within the call, and nobody answers it if we are killed: the
        // thread may not keep the device's node from the next process, which does.
        sys::spawn_apart(thread, &done, move || {
            let answer = VdpaBus::open().and_then(|mut bus| match call {
                Call::Attach => bus.attach(&name),
                Call::Detach => bus.detach(&name),
            });
            // Nobody waits any more if the end was cut off.
            let _ = tell.send(answer);
        })?;
        Ok(Self { call, done, result })
    }

    /// How it went, once it is over.
    pub(super) fn result(&self) -> Option<io::Result<()>> {
        self.result.try_recv().ok()
    }
}

impl AsFd for Pending {
    /// Readable when it is over.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.done.as_fd()
    }
}

/// Takes a device off the bus that a process has left behind: whatever the driver wants is granted,
/// and what it waits for fails.
pub(super) fn abandon(
    name: &str,
    node: &VduseDevice,
    mut refuser: Option<Refuser>,
) -> Result<(), EndError> {
    /// A device that is broken says nothing more, and requests come without a word, so we look.
    const LOOK: Duration = Duration::from_millis(20);
    /// `ENODEV`: no device of that name is on the bus.
    const NO_DEVICE: i32 = 19;
    let system = || EndError::system(format!("removing the old {name}"));
    let epoll = Epoll::new().map_err(system())?;
    let pending = Pending::start(Call::Detach, name).map_err(system())?;
    epoll.add(node, 0, Interest::Read).map_err(system())?;
    epoll.add(&pending, 1, Interest::Read).map_err(system())?;
    let deadline = Instant::now() + END_LIMIT;
    let mut ready = Vec::new();
    while Instant::now() < deadline {
        epoll.wait(&mut ready, Some(LOOK)).map_err(system())?;
        // A device that the kernel has given up on sends nothing and goes all the same.
        match node.receive() {
            Ok(Some(message)) => {
                if message.request == VduseRequest::SetStatus(0) {
                    // The rings are the driver's again.
                    refuser = None;
                }
                node.answer(message.id, true).map_err(system())?;
            }
            Ok(None) => {}
            Err(_) => epoll.remove(node),
        }
        if let Some(Err(error)) = refuser.as_mut().map(|refuser| refuser.refuse(node)) {
            tracing::warn!("failing what waits on the old {name}: {error}");
            refuser = None;
        }
        match pending.result() {
            None => {}
            // The call of the process that was killed is over, and has done it.
            Some(Err(error))
                if error.raw_os_error() == Some(NO_DEVICE) && !sysfs::is_on_bus(name) =>
            {
                return Ok(());
            }
            Some(result) => {
                let explained = |error| EndError::Driver(explain(Call::Detach, name, &error));
                return result.map_err(explained);
            }
        }
    }
    Err(EndError::Driver(format!("the kernel does not let go of the old {name}")))
}

/// Why a call failed, and what to do.
pub(super) fn explain(call: Call, name: &str, error: &io::Error) -> String {
    let doing = match call {
        Call::Attach => "attaching",
        Call::Detach => "detaching",
    };
    let mend = match error.kind() {
        io::ErrorKind::PermissionDenied => ": needs CAP_NET_ADMIN, run as root",
        io::ErrorKind::NotFound => ": the kernel has no vDPA bus, modprobe vdpa",
        io::ErrorKind::AlreadyExists => ": the name is in use on the vDPA bus",
        _ => "",
    };
    format!("{doing} {name} to the vDPA bus: {error}{mend}")
}
