//! The last resort when a device is to go and whoever worked for it answers no more: its requests
//! are failed.
//!
//! The kernel takes a disk away from its driver only when every request has been answered, and
//! waits for that in a call that nothing interrupts, holding a lock of the whole machine
//! (generic netlink's). So nobody's silence may last.

use std::io;
use std::sync::Arc;

use mem::{Access, MemoryMap, Region, Resolver};
use sys::VduseDevice;
use virtio::{DeviceError, DeviceType, Features, InFlightArea};
use virtqueue::{Chain, DeviceQueue};

use super::queues;

/// `VIRTIO_BLK_S_IOERR` (VIRTIO 1.4, 5.2.6).
const DISK_ERROR: u8 = 1;
/// A `fuse_out_header` and where a `fuse_in_header` has its number (linux/fuse.h).
const FUSE_ANSWER_BYTES: usize = 16;
const FUSE_UNIQUE: u64 = 8;
/// `-EIO`.
const FUSE_ERROR: i32 = -5;

/// What must be known to fail a device's requests.
pub(super) struct Remains<'a> {
    pub node: &'a VduseDevice,
    pub device: DeviceType,
    /// Number of its queues.
    pub queues: usize,
    /// As the driver has accepted them.
    pub features: Features,
    pub memory: MemoryMap,
    /// What the one that answers no more has written down.
    pub in_flight: Option<Arc<InFlightArea>>,
}

/// Fails requests.
pub(super) struct Refuser {
    device: DeviceType,
    queues: Vec<(u32, DeviceQueue)>,
    /// Where buffers and indirect tables may lie.
    buffers: Resolver,
    chain: Chain,
}

impl Refuser {
    /// Takes over queues that nobody works on any more.
    ///
    /// # Errors
    /// The kernel does not tell where they are, or that makes no sense.
    pub(super) fn take_over(remains: Remains<'_>) -> Result<Self, DeviceError> {
        let memory = Arc::new(remains.memory);
        let mut taken = Vec::new();
        let mut longest = 0;
        for index in 0..remains.queues as u32 {
            let attempt = DeviceError::system(format!("looking at queue {index}"));
            let info = remains.node.queue_info(index).map_err(attempt)?;
            if !info.ready {
                continue;
            }
            let mut spec = queues::spec(&info, remains.features);
            spec.start_at = queues::left_behind(&memory, &spec)?;
            let mut queue = DeviceQueue::new(&memory, &spec)?;
            if let Some(area) = &remains.in_flight
                && let Some(log) = area.log(index as u16, &spec)?
            {
                queue.attach_log(log)?;
            }
            longest = longest.max(spec.size);
            taken.push((index, queue));
        }
        let chain = Chain::with_capacity(usize::from(longest));
        let buffers = Resolver::new(Arc::new(buffers(&memory)?));
        Ok(Self { device: remains.device, queues: taken, buffers, chain })
    }

    /// Fails what there is; returns how many requests.
    ///
    /// # Errors
    /// The driver's rings make no sense, or the device is broken; what could be failed has been.
    pub(super) fn refuse(&mut self, node: &VduseDevice) -> Result<u32, DeviceError> {
        let mut failed = 0;
        let mut result = Ok(());
        for (index, queue) in &mut self.queues {
            let (count, ended) =
                refuse_queue(self.device, queue, &mut self.buffers, &mut self.chain);
            failed += count;
            let told = if count > 0 { interrupt(node, *index) } else { Ok(()) };
            result = result.and(ended).and(told);
        }
        result.map(|()| failed)
    }
}

