//! The driver's side arrives here: QEMU, User Mode Linux, DPDK's virtio-user or libblkio, to whom
//! we are the daemon.
//!
//! ```text
//!   SET_FEATURES -----> remembered
//!   SET_MEM_TABLE ----> AddressSpace
//!   SET_VRING_NUM, _BASE, _ADDR, _KICK, _ENABLE --> a queue is complete: start_queue
//!        (before the first one set_memory and accept_features, after it set_status(DRIVER_OK))
//!   GET_VRING_BASE ---> stop_queue, its position is the answer
//!   connection ends --> every stop_queue, reset; the next connection begins afresh
//! ```

mod backend;
mod control;
mod hint;
mod in_flight;
mod memory;
mod queues;
mod rings;
mod session;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sys::{Epoll, Interest, Ready};
use virtio::{DriverEnd, EndError, Parameters, Resting, Served, Stop, VirtioDevice};
use wire::vhost_user::features::INBAND_NOTIFICATIONS;
use worker::Quiet;

use super::place::{BarePath, Place, PlaceError};
use crate::OpenError;
use session::{Session, Terms};

/// Keys of what the control thread waits for.
const STOP: u64 = 0;
const DEVICE: u64 = 1;
const LISTENER: u64 = 2;
const POISON: u64 = 4;
// The session's are in its file.

/// First and longest wait between two tries to connect.
const FIRST_RETRY: Duration = Duration::from_millis(20);
const LAST_RETRY: Duration = Duration::from_secs(1);

/// How long nothing must have happened until a server rests.
const REST_AFTER: Duration = Duration::from_millis(200);

/// Makes the driver end from its settings.
///
/// # Errors
/// A setting is wrong, or the socket can't be made.
pub(super) fn open(mut parameters: Parameters) -> Result<Box<dyn DriverEnd>, OpenError> {
    let place = Place::from_parameters(&mut parameters, BarePath::Listen).map_err(as_end_error)?;
    let terms = Terms { iommu: parameters.flag("iommu", false)? };
    parameters.finish()?;
    Ok(Box::new(VhostUserDriverEnd { place, terms }))
}

fn as_end_error(error: PlaceError) -> OpenError {
    match error {
        PlaceError::Parameter(error) => OpenError::Parameter(error),
        PlaceError::System(attempt, source) => EndError::System { attempt, source }.into(),
    }
}

/// A socket that driver's sides come to, one at a time.
pub(super) struct VhostUserDriverEnd {
    place: Place,
    terms: Terms,
}

impl DriverEnd for VhostUserDriverEnd {
    fn attach_hint(&self, device: &dyn VirtioDevice) -> String {
        hint::attach(&self.place, device.identity(), self.terms)
    }

    fn serve(self: Box<Self>, device: Box<dyn VirtioDevice>, stop: Stop) -> Result<(), EndError> {
        self.server(device, stop)?.run(false).map(|_ended| ())
    }

    fn serve_while_busy(
        self: Box<Self>,
        device: Box<dyn VirtioDevice>,
        stop: Stop,
    ) -> Result<Served, EndError> {
        let server = self.server(device, stop)?;
        server.go_on()
    }
}

impl VhostUserDriverEnd {
    fn server(self, device: Box<dyn VirtioDevice>, stop: Stop) -> Result<Box<Server>, EndError> {
        let Self { place, terms } = self;
        let system = |what: &str| EndError::system(format!("{what} at {place}"));
        let epoll = Arc::new(Epoll::new().map_err(system("serving"))?);
        epoll.add(&stop, STOP, Interest::Read).map_err(system("serving"))?;
        // A file that was cut: the data path only sees zeros then.
        let poison = mem::guard::event().map_err(system("serving"))?;
        epoll.add(poison, POISON, Interest::ReadEdge).map_err(system("serving"))?;
        if let Some(control) = device.control_fd() {
            epoll.add(control, DEVICE, Interest::Read).map_err(system("watching the device"))?;
        }
        let retry = FIRST_RETRY;
        // Not on the stack, of which an idle thread keeps whole pages.
        let server = Box::new(Server { place, terms, epoll, device, stop, session: None, retry });
        server.watch_listener()?;
        Ok(server)
    }
}

