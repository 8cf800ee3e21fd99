//! The checks of the fuzz targets, for machines without a fuzzer: rings that hold anything.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used)]

mod noise;
mod rig;

use proptest::prelude::*;
use virtqueue::RingFormat;

/// Long enough for some hundred steps.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..2000)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1024,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn split_rings_of_a_hostile_driver(bytes in bytes()) {
        noise::hostile_driver(RingFormat::Split, &bytes);
    }

    #[test]
    fn packed_rings_of_a_hostile_driver(bytes in bytes()) {
        noise::hostile_driver(RingFormat::Packed, &bytes);
    }

    #[test]
    fn split_rings_of_a_hostile_device(bytes in bytes()) {
        noise::hostile_device(RingFormat::Split, &bytes);
    }

    #[test]
    fn packed_rings_of_a_hostile_device(bytes in bytes()) {
        noise::hostile_device(RingFormat::Packed, &bytes);
    }

    #[test]
    fn records_of_split_rings_that_say_anything(bytes in bytes()) {
        noise::hostile_record(RingFormat::Split, &bytes);
    }

    #[test]
    fn records_of_packed_rings_that_say_anything(bytes in bytes()) {
        noise::hostile_record(RingFormat::Packed, &bytes);
    }
}
