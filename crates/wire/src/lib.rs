//! Codecs: bytes and counts of file descriptors to messages and back; no I/O.
//!
//! A reader owns a [`Framer`], which says how many bytes it wants next, never past the end of the
//! current message, so that file descriptors received with a message stay with that message. A
//! complete message is a header and a borrowed payload, which the protocol's `decode` functions
//! turn into enums; `encode` appends a message to a buffer that the caller reuses.
//!
//! Deliberately absent: sockets, file descriptors themselves (only their number is checked here),
//! negotiation state and any decision about what to do with a message. Everything decoded has been
//! written by a peer that may be hostile: nothing here panics on it, and every loop and every
//! allocation has a named bound.

#![forbid(unsafe_code)]

pub mod cosim;
mod error;
mod fields;
mod framer;
pub mod vfio_user;
pub mod vhost_user;

pub use error::DecodeError;
pub use framer::{Framer, Framing};
