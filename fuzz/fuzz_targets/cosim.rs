//! Messages between a port and a model: decoding never panics and is undone by encoding.

#![no_main]

#[path = "../../crates/wire/tests/stability/mod.rs"]
#[allow(dead_code, reason = "the other targets use the rest")]
mod stability;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| stability::cosim(bytes));
