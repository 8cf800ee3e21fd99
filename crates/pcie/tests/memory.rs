//! Host memory: mapped, by message, gone; row 60 of the adversarial table, and the rule that no
//! access waits for a transfer.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

use driver::{Access, GuestMemory, PciDevice, Queue, QueueWish};
use mem::Mapping;
use pcie::virtio_pci::VirtioPciOptions;
use support::client::{Message, Raw, errno, open_files};
use support::engine::{self, Engine, ID};
use support::{Pattern, Served};
use virtio::{Features, Status};
use virtqueue::Segment;
use wire::vfio_user::{DmaMap, DmaUnmap, NO_REPLY, Reply, Request, command, dma_flags};

const EINVAL: u32 = 22;
const RW: u32 = dma_flags::READ | dma_flags::WRITE;

fn engine() -> Served {
    Served::new(Box::new(Engine::new()))
}

fn map(client: &mut Raw, address: u64, size: u64, file: Option<&OwnedFd>) -> Option<u32> {
    let map = DmaMap { flags: RW, offset: 0, address, size };
    let fds: Vec<_> = file.iter().map(|fd| fd.as_fd()).collect();
    errno(&client.ask(&Request::DmaMap(map), &fds))
}

fn unmap(client: &mut Raw, flags: u32, address: u64, size: u64) -> Message {
    client.ask(&Request::DmaUnmap(DmaUnmap { argsz: 24, flags, address, size }), &[])
}

/// What is at an address: 0 nothing, 1 mapped, 2 by message.
fn kind(client: &mut Raw, address: u64) -> u8 {
    client.write(0, engine::REG_ADDRESS, &address.to_le_bytes()).unwrap();
    client.read(0, engine::REG_KIND, 1).unwrap()[0]
}

#[test]
fn row_60_maps_come_and_go() {
    let served = engine();
    let mut client = Raw::greeted(&served.path);
    let memory = Mapping::new_memfd("test", 0x10000).unwrap();
    let file = memory.file().unwrap().0.try_clone_to_owned().unwrap();
    assert_eq!(map(&mut client, 0x1000, 0x4000, Some(&file)), None);
    assert_eq!(map(&mut client, 0x1000, 0x4000, Some(&file)), None, "the same again");
    assert_eq!(map(&mut client, 0x3000, 0x4000, Some(&file)), Some(EINVAL), "overlap");
    assert_eq!(map(&mut client, 0x0, 0x2000, Some(&file)), Some(EINVAL), "overlap");
    assert_eq!(map(&mut client, 0x8000, 0x20000, Some(&file)), Some(EINVAL), "beyond the file");
    assert_eq!(map(&mut client, 0x8000, 0, None), Some(EINVAL), "empty");
    assert_eq!(map(&mut client, u64::MAX - 0xfff, 0x2000, None), Some(EINVAL), "wraps");
    let none = DmaMap { flags: 0, offset: 0, address: 0x9000, size: 0x1000 };
    assert_eq!(errno(&client.ask(&Request::DmaMap(none), &[])), Some(EINVAL), "no access");
    assert_eq!(map(&mut client, 0x8000, 0x1000, None), None, "by message");
    assert_eq!(kind(&mut client, 0x4fff), 1);
    assert_eq!(kind(&mut client, 0x5000), 0);
    assert_eq!(kind(&mut client, 0x8000), 2);

    for (address, size) in [(0x10_0000, 0x1000), (0x10_0000, 0xffff_ffff_0000_0000)] {
        assert_eq!(errno(&unmap(&mut client, 0, address, size)), None, "unknown is fine");
    }
    assert_eq!(errno(&unmap(&mut client, 0, 0x2000, 0x1000)), None, "a hole");
    assert_eq!([0x1fff, 0x2000, 0x3000].map(|at| kind(&mut client, at)), [1, 0, 1]);
    assert_eq!(errno(&unmap(&mut client, 0, 0, 0xfee0_0000)), None);
    assert_eq!([0x1000, 0x3000, 0x8000].map(|at| kind(&mut client, at)), [0, 0, 0]);
    for (flags, address, size) in [(2, 1, 0), (2, 0, 1), (1, 0, 0x1000), (4, 0, 0x1000), (0, 0, 0)]
    {
        assert_eq!(errno(&unmap(&mut client, flags, address, size)), Some(EINVAL));
    }
    map(&mut client, 0x1000, 0x4000, Some(&file));
    let all = unmap(&mut client, dma_flags::UNMAP_ALL, 0, 0);
    assert_eq!((errno(&all), all.1.len()), (None, 24));
    assert_eq!(kind(&mut client, 0x1000), 0);
}

