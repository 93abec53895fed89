//! Real containers: whose their connections are, and that a crash of the agent loses none of it.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use nix::sys::signal::Signal;
use serde_json::json;
use tcptracer_proto::v1::watch_response::Message;
use tcptracer_proto::v1::{self, CloseReason, EventType, ProcessSource};
use tcptracer_testing::tests;
use tcptracer_testing::{Actor, End, own_mounts, wait_until};

use crate::client::{Watch, assert_end, identity, kinds, of};
use crate::node::{Node, fresh_id, fresh_uid, pod};
use crate::runc::{self, Container, Created, Network};

tests![
    containers_connect_over_a_wire,
    what_is_executed_in_a_container_is_the_containers,
    a_container_made_later_has_its_first_connection_named,
    containers_of_one_pod_are_told_apart,
    a_container_on_the_hosts_network_is_named,
    a_container_with_cgroups_of_its_own_is_named,
    the_mounts_of_the_runtime_are_none_of_a_containers,
    a_killed_agent_takes_up_again_under_load,
];

const LOCAL: &str = "127.0.0.1:0";

/// Bytes that are sent over a connection.
const SENT: usize = 1000;

/// A container with a network of its own, of a pod that has no other.
fn made(node: &mut Node, namespace: &str, name: &str) -> Created {
    let (uid, id) = (fresh_uid(), fresh_id());
    node.add(pod(namespace, name, &uid, &[("main", &id)]));
    runc::create(node, &uid, &id, &Network::Own)
}

/// The same, running.
fn running(node: &mut Node, namespace: &str, name: &str) -> Container {
    made(node, namespace, name).start(name)
}

/// What the events of a pod's container say of it.
fn named(namespace: &str, pod: &str, name: &str, container: &Container) -> v1::Identity {
    v1::Identity {
        attribution: v1::Attribution::Resolved.into(),
        namespace: namespace.into(),
        pod: pod.into(),
        pod_uid: container.uid.clone(),
        container: name.into(),
        container_id: container.id.clone(),
        image: "registry/image:1".into(),
        workload: Some(v1::Workload {
            kind: "StatefulSet".into(),
            name: "owner".into(),
        }),
        labels: HashMap::new(),
        host_network: false,
        evidence: v1::Evidence::Cgroup.into(),
    }
}

fn connection(event: &v1::Event) -> &v1::Connection {
    event.connection.as_ref().expect("it has a connection")
}

