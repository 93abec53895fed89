//! Who may talk to the agent, and under which certificates.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustls::ClientConfig;
use tcptracer_authority::{Authority, Issued};
use tcptracer_testing::tests;
use tcptracer_testing::{DEADLINE, wait_until};
use tempfile::TempDir;

use crate::client::{Client, of};
use crate::node::Node;

tests![
    only_who_has_a_certificate_is_served,
    certificates_are_read_again,
    who_says_nothing_does_not_keep_others_out,
];

/// What a client of the agent needs that trusts `authority`, and shows `own`.
fn client(authority: &Authority, own: Option<&Issued>) -> ClientConfig {
    let mut config = authority.client(own);
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// The files of the agent.
struct Files(TempDir);

impl Files {
    fn new(issued: &Issued, client_ca: &Authority) -> Self {
        let files = Self(TempDir::new().expect("a folder for the test"));
        files.replace(issued);
        fs::write(files.path("ca"), client_ca.pem()).expect("a file");
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn replace(&self, issued: &Issued) {
        issued.write(&self.path("cert"), &self.path("key"));
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

    assert!(!is_served(&socket, client(&ours, None)));
    assert!(!is_served(
        &socket,
        client(&ours, Some(&another.issue("client")))
    ));
    assert!(!is_served(&socket, client(&another, Some(&own))));
    let agent = Client::secure(&socket, client(&ours, Some(&own))).expect("it is served");
    let mut server = node.pod("other", "db-0", serde_json::json!({}));
    let mut cart = node.pod("shop", "cart-0", serde_json::json!({}));
    agent.wait_for_pods(2);
    let mut watch = agent.watch(of("shop"));
    cart.actor.connect(server.actor.listen("127.0.0.1:0"));
    watch.events(1);
}

fn certificates_are_read_again() {
    let (old, new) = (Authority::new(), Authority::new());
    let files = Files::new(&old.issue("agent"), &old);
    let node = files.node(false);
    let socket = node.socket();
    let early = Client::secure(&socket, client(&old, None)).expect("it is served");
    early.info();
    assert!(!is_served(&socket, client(&new, None)));

    files.replace(&new.issue("agent"));
    assert!(is_served(&socket, client(&new, None)));
    assert!(!is_served(&socket, client(&old, None)));
    // Connections that were made before stay.
    early.info();

    // What cannot be used changes nothing.
    fs::write(files.path("key"), "nothing").expect("a file");
    assert!(is_served(&socket, client(&new, None)));
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

    assert!(is_served(&node.socket(), client(&ours, None)));
    let mut first = &idle[0];
    first
        .set_read_timeout(Some(DEADLINE))
        .expect("a deadline can be set");
    assert_eq!(first.read(&mut [0]).expect("its end"), 0);
}
