//! Whom the plugin asks in a cluster, through a fake API server.

use std::os::unix::fs::symlink;
use std::time::Instant;

use serde_json::json;
use tcptracer_proto::v1;

use crate::agent::{Agent, NOBODYS, NOT_OF_N2, connect};
use crate::api::Api;
use crate::deadline::DEADLINE;
use crate::plugin::{Ended, NOTHING_REMEMBERED, Nobody, Plugin, command};

const SEQUENCES: &str = "jsonpath={.node}{.sequence}{\"\\n\"}";

/// Two nodes with an agent each, and pods of the namespace `shop` on both.
async fn two_nodes() -> (Api, Agent, Agent) {
    let api = Api::start().await;
    let (one, two) = (Agent::start("n1").await, Agent::start("n2").await);
    api.agent("agent-1", "n1", one.address);
    api.agent("agent-2", "n2", two.address);
    api.pod("shop", "web-0", "n1", json!({ "app": "web" }));
    api.pod("shop", "cart-0", "n2", json!({ "app": "cart" }));
    (api, one, two)
}

#[tokio::test]
async fn events_of_all_nodes_are_in_order() {
    let (api, mut one, mut two) = two_nodes().await;
    let mut plugin = api.plugin(&["-o", SEQUENCES]);
    let (n1, n2) = (one.watched().await, two.watched().await);
    // The namespace is the context's.
    let filter = v1::Filter {
        namespaces: vec!["shop".into()],
        ..v1::Filter::default()
    };
    assert_eq!(
        (&n1.request.allow, &n2.request.allow),
        (&vec![filter.clone()], &vec![filter])
    );
    n1.live(0).await;
    n2.live(0).await;
    // Nobody is waited for long: on a busy machine what n2 sends may come too late at first.
    let start = Instant::now();
    for first in (0..).step_by(10) {
        n1.events([2, 5].map(|n| connect("web-0", first + n)).into())
            .await;
        n2.events([1, 3, 9].map(|n| connect("cart-0", first + n)).into())
            .await;
        let mut lines = Vec::new();
        for _ in 0..5 {
            lines.push(plugin.line().await);
        }
        let expected = [("n2", 1), ("n1", 2), ("n2", 3), ("n1", 5), ("n2", 9)]
            .map(|(node, n)| format!("{node}{}", first + n));
        if lines == expected {
            break;
        }
        assert!(
            start.elapsed() < DEADLINE,
            "{lines:?} instead of {expected:?}"
        );
    }
    plugin.interrupt().await.well();
}

#[tokio::test]
async fn only_nodes_that_hold_the_pods_are_asked() {
    let (api, mut one, mut two) = two_nodes().await;
    for args in [
        &["-l", "app=cart"][..],
        &["cart-0"],
        &["-A", "--node", "n2"],
        &["-A", "--not", "node=n1,n3"],
    ] {
        let plugin = api.plugin(&[&["-o", "name", "--last", "5"], args].concat());
        let watch = two.watched().await;
        watch.status(false, 1).await;
        watch.events(vec![connect("cart-0", 1)]).await;
        drop(watch);
        assert_eq!(plugin.ended().await.well(), ["pod/cart-0"]);
    }
    assert!(one.is_left_alone());
    assert_eq!(api.forwarded(), ["tcptracer/agent-2"; 4]);
    // Everything is everywhere. That there is nothing is told.
    let plugin = api.plugin(&["-A", "-o", "name", "--last", "5"]);
    let (n1, n2) = (one.watched().await, two.watched().await);
    n1.status(false, 0).await;
    n2.status(false, 0).await;
    drop((n1, n2));
    assert_eq!(
        plugin.ended().await,
        Ended {
            code: Some(0),
            out: vec![],
            err: vec![NOTHING_REMEMBERED.into()],
        }
    );
}

#[tokio::test]
async fn the_past_of_all_nodes_is_in_order_and_counted_together() {
    let (api, mut one, mut two) = two_nodes().await;
    let plugin = api.plugin(&["--last", "3", "-o", SEQUENCES]);
    let (n1, n2) = (one.watched().await, two.watched().await);
    n1.status(false, 9).await;
    n1.events(vec![
        connect("web-0", 1),
        connect("web-0", 4),
        connect("web-0", 6),
    ])
    .await;
    drop(n1);
    n2.status(false, 9).await;
    n2.events(vec![
        connect("cart-0", 2),
        connect("cart-0", 3),
        connect("cart-0", 5),
    ])
    .await;
    drop(n2);
    assert_eq!(plugin.ended().await.well(), ["n14", "n25", "n16"]);
}

