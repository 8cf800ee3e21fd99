//! Project tasks: check, test, bench, fuzz, the private root.
#![forbid(unsafe_code)]
fn main() {}
