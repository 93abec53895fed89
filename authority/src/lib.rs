/*!
A certificate authority for tests: of the agent, and of the plugin, which is to compile without what the agent needs.
*/

// It is for tests only: what makes something new says so.
#![allow(clippy::new_without_default)]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tempfile::TempDir;

/// Issues certificates. Its files are gone with it.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

/// A certificate and its key, as PEM.
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: String,
}

impl Authority {
    /// One that nobody knows yet.
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self {
            issuer: CertifiedIssuer::self_signed(params, key).expect("an authority"),
            folder: TempDir::new().expect("a folder"),
        }
    }

    /// Its own certificate.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// The path of a file of its own certificate.
    pub fn ca(&self) -> String {
        self.file("ca.pem", &self.pem())
    }

    /// Makes a certificate for a host name or an IP address.
    pub fn issue(&self, name: &str) -> Issued {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new([name.into()]).expect("a name");
        let certificate = params.signed_by(&key, &self.issuer);
        Issued {
            certificate: certificate.expect("a certificate").pem(),
            key: key.serialize_pem(),
        }
    }

    /// The same; the paths of files of the certificate and its key.
    pub fn files(&self, name: &str) -> (String, String) {
        let Issued { certificate, key } = self.issue(name);
        (
            self.file(&format!("{name}.pem"), &certificate),
            self.file(&format!("{name}.key"), &key),
        )
    }

    /// What a server needs that has this name, and asks nobody for a certificate.
    pub fn server(&self, name: &str) -> ServerConfig {
        let (certificates, key) = self.issue(name).parse();
        ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions of TLS")
            .with_no_client_auth()
            .with_single_cert(certificates, key)
            .expect("they belong together")
    }

    /// What a client needs that trusts this authority, and shows `own`.
    pub fn client(&self, own: Option<&Issued>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("a certificate");
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions of TLS")
            .with_root_certificates(roots);
        match own.map(Issued::parse) {
            None => builder.with_no_client_auth(),
            Some((certificates, key)) => builder
                .with_client_auth_cert(certificates, key)
                .expect("they belong together"),
        }
    }

    fn file(&self, name: &str, content: &str) -> String {
        let path = self.folder.path().join(name);
        write(&path, content);
        path.display().to_string()
    }
}

impl Issued {
    /// Writes it to files.
    pub fn write(&self, certificate: &Path, key: &Path) {
        write(certificate, &self.certificate);
        write(key, &self.key);
    }

    fn parse(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let certificate = CertificateDer::from_pem_slice(self.certificate.as_bytes());
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes());
        (
            vec![certificate.expect("a certificate")],
            key.expect("a key"),
        )
    }
}

fn write(path: &Path, content: &str) {
    fs::write(path, content).expect("a file can be written");
}
