//! Drivers behind an IOMMU: buffers that come in pieces, and translations that are not there yet.

use std::iter::repeat;
use std::sync::Arc;

use mem::{Access, DriverAddress};
use virtqueue::ChainId;

use super::{Blocked, QueueBridge};
use crate::fault::Fault;
use crate::{Mover, MoverError};

impl<M: Mover> QueueBridge<M> {
    /// A chain that came apart behind an IOMMU into more pieces than there is room for now.
    #[cold]
    pub(super) fn too_many_pieces(
        &mut self,
        id: ChainId,
        segments: usize,
    ) -> Result<Option<u64>, Fault> {
        let limit = self.parts.device.max_segments();
        if segments > limit {
            id.abandon();
            return Err(MoverError::TooManySegments { segments, limit }.into());
        }
        self.parts.driver.untake(id);
        self.blocked = Blocked::Room;
        Ok(None)
    }

    /// Asks for all translations that the chain just put back lacks, so that it waits once.
    #[cold]
    pub(super) fn ask_for_buffers(&mut self) {
        const PAGE: u64 = 4096;
        /// Longer chains ask again for the rest.
        const MOST_PAGES: usize = 32;
        let map = Arc::clone(self.parts.memory.resolver().map());
        let (mut left, space) = (MOST_PAGES, self.parts.memory.space());
        let buffers = [(self.chain.readable(), Access::Read)];
        let buffers = buffers.into_iter().chain([(self.chain.writable(), Access::ReadWrite)]);
        for (buffer, wanted) in buffers.flat_map(|(list, wanted)| list.iter().zip(repeat(wanted))) {
            let (mut at, end) = (buffer.addr.0, buffer.addr.0.saturating_add(buffer.len.into()));
            while at < end && left > 0 {
                at = match map.region(DriverAddress(at)) {
                    Ok(region) => region.end(),
                    Err(_) => {
                        space.report_miss(DriverAddress(at), wanted);
                        (at | (PAGE - 1)).saturating_add(1)
                    }
                };
                left -= 1;
            }
        }
    }

    /// Waits for a translation, which comes with a change of the driver's memory.
    #[cold]
    pub(super) fn miss(&mut self, at: DriverAddress, wanted: Access) {
        self.blocked = Blocked::Translation;
        self.parts.ends.counters.misses.add(1);
        self.parts.memory.space().report_miss(at, wanted);
    }
}
