//! Who may talk to the agent, and under which certificates.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;

use crate::client::{Client, of};
use crate::node::Node;
use crate::support::{DEADLINE, wait_until};
use crate::tests;

tests![
    only_who_has_a_certificate_is_served,
    certificates_are_read_again,
    who_says_nothing_does_not_keep_others_out,
];

/// Issues certificates.
struct Authority(rcgen::CertifiedIssuer<'static, rcgen::KeyPair>);

/// A certificate and its key, PEM.
struct Issued(String, String);

impl Authority {
    fn new() -> Self {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().expect("a key");
        Self(rcgen::CertifiedIssuer::self_signed(params, key).expect("an authority"))
    }

    fn issue(&self, name: &str) -> Issued {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec![name.into()]).expect("a name");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        Issued(certificate.pem(), key.serialize_pem())
    }

    /// What a client needs that trusts it, and shows `own`.
    fn client(&self, own: Option<&Issued>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).expect("a certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions of TLS")
            .with_root_certificates(roots);
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some(Issued(certificate, key)) => {
                let certificate = CertificateDer::from_pem_slice(certificate.as_bytes());
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes());
                builder
                    .with_client_auth_cert(
                        vec![certificate.expect("a certificate")],
                        key.expect("a key"),
                    )
                    .expect("they belong together")
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }
}

/// The files of the agent.
struct Files(TempDir);

impl Files {
    fn new(issued: &Issued, client_ca: &Authority) -> Self {
        let files = Self(TempDir::new().expect("a folder for the test"));
        files.replace(issued);
        fs::write(files.path("ca"), client_ca.0.pem()).expect("a file");
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn replace(&self, Issued(certificate, key): &Issued) {
        fs::write(self.path("cert"), certificate).expect("a file");
        fs::write(self.path("key"), key).expect("a file");
    }

    /// An agent that uses them, and asks for certificates if `mutual`.
    fn node(&self, mutual: bool) -> Node {
        let [cert, key, ca] =
            ["cert", "key", "ca"].map(|name| self.path(name).display().to_string());
        let mut options = vec!["--tls-cert", &cert, "--tls-key", &key];
        if mutual {
            options.extend(["--tls-client-ca", &ca]);
        }
        Node::with(&options)
    }
}

/// Whether the agent serves who connects like that.
fn is_served(socket: &Path, config: ClientConfig) -> bool {
    Client::secure(socket, config).is_ok_and(|client| client.try_info().is_ok())
}

fn only_who_has_a_certificate_is_served() {
    let (ours, another) = (Authority::new(), Authority::new());
    let files = Files::new(&ours.issue("agent"), &ours);
    let mut node = files.node(true);
    let socket = node.socket();
    let own = ours.issue("client");

    assert!(!is_served(&socket, ours.client(None)));
    assert!(!is_served(
        &socket,
        ours.client(Some(&another.issue("client")))
    ));
    assert!(!is_served(&socket, another.client(Some(&own))));
    let agent = Client::secure(&socket, ours.client(Some(&own))).expect("it is served");
    let mut server = node.pod("other", "db-0", serde_json::json!({}));
    let mut client = node.pod("shop", "cart-0", serde_json::json!({}));
    agent.wait_for_pods(2);
    let mut watch = agent.watch(of("shop"));
    client.actor.connect(server.actor.listen("127.0.0.1:0"));
    watch.events(1);
}

fn certificates_are_read_again() {
    let (old, new) = (Authority::new(), Authority::new());
    let files = Files::new(&old.issue("agent"), &old);
    let node = files.node(false);
    let socket = node.socket();
    let early = Client::secure(&socket, old.client(None)).expect("it is served");
    early.info();
    assert!(!is_served(&socket, new.client(None)));

    files.replace(&new.issue("agent"));
    assert!(is_served(&socket, new.client(None)));
    assert!(!is_served(&socket, old.client(None)));
    // Connections that were made before stay.
    early.info();

    // What cannot be used changes nothing.
    fs::write(files.path("key"), "nothing").expect("a file");
    assert!(is_served(&socket, new.client(None)));
    let told = "TLS files have changed and cannot be used: --tls-key: cannot read";
    wait_until("it is told", || {
        node.agent.log.try_iter().any(|line| line.contains(told))
    });
}

/// More of them than handshakes that may go on at a time.
fn who_says_nothing_does_not_keep_others_out() {
    let ours = Authority::new();
    let files = Files::new(&ours.issue("agent"), &ours);
    let node = files.node(false);
    let idle: Vec<_> = (0..400)
        .map(|_| UnixStream::connect(node.socket()).expect("the agent listens"))
        .collect();

    assert!(is_served(&node.socket(), ours.client(None)));
    let mut first = &idle[0];
    first
        .set_read_timeout(Some(DEADLINE))
        .expect("a deadline can be set");
    assert_eq!(first.read(&mut [0]).expect("its end"), 0);
}