#[tokio::test]
async fn pods_that_come_and_go_are_followed() {
    let api = Api::start().await;
    let mut one = Agent::start("n1").await;
    let mut two = Agent::start("n2").await;
    api.agent("agent-1", "n1", one.address);
    api.agent("agent-2", "n2", two.address);
    let mut plugin = api.plugin(&["-l", "app=web", "-o", SEQUENCES]);
    assert_eq!(
        plugin.said().await,
        "no pod is selected (namespace shop, labels app=web); waiting for one"
    );
    api.pod("shop", "web-0", "n1", json!({ "app": "web" }));
    let n1 = one.watched().await;
    n1.live(0).await;
    n1.events(vec![connect("web-0", 1)]).await;
    assert_eq!(plugin.line().await, "n11");
    // Of others nobody asks.
    api.pod("shop", "cart-0", "n2", json!({ "app": "cart" }));
    api.pod("other", "web-0", "n2", json!({ "app": "web" }));
    api.pod("shop", "web-1", "n1", json!({ "app": "web" }));
    // What the last pod does last is still shown.
    api.delete("shop", "web-0");
    api.delete("shop", "web-1");
    n1.events(vec![connect("web-0", 2)]).await;
    assert_eq!(plugin.line().await, "n12");
    // A pod is given the labels.
    api.pod("shop", "cart-0", "n2", json!({ "app": "web" }));
    let n2 = two.watched().await;
    n2.live(0).await;
    n2.events(vec![connect("cart-0", 3)]).await;
    assert_eq!(plugin.line().await, "n23");
    plugin.interrupt().await.well();
    assert_eq!(api.forwarded(), ["tcptracer/agent-1", "tcptracer/agent-2"]);
}

#[tokio::test]
async fn a_node_without_an_agent_is_told_and_followed_once_it_has_one() {
    let api = Api::start().await;
    let mut one = Agent::start("n1").await;
    let mut two = Agent::start("n2").await;
    api.agent("agent-1", "n1", one.address);
    api.pod("shop", "web-0", "n1", json!({}));
    api.pod("shop", "web-1", "n2", json!({}));
    let mut plugin = api.plugin(&["-o", SEQUENCES]);
    assert_eq!(
        plugin.said().await,
        "n2 has no agent: nothing of it is shown"
    );
    let n1 = one.watched().await;
    n1.live(0).await;
    n1.events(vec![connect("web-0", 1)]).await;
    assert_eq!(plugin.line().await, "n11");
    api.agent("agent-2", "n2", two.address);
    let n2 = two.watched().await;
    n2.live(0).await;
    n2.events(vec![connect("web-1", 2)]).await;
    assert_eq!(plugin.line().await, "n22");
    assert_eq!(
        plugin.interrupt().await,
        Ended {
            code: Some(3),
            out: vec![],
            err: vec!["nodes not heard all the time: n2".into()],
        }
    );
}

