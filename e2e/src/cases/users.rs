//! Who may do what.

use serde_json::json;

use crate::cluster::{apply, get, kubectl, try_kubectl};
use crate::plugin::{Watch, ended, text};
use crate::release::{NAMESPACE, agent_on};
use crate::world::{address, nodes, service, visit};

/// The chart's role for users.
const ROLE: &str = "tcptracer-user";

/// Makes a user, who has a role where the agents are and where the pods are, or none; and returns a token.
fn user(name: &str, role: Option<&str>) -> String {
    kubectl(&["create", "serviceaccount", "-n", NAMESPACE, name]);
    if let Some(role) = role {
        for namespace in [NAMESPACE, "shop"] {
            let subject = format!("--serviceaccount={NAMESPACE}:{name}");
            let role = format!("--clusterrole={role}");
            kubectl(&[
                "create",
                "rolebinding",
                "-n",
                namespace,
                name,
                &role,
                &subject,
            ]);
        }
    }
    let token = kubectl(&["create", "token", "-n", NAMESPACE, name]);
    token.trim().into()
}

fn forget(name: &str) {
    kubectl(&["delete", "serviceaccount", "-n", NAMESPACE, name]);
    for namespace in [NAMESPACE, "shop"] {
        let binding = ["delete", "rolebinding", "-n", namespace, name];
        kubectl(&[&binding[..], &["--ignore-not-found"]].concat());
    }
}

/// What `kubectl tcptracer` says to who has the token.
fn asked_by(token: &str) -> (Option<i32>, String) {
    let user = ["--token", token, "--agent-namespace", NAMESPACE];
    let question = ["-n", "shop", "cart", "--last", "1", "-o", "name"];
    let ended = ended(&[&question[..], &user].concat());
    (ended.code, ended.out + &ended.err)
}

pub fn roles() {
    let [_, second] = nodes();
    let watch = Watch::start(&["-n", "shop", "cart"], &[second]);
    visit("shop", "cart", "client", &service(), 80);
    watch.events(2);
    watch.end_well();

    let token = user("ann", Some(ROLE));
    assert_eq!(asked_by(&token), (Some(0), "pod/cart\n".into()));
    forget("ann");
    let token = user("eve", None);
    let (code, said) = asked_by(&token);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("list and watch on pods"), "{said}");
    forget("eve");

    // Without any one of its rules it is not enough.
    let role = get(&["clusterrole", ROLE]);
    for (at, rule) in role["rules"]
        .as_array()
        .expect("it has rules")
        .iter()
        .enumerate()
    {
        for verb in rule["verbs"].as_array().expect("it has verbs") {
            // Two are for others: kubectl itself names a pod by `get`, and clusters from 1.35 on take `create` for a tunnel.
            let is_tunnel = rule["resources"] == json!(["pods/portforward"]);
            if verb == "get" {
                continue;
            }
            let mut lesser = json!({
                "apiVersion": role["apiVersion"], "kind": "ClusterRole",
                "metadata": { "name": "lesser" }, "rules": role["rules"],
            });
            let verbs = lesser["rules"][at]["verbs"].as_array_mut();
            verbs.expect("it has verbs").retain(|v| v != verb);
            apply(&lesser);
            let token = user("bob", Some("lesser"));
            let (code, said) = asked_by(&token);
            // What there is now is shown all the same, and it is told that it is not followed.
            if verb != "watch" {
                assert_eq!(code, Some(1), "without {verb}: {said}");
            }
            let why = match is_tunnel {
                true => "pods/portforward",
                false => "list and watch on pods",
            };
            assert!(said.contains(why), "without {verb}: {said}");
            forget("bob");
            kubectl(&["delete", "clusterrole", "lesser"]);
        }
    }
}

/// Neither the events nor the health of an agent can be asked for from a pod.
pub fn network() {
    for node in nodes() {
        let agent = address(NAMESPACE, &agent_on(node));
        for port in [50_051, 9465] {
            let url = format!("http://{agent}:{port}/livez");
            let wget = ["timeout", "5", "wget", "-O", "-", url.as_str()];
            let exec = ["exec", "-n", "shop", "cart", "--"];
            let output = try_kubectl(&[&exec[..], &wget].concat());
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains("Connection refused"), "{url}: {said}");
        }
    }
}

pub fn privileges() {
    let agent = agent_on(nodes()[0]);
    // Tracing is complete with them, or lacks what the node lacks.
    let check = ["--", "/usr/bin/tcptracer-agent", "check"];
    let output = try_kubectl(&[&["exec", "-n", NAMESPACE, &agent][..], &check].concat());
    let said = String::from_utf8_lossy(&output.stdout);
    assert!([Some(0), Some(3)].contains(&output.status.code()), "{said}");

    let pod = get(&["pod", "-n", NAMESPACE, &agent]);
    let spec = &pod["spec"];
    for shared in ["hostNetwork", "hostIPC"] {
        assert!(spec[shared].is_null(), "{shared}");
    }
    assert_eq!(spec["hostPID"], true);
    let [agent] = &spec["containers"].as_array().expect("it has containers")[..] else {
        panic!("there is another container: {spec}");
    };
    assert_eq!(
        agent["securityContext"],
        json!({
            "runAsUser": 0, "runAsGroup": 0,
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "seccompProfile": { "type": "RuntimeDefault" },
            "capabilities": { "drop": ["ALL"], "add": ["BPF", "PERFMON", "SYS_PTRACE"] },
        })
    );
    let volumes = spec["volumes"].as_array().expect("it has volumes").iter();
    let mut host: Vec<_> = volumes
        .filter(|v| !v["hostPath"].is_null())
        .map(|v| text(&v["hostPath"], "path"))
        .collect();
    host.sort_unstable();
    assert_eq!(
        host,
        ["/sys/fs/bpf", "/sys/fs/cgroup", "/sys/kernel/tracing"]
    );
}
