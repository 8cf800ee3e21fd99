//! Messages and records between the port and a model survive a round, and every truncation of them
//! is refused.

#[allow(dead_code, reason = "the other tests use the rest")]
mod stability;

use proptest::prelude::*;
use wire::cosim::{
    AnswerKind, BarShape, Cosim, HEADER_LEN, HEADER_WORDS, Hello, MAX_PAYLOAD, MemoryChange,
    Message, MsixShape, Record, RegionShape, RequestKind, Welcome,
};
use wire::{DecodeError, Framing};

fn hello() -> Hello {
    let mut bars = [BarShape::default(); 6];
    bars[0] = BarShape { kind: 2, prefetchable: false, size: 4096, mapped: (0, 0) };
    bars[2] = BarShape { kind: 3, prefetchable: true, size: 1 << 20, mapped: (1, 255) };
    Hello {
        flags: 1,
        bars,
        intx: true,
        msi: 4,
        msix: Some(MsixShape { vectors: 3, bar: 0, table: 0x800, pending: 0xc00 }),
        config: (0..=255).collect(),
        writable: vec![0xff; 256],
        clearable: vec![0; 256],
        name: "dma engine".into(),
    }
}

fn change() -> MemoryChange {
    let region = RegionShape { start: 0, len: 0xa0000, writable: true, file: 3, offset: 4096 };
    MemoryChange { number: 9, removed: vec![(1, 2)], added: vec![region], files: vec![3, 5] }
}

fn decode(bytes: &[u8], fds: usize) -> Result<Message, DecodeError> {
    let header = Cosim::decode_header(&bytes[..HEADER_LEN])?;
    Message::decode(&header, &bytes[HEADER_LEN..], fds)
}

#[test]
fn messages_survive_a_round_and_no_truncation_does() {
    for message in [
        Message::Hello(Box::new(hello())),
        Message::Welcome(Welcome { area_len: 0x41000, state: 7, mapped: 0 }),
        Message::Welcome(Welcome { area_len: 0x41000, state: 7, mapped: 0b101 }),
        Message::Memory(change()),
    ] {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        assert_eq!(decode(&bytes, message.fds()).as_ref(), Ok(&message));
        assert!(decode(&bytes, message.fds() + 1).is_err(), "a descriptor too many");
        for end in HEADER_LEN..bytes.len() {
            let cut = decode(&bytes[..end], message.fds());
            assert_ne!(cut.as_ref(), Ok(&message), "cut after {end} bytes");
        }
    }
    let mut bytes = Vec::new();
    Message::Refused("no room".into()).encode(&mut bytes);
    assert_eq!(decode(&bytes, 0), Ok(Message::Refused("no room".into())));
}

#[test]
fn the_largest_messages_fit() {
    let region = RegionShape { start: 0, len: 1, writable: false, file: 0, offset: 0 };
    let most = MemoryChange {
        number: 0,
        removed: vec![(0, 0); wire::cosim::MAX_REGIONS_PER_MESSAGE],
        added: vec![region; wire::cosim::MAX_REGIONS_PER_MESSAGE],
        files: vec![0; wire::cosim::MAX_FDS],
    };
    let mut bytes = Vec::new();
    Message::Memory(most).encode(&mut bytes);
    assert!(bytes.len() - HEADER_LEN <= MAX_PAYLOAD);
    let big = Hello {
        config: vec![0; 4096],
        writable: vec![0; 4096],
        clearable: vec![0; 4096],
        ..hello()
    };
    bytes.clear();
    Message::Hello(Box::new(big)).encode(&mut bytes);
    assert!(bytes.len() - HEADER_LEN <= MAX_PAYLOAD);
}

#[test]
fn impossible_shapes_are_refused() {
    let refused = |change: &dyn Fn(&mut Hello)| {
        let mut hello = hello();
        change(&mut hello);
        let mut bytes = Vec::new();
        Message::Hello(Box::new(hello)).encode(&mut bytes);
        decode(&bytes, 0).is_err()
    };
    assert!(!refused(&|_| ()));
    assert!(refused(&|hello| hello.bars[1].kind = 4));
    assert!(refused(&|hello| hello.config.push(0)));
    assert!(refused(&|hello| hello.name = "x".repeat(300)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn any_head_of_a_record_is_refused_or_survives(
        rest in any::<[u64; HEADER_WORDS - 1]>(),
        detail in any::<u16>(),
        kind in 0u64..0x90,
        len in 0u64..0x5000,
    ) {
        let first = u64::from(detail) << 48 | kind << 32 | len;
        let words = [first, rest[0], rest[1], rest[2], rest[3]];
        if let Ok(record) = Record::<RequestKind>::decode(words) {
            prop_assert_eq!(record.encode(), words);
        }
        if let Ok(record) = Record::<AnswerKind>::decode(words) {
            prop_assert_eq!(record.encode(), words);
        }
    }

    #[test]
    fn any_payload_is_refused_or_says_the_same_again(
        kind in 0u8..6,
        fds in 0u8..5,
        payload in prop::collection::vec(prop_oneof![4 => Just(0u8), 1 => any::<u8>()], 0..400),
    ) {
        stability::cosim(&[&[kind, fds], &payload[..]].concat());
    }
}
