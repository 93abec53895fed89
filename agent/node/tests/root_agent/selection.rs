//! That the kernel filters out nothing that is selected.

use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;
use tcptracer_proto::v1::LossSource;
use tcptracer_proto::v1::watch_response::Message;
use tcptracer_testing::{tests, wait_until};

use crate::client::{Client, Watch, identity, of};
use crate::node::{Container, Node, fresh_id, fresh_uid};

tests![
    a_container_made_while_the_agent_is_stopped_is_followed,
    a_container_whose_coming_was_lost_misses_nothing,
    a_process_far_below_its_container_is_followed,
    a_container_with_a_long_path_is_followed,
];

/// Connections that a process makes with itself, and their events.
const VISITS: usize = 100;
const EVENTS: usize = 4 * VISITS;

/// Cgroups of which the ring cannot report all.
const TOO_MANY_CGROUPS: usize = 20_000;

/// A pod whose container is yet to be made.
fn announce(node: &mut Node, name: &str) -> impl FnOnce(&Node) -> Container + use<> {
    let (uid, id) = (fresh_uid(), fresh_id());
    node.add_pod("shop", name, json!({}), &uid, &id);
    let name = name.to_owned();
    move |node| node.container(uid, id, &name)
}

/// The agent knows so many pods.
fn wait_for_names(agent: &Client, count: u32) {
    wait_until("the pods are known", || {
        agent.info().pods.is_some_and(|p| p.pods == count)
    });
}

/// So many events of the pod have come or were lost; returns how many were.
fn accounted_for(watch: &mut Watch<'_>, pod: &str, count: usize) -> usize {
    let (mut came, mut lost) = (0, 0);
    while came + lost < count {
        match watch.message().expect("the stream goes on") {
            Message::Events(batch) => {
                assert!(batch.events.iter().all(|e| identity(e).pod == pod));
                came += batch.events.len();
            }
            Message::Lost(told) => {
                assert!([LossSource::Ring, LossSource::Agent].contains(&told.source()));
                lost += told.count as usize;
            }
            other => panic!("{other:?} after {came} and {lost} of {count} events"),
        }
    }
    assert_eq!(came + lost, count);
    lost
}

/// However late the agent is to learn of it.
fn a_container_made_while_the_agent_is_stopped_is_followed() {
    let mut node = Node::new();
    let made = [50, 300, 3000].map(|millis| {
        let name = format!("after-{millis}");
        (millis, announce(&mut node, &name), name)
    });
    let agent = node.client();
    wait_for_names(&agent, 3);
    let mut watch = agent.watch(of("shop"));
    for (millis, make, name) in made {
        node.agent.signal(Signal::SIGSTOP);
        let start = Instant::now();
        let mut container = make(&node);
        container.actor.visit_itself(VISITS);
        // This is for how long the agent is stopped, and waits for nothing.
        sleep(Duration::from_millis(millis).saturating_sub(start.elapsed()));
        node.agent.signal(Signal::SIGCONT);
        let events = watch.events(EVENTS);
        assert!(events.iter().all(|e| identity(e).pod == name));
    }
    assert_eq!(agent.losses(), []);
}

/// The kernel could not report it, so many others came and went.
fn a_container_whose_coming_was_lost_misses_nothing() {
    let mut node = Node::new();
    let make = announce(&mut node, "cart-0");
    let agent = node.client();
    wait_for_names(&agent, 1);
    let mut watch = agent.watch(of("shop"));
    node.agent.signal(Signal::SIGSTOP);
    node.make_cgroups(TOO_MANY_CGROUPS);
    let mut cart = make(&node);
    node.agent.signal(Signal::SIGCONT);
    cart.actor.visit_itself(VISITS);
    accounted_for(&mut watch, "cart-0", EVENTS);
    // By now the agent has found the container.
    cart.actor.visit_itself(VISITS);
    assert_eq!(accounted_for(&mut watch, "cart-0", EVENTS), 0);
}

fn a_process_far_below_its_container_is_followed() {
    const LEVELS: usize = 64;
    let mut node = Node::new();
    let mut cart = node.pod("shop", "cart-0", json!({}));
    let agent = node.client();
    agent.wait_for_pods(1);
    let mut watch = agent.watch(of("shop"));
    cart.nest_deep(LEVELS);
    cart.actor.visit_itself(VISITS);
    let events = watch.events(EVENTS);
    assert!(events.iter().all(|e| identity(e).container_id == cart.id));
    // Whom nobody selects stays out, as deep as it may be.
    let mut db = node.pod("other", "db-0", json!({}));
    agent.wait_for_pods(2);
    db.nest_deep(LEVELS);
    db.actor.visit_itself(VISITS);
    cart.actor.visit_itself(1);
    watch.events(4);
    assert_eq!(agent.losses(), []);
}

/// The node runs in a container itself, so that the paths of its cgroups are longer than a record of the ring.
fn a_container_with_a_long_path_is_followed() {
    let mut node = Node::below(600);
    let make = announce(&mut node, "cart-0");
    let agent = node.client();
    wait_for_names(&agent, 1);
    let mut watch = agent.watch(of("shop"));
    let mut cart = make(&node);
    cart.actor.visit_itself(VISITS);
    let events = watch.events(EVENTS);
    assert!(events.iter().all(|e| identity(e).container_id == cart.id));
    assert_eq!(agent.losses(), []);
}
