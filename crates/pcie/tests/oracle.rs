//! The service as the rust-vmm client finds it, which is what Cloud Hypervisor uses.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::File;
use std::os::fd::AsRawFd;

use driver::GuestMemory;
use pcie::virtio_pci::VirtioPciOptions;
use support::{Pattern, Served};
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