struct Server {
    place: Place,
    terms: Terms,
    epoll: Arc<Epoll>,
    device: Box<dyn VirtioDevice>,
    stop: Stop,
    session: Option<Session>,
    retry: Duration,
}

impl Resting for Server {
    fn event(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    fn go_on(mut self: Box<Self>) -> Result<Served, EndError> {
        Ok(if self.run(true)? { Served::Ended } else { Served::Resting(self) })
    }
}

impl Server {
    /// Serves until the end; returns false if it was rather to rest, and there was nothing to do.
    fn run(&mut self, rests: bool) -> Result<bool, EndError> {
        let (mut ready, mut quiet) = (Vec::new(), Quiet::default());
        while !self.stop.is_asked() {
            if self.session.is_none() && !self.welcome()? {
                return Ok(true);
            }
            let limit = self.patience();
            let may_rest = rests && limit.is_none() && !self.is_bell();
            let woken = match may_rest {
                true => self.epoll.wait(&mut ready, Some(REST_AFTER)),
                false => quiet.wait(&self.epoll, &mut ready, limit),
            };
            woken.map_err(EndError::system("waiting"))?;
            if may_rest && ready.is_empty() {
                return Ok(false);
            }
            if ready.iter().any(|ready| ready.key == DEVICE) {
                self.listen_to_device();
            }
            self.serve_session(&ready);
        }
        self.end_session("the bridge is ending");
        Ok(true)
    }

    /// Whether notifications and interrupts come as messages, which are to be carried soon.
    fn is_bell(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.has(INBAND_NOTIFICATIONS))
    }

    /// How long to wait at most.
    fn patience(&self) -> Option<Duration> {
        match (&self.session, &self.place) {
            (Some(session), _) => {
                session.deadline().map(|at| at.saturating_duration_since(Instant::now()))
            }
            (None, Place::Connect(_)) => Some(self.retry),
            (None, _) => None,
        }
    }

    /// Takes the next connection, if there is one. False if there will never be another.
    fn welcome(&mut self) -> Result<bool, EndError> {
        let ended = matches!(self.place, Place::Given(None));
        let attempt = format!("waiting for a driver at {}", self.place);
        let Some(socket) = self.place.try_connection().map_err(EndError::system(attempt))? else {
            self.retry = (self.retry * 2).min(LAST_RETRY);
            return Ok(!ended);
        };
        self.retry = FIRST_RETRY;
        let session = Session::new(socket, &*self.device, self.terms, &self.epoll);
        let session = session.map_err(EndError::system("taking a connection"))?;
        if let Place::Listen(listener, _) = &self.place {
            // Whoever comes now waits until this one is gone.
            self.epoll.remove(listener);
        }
        tracing::info!("a driver's side is connected at {}", self.place);
        self.session = Some(session);
        Ok(true)
    }

    fn watch_listener(&self) -> Result<(), EndError> {
        if let Place::Listen(listener, _) = &self.place {
            let watched = self.epoll.add(listener, LISTENER, Interest::Read);
            watched.map_err(EndError::system(format!("listening at {}", self.place)))?;
        }
        Ok(())
    }

    fn listen_to_device(&mut self) {
        for event in self.device.control_ready() {
            match &mut self.session {
                Some(session) => session.device_event(&mut *self.device, event),
                None => tracing::debug!("the device says {event:?} and nobody is there"),
            }
        }
    }

    fn serve_session(&mut self, ready: &[Ready]) {
        let Some(session) = &mut self.session else { return };
        let served = session.serve(&mut *self.device, ready);
        let reason = match served {
            Ok(()) if session.is_cut() => "a file of its shared memory was cut short".to_owned(),
            Ok(()) => return,
            Err(error) => error.to_string(),
        };
        self.end_session(&reason);
        if let Err(error) = self.watch_listener() {
            tracing::error!("{error}");
        }
    }

    /// The driver's side is gone: the device is as if nobody had ever been there.
    fn end_session(&mut self, reason: &str) {
        let Some(mut session) = self.session.take() else { return };
        tracing::info!("the driver's side at {} is gone: {reason}", self.place);
        session.unwatch_all();
        session.memory.space().set_miss_handler(|_, _| {});
        if let session::Outcome::Refused(why) = session.reset(&mut *self.device) {
            tracing::warn!("resetting the device: {why}");
        }
    }
}
