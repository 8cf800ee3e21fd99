//! A driver behind an IOMMU: its rings and buffers are reached through translations.

use mem::{Access, DriverAddress, Mapping, MemoryError};
use sys::Connection;
use virtio::Features;
use wire::vhost_user::features as protocol;
use wire::vhost_user::{
    BackendRequest, HEADER_LEN, Header, Iotlb, IotlbKind, MemoryRegion, MemoryTable, Request,
    VringAddr, VringFd, VringState,
};

use crate::hostile_driver::{Answer, Peer, read_exactly};
use crate::lab::Served;

/// Where the other process has the memory, where the guest has it, and where the driver has it.
const USER: u64 = 0x7f00_0000_0000;
const GUEST: u64 = 0x1_0000_0000;
const IOVA: u64 = 0xffff_0000;
const PAGE: u64 = 4096;

fn iotlb(kind: IotlbKind, page: u64, permissions: u8) -> Iotlb {
    let (iova, user_address) = (IOVA + page * PAGE, USER + page * PAGE);
    Iotlb { iova, size: PAGE, user_address, permissions, kind }
}

fn next_miss(second: &Connection, wanted: u8) -> u64 {
    let mut bytes = [0; HEADER_LEN];
    assert!(read_exactly(second, &mut bytes));
    let header = Header::decode(&bytes).unwrap();
    let mut payload = vec![0; header.size as usize];
    assert!(read_exactly(second, &mut payload));
    match BackendRequest::decode(&header, &payload, 0).unwrap() {
        BackendRequest::IotlbMsg(miss) if miss.kind == IotlbKind::Miss => {
            assert_eq!(miss.permissions, wanted);
            miss.iova
        }
        other => panic!("{other:?} where a miss belongs"),
    }
}

#[test]
fn a_queue_starts_when_its_pages_are_translated() {
    let served = Served::with(&[("iommu", "on")]);
    let peer = Peer::new(&served);
    let agreed = protocol::REPLY_ACK | protocol::BACKEND_REQ;
    peer.send(&Request::SetProtocolFeatures(agreed), 0, &[]);
    let (second, theirs) = Connection::pair().unwrap();
    assert_eq!(peer.ask_with(&Request::SetBackendReqFd, &[&theirs]), Answer::Value(0));
    let features = Features::VERSION_1 | Features::PROTOCOL_FEATURES | Features::ACCESS_PLATFORM;
    assert_eq!(peer.ask(&Request::SetFeatures(features.0)), Answer::Value(0));
    let memory = Mapping::new_memfd("iommu", 16 << 12).unwrap();
    let (guest_address, size) = (GUEST, 16 * PAGE);
    let region = MemoryRegion { guest_address, size, user_address: USER, mmap_offset: 0 };
    let table = Request::SetMemTable(MemoryTable::new(&[region]).unwrap());
    assert_eq!(peer.ask_with(&table, &[&memory.file().unwrap().0]), Answer::Value(0));
    peer.send(&Request::SetVringNum(VringState { index: 0, num: 64 }), 0, &[]);
    let (descriptor, available, used) = (IOVA, IOVA + PAGE, IOVA + 2 * PAGE);
    let addresses = VringAddr { index: 0, flags: 0, descriptor, used, available, log: 0 };
    assert_eq!(peer.ask(&Request::SetVringAddr(addresses)), Answer::Value(0));
    let kick = sys::EventFd::new().unwrap();
    let event = VringFd { index: 0, has_fd: true };
    peer.send(&Request::SetVringKick(event), 0, &[&kick]);
    let enable = Request::SetVringEnable(VringState { index: 0, num: 1 });
    assert_eq!(peer.ask(&enable), Answer::Value(0), "it waits");
    for page in 0..3 {
        assert!(served.seen.lock().unwrap().running.is_empty());
        assert_eq!(next_miss(&second, Iotlb::READ), IOVA + page * PAGE);
        let update = iotlb(IotlbKind::Update, page, Iotlb::READ | Iotlb::WRITE);
        assert_eq!(peer.ask(&Request::IotlbMsg(update)), Answer::Value(0));
    }
    let space = served.seen.lock().unwrap().running[&0].memory.clone();
    assert_eq!(space.current().region(DriverAddress(IOVA)).unwrap().len, PAGE);
    // Buffers are asked for, found, and forgotten again.
    let buffer = DriverAddress(IOVA + 9 * PAGE + 5);
    assert!(matches!(space.current().region(buffer), Err(MemoryError::Miss(_))));
    space.report_miss(buffer, Access::ReadWrite);
    assert_eq!(next_miss(&second, Iotlb::WRITE), IOVA + 9 * PAGE);
    // The same for reading is another question.
    space.report_miss(buffer, Access::Read);
    assert_eq!(next_miss(&second, Iotlb::READ), IOVA + 9 * PAGE);
    let update = iotlb(IotlbKind::Update, 9, Iotlb::READ);
    assert_eq!(peer.ask(&Request::IotlbMsg(update)), Answer::Value(0));
    assert!(space.current().write(buffer, &[1]).is_err(), "read-only");
    assert!(space.current().read(buffer, &mut [0]).is_ok());
    let invalidate = iotlb(IotlbKind::Invalidate, 9, 0);
    assert_eq!(peer.ask(&Request::IotlbMsg(invalidate)), Answer::Value(0));
    assert!(matches!(space.current().region(buffer), Err(MemoryError::Miss(_))));
    // Drivers use an address again at once, and it was asked for a moment ago.
    space.report_miss(buffer, Access::Read);
    assert_eq!(next_miss(&second, Iotlb::READ), IOVA + 9 * PAGE);
    // Nobody tells what becomes of translations while the device is stopped.
    let stop = Request::GetVringBase(VringState { index: 0, num: 0 });
    assert!(matches!(peer.ask(&stop), Answer::Value(_)));
    assert!(!space.current().regions().is_empty());
    assert_eq!(peer.ask(&Request::SetFeatures(features.0)), Answer::Value(0));
    assert!(space.current().regions().is_empty());
}

#[test]
fn translations_that_make_no_sense_are_refused() {
    let served = Served::with(&[("iommu", "on")]);
    let (peer, _file) = Peer::running(&served);
    let update = iotlb(IotlbKind::Update, 0, 3);
    let refused = Answer::Value(1);
    assert_eq!(peer.ask(&Request::IotlbMsg(update)), refused, "without ACCESS_PLATFORM");
    for wrong in [
        Iotlb { size: 0, ..update },
        Iotlb { size: u64::MAX, iova: 2, ..update },
        Iotlb { user_address: 1, ..update },
        Iotlb { kind: IotlbKind::Miss, ..update },
    ] {
        assert_eq!(peer.ask(&Request::IotlbMsg(wrong)), refused, "{wrong:?}");
    }
}
