//! The network card as drivers meet it.
#![allow(clippy::unwrap_used)]

mod rig;

use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use mem::DriverAddress;
use rig::{LIMIT, Queue, Rig, try_open};
use virtio::config::NetConfig;
use virtio::{DeviceEvent, Features};
use virtqueue::Segment;

const SPLIT: Features = Features::VERSION_1;
const ALL_PACKED: Features =
    Features(SPLIT.0 | Features::EVENT_IDX.0 | Features::INDIRECT_DESC.0 | Features::RING_PACKED.0);
const MRG_RXBUF: Features = Features::bit(15);
const HEADER: usize = 12;

/// A card with its first queue pair, as a driver has it.
struct Card {
    rig: Rig,
    receive: Queue,
    transmit: Queue,
    buffers: Vec<Segment>,
    mark: u64,
    header: usize,
}

impl Card {
    fn open(settings: &[(&str, &str)], features: Features, buffers: usize, room: usize) -> Self {
        Self::up(Rig::open("net", settings, features), buffers, room)
    }

    /// `buffers` receive buffers of `room` bytes.
    fn up(mut rig: Rig, buffers: usize, room: usize) -> Self {
        let (mut receive, transmit) = (rig.queue(0, 128), rig.queue(1, 128));
        let buffers: Vec<Segment> = (0..buffers)
            .map(|_| Segment { addr: DriverAddress(rig.room(room + 2, 2).0 + 1), len: room as u32 })
            .collect();
        for (token, buffer) in buffers.iter().enumerate() {
            receive.offer(&[], &[*buffer], token as u64);
        }
        receive.publish();
        let mark = rig.mark();
        let long = rig.features.has(Features::VERSION_1) || rig.features.has(MRG_RXBUF);
        Self { rig, receive, transmit, buffers, mark, header: if long { HEADER } else { 10 } }
    }

    /// Sends header and frame, cut into pieces, and waits until the card is done with it.
    fn send_raw(&mut self, bytes: &[u8], piece: usize) {
        let segments = self.rig.scatter(bytes, piece);
        self.transmit.offer(&segments, &[], 5);
        self.transmit.publish();
        assert_eq!(self.transmit.wait(), (5, 0));
        self.rig.release(self.mark);
    }

    fn send(&mut self, frame: &[u8]) {
        self.send_raw(&[&vec![0; self.header], frame].concat(), 1 << 20);
    }

    /// The next frame, however many buffers it takes, and the buffers posted again.
    fn take(&mut self) -> Vec<u8> {
        let (token, written) = self.receive.wait();
        let buffer = self.buffers[token as usize];
        let mut frame = self.rig.get(buffer.addr, written as usize);
        let count = match self.header {
            HEADER => u16::from_le_bytes([frame[10], frame[11]]),
            _ => 1,
        };
        assert_eq!(frame[..10], [0; 10]);
        frame.drain(..self.header);
        self.receive.offer(&[], &[buffer], token);
        for _ in 1..count {
            let (token, written) = self.receive.wait();
            let buffer = self.buffers[token as usize];
            frame.extend(self.rig.get(buffer.addr, written as usize));
            self.receive.offer(&[], &[buffer], token);
        }
        self.receive.publish();
        frame
    }

    fn command(&mut self, queue: &mut Queue, bytes: &[u8]) -> u8 {
        let (answer, written) = self.rig.ask(queue, bytes, 1, 3);
        assert_eq!(written, 1);
        answer[0]
    }
}

/// A frame for a station that is not there; the echo sends it back with the addresses exchanged.
fn frame(number: usize, len: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 7, 0x88, 0xb5];
    frame.extend((frame.len()..len).map(|at| (at * 31 + number * 17) as u8));
    frame
}

fn turned(mut frame: Vec<u8>) -> Vec<u8> {
    frame[..12].rotate_left(6);
    frame
}

#[test]
fn seventy_thousand_frames_come_back() {
    for features in [SPLIT, ALL_PACKED] {
        let mut card = Card::open(&[], features, 64, 2048);
        let slots: Vec<_> = (0..32).map(|_| card.rig.room(2048, 1)).collect();
        for round in 0..70_000 / 32 {
            let len = |slot: usize| 14 + (round * 37 + slot * 91) % 1500;
            for (slot, at) in slots.iter().enumerate() {
                let frame = frame(round + slot, len(slot));
                card.rig.put(DriverAddress(at.0 + HEADER as u64), &frame);
                let segment = Segment { addr: *at, len: (HEADER + frame.len()) as u32 };
                card.transmit.offer(&[segment], &[], slot as u64);
            }
            card.transmit.publish();
            for slot in 0..slots.len() {
                assert_eq!(card.take(), turned(frame(round + slot, len(slot))));
            }
            for _ in 0..slots.len() {
                card.transmit.wait();
            }
        }
    }
}

