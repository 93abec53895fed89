//! Starting, failing, restarting and ending.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use nix::sys::signal::Signal;
use serde_json::json;
use tcptracer_agent::identity::LINGER;
use tcptracer_proto::v1::watch_response::Message;
use tcptracer_proto::v1::{self, EventType};
use tcptracer_testing::tests;
use tcptracer_testing::{Actor, DEADLINE, ids_of, own_mounts, wait_until};
use tokio::net::TcpSocket;

use crate::client::{identity, of};
use crate::node::{Node, command, fresh_id, fresh_uid};

tests![
    health_and_metrics_are_served,
    a_probe_by_command_says_why_not,
    what_cannot_be_used_is_refused,
    a_source_of_pods_that_fails_is_told_and_heals,
    the_latest_reason_of_an_outage_is_told_and_each_logged_once,
    a_signal_ends_streams_and_leaves_nothing,
    after_a_crash_nothing_stale_is_selected,
    a_full_map_is_told,
    a_hundred_thousand_connections_leave_nothing,
    a_thousand_pods_leave_nothing_after_a_minute,
    a_test_that_fails_leaves_nothing,
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

    node.assert_metrics(&[
        "tcptracer_events_total{type=\"connect\",namespace=\"shop\"} 1",
        "tcptracer_attributions_total{result=\"resolved\"} 1",
        "tcptracer_map_entries{map=\"cgroupmap\"} 1",
        "tcptracer_map_capacity{map=\"cgroupmap\"} 64",
        "tcptracer_subscribers 1",
        "tcptracer_containers 2",
        "tcptracer_pods 2",
        "tcptracer_pods_synced 1",
        "# EOF",
    ]);
    let info = agent.info();
    assert_eq!(info.node, "node-1");
    assert!(
        info.hooks
            .iter()
            .any(|h| h.name == "tp_btf/inet_sock_set_state" && h.attached)
    );
}

