//! The checks of the fuzz target, for machines without a fuzzer: a driver's side that says
//! anything.
#![allow(clippy::unwrap_used)]

mod noise;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 512,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_driver_end_withstands_any_peer(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        noise::session(&bytes);
    }
}