/// Fails what one queue has, and gives back what it could even where the ring makes no sense.
fn refuse_queue(
    device: DeviceType,
    queue: &mut DeviceQueue,
    buffers: &mut Resolver,
    chain: &mut Chain,
) -> (u32, Result<(), DeviceError>) {
    let mut failed = 0;
    let mut ended = Ok(());
    for _ in 0..queue.size() {
        // Who served it may have spoilt the indirect tables, which lie among the buffers. The
        // request goes back all the same: nothing written is a failure to a file system, and a
        // disk's driver finds what that device has left as the status.
        let (taken, is_known) = match queue.take(buffers, chain) {
            Ok(taken) => (Ok(taken), true),
            Err(_) => (queue.take_unread(), false),
        };
        match taken {
            Ok(Some(id)) => {
                let written = if is_known { answer(device, buffers.map(), chain) } else { 0 };
                queue.give_back(id, written);
                failed += 1;
            }
            Ok(None) => break,
            Err(error) => {
                ended = Err(error.into());
                break;
            }
        }
    }
    queue.publish_used();
    (failed, ended)
}

/// What may be written at a chain's word. A device that was shown the buffers and not the rings may
/// have made chains that name the rings.
fn buffers(memory: &MemoryMap) -> Result<MemoryMap, DeviceError> {
    let is_shown = |region: &&Region| region.access != Access::Ours;
    let shown: Vec<Region> = memory.regions().iter().filter(is_shown).cloned().collect();
    if shown.is_empty() { Ok(memory.clone()) } else { Ok(MemoryMap::new(shown)?) }
}

/// Whether the driver of such a device waits for its requests when it lets go.
pub(super) fn waits_for_requests(device: DeviceType) -> bool {
    matches!(device, DeviceType::BLOCK | DeviceType::FS)
}

/// Says in a chain's buffers that it has failed; returns how many bytes count as written. What
/// can't be reached is the driver's own mistake.
fn answer(device: DeviceType, memory: &MemoryMap, chain: &Chain) -> u32 {
    let (first, last) = (chain.writable().first(), chain.writable().last());
    let written = match (device, first, last) {
        // The status is the last byte of all; what is before it is as it was.
        (DeviceType::BLOCK, _, Some(last)) => {
            let at = last.addr.0.wrapping_add(u64::from(last.len) - 1);
            let result = memory.write(mem::DriverAddress(at), &[DISK_ERROR]);
            result.map(|()| u32::from(chain.writable_len() == 1))
        }
        (DeviceType::FS, Some(first), _) if first.len as usize >= FUSE_ANSWER_BYTES => {
            refuse_fuse(memory, chain, first.addr)
        }
        _ => Ok(0),
    };
    written.unwrap_or(0)
}

fn refuse_fuse(
    memory: &MemoryMap,
    chain: &Chain,
    to: mem::DriverAddress,
) -> Result<u32, mem::MemoryError> {
    let mut bytes = [0; FUSE_ANSWER_BYTES];
    bytes[..4].copy_from_slice(&(FUSE_ANSWER_BYTES as u32).to_le_bytes());
    bytes[4..8].copy_from_slice(&FUSE_ERROR.to_le_bytes());
    if let Some(request) = chain.readable().first() {
        let at = mem::DriverAddress(request.addr.0.wrapping_add(FUSE_UNIQUE));
        memory.read(at, &mut bytes[8..])?;
    }
    memory.write(to, &bytes)?;
    Ok(FUSE_ANSWER_BYTES as u32)
}