#[test]
fn a_large_frame_is_spread_over_buffers_and_the_header_says_over_how_many() {
    let mut card = Card::open(&[], ALL_PACKED, 48, 1500);
    for len in [60, 1488, 1489, 3000, 9000, 65_000] {
        card.send(&frame(len, len));
        assert_eq!(card.take(), turned(frame(len, len)));
    }
}

#[test]
fn a_frame_waits_for_buffers_and_takes_those_that_come() {
    let mut card = Card::open(&[], SPLIT, 2, 1000);
    card.send(&frame(1, 4000));
    card.send(&frame(2, 100));
    let more: Vec<_> =
        (0..4).map(|_| Segment { addr: card.rig.room(1000, 1), len: 1000 }).collect();
    for buffer in &more {
        card.receive.offer(&[], &[*buffer], card.buffers.len() as u64);
        card.buffers.push(*buffer);
        card.receive.publish();
    }
    assert_eq!(card.take(), turned(frame(1, 4000)));
    assert_eq!(card.take(), turned(frame(2, 100)));
}

#[test]
fn without_mergeable_buffers_a_frame_too_large_is_dropped_and_none_is_cut() {
    let device = try_open("net", &[]).unwrap();
    let offered = device.identity().features;
    let mut rig = Rig::new(device, SPLIT);
    rig.device.reset().unwrap();
    rig.features = (offered - MRG_RXBUF - Features::TRANSPORT) | SPLIT;
    rig.device.accept_features(rig.features).unwrap();
    let mut card = Card::up(rig, 4, 500);
    card.send(&frame(1, 489));
    card.send(&frame(2, 488));
    assert_eq!(card.take(), turned(frame(2, 488)));
}

#[test]
fn a_driver_from_before_version_1_has_the_short_header() {
    let device = try_open("net", &[("mac", "52:54:00:01:02:03")]).unwrap();
    let mut rig = Rig::new(device, Features::NONE);
    rig.device.reset().unwrap();
    rig.features = Features::bit(5);
    rig.device.accept_features(rig.features).unwrap();
    let mut card = Card::up(rig, 4, 2000);
    assert_eq!(card.header, 10);
    card.send(&frame(1, 300));
    assert_eq!(card.take(), turned(frame(1, 300)));
    card.rig.device.write_config(0, &[2, 0, 0]).unwrap();
    let mut mac = [0; 6];
    card.rig.device.read_config(0, &mut mac);
    assert_eq!(mac, [2, 0, 0, 1, 2, 3]);
}

#[test]
fn odd_framings_work_and_bad_frames_are_dropped() {
    let mut card = Card::open(&[], SPLIT, 8, 2048);
    let good = [&[0; HEADER][..], &frame(1, 60)].concat();
    card.send_raw(&good, 1);
    assert_eq!(card.take(), turned(frame(1, 60)));
    card.send_raw(&good[..5], 5);
    card.send_raw(&good[..HEADER], 12);
    card.send_raw(&good[..HEADER + 13], 7);
    let header = |flags: u8, gso: u8, rest: u8| {
        let header = [flags, gso, rest, rest, rest, rest, rest, rest, rest, rest, rest, rest];
        [&header[..], &frame(2, 60)].concat()
    };
    card.send_raw(&header(1, 0, 0xff), 100);
    card.send_raw(&header(1, 1, 0xff), 100);
    card.send_raw(&header(0, 0x7f, 0), 100);
    card.send_raw(&header(1, 0, 16), 100);
    let huge = vec![3; 100_000];
    card.send_raw(&huge, 1 << 20);
    card.send_raw(&header(0, 0, 0xff), 100);
    assert_eq!(card.take(), turned(frame(2, 60)), "only the last one makes sense");
}

