//! Every message that the frontend of the `vhost` crate can send (Cloud Hypervisor, Firecracker
//! and libkrun drive daemons with it), to our driver end: what it says arrives, what it asks is
//! answered in a way it accepts, and what it should not have said is refused.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mem::DriverAddress;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{
    Frontend, FrontendReqHandler, HandlerResult, VhostUserFrontend, VhostUserFrontendReqHandler,
};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use virtio::{DeviceEvent, Features};
use virtqueue::QueuePosition;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::lab::{BASE, CONFIG, PROGRESS, Served, block_features, until};

/// Where the memory is for the process of the driver's side: no valid address of anybody.
const USER: u64 = 0x7_7000_0000;
const REGION: u64 = 1 << 20;

/// A frontend that has agreed on all that is offered but in-band notifications, which it does not
/// know, and that wants every message acknowledged.
fn agreed(served: &Served) -> Frontend {
    let mut frontend = Frontend::connect(&served.path, 2).unwrap();
    frontend.set_owner().unwrap();
    let offered = frontend.get_features().unwrap();
    let ours = Features::PROTOCOL_FEATURES | Features::LOG_ALL;
    assert_eq!(offered, (block_features() | ours).0);
    let protocol = frontend.get_protocol_features().unwrap();
    let wanted = protocol & !VhostUserProtocolFeatures::INBAND_NOTIFICATIONS;
    frontend.set_protocol_features(wanted).unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    let features = Features::VERSION_1 | Features::PROTOCOL_FEATURES;
    frontend.set_features(features.0).unwrap();
    frontend
}

fn memory(len: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(len).unwrap();
    file
}

fn region(number: u64, file: &File, offset: u64) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: BASE + number * REGION,
        memory_size: REGION,
        userspace_addr: USER + number * REGION,
        mmap_offset: offset,
        mmap_handle: file.as_raw_fd(),
    }
}

fn event() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

/// Where the areas of a queue are, page by page.
fn ring(index: u64) -> VringConfigData {
    let page = |number: u64| USER + (index * 3 + number) * 4096;
    VringConfigData {
        queue_max_size: 128,
        queue_size: 64,
        flags: 0,
        desc_table_addr: page(0),
        avail_ring_addr: page(1),
        used_ring_addr: page(2),
        log_addr: None,
    }
}

fn start(frontend: &mut Frontend, index: usize, base: u16) -> [EventFd; 3] {
    let [kick, call, err] = [event(), event(), event()];
    frontend.set_vring_num(index, 64).unwrap();
    frontend.set_vring_base(index, base).unwrap();
    frontend.set_vring_addr(index, &ring(index as u64)).unwrap();
    frontend.set_vring_call(index, &call).unwrap();
    frontend.set_vring_kick(index, &kick).unwrap();
    frontend.set_vring_err(index, &err).unwrap();
    frontend.set_vring_enable(index, true).unwrap();
    [kick, call, err]
}

#[test]
fn what_is_offered_is_what_is_done() {
    let served = Served::new();
    let mut frontend = agreed(&served);
    let offered = frontend.get_protocol_features().unwrap();
    type Bits = VhostUserProtocolFeatures;
    let done = Bits::MQ
        | Bits::LOG_SHMFD
        | Bits::REPLY_ACK
        | Bits::BACKEND_REQ
        | Bits::CONFIG
        | Bits::INFLIGHT_SHMFD
        | Bits::RESET_DEVICE
        | Bits::CONFIGURE_MEM_SLOTS
        | Bits::STATUS;
    assert!(offered.contains(done), "{offered:?}");
    let nobody_does = Bits::PAGEFAULT | Bits::CRYPTO_SESSION | Bits::XEN_MMAP | Bits::SHMEM;
    assert!(!offered.intersects(nobody_does), "{offered:?}");
    assert_eq!(frontend.get_queue_num().unwrap(), 2);
    assert_eq!(frontend.get_max_mem_slots().unwrap(), 509);
}

#[test]
fn the_config_is_read_and_written() {
    let served = Served::new();
    let mut frontend = agreed(&served);
    let flags = VhostUserConfigFlags::empty();
    for (offset, len) in [(0, 60), (8, 4), (59, 1)] {
        let (_, data) = frontend.get_config(offset, len, flags, &vec![0; len as usize]).unwrap();
        assert_eq!(data, CONFIG[..len as usize], "{len} bytes at {offset}");
    }
    // Not beyond its end: it would wait for more than the empty answer that is a refusal.
    frontend.set_config(32, VhostUserConfigFlags::WRITABLE, &[1, 2]).unwrap();
    assert_eq!(served.seen.lock().unwrap().written, [(32, vec![1, 2])]);
    assert!(frontend.set_config(59, VhostUserConfigFlags::WRITABLE, &[1, 2]).is_err());
}

