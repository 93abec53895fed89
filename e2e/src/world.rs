//! The pods that talk to each other.
//!
//! | namespace | | on |
//! |---|---|---|
//! | `shop` | `web`, a Deployment with a server and a sidecar, and its Service; `cart`, a client | first, second node |
//! | `depot` | `db`, a server | second |
//! | `hosted` | `gate`, a server on its node's network | first |

use std::env;
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::cluster::{Made, TIMEOUT, apply, get, kubectl, try_kubectl, wait_ready, wait_until};
use crate::plugin::text;

const NAMESPACES: [&str; 3] = ["shop", "depot", "hosted"];

/// Where servers listen.
pub const PORT: u16 = 8080;

/// A port of a node that is nobody's.
pub const NODE_PORT: u16 = 18_080;

/// All of it is gone with the value.
pub struct World(());

impl World {
    pub fn make() -> Self {
        let world = Self(());
        for namespace in NAMESPACES {
            apply(&json!({
                "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace },
            }));
        }
        for namespace in NAMESPACES {
            wait_until("the namespace has its service account", || {
                let account = ["get", "serviceaccount", "default", "-n", namespace];
                try_kubectl(&account).status.success()
            });
        }
        let [first, second] = nodes();
        let template = pod(
            "web",
            first,
            vec![server(PORT), container("sidecar", SLEEP)],
        );
        apply(&json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": { "name": "web", "namespace": "shop" },
            "spec": {
                "selector": { "matchLabels": { "app": "web" } },
                "template": { "metadata": { "labels": { "app": "web" } }, "spec": template["spec"] },
            },
        }));
        apply(&json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "web", "namespace": "shop" },
            "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": PORT }] },
        }));
        make(
            "shop",
            &pod("cart", second, vec![container("client", SLEEP)]),
        );
        make("depot", &pod("db", second, vec![server(PORT)]));
        let mut gate = pod("gate", first, vec![server(NODE_PORT)]);
        gate["spec"]["hostNetwork"] = true.into();
        make("hosted", &gate);
        for namespace in NAMESPACES {
            wait_ready(namespace, &["-l", "app"]);
        }
        world
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let delete = ["delete", "namespace", "--ignore-not-found", "--timeout"];
        let _ = try_kubectl(&[&delete[..], &[TIMEOUT], &NAMESPACES].concat());
    }
}

/// Two nodes that take pods.
pub fn nodes() -> [&'static str; 2] {
    static NODES: OnceLock<Vec<String>> = OnceLock::new();
    let nodes = NODES.get_or_init(|| {
        let nodes = get(&["node"]);
        let nodes = nodes["items"].as_array().expect("a list").iter();
        let free = nodes.filter(|node| node["spec"]["taints"].is_null());
        let name = |node: &Value| {
            node["metadata"]["name"]
                .as_str()
                .expect("a name")
                .to_string()
        };
        free.map(name).collect()
    });
    match &nodes[..] {
        [first, second, ..] => [first, second],
        _ => panic!("these tests need two nodes that take pods; there are {nodes:?}"),
    }
}

/// It does nothing until something is executed in it.
pub const SLEEP: &str = "exec sleep 1000000";

/// Answers HTTP.
fn server(port: u16) -> Value {
    container(
        "server",
        &format!(
            "mkdir -p /tmp/www && echo hello >/tmp/www/index.html && exec httpd -f -p {port} -h /tmp/www"
        ),
    )
}

/// A shell that runs a script.
pub fn container(name: &str, script: &str) -> Value {
    let image = env::var("E2E_PODS_IMAGE").unwrap_or_else(|_| "docker.io/library/busybox:1".into());
    json!({
        "name": name, "image": image, "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", script],
    })
}

/// A pod on a node.
pub fn pod(name: &str, node: &str, containers: Vec<Value>) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "labels": { "app": name } },
        "spec": {
            "nodeSelector": { "kubernetes.io/hostname": node },
            "terminationGracePeriodSeconds": 1,
            "containers": containers,
        },
    })
}

/// Makes a pod of a test, and leaves it to be ready.
#[must_use]
pub fn made(namespace: &str, pod: &Value) -> Made {
    let name = text(&pod["metadata"], "name");
    let made = Made::new(&["pod", "-n", namespace, name]);
    make(namespace, pod);
    made
}

fn make(namespace: &str, pod: &Value) {
    let mut pod = pod.clone();
    pod["metadata"]["namespace"] = namespace.into();
    apply(&pod);
}

/// The pod of the Deployment.
pub fn web() -> String {
    let pods = get(&["pod", "-n", "shop", "-l", "app=web"]);
    let name = pods["items"][0]["metadata"]["name"].as_str();
    name.expect("it has a pod").into()
}

/// A pod's address.
pub fn address(namespace: &str, pod: &str) -> String {
    let pod = get(&["pod", "-n", namespace, pod]);
    pod["status"]["podIP"]
        .as_str()
        .expect("it has an address")
        .into()
}

/// The address of the Service.
pub fn service() -> String {
    let service = get(&["service", "-n", "shop", "web"]);
    service["spec"]["clusterIP"]
        .as_str()
        .expect("it has an address")
        .into()
}

/// Makes one connection from a pod's container: it asks, is answered, and closes.
#[track_caller]
pub fn visit(namespace: &str, pod: &str, container: &str, address: &str, port: u16) {
    let url = format!("http://{address}:{port}/");
    let wget = ["--", "timeout", "60", "wget", "-q", "-O", "/dev/null", &url];
    kubectl(&[&["exec", "-n", namespace, pod, "-c", container][..], &wget].concat());
}