#[tokio::test]
async fn an_agent_that_is_not_ready_says_itself_what_is_wrong() {
    let (api, mut one, mut two) = two_nodes().await;
    let waiting = |reason: &str| json!({ "waiting": { "reason": reason } });
    api.agent_in("agent-1", "n1", one.address, json!({ "running": {} }));
    let ask = |args: &[&str]| api.plugin(&[args, &["-o", "name"]].concat()).ended();
    assert_eq!(ask(&["status"]).await.well(), ["node/n1", "node/n2"]);
    assert_eq!(ask(&["connections"]).await.well().len(), 4);

    // One that cannot be asked is told, with the reason.
    api.agent_in("agent-2", "n2", two.address, waiting("CrashLoopBackOff"));
    let why = "the agent of n2 does not run (CrashLoopBackOff): nothing of it is shown";
    for args in [&["status"][..], &["connections", "web-0", "cart-0"]] {
        let ended = ask(args).await;
        assert_eq!((ended.code, ended.err), (Some(3), vec![why.into()]));
    }
    api.agent_in("agent-1", "n1", one.address, waiting("ImagePullBackOff"));
    assert_eq!(
        ask(&["status"]).await,
        Ended {
            code: Some(1),
            out: vec![],
            err: vec![
                "the agent of n1 does not run (ImagePullBackOff): nothing of it is shown".into(),
                why.into(),
            ],
        }
    );
    assert!(one.is_left_alone() && two.is_left_alone());

    // What is live follows each of them as soon as it runs.
    let mut plugin = api.plugin(&["-o", SEQUENCES]);
    plugin.said().await;
    assert_eq!(plugin.said().await, why);
    api.agent_in("agent-2", "n2", two.address, waiting("RunContainerError"));
    api.agent_in("agent-2", "n2", two.address, json!({ "running": {} }));
    let n2 = two.watched().await;
    n2.live(0).await;
    n2.events(vec![connect("cart-0", 1)]).await;
    assert_eq!(plugin.line().await, "n21");
    assert!(one.is_left_alone());
    assert_eq!(
        plugin.interrupt().await,
        Ended {
            code: Some(3),
            out: vec![],
            err: vec!["nodes not heard all the time: n1, n2".into()],
        }
    );
}

const NO_AGENT: &str =
    "found no agent (labels app.kubernetes.io/name=tcptracer,app.kubernetes.io/component=agent)";

#[tokio::test]
async fn without_any_agent_one_is_waited_for() {
    let api = Api::start().await;
    let mut one = Agent::start("n1").await;
    let mut plugin = api.plugin(&["-A", "-o", SEQUENCES]);
    assert_eq!(plugin.said().await, format!("{NO_AGENT}; waiting for one"));
    api.agent("agent-1", "n1", one.address);
    let n1 = one.watched().await;
    n1.live(0).await;
    n1.events(vec![connect("web-0", 1)]).await;
    assert_eq!(plugin.line().await, "n11");
    assert_eq!(
        plugin.interrupt().await,
        Ended {
            code: Some(3),
            out: vec![],
            err: vec!["for some time there was no agent".into()],
        }
    );
}

#[tokio::test]
async fn without_any_agent_there_is_nothing_to_show() {
    let api = Api::start().await;
    api.pod("shop", "web-0", "n1", json!({}));
    for args in [
        &["status"][..],
        &["connections", "-A", "-o", "name"],
        &["connections", "-o", "name"],
        &["status", "-l", "app=none"],
    ] {
        let ended = api.plugin(args).ended().await;
        assert_eq!((ended.code, ended.out), (Some(1), vec![]), "{args:?}");
        assert_eq!(ended.err[0], format!("{NO_AGENT}; nothing to show"));
    }
    let ended = api.plugin(&["--last", "5", "-o", "name"]).ended().await;
    assert_eq!(
        ended,
        Ended {
            code: Some(1),
            out: vec![],
            err: vec![
                format!("{NO_AGENT}; nothing to show"),
                "nodes not heard all the time: n1".into(),
            ],
        }
    );
    let ended = api
        .plugin(&["status", "--agent-namespace", "elsewhere"])
        .ended()
        .await;
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.err[0].starts_with("found no agent (namespace elsewhere, labels "),
        "{:?}",
        ended.err
    );
}

#[tokio::test]
async fn a_selector_that_matches_nothing() {
    let (api, mut one, mut two) = two_nodes().await;
    // Its pod is on the other node.
    let on_n2 = ["web-0", "--node", "n2", "-o", "name"];
    let nothing = "no pod is selected (namespace shop, pod web-0, node n2)";
    let mut plugin = api.plugin(&on_n2);
    assert_eq!(plugin.said().await, format!("{nothing}; waiting for one"));
    plugin.interrupt().await.well();

    for more in [&["--since", "5m"][..], &["--last", "1"]] {
        let ended = api.plugin(&[&on_n2, more].concat()).ended().await;
        assert_eq!((ended.code, ended.out), (Some(0), vec![]), "{more:?}");
        assert_eq!(ended.err, [format!("{nothing}; nothing to show")]);
    }
    for command in ["connections", "status"] {
        let args = ["-l", "app=none", "-n", "shop", "-o", "name", command];
        assert_eq!(
            api.plugin(&args).ended().await,
            Ended {
                code: Some(0),
                out: vec![],
                err: vec![
                    "no pod is selected (namespace shop, labels app=none); nothing to show".into()
                ],
            }
        );
    }
    assert!(one.is_left_alone() && two.is_left_alone());
}

