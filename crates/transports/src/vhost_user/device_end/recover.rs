//! A daemon that went away, and its return.

use std::time::{Duration, Instant};

use sys::Connection;
use virtio::{DeviceError, DeviceEvent, DeviceType, Recovery};
use wire::vhost_user::features as protocol;

use super::link::Link;
use super::{LINK, VhostUserDevice, read_config};
use crate::vhost_user::place::Place;

/// First wait before another try.
const FIRST_RETRY: Duration = Duration::from_millis(10);
/// Longest wait between two tries: a daemon that is back is seen within this, and answers what has
/// waited well within a second.
const LAST_RETRY: Duration = Duration::from_millis(250);
/// How long a daemon that has come back may take for an answer: the driver end waits meanwhile.
const GREETING_LIMIT: Duration = Duration::from_secs(1);

/// The time without a daemon.
#[derive(Debug)]
pub(super) struct Absence {
    since: Instant,
    retry: Duration,
    /// When to look again.
    due: Instant,
}

impl Absence {
    pub(super) fn is_due(&self) -> bool {
        self.due <= Instant::now()
    }

    pub(super) fn time_left(&self) -> Duration {
        self.due.saturating_duration_since(Instant::now())
    }
}

impl VhostUserDevice {
    /// The daemon is gone: the driver end is told, and tries begin.
    pub(super) fn lose(&mut self, reason: &str) {
        let Some(link) = self.link.take() else { return };
        link.unwatch(&self.epoll);
        tracing::warn!("the daemon at {} is gone: {reason}", self.place);
        if self.recovery == Recovery::ByCaller {
            for queue in std::mem::take(&mut self.session.queues).into_values() {
                self.epoll.remove(&queue.broken);
            }
        }
        self.be_without(reason);
    }

    fn be_without(&mut self, reason: &str) {
        self.report(DeviceEvent::Gone(reason.to_owned()));
        if !self.settings.reconnect || matches!(self.place, Place::Given(_)) {
            let why = "the daemon is gone and is not waited for".to_owned();
            self.report(DeviceEvent::NeedsReset(why));
            return;
        }
        let now = Instant::now();
        // The timer is set for the report, and then for this.
        self.absence = Some(Absence { since: now, retry: FIRST_RETRY, due: now + FIRST_RETRY });
    }

    /// Hangs up on a daemon that nothing else makes forget a driver, and calls again for the next
    /// driver. (passt ends itself when it is given a memory without the rings it had before.)
    pub(super) fn call_again(&mut self) {
        /// Between two tries: a daemon that still sees the old connection refuses the new one.
        const PAUSE: Duration = Duration::from_millis(1);
        let Some(link) = self.link.take() else { return };
        link.unwatch(&self.epoll);
        drop(link);
        let deadline = Instant::now() + GREETING_LIMIT;
        loop {
            let error = match self.return_of_the_daemon() {
                Ok(true) => return,
                Ok(false) => "nobody listens there".to_owned(),
                Err(error) => error.to_string(),
            };
            if Instant::now() >= deadline {
                tracing::warn!(
                    "the daemon at {} does not take another driver: {error}",
                    self.place
                );
                return self.be_without(&error);
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Whether [`VhostUserDevice::call_again`] is what the daemon needs between two drivers: it has
    /// none of the messages that end a driver, and is of a type whose daemons outlive a connection.
    pub(super) fn remembers_drivers(&self) -> bool {
        const FORGETTING: u64 =
            protocol::CONFIGURE_MEM_SLOTS | protocol::STATUS | protocol::RESET_DEVICE;
        let known = self.link.as_ref().map_or(FORGETTING, |link| link.protocol);
        known & FORGETTING == 0
            && self.identity.device == DeviceType::NET
            && matches!(self.place, Place::Connect(_))
    }

    /// When the control descriptor becomes readable without anything else happening.
    pub(super) fn set_timer(&self, delay: Duration) {
        if let Err(error) = self.timer.set(delay, Duration::ZERO) {
            tracing::error!("the daemon at {} is not waited for: {error}", self.place);
        }
    }

    /// It is time to look whether the daemon is back.
    pub(super) fn try_again(&mut self) {
        if self.absence.is_none() {
            return;
        }
        match self.return_of_the_daemon() {
            Ok(true) => {
                let gone_for = self.absence.take().map(|absence| absence.since.elapsed());
                let gone_for = gone_for.unwrap_or_default();
                tracing::info!("the daemon at {} is back after {gone_for:?}", self.place);
                self.report(DeviceEvent::Back);
                return;
            }
            Ok(false) => {}
            Err(error) => tracing::warn!("the daemon at {} came back but: {error}", self.place),
        }
        if let Some(absence) = &mut self.absence {
            absence.retry = (absence.retry * 2).min(LAST_RETRY);
            absence.due = Instant::now() + absence.retry;
        }
    }

    fn return_of_the_daemon(&mut self) -> Result<bool, DeviceError> {
        let attempt = format!("connecting to {}", self.place);
        let connection = self.place.try_connection().map_err(DeviceError::system(attempt))?;
        let Some(connection) = connection else { return Ok(false) };
        let (limit, more) = (self.settings.timeout.min(GREETING_LIMIT), self.settings.more());
        let mut link = Link::new(connection, limit, more)?;
        self.check_it_is_the_same(&mut link)?;
        let status = self.session.status;
        self.session.replay(&mut link, status)?;
        link.set_timeout(self.settings.timeout);
        let watched = link.watch(&self.epoll, LINK);
        watched.map_err(DeviceError::system("watching the daemon"))?;
        self.link = Some(link);
        Ok(true)
    }

    /// A daemon that can do less than the one before can't take its place under a driver that
    /// relies on it.
    fn check_it_is_the_same(&mut self, link: &mut Link) -> Result<(), DeviceError> {
        let device = self.identity.device;
        let mut config = read_config(link, device, None)?;
        let size = config.len() as u32;
        let refused = |why: String| DeviceError::Refused(why);
        let now = self.settings.identity(device, &link.offer, &mut config).map_err(refused)?;
        let relied_on = self.session.accepted.unwrap_or_default();
        if !now.features.has(relied_on) {
            let lost = relied_on - now.features;
            return Err(refused(format!("it has lost the features {lost} that the driver uses")));
        }
        if !link.has(self.settings.more()) {
            return Err(refused("it knows no notifications by message".into()));
        }
        if now.queue_sizes.len() < self.identity.queue_sizes.len() {
            return Err(refused(format!("it has only {} queues now", now.queue_sizes.len())));
        }
        if size != self.config_size {
            return Err(refused(format!("its config has {size} bytes now")));
        }
        if self.config_size > 0 && config != self.config {
            self.config = config;
            self.report(DeviceEvent::ConfigChanged);
        }
        self.memory_slots = link.offer.memory_slots;
        self.records_writes = link.offer.records_writes();
        Ok(())
    }
}

/// Waits until `deadline` for a connection, for the start when there is nobody to wait in the
/// background for.
pub(super) fn wait_for(place: &mut Place, deadline: Instant) -> Result<Connection, DeviceError> {
    /// Between two tries; there is nothing to wait on for a path that does not exist yet.
    const PAUSE: Duration = Duration::from_millis(20);
    loop {
        let attempt = format!("connecting to {place}");
        if let Some(connection) = place.try_connection().map_err(DeviceError::system(attempt))? {
            return Ok(connection);
        }
        if Instant::now() + PAUSE > deadline {
            let why = format!("no vhost-user daemon at {place}: start it, or check the path");
            return Err(DeviceError::Gone(why));
        }
        std::thread::sleep(PAUSE);
    }
}