fn interrupt(node: &VduseDevice, index: u32) -> Result<(), DeviceError> {
    match node.interrupt(index) {
        // The driver is being reset: it asks nobody.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        result => result.map_err(DeviceError::system("interrupting the driver")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mem::{DriverAddress, Mapping};
    use virtqueue::{QueueAddresses, QueuePosition, QueueSpec, RingFormat};

    const BASE: u64 = 0x10_0000;

    fn memory() -> MemoryMap {
        let mapping = Mapping::new_memfd("driver", 0x10000).unwrap();
        let region = Region::mapped(DriverAddress(BASE), 0x10000, Access::ReadWrite, mapping, 0);
        MemoryMap::new(vec![region.unwrap()]).unwrap()
    }

    /// A ring with one chain of a readable and a writable buffer, 32 bytes each.
    fn queue(map: &MemoryMap) -> DeviceQueue {
        let spec = QueueSpec {
            size: 4,
            format: RingFormat::Split,
            indirect: false,
            event_idx: false,
            in_order: false,
            addresses: QueueAddresses {
                descriptor: DriverAddress(BASE),
                driver: DriverAddress(BASE + 0x1000),
                device: DriverAddress(BASE + 0x2000),
            },
            start_at: QueuePosition::split(0),
        };
        let descriptor = |addr: u64, flags: u16, next: u16| {
            let mut bytes = addr.to_le_bytes().to_vec();
            bytes.extend(32_u32.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend(next.to_le_bytes());
            bytes
        };
        map.write(DriverAddress(BASE), &descriptor(BASE + 0x3000, 1, 1)).unwrap();
        map.write(DriverAddress(BASE + 16), &descriptor(BASE + 0x4000, 2, 0)).unwrap();
        map.write(DriverAddress(BASE + 0x1002), &1_u16.to_le_bytes()).unwrap();
        DeviceQueue::new(map, &spec).unwrap()
    }

    fn chain(map: &MemoryMap) -> (Chain, u32) {
        let mut queue = queue(map);
        let mut chain = Chain::with_capacity(4);
        let mut resolver = Resolver::new(Arc::new(map.clone()));
        let id = queue.take(&mut resolver, &mut chain).unwrap().unwrap();
        id.abandon();
        (chain, 32)
    }

    #[test]
    fn rings_are_no_place_for_an_answer_if_the_device_was_not_shown_them() {
        let region = |start: u64, access| {
            let mapping = Mapping::new_memfd("driver", 0x1000).unwrap();
            Region::mapped(DriverAddress(start), 0x1000, access, mapping, 0).unwrap()
        };
        let starts = |access| {
            let regions = vec![region(0, access), region(0x1000, Access::Ours)];
            let found = buffers(&MemoryMap::new(regions).unwrap()).unwrap();
            found.regions().iter().map(|region| region.start.0).collect::<Vec<_>>()
        };
        assert_eq!(starts(Access::ReadWrite), [0]);
        // It was shown nothing: what is there is the driver's own word.
        assert_eq!(starts(Access::Ours), [0, 0x1000]);
    }

    #[test]
    fn what_was_failed_before_nonsense_is_the_drivers_again() {
        let map = memory();
        let mut queue = queue(&map);
        // The second chain is one that the ring has not.
        map.write(DriverAddress(BASE + 0x1006), &99_u16.to_le_bytes()).unwrap();
        map.write(DriverAddress(BASE + 0x1002), &2_u16.to_le_bytes()).unwrap();
        let mut buffers = Resolver::new(Arc::new(map.clone()));
        let mut chain = Chain::with_capacity(4);
        let (failed, ended) = refuse_queue(DeviceType::BLOCK, &mut queue, &mut buffers, &mut chain);
        assert_eq!((failed, ended.is_err()), (1, true));
        let mut used = [0; 2];
        map.read(DriverAddress(BASE + 0x2002), &mut used).unwrap();
        assert_eq!(u16::from_le_bytes(used), 1);
    }

    #[test]
    fn a_disk_says_so_in_its_last_byte() {
        let map = memory();
        let (chain, len) = chain(&map);
        assert_eq!(answer(DeviceType::BLOCK, &map, &chain), 0);
        let mut bytes = vec![0; len as usize];
        map.read(DriverAddress(BASE + 0x4000), &mut bytes).unwrap();
        assert_eq!((bytes[31], bytes[..31].iter().any(|byte| *byte != 0)), (1, false));
    }

    #[test]
    fn a_file_system_answers_the_same_request() {
        let map = memory();
        let (chain, _) = chain(&map);
        map.write(DriverAddress(BASE + 0x3008), &77_u64.to_le_bytes()).unwrap();
        assert_eq!(answer(DeviceType::FS, &map, &chain), 16);
        let mut bytes = [0; 16];
        map.read(DriverAddress(BASE + 0x4000), &mut bytes).unwrap();
        assert_eq!(bytes, [16, 0, 0, 0, 0xfb, 0xff, 0xff, 0xff, 77, 0, 0, 0, 0, 0, 0, 0]);
    }
}
