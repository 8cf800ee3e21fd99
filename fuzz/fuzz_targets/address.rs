//! What people type: addresses of ends and settings.

#![no_main]

#[path = "../../crates/viaduct/src/address.rs"]
#[allow(dead_code, reason = "the program uses the rest")]
mod address;

use address::{Address, settings};

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(first) = Address::parse(text) {
        // Written out with every setting by name it says the same.
        let values = first.values.iter().map(|(key, value)| format!(",{key}={}", value.text));
        let again = format!("{}:{}", first.scheme, values.collect::<String>());
        assert_eq!(Address::parse(&again).expect("what was read can be written"), first);
        let _parameters = first.parameters();
    }
    let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
    let _settings = settings(&words);
});
