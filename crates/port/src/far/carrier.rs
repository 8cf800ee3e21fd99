//! What carries a session from one machine to the other.

use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;

use sys::{Connection, Received};

/// A stream of bytes both ways that never waits: a socket, or something on top of one. What
/// [`AsFd`] gives is what the session sleeps on.
pub trait Carrier: AsFd + Debug + Send {
    /// Reads into `bytes`. That there is nothing may be said only of a carrier that holds nothing
    /// back and whose descriptor would wake up whoever waits for it.
    ///
    /// # Errors
    /// The connection broke.
    fn receive(&mut self, bytes: &mut [u8]) -> io::Result<Received>;

    /// Takes the first bytes of `bytes`; how many, or `None` while there is no room for any.
    ///
    /// # Errors
    /// The connection broke.
    fn send(&mut self, bytes: &[u8]) -> io::Result<Option<usize>>;

    /// Whether it holds bytes that the socket had no room for.
    fn has_output(&self) -> bool {
        false
    }

    /// Sends those, as far as the socket takes them.
    ///
    /// # Errors
    /// The connection broke.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Ends it in both directions.
    fn shutdown(&mut self);
}

impl Carrier for Connection {
    fn receive(&mut self, bytes: &mut [u8]) -> io::Result<Received> {
        Self::receive(self, bytes, &mut Vec::new())
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        Self::send(self, &[IoSlice::new(bytes)], &[])
    }

    fn shutdown(&mut self) {
        Self::shutdown(self);
    }
}
