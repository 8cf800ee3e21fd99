//! Regions: what they are, and reads and writes of them.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use sys::EventFd;
use wire::vfio_user::{
    Header, IoFd, IoFdKind, MAX_FDS, RegionInfo, RegionIoFds, Reply, SparseArea, region_flags,
    region_index,
};

use super::limits::MAX_WAITING_READS;
use super::service::Plug;
use super::session::{EINVAL, Peer, Refusal, WaitingRead};
use crate::config::{command, offset, status};
use crate::{BarAddress, Mappable};

/// Size in bytes of `struct vfio_region_info`, the least that a client must have room for.
const REGION_INFO_LEN: u32 = 32;
/// EBUSY, for a client that has too many reads waiting.
const EBUSY: Refusal = Refusal::Errno(16);

/// Size in bytes of a region; 0 for those that are not there.
fn size(plug: &mut Plug, region: u32) -> Result<u64, Refusal> {
    match region {
        region_index::BAR0..=region_index::BAR5 => {
            Ok(plug.function.layout().bars[region as usize].size)
        }
        region_index::CONFIG => Ok(plug.function.config().len() as u64),
        region_index::ROM | region_index::VGA => Ok(0),
        _ => Err(EINVAL),
    }
}

fn check(plug: &mut Plug, region: u32, offset: u64, len: u64) -> Result<(), Refusal> {
    match offset.checked_add(len) {
        Some(end) if len > 0 && end <= size(plug, region)? => Ok(()),
        _ => Err(EINVAL),
    }
}

/// Interrupt Status is the line's, whoever holds the configuration space.
fn show_line(plug: &Plug, at: u64, data: &mut [u8]) {
    let place = (offset::STATUS as u64).checked_sub(at);
    let byte = place.and_then(|place| data.get_mut(usize::try_from(place).ok()?));
    if let Some(byte) = byte.filter(|_| plug.host.interrupts.is_intx_asserted()) {
        *byte |= status::INTERRUPT as u8;
    }
}

/// What the command register, which may have changed, means for the line.
pub(super) fn follow_command(plug: &mut Plug) {
    let disabled = plug.function.config().command() & command::INTX_DISABLE != 0;
    plug.host.interrupts.disable_intx(disabled);
}

impl Peer {
    pub(super) fn region_info(
        &mut self,
        plug: &mut Plug,
        header: &Header,
        argsz: u32,
        index: u32,
    ) -> Result<Option<Reply<'static>>, Refusal> {
        let size = size(plug, index)?;
        if argsz < REGION_INFO_LEN {
            return Err(EINVAL);
        }
        let flags = if size > 0 { region_flags::READ | region_flags::WRITE } else { 0 };
        let bar = plug.function.layout().bars.get(index as usize);
        let Some(Mappable { file, offset, areas }) = bar.and_then(|bar| bar.mappable.as_ref())
        else {
            let info = RegionInfo::new(flags, index, size, 0, Vec::new());
            return Ok(Some(Reply::RegionInfo(info)));
        };
        let areas = areas.iter().map(|&(offset, size)| SparseArea { offset, size }).collect();
        let info = RegionInfo::new(flags | region_flags::MMAP, index, size, *offset, areas);
        let fds = vec![Arc::clone(file)];
        self.reply(header, &Reply::RegionInfo(info.fitted_to(argsz)), fds);
        Ok(None)
    }

    pub(super) fn region_io_fds(
        &mut self,
        plug: &mut Plug,
        header: &Header,
        argsz: u32,
        index: u32,
    ) -> Result<Option<Reply<'static>>, Refusal> {
        size(plug, index)?;
        let mut fds: Vec<Arc<OwnedFd>> = Vec::new();
        let mut sub_regions = Vec::new();
        let doorbells = plug.function.doorbells();
        for bell in doorbells.iter().filter(|bell| u32::from(bell.at.bar) == index).take(MAX_FDS) {
            let Ok(fd) = duplicate(&bell.event) else { break };
            sub_regions.push(IoFd {
                offset: bell.at.offset,
                size: bell.size.into(),
                fd_index: fds.len() as u32,
                kind: IoFdKind::IoEventFd,
                // KVM_IOEVENTFD_FLAG_DATAMATCH
                flags: u32::from(bell.data.is_some()),
                data: bell.data.unwrap_or_default(),
            });
            fds.push(Arc::new(fd));
        }
        let info = RegionIoFds::new(index, sub_regions).fitted_to(argsz);
        if info.sub_regions.is_empty() {
            fds.clear();
        }
        self.reply(header, &Reply::RegionIoFds(info), fds);
        Ok(None)
    }

    pub(super) fn region_read(
        &mut self,
        plug: &mut Plug,
        header: &Header,
        region: u32,
        offset: u64,
        count: u32,
    ) -> Result<Option<Reply<'static>>, Refusal> {
        check(plug, region, offset, count.into())?;
        let len = count as usize;
        if region == region_index::CONFIG {
            let mut data = vec![0; len];
            plug.function.config_read(offset, &mut data);
            show_line(plug, offset, &mut data);
            self.reply(header, &Reply::RegionRead { offset, region, data: &data }, Vec::new());
            return Ok(None);
        }
        if self.reads.len() >= MAX_WAITING_READS {
            return Err(EBUSY);
        }
        let (ticket, answer) = plug.completions.begin(len);
        if header.wants_reply() {
            let deadline = Instant::now() + plug.function.read_limit();
            let message_id = header.message_id;
            self.reads.push(WaitingRead { ticket, message_id, region, offset, len, deadline });
        }
        plug.function.read(BarAddress { bar: region as u8, offset }, answer);
        self.collect(plug);
        Ok(None)
    }

    pub(super) fn region_write(
        &mut self,
        plug: &mut Plug,
        region: u32,
        offset: u64,
        data: &[u8],
    ) -> Result<(), Refusal> {
        check(plug, region, offset, data.len() as u64)?;
        if region != region_index::CONFIG {
            plug.function.write(BarAddress { bar: region as u8, offset }, data);
            return Ok(());
        }
        plug.function.config_write(offset, data);
        follow_command(plug);
        // Only a bus master's DMA messages are served by QEMU, so this is the first moment for the
        // test.
        if plug.function.config().command() & command::BUS_MASTER != 0 {
            self.self_test.ask();
        }
        Ok(())
    }
}

fn duplicate(event: &EventFd) -> std::io::Result<OwnedFd> {
    use std::os::fd::AsFd;
    event.as_fd().try_clone_to_owned()
}
