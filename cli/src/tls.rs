//! TLS with agents: whom to trust, and what to show them.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use crate::args::AgentArgs;
use crate::exit::Usage;

/// The annotation of a pod whose agent speaks TLS; its value is the name in the agent's certificate.
pub const SERVER_NAME: &str = "tcptracer/tls-server-name";

/// What the user says of certificates.
#[derive(Clone)]
pub struct Tls {
    config: ClientTlsConfig,
    shows_certificate: bool,
}

impl Tls {
    /// Reads the files. Without `--tls-ca` there is nobody to trust, so no TLS.
    pub fn read(args: &AgentArgs) -> Result<Option<Self>> {
        let Some(ca) = &args.tls_ca else {
            return Ok(None);
        };
        let mut config = ClientTlsConfig::new().ca_certificate(certificate(ca)?);
        if let (Some(shown), Some(key)) = (&args.tls_cert, &args.tls_key) {
            config = config.identity(Identity::from_pem(certificate(shown)?, read(key)?));
        }
        Ok(Some(Self {
            config,
            shows_certificate: args.tls_cert.is_some(),
        }))
    }

    /// To an agent whose certificate has this name; to the name that is dialled if it is not given.
    pub fn with(&self, name: Option<&str>) -> ClientTlsConfig {
        match name {
            Some(name) => self.config.clone().domain_name(name),
            None => self.config.clone(),
        }
    }

    /// What may be the matter with an agent that hangs up.
    pub fn suspicion(given: Option<&Self>) -> &'static str {
        match given {
            None => "it may use TLS (--tls-ca)",
            Some(tls) if tls.shows_certificate => "it may not accept the certificate (--tls-cert)",
            Some(_) => "it may want a certificate (--tls-cert, --tls-key)",
        }
    }

    /// To the agent of a pod, of which the API server says whether it speaks TLS. Neither side is given up silently.
    pub fn with_pod(given: Option<&Self>, name: Option<&str>) -> Result<Option<ClientTlsConfig>> {
        match (given, name) {
            (None, None) => Ok(None),
            (Some(tls), Some(_)) => Ok(Some(tls.with(name))),
            (None, Some(_)) => Err(Usage(
                "it uses TLS: give --tls-ca, and --tls-cert and --tls-key if it wants a certificate".into(),
            )
            .into()),
            (Some(_), None) => Err(Usage(format!(
                "it uses no TLS, which --tls-ca asks for: its pod has no annotation {SERVER_NAME}"
            ))
            .into()),
        }
    }
}

fn certificate(path: &PathBuf) -> Result<Certificate> {
    let pem = read(path)?;
    ensure!(
        CertificateDer::pem_slice_iter(&pem).any(|found| found.is_ok()),
        "{} has no certificate (PEM)",
        path.display()
    );
    Ok(Certificate::from_pem(pem))
}

fn read(path: &PathBuf) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
