//! Messages of a hostile or unlucky client: rows 59 to 64 of the adversarial table, and the rules
//! that no access waits for another.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use pcie::vfio_user::limits::{MAX_WAITING_READS, READ_LIMIT};
use pcie::virtio_pci::VirtioPciOptions;
use support::client::{Raw, errno, open_files};
use support::engine::{self, Engine, ID};
use support::{Pattern, Served};
use sys::EventFd;
use wire::vfio_user::{
    IrqAction, IrqData, MAX_PAYLOAD, NO_REPLY, Reply, Request, SetIrqs, command, irq_index,
    region_index,
};

const EINVAL: u32 = 22;
const ENOTSUP: u32 = 95;

fn engine() -> Served {
    Served::new(Box::new(Engine::new()))
}

/// The service still serves whoever comes next.
fn works(served: &Served) {
    let mut client = Raw::greeted(&served.path);
    assert_eq!(client.read(0, engine::REG_ID, 4), Ok(ID.to_le_bytes().to_vec()));
}

fn raw_message(id: u16, command: u16, size: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(id.to_ne_bytes());
    bytes.extend(command.to_ne_bytes());
    bytes.extend(size.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend(payload);
    bytes
}

fn whole(id: u16, command: u16, flags: u32, payload: &[u8]) -> Vec<u8> {
    raw_message(id, command, 16 + payload.len() as u32, flags, payload)
}

#[test]
fn row_59_streams_that_cannot_be_followed_are_closed() {
    let served = engine();
    let streams = [
        raw_message(1, command::REGION_READ, MAX_PAYLOAD as u32 + 17, 0, &[]),
        raw_message(1, command::REGION_READ, u32::MAX, 0, &[]),
        raw_message(1, command::REGION_READ, 15, 0, &[]),
        raw_message(1, command::REGION_READ, 0, 0, &[]),
        whole(1, command::REGION_READ, 7, &[0; 16]),
    ];
    for stream in streams {
        let mut client = Raw::greeted(&served.path);
        client.send_bytes(&stream, &[]);
        assert!(client.is_hung_up(), "{stream:?}");
    }
    works(&served);
}

#[test]
fn row_59_a_greeting_that_is_none_ends_it() {
    let served = engine();
    for greeting in
        [whole(1, command::DEVICE_RESET, 0, &[]), whole(1, command::VERSION, 0, &[1, 0, 0, 0])]
    {
        let mut client = Raw::connect(&served.path);
        client.send_bytes(&greeting, &[]);
        assert!(client.is_hung_up(), "{greeting:?}");
    }
    let deep = [b"\0\0\0\0".as_slice(), &b"[".repeat(3000), b"\0"].concat();
    for text in [&b"\0\0"[..], b"\0\0\0\0{\"capabilities\":\0", b"\0\0\0\0nonsense\0", &deep] {
        let mut client = Raw::connect(&served.path);
        client.send_bytes(&whole(1, command::VERSION, 0, text), &[]);
        assert_eq!(errno(&client.receive().unwrap()), Some(EINVAL));
    }
    works(&served);
}

#[test]
fn row_59_commands_that_are_not_known_are_refused_and_replies_nobody_wants_ignored() {
    let served = engine();
    let mut client = Raw::greeted(&served.path);
    for short in [&[][..], &[1, 2, 3], &[0; 15]] {
        client.send_bytes(&whole(7, command::REGION_READ, 0, short), &[]);
        assert_eq!(errno(&client.receive().unwrap()), Some(EINVAL));
    }
    for unknown in [0, 14, 17, 18, 19, 0xffff] {
        client.send_bytes(&whole(7, unknown, 0, &[0; 64]), &[]);
        assert_eq!(errno(&client.receive().unwrap()), Some(ENOTSUP), "command {unknown}");
    }
    for command in 0..20 {
        client.send_bytes(&whole(9, command, 1, &[0; 32]), &[]);
    }
    let request = Request::DeviceFeature { argsz: 16, flags: 0x1_0001, data: &[0; 8] };
    assert_eq!(errno(&client.ask(&request, &[])), Some(ENOTSUP));
    assert_eq!(client.read(0, engine::REG_ID, 4), Ok(ID.to_le_bytes().to_vec()));
}

#[test]
fn row_59_descriptors_that_do_not_belong_there_are_closed() {
    let served = engine();
    let mut client = Raw::greeted(&served.path);
    let event = EventFd::new().unwrap();
    let before = open_files();
    for _ in 0..200 {
        let fds = vec![event.as_fd(); 8];
        let reply = client.ask(&Request::DeviceReset, &fds);
        assert_eq!(errno(&reply), Some(EINVAL));
    }
    assert!(open_files() <= before + 8, "descriptors pile up");
    let mut bytes = Vec::new();
    Request::DeviceReset.encode(1, 0, &mut bytes);
    client.send_bytes(&bytes, &[event.as_fd(); 17]);
    assert!(client.is_hung_up());
    works(&served);
}

fn irqs(
    client: &mut Raw,
    (index, start, count): (u32, u32, u32),
    action: IrqAction,
    data: IrqData<'_>,
    events: &[&EventFd],
) -> Option<u32> {
    let fds: Vec<_> = events.iter().map(|event| event.as_fd()).collect();
    let request = SetIrqs { data, action, index, start, count };
    errno(&client.ask(&Request::DeviceSetIrqs(request), &fds))
}

#[test]
fn row_61_interrupts_are_set_up_in_every_way_there_is() {
    use IrqAction::{Mask, Trigger, Unmask};
    use IrqData::{Bool, Eventfd, None as Nothing};
    let served = engine();
    let mut client = Raw::greeted(&served.path);
    let events: Vec<EventFd> = (0..4).map(|_| EventFd::new().unwrap()).collect();
    let all: Vec<&EventFd> = events.iter().collect();
    let c = &mut client;
    const MSI: u32 = irq_index::MSI;
    const INTX: u32 = irq_index::INTX;
    for (range, data) in [
        ((MSI, 0, 5), Nothing),
        ((MSI, 4, 1), Nothing),
        ((MSI, 3, 2), Bool(&[1, 1])),
        ((MSI, 4, 1), Eventfd),
        ((INTX, 1, 1), Nothing),
        ((irq_index::MSIX, 0, 1), Nothing),
        ((irq_index::ERR, 0, 1), Nothing),
        ((5, 0, 1), Nothing),
        ((u32::MAX, 0, 1), Nothing),
    ] {
        assert_eq!(irqs(c, range, Trigger, data, &[]), Some(EINVAL), "{range:?}");
    }
    assert_eq!(irqs(c, (MSI, 0, 2), Trigger, Eventfd, &all[..1]), Some(EINVAL), "one is missing");
    assert_eq!(irqs(c, (MSI, 0, 1), Trigger, Eventfd, &all[..2]), Some(EINVAL), "one too many");
    assert_eq!(irqs(c, (MSI, 0, 4), Mask, Nothing, &[]), Some(EINVAL), "not maskable");
    let fired = || events.iter().map(|event| event.drain()).collect::<Vec<_>>();

    assert_eq!(irqs(c, (MSI, 0, 2), Trigger, Eventfd, &all[..2]), None);
    assert_eq!(irqs(c, (MSI, 0, 4), Trigger, Nothing, &[]), None);
    assert_eq!(fired(), [true, true, false, false]);
    assert_eq!(irqs(c, (MSI, 0, 4), Trigger, Eventfd, &all), None, "more of them");
    assert_eq!(irqs(c, (MSI, 1, 3), Trigger, Bool(&[1, 0, 7]), &[]), None);
    assert_eq!(fired(), [false, true, false, true]);
    assert_eq!(irqs(c, (MSI, 1, 2), Trigger, Eventfd, &[]), None, "taken away");
    assert_eq!(irqs(c, (MSI, 0, 4), Trigger, Nothing, &[]), None);
    assert_eq!(fired(), [true, false, false, true]);
    assert_eq!(irqs(c, (MSI, 0, 0), Trigger, Nothing, &[]), None, "all off");
    assert_eq!(irqs(c, (MSI, 0, 4), Trigger, Nothing, &[]), None);
    assert_eq!(fired(), [false; 4]);
    for index in [irq_index::ERR, irq_index::REQ] {
        assert_eq!(irqs(c, (index, 0, 0), Trigger, Nothing, &[]), None, "nothing to switch off");
    }

    assert_eq!(irqs(c, (INTX, 0, 1), Trigger, Eventfd, &all[..1]), None);
    assert_eq!(irqs(c, (INTX, 0, 1), Mask, Nothing, &[]), None);
    assert_eq!(irqs(c, (INTX, 0, 1), Trigger, Nothing, &[]), None);
    assert!(!fired()[0], "masked");
    assert_eq!(irqs(c, (INTX, 0, 1), Unmask, Bool(&[1]), &[]), None);
    assert!(fired()[0], "the line is still up");
    assert_eq!(irqs(c, (INTX, 0, 1), Unmask, Eventfd, &all[1..2]), None);
    events[1].signal();
    assert!(fires(&events[0]), "unmasked by an event, and still up");
    assert_eq!(irqs(c, (INTX, 0, 1), Mask, Eventfd, &all[..1]), Some(EINVAL));
}

/// Whether the event is signalled soon.
fn fires(event: &EventFd) -> bool {
    let epoll = sys::Epoll::new().unwrap();
    epoll.add(event.as_fd(), 0, sys::Interest::Read).unwrap();
    let mut ready = Vec::new();
    epoll.wait(&mut ready, Some(Duration::from_secs(5))).unwrap();
    !ready.is_empty()
}

#[test]
fn row_62_accesses_stay_in_their_region() {
    let served = engine();
    let mut client = Raw::greeted(&served.path);
    for (region, offset, len) in [
        (0, 4096, 1),
        (0, 4093, 4),
        (0, u64::MAX - 3, 8),
        (0, u64::MAX, 4),
        (0, 0, 0),
        (0, 0, 4097),
        (0, 0, 2 << 20),
        (1, 0, 4),
        (region_index::ROM, 0, 4),
        (region_index::CONFIG, 253, 4),
        (region_index::CONFIG, 256, 1),
        (region_index::VGA, 0, 1),
        (9, 0, 1),
        (u32::MAX, 0, 1),
    ] {
        assert_eq!(client.read(region, offset, len), Err(EINVAL), "{region} {offset:#x} {len}");
    }
    for (region, offset, data) in [(0, 4095, &[1, 2][..]), (0, u64::MAX, &[1]), (7, 256, &[1])] {
        assert_eq!(client.write(region, offset, data), Err(EINVAL));
    }
    assert_eq!(client.read(0, 0, 4096).map(|bytes| bytes.len()), Ok(4096), "a block");
    let mut asked = Vec::new();
    for (flags, count) in [(1u32, 0u32), (0, 1), (0, u32::MAX)] {
        let fields = [16u32, flags, 0, count].map(u32::to_ne_bytes).concat();
        client.send_bytes(&whole(3, command::DEVICE_GET_REGION_IO_FDS, 0, &fields), &[]);
        asked.push(errno(&client.receive().unwrap()));
    }
    assert_eq!(asked, [Some(EINVAL); 3]);
}

#[test]
fn posted_writes_are_done_and_not_answered() {
    let served = engine();
    let mut client = Raw::greeted(&served.path);
    let data = 0x1122_3344_5566_7788u64.to_le_bytes();
    let request = Request::RegionWrite { offset: engine::REG_ADDRESS, region: 0, data: &data };
    client.send(&request, NO_REPLY, &[]);
    let beyond = Request::RegionWrite { offset: 1 << 40, region: 0, data: &data };
    client.send(&beyond, NO_REPLY, &[]);
    assert_eq!(client.read(0, engine::REG_ADDRESS, 8), Ok(data.to_vec()));
    let mut buffer = Vec::new();
    let writes = [[1u8; 8], [2; 8]];
    let writes = writes.each_ref().map(|data| wire::vfio_user::Write {
        offset: engine::REG_ADDRESS,
        region: 0,
        data,
    });
    let writes = wire::vfio_user::MultiWrites::lay_out(&writes, &mut buffer);
    client.send(&Request::RegionWriteMulti(writes), NO_REPLY, &[]);
    assert_eq!(client.read(0, engine::REG_ADDRESS, 8), Ok(vec![2; 8]));
}

#[test]
fn a_function_that_never_answers_gives_ones_in_time() {
    let served = engine();
    let mut client = Raw::greeted(&served.path);
    let begin = Instant::now();
    assert_eq!(client.read(0, engine::REG_NEVER, 4), Ok(vec![0xff; 4]));
    assert!(begin.elapsed() >= READ_LIMIT);
    assert!(begin.elapsed() < READ_LIMIT * 20, "{:?}", begin.elapsed());
    let never = Request::RegionRead { offset: engine::REG_NEVER, region: 0, count: 4 };
    for _ in 0..MAX_WAITING_READS + 10 {
        client.send(&never, 0, &[]);
    }
    let answers = (0..MAX_WAITING_READS + 10).map(|_| client.receive().unwrap());
    assert_eq!(answers.filter(|answer| errno(answer).is_some()).count(), 10, "too many at once");
}

#[test]
fn row_64_a_client_that_goes_in_the_middle_leaves_nothing_behind() {
    let served = engine();
    let mut message = Vec::new();
    Request::RegionWrite { offset: 0x10, region: 0, data: &[1; 8] }.encode(1, 0, &mut message);
    for cut in 0..message.len() {
        let mut client = Raw::greeted(&served.path);
        client.send_bytes(&message[..cut], &[]);
    }
    let mut client = Raw::greeted(&served.path);
    client.send(&Request::RegionRead { offset: engine::REG_NEVER, region: 0, count: 4 }, 0, &[]);
    drop(client);
    works(&served);
}

#[test]
fn a_service_that_stops_answers_what_was_asked_and_hears_no_more() {
    let mut served = engine();
    let mut client = Raw::greeted(&served.path);
    let never = Request::RegionRead { offset: engine::REG_NEVER, region: 0, count: 4 };
    let waits = client.send(&never, 0, &[]);
    let id = Request::RegionRead { offset: engine::REG_ID, region: 0, count: 4 };
    let more = [client.send(&id, 0, &[]), client.send(&id, 0, &[])];
    let begin = Instant::now();
    served.stop();
    assert!(begin.elapsed() < Duration::from_secs(1));
    let mut answered: Vec<u16> =
        std::iter::from_fn(|| client.receive()).map(|(header, ..)| header.message_id).collect();
    answered.sort_unstable();
    assert_eq!(answered, [waits, more[0], more[1]]);
    let sent = client.connection.send_all(&[0; 16], &[], Duration::from_secs(1));
    assert!(sent.is_err(), "the client learns at once that nobody listens");
}

#[test]
fn the_greeting_is_answered_with_no_more_bytes_than_it_has() {
    let served = Served::virtio(Pattern::new(), VirtioPciOptions::default());
    for text in [&b"{}"[..], br#"{"capabilities":{}}"#, &[b' '; 300]] {
        let mut client = Raw::connect(&served.path);
        let payload = [b"\0\0\0\0", text, b"\0"].concat();
        client.send_bytes(&whole(1, command::VERSION, 0, &payload), &[]);
        let (header, reply, _) = client.receive().unwrap();
        if !header.is_error() {
            assert!(reply.len() <= payload.len(), "{} for {}", reply.len(), payload.len());
            assert_eq!(reply[..4], [0; 4], "version 0.0");
        }
    }
}

/// Switches bus mastering on and serves the test's reads from `memory` until it is over.

#[test]
fn doorbells_can_be_had_as_events() {
    let served = Served::virtio(Pattern::new(), VirtioPciOptions::default());
    let mut client = Raw::greeted(&served.path);
    let (header, payload, fds) =
        client.ask(&Request::DeviceGetRegionIoFds { argsz: 1024, index: 4 }, &[]);
    let Reply::RegionIoFds(bells) = Reply::decode(&header, &payload, fds.len()).unwrap() else {
        panic!("{header:?}")
    };
    assert_eq!((bells.count, fds.len()), (2, 2));
    assert_eq!(bells.sub_regions[1].offset, 0x3004);
    let (_, payload, fds) = client.ask(&Request::DeviceGetRegionIoFds { argsz: 16, index: 4 }, &[]);
    assert_eq!((payload.len(), fds.len()), (16, 0), "no room for them");
    let (_, _, fds) = client.ask(&Request::DeviceGetRegionIoFds { argsz: 1024, index: 1 }, &[]);
    assert!(fds.is_empty());
}