fn a_probe_by_command_says_why_not() {
    let mut node = Node::new();
    let _pod = node.pod("shop", "cart-0", json!({}));
    node.client().wait_for_pods(1);
    let probe = |http: &str, what: &str| {
        let output = command()
            .args(["probe", what])
            .env("TCPTRACER_HTTP_LISTEN", http)
            .output()
            .expect("the agent runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    for what in ["livez", "readyz"] {
        assert_eq!(probe(&node.agent.http, what), (Some(0), String::new()));
    }
    node.agent.signal(Signal::SIGTERM);
    node.agent.end();
    // Nobody else can listen there.
    let unheard = TcpSocket::new_v4().expect("a socket");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    unheard.bind(any).expect("a free port");
    let nobody = unheard.local_addr().expect("an address").to_string();
    let (code, said) = probe(&nobody, "livez");
    assert_eq!(code, Some(1));
    assert!(said.contains("no agent answers at 127.0.0.1:"), "{said}");

    node.write_text("{");
    node.restart();
    assert_eq!(probe(&node.agent.http, "livez").0, Some(0));
    let (code, said) = probe(&node.agent.http, "readyz");
    assert_eq!(code, Some(1));
    assert!(
        said.starts_with("tcptracer-agent: /readyz: the pods are not known: "),
        "{said}"
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
            &["--filter-set", "a=b", "--filter-set", "a=c"],
            "--filter-set: there are two of the name a",
        ),
        (
            &["--filter-set", "mntnsmap=a"],
            "mntnsmap is the name of a map of the agent's own",
        ),
        (
            &["--filter-set", "a=b;cgroupmap=a"],
            "cgroupmap is the name of a map of the agent's own",
        ),
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

    node.write_text("{\"kind\":\"PodL");
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

fn the_latest_reason_of_an_outage_is_told_and_each_logged_once() {
    let node = Node::new();
    let agent = node.client();
    wait_until("the pods are read", || {
        agent.info().pods.is_some_and(|p| p.synced)
    });
    let mut watch = agent.watch(of("shop"));
    let reasons = [
        ("{", "EOF while parsing"),
        (r#"{"kind":"Pod"}"#, "it is a Pod and no PodList"),
    ];
    let mut told = |why: &str| match watch.message() {
        Some(Message::Status(status)) if why.is_empty() => assert_eq!(status.pods_error, ""),
        Some(Message::Status(status)) => assert!(status.pods_error.contains(why), "{status:?}"),
        other => panic!("{other:?} instead of the status"),
    };
    for _ in 0..2 {
        for (content, why) in reasons {
            node.write_text(content);
            told(why);
        }
    }
    node.write();
    told("");

    let mut logged = Vec::new();
    while let line = node.agent.log.recv_timeout(DEADLINE).expect("it is logged")
        && !line.contains("pods: their source answers again")
    {
        logged.push(line);
    }
    for (_, why) in reasons {
        let times = logged.iter().filter(|line| line.contains(why)).count();
        assert_eq!(times, 1, "{why} in {logged:#?}");
    }
    node.assert_metrics(&["tcptracer_pod_source_errors_total 1"]);
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
/// that is open, lists it, and tells its close.
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
    let open = agent.connections(of("shop"));
    let port = |c: &v1::Connection| c.local.as_ref().map(|l| l.port);
    assert_eq!(
        open.iter().map(port).collect::<Vec<_>>(),
        [Some(end.local.port().into())],
        "{open:?}"
    );
    assert_eq!(open[0].established, None);
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

/// What is kept is counted, not weighed: the kernel's table of connections, the history, and what is known of containers.
fn a_hundred_thousand_connections_leave_nothing() {
    const ROUNDS: u64 = 100;
    const VISITS: u64 = 1000;
    let mut node = Node::with(&["--history", "1000"]);
    let agent = node.client();
    let mut cart = node.pod("shop", "cart-0", json!({}));
    agent.wait_for_pods(1);
    let mut watch = agent.watch(of("shop"));
    let mut seen = 0;
    for round in 1..=ROUNDS {
        cart.actor.visit_itself(VISITS as usize);
        // Each is opened and closed on both sides.
        while seen < round * VISITS * 4 {
            match watch.message() {
                Some(Message::Events(batch)) => seen += batch.events.len() as u64,
                other => panic!("{other:?} after {seen} events"),
            }
        }
    }
    assert_eq!(seen, ROUNDS * VISITS * 4);
    assert_eq!(agent.info().sequence, seen);
    assert_eq!(agent.losses(), []);
    assert_eq!(agent.connections(of("shop")), []);
    wait_until("none is left", || {
        connections_known_to_the_kernel(&node) == 0
    });
    node.assert_metrics(&[
        "tcptracer_history_events 1000",
        "tcptracer_containers 1",
        "tcptracer_pods 1",
        "tcptracer_map_entries{map=\"cgroupmap\"} 1",
    ]);
}

/// The maps have room for two rounds only, and the agent holds the mount namespaces of as few. What else is known of
/// what is gone is forgotten after the minute.
fn a_thousand_pods_leave_nothing_after_a_minute() {
    const ROUNDS: usize = 20;
    const EACH: usize = 50;
    let mut node = Node::with(&[
        "--max-containers",
        "128",
        "--filter-set",
        "carts=shop:app=cart",
    ]);
    let agent = node.client();
    // Once it has answered, it has our connection open.
    agent.info();
    let files = node.agent.files().count();
    let cgroups = metric(&node, "tcptracer_cgroups") + EACH;
    // Of each round one is asked for: for all there is no room, since what is gone passes for the minute.
    let mut watch = agent.watch(vec![v1::Filter {
        label_selector: "watched".into(),
        ..v1::Filter::default()
    }]);
    for round in 0..ROUNDS {
        let mut carts: Vec<_> = (0..EACH)
            .map(|n| {
                let (uid, id) = (fresh_uid(), fresh_id());
                let name = format!("cart-{round}-{n}");
                let labels = match n {
                    0 => json!({"app": "cart", "watched": "yes"}),
                    _ => json!({"app": "cart"}),
                };
                node.add_pod("shop", &name, labels, &uid, &id);
                let actor = own_mounts(|| Actor::inside(&node.netns, "cart"));
                node.container_of(uid, id, actor)
            })
            .collect();
        let cgroups = carts.iter().map(|cart| cart.cgroup_id()).collect();
        let mounts = carts.iter().map(|cart| cart.actor.mntns()).collect();
        wait_until("the set has all", || {
            node.keys("carts/cgroupmap") == cgroups && node.keys("carts/mntnsmap") == mounts
        });
        let at = carts[1].actor.listen(LOCAL);
        carts[0].actor.connect(at);
        let opened = watch.events(1);
        assert_eq!(identity(&opened[0]).pod, format!("cart-{round}-0"));
        node.delete_pods();
        drop(carts);
        wait_until("the set has none", || {
            node.keys("carts/cgroupmap").is_empty() && node.keys("carts/mntnsmap").is_empty()
        });
        // The last close, after the pod.
        let closed = watch.events(1);
        assert_eq!(identity(&closed[0]).pod, format!("cart-{round}-0"));
    }
    drop(watch);

    let known = metric(&node, "tcptracer_cgroups");
    assert!(known > cgroups, "{known} cgroups");
    let start = Instant::now();
    while metric(&node, "tcptracer_cgroups") > cgroups || agent.info().containers > 0 {
        let waited = start.elapsed();
        assert!(waited < LINGER + DEADLINE, "{:?}", agent.info());
        thread::sleep(Duration::from_secs(1));
    }
    let info = agent.info();
    assert_eq!(info.pods.map(|p| p.pods), Some(0));
    for map in &info.filter_maps {
        assert_eq!((map.entries, map.without_room), (0, 0), "{map:?}");
    }
    assert_eq!(metric(&node, "tcptracer_map_errors_total"), 0);
    // It may have had the list of pods open before.
    wait_until("its files are closed", || {
        node.agent.files().count() <= files
    });
}

/// The value of a metric without labels.
fn metric(node: &Node, name: &str) -> usize {
    let metrics = node.get("/metrics");
    let mut lines = metrics.lines().filter_map(|line| line.split_once(' '));
    let value = lines.find(|(n, _)| *n == name).map(|(_, value)| value);
    value
        .and_then(|value| value.parse().ok())
        .unwrap_or_else(|| panic!("{name} in\n{metrics}"))
}

/// Neither one with a process that waits for what does not come, nor one whose agent does not start.
fn a_test_that_fails_leaves_nothing() {
    let mut left = Vec::new();
    let mut fail = |start: fn(&Path) -> Vec<String>, body: fn(Node)| {
        let test = AssertUnwindSafe(|| {
            body(Node::launched(&[], |cgroups| {
                left.push(cgroups.to_path_buf());
                start(cgroups)
            }));
        });
        assert!(panic::catch_unwind(test).is_err());
    };
    fail(
        |_| Vec::new(),
        |mut node| {
            let mut cart = node.pod("shop", "cart-0", json!({}));
            cart.actor.listen(LOCAL);
            cart.actor.begin("accept a l");
            cart.nest();
            // As a panic, and without a word.
            panic::resume_unwind(Box::new("the test fails"));
        },
    );
    fail(|_| vec!["--queue".into(), "1".into()], drop);
    assert_eq!(left.len(), 2);
    for cgroup in left {
        assert!(!cgroup.exists(), "{} is left", cgroup.display());
        let pins = cgroup.file_name().expect("it has a name");
        assert!(!Path::new("/sys/fs/bpf").join(pins).exists());
    }
}

/// Entries of the agent's table of connections that are of the node's network namespace.
fn connections_known_to_the_kernel(node: &Node) -> usize {
    let ids = ids_of(node.agent.child.id(), "map_id:").into_iter();
    let mut maps = ids.filter_map(|id| MapHandle::from_map_id(id).ok());
    let conns = maps.find(|map| map.name() == "conns");
    let conns = conns.expect("the agent has a table of connections");
    let netns = (node.netns.inode as u32).to_ne_bytes();
    let entries = conns.lookup_batch(1024, MapFlags::ANY, MapFlags::ANY);
    entries
        .expect("the table can be read")
        .filter(|(_, entry)| entry.chunks(netns.len()).any(|word| word == netns))
        .count()
}
