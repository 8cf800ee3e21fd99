//! Calls to the vDPA bus, each in a thread of its own: the kernel makes the driver probe or remove
//! the device within the call, and meanwhile somebody must answer the device's messages.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use sys::{EventFd, VdpaBus};

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
    done: Arc<EventFd>,
    result: Receiver<io::Result<()>>,
}

impl Pending {
    pub(super) fn start(call: Call, name: &str) -> io::Result<Self> {
        let done = Arc::new(EventFd::new()?);
        let (tell, result) = channel();
        let (signal, name) = (Arc::clone(&done), name.to_owned());
        std::thread::Builder::new().name(format!("vdpa-{name}")).spawn(move || {
            let answer = VdpaBus::open().and_then(|mut bus| match call {
                Call::Attach => bus.attach(&name),
                Call::Detach => bus.detach(&name),
            });
            // Nobody waits any more if the end was cut off.
            let _ = tell.send(answer);
            signal.signal();
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