#[tokio::test]
async fn the_past_of_a_node_that_breaks_is_not_asked_for_again() {
    let (api, mut one, mut two) = two_nodes().await;
    let mut plugin = api.plugin(&["--since", "5m", "-o", SEQUENCES]);
    let (n1, n2) = (one.watched().await, two.watched().await);
    n2.status(false, 9).await;
    n2.events(vec![connect("cart-0", 1), connect("cart-0", 3)])
        .await;
    n2.fail(tonic::Status::unavailable("shutting down")).await;
    assert_eq!(plugin.said().await, "n2 is not heard: shutting down");
    n1.status(false, 9).await;
    n1.events(vec![connect("web-0", 2)]).await;
    drop(n1);
    assert_eq!(
        plugin.ended().await,
        Ended {
            code: Some(3),
            out: vec!["n21".into(), "n12".into(), "n23".into()],
            err: vec!["nodes not heard all the time: n2".into()],
        }
    );
    assert!(two.is_left_alone());
}

#[tokio::test]
async fn what_one_agent_refuses_others_show() {
    let (api, mut one, mut two) = two_nodes().await;
    let refuses = "n2 refuses: allow[0].pids: no ?[31msuch pid";
    let mut plugin = api.plugin(&["-p", NOT_OF_N2, "--last", "5", "-o", SEQUENCES]);
    let n1 = one.watched().await;
    n1.status(false, 9).await;
    n1.events(vec![connect("web-0", 1)]).await;
    assert_eq!(plugin.said().await, refuses);
    drop(n1);
    assert_eq!(
        plugin.ended().await,
        Ended {
            code: Some(3),
            out: vec!["n11".into()],
            err: vec!["nodes not heard all the time: n2".into()],
        }
    );

    let args = ["connections", "-p", NOT_OF_N2, "-o", SEQUENCES];
    let ended = api.plugin(&args).ended().await;
    assert_eq!((ended.code, ended.out.len()), (Some(3), 2));
    assert_eq!(ended.err, [refuses]);

    // The agent that takes the place of the one that refuses is asked again.
    let mut plugin = api.plugin(&["-p", NOT_OF_N2, "-o", SEQUENCES]);
    let n1 = one.watched().await;
    n1.live(0).await;
    assert_eq!(plugin.said().await, refuses);
    let mut newer = Agent::start("n2 as well").await;
    api.agent("agent-3", "n2", newer.address);
    api.delete("tcptracer", "agent-2");
    let n2 = newer.watched().await;
    n2.live(0).await;
    n2.events(vec![connect("cart-0", 4)]).await;
    assert_eq!(plugin.line().await, "n2 as well4");
    assert_eq!(plugin.interrupt().await.code, Some(3));
    assert!(two.is_left_alone());
}

#[tokio::test]
async fn what_all_agents_refuse_is_the_users_error() {
    let (api, _one, _two) = two_nodes().await;
    for args in [&[][..], &["--last", "5"], &["connections"]] {
        let args = [&["-p", NOBODYS, "-o", "name"], args].concat();
        assert_eq!(
            api.plugin(&args).ended().await,
            Ended {
                code: Some(2),
                out: vec![],
                err: vec!["allow[0].pids: no ?[31msuch pid".into()],
            }
        );
    }
}

