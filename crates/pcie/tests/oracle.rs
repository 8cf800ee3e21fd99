//! The service as the rust-vmm client finds it, which is what Cloud Hypervisor uses.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use driver::GuestMemory;
use pcie::virtio_pci::VirtioPciOptions;
use support::engine::{AREAS, REG_ADDRESS, REG_KIND};
use support::{Engine, Pattern, Served};
use sys::EventFd;
use vfio_user::Client;

const CONFIG: u32 = 7;
/// `VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER`.
const TRIGGER_BY_EVENT: u32 = 0x24;

#[test]
fn regions_interrupts_and_memory() {
    let served = Served::virtio(Pattern::new(), VirtioPciOptions::default());
    let mut client = Client::new(&served.path).unwrap();
    assert_eq!(client.region(CONFIG).unwrap().size, 4096);
    assert_eq!(client.region(4).unwrap().size, 0x4000);
    assert!(client.region(0).is_none_or(|bar| bar.size == 0));
    let mut id = [0; 4];
    client.region_read(CONFIG, 0, &mut id).unwrap();
    assert_eq!(id, [0xf4, 0x1a, 0x44, 0x10]);
    for len in [1, 2, 4, 8] {
        let mut bytes = vec![0xee; len];
        client.region_read(4, 0x2000, &mut bytes).unwrap();
        assert_eq!(bytes, [1, 2, 3, 4, 5, 6, 7, 8][..len]);
    }
    client.region_write(4, 0x14, &[1]).unwrap();
    client.region_write(4, 0x14, &[3]).unwrap();
    let mut status = [0];
    client.region_read(4, 0x14, &mut status).unwrap();
    assert_eq!(status, [3]);

    let counts = [1, 0, 3, 0, 0];
    for (index, count) in counts.into_iter().enumerate() {
        assert_eq!(client.get_irq_info(index as u32).unwrap().count, count, "type {index}");
    }
    let event = EventFd::new().unwrap();
    client.set_irqs(2, TRIGGER_BY_EVENT, 0, 1, &[event.as_raw_fd()]).unwrap();
    // VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER: fire it.
    client.set_irqs(2, 0x21, 0, 1, &[]).unwrap();
    assert!(event.drain());

    let memory = GuestMemory::new(1 << 20).unwrap();
    let (fd, _) = memory.mapping().file().unwrap();
    let file = File::from(fd.try_clone_to_owned().unwrap());
    client.dma_map(0, memory.base().0, 1 << 20, file.as_raw_fd()).unwrap();
    client.dma_unmap(memory.base().0, 1 << 20).unwrap();
    client.reset().unwrap();
    client.region_read(4, 0x14, &mut status).unwrap();
    assert_eq!(status, [0]);
    client.shutdown().unwrap();

    let mut again = Client::new(&served.path).unwrap();
    again.region_read(CONFIG, 0, &mut id).unwrap();
    assert_eq!(id, [0xf4, 0x1a, 0x44, 0x10]);
}

