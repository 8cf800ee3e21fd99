//! TLS between the two machines, before either proves anything to the other.
//!
//! TLS 1.3 alone (RFC 8446), by `rustls`; nothing that one end has from an earlier session is used
//! again. Whoever has a certificate for the other end, an authority's or that very one, wants TLS
//! and takes nothing less. The proofs of the token that follow have this session's own secret in
//! them (RFC 8446, 7.5), so that they are worth nothing in another session.
//!
//! What it deliberately lacks: names that are looked up, lists of revoked certificates, older
//! versions of TLS.

mod carrier;
mod files;
mod pins;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use port::far::Carrier;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{AlertDescription, CertificateError, ClientConfig, ServerConfig};
use rustls::{ClientConnection, InvalidMessage, ServerConnection};
use sys::Connection;

use crate::address::Usage;
use crate::cli;
use carrier::Tls;
use files::{Identity, authorities};
use pins::Pins;

/// How long it may take until it is up: as long as the proofs after it.
pub const LIMIT: Duration = Duration::from_secs(2);
/// What the session's secret for the proofs is for.
const LABEL: &[u8] = b"EXPORTER viaduct pcie";

/// What an end does before the proofs.
pub enum Security {
    /// Nothing.
    None,
    /// As the end that listens.
    Listens(Arc<ServerConfig>),
    /// As the end that connects, to a machine of this name.
    Connects(Arc<ClientConfig>, ServerName<'static>),
}

/// What is ready for the proofs.
#[derive(Debug)]
pub struct Ready {
    /// What they and all after them go through.
    pub carrier: Box<dyn Carrier>,
    /// What only the two ends of this very session know; empty without TLS.
    pub binding: Vec<u8>,
}

/// Why there is no TLS between the two ends.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Its first bytes are none of TLS.
    #[error("the other end speaks no TLS: give it {0}")]
    Plain(&'static str),
    /// It ended.
    #[error("the other end closed before TLS was up")]
    Closed,
    /// It took too long.
    #[error("TLS was not up after {LIMIT:?}")]
    Late,
    /// One end does not take the other.
    #[error("{0}")]
    Refused(String),
    /// The system failed us.
    #[error("{0}")]
    System(#[from] io::Error),
}

impl Security {
    /// Of the end that listens. Prints what the other end may be told about our certificate.
    ///
    /// # Errors
    /// A file can't be used, or something that belongs to another is missing.
    pub fn of_listener(options: &cli::FarTls) -> Result<Self> {
        let Some(identity) = Identity::of(options)? else {
            if options.ca.is_some() || !options.pins.is_empty() {
                bail!(Usage("--listen with TLS needs --tls-cert or --tls-self-signed".into()));
            }
            return Ok(Self::None);
        };
        println!("our certificate: --tls-pin {}", identity.fingerprint());
        let provider = provider();
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_protocol_versions(&[&TLS13])?;
        let builder = if let Some(path) = &options.ca {
            let roots = Arc::new(authorities(path)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
            builder.with_client_cert_verifier(verifier.context("can't check certificates")?)
        } else if options.pins.is_empty() {
            builder.with_no_client_auth()
        } else {
            builder.with_client_cert_verifier(Arc::new(Pins::new(&options.pins, &provider)?))
        };
        let (chain, key) = identity.into_parts();
        let mut config = builder.with_single_cert(chain, key).map_err(not_ours)?;
        config.send_tls13_tickets = 0;
        Ok(Self::Listens(Arc::new(config)))
    }

    /// Of the end that connects to `address`.
    ///
    /// # Errors
    /// As of [`of_listener`](Self::of_listener).
    pub fn of_caller(options: &cli::FarTls, address: &str) -> Result<Self> {
        let identity = Identity::of(options)?;
        let provider = provider();
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_protocol_versions(&[&TLS13])?;
        let builder = match &options.ca {
            Some(path) => builder.with_root_certificates(authorities(path)?),
            None if !options.pins.is_empty() => {
                let pins = Arc::new(Pins::new(&options.pins, &provider)?);
                builder.dangerous().with_custom_certificate_verifier(pins)
            }
            None if identity.is_some() => {
                bail!(Usage("--connect with TLS needs --tls-ca or --tls-pin".into()))
            }
            None => return Ok(Self::None),
        };
        let mut config = match identity {
            Some(identity) => {
                println!("our certificate: --tls-pin {}", identity.fingerprint());
                let (chain, key) = identity.into_parts();
                builder.with_client_auth_cert(chain, key).map_err(not_ours)?
            }
            None => builder.with_no_client_auth(),
        };
        config.resumption = Resumption::disabled();
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = options.name.as_deref().unwrap_or(host).to_owned();
        let found = ServerName::try_from(name.clone());
        let name = found.map_err(|_| Usage(format!("--tls-name: '{name}' is no name")))?;
        Ok(Self::Connects(Arc::new(config), name))
    }

    /// Brings it up over `socket`.
    ///
    /// # Errors
    /// [`TlsError`]; nothing of ours was said then but what TLS says.
    pub fn over(&self, socket: Connection) -> Result<Ready, TlsError> {
        let tls = match self {
            Self::None => {
                return Ok(Ready { carrier: Box::new(socket), binding: Vec::new() });
            }
            Self::Listens(config) => ServerConnection::new(Arc::clone(config)).map(Into::into),
            Self::Connects(config, name) => {
                ClientConnection::new(Arc::clone(config), name.clone()).map(Into::into)
            }
        };
        let failed = |error: rustls::Error| self.refused(error);
        let mut tls = Tls::new(socket, tls.map_err(failed)?);
        if let Err(error) = tls.greet(Instant::now() + LIMIT) {
            return Err(match TlsError::from_io(error) {
                Ok(error) => failed(error),
                Err(error) => error,
            });
        }
        let binding = tls.binding(LABEL).map_err(failed)?.to_vec();
        Ok(Ready { carrier: Box::new(tls), binding })
    }

    fn refused(&self, error: rustls::Error) -> TlsError {
        match (error, self) {
            (
                rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType),
                Self::Listens(_),
            ) => TlsError::Plain("--tls-ca or --tls-pin"),
            (rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType), _) => {
                TlsError::Plain("--tls-cert or --tls-self-signed")
            }
            (error, _) => TlsError::Refused(Explained(&error).to_string()),
        }
    }
}

impl TlsError {
    /// What TLS says, if it is that; what else it is.
    fn from_io(error: io::Error) -> Result<rustls::Error, Self> {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => Err(Self::Closed),
            io::ErrorKind::TimedOut => Err(Self::Late),
            _ => error.downcast::<rustls::Error>().map_err(Self::System),
        }
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn not_ours(error: rustls::Error) -> anyhow::Error {
    anyhow::anyhow!("our certificate and key can't be used: {}", Explained(&error))
}

/// An error of TLS for people.
struct Explained<'a>(&'a rustls::Error);

impl fmt::Display for Explained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            rustls::Error::InvalidCertificate(why) => certificate(why, f),
            rustls::Error::NoCertificatesPresented => {
                f.write_str("the other end has no certificate: give it --tls-cert")
            }
            rustls::Error::AlertReceived(alert) => match alert {
                AlertDescription::CertificateRequired => {
                    f.write_str("the other end wants a certificate of this one: --tls-cert")
                }
                AlertDescription::UnknownCA => {
                    f.write_str("the other end knows no authority that signed our certificate")
                }
                AlertDescription::CertificateExpired => {
                    f.write_str("the other end says that our certificate is not valid now")
                }
                AlertDescription::BadCertificate | AlertDescription::CertificateUnknown => {
                    f.write_str("the other end does not accept our certificate")
                }
                AlertDescription::ProtocolVersion => f.write_str("the other end has no TLS 1.3"),
                alert => write!(f, "the other end ended TLS with alert {}", u8::from(*alert)),
            },
            rustls::Error::InvalidMessage(_) => {
                f.write_str("what the other end says makes no sense as TLS")
            }
            error => write!(f, "no TLS with the other end: {error}"),
        }
    }
}

/// What is wrong with the other end's certificate.
fn certificate(why: &CertificateError, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str("the other end's certificate ")?;
    match why {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            f.write_str("has expired")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            f.write_str("is not valid yet: are both machines' clocks right?")
        }
        CertificateError::UnknownIssuer => f.write_str("is signed by nobody in our --tls-ca"),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            f.write_str("is for another name: --tls-name says which it has")
        }
        CertificateError::BadSignature => f.write_str("has a wrong signature"),
        // The text is the library's: an authority's own certificate, used by a machine.
        CertificateError::Other(why) if why.to_string().contains("CaUsedAsEndEntity") => {
            f.write_str("is an authority's and no machine's: use --tls-pin, or have it sign one")
        }
        CertificateError::Other(why) => write!(f, "{why}"),
        why => write!(f, "is no good: {why}"),
    }
}

#[cfg(test)]
mod tests;
