//! The other end's certificate by its fingerprint, whoever signed it.
//!
//! What it deliberately lacks: dates and names. Whoever names this very certificate trusts its key
//! until told otherwise.

use std::fmt;
use std::sync::Arc;

use anyhow::Result;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    PeerIncompatible, SignatureScheme,
};
use sha2::{Digest, Sha256};

use crate::address::Usage;

/// SHA-256 of a certificate, as `openssl x509 -fingerprint -sha256` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate).into())
    }

    /// Reads `sha256:` and 64 hexadecimal digits, with or without colons between them.
    pub fn parse(text: &str) -> Result<Self, Usage> {
        let digits: String = match text.split_once(':') {
            Some(("sha256", digits)) => digits.chars().filter(|c| *c != ':').collect(),
            _ => String::new(),
        };
        let mut bytes = [0; 32];
        let is_whole = digits.len() == 64 && digits.bytes().all(|c| c.is_ascii_hexdigit());
        for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)).filter(|_| is_whole) {
            *byte = u8::from_str_radix(&digits[at..at + 2], 16).unwrap_or_default();
        }
        if is_whole {
            return Ok(Self(bytes));
        }
        Err(Usage(format!("--tls-pin {text}: expected sha256: and 64 hexadecimal digits")))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Accepts certificates of these fingerprints and no other.
#[derive(Debug)]
pub struct Pins {
    known: Vec<Fingerprint>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// The other end has another certificate.
#[derive(Debug, thiserror::Error)]
#[error("is {0}, and not what our --tls-pin says")]
struct Another(Fingerprint);

impl Pins {
    pub fn new(texts: &[String], provider: &CryptoProvider) -> Result<Self, Usage> {
        let known = texts.iter().map(|text| Fingerprint::parse(text)).collect::<Result<_, _>>()?;
        Ok(Self { known, algorithms: provider.signature_verification_algorithms })
    }

    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let found = Fingerprint::of(certificate);
        if self.known.contains(&found) {
            return Ok(());
        }
        Err(CertificateError::Other(OtherError(Arc::new(Another(found)))).into())
    }

    /// That the other end has the certificate's key too.
    fn signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }
}

/// Older versions are not offered.
const NO_TLS12: Error = Error::PeerIncompatible(PeerIncompatible::Tls12NotOfferedOrEnabled);

impl ServerCertVerifier for Pins {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(NO_TLS12)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Pins {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(NO_TLS12)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
