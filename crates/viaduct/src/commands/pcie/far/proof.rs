//! Two programs prove to each other that they know the same token, which never crosses the wire.
//!
//! ```text
//!   --listen                                            --connect
//!     | -- greeting: magic, byte order, 32 random bytes ---> |   48 bytes each way, at once
//!     | <- greeting ---------------------------------------- |
//!     | <- HMAC("connects", both greetings) ---------------- |   32 bytes
//!     | -- HMAC("listens", both greetings) ----------------> |   only if the other was right
//! ```
//!
//! HMAC-SHA256 with the token as its key (RFC 2104). Each side's random bytes are in both proofs,
//! so that none can be used twice; the word in front keeps one side's from being sent back to it.
//! Without a token the key is empty, so that one end with a token never talks to one without.
//!
//! With TLS underneath both proofs have a secret of that very session in them too, so that whoever
//! sits between two sessions can't hand a proof from one to the other.
//!
//! What it deliberately lacks: any protection of what follows. Without TLS whoever can change
//! packets on the way can take the connection over after the proofs.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use hmac::{Hmac, Mac};
use port::far::Carrier;
use sha2::Sha256;
use sys::Received;

use super::tls::{Ready, TlsError};

/// How long all of it may take.
pub const LIMIT: Duration = Duration::from_secs(2);
/// Fewest bytes of a token: whoever hears a proof can try tokens at home.
pub const LEAST_TOKEN: usize = 16;
/// Most bytes of a token.
pub const MOST_TOKEN: usize = 4096;

const MAGIC: [u8; 8] = *b"VDfar\0\0\x01";
const BYTE_ORDER: u32 = 0x0102_0304;
const GREETING: usize = 48;
const PROOF: usize = 32;

/// A secret that both ends know; empty if there is none.
#[derive(Clone, Default)]
pub struct Token(Vec<u8>);

/// Why the other end is not let in, or does not let us in.
#[derive(Debug, thiserror::Error)]
pub enum NotProved {
    /// What it says is no greeting.
    #[error("whoever is there is no 'viaduct pcie' of this version")]
    Stranger,
    /// It speaks TLS, which this end does not.
    #[error("the other end speaks TLS: give this one --tls-pin, --tls-ca or --tls-cert")]
    Secured,
    /// TLS did not come up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Its numbers are the other way round.
    #[error("the other machine has another byte order")]
    ByteOrder,
    /// Its proof is wrong.
    #[error("the other end has another token")]
    Token,
    /// It does not accept ours.
    #[error("the other end closed: it has another token, or another model is attached")]
    Closed,
    /// There is one already.
    #[error("another one is there")]
    Busy,
    /// It says nothing.
    #[error("the other end said nothing for {LIMIT:?}")]
    Late,
    /// The system failed us.
    #[error("{0}")]
    System(#[from] io::Error),
}

impl Token {
    /// From what a file or a variable has; white space around it does not count.
    ///
    /// # Errors
    /// It is too short or too long; the message says so.
    pub fn new(text: &[u8]) -> Result<Self, String> {
        let token = text.trim_ascii();
        if !(LEAST_TOKEN..=MOST_TOKEN).contains(&token.len()) {
            let len = token.len();
            return Err(format!(
                "the token has {len} bytes, expected {LEAST_TOKEN} to {MOST_TOKEN}; \
                 make one with: head -c 32 /dev/urandom | base64 > FILE"
            ));
        }
        Ok(Self(token.to_vec()))
    }

    /// Whether there is none.
    pub fn is_none(&self) -> bool {
        self.0.is_empty()
    }

