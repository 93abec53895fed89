//! How the process ends.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;
use tcptracer_testing::tests;
use tcptracer_testing::{DEADLINE, wait_until};

use crate::client::{Client, Watch, of};
use crate::node::{Node, command};

tests![
    a_stuck_client_keeps_nobody_longer_than_the_grace_period,
    a_second_signal_ends_it_at_once,
    the_first_task_that_fails_ends_it_with_its_error,
];

/// More than fits between an agent and a client that does not read.
const MANY_VISITS: usize = 2000;

/// A stream that the agent cannot bring to its end, because nobody reads it.
fn stuck<'a>(node: &mut Node, agent: &'a Client) -> Watch<'a> {
    let mut cart = node.pod("shop", "cart-0", json!({}));
    agent.wait_for_pods(1);
    let watch = agent.watch(of("shop"));
    cart.actor.visit_itself(MANY_VISITS);
    wait_until("all is on its way", || {
        agent.info().sequence == 4 * MANY_VISITS as u64
    });
    watch
}

#[track_caller]
fn wait_for_log(node: &Node, text: &str) {
    loop {
        let line = node.agent.log.recv_timeout(DEADLINE);
        if line.expect("it is logged").contains(text) {
            return;
        }
    }
}

fn a_stuck_client_keeps_nobody_longer_than_the_grace_period() {
    let mut node = Node::with(&["--grace-period", "1"]);
    let agent = node.client();
    let _watch = stuck(&mut node, &agent);

    let start = Instant::now();
    node.agent.signal(Signal::SIGTERM);
    assert_eq!(node.agent.end(), Some(0));
    let took = start.elapsed();
    assert!(took >= Duration::from_secs(1), "{took:?}");
    wait_for_log(&node, "some streams did not end within 1s");
    assert!(!node.pins.exists());
}

fn a_second_signal_ends_it_at_once() {
    for (second, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130)] {
        // Longer than anything is waited for here.
        let mut node = Node::with(&["--grace-period", "600"]);
        let agent = node.client();
        let _watch = stuck(&mut node, &agent);
        node.agent.signal(Signal::SIGTERM);
        wait_for_log(&node, "ending");
        node.agent.signal(second);
        assert_eq!(node.agent.end(), Some(code));
    }
}

fn the_first_task_that_fails_ends_it_with_its_error() {
    let node = Node::new();
    let output = command()
        .args(["--pods", "api", "--http-listen", "127.0.0.1:0"])
        .args(["--grpc-listen", "127.0.0.1:0", "--max-connections", "64"])
        .arg("--pin-dir")
        .arg(node.pins.join("other"))
        .env("KUBECONFIG", "/nowhere")
        .env_remove("KUBERNETES_SERVICE_HOST")
        .output()
        .expect("the agent runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let last = said.lines().last().unwrap_or_default();
    assert!(last.starts_with("tcptracer-agent: --pods api: "), "{said}");
    assert!(!node.pins.join("other").exists());
}
