//! The vhost-user driver end with a device behind it, against any peer.

#![no_main]

#[path = "../../crates/transports/tests/noise/mod.rs"]
mod noise;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| noise::session(bytes));
