//! What must hold whatever the other side of a ring writes: no panic, no end that does not come.
//! Shared by the property test and the fuzz target.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use mem::Mapping;
use mem::sync::{AtomicU64, Ordering};
use port::ring::{Consumer, Place, Producer, Pushed};
use wire::cosim::{AnswerKind, Area, OFFSETS, Record, RequestKind, RingOffsets};

const RING: usize = Area::LEAST_RING as usize;

/// A fresh area, and a place in it.
pub fn place(control: RingOffsets, data: usize) -> Place {
    let area = Area { ring_bytes: RING as u32 };
    let mapping = Mapping::new_memfd("ring", area.len()).unwrap();
    let words = Arc::new(mapping.table::<AtomicU64>(0, area.len() / 8).unwrap());
    Place { words, control, data, len: RING }
}

/// Treats `bytes` as words that a peer stores into control words and data, with our side's calls
/// between them.
pub fn ring(bytes: &[u8]) {
    let answers = place(OFFSETS.answers, OFFSETS.data + RING);
    let requests = Place { control: OFFSETS.requests, data: OFFSETS.data, ..answers.clone() };
    let words = Arc::clone(&answers.words);
    let mut consumer = Consumer::<AnswerKind>::new(answers);
    let mut producer = Producer::<RequestKind>::new(requests);
    let mut data = Vec::new();
    for step in bytes.chunks_exact(11) {
        let mut word = [0; 8];
        word.copy_from_slice(&step[3..]);
        let place = match step[0] % 4 {
            0 => OFFSETS.answers.produced / 8,
            1 => OFFSETS.requests.consumed / 8,
            2 => (OFFSETS.data + RING) / 8 + usize::from(step[1]),
            _ => usize::from(u16::from_le_bytes([step[1], step[2]])) % words.len(),
        };
        words[place].store(u64::from_le_bytes(word), Ordering::Relaxed);
        for _ in 0..4 {
            match consumer.pop(&mut data) {
                Ok(Some(record)) => assert_eq!(data.len(), record.data_len as usize),
                Ok(None) | Err(_) => break,
            }
        }
        let _ = (consumer.sleep(), consumer.give_room());
        let record = Record::new(RequestKind::Write);
        if producer.push(record, &step[..usize::from(step[0] % 11)]) == Ok(Pushed::Full) {
            let _ = producer.wait_for_room();
        }
        let _ = producer.is_drained();
    }
}
