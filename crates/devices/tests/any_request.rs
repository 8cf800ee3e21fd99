//! The checks of the fuzz targets, for machines without a fuzzer: drivers that ask for anything.
#![allow(clippy::unwrap_used)]

mod noise;
mod rig;

use proptest::prelude::*;

/// Long enough for some dozen requests.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..1500)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 192,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_disk_withstands_any_request(bytes in bytes()) {
        noise::disk(&bytes);
    }

    #[test]
    fn a_network_card_withstands_any_frame_and_command(bytes in bytes()) {
        noise::net(&bytes);
    }

    #[test]
    fn a_console_withstands_any_buffer(bytes in bytes()) {
        noise::console(&bytes);
    }

    #[test]
    fn random_numbers_withstand_any_buffer(bytes in bytes()) {
        noise::entropy(&bytes);
    }
}