#[tokio::test]
async fn an_agent_that_is_replaced() {
    let api = Api::start().await;
    let mut old = Agent::start("n1").await;
    let mut new = Agent::start("n1").await;
    api.agent("old", "n1", old.address);
    api.pod("shop", "web-0", "n1", json!({}));
    let mut plugin = api.plugin(&["-o", SEQUENCES]);
    let watch = old.watched().await;
    watch.live(7).await;
    watch.events(vec![connect("web-0", 8)]).await;
    assert_eq!(plugin.line().await, "n18");
    api.agent("new", "n1", new.address);
    api.delete("tcptracer", "old");
    watch
        .fail(tonic::Status::unavailable("shutting down"))
        .await;
    assert_eq!(
        plugin.said().await,
        "n1 is not heard: shutting down; trying again"
    );
    let watch = new.watched().await.in_run(2);
    watch.live(0).await;
    watch.events(vec![connect("web-0", 1)]).await;
    assert_eq!(plugin.said().await, "n1 is heard again");
    assert_eq!(
        plugin.said().await,
        "the agent of n1 has started again: what happened in between is not shown"
    );
    assert_eq!(plugin.line().await, "n11");
    assert_eq!(plugin.interrupt().await.code, Some(3));
}

#[tokio::test]
async fn there_is_a_limit_on_tunnels() {
    let (api, mut one, mut two) = two_nodes().await;
    let mut plugin = api.plugin(&["--max-nodes", "1", "-o", "name"]);
    assert_eq!(
        plugin.said().await,
        "1 nodes are not asked, 1 are (--max-nodes)"
    );
    let n1 = one.watched().await;
    n1.live(0).await;
    let ended = plugin.interrupt().await;
    assert_eq!(
        (ended.code, ended.err),
        (Some(3), vec!["nodes beyond --max-nodes: 1".into()])
    );
    assert!(two.is_left_alone());
}

#[tokio::test]
async fn an_agent_that_does_not_answer_does_not_stop_the_others() {
    let (api, mut one, _two) = two_nodes().await;
    let nobody = Nobody::new();
    api.agent("agent-2", "n2", nobody.address());
    let mut plugin = api.plugin(&["-o", SEQUENCES]);
    let n1 = one.watched().await;
    n1.live(0).await;
    n1.events(vec![connect("web-0", 1)]).await;
    assert_eq!(plugin.line().await, "n11");
    assert_eq!(
        plugin.said().await,
        "n2 is not heard: nobody listens on the port; trying again"
    );
    assert_eq!(plugin.interrupt().await.code, Some(3));

    let status = api.plugin(&["status", "-o", "name"]).ended().await;
    assert_eq!((status.code, status.out), (Some(3), vec!["node/n1".into()]));
    assert!(
        status.err[0].starts_with("n2 is not heard: "),
        "{:?}",
        status.err
    );
}

#[tokio::test]
async fn connections_and_status_of_all_nodes() {
    let (api, _one, _two) = two_nodes().await;
    assert_eq!(
        api.plugin(&[
            "connections",
            "-o",
            "jsonpath={.node} {.namespace} {.pod}{\"\\n\"}"
        ])
        .ended()
        .await
        .well(),
        ["n1 shop a", "n2 shop a", "n1 shop b", "n2 shop b"]
    );
    assert_eq!(
        api.plugin(&["connections", "web-0", "-o", "name"])
            .ended()
            .await
            .well()
            .len(),
        2
    );
    assert_eq!(
        api.plugin(&["status", "-o", "name"]).ended().await.well(),
        ["node/n1", "node/n2"]
    );
}

#[tokio::test]
async fn a_user_who_may_look_into_some_namespaces() {
    let (api, mut one, _two) = two_nodes().await;
    api.allow_only(&["shop", "tcptracer"]);
    let plugin = api.plugin(&["web-0", "--last", "1", "-o", "name"]);
    let watch = one.watched().await;
    watch.status(false, 1).await;
    watch.events(vec![connect("web-0", 1)]).await;
    drop(watch);
    assert_eq!(plugin.ended().await.well(), ["pod/web-0"]);

    api.allow_only(&["tcptracer"]);
    let ended = api.plugin(&["web-0", "-o", "name"]).ended().await;
    assert_eq!((ended.code, ended.out), (Some(1), vec![]));
    assert!(
        ended.err[0].contains("list and watch on pods"),
        "{:?}",
        ended.err
    );
    api.allow_only(&["shop"]);
    let ended = api.plugin(&["web-0", "-o", "name"]).ended().await;
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.err[0].contains("--agent-namespace"),
        "{:?}",
        ended.err
    );
}

