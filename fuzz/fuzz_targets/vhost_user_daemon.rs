//! The vhost-user device end, against a daemon that answers anything.

#![no_main]

#[path = "../../crates/transports/tests/noise/mod.rs"]
mod noise;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| noise::daemon(bytes));
