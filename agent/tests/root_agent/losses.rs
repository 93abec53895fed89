//! What the kernel or the agent lost, and that nothing stays wrong because of it.

use nix::sys::signal::Signal;
use serde_json::json;
use tcptracer_proto::v1::LossSource;
use tcptracer_proto::v1::watch_response::Message;

use crate::client::{identity, of};
use crate::node::Node;
use crate::support::wait_until;
use crate::tests;

tests![a_container_whose_coming_was_lost_is_found];

const LOCAL: &str = "127.0.0.1:0";

/// More than the ring has room for: each visit has four events of 232 bytes.
const TOO_MANY_VISITS: usize = (8 << 20) / 232 / 4 + 1000;

/// The ring is full when a container is made. It is in no filter map then, so no event of its own can tell of it.
fn a_container_whose_coming_was_lost_is_found() {
    let mut node = Node::new();
    let mut server = node.pod("other", "db-0", json!({}));
    let mut noisy = node.pod("shop", "noisy-0", json!({}));
    let agent = node.client();
    agent.wait_for_pods(2);
    let at = server.actor.listen(LOCAL);
    let mut watch = agent.watch(of("shop"));

    node.agent.signal(Signal::SIGSTOP);
    noisy.actor.visit_itself(TOO_MANY_VISITS);
    let mut cart = node.pod("shop", "cart-0", json!({}));
    node.agent.signal(Signal::SIGCONT);

    wait_until("the container is selected", || {
        node.keys("cgroupmap").contains(&cart.cgroup_id())
    });
    cart.actor.connect(at);
    let (mut lost, mut last) = (0, None);
    while last.is_none() {
        match watch.message().expect("the stream goes on") {
            Message::Events(batch) => {
                let mut events = batch.events.into_iter();
                last = events.find(|e| identity(e).pod == "cart-0");
            }
            Message::Lost(told) => {
                assert_eq!(told.source(), LossSource::Ring);
                lost += told.count;
            }
            Message::Status(status) => panic!("{status:?}"),
        }
    }
    assert!(lost > 0, "the ring had room for all");
    assert_eq!(identity(&last.expect("an event")).container_id, cart.id);
}
