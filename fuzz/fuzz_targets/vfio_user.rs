//! vfio-user messages: decoding never panics and is undone by encoding.

#![no_main]

#[path = "../../crates/wire/tests/stability/mod.rs"]
#[allow(dead_code, reason = "the other target uses the rest")]
mod stability;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| stability::vfio_user(bytes));
