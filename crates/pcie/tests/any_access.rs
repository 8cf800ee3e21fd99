//! The checks of the fuzz targets, for machines without a fuzzer: drivers and clients that do
//! anything.
#![allow(clippy::unwrap_used)]

mod noise;

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
    fn registers_withstand_any_driver(bytes in bytes()) {
        noise::registers(&bytes);
    }

    #[test]
    fn the_service_withstands_any_client(bytes in bytes()) {
        noise::session(&bytes);
    }
}
