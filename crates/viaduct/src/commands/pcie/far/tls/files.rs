//! Certificates and keys in files, as PEM (RFC 7468).

use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use rustls::RootCertStore;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::pins::Fingerprint;
use crate::cli;

/// The name in a certificate of our own making.
const OWN_NAME: &str = "viaduct";
/// Most certificates in a file: a chain has a few, a system's list of authorities some hundreds.
const MAX_CERTIFICATES: usize = 1024;

/// Who this end is.
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// As `options` say; `None` if they don't.
    ///
    /// # Errors
    /// A file can't be read, or has not what it should.
    pub fn of(options: &cli::FarTls) -> Result<Option<Self>> {
        let (cert, key) = match (&options.cert, &options.self_signed) {
            (Some(cert), _) => (cert, options.key.as_ref().unwrap_or(cert)),
            (None, Some(path)) => {
                make(path)?;
                (path, path)
            }
            (None, None) => return Ok(None),
        };
        let chain = certificates(cert)?;
        let shown = key.display();
        let found = PrivateKeyDer::from_pem_file(key);
        let found = found.map_err(|error| unreadable(key, "private key", error))?;
        if key.metadata().is_ok_and(|data| data.permissions().mode() & 0o004 != 0) {
            tracing::warn!("everybody on this machine can read {shown}: chmod 600 it");
        }
        Ok(Some(Self { chain, key: found }))
    }

    pub fn fingerprint(&self) -> Fingerprint {
        // A chain has one at least.
        Fingerprint::of(&self.chain[0])
    }

    pub fn into_parts(self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (self.chain, self.key)
    }
}

/// Who may sign the other end's certificate.
///
/// # Errors
/// The file can't be read, or there is none in it.
pub fn authorities(path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        let added = roots.add(certificate);
        added.map_err(|why| anyhow!("{}: {}", path.display(), super::Explained(&why)))?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let failed = |error| unreadable(path, "certificate", error);
    let found = CertificateDer::pem_file_iter(path).map_err(failed)?;
    let found: Result<Vec<_>, _> = found.take(MAX_CERTIFICATES + 1).collect();
    let found = found.map_err(failed)?;
    match found.len() {
        0 => Err(failed(PemError::NoItemsFound)),
        1..=MAX_CERTIFICATES => Ok(found),
        _ => bail!("{} has more than {MAX_CERTIFICATES} certificates", path.display()),
    }
}

fn unreadable(path: &Path, what: &str, error: PemError) -> anyhow::Error {
    let shown = path.display();
    match error {
        PemError::Io(error) => anyhow::Error::new(error).context(format!("can't read {shown}")),
        PemError::NoItemsFound => anyhow!("{shown} has no {what} in PEM"),
        _ => anyhow!("{shown} is no PEM"),
    }
}

/// Makes a certificate that nobody else signed, with its key, where there is no file yet.
fn make(path: &Path) -> Result<()> {
    let shown = path.display();
    if path.exists() {
        return Ok(());
    }
    let text = own().context("can't make a certificate")?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    // Only for us to read, and whole or not there at all.
    let mut file = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))
        .with_context(|| format!("can't write {shown}"))?;
    file.write_all(text.as_bytes()).with_context(|| format!("can't write {shown}"))?;
    match file.persist_noclobber(path) {
        // Somebody was quicker.
        Err(error) if error.error.kind() != ErrorKind::AlreadyExists => {
            Err(error.error).with_context(|| format!("can't write {shown}"))
        }
        _ => Ok(()),
    }
}

fn own() -> Result<String, rcgen::Error> {
    let mut params = rcgen::CertificateParams::new([OWN_NAME.to_owned()])?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, OWN_NAME);
    let key = rcgen::KeyPair::generate()?;
    Ok(params.self_signed(&key)?.pem() + &key.serialize_pem())
}