#[test]
fn the_control_queue_does_what_it_can_and_refuses_the_rest() {
    let settings = [("queues", "4"), ("mac", "52:54:00:00:00:01"), ("mtu", "9000")];
    let mut card = Card::open(&settings, SPLIT, 4, 2048);
    let mut control = card.rig.queue(8, 16);
    card.mark = card.rig.mark();
    let mut bytes = [0; NetConfig::LEN];
    card.rig.device.read_config(0, &mut bytes);
    let config = NetConfig::decode(&bytes);
    assert_eq!((config.max_virtqueue_pairs, config.mtu, config.status), (4, 9000, 1));
    let table = |n: u32, macs: usize| [&n.to_le_bytes()[..], &vec![2; macs * 6]].concat();
    let macs = |a: Vec<u8>, b: Vec<u8>| [&[1, 0][..], &a, &b].concat();
    for (command, answer) in [
        (vec![0, 0, 1], 0),
        (vec![0, 5, 0], 0),
        (vec![0, 0, 2], 1),
        (vec![0, 6, 0], 1),
        (vec![1, 1, 2, 0, 0, 0, 0, 5], 0),
        (vec![1, 1, 2, 0, 0, 0, 0], 1),
        (macs(table(2, 2), table(0, 0)), 0),
        (macs(table(u32::MAX, 2), table(0, 0)), 1),
        (macs(table(3, 2), table(0, 0)), 1),
        (macs(table(0, 0), table(0, 1)), 1),
        (vec![2, 0, 100, 0], 0),
        (vec![2, 0, 0, 0x10], 1),
        (vec![4, 0, 4, 0], 0),
        (vec![4, 0, 0, 0], 1),
        (vec![4, 0, 5, 0], 1),
        (vec![4, 1, 0, 0], 1),
        (vec![5, 0, 0, 0, 0, 0, 0, 0, 0, 0], 1),
        (vec![0xff, 0xff], 1),
        (vec![0], 1),
        (vec![], 1),
    ] {
        assert_eq!(card.command(&mut control, &command), answer, "{command:?}");
    }
    card.rig.device.read_config(0, &mut bytes);
    assert_eq!(NetConfig::decode(&bytes).mac, [2, 0, 0, 0, 0, 5]);
    let segments = card.rig.scatter(&[0, 0, 1], 3);
    control.offer(&segments, &[], 1);
    control.publish();
    assert!(card.rig.broken(8).contains("answer"));
    card.send(&frame(1, 60));
    assert_eq!(card.take(), turned(frame(1, 60)), "the data queues go on");
}

#[test]
fn frames_that_the_driver_does_not_want_stay_away() {
    let own = [0x52, 0x54, 0, 0, 0, 1];
    let mut card = Card::open(&[("mac", "52:54:00:00:00:01")], SPLIT, 4, 2048);
    let mut control = card.rig.queue(2, 16);
    card.mark = card.rig.mark();
    let to_own = |number| {
        let mut frame = frame(number, 60);
        frame[6..12].copy_from_slice(&own);
        frame
    };
    // The echo sends to whoever it was from: another station, which only one who listens to
    // everything hears.
    card.send(&frame(1, 60));
    assert_eq!(card.take(), turned(frame(1, 60)));
    assert_eq!(card.command(&mut control, &[0, 0, 0]), 0);
    card.send(&frame(2, 60));
    card.send(&to_own(3));
    assert_eq!(card.take(), turned(to_own(3)), "the other one does not come");
    let station = [&[1, 0, 1, 0, 0, 0][..], &frame(0, 14)[6..12], &[0; 4]].concat();
    assert_eq!(card.command(&mut control, &station), 0);
    card.send(&frame(4, 60));
    assert_eq!(card.take(), turned(frame(4, 60)), "a station that was named");
    card.rig.device.reset().unwrap();
}

#[test]
fn a_station_is_announced_on_the_wire() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.sock");
    let mut card = Card::open(&[("stream", path.to_str().unwrap())], SPLIT, 8, 2048);
    let mut peer = UnixStream::connect(&path).unwrap();
    assert_eq!(card.rig.event(), DeviceEvent::ConfigChanged);
    let mac = [0x52, 0x54, 0, 9, 8, 7];
    let network = card.rig.device.network().unwrap();
    assert!(network.can_announce() && network.can_set_mtu());
    network.set_mtu(1400).unwrap();
    network.announce(mac).unwrap();
    peer.set_read_timeout(Some(LIMIT)).unwrap();
    let mut bytes = [0; 4 + 60];
    peer.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes[..4], [0, 0, 0, 60]);
    // RFC 903: to everybody, reverse request, about itself.
    assert_eq!((&bytes[4..10], &bytes[10..16]), (&[0xff; 6][..], &mac[..]));
    assert_eq!(bytes[16..26], [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    assert_eq!((&bytes[26..32], &bytes[36..42]), (&mac[..], &mac[..]));
}

/// Speaks QEMU's framing.
fn exchange(card: &mut Card, peer: &mut UnixStream) {
    peer.set_read_timeout(Some(LIMIT)).unwrap();
    for len in [14, 60, 1514, 40_000] {
        card.send(&frame(len, len));
        let mut bytes = vec![0; 4 + len];
        peer.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes[..4], (len as u32).to_be_bytes());
        assert_eq!(bytes[4..], frame(len, len));
        // In pieces that have nothing to do with the frames.
        let both = [&(len as u32).to_be_bytes()[..], &frame(len + 1, len)].concat().repeat(2);
        for piece in both.chunks(len.div_ceil(3)) {
            peer.write_all(piece).unwrap();
        }
        assert_eq!(card.take(), frame(len + 1, len));
        assert_eq!(card.take(), frame(len + 1, len));
    }
}

