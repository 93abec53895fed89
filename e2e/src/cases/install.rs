//! The release: what it needs, what can be chosen, and that it leaves nothing.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};

use super::ends::{assert_ends, client, server};
use crate::cluster::{Made, NAMESPACE, apply, get, kubectl, on, try_kubectl, wait_until};
use crate::plugin::{Watch, ended, objects, text};
use crate::release::{Upgraded, agent_on, helm_test, restart, uninstall};
use crate::world::{nodes, service, visit, web};

/// It asks every agent, as a user does.
pub fn own_test() {
    let said = helm_test();
    for node in nodes() {
        assert!(said.contains(node), "{said}");
    }
}

/// A role of agents in place of the chart's, until the end of the value.
struct Role {
    _made: [Made; 2],
}

impl Role {
    fn bind(resource: &str, verbs: &[&str]) -> Self {
        let role = Self {
            _made: ["clusterrolebinding", "clusterrole"].map(|kind| Made::new(&[kind, "lesser"])),
        };
        role.allow(resource, verbs);
        let account = format!("{NAMESPACE}:tcptracer-agent");
        let subject = format!("--serviceaccount={account}");
        let binding = ["create", "clusterrolebinding", "lesser"];
        kubectl(&[&binding[..], &["--clusterrole=lesser", &subject]].concat());
        role
    }

    fn allow(&self, resource: &str, verbs: &[&str]) {
        apply(&json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": { "name": "lesser" },
            "rules": [{ "apiGroups": [""], "resources": [resource], "verbs": verbs }],
        }));
    }
}

/// What the chart's role for agents allows.
fn rules_of_agents() -> Value {
    let agents = "app.kubernetes.io/instance=tcptracer,app.kubernetes.io/component=agent";
    get(&["clusterrole", "-l", agents])["items"][0]["rules"].clone()
}

/// Why each agent does not get its pods.
fn errors() -> Vec<Value> {
    let agents = objects(&["status"]);
    agents.iter().map(|a| a["pods"]["error"].clone()).collect()
}

/// Without any verb of its rules an agent does not get its pods, and says so.
pub fn rules() {
    let [first, _] = nodes();
    assert_eq!(
        rules_of_agents(),
        json!([{ "apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"] }])
    );
    let role = Role::bind("pods", &["list", "watch"]);
    let _upgraded = Upgraded::to(&["rbac.create=false"]);
    for verb in ["list", "watch"] {
        role.allow("pods", &[verb]);
        let before = agent_on(first);
        kubectl(&["delete", "pod", "-n", NAMESPACE, &before]);
        wait_until("the agent says that it may not", || {
            let pod = agent_on(first);
            let log = try_kubectl(&["logs", "-n", NAMESPACE, &pod]).stdout;
            String::from_utf8_lossy(&log)
                .contains("the service account needs list and watch on pods")
        });
    }
    role.allow("pods", &["list", "watch"]);
    restart();
    assert_eq!(errors(), [Value::Null, Value::Null]);
}

pub fn kubelet_mode() {
    let [first, second] = nodes();
    let who = format!("shop/{}/server", web());
    let upgraded = Upgraded::to(&["podSource=kubelet"]);
    assert_eq!(
        rules_of_agents(),
        json!([{ "apiGroups": [""], "resources": ["nodes/pods"], "verbs": ["get"] }])
    );
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

/// The kubelets of this cluster look at every question who may ask.
pub fn kubelet_rule() {
    let role = Role::bind("nodes/pods", &["get"]);
    let _upgraded = Upgraded::to(&["podSource=kubelet", "rbac.create=false"]);
    role.allow("nodes/pods", &["list"]);
    wait_until("the agents say that they may not", || {
        errors()
            .iter()
            .all(|e| e.to_string().contains("get on nodes/pods"))
    });
    role.allow("nodes/pods", &["get"]);
    wait_until("the agents get their pods", || {
        errors().iter().all(Value::is_null)
    });
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

/// What `find` finds in a folder of a node. Others may remove files meanwhile: `find` complains, and nothing is amiss.
fn found(node: &str, folder: &str, tests: &[&str]) -> Vec<String> {
    let output = on(node, &[&["find", folder], tests].concat());
    let complaints = String::from_utf8_lossy(&output.stderr);
    let vanished = |line: &str| line.ends_with(": No such file or directory");
    assert!(
        output.status.success() || complaints.lines().all(vanished),
        "{complaints}"
    );
    let paths = String::from_utf8(output.stdout).expect("it is text");
    paths.lines().map(String::from).collect()
}

/// Pins, cgroups of the agents' pods, and what the release has in the cluster.
fn traces(pods: &[String]) -> BTreeSet<String> {
    let mut traces = BTreeSet::new();
    for node in nodes() {
        let pins = found(node, "/sys/fs/bpf", &["-mindepth", "1"]);
        // Two are the kernel's.
        for pin in pins.iter().filter(|pin| !pin.ends_with(".debug")) {
            traces.insert(format!("pin {node} {pin}"));
        }
        let cgroups = found(node, "/sys/fs/cgroup", &["-type", "d", "-name", "*pod*"]);
        // By the systemd driver the rest of a uid is written otherwise.
        let ours = |cgroup: &&String| pods.iter().any(|uid| cgroup.contains(&uid[..8]));
        for cgroup in cgroups.iter().filter(ours) {
            traces.insert(format!("cgroup {node} {cgroup}"));
        }
    }
    let kinds = "clusterrole,clusterrolebinding,role,rolebinding,daemonset,controllerrevision,configmap,secret,\
                 service,serviceaccount,networkpolicy,pod";
    let objects = get(&[kinds, "-A", "-l", "app.kubernetes.io/name=tcptracer"]);
    for object in objects["items"].as_array().expect("a list") {
        traces.insert(format!("{} {}", object["kind"], object["metadata"]["name"]));
    }
    traces
}

/// The uids of the agents' pods.
fn agents() -> Vec<String> {
    let pods = nodes().map(|node| get(&["pod", "-n", NAMESPACE, &agent_on(node)]));
    pods.iter()
        .map(|p| text(&p["metadata"], "uid").into())
        .collect()
}

pub fn leaves_nothing() {
    let mut pods = agents();
    let of_a_kind = |kind: &str, pods: &[String]| {
        let all = traces(pods).into_iter();
        all.filter(|t| t.starts_with(kind)).collect::<Vec<_>>()
    };
    let pins = of_a_kind("pin", &pods);
    assert!(!pins.is_empty());
    assert!(!of_a_kind("cgroup", &pods).is_empty());
    let upgraded = Upgraded::to(&["filterSets.carts=shop:app=cart"]);
    assert!(of_a_kind("pin", &pods).iter().any(|p| p.contains("carts")));
    pods.extend(agents());
    drop(upgraded);
    assert_eq!(of_a_kind("pin", &pods), pins);
    pods.extend(agents());
    uninstall();
    wait_until("nothing is left", || traces(&pods).is_empty());
}
