//! TLS with agents: by an address, and through the API server.

use serde_json::json;
use tcptracer_authority::Authority;
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

use crate::agent::{Agent, connect};
use crate::api::Api;
use crate::plugin::{Ended, Plugin, command};

/// What an agent needs that has this name.
fn server(authority: &Authority, name: &str) -> ServerTlsConfig {
    let issued = authority.issue(name);
    ServerTlsConfig::new().identity(Identity::from_pem(issued.certificate, issued.key))
}

/// The same, of one that wants to see a certificate.
fn strict(authority: &Authority, name: &str) -> ServerTlsConfig {
    server(authority, name).client_ca_root(Certificate::from_pem(authority.pem()))
}

#[tokio::test]
async fn with_one_agent_on_both_sides() {
    let authority = Authority::new();
    let agent = Agent::with_tls("node-1", strict(&authority, "agent.test")).await;
    let (ca, (certificate, key)) = (authority.ca(), authority.files("client"));
    let stranger = Authority::new();
    let (other, (their_certificate, their_key)) = (stranger.ca(), stranger.files("client"));
    let shown = ["--tls-cert", &certificate, "--tls-key", &key];
    let strange = ["--tls-cert", &their_certificate, "--tls-key", &their_key];
    let name = ["--tls-server-name", "agent.test"];
    let ask = |args: Vec<&[&str]>| {
        let plugin = Plugin::of(
            &agent,
            &[&["status", "-o", "name"], &args.concat()[..]].concat(),
        );
        plugin.ended()
    };
    assert_eq!(
        ask(vec![&["--tls-ca", &ca], &shown, &name]).await.well(),
        ["node/node-1"]
    );
    for (refused, why) in [
        (
            vec![&["--tls-ca", &ca][..], &name],
            "it may want a certificate (--tls-cert, --tls-key): ",
        ),
        (
            vec![&["--tls-ca", &other], &shown, &name],
            "invalid peer certificate: BadSignature",
        ),
        (
            vec![&["--tls-ca", &ca], &shown],
            "certificate not valid for name",
        ),
        (
            vec![&["--tls-ca", "/nonexistent"], &shown, &name],
            "cannot read /nonexistent: ",
        ),
        (
            vec![&["--tls-ca", &key], &shown, &name],
            "client.key has no certificate (PEM)",
        ),
        (
            vec![&["--tls-ca", &ca], &strange, &name],
            "it may not accept the certificate (--tls-cert): ",
        ),
        (vec![], "it may use TLS (--tls-ca): "),
    ] {
        let ended = ask(refused).await;
        assert_eq!((ended.code, &ended.out[..]), (Some(1), &[][..]), "{why}");
        let [line] = &ended.err[..] else {
            panic!("one line for {why}: {:?}", ended.err);
        };
        assert!(line.contains(why), "{line}");
    }
}

#[tokio::test]
async fn over_a_socket_in_the_file_system() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("agent.sock");
    let _agent = Agent::on_with_tls(&path, "node-1", server(&authority, "localhost"));
    let address = format!("unix:{}", path.display());
    let ask = |args: &[&str]| {
        let args = [&["--server", &address, "status", "-o", "name"], args].concat();
        Plugin::start(&args).ended()
    };
    let ca = authority.ca();
    assert_eq!(ask(&["--tls-ca", &ca]).await.well(), ["node/node-1"]);
    assert_eq!(ask(&[]).await.code, Some(1));
}

const NAME: &str = "tcptracer-agent.tcptracer.svc";

