//! The record of requests in flight: we make the memory, the driver's side keeps it, the device
//! writes it, and whoever serves the driver after us goes on from it ("Inflight I/O tracking").

use std::os::fd::OwnedFd;
use std::sync::Arc;

use mem::{Mapping, MemoryError};
use virtio::{Features, InFlightArea};
use wire::vhost_user::features as protocol;
use wire::vhost_user::inflight::Layout;
use wire::vhost_user::{Inflight, Reply, id};

use super::session::{Outcome, Session};
use crate::vhost_user::channel::ChannelError;

impl Session {
    fn layout(&self) -> Layout {
        let packed = self.features.is_some_and(|features| features.has(Features::RING_PACKED));
        if packed { Layout::Packed } else { Layout::Split }
    }

    /// GET_INFLIGHT_FD: fresh memory for as many queues. No memory where the numbers make no sense:
    /// a peer must not be able to have gigabytes made.
    pub(super) fn get_in_flight(&mut self, wanted: &Inflight) -> Result<Outcome, ChannelError> {
        let known = usize::from(wanted.queues) <= self.rings.len();
        let len = self.layout().area_len(wanted.queues, wanted.queue_size).filter(|_| known);
        let made = len.and_then(|len| Mapping::new_memfd("viaduct-in-flight", len as usize).ok());
        let Some((mapping, len)) = made.as_ref().zip(len) else {
            let none = Inflight { mmap_size: 0, mmap_offset: 0, ..*wanted };
            self.reply(id::GET_INFLIGHT_FD, &Reply::Inflight(none), &[])?;
            return Ok(Outcome::Answered);
        };
        let area = Inflight { mmap_size: len, mmap_offset: 0, ..*wanted };
        let fds: Vec<_> = mapping.file().map(|(fd, _)| fd).into_iter().collect();
        self.reply(id::GET_INFLIGHT_FD, &Reply::Inflight(area), &fds)?;
        Ok(Outcome::Answered)
    }

    /// SET_INFLIGHT_FD: the memory comes back, written by us or by who was here before.
    pub(super) fn set_in_flight(&mut self, told: &Inflight, fd: Option<OwnedFd>) -> Outcome {
        let Some(fd) = fd.filter(|_| self.has(protocol::INFLIGHT_SHMFD)) else {
            return Outcome::Refused("it was not offered".into());
        };
        let needed = self.layout().area_len(told.queues, told.queue_size);
        let fits = needed.is_some_and(|needed| needed <= told.mmap_size);
        if !fits || usize::from(told.queues) > self.rings.len() {
            return Outcome::Refused("a record that does not fit its queues".into());
        }
        let mapped = usize::try_from(told.mmap_size)
            .map_err(|_| MemoryError::Overflow)
            .and_then(|len| Mapping::of_file(fd, told.mmap_offset, len));
        match mapped {
            Ok(mapping) => {
                let (queues, queue_size) = (told.queues, told.queue_size);
                self.in_flight = Some(Arc::new(InFlightArea { mapping, queues, queue_size }));
                Outcome::Done
            }
            Err(error) => Outcome::Refused(error.to_string()),
        }
    }
}
