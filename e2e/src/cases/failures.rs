//! Parts of the cluster that fail and come back.

use super::ends::{assert_ends, client, server};
use crate::cluster::{NAMESPACE, kubectl, part, wait_until};
use crate::plugin::{Watch, tell};
use crate::release::{agent_on, settled};
use crate::world::{nodes, service, visit, web};

const CART: &str = "shop/cart/client";

/// One agent down is told, and does not stop the other.
pub fn agent() {
    let [first, second] = nodes();
    let who = format!("shop/{}/server", web());
    let service = service();
    let watch = Watch::start(&["-n", "shop"], &[first, second]);
    let agent = agent_on(first);
    kubectl(&["delete", "pod", "-n", NAMESPACE, &agent, "--wait=false"]);
    watch.said(&format!("{first} is not heard: "));
    settled();
    watch.said(&format!("{first} is heard again"));
    watch.said(&format!("the agent of {first} has started again"));
    watch.wait_live(&[first, second]);
    visit("shop", "cart", "client", &service, 80);
    assert_ends(
        &watch.events(4),
        &[client(second, CART), server(first, &who)],
    );
    let ended = watch.end();
    assert_eq!(ended.code, Some(3), "{}", ended.err);
    assert!(
        ended
            .err
            .contains(&format!("nodes not heard all the time: {first}")),
        "{}",
        ended.err
    );
}

/// Tunnels go through it. What happened meanwhile is sent once it is back.
pub fn api_server() {
    let [first, second] = nodes();
    let who = format!("shop/{}/server", web());
    let ends = || [client(second, CART), server(first, &who)];
    let service = service();
    let watch = Watch::start(&["-n", "shop"], &[first, second]);
    visit("shop", "cart", "client", &service, 80);
    assert_ends(&watch.events(4), &ends());
    part(&["stop", "apiserver"]);
    watch.said(" is not heard: ");
    part(&["start", "apiserver"]);
    for _ in nodes() {
        watch.said(" is heard again");
    }
    // The agents have carried on, with the pods that they know.
    visit("shop", "cart", "client", &service, 80);
    assert_ends(&watch.events(4), &ends());
    let ended = watch.end();
    assert_eq!(ended.code, Some(3), "{}", ended.err);
    wait_until("the agents watch pods again", || {
        !tell(&["status"]).to_lowercase().contains("error")
    });
}

/// While it is away its node cannot be asked. That is told, does not stop the other, and nothing is lost by it.
pub fn kubelet() {
    let [first, second] = nodes();
    let who = format!("shop/{}/server", web());
    let watch = Watch::start(&["-n", "shop"], &[first, second]);
    part(&["stop", "kubelet", first]);
    watch.said(&format!("{first} is not heard: "));
    visit("shop", "cart", "client", &service(), 80);
    assert_ends(&watch.events(2), &[client(second, CART)]);
    part(&["start", "kubelet", first]);
    watch.said(&format!("{first} is heard again"));
    assert_ends(&watch.events(2), &[server(first, &who)]);
    let ended = watch.end();
    assert_eq!(ended.code, Some(3), "{}", ended.err);
    let is_gap = |line: &str| line.contains("lost") || line.contains("started again");
    assert!(!ended.said_of_ours().any(is_gap), "{}", ended.err);
}