/// The service takes many posts with one call, and what is behind them.
#[test]
fn a_file_behind_posts_is_that_of_its_own_message() {
    let served = engine();
    let mut client = Raw::greeted(&served.path);
    let memory = Mapping::new_memfd("test", 0x1000).unwrap();
    let file = memory.file().unwrap().0.try_clone_to_owned().unwrap();
    for round in 0..50u64 {
        let address = 0x10_0000 + round * 0x1000;
        let data = address.to_le_bytes();
        let post = Request::RegionWrite { offset: engine::REG_ADDRESS, region: 0, data: &data };
        let map = Request::DmaMap(DmaMap { flags: RW, offset: 0, address, size: 0x1000 });
        for number in 0..60 {
            client.send(&post, NO_REPLY, &[]);
            if number == round {
                client.send(&map, NO_REPLY, &[file.as_fd()]);
            }
        }
        assert_eq!(client.read(0, engine::REG_KIND, 1).unwrap(), [1], "round {round}");
    }
}

#[test]
fn row_60_a_thousand_pages_of_one_file_are_mapped_once() {
    let served = engine();
    let mut client = Raw::greeted(&served.path);
    let memory = Mapping::new_memfd("test", 1 << 20).unwrap();
    let file = memory.file().unwrap().0.try_clone_to_owned().unwrap();
    let before = open_files();
    for page in 0..1000u64 {
        let map = DmaMap { flags: RW, offset: 0x1000, address: page * 0x2000, size: 0x1000 };
        assert_eq!(errno(&client.ask(&Request::DmaMap(map), &[file.as_fd()])), None);
    }
    assert!(open_files() <= before + 8);
    assert_eq!([0, 0x1000, 999 * 0x2000].map(|at| kind(&mut client, at)), [1, 0, 1]);
}

#[test]
fn a_read_that_needs_host_memory_holds_nobody_up() {
    let served = engine();
    let mut client = Raw::greeted(&served.path);
    assert_eq!(map(&mut client, 0x1000, 0x1000, None), None);
    client.write(0, engine::REG_ADDRESS, &0x1800u64.to_le_bytes()).unwrap();
    let fetch = Request::RegionRead { offset: engine::REG_FETCH, region: 0, count: 8 };
    let slow: Vec<u16> = (0..3).map(|_| client.send(&fetch, 0, &[])).collect();
    let asked: Vec<Message> = (0..3).map(|_| client.receive().unwrap()).collect();
    assert!(
        asked
            .iter()
            .all(|(header, ..)| { !header.is_reply() && header.command == command::DMA_READ })
    );
    // The answer that the others wait for has not been given, and this one comes all the same.
    assert_eq!(client.read(0, engine::REG_ID, 4), Ok(ID.to_le_bytes().to_vec()));
    for (n, (header, payload, _)) in asked.iter().enumerate().rev() {
        let Request::DmaRead { address, count } = Request::decode(header, payload, 0).unwrap()
        else {
            panic!("{header:?}")
        };
        assert_eq!((address, count), (0x1800, 8));
        let mut bytes = Vec::new();
        let data = [n as u8; 8];
        Reply::DmaRead { address, data: &data }.encode(
            header.message_id,
            header.command,
            &mut bytes,
        );
        client.send_bytes(&bytes, &[]);
        let (header, payload, _) = client.receive().unwrap();
        assert_eq!(header.message_id, slow[n]);
        assert_eq!(payload[16..], data);
    }
}

#[test]
fn a_transfer_that_is_refused_or_answered_wrongly_fails_alone() {
    let served = engine();
    let mut client = Raw::greeted(&served.path);
    assert_eq!(map(&mut client, 0x1000, 0x1000, None), None);
    client.write(0, engine::REG_ADDRESS, &0x1800u64.to_le_bytes()).unwrap();
    let fetch = Request::RegionRead { offset: engine::REG_FETCH, region: 0, count: 8 };
    for wrong in [
        Reply::Failed(14),
        Reply::DmaRead { address: 0x1800, data: &[1; 4] },
        Reply::DmaRead { address: 0x1801, data: &[1; 8] },
        Reply::Done,
    ] {
        client.send(&fetch, 0, &[]);
        let (header, ..) = client.receive().unwrap();
        let mut bytes = Vec::new();
        wrong.encode(header.message_id, command::DMA_READ, &mut bytes);
        // Twice: the second one is a reply that nobody waits for.
        client.send_bytes(&bytes, &[]);
        client.send_bytes(&bytes, &[]);
        assert_eq!(client.receive().unwrap().1[16..], [0xff; 8], "{wrong:?}");
    }
}

/// Greets as QEMU does, whose DMA messages work.
fn greet_like_qemu(served: &Served) -> Raw {
    let mut client = Raw::connect(&served.path);
    let capabilities = wire::vfio_user::Capabilities {
        max_msg_fds: 16,
        write_multiple: true,
        ..Default::default()
    };
    let version = wire::vfio_user::Version { major: 0, minor: 0, capabilities };
    assert_eq!(errno(&client.ask(&Request::Version(version), &[])), None);
    client
}

