//! The checks of the fuzz targets, with a generator that does not need coverage to get deep:
//! numbers in messages are mostly small, and every kind of message is chosen equally often.

mod stability;

use proptest::prelude::*;

/// Bytes of a payload: whole words that are small, huge or anything.
fn payload() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        4 => 0u32..4,
        2 => 0u32..300,
        1 => Just(u32::MAX),
        1 => any::<u32>(),
    ];
    let words = prop::collection::vec(word, 0..40);
    (words, prop::collection::vec(any::<u8>(), 0..9)).prop_map(|(words, tail)| {
        words.into_iter().flat_map(u32::to_ne_bytes).chain(tail).collect()
    })
}

/// A choice of direction, kind and number of descriptors, and a payload.
fn message(kinds: u8) -> impl Strategy<Value = Vec<u8>> {
    (any::<bool>(), 0..kinds, 0u8..4, payload())
        .prop_map(|(reply, kind, fds, payload)| [&[reply.into(), kind, fds], &payload[..]].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn vhost_user_messages_survive_a_round(bytes in message(48)) {
        stability::vhost_user(&bytes);
    }

    #[test]
    fn vfio_user_messages_survive_a_round(bytes in message(20)) {
        stability::vfio_user(&bytes);
    }

    #[test]
    fn noise_does_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        stability::vhost_user(&bytes);
        stability::vfio_user(&bytes);
        stability::cosim(&bytes);
    }

    #[test]
    fn capabilities_made_of_json_pieces_survive_a_round(
        pieces in prop::collection::vec(prop::sample::select(PIECES), 0..24),
    ) {
        let text = pieces.concat();
        stability::vfio_user(&[&[0, 1, 0, 0, 0, 0, 0], text.as_bytes(), &[0]].concat());
        stability::vfio_user(&[&[0, 99, 0], text.as_bytes()].concat());
    }
}

const PIECES: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"",
    "\\",
    " ",
    "-",
    "0",
    "7",
    "65536",
    "1e9",
    ".",
    "true",
    "false",
    "null",
    "{\"capabilities\":{",
    "}}",
    "\"max_msg_fds\":",
    "\"twin_socket\":{",
    "\"fd_index\":",
    "\"supported\":",
    "\"write_multiple\":",
    "\"migration\":{",
    "\"pgsize\":",
];