/// A register's 8 bytes.
fn word(client: &mut Client, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    client.region_read(0, offset, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

fn file(bytes: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(bytes).unwrap();
    file
}

#[test]
fn the_parts_of_a_region_that_may_be_mapped() {
    let memory = file(0x1_2000);
    let shown = Arc::new(memory.try_clone().unwrap().into());
    let served = Served::new(Box::new(Engine::with_memory(shown)));
    let client = Client::new(&served.path).unwrap();
    let region = client.region(2).unwrap();
    let areas: Vec<_> = region.sparse_areas.iter().map(|area| (area.offset, area.size)).collect();
    assert_eq!((region.size, &areas[..]), (0x1_0000, &AREAS[..]));
    // VFIO_REGION_INFO_FLAG_READ, _WRITE, _MMAP.
    assert_eq!(region.flags & 7, 7);
    let there = region.file_offset.as_ref().unwrap();
    memory.write_all_at(b"seen", there.start() + AREAS[1].0).unwrap();
    let mut bytes = [0; 4];
    there.file().read_exact_at(&mut bytes, 0x2000 + AREAS[1].0).unwrap();
    assert_eq!(&bytes, b"seen");
    let plain = client.region(0).unwrap();
    assert!(plain.file_offset.is_none() && plain.sparse_areas.is_empty() && plain.flags & 4 == 0);
}

#[test]
fn accesses_of_every_size_and_in_blocks() {
    let served = Served::virtio(Pattern::new(), VirtioPciOptions::default());
    let mut client = Client::new(&served.path).unwrap();
    // The three addresses of a ring: bytes, halves, words, whole, and all at once.
    let wanted: Vec<u8> = (1..=24).collect();
    for size in [1, 2, 4, 8, 24] {
        client.region_write(4, 32, &[0; 24]).unwrap();
        for (n, piece) in wanted.chunks(size).enumerate() {
            client.region_write(4, 32 + (n * size) as u64, piece).unwrap();
        }
        let mut found = vec![0xee; 24];
        for (n, piece) in found.chunks_mut(size).enumerate() {
            client.region_read(4, 32 + (n * size) as u64, piece).unwrap();
        }
        assert_eq!(found, wanted, "in pieces of {size}");
    }
    let (mut block, mut bytes) = (vec![0; 4096], vec![0; 4096]);
    client.region_read(CONFIG, 0, &mut block).unwrap();
    for (n, byte) in bytes.chunks_mut(1).enumerate() {
        client.region_read(CONFIG, n as u64, byte).unwrap();
    }
    assert_eq!(block, bytes);
}

#[test]
fn interrupts_in_ranges_come_and_go() {
    /// `VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER`.
    const TRIGGER: u32 = 0x21;
    let served = Served::virtio(Pattern::new(), VirtioPciOptions::default());
    let mut client = Client::new(&served.path).unwrap();
    // VFIO_IRQ_INFO_EVENTFD; INTx can be masked too, and masks itself.
    let flags = [0, 2].map(|index| client.get_irq_info(index).unwrap().flags);
    assert_eq!((flags[0] & 7, flags[1] & 1), (7, 1));
    let events = [(); 3].map(|()| EventFd::new().unwrap());
    let fds = events.each_ref().map(|event| event.as_raw_fd());
    let fired = || events.each_ref().map(|event| event.drain());
    client.set_irqs(2, TRIGGER_BY_EVENT, 0, 3, &fds).unwrap();
    client.set_irqs(2, TRIGGER, 1, 2, &[]).unwrap();
    assert_eq!(fired(), [false, true, true]);
    // No descriptors: that range has none any more.
    client.set_irqs(2, TRIGGER_BY_EVENT, 1, 1, &[]).unwrap();
    client.set_irqs(2, TRIGGER, 0, 3, &[]).unwrap();
    assert_eq!(fired(), [true, false, true]);
    // None at all: all are off.
    client.set_irqs(2, TRIGGER, 0, 0, &[]).unwrap();
    client.set_irqs(2, TRIGGER, 0, 3, &[]).unwrap();
    assert_eq!(fired(), [false; 3]);
}

#[test]
fn memory_is_there_while_it_is_mapped_and_one_client_has_it() {
    let served = Served::new(Box::new(Engine::new()));
    let memory = file(1 << 20);
    for _ in 0..2 {
        let mut client = Client::new(&served.path).unwrap();
        let kind = |client: &mut Client, at: u64| {
            client.region_write(0, REG_ADDRESS, &at.to_le_bytes()).unwrap();
            word(client, REG_KIND)
        };
        assert_eq!(kind(&mut client, 0x5000), 0, "nothing of the client before");
        client.dma_map(0x1000, 0x5000, 0x2000, memory.as_raw_fd()).unwrap();
        client.dma_map(0, 0x10_0000, 0x1000, memory.as_raw_fd()).unwrap();
        assert_eq!([0x5000, 0x6fff, 0x10_0000].map(|at| kind(&mut client, at)), [1; 3]);
        assert_eq!(kind(&mut client, 0x7000), 0);
        client.dma_unmap(0x5000, 0x2000).unwrap();
        assert_eq!([0x5000, 0x10_0000].map(|at| kind(&mut client, at)), [0, 1]);
        client.reset().unwrap();
        assert_eq!(word(&mut client, REG_ADDRESS), 0, "a reset reaches the function");
        assert_eq!(kind(&mut client, 0x10_0000), 1, "and memory stays");
        // The client goes without a word.
    }
}