#[tokio::test]
async fn a_cluster_that_cannot_be_reached() {
    let config = Api::start().await.kubeconfig();
    let nobody = Nobody::new();
    let address = nobody.address().to_string();
    let url = format!("http://{address}");
    for (args, why) in [
        (vec!["--kubeconfig", "/nonexistent"], "/nonexistent"),
        (vec![], "found no cluster"),
        (vec!["-s", &url], &address[..]),
        (vec!["--kubeconfig", &config], "kubeconfig"),
    ] {
        let ended = Plugin::start(&args).ended().await;
        assert_eq!((ended.code, &ended.out[..]), (Some(1), &[][..]), "{args:?}");
        assert!(ended.err[0].contains(why), "{args:?} {:?}", ended.err);
    }
}

#[tokio::test]
async fn a_cluster_that_does_not_answer() {
    // It accepts, and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let silent = silent.expect("a port");
    let url = format!("http://{}/", silent.local_addr().expect("an address"));
    for more in [&[][..], &["--agent-namespace", "a"], &["status"]] {
        let args = [&["-s", &url, "--request-timeout", "1s"], more].concat();
        assert_eq!(
            Plugin::start(&args).ended().await,
            Ended {
                code: Some(1),
                out: vec![],
                err: vec![format!(
                    "the cluster at {url}: no answer within 1s (--request-timeout)"
                )],
            }
        );
    }
}

#[tokio::test]
async fn what_is_followed_may_be_silent_for_longer() {
    let (api, mut one, mut two) = two_nodes().await;
    // Enough for each answer on a busy machine.
    let args = ["--request-timeout", "5s", "--duration", "12s"];
    let plugin = api.plugin(&[&args[..], &["-o", "name"]].concat());
    let (n1, n2) = (one.watched().await, two.watched().await);
    n1.live(0).await;
    n2.live(0).await;
    assert_eq!(plugin.ended().await.well(), [""; 0]);
    assert!(one.is_left_alone() && two.is_left_alone());
}

#[tokio::test]
async fn the_kubeconfigs_that_there_are() {
    let (api, _one, _two) = two_nodes().await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (empty, broken) = (file("empty"), file("broken"));
    std::fs::write(&empty, "").expect("a file");
    std::fs::write(&broken, "clusters: [").expect("a file");
    let with = |paths: &[&str], args: &[&str]| {
        let mut command = command(&[&["status", "-o", "name"], args].concat());
        let paths = std::env::join_paths(paths).expect("paths");
        Plugin::spawn(command.env("KUBECONFIG", paths)).ended()
    };
    // Those that are not there do not count.
    let good = api.kubeconfig();
    assert_eq!(
        with(&[&file("gone"), &empty, &good], &[]).await.well(),
        ["node/n1", "node/n2"]
    );
    for (paths, args, why) in [
        (
            vec![&broken[..], &good],
            vec![],
            format!("cannot use the kubeconfig {broken}: "),
        ),
        (
            vec![&empty],
            vec![],
            "found no cluster: set --kubeconfig or $KUBECONFIG, or ask one agent with --server"
                .into(),
        ),
        (
            vec![&empty],
            vec!["--context", "c"],
            "there is no kubeconfig with a context c: set --kubeconfig".into(),
        ),
    ] {
        let ended = with(&paths, &args).await;
        assert_eq!((ended.code, &ended.out[..]), (Some(1), &[][..]), "{why}");
        assert!(ended.err[0].starts_with(&why), "{:?}", ended.err);
    }
    let odd = file("odd");
    let kubeconfig = std::fs::read_to_string(&good).expect("a kubeconfig");
    std::fs::write(&odd, kubeconfig.replace("http://", "")).expect("a file");
    let ended = with(&[&odd], &[]).await;
    let why = "the address of the API server is no URL, such as https://HOST:PORT: 127.0.0.1:";
    assert_eq!(ended.code, Some(1));
    assert!(ended.err[0].starts_with(why), "{:?}", ended.err);
}

