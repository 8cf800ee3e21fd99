//! The checks of the fuzz targets, for machines without a fuzzer: a driver's side that says
//! anything, and a daemon that answers anything.
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

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 96,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_device_end_withstands_any_daemon(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        noise::daemon(&bytes);
    }
}