fn serve_self_test(client: &mut Raw, memory: &Mapping, rounds: usize) {
    let data = [6, 0];
    client.send(&Request::RegionWrite { offset: 4, region: 7, data: &data }, 0, &[]);
    assert!(client.receive().unwrap().0.is_reply(), "the access is answered first");
    for _ in 0..rounds {
        let (header, payload, _) = client.receive().unwrap();
        let Request::DmaRead { address, count } = Request::decode(&header, &payload, 0).unwrap()
        else {
            panic!("{header:?}")
        };
        let mut bytes = vec![0; count as usize];
        let (file, _) = memory.file().unwrap();
        rustix::io::pread(file, &mut bytes, address - 0x1000).unwrap();
        let mut message = Vec::new();
        Reply::DmaRead { address, data: &bytes }.encode(
            header.message_id,
            header.command,
            &mut message,
        );
        client.send_bytes(&message, &[]);
    }
}

#[test]
fn memory_that_is_only_a_copy_is_found_out() {
    for is_copy in [false, true] {
        let served = engine();
        let mut client = greet_like_qemu(&served);
        let real = Mapping::new_memfd("real", 0x4000).unwrap();
        rustix::io::pwrite(real.file().unwrap().0, &[0x5a; 4096], 0).unwrap();
        let copy = Mapping::new_memfd("copy", 0x4000).unwrap();
        let given = if is_copy { &copy } else { &real };
        let file = given.file().unwrap().0.try_clone_to_owned().unwrap();
        assert_eq!(map(&mut client, 0x1000, 0x4000, Some(&file)), None);
        serve_self_test(&mut client, &real, if is_copy { 2 } else { 1 });
        let expected = if is_copy { 2 } else { 1 };
        assert_eq!(kind(&mut client, 0x1000), expected);
        assert_eq!(map(&mut client, 0x8000, 0x4000, Some(&file)), None);
        assert_eq!(kind(&mut client, 0x8000), expected, "and remembered");
    }
}

#[test]
fn the_next_client_finds_the_device_as_it_was_but_no_memory() {
    let served = engine();
    let mut client = Raw::greeted(&served.path);
    assert_eq!(map(&mut client, 0x1000, 0x1000, None), None);
    assert_eq!(kind(&mut client, 0x1000), 2);
    let mut second = Raw::connect(&served.path);
    let version = wire::vfio_user::Version {
        major: 0,
        minor: 1,
        capabilities: wire::vfio_user::Capabilities { pgsizes: 8192, ..Default::default() },
    };
    second.send(&Request::Version(version), 0, &[]);
    drop(client);
    assert!(second.receive().unwrap().0.is_reply(), "its turn has come");
    assert_eq!(second.read(0, engine::REG_ADDRESS, 8), Ok(0x1000u64.to_le_bytes().to_vec()));
    assert_eq!(second.read(0, engine::REG_KIND, 1), Ok(vec![0]));
}

#[test]
fn row_63_a_queue_whose_memory_is_taken_away_waits_until_it_is_back() {
    let device = Pattern::new();
    let seen = device.seen();
    let served = Served::virtio(device, VirtioPciOptions::default());
    let mut memory = GuestMemory::new(1 << 20).unwrap();
    let connection = sys::connect_unix(&served.path).unwrap();
    let mut pci = PciDevice::new(connection, &memory, true).unwrap();
    pci.reset().unwrap();
    let features = Features::VERSION_1;
    pci.accept(features).unwrap();
    let wish = QueueWish { index: 0, size: 16, features };
    let mut queue: Queue<()> = Queue::start(&mut pci, &mut memory, wish).unwrap();
    pci.go().unwrap();
    let unmap = DmaUnmap { argsz: 24, flags: 0, address: memory.base().0, size: 1 << 20 };
    pci.client().ask(&Request::DmaUnmap(unmap), &[], |_, _| Ok(())).unwrap();
    let buffer = memory.allocate(64, 64).unwrap();
    queue.offer(&[], &[Segment { addr: buffer.address, len: 64 }], ()).unwrap();
    queue.publish();
    // The bell is a message too: when the status is answered, it has been heard.
    assert!(!pci.status().unwrap().has(Status::NEEDS_RESET));
    assert_eq!(seen.stopped.load(Ordering::SeqCst), 1);
    let mut bytes = [0; 64];
    memory.span(buffer).copy_to(&mut bytes);
    assert_eq!(bytes, [0; 64], "nothing was written");
    let (file, _) = memory.mapping().file().unwrap();
    let map = DmaMap { flags: RW, offset: 0, address: memory.base().0, size: 1 << 20 };
    pci.client().ask(&Request::DmaMap(map), &[file], |_, _| Ok(())).unwrap();
    queue.wait(std::time::Duration::from_secs(5)).unwrap();
    assert_eq!(queue.take_used().unwrap(), Some(((), 64)));
    assert!(!pci.status().unwrap().has(Status::NEEDS_RESET));
    pci.reset().unwrap();
}