#[tokio::test]
async fn through_the_cluster() {
    let authority = Authority::new();
    let api = Api::start().await;
    let mut one = Agent::with_tls("n1", strict(&authority, NAME)).await;
    let mut two = Agent::with_tls("n2", strict(&authority, NAME)).await;
    api.agent_with_tls("agent-1", "n1", one.address, NAME);
    api.agent_with_tls("agent-2", "n2", two.address, NAME);
    api.pod("shop", "web-0", "n1", json!({}));
    let (ca, (certificate, key)) = (authority.ca(), authority.files("client"));
    let tls = [
        "--tls-ca",
        &ca,
        "--tls-cert",
        &certificate,
        "--tls-key",
        &key,
    ];
    let with_tls = |args: &[&str]| api.plugin(&[&tls, args].concat());

    let status = with_tls(&["status", "-o", "name"]).ended().await;
    assert_eq!(status.well(), ["node/n1", "node/n2"]);
    assert_eq!(
        with_tls(&["connections", "-o", "name"])
            .ended()
            .await
            .well(),
        ["pod/a", "pod/b"]
    );
    let mut plugin = with_tls(&["-o", "name"]);
    let watch = one.watched().await;
    watch.live(0).await;
    watch.events(vec![connect("web-0", 1)]).await;
    assert_eq!(plugin.line().await, "pod/web-0");
    plugin.interrupt().await.well();

    // What is always the same may be said once.
    let mut command = command(&["--kubeconfig", &api.kubeconfig(), "status", "-o", "name"]);
    command
        .env("KUBECTL_TCPTRACER_TLS_CA", &ca)
        .env("KUBECTL_TCPTRACER_TLS_CERT", &certificate)
        .env("KUBECTL_TCPTRACER_TLS_KEY", &key);
    let status = Plugin::spawn(&mut command).ended().await;
    assert_eq!(status.well(), ["node/n1", "node/n2"]);
    assert!(one.is_left_alone() && two.is_left_alone());
}

#[tokio::test]
async fn neither_side_gives_up_tls() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let api = Api::start().await;
    let mut one = Agent::with_tls("n1", strict(&authority, NAME)).await;
    api.agent_with_tls("agent-1", "n1", one.address, NAME);
    api.pod("shop", "web-0", "n1", json!({}));
    let (ca, other) = (authority.ca(), stranger.ca());
    let (certificate, key) = authority.files("client");
    let shown = ["--tls-cert", &certificate, "--tls-key", &key];

    // There is no point in trying again what the user has to change.
    for more in [&["--last", "5"][..], &["status"], &["connections"], &[]] {
        let ended = api.plugin(&[&["-o", "name"], more].concat()).ended().await;
        let why = "the agent in the pod tcptracer/agent-1: it uses TLS: give --tls-ca, and --tls-cert and --tls-key \
                   if it wants a certificate";
        assert_eq!((ended.code, ended.err), (Some(2), vec![why.into()]));
    }
    assert_eq!(api.forwarded(), [""; 0]);

    let ask = |args: Vec<&[&str]>| {
        let args = [&["status", "-o", "name"], &args.concat()[..]].concat();
        api.plugin(&args).ended()
    };
    for (args, why) in [
        (
            vec![&["--tls-ca", &ca][..]],
            "it may want a certificate (--tls-cert, --tls-key): ",
        ),
        (
            vec![&["--tls-ca", &other], &shown],
            "invalid peer certificate: BadSignature",
        ),
    ] {
        let ended = ask(args).await;
        assert_eq!((ended.code, &ended.out[..]), (Some(1), &[][..]), "{why}");
        assert!(ended.err[0].contains(why), "{:?}", ended.err);
    }

    // The name counts, not only the authority.
    api.agent_with_tls("agent-1", "n1", one.address, "other.tcptracer.svc");
    let ended = ask(vec![&["--tls-ca", &ca], &shown]).await;
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.err[0].contains("certificate not valid for name \"other.tcptracer.svc\""),
        "{:?}",
        ended.err
    );

    // Who asks for TLS does not get less, also from some of the agents only.
    api.agent_with_tls("agent-1", "n1", one.address, NAME);
    let plain = Agent::start("n2").await;
    api.agent("agent-2", "n2", plain.address);
    let ended = ask(vec![&["--tls-ca", &ca], &shown]).await;
    assert_eq!(
        ended,
        Ended {
            code: Some(3),
            out: vec!["node/n1".into()],
            err: vec![
                "n2 refuses: the agent in the pod tcptracer/agent-2: it uses no TLS, which --tls-ca asks for: its pod \
                 has no annotation tcptracer/tls-server-name"
                    .into()
            ],
        }
    );
    assert!(one.is_left_alone());
}
