//! Codecs: bytes and counts of file descriptors to messages and back; no I/O.

#![forbid(unsafe_code)]
