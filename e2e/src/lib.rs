//! End-to-end tests: real software on both sides.
#![forbid(unsafe_code)]