#[test]
fn memory_comes_and_goes() {
    let served = Served::new();
    let mut frontend = agreed(&served);
    let (whole, second) = (memory(2 * REGION), memory(REGION));
    let low = [region(0, &whole, 0), region(1, &whole, REGION)];
    frontend.set_mem_table(&low).unwrap();
    start(&mut frontend, 0, 0);
    let space = served.seen.lock().unwrap().memory.clone().unwrap();
    let at = |number: u64| DriverAddress(BASE + number * REGION);
    let reaches = |number: u64| space.current().region(at(number)).is_ok();
    assert!(reaches(0) && reaches(1) && !reaches(2));
    // An offset in the file is an offset in the file.
    space.current().write(at(1), b"second").unwrap();
    assert_eq!(read_at(&whole, REGION), *b"second");
    let high = region(2, &second, 0);
    frontend.add_mem_region(&high).unwrap();
    assert!(reaches(2));
    assert!(frontend.add_mem_region(&high).is_err(), "there already");
    frontend.remove_mem_region(&high).unwrap();
    assert!(!reaches(2));
    assert!(frontend.remove_mem_region(&high).is_err(), "not there any more");
    frontend.set_mem_table(&low[..1]).unwrap();
    assert!(reaches(0) && !reaches(1));
    let mut cut = region(3, &second, 0);
    cut.memory_size = 2 * REGION;
    assert!(frontend.add_mem_region(&cut).is_err(), "larger than its file");
}

fn read_at(file: &File, offset: u64) -> [u8; 6] {
    let mut bytes = [0; 6];
    std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, offset).unwrap();
    bytes
}

#[test]
fn queues_run_where_they_are_told_and_stop_where_they_are() {
    let served = Served::new();
    let mut frontend = agreed(&served);
    let file = memory(REGION);
    frontend.set_mem_table(&[region(0, &file, 0)]).unwrap();
    for (index, base) in [(1, 65530), (0, 0)] {
        let [kick, call, err] = start(&mut frontend, index, base);
        let far = served.seen.lock().unwrap().running[&(index as u16)].clone();
        let page = |number: u64| DriverAddress(BASE + (index as u64 * 3 + number) * 4096);
        let places = far.spec.addresses;
        assert_eq!((places.descriptor, places.driver, places.device), (page(0), page(1), page(2)));
        assert_eq!(far.spec.start_at, QueuePosition::split(base));
        assert_eq!(far.spec.size, 64);
        let doorbell = far.kick.unwrap();
        doorbell.drain();
        kick.write(1).unwrap();
        assert!(doorbell.drain(), "its doorbell is ours");
        far.call.signal();
        assert!(call.read().is_ok(), "our interrupt is its");
        let index_of = index as u16;
        served.events.send(DeviceEvent::QueueBroken { index: index_of, reason: "test".into() });
        until(|| err.read().is_ok());
        assert!(!served.seen.lock().unwrap().running.contains_key(&index_of));
        let stopped = frontend.get_vring_base(index).unwrap();
        assert_eq!(stopped, u32::from(base.wrapping_add(PROGRESS as u16)));
    }
    start(&mut frontend, 0, 7);
    frontend.set_vring_enable(0, false).unwrap();
    assert!(served.seen.lock().unwrap().enables.contains(&(0, false)));
    assert_eq!(frontend.get_vring_base(0).unwrap(), 7 + PROGRESS);
    assert!(served.seen.lock().unwrap().running.is_empty());
    start(&mut frontend, 0, 9);
    frontend.reset_device().unwrap();
    {
        let seen = served.seen.lock().unwrap();
        assert!(seen.running.is_empty() && seen.features.is_none());
        assert_eq!(seen.resets, 1);
    }
    frontend.reset_owner().unwrap();
    drop(frontend);
    // The next one finds everything as it was.
    let mut frontend = agreed(&served);
    frontend.set_mem_table(&[region(0, &file, 0)]).unwrap();
    start(&mut frontend, 1, 0);
}

#[test]
fn what_makes_no_sense_is_refused_and_the_session_goes_on() {
    let served = Served::new();
    let mut frontend = agreed(&served);
    let file = memory(REGION);
    frontend.set_mem_table(&[region(0, &file, 0)]).unwrap();
    assert!(frontend.set_vring_num(0, 0).is_err());
    assert!(frontend.set_vring_num(0, 48).is_err());
    let ours = Features::VERSION_1 | Features::PROTOCOL_FEATURES;
    assert!(frontend.set_features(ours.0 | 1 << 60).is_err());
    let mut away = ring(0);
    away.desc_table_addr = 0x1000;
    frontend.set_vring_num(0, 64).unwrap();
    let refused = frontend.set_vring_addr(0, &away).is_err();
    let kick = event();
    let refused = refused || frontend.set_vring_kick(0, &kick).is_err();
    assert!(refused || frontend.set_vring_enable(0, true).is_err(), "rings in no memory");
    assert!(served.seen.lock().unwrap().running.is_empty());
    start(&mut frontend, 0, 0);
    assert_eq!(served.seen.lock().unwrap().running.len(), 1);
}