#[tokio::test]
async fn tokens_that_were_written_by_hand() {
    let (api, _one, _two) = two_nodes().await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("token");
    std::fs::write(&file, "from-a-file\r\n").expect("a file");
    let with = |user: &str| {
        let users = format!("users: [{{name: u, user: {{{user}}}}}]");
        let kubeconfig = api.kubeconfig_with("users: []", &users);
        Plugin::start(&["--kubeconfig", &kubeconfig, "status", "-o", "name"]).ended()
    };
    for (user, header) in [
        (r#"token: "inline\n""#.to_string(), "Bearer inline"),
        (
            format!("tokenFile: '{}'", file.display()),
            "Bearer from-a-file",
        ),
    ] {
        assert_eq!(with(&user).await.well(), ["node/n1", "node/n2"]);
        assert_eq!(api.header("authorization"), [header]);
    }
    assert_eq!(
        with(r#"token: "in\nline""#).await,
        Ended {
            code: Some(1),
            out: vec![],
            err: vec!["the token of the user has control characters, a line break perhaps".into()],
        }
    );
}

#[tokio::test]
async fn credentials_of_another_program() {
    let (api, _one, _two) = two_nodes().await;
    // It is told which cluster they are for.
    let script = r#"case $KUBERNETES_EXEC_INFO in *http://127.0.0.1:*) token=from-exec ;; esac
        echo '{ "apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
                "status": { "token": "'$token'" } }'"#;
    let exec = json!({
        "apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Never", "provideClusterInfo": true,
        "command": "/bin/sh", "args": ["-c", script],
    });
    let users = format!("users: [{{name: u, user: {{exec: {exec}}}}}]");
    let kubeconfig = api.kubeconfig_with("users: []", &users);
    let status = Plugin::start(&["--kubeconfig", &kubeconfig, "status", "-o", "name"]);
    assert_eq!(status.ended().await.well(), ["node/n1", "node/n2"]);
    assert_eq!(api.header("authorization"), ["Bearer from-exec"]);
}

#[tokio::test]
async fn who_asks_is_for_flags_to_say() {
    let (api, _one, _two) = two_nodes().await;
    for (args, header, values) in [
        (&[][..], "authorization", &[][..]),
        (&["--token", "t"], "authorization", &["Bearer t"]),
        (
            &["--username", "ann", "--password", "p@w"],
            "authorization",
            &["Basic YW5uOnBAdw=="],
        ),
        (&["--as", "bob"], "impersonate-user", &["bob"]),
        (
            &["--as", "bob", "--as-group", "a", "--as-group", "b"],
            "impersonate-group",
            &["a", "b"],
        ),
        (&["--as", "bob", "--as-uid", "7"], "impersonate-uid", &["7"]),
        (
            &["--as", "bob", "--as-user-extra", "team=x"],
            "impersonate-extra-team",
            &["x"],
        ),
    ] {
        let args = [&["status", "-o", "name"], args].concat();
        let status = api.plugin(&args).ended().await;
        assert_eq!(status.well(), ["node/n1", "node/n2"], "{args:?}");
        assert_eq!(api.header(header), values, "{args:?}");
    }
}

#[tokio::test]
async fn completion_knows_the_cluster() {
    let (api, _one, _two) = two_nodes().await;
    let folder = tempfile::tempdir().expect("a folder");
    let called = folder.path().join("kubectl_complete-tcptracer");
    symlink(env!("CARGO_BIN_EXE_kubectl-tcptracer"), &called).expect("a link");
    for (words, expected) in [
        (
            &[""][..],
            "connections\nstatus\ncompletion\nhelp\ncart-0\nweb-0\n:4\n",
        ),
        (&["c"], "connections\ncompletion\ncart-0\n:4\n"),
        (&["connections", "w"], "web-0\n:4\n"),
        (&["-n", ""], "shop\ntcptracer\n:4\n"),
        (&["--namespace=sh"], "--namespace=shop\n:4\n"),
        (&["-n", "tcptracer", "agent-1"], "agent-1\n:4\n"),
        (&["--context", ""], "c\n:4\n"),
    ] {
        let mut command = tokio::process::Command::new(&called);
        command.args(words).env("KUBECONFIG", api.kubeconfig());
        let mut completed = async || {
            let output = command.output().await.expect("it runs");
            String::from_utf8(output.stdout).expect("text")
        };
        // It does not wait long for the cluster: on a busy machine it may know it only another time.
        let start = Instant::now();
        let mut said = completed().await;
        while said != expected && start.elapsed() < DEADLINE {
            said = completed().await;
        }
        assert_eq!(said, expected, "{words:?}");
    }
}