    fn mac(&self, role: &[u8], greetings: [&[u8]; 3]) -> Result<Hmac<Sha256>, NotProved> {
        let mac = Hmac::<Sha256>::new_from_slice(&self.0);
        let mut mac = mac.map_err(|_| NotProved::Token)?;
        mac.update(role);
        greetings.iter().for_each(|greeting| mac.update(greeting));
        Ok(mac)
    }
}

/// Proves it to whoever has connected, and has it proved.
pub fn to_caller(ready: &mut Ready, token: &Token) -> Result<(), NotProved> {
    let end = Instant::now() + LIMIT;
    let Ready { carrier, binding } = ready;
    let (ours, theirs) = greet(&mut **carrier, end)?;
    let proof = take::<PROOF>(&mut **carrier, end)?;
    let expected = token.mac(b"connects", [&ours, &theirs, binding])?;
    // In constant time: how much of it is right is nobody's business.
    expected.verify_slice(&proof).map_err(|_| NotProved::Token)?;
    let proof = token.mac(b"listens", [&ours, &theirs, binding])?.finalize().into_bytes();
    say(&mut **carrier, &proof, end)
}

/// Proves it to whoever listens, and has it proved.
pub fn to_listener(ready: &mut Ready, token: &Token) -> Result<(), NotProved> {
    let end = Instant::now() + LIMIT;
    let Ready { carrier, binding } = ready;
    let (ours, theirs) = greet(&mut **carrier, end)?;
    let proof = token.mac(b"connects", [&theirs, &ours, binding])?.finalize().into_bytes();
    say(&mut **carrier, &proof, end)?;
    let proof = take::<PROOF>(&mut **carrier, end)?;
    let expected = token.mac(b"listens", [&theirs, &ours, binding])?;
    expected.verify_slice(&proof).map_err(|_| NotProved::Token)
}

/// Says our greeting and hears the other's.
fn greet(
    carrier: &mut dyn Carrier,
    end: Instant,
) -> Result<([u8; GREETING], [u8; GREETING]), NotProved> {
    let mut ours = [0; GREETING];
    ours[..8].copy_from_slice(&MAGIC);
    ours[8..12].copy_from_slice(&BYTE_ORDER.to_ne_bytes());
    std::fs::File::open("/dev/urandom")?.read_exact(&mut ours[16..])?;
    say(carrier, &ours, end)?;
    let theirs = take::<GREETING>(carrier, end)?;
    if is_tls(&theirs) {
        return Err(NotProved::Secured);
    }
    if theirs[..8] != MAGIC {
        return Err(NotProved::Stranger);
    }
    if theirs[8..12] != ours[8..12] {
        return Err(NotProved::ByteOrder);
    }
    Ok((ours, theirs))
}

/// Says `bytes`; what is left in the carrier goes with what is said later, or while we listen.
fn say(carrier: &mut dyn Carrier, bytes: &[u8], end: Instant) -> Result<(), NotProved> {
    let mut sent = 0;
    while sent < bytes.len() {
        let taken = match carrier.send(&bytes[sent..]) {
            Err(error) => return Err(last_words(carrier, error)),
            taken => taken?,
        };
        match taken {
            Some(len) => sent += len,
            None => late(sys::wait_for_room(carrier.as_fd(), left(end)?))?,
        }
    }
    Ok(())
}

/// Why the other end takes nothing any more: what it said before, or what the system says.
fn last_words(carrier: &mut dyn Carrier, error: io::Error) -> NotProved {
    match carrier.receive(&mut [0; 1]) {
        Err(why) => why.into(),
        Ok(Received::Closed) => NotProved::Closed,
        Ok(_) => error.into(),
    }
}

fn take<const N: usize>(carrier: &mut dyn Carrier, end: Instant) -> Result<[u8; N], NotProved> {
    let (mut bytes, mut have) = ([0; N], 0);
    while have < N {
        match carrier.receive(&mut bytes[have..])? {
            Received::Bytes(len) => have += len,
            Received::Closed if is_tls(&bytes[..have]) => return Err(NotProved::Secured),
            Received::Closed => return Err(NotProved::Closed),
            Received::Nothing => {
                carrier.flush()?;
                sys::wait_for_any(&[carrier.as_fd()], left(end)?)?;
            }
        }
    }
    Ok(bytes)
}

/// Whether these are the first bytes of whoever begins TLS, or says that it does not begin (RFC
/// 8446, 5.1: a handshake or an alert, then 3, the higher byte of all versions).
fn is_tls(bytes: &[u8]) -> bool {
    matches!(bytes, [0x15 | 0x16, 3, ..])
}

fn late(waited: io::Result<()>) -> Result<(), NotProved> {
    waited.map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => NotProved::Late,
        _ => error.into(),
    })
}

