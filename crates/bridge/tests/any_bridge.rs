//! The checks of the fuzz targets, for machines without a fuzzer: a queue between two sides that do
//! anything.
#![allow(clippy::unwrap_used)]

mod noise;
#[path = "../../virtqueue/tests/rig/mod.rs"]
mod rig;
#[path = "../../virtqueue/tests/noise/mod.rs"]
mod rings;

use proptest::prelude::*;

/// Long enough for some hundred steps.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..2000)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 512,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn copying_keeps_two_hostile_sides_apart(bytes in bytes()) {
        noise::copying(&bytes);
    }

    #[test]
    fn translating_keeps_two_hostile_sides_apart(bytes in bytes()) {
        noise::translating(&bytes);
    }

    #[test]
    fn messages_keep_two_hostile_sides_apart(bytes in bytes()) {
        noise::far_away(&bytes);
    }
}
