//! The release: what it needs, what can be chosen, and that it leaves nothing.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};

use super::{assert_ends, client, server};
use crate::cluster::{apply, get, kubectl, on, try_kubectl, wait_until};
use crate::plugin::{Watch, ended, objects, text};
use crate::release::{NAMESPACE, Upgraded, agent_on, helm_test, restart, uninstall};
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
    let upgraded = Upgraded::to(&["rbac.create=false"]);
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
    drop(upgraded);
}

pub fn kubelet_mode() {
    let [first, second] = nodes();
    let who = format!("shop/{}/server", web());
    let upgraded = Upgraded::to(&["podSource=kubelet"]);
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
    drop(upgraded);
    for agent in objects(&["status"]) {
        assert_eq!(agent["pods"]["source"], "api");
    }
}

/// With the certificates that the chart makes, and only with them.
pub fn tls() {
    let _upgraded = Upgraded::to(&["grpc.expose=true", "grpc.tls.enabled=true"]);
    helm_test();
    let without = ended(&["status"]);
    assert_eq!(without.code, Some(2), "{}", without.err);
    assert!(without.err.contains("--tls-ca"), "{}", without.err);

    let folder = tempfile::tempdir().expect("a folder can be made");
    let mut options = vec!["status".to_string()];
    for (option, file) in [
        ("--tls-ca", "ca.crt"),
        ("--tls-cert", "tls.crt"),
        ("--tls-key", "tls.key"),
    ] {
        let template = format!("{{{{index .data {file:?} | base64decode}}}}");
        let secret = ["get", "secret", "-n", NAMESPACE, "tcptracer-client-tls"];
        let text =
            kubectl(&[&secret[..], &["-o", "go-template", "--template", &template]].concat());
        let path = folder.path().join(file);
        fs::write(&path, text).expect("it can be written");
        options.push(format!("{option}={}", path.display()));
    }
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let agents = objects(&options);
    let asked: Vec<_> = agents.iter().map(|a| text(a, "node")).collect();
    assert_eq!(asked, nodes());
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
    drop(Upgraded::to(&["filterSets.carts=shop:app=cart"]));
    let pins = |traces: BTreeSet<String>| {
        traces
            .into_iter()
            .filter(|t| t.starts_with("pin "))
            .collect::<Vec<_>>()
    };
    assert_eq!(pins(traces()), pins(before));
    uninstall();
    wait_until("nothing is left", || traces().is_empty());
}