fn link(card: &mut Card) -> bool {
    let mut status = [0; 2];
    card.rig.device.read_config(6, &mut status);
    status[0] & 1 != 0
}

#[test]
fn a_stream_peer_comes_goes_and_comes_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.sock");
    let mut card = Card::open(&[("stream", path.to_str().unwrap())], ALL_PACKED, 64, 2048);
    assert!(!link(&mut card));
    card.send(&frame(1, 60));
    for _ in 0..3 {
        let mut peer = UnixStream::connect(&path).unwrap();
        assert_eq!(card.rig.event(), DeviceEvent::ConfigChanged);
        assert!(link(&mut card));
        exchange(&mut card, &mut peer);
        peer.write_all(&[0, 0]).unwrap();
        drop(peer);
        assert_eq!(card.rig.event(), DeviceEvent::ConfigChanged);
        assert!(!link(&mut card));
    }
    let mut peer = UnixStream::connect(&path).unwrap();
    assert_eq!(card.rig.event(), DeviceEvent::ConfigChanged);
    peer.write_all(&u32::MAX.to_be_bytes()).unwrap();
    assert_eq!(card.rig.event(), DeviceEvent::ConfigChanged);
    assert_eq!(peer.read(&mut [0]).unwrap(), 0, "a peer that talks nonsense is sent away");
}

#[test]
fn a_stream_that_nobody_listens_to_yet_is_connected_later() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.sock");
    let mut card = Card::open(&[("connect", path.to_str().unwrap())], SPLIT, 64, 2048);
    assert!(!link(&mut card));
    let listener = UnixListener::bind(&path).unwrap();
    for _ in 0..2 {
        assert_eq!(card.rig.event(), DeviceEvent::ConfigChanged);
        assert!(link(&mut card));
        let (mut peer, _) = listener.accept().unwrap();
        exchange(&mut card, &mut peer);
        drop(peer);
        assert_eq!(card.rig.event(), DeviceEvent::ConfigChanged);
    }
}

#[test]
fn a_peer_that_does_not_read_holds_frames_back_and_loses_none_it_reads_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.sock");
    let mut card = Card::open(&[("stream", path.to_str().unwrap())], SPLIT, 8, 2048);
    let mut peer = UnixStream::connect(&path).unwrap();
    assert_eq!(card.rig.event(), DeviceEvent::ConfigChanged);
    let buffer = card.rig.room(HEADER + 9000, 1);
    card.rig.put(DriverAddress(buffer.0 + HEADER as u64), &frame(3, 9000));
    let segment = Segment { addr: buffer, len: (HEADER + 9000) as u32 };
    for token in 0..100 {
        card.transmit.offer(&[segment], &[], token);
    }
    card.transmit.publish();
    peer.set_read_timeout(Some(LIMIT)).unwrap();
    let mut bytes = vec![0; 4 + 9000];
    for _ in 0..100 {
        peer.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes[4..], frame(3, 9000));
    }
    for token in 0..100 {
        assert_eq!(card.transmit.wait(), (token, 0));
    }
}

#[test]
fn datagrams_go_both_ways_with_a_record_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let peer = UnixDatagram::bind(at("there")).unwrap();
    peer.set_read_timeout(Some(LIMIT)).unwrap();
    let (here, there, pcap) = (at("here"), at("there"), at("net.pcap"));
    let settings = [
        ("dgram", here.to_str().unwrap()),
        ("peer", there.to_str().unwrap()),
        ("pcap", pcap.to_str().unwrap()),
    ];
    let mut card = Card::open(&settings, SPLIT, 8, 2048);
    let mut bytes = vec![0; 4096];
    for len in [14, 100, 1514] {
        card.send(&frame(1, len));
        assert_eq!(peer.recv(&mut bytes).unwrap(), len);
        assert_eq!(bytes[..len], frame(1, len));
        peer.send_to(&frame(2, len), &here).unwrap();
        assert_eq!(card.take(), frame(2, len));
    }
    drop(card);
    let record = std::fs::read(&pcap).unwrap();
    assert_eq!(record.len(), 24 + 2 * (3 * 16 + 14 + 100 + 1514));
    assert_eq!(record[24 + 16..24 + 16 + 14], frame(1, 14));
    assert!(try_open("net", &settings[..1]).is_err());
    let both = [("echo", "on"), ("null", "on")];
    assert!(try_open("net", &both).err().unwrap().to_string().contains("one of tap="));
}
