//! The hand-offs of the port's ring in all interleavings that the memory model allows; and without
//! each of its fences, to show that the model would notice.
#![cfg(loom)]
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use mem::Table;
use port::ring::{Consumer, Fence, Place, Producer, Pushed, model};
use wire::cosim::{HEADER_WORDS, Record, RequestKind, RingOffsets};

/// Room for one record without data, and a word.
const RING_WORDS: usize = HEADER_WORDS + 3;

type Pair = (Producer<RequestKind>, Consumer<RequestKind>);

/// A ring whose control words are next to each other: there are no cache lines here.
fn pair() -> Pair {
    let control = RingOffsets { produced: 0, consumed: 8, asleep: 16, full: 24 };
    let words: Arc<[AtomicU64]> = (0..4 + RING_WORDS).map(|_| AtomicU64::new(0)).collect();
    let words = Arc::new(Table::from_entries(words));
    let place = Place { words, control, data: 32, len: 8 * RING_WORDS };
    (Producer::new(place.clone()), Consumer::new(place))
}

fn record(tag: u64) -> Record<RequestKind> {
    Record::new(RequestKind::Reset).tag(tag)
}

/// An event: signalled, and not waited for again.
#[derive(Clone)]
struct Event(Arc<AtomicU64>);

impl Event {
    fn new() -> Self {
        Self(Arc::new(AtomicU64::new(0)))
    }

    fn signal(&self) {
        // What an eventfd does is a full barrier for whoever reads it.
        self.0.store(1, Ordering::SeqCst);
    }

    fn is_signalled(&self) -> bool {
        self.0.load(Ordering::SeqCst) == 1
    }
}

/// A consumer that goes to sleep while a record comes: it sees it, or is woken.
fn nobody_sleeps_for_ever() {
    let (mut producer, mut consumer) = pair();
    let event = Event::new();
    let wake = event.clone();
    let other = thread::spawn(move || {
        if producer.push(record(1), &[]).unwrap() == Pushed::WantsEvent {
            wake.signal();
        }
    });
    let mut data = Vec::new();
    let sleeps = consumer.sleep();
    other.join().unwrap();
    if sleeps {
        assert!(event.is_signalled(), "asleep for ever");
    }
    assert_eq!(consumer.pop(&mut data).unwrap().unwrap().tag, 1);
}

/// A producer that waits for room while the consumer takes what there is: it sees the room, or is
/// woken.
fn nobody_waits_for_room_for_ever() {
    let (mut producer, mut consumer) = pair();
    let event = Event::new();
    let wake = event.clone();
    assert_eq!(producer.push(record(1), &[]).unwrap(), Pushed::Seen);
    let other = thread::spawn(move || {
        let mut data = Vec::new();
        assert_eq!(consumer.pop(&mut data).unwrap().unwrap().tag, 1);
        if consumer.give_room() {
            wake.signal();
        }
    });
    let waits =
        producer.push(record(2), &[]).unwrap() == Pushed::Full && producer.wait_for_room().unwrap();
    other.join().unwrap();
    if waits {
        assert!(event.is_signalled(), "waits for ever");
    }
}

/// A record is whole when it is seen.
fn a_record_is_whole() {
    let (mut producer, mut consumer) = pair();
    let other = thread::spawn(move || {
        producer.push(record(7), &[]).unwrap();
    });
    let mut data = Vec::new();
    if let Some(seen) = consumer.pop(&mut data).unwrap() {
        assert_eq!(seen, record(7));
    }
    other.join().unwrap();
}

/// Whether loom finds a way in which `body` fails.
fn fails(body: fn()) -> bool {
    std::panic::catch_unwind(|| loom::model(body)).is_err()
}

#[test]
fn every_hand_off_holds_and_none_without_its_fence() {
    loom::model(nobody_sleeps_for_ever);
    loom::model(nobody_waits_for_room_for_ever);
    loom::model(a_record_is_whole);
    for (fence, body) in [
        (Fence::Push, nobody_sleeps_for_ever as fn()),
        (Fence::Sleep, nobody_sleeps_for_ever),
        (Fence::GiveRoom, nobody_waits_for_room_for_ever),
        (Fence::WaitForRoom, nobody_waits_for_room_for_ever),
    ] {
        model::leave_out(Some(fence));
        assert!(fails(body), "nobody would notice if the fence of {fence:?} were missing");
    }
    model::leave_out(None);
}
