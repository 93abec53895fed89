//! Starting, failing, restarting and ending.

use std::collections::HashSet;
use std::fs;

use libbpf_rs::MapCore;
use nix::sys::signal::Signal;
use serde_json::json;
use tcptracer_proto::v1::EventType;
use tcptracer_proto::v1::watch_response::Message;

use crate::client::of;
use crate::node::{Node, command};
use crate::tests;

tests![
    health_and_metrics_are_served,
    what_cannot_be_used_is_refused,
    a_source_of_pods_that_fails_is_told_and_heals,
    a_signal_ends_streams_and_leaves_nothing,
    after_a_crash_nothing_stale_is_selected,
    a_full_map_is_told,
];

const LOCAL: &str = "127.0.0.1:0";

fn health_and_metrics_are_served() {
    let mut node = Node::new();
    let agent = node.client();
    let mut server = node.pod("other", "db-0", json!({}));
    let mut client = node.pod("shop", "cart-0", json!({}));
    agent.wait_for_pods(2);
    for path in ["/livez", "/readyz"] {
        assert!(node.get(path).starts_with("HTTP/1.1 200 OK"), "{path}");
    }
    let mut watch = agent.watch(of("shop"));
    client.actor.connect(server.actor.listen(LOCAL));
    watch.events(1);

    let metrics = node.get("/metrics");
    for line in [
        "tcptracer_events_total{type=\"connect\",namespace=\"shop\"} 1",
        "tcptracer_attributions_total{result=\"resolved\"} 1",
        "tcptracer_map_entries{map=\"cgroupmap\"} 1",
        "tcptracer_map_capacity{map=\"cgroupmap\"} 64",
        "tcptracer_subscribers 1",
        "tcptracer_containers 2",
        "tcptracer_pods 2",
        "tcptracer_pods_synced 1",
        "# EOF",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} in\n{metrics}");
    }
    let info = agent.info();
    assert_eq!(info.node, "node-1");
    assert!(
        info.hooks
            .iter()
            .any(|h| h.name == "tp_btf/inet_sock_set_state" && h.attached)
    );
}

fn what_cannot_be_used_is_refused() {
    for (args, why) in [
        (
            &["--grpc-listen", "0.0.0.0:0"][..],
            "--grpc-listen 0.0.0.0:0: others can reach this address and would see every connection: \
             give --tls-cert and --tls-key, or --insecure if the network is trusted",
        ),
        (&["--pods", "nowhere"], "expected api, kubelet or file:PATH"),
        (&["--filter-set", "a=b in c"], "expected `(` at character 6"),
        (
            &["--grpc-listen", "somewhere"],
            "expected ADDRESS:PORT or unix:PATH",
        ),
        (&["--tls-cert", "x"], "--tls-key <FILE>"),
        (&["--queue", "1"], "1 is not in 512..=1000000"),
        (&["--log", "a=b=c"], "--log: a=b=c is no filter"),
    ] {
        let output = command().args(args).output().expect("the agent runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(why), "{args:?}: {said}");
    }
}

fn a_source_of_pods_that_fails_is_told_and_heals() {
    let mut node = Node::new();
    let mut server = node.pod("other", "db-0", json!({}));
    let mut client = node.pod("shop", "cart-0", json!({}));
    let agent = node.client();
    agent.wait_for_pods(2);
    let at = server.actor.listen(LOCAL);
    let mut watch = agent.watch(of("shop"));

    fs::write(node.folder.path().join("pods.json"), "{\"kind\":\"PodL").expect("half a file");
    match watch.message() {
        Some(Message::Status(status)) => assert!(
            status.pods_synced && status.pods_error.contains("cannot read the pods from"),
            "{status:?}"
        ),
        other => panic!("{other:?} instead of the status"),
    }
    // What is known still serves.
    client.actor.connect(at);
    watch.events(1);
    assert!(node.get("/readyz").starts_with("HTTP/1.1 200 OK"));
    node.write();
    match watch.message() {
        Some(Message::Status(status)) => assert_eq!(status.pods_error, ""),
        other => panic!("{other:?} instead of the status"),
    }
    client.actor.close();
    watch.events(1);
}

fn a_signal_ends_streams_and_leaves_nothing() {
    let mut node = Node::new();
    let mut server = node.pod("other", "db-0", json!({}));
    let mut client = node.pod("shop", "cart-0", json!({}));
    let agent = node.client();
    agent.wait_for_pods(2);
    let at = server.actor.listen(LOCAL);
    let mut watch = agent.watch(of("shop"));
    client.actor.connect(at);
    node.agent.signal(Signal::SIGTERM);

    // What happened before still comes, and then the end.
    let events = watch.events(1);
    assert_eq!(events[0].r#type(), EventType::Connect);
    assert_eq!(watch.message(), None);
    assert_eq!(node.agent.end(), Some(0));
    assert!(!node.pins.exists());
    assert!(!node.socket().exists());
}

/// Killed, it can tidy nothing up. The next run empties the maps that others may use, knows the connection
/// that is open, and tells its close.
fn after_a_crash_nothing_stale_is_selected() {
    let mut node = Node::new();
    let mut server = node.pod("other", "db-0", json!({}));
    let mut client = node.pod("shop", "cart-0", json!({}));
    let agent = node.client();
    agent.wait_for_pods(2);
    let at = server.actor.listen(LOCAL);
    let mut watch = agent.watch(of("shop"));
    let end = client.actor.connect(at);
    watch.events(1);
    let (epoch, map) = (watch.epoch, map_id(&node));
    node.agent.signal(Signal::SIGKILL);
    node.agent.end();
    assert_eq!(node.keys("cgroupmap"), HashSet::from([client.cgroup_id()]));

    node.restart();
    assert_eq!(node.keys("cgroupmap"), HashSet::new());
    assert_eq!(map_id(&node), map);
    let agent = node.client();
    agent.wait_for_pods(2);
    let mut watch = agent.watch(of("shop"));
    client.actor.close();
    let events = watch.events(1);
    assert_eq!(events[0].r#type(), EventType::Close);
    let connection = events[0].connection.as_ref().expect("it has a connection");
    assert_eq!(
        connection.local.as_ref().map(|l| l.port),
        Some(end.local.port().into())
    );
    assert!(watch.epoch > epoch);
}

fn map_id(node: &Node) -> u32 {
    libbpf_rs::MapHandle::from_pinned_path(node.pins.join("cgroupmap"))
        .and_then(|map| map.info())
        .expect("the map is pinned")
        .info
        .id
}

fn a_full_map_is_told() {
    let mut node = Node::with(&["--max-containers", "1"]);
    let agent = node.client();
    let _first = node.pod("shop", "cart-0", json!({}));
    let _second = node.pod("shop", "cart-1", json!({}));
    agent.wait_for_pods(2);
    let mut watch = agent.watch(of("shop"));
    match watch.message() {
        Some(Message::Lost(lost)) => {
            assert_eq!(lost.source(), tcptracer_proto::v1::LossSource::FilterMap);
            assert_eq!(lost.count, 1);
        }
        other => panic!("{other:?} instead of the loss"),
    }
    assert_eq!(node.keys("cgroupmap").len(), 1);
}
