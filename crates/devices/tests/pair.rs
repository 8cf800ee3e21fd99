//! Two network cards at one cable.
#![allow(clippy::unwrap_used)]

mod rig;

use mem::DriverAddress;
use rig::{Queue, Rig, settings};
use virtio::Features;
use virtqueue::Segment;

const SPLIT: Features = Features::VERSION_1;
const PACKED: Features =
    Features(SPLIT.0 | Features::EVENT_IDX.0 | Features::INDIRECT_DESC.0 | Features::RING_PACKED.0);
const PACKED_IN_ORDER: Features =
    Features(SPLIT.0 | Features::RING_PACKED.0 | Features::IN_ORDER.0);
const SPLIT_IN_ORDER: Features = Features(SPLIT.0 | Features::IN_ORDER.0);
const HEADER: usize = 12;

/// A card and its driver.
struct Card {
    rig: Rig,
    receive: Queue,
    transmit: Queue,
    buffers: Vec<Segment>,
    slots: Vec<DriverAddress>,
}

impl Card {
    /// A card at `cable` with `buffers` receive buffers of `room` bytes.
    fn new(cable: &str, features: Features, buffers: usize, room: usize) -> Self {
        let mut rig = Rig::open("net", &[("pair", cable)], features);
        let (mut receive, transmit) = (rig.queue(0, 64), rig.queue(1, 64));
        let buffer = |rig: &mut Rig| Segment { addr: rig.room(room, 1), len: room as u32 };
        let buffers: Vec<Segment> = (0..buffers).map(|_| buffer(&mut rig)).collect();
        for (token, buffer) in buffers.iter().enumerate() {
            receive.offer(&[], &[*buffer], token as u64);
        }
        receive.publish();
        let slots = (0..16).map(|_| rig.room(4096, 1)).collect();
        Self { rig, receive, transmit, buffers, slots }
    }

    /// Sends frames, each in `pieces` buffers, and waits until the card is done with them.
    fn send(&mut self, frames: &[Vec<u8>], pieces: usize) {
        for (slot, frame) in self.slots.iter().zip(frames) {
            self.rig.put(*slot, &[0; HEADER]);
            self.rig.put(DriverAddress(slot.0 + HEADER as u64), frame);
            let all = HEADER + frame.len();
            let cuts: Vec<usize> = (0..=pieces).map(|piece| all * piece / pieces).collect();
            let segments: Vec<Segment> = cuts
                .windows(2)
                .map(|cut| Segment {
                    addr: DriverAddress(slot.0 + cut[0] as u64),
                    len: (cut[1] - cut[0]) as u32,
                })
                .collect();
            self.transmit.offer(&segments, &[], 9);
        }
        self.transmit.publish();
        for _ in frames {
            assert_eq!(self.transmit.wait(), (9, 0));
        }
    }

    /// The next frame, however many buffers it takes, and the buffers posted again.
    fn take(&mut self) -> Vec<u8> {
        let (token, written) = self.receive.wait();
        let buffer = self.buffers[token as usize];
        let mut frame = self.rig.get(buffer.addr, written as usize);
        assert_eq!(frame[..10], [0; 10]);
        let count = u16::from_le_bytes([frame[10], frame[11]]);
        frame.drain(..HEADER);
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
}

fn frame(number: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + number * 17) as u8).collect()
}

#[test]
fn seventy_thousand_frames_cross_between_any_two_formats() {
    let all = [SPLIT, PACKED, SPLIT_IN_ORDER, PACKED_IN_ORDER];
    for (number, a) in all.into_iter().enumerate() {
        let b = all[(number + 1) % all.len()];
        let cable = format!("any {number}");
        let mut cards = [Card::new(&cable, a, 48, 2048), Card::new(&cable, b, 48, 2048)];
        for round in 0..70_000 / 32 {
            let len = |slot: usize| 14 + (round * 37 + slot * 91) % 1500;
            // Now and then something that is not simple.
            let pieces = if round % 7 == 0 { 3 } else { 1 };
            let frames: Vec<Vec<u8>> = (0..16).map(|slot| frame(round + slot, len(slot))).collect();
            for from in 0..2 {
                cards[from].send(&frames, pieces);
                for sent in &frames {
                    assert_eq!(&cards[1 - from].take(), sent);
                }
            }
        }
    }
    assert_eq!(virtqueue::lost_chains(), 0);
}

#[test]
fn a_frame_longer_than_a_buffer_takes_several() {
    for features in [SPLIT, PACKED_IN_ORDER] {
        let cable = format!("merge {features}");
        let mut a = Card::new(&cable, features, 4, 2048);
        let mut b = Card::new(&cable, features, 32, 100);
        for number in 0..200 {
            let sent = frame(number, 14 + number * 7);
            a.send(std::slice::from_ref(&sent), 1);
            assert_eq!(b.take(), sent);
        }
    }
}

#[test]
fn without_a_receiver_frames_are_dropped() {
    let mut a = Card::new("lonely", SPLIT, 4, 2048);
    let frames = vec![frame(1, 60); 16];
    a.send(&frames, 1);
    // One who has no buffers is waited for, but not for ever.
    let mut b = Card::new("lonely", SPLIT, 0, 2048);
    a.send(&frames, 1);
    a.send(&frames, 1);
    let buffer = Segment { addr: b.rig.room(2048, 1), len: 2048 };
    b.buffers = vec![buffer];
    b.receive.offer(&[], &[buffer], 0);
    b.receive.publish();
    let late = frame(2, 80);
    a.send(std::slice::from_ref(&late), 1);
    assert_eq!(b.take(), late);
}

#[test]
fn a_broken_queue_stops_alone() {
    let mut a = Card::new("broken", SPLIT, 8, 2048);
    let mut b = Card::new("broken", SPLIT, 8, 2048);
    // A buffer that is nowhere.
    a.transmit.offer(&[Segment { addr: DriverAddress(1), len: 100 }], &[], 1);
    a.transmit.publish();
    assert!(a.rig.broken(1).contains("no memory region"));
    let sent = frame(3, 100);
    b.send(std::slice::from_ref(&sent), 1);
    assert_eq!(a.take(), sent);
}

#[test]
fn queues_stop_with_nothing_in_flight_and_go_on() {
    for features in [SPLIT, PACKED] {
        let cable = format!("again {features}");
        let mut a = Card::new(&cable, features, 8, 2048);
        let mut b = Card::new(&cable, features, 8, 2048);
        for number in 0..50 {
            let sent = frame(number, 300);
            a.send(std::slice::from_ref(&sent), 1);
            assert_eq!(b.take(), sent);
            let position = b.rig.device.stop_queue(0).unwrap();
            assert!(b.rig.device.stop_queue(0).is_err());
            b.receive.spec.start_at = position;
            b.rig.start(0, &b.receive);
        }
    }
}

#[test]
fn a_cable_has_two_ends() {
    let a = Card::new("two", SPLIT, 1, 2048);
    let _b = Card::new("two", SPLIT, 1, 2048);
    let net = devices::DEVICES.iter().find(|kind| kind.scheme == "net").unwrap();
    let third = || (net.open)(settings(&[("pair", "two")]));
    assert!(third().err().unwrap().to_string().contains("two cards already"));
    drop(a);
    third().unwrap();
}