#[track_caller]
fn assert_event(event: &v1::Event, kind: EventType, end: &End, who: &v1::Identity) {
    assert_eq!(event.r#type(), kind);
    assert_end(event, end);
    assert_eq!(identity(event), who);
}

/// The client opens and closes a connection to the server.
fn visit(client: &mut Actor, server: &mut Actor, address: &str) -> (End, End) {
    let at = server.listen(address);
    let ends = (client.connect(at), server.accept());
    client.close();
    server.close_after_peer();
    ends
}

/// What comes next, and all that the kernel has let pass, are the four events of a connection.
#[track_caller]
fn assert_visit(
    node: &Node,
    watch: &mut Watch<'_>,
    (client, server): (End, End),
    (client_is, server_is): (&v1::Identity, &v1::Identity),
) {
    let events = watch.events(4);
    assert_eq!(
        kinds(&events),
        [
            EventType::Connect,
            EventType::Accept,
            EventType::Close,
            EventType::Close,
        ]
    );
    for (opened, end, who, reason) in [
        (&events[0], client, client_is, CloseReason::Local),
        (&events[1], server, server_is, CloseReason::Remote),
    ] {
        let mut closes = events[2..]
            .iter()
            .filter(|event| connection(event).id == connection(opened).id);
        let close = closes.next().expect("each end is closed");
        assert_event(opened, opened.r#type(), &end, who);
        assert_event(close, EventType::Close, &end, who);
        assert_eq!(close.reason(), reason);
        assert_eq!(closes.next(), None);
    }
    assert_eq!(node.client().info().sequence, 4);
    node.assert_all_is_told([watch]);
}

fn containers_connect_over_a_wire() {
    let mut node = Node::on_host();
    let (cart, db) = (
        made(&mut node, "shop", "cart-0"),
        made(&mut node, "shop", "db-0"),
    );
    cart.netns()
        .wire("192.0.2.1/30", &db.netns(), "192.0.2.2/30");
    let (mut cart, mut db) = (cart.start("cart"), db.start("db"));
    let agent = node.client();
    agent.wait_for_pods(2);
    let mut watch = agent.watch(of("shop"));

    let ends = visit(&mut cart.actor, &mut db.actor, "192.0.2.2:0");
    assert_eq!(ends.1.remote.ip().to_string(), "192.0.2.1");
    let who = (
        &named("shop", "cart-0", "main", &cart),
        &named("shop", "db-0", "main", &db),
    );
    assert_visit(&node, &mut watch, ends, who);
}

fn what_is_executed_in_a_container_is_the_containers() {
    let mut node = Node::on_host();
    let mut cart = running(&mut node, "shop", "cart-0");
    let agent = node.client();
    agent.wait_for_pods(1);
    let mut watch = agent.watch(of("shop"));

    let mut shell = cart.exec("shell");
    assert_ne!(shell.pid(), cart.actor.pid());
    let ends = visit(&mut shell, &mut cart.actor, LOCAL);
    let who = named("shop", "cart-0", "main", &cart);
    assert_visit(&node, &mut watch, ends, (&who, &who));
}

/// As on a node: the pods are known before their containers have ids.
fn a_container_made_later_has_its_first_connection_named() {
    let mut node = Node::new();
    let (cart_uid, db_uid) = (fresh_uid(), fresh_uid());
    for (namespace, name, uid) in [("shop", "cart-0", &cart_uid), ("other", "db-0", &db_uid)] {
        let mut pod = pod(namespace, name, uid, &[("main", "")]);
        pod["status"] = json!({});
        node.add(pod);
    }
    let agent = node.client();
    wait_until("the pods are known", || {
        agent.info().pods.is_some_and(|p| p.pods == 2)
    });
    let mut watch = agent.watch(of("shop"));

    let mut db = runc::create(&node, &db_uid, &fresh_id(), &Network::Own).start("db");
    let own = db.actor.listen(LOCAL);
    db.actor.connect(own);
    let mut cart = runc::create(&node, &cart_uid, &fresh_id(), &Network::Own).start("cart");
    let own = cart.actor.listen(LOCAL);
    let ends = (cart.actor.connect(own), cart.actor.accept());
    cart.actor.close_with_itself();
    db.actor.close();

    let who = named("shop", "cart-0", "main", &cart);
    assert_selected(&node, &[&cart]);
    assert_eq!(agent.info().containers, 2);
    assert_visit(&node, &mut watch, ends, (&who, &who));
}

/// The filter maps hold these containers, and nothing else, as soon as it is known where they are.
#[track_caller]
fn assert_selected(node: &Node, containers: &[&Container]) {
    let cgroups: HashSet<u64> = containers.iter().map(|c| c.cgroup_id()).collect();
    let mounts: HashSet<u64> = containers.iter().map(|c| c.actor.mntns()).collect();
    wait_until("the maps hold what is selected", || {
        node.keys("cgroupmap") == cgroups && node.keys("mntnsmap") == mounts
    });
}

fn containers_of_one_pod_are_told_apart() {
    let mut node = Node::on_host();
    let (uid, main, sidecar) = (fresh_uid(), fresh_id(), fresh_id());
    let containers = [("main", &main[..]), ("sidecar", &sidecar[..])];
    node.add(pod("shop", "cart-0", &uid, &containers));
    let mut main = runc::create(&node, &uid, &main, &Network::Own).start("main");
    let mut sidecar = runc::create(&node, &uid, &sidecar, &Network::Of(&main)).start("sidecar");
    let agent = node.client();
    wait_until("the containers are known", || agent.info().containers == 2);
    let mut watch = agent.watch(of("shop"));

    let ends = visit(&mut main.actor, &mut sidecar.actor, LOCAL);
    let who = (
        &named("shop", "cart-0", "main", &main),
        &named("shop", "cart-0", "sidecar", &sidecar),
    );
    assert_visit(&node, &mut watch, ends, who);
}

/// Its peer has the same network and is none of it.
fn a_container_on_the_hosts_network_is_named() {
    let mut node = Node::on_host();
    let (uid, id) = (fresh_uid(), fresh_id());
    let mut proxy = pod("shop", "proxy-0", &uid, &[("main", &id)]);
    proxy["spec"]["hostNetwork"] = true.into();
    node.add(proxy);
    let mut proxy = runc::create(&node, &uid, &id, &Network::Host).start("proxy");
    let mut host = Actor::here("host");
    let agent = node.client();
    agent.wait_for_pods(1);
    let mut watch = agent.watch(of("shop"));

    let (end, _) = visit(&mut proxy.actor, &mut host, LOCAL);
    let who = v1::Identity {
        host_network: true,
        ..named("shop", "proxy-0", "main", &proxy)
    };
    let events = watch.events(2);
    assert_event(&events[0], EventType::Connect, &end, &who);
    assert_event(&events[1], EventType::Close, &end, &who);
    assert_eq!(connection(&events[0]).id, connection(&events[1]).id);
    assert_eq!(agent.info().sequence, 2);
    node.assert_all_is_told([&mut watch]);
}

/// As one that runs systemd.
fn a_container_with_cgroups_of_its_own_is_named() {
    let mut node = Node::on_host();
    let mut cart = running(&mut node, "shop", "cart-0");
    let agent = node.client();
    agent.wait_for_pods(1);
    let mut watch = agent.watch(of("shop"));

    cart.nest();
    let mut shell = cart.exec("shell");
    let ends = visit(&mut cart.actor, &mut shell, LOCAL);
    let who = named("shop", "cart-0", "main", &cart);
    assert_selected(&node, &[&cart]);
    assert_visit(&node, &mut watch, ends, (&who, &who));
}

/// A runtime that is not in the host's mount namespace itself: what is to become the container's process is in
/// the runtime's first, and in the container's cgroup already.
fn the_mounts_of_the_runtime_are_none_of_a_containers() {
    let mut node = Node::on_host();
    let agent = node.client();
    let _watch = agent.watch(of("shop"));
    let mut carts = Vec::new();
    for round in 0..10 {
        let name = format!("cart-{round}");
        let cart = own_mounts(|| made(&mut node, "shop", &name));
        carts.push(cart.start("cart"));
        assert_selected(&node, &Vec::from_iter(&carts));
    }
}

/// Both in a pod that is selected and in one that is not, connections are made all the time.
fn a_killed_agent_takes_up_again_under_load() {
    let mut node = Node::on_host();
    let mut cart = running(&mut node, "shop", "cart-0");
    let mut db = running(&mut node, "other", "db-0");
    for round in 0..3 {
        let name = format!("old-{round}");
        let mut old = running(&mut node, "shop", &name);
        let agent = node.client();
        agent.wait_for_pods(3);
        cart.actor.start_load();
        db.actor.start_load();
        let watch = agent.watch(of("shop"));
        assert_selected(&node, &[&cart, &old]);
        let at = cart.actor.listen(LOCAL);
        let before = open_and_send(&mut cart.actor, at);
        // Nobody sees it end.
        let own = old.actor.listen(LOCAL);
        open_and_send(&mut old.actor, own);
        drop(watch);
        node.agent.signal(Signal::SIGKILL);
        node.agent.end();

        let during = open_and_send(&mut cart.actor, at);
        node.delete_pod(&name);
        drop(old);
        node.restart();
        assert_eq!(node.keys("cgroupmap"), HashSet::new());
        assert_eq!(node.keys("mntnsmap"), HashSet::new());

        assert_taken_up(&node, &mut cart, &mut db, [before, during]);
    }
}

/// Opens a connection of a process with itself, over which bytes are sent.
fn open_and_send(actor: &mut Actor, at: SocketAddr) -> (End, End) {
    let client = actor.connect(at);
    actor.send(SENT);
    let server = actor.accept();
    actor.receive(SENT);
    (client, server)
}

/// The next run knows what is open, and misses nothing of what follows.
fn assert_taken_up(node: &Node, cart: &mut Container, db: &mut Container, open: [(End, End); 2]) {
    let agent = node.client();
    agent.wait_for_pods(2);
    let mut watch = agent.watch(of("shop"));
    assert_selected(node, &[cart]);
    let mut events = Vec::new();
    take(&mut watch, &mut events, |events| events.len() > 20);
    cart.actor.close_with_itself();
    cart.actor.stop_load();
    // Of this one nothing was made before the stream was live.
    let port = cart.actor.start_load();
    take(&mut watch, &mut events, |events| {
        to(events, port, EventType::Connect) > 20
    });
    let made = cart.actor.stop_load();
    db.actor.stop_load();
    let own = cart.actor.listen(LOCAL);
    let last = (cart.actor.connect(own), cart.actor.accept());
    cart.actor.close();
    take(&mut watch, &mut events, |events| is_over(events, &last));

    let who = named("shop", "cart-0", "main", cart);
    for (client, server) in &open {
        assert_closed(&events, client, &who, CloseReason::Local, [SENT, 0]);
        assert_closed(&events, server, &who, CloseReason::Remote, [0, SENT]);
    }
    let ends: Vec<&End> = open.iter().flat_map(|(c, s)| [c, s]).collect();
    assert_whole(&events, &who, |event| {
        ends.iter().any(|end| is_of(event, end))
    });
    for kind in [EventType::Connect, EventType::Accept] {
        assert_eq!(to(&events, port, kind), made);
    }
    // What comes between the hooks and the first that the watch gets has a number as well.
    let sequences: Vec<u64> = events.iter().map(|event| event.sequence).collect();
    assert_eq!(
        sequences,
        Vec::from_iter(sequences[0]..=agent.info().sequence)
    );
}

/// Reads on until there are enough.
#[track_caller]
fn take(watch: &mut Watch<'_>, events: &mut Vec<v1::Event>, enough: impl Fn(&[v1::Event]) -> bool) {
    while !enough(events) {
        match watch.message() {
            Some(Message::Events(batch)) => events.extend(batch.events),
            other => panic!("{other:?} after {} events", events.len()),
        }
    }
}

fn port(endpoint: Option<&v1::Endpoint>) -> Option<u32> {
    endpoint.map(|endpoint| endpoint.port)
}

fn is_of(event: &v1::Event, end: &End) -> bool {
    let connection = connection(event);
    port(connection.local.as_ref()) == Some(end.local.port().into())
        && port(connection.remote.as_ref()) == Some(end.remote.port().into())
}

/// How many connections to a port have such an event.
fn to(events: &[v1::Event], at: u16, kind: EventType) -> usize {
    let is_to = |event: &&v1::Event| {
        let connection = connection(event);
        let server = match connection.role() {
            v1::Role::Client => connection.remote.as_ref(),
            _ => connection.local.as_ref(),
        };
        event.r#type() == kind && port(server) == Some(at.into())
    };
    events.iter().filter(is_to).count()
}

/// The events of each connection's end.
fn lives(events: &[v1::Event]) -> HashMap<&str, Vec<&v1::Event>> {
    let mut lives: HashMap<_, Vec<_>> = HashMap::new();
    for event in events {
        lives
            .entry(connection(event).id.as_str())
            .or_default()
            .push(event);
    }
    lives
}

/// Both ends of the last connection are closed, and all that came before it.
fn is_over(events: &[v1::Event], (client, server): &(End, End)) -> bool {
    let is_closed = |life: &Vec<&v1::Event>| {
        life.last()
            .is_some_and(|event| event.r#type() == EventType::Close)
    };
    [client, server]
        .iter()
        .all(|end| events.iter().any(|event| is_of(event, end)))
        && lives(events).values().all(is_closed)
}

/// Of an end that was there before the agent, only the close comes.
#[track_caller]
fn assert_closed(
    events: &[v1::Event],
    end: &End,
    who: &v1::Identity,
    reason: CloseReason,
    [sent, received]: [usize; 2],
) {
    let of_it: Vec<_> = events.iter().filter(|event| is_of(event, end)).collect();
    let [close] = of_it[..] else {
        panic!("not exactly one event of {end:?}: {of_it:#?}");
    };
    assert_event(close, EventType::Close, end, who);
    assert_eq!(close.reason(), reason);
    let process = connection(close).process.as_ref().expect("a process");
    assert_eq!(process.source(), ProcessSource::Snapshot);
    let counters = close.counters.as_ref().expect("counters");
    assert_eq!(counters.bytes_sent, sent as u64);
    assert_eq!(counters.bytes_received, received as u64);
}

/// Of each other connection's end all events come, in their order; one connection may have been opened before
/// the stream was live.
#[track_caller]
fn assert_whole(events: &[v1::Event], who: &v1::Identity, was_open: impl Fn(&v1::Event) -> bool) {
    let mut halves = 0;
    for life in lives(events).values().filter(|life| !was_open(life[0])) {
        let kinds: Vec<EventType> = life.iter().map(|event| event.r#type()).collect();
        match kinds[..] {
            [EventType::Connect | EventType::Accept, EventType::Close] => {}
            [EventType::Close] => halves += 1,
            _ => panic!("{life:#?}"),
        }
        assert!(life.iter().all(|event| identity(event) == who), "{life:#?}");
    }
    assert!(halves <= 2, "{halves} closes without an open");
}
