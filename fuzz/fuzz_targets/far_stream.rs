//! Another machine that says anything, in pieces of any length.

#![no_main]

#[path = "../../crates/port/tests/stream/mod.rs"]
mod stream;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| stream::withstands(bytes));
