//! What is shown of which pods.

use std::process::{Command, Stdio};

use serde_json::json;

use super::ends::{assert_ends, client, line, server};
use crate::cluster::{Made, apply, get, kubectl, wait_until};
use crate::plugin::{Watch, ended, objects, since, tell, text};
use crate::world::{
    NODE_PORT, PORT, SLEEP, address, container, made, nodes, pod, service, visit, web,
};

/// The client is on the second node and asks by the Service, the server is on the first.
pub fn both_ends() {
    let [first, second] = nodes();
    let web = format!("shop/{}/server", web());
    let service = service();
    let watch = Watch::start(&["-n", "shop"], &[first, second]);
    // Of others nothing is shown.
    visit("depot", "db", "server", &address("depot", "db"), PORT);
    visit("shop", "cart", "client", &service, 80);

    let events = watch.events(4);
    let ends = [client(second, "shop/cart/client"), server(first, &web)];
    assert_ends(&events, &ends);
    let [connect, accept] = ["connect", "accept"].map(|kind| {
        let event = events.iter().find(|e| text(e, "type") == kind);
        event.expect("it was opened")
    });
    assert_eq!(text(connect, "daddr"), service);
    assert_eq!(connect["dport"], 80);
    assert_eq!(text(connect, "saddr"), address("shop", "cart"));
    // Its server listens on IPv6, and so for IPv4 as well.
    let mapped = format!("::ffff:{}", address("shop", "cart"));
    assert_eq!(text(accept, "daddr"), mapped);
    assert_eq!(accept["sport"], PORT);
    assert_eq!(accept["dport"], connect["sport"]);
    assert_eq!(
        accept["workload"],
        json!({ "kind": "Deployment", "name": "web" })
    );
    assert_eq!(text(accept, "attribution"), "resolved");
    watch.end_well();
}

pub fn table() {
    let [first, second] = nodes();
    let watch = Watch::start(&["-n", "shop"], &[first, second]);
    visit("shop", "cart", "client", &service(), 80);
    watch.events(4);
    watch.end_well();

    let text = tell(&["-n", "shop", "--last", "4"]);
    let rows: Vec<Vec<&str>> = text
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    assert_eq!(
        rows[0].join(" "),
        "NODE NAMESPACE POD CONTAINER T PID COMM IP SADDR DADDR SPORT DPORT"
    );
    let (web, service) = (web(), service());
    let mut shown: Vec<_> = rows[1..]
        .iter()
        .map(|r| [&r[..5], &r[6..8]].concat().join(" "))
        .collect();
    shown.sort();
    let mut expected = Vec::new();
    for kind in ["C", "X"] {
        expected.push(format!("{second} shop cart client {kind} wget 4"));
    }
    for kind in ["A", "X"] {
        expected.push(format!("{first} shop {web} server {kind} httpd 6"));
    }
    expected.sort();
    assert_eq!(shown, expected);
    assert!(rows[1..].iter().any(|r| r[9] == service), "{text}");
}

/// Labels, a pod, a container, and everything.
pub fn selections() {
    let [first, second] = nodes();
    let web = web();
    let who = format!("shop/{web}/server");
    let ask = || visit("shop", "cart", "client", &service(), 80);

    for (arguments, node) in [
        (vec!["-n", "shop", "-l", "app=cart"], second),
        (vec!["-n", "shop", "cart"], second),
        (vec!["-n", "shop", "-l", "app in (web)"], first),
        (vec!["-n", "shop", &web, "-c", "server"], first),
    ] {
        // Only nodes that hold a pod that is selected are asked.
        let watch = Watch::start(&arguments, &[node]);
        ask();
        let end = match node == second {
            true => client(second, "shop/cart/client"),
            false => server(first, &who),
        };
        assert_ends(&watch.events(2), &[end]);
        watch.end_well();
    }

    let watch = Watch::start(
        &["-A", "--port", "8080", "--not", "namespace=depot"],
        &[first, second],
    );
    visit("depot", "db", "server", &address("shop", &web), PORT);
    assert_ends(&watch.events(2), &[server(first, &who)]);
    watch.end_well();

    let sidecar = Watch::start(&["-n", "shop", &web, "-c", "sidecar"], &[first]);
    ask();
    visit("shop", &web, "sidecar", &address("depot", "db"), PORT);
    let who = format!("shop/{web}/sidecar");
    assert_ends(&sidecar.events(2), &[client(first, &who)]);
    sidecar.end_well();
}

