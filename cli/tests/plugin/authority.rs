//! Certificates, and files of them.

use std::sync::Arc;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{self, ServerConfig};
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

/// Certificates for one test.
pub struct Authority {
    issuer: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
    folder: TempDir,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().expect("a key");
        Self {
            issuer: rcgen::CertifiedIssuer::self_signed(params, key).expect("an authority"),
            folder: tempfile::tempdir().expect("a folder"),
        }
    }

    fn issue(&self, name: &str) -> (String, String) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec![name.into()]).expect("a name");
        let certificate = params.signed_by(&key, &self.issuer);
        (
            certificate.expect("a certificate").pem(),
            key.serialize_pem(),
        )
    }

    /// What a server of any kind needs that has this name.
    pub fn acceptor(&self, name: &str) -> TlsAcceptor {
        let (certificate, key) = self.issue(name);
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes());
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.expect("a certificate")],
                key.expect("a key"),
            );
        Arc::new(config.expect("they fit")).into()
    }

    /// What an agent needs that has this name.
    pub fn server(&self, name: &str) -> ServerTlsConfig {
        let (certificate, key) = self.issue(name);
        ServerTlsConfig::new().identity(Identity::from_pem(certificate, key))
    }

    /// The same, of one that wants to see a certificate.
    pub fn strict_server(&self, name: &str) -> ServerTlsConfig {
        self.server(name)
            .client_ca_root(Certificate::from_pem(self.issuer.pem()))
    }

    fn file(&self, name: &str, content: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).expect("a file");
        path.display().to_string()
    }

    pub fn ca(&self) -> String {
        self.file("ca.pem", &self.issuer.pem())
    }

    /// The files of a client's certificate and its key.
    pub fn client(&self) -> (String, String) {
        let (certificate, key) = self.issue("client");
        (
            self.file("client.pem", &certificate),
            self.file("client.key", &key),
        )
    }
}
