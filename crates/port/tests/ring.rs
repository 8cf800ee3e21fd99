//! Rings between two threads, and against a peer that writes anything.
#![allow(clippy::unwrap_used)]

mod noise;

use std::collections::VecDeque;

use port::ring::{Consumer, Producer, Pushed};
use proptest::prelude::*;
use sys::{Epoll, EventFd, Interest};
use wire::cosim::{HEADER_BYTES, MAX_DATA, OFFSETS, Record, RequestKind};

/// Sleeps until the event comes.
fn wait(event: &EventFd) {
    let epoll = Epoll::new().unwrap();
    epoll.add(event, 0, Interest::Read).unwrap();
    let mut ready = Vec::new();
    epoll.wait(&mut ready, Some(std::time::Duration::from_secs(20))).unwrap();
    assert!(event.drain(), "an event was lost");
}

#[test]
fn records_arrive_whole_and_in_order_and_nobody_sleeps_for_ever() {
    const COUNT: u64 = 200_000;
    let place = noise::place(OFFSETS.requests, OFFSETS.data);
    let (mut producer, mut consumer) =
        (Producer::<RequestKind>::new(place.clone()), Consumer::<RequestKind>::new(place));
    let (to_consumer, to_producer) = (EventFd::new().unwrap(), EventFd::new().unwrap());
    let bytes: Vec<u8> = (0..MAX_DATA).map(|n| n as u8).collect();
    // Mostly small, now and then as large as can be.
    let len = |n: u64| if n.is_multiple_of(97) { MAX_DATA } else { (n % 19) as usize };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..COUNT {
                let record = Record::new(RequestKind::Write).tag(n);
                loop {
                    match producer.push(record, &bytes[..len(n)]).unwrap() {
                        Pushed::Seen => break,
                        Pushed::WantsEvent => {
                            to_consumer.signal();
                            break;
                        }
                        Pushed::Full if producer.wait_for_room().unwrap() => wait(&to_producer),
                        Pushed::Full => {}
                    }
                }
            }
        });
        let mut data = Vec::new();
        for n in 0..COUNT {
            loop {
                if let Some(record) = consumer.pop(&mut data).unwrap() {
                    assert_eq!(record.tag, n);
                    assert!(data == bytes[..len(n)], "record {n}");
                    break;
                }
                if consumer.give_room() {
                    to_producer.signal();
                }
                if consumer.sleep() {
                    wait(&to_consumer);
                }
            }
        }
    });
}

#[derive(Clone, Debug)]
enum Step {
    Push(usize),
    Pop,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_ring_is_a_queue_of_bounded_size(
        steps in prop::collection::vec(
            prop_oneof![(0..MAX_DATA).prop_map(Step::Push), (0usize..40).prop_map(Step::Push),
                Just(Step::Pop)],
            0..200,
        ),
    ) {
        let place = noise::place(OFFSETS.requests, OFFSETS.data);
        let room = place.len;
        let mut producer = Producer::<RequestKind>::new(place.clone());
        let mut consumer = Consumer::<RequestKind>::new(place);
        let mut model: VecDeque<Vec<u8>> = VecDeque::new();
        let size = |data: &Vec<u8>| HEADER_BYTES + data.len().next_multiple_of(8);
        let mut data = Vec::new();
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                Step::Push(len) => {
                    let bytes = vec![n as u8; len];
                    let fits = model.iter().map(size).sum::<usize>() + size(&bytes) <= room;
                    let pushed = producer.push(Record::new(RequestKind::Write), &bytes).unwrap();
                    prop_assert_eq!(pushed != Pushed::Full, fits);
                    if fits {
                        model.push_back(bytes);
                    }
                }
                Step::Pop => {
                    let popped = consumer.pop(&mut data).unwrap().map(|_| data.clone());
                    prop_assert_eq!(popped, model.pop_front());
                }
            }
        }
        prop_assert_eq!(producer.is_drained().unwrap(), model.is_empty());
    }

    #[test]
    fn noise_does_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..1100)) {
        noise::ring(&bytes);
    }
}