/// A Job, an init container and a pod on its node's network.
pub fn kinds_of_pods() {
    let [first, second] = nodes();
    let here = address("depot", "db");
    let node_address = {
        let gate = get(&["pod", "-n", "hosted", "gate"]);
        text(&gate["status"], "hostIP").to_string()
    };
    let ask = |address: &str, port| format!("exec wget -q -O /dev/null http://{address}:{port}/");

    let watch = Watch::start_early(&["-n", "hosted,shop", "-l", "app notin (web,cart)"]);
    watch.wait_live(&[first]);
    let job = container("visit", &ask(&node_address, NODE_PORT));
    let _job = Made::new(&["job", "-n", "shop", "visit", "--cascade=foreground"]);
    apply(&json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": { "name": "visit", "namespace": "shop" },
        "spec": {
            "backoffLimit": 0,
            "template": {
                "metadata": { "labels": { "app": "visit" } },
                "spec": {
                    "restartPolicy": "Never",
                    "nodeSelector": { "kubernetes.io/hostname": second },
                    "containers": [job],
                },
            },
        },
    }));
    let events = watch.events(4);
    let client_pod = events
        .iter()
        .find(|e| text(e, "type") == "connect")
        .expect("it connected");
    let who = format!("shop/{}/visit", text(client_pod, "pod"));
    assert!(
        text(client_pod, "pod").starts_with("visit-"),
        "{client_pod}"
    );
    assert_ends(
        &events,
        &[client(second, &who), server(first, "hosted/gate/server")],
    );
    assert_eq!(
        client_pod["workload"],
        json!({ "kind": "Job", "name": "visit" })
    );
    let gate = events
        .iter()
        .find(|e| text(e, "type") == "accept")
        .expect("it accepted");
    assert_eq!(gate["host_network"], true);

    let mut both = pod("prepared", second, vec![container("main", SLEEP)]);
    both["spec"]["initContainers"] = json!([container("prepare", &ask(&here, PORT))]);
    let _prepared = made("shop", &both);
    let events = watch.events(2);
    for (event, kind) in events.iter().zip(["connect", "close"]) {
        // The kubelet says which container it is only later.
        let container = text(event, "container");
        assert!(["", "prepare"].contains(&container), "{event}");
        assert_eq!(
            line(event),
            format!("{kind} {second} shop/prepared/{container} wget")
        );
    }
    watch.end_well();
}

/// What agents remember, and what is open now.
pub fn past_and_present() {
    let [first, second] = nodes();
    let who = format!("shop/{}/server", web());
    let ends = || [client(second, "shop/cart/client"), server(first, &who)];
    let watch = Watch::start(&["-n", "shop"], &[first, second]);
    visit("shop", "cart", "client", &service(), 80);
    assert_ends(&watch.events(4), &ends());
    watch.end_well();

    assert_ends(&objects(&["-n", "shop", "--last", "4"]), &ends());
    let all = since(&["-n", "shop", "--since", "10m"]);
    assert!(all.len() >= 4 && all.len().is_multiple_of(2), "{all:#?}");
    assert_ends(&all[all.len() - 4..], &ends());

    let open = |expected: usize| {
        let open = objects(&["connections", "-n", "shop", "cart"]);
        (open.len() == expected).then_some(open)
    };
    let are_closed = || open(0).is_some();
    wait_until("the connections are closed", are_closed);
    let mut holder = Command::new("kubectl")
        .args(["exec", "-n", "shop", "cart", "--", "sh", "-c"])
        .arg(format!(
            "sleep 1000000 | exec nc {} {PORT}",
            address("shop", &web())
        ))
        .stderr(Stdio::null())
        .spawn()
        .expect("kubectl can be run");
    let mut found = None;
    wait_until("the connection is listed", || {
        found = open(1);
        found.is_some()
    });
    let found = found.expect("it is there");
    assert_eq!(
        line(&found[0]),
        format!("existing {second} shop/cart/client nc")
    );
    kubectl(&["exec", "-n", "shop", "cart", "--", "killall", "nc", "sleep"]);
    holder.wait().expect("it ends");
    wait_until("the connection is gone", are_closed);
}

pub fn status() {
    let agents = objects(&["status"]);
    let nodes_told: Vec<_> = agents.iter().map(|a| text(a, "node")).collect();
    assert_eq!(nodes_told, nodes());
    for agent in &agents {
        assert_eq!(text(agent, "version"), env!("CARGO_PKG_VERSION"));
        assert_eq!(agent["pods"]["source"], "api");
        assert_eq!(agent["pods"]["synced"], true);
        // What strangers lose is none of ours.
        let lost = agent["lost"].as_array().expect("a list").iter();
        let mut ours = lost.filter(|lost| lost["source"] != "untracked");
        assert_eq!(ours.next(), None);
        assert_eq!(agent["shortcomings"], json!([]));
    }
    // Exactly its own, although it may see those of other nodes as well.
    wait_until("each agent knows the pods of its node", || {
        objects(&["status"]).iter().all(|agent| {
            let field = format!("spec.nodeName={}", text(agent, "node"));
            let pods = get(&["pod", "-A", "--field-selector", &field]);
            let there = pods["items"].as_array().map(Vec::len);
            agent["pods"]["known"].as_u64().map(|n| n as usize) == there
        })
    });
    let some = ended(&["status", "--node", nodes()[0], "-o", "name"]);
    assert_eq!(
        (some.code, some.out),
        (Some(0), format!("node/{}\n", nodes()[0])),
        "{}",
        some.err
    );
}