fn left(end: Instant) -> Result<Duration, NotProved> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(NotProved::Late) } else { Ok(left) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sys::Connection;

    fn plain(socket: Connection) -> Ready {
        Ready { carrier: Box::new(socket), binding: Vec::new() }
    }

    fn token(text: &str) -> Token {
        Token::new(text.as_bytes()).unwrap()
    }

    /// What both ends say when they have these tokens.
    fn meet(listens: Token, connects: Token) -> [Result<(), NotProved>; 2] {
        let (a, b) = Connection::pair().unwrap();
        let caller = std::thread::spawn(move || to_listener(&mut plain(b), &connects));
        let listener = to_caller(&mut plain(a), &listens);
        [listener, caller.join().unwrap()]
    }

    #[test]
    fn the_same_token_opens_and_no_other_does() {
        let (one, two) = ("0123456789abcdef", "0123456789abcdeg");
        assert!(meet(token(one), token(&format!("{one}\n"))).iter().all(Result::is_ok));
        assert!(meet(Token::default(), Token::default()).iter().all(Result::is_ok));
        for (a, b) in [(token(one), token(two)), (token(one), Token::default())] {
            for [listener, caller] in [meet(a.clone(), b.clone()), meet(b, a)] {
                assert!(matches!(listener, Err(NotProved::Token)), "{listener:?}");
                assert!(matches!(caller, Err(NotProved::Closed)), "{caller:?}");
            }
        }
        assert!(Token::new(b"short").is_err() && Token::new(&[b'x'; MOST_TOKEN + 1]).is_err());
    }

    #[test]
    fn what_we_say_ourselves_proves_nothing() {
        // A mirror: everything comes back.
        let (a, b) = Connection::pair().unwrap();
        let mirror = std::thread::spawn(move || {
            let mut bytes = [0; 256];
            while b.wait_readable(LIMIT).is_ok() {
                match b.receive(&mut bytes, &mut Vec::new()) {
                    Ok(Received::Bytes(len)) => b.send_all(&bytes[..len], &[], LIMIT).unwrap(),
                    _ => break,
                }
            }
        });
        let mut ready = plain(a);
        let found = to_listener(&mut ready, &token("0123456789abcdef"));
        assert!(matches!(found, Err(NotProved::Token)), "{found:?}");
        drop(ready);
        mirror.join().unwrap();
    }

    #[test]
    fn strangers_are_turned_away_in_bounded_time() {
        for (bytes, expected) in [
            (vec![b'x'; 100], "no 'viaduct pcie'"),
            ([&MAGIC[..], &BYTE_ORDER.swap_bytes().to_ne_bytes(), &[0; 36]].concat(), "byte order"),
            ([&MAGIC[..], &BYTE_ORDER.to_ne_bytes(), &[0; 36 + 32]].concat(), "another token"),
            ([&[0x16, 3, 1][..], &[0; 60]].concat(), "speaks TLS"),
            (MAGIC.to_vec(), "said nothing"),
        ] {
            let (a, b) = Connection::pair().unwrap();
            b.send_all(&bytes, &[], LIMIT).unwrap();
            let begin = Instant::now();
            let error =
                to_caller(&mut plain(a), &token("0123456789abcdef")).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} and not {expected}");
            assert!(begin.elapsed() < 2 * LIMIT);
        }
    }
}