#[test]
fn the_record_of_requests_in_flight_is_made_and_taken_back() {
    let served = Served::new();
    let mut frontend = agreed(&served);
    let wanted = VhostUserInflight { num_queues: 2, queue_size: 64, ..Default::default() };
    let (area, file) = frontend.get_inflight_fd(&wanted).unwrap();
    assert!(area.mmap_size >= 2 * (16 + 64 * 16), "{}", { area.mmap_size });
    assert!(file.metadata().unwrap().len() >= area.mmap_size + area.mmap_offset);
    frontend.set_inflight_fd(&area, file.as_raw_fd()).unwrap();
    let memory = memory(REGION);
    frontend.set_mem_table(&[region(0, &memory, 0)]).unwrap();
    start(&mut frontend, 1, 0);
    let held = served.seen.lock().unwrap().running[&1].in_flight.clone().unwrap();
    assert_eq!((held.queues, held.queue_size), (2, 64));
    let many = VhostUserInflight { num_queues: 300, queue_size: 32768, ..Default::default() };
    assert!(frontend.get_inflight_fd(&many).is_err());
}

#[test]
fn written_pages_are_logged() {
    let served = Served::new();
    let mut frontend = agreed(&served);
    let (file, log) = (memory(REGION), memory(1 << 20));
    frontend.set_mem_table(&[region(0, &file, 0)]).unwrap();
    start(&mut frontend, 0, 0);
    let handle = log.as_raw_fd();
    let region =
        VhostUserDirtyLogRegion { mmap_size: 1 << 20, mmap_offset: 0, mmap_handle: handle };
    frontend.set_log_base(0, Some(region)).unwrap();
    let told = sys::EventFd::new().unwrap();
    frontend.set_log_fd(told.as_raw_fd()).unwrap();
    let all = Features::VERSION_1 | Features::PROTOCOL_FEATURES | Features::LOG_ALL;
    frontend.set_features(all.0).unwrap();
    let space = served.seen.lock().unwrap().memory.clone().unwrap();
    space.current().write(DriverAddress(BASE + 9 * 4096), b"x").unwrap();
    // A bit for each page of the driver's address space.
    assert!(told.drain(), "the log was modified");
    space.current().write(DriverAddress(BASE + 9 * 4096 + 8), b"x").unwrap();
    assert!(!told.drain(), "nothing new in the log");
    let page = BASE / 4096 + 9;
    let mut byte = [0];
    std::os::unix::fs::FileExt::read_exact_at(&log, &mut byte, page / 8).unwrap();
    assert_eq!(byte[0], 1 << (page % 8));
}

/// What arrives on the second socket.
#[derive(Default)]
struct Heard(AtomicU64);

impl VhostUserFrontendReqHandler for Heard {
    fn handle_config_change(&self) -> HandlerResult<u64> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(0)
    }
}

#[test]
fn a_config_change_arrives_on_the_second_socket() {
    let served = Served::new();
    let mut frontend = agreed(&served);
    let heard = Arc::new(Heard::default());
    let mut handler = FrontendReqHandler::new(Arc::clone(&heard)).unwrap();
    handler.set_reply_ack_flag(true);
    frontend.set_backend_request_fd(&handler.get_tx_raw_fd()).unwrap();
    for count in 1..=3 {
        served.events.send(DeviceEvent::ConfigChanged);
        handler.handle_request().unwrap();
        assert_eq!(heard.0.load(Ordering::SeqCst), count);
    }
}

#[test]
fn messages_nobody_agreed_on_are_refused_by_both() {
    let served = Served::new();
    let mut frontend = agreed(&served);
    assert!(frontend.check_device_state().is_err());
    assert!(frontend.get_shmem_config().is_err());
    let fd: OwnedFd = memory(4096).into();
    let (direction, phase) = (
        vhost::vhost_user::message::VhostTransferStateDirection::SAVE,
        vhost::vhost_user::message::VhostTransferStatePhase::STOPPED,
    );
    assert!(frontend.set_device_state_fd(direction, phase, fd).is_err());
    assert_eq!(frontend.get_queue_num().unwrap(), 2);
}
