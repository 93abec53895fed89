//! The release: what it needs, what can be chosen, and that it leaves nothing.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{assert_ends, client, server};
use crate::cluster::{apply, get, kubectl, on, try_kubectl, wait_until};
use crate::plugin::{Watch, objects};
use crate::release::{NAMESPACE, agent_on, helm, helm_on, helm_test, restart, settled};
use crate::world::{nodes, service, visit, web};

/// It asks every agent, as a user does.
pub fn own_test() {
    let said = helm_test();
    for node in nodes() {
        assert!(said.contains(node), "{said}");
    }
}

/// A role of agents in place of the chart's.
fn allow(verbs: &[&str]) {
    apply(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": { "name": "lesser" },
        "rules": [{ "apiGroups": [""], "resources": ["pods"], "verbs": verbs }],
    }));
}

/// Without any verb of its rules an agent does not get its pods, and says so.
pub fn rules() {
    let [first, _] = nodes();
    let agents = "app.kubernetes.io/instance=tcptracer,app.kubernetes.io/component=agent";
    let roles = get(&["clusterrole", "-l", agents]);
    let rules = &roles["items"][0]["rules"];
    assert_eq!(
        rules,
        &json!([{ "apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"] }])
    );
    helm("upgrade", &["rbac.create=false"]);
    allow(&["list", "watch"]);
    let account = format!("{NAMESPACE}:tcptracer-agent");
    let subject = format!("--serviceaccount={account}");
    kubectl(&[
        "create",
        "clusterrolebinding",
        "lesser",
        "--clusterrole=lesser",
        &subject,
    ]);
    for verb in ["list", "watch"] {
        allow(&[verb]);
        let before = agent_on(first);
        kubectl(&["delete", "pod", "-n", NAMESPACE, &before]);
        wait_until("the agent says that it may not", || {
            let pod = agent_on(first);
            let log = try_kubectl(&["logs", "-n", NAMESPACE, &pod]).stdout;
            String::from_utf8_lossy(&log)
                .contains("the service account needs list and watch on pods")
        });
    }
    allow(&["list", "watch"]);
    restart();
    for agent in objects(&["status"]) {
        assert_eq!(agent["pods"]["error"], Value::Null);
    }
    kubectl(&["delete", "clusterrolebinding,clusterrole", "lesser"]);
    helm_on("rollback", &["1"]);
    settled();
}

pub fn kubelet_mode() {
    let [first, second] = nodes();
    let who = format!("shop/{}/server", web());
    helm("upgrade", &["podSource=kubelet"]);
    settled();
    for agent in objects(&["status"]) {
        assert_eq!(agent["pods"]["source"], "kubelet");
        assert_eq!(agent["pods"]["error"], Value::Null);
    }
    let watch = Watch::start(&["-n", "shop"], &[first, second]);
    visit("shop", "cart", "client", &service(), 80);
    assert_ends(
        &watch.events(4),
        &[client(second, "shop/cart/client"), server(first, &who)],
    );
    watch.end_well();
    helm_on("rollback", &["1"]);
    settled();
    for agent in objects(&["status"]) {
        assert_eq!(agent["pods"]["source"], "api");
    }
}

/// Pins and what the release has in the cluster.
fn traces() -> BTreeSet<String> {
    let mut traces = BTreeSet::new();
    for node in nodes() {
        let pins = on(node, &["ls", "/sys/fs/bpf"]);
        // Two are the kernel's.
        for pin in pins
            .split_whitespace()
            .filter(|pin| !pin.ends_with(".debug"))
        {
            traces.insert(format!("pin {node} {pin}"));
        }
    }
    let kinds = "clusterrole,clusterrolebinding,daemonset,configmap,secret,service,serviceaccount,networkpolicy,pod";
    let objects = get(&[kinds, "-A", "-l", "app.kubernetes.io/name=tcptracer"]);
    for object in objects["items"].as_array().expect("a list") {
        traces.insert(format!("{} {}", object["kind"], object["metadata"]["name"]));
    }
    traces
}

pub fn leaves_nothing() {
    let before = traces();
    assert!(before.iter().any(|t| t.starts_with("pin ")), "{before:?}");
    helm("upgrade", &["filterSets.carts=shop:app=cart"]);
    settled();
    helm_on("rollback", &["1"]);
    settled();
    let pins = |traces: BTreeSet<String>| {
        traces
            .into_iter()
            .filter(|t| t.starts_with("pin "))
            .collect::<Vec<_>>()
    };
    assert_eq!(pins(traces()), pins(before));
    helm_on("uninstall", &[]);
    wait_until("nothing is left", || traces().is_empty());
}
