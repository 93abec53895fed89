//! TLS with agents: whom to trust, and what to show them.

use std::fs;
use std::path::Path;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use crate::error::{Error, Suspicion};

/// Whom to trust, and what to show them.
#[derive(Clone, Debug)]
pub struct Tls {
    config: ClientTlsConfig,
    shows_certificate: bool,
}

impl Tls {
    /// Reads files (PEM). `ca`: whom to trust; `shown`: a certificate to show, and its key.
    pub fn read(ca: &Path, shown: Option<(&Path, &Path)>) -> Result<Self, Error> {
        let mut config = ClientTlsConfig::new().ca_certificate(certificate(ca)?);
        if let Some((shown, key)) = shown {
            config = config.identity(Identity::from_pem(certificate(shown)?, read(key)?));
        }
        Ok(Self {
            config,
            shows_certificate: shown.is_some(),
        })
    }

    /// To agents whose certificate has this name; without, it has to have the name that is dialled.
    #[must_use]
    pub fn named(&self, name: &str) -> Self {
        Self {
            config: self.config.clone().domain_name(name),
            ..*self
        }
    }

    /// As tonic takes it.
    pub(crate) fn config(&self) -> ClientTlsConfig {
        self.config.clone()
    }

    /// What may be the matter with an agent that hangs up.
    pub(crate) fn suspicion(&self) -> Suspicion {
        match self.shows_certificate {
            true => Suspicion::RejectsCertificate,
            false => Suspicion::WantsCertificate,
        }
    }
}

fn certificate(path: &Path) -> Result<Certificate, Error> {
    let pem = read(path)?;
    if !CertificateDer::pem_slice_iter(&pem).any(|found| found.is_ok()) {
        return Err(Error::NoCertificate(path.into()));
    }
    Ok(Certificate::from_pem(pem))
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::File {
        path: path.into(),
        source,
    })
}
