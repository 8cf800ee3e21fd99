//! Benchmarks: ratios against a peer in the same run.
#![forbid(unsafe_code)]
fn main() {}
