//! Who may do what.

use serde_json::json;

use crate::cluster::{Made, NAMESPACE, apply, get, kubectl, try_kubectl};
use crate::plugin::{Watch, ended, text};
use crate::release::agent_on;
use crate::world::{address, nodes, service, visit};

/// The chart's role for users.
const ROLE: &str = "tcptracer-user";

/// Who has a role where the agents are and where the pods are, or none; until the end of the value.
struct User {
    token: String,
    _made: Vec<Made>,
}

fn user(name: &str, role: Option<&str>) -> User {
    let mut made = vec![Made::new(&["serviceaccount", "-n", NAMESPACE, name])];
    kubectl(&["create", "serviceaccount", "-n", NAMESPACE, name]);
    if let Some(role) = role {
        for namespace in [NAMESPACE, "shop"] {
            made.push(Made::new(&["rolebinding", "-n", namespace, name]));
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
    User {
        token: token.trim().into(),
        _made: made,
    }
}

/// What `kubectl tcptracer` says to a user.
fn asked_by(user: &User) -> (Option<i32>, String) {
    let user = ["--token", &user.token, "--agent-namespace", NAMESPACE];
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

    let ann = user("ann", Some(ROLE));
    assert_eq!(asked_by(&ann), (Some(0), "pod/cart\n".into()));
    let (code, said) = asked_by(&user("eve", None));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("list and watch on pods"), "{said}");

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
            let _role = Made::new(&["clusterrole", "lesser"]);
            apply(&lesser);
            let (code, said) = asked_by(&user("bob", Some("lesser")));
            // What there is now is shown all the same, and it is told that it is not followed.
            if verb != "watch" {
                assert_eq!(code, Some(1), "without {verb}: {said}");
            }
            let why = match is_tunnel {
                true => "pods/portforward",
                false => "list and watch on pods",
            };
            assert!(said.contains(why), "without {verb}: {said}");
        }
    }
}

/// Neither the events nor the health of an agent can be asked for from a pod.
pub fn network() {
    for node in nodes() {
        let agent = address(NAMESPACE, &agent_on(node));
        for port in [50_051, 9465] {
            let url = format!("http://{agent}:{port}/livez");
            let wget = ["timeout", "60", "wget", "-O", "-", url.as_str()];
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
