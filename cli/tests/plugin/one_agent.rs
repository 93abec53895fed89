//! `--server`: one agent, without a cluster.

use std::fs::File;
use std::io::{self, Read};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::{Value, json};
use tcptracer_proto::v1::watch_response::Message;
use tcptracer_proto::v1::{self, Position, watch_request::History};
use tonic::Status;

use crate::agent::{Agent, IDLE, NOBODYS, close, connect, connection};
use crate::deadline::soon;
use crate::plugin::{Ended, NOTHING_REMEMBERED, Nobody, Plugin, command};

/// What a plugin writes when its agent has these events.
async fn written(args: &[&str], events: Vec<v1::Event>) -> Vec<String> {
    let mut agent = Agent::start("node-1").await;
    let plugin = Plugin::of(&agent, &[&["--last", "9"], args].concat());
    let watch = agent.watched().await;
    watch.status(false, 9).await;
    watch.events(events).await;
    drop(watch);
    plugin.ended().await.well()
}

fn both() -> Vec<v1::Event> {
    vec![connect("web-0", 1), close("web-0", 2)]
}

#[tokio::test]
async fn rows() {
    assert_eq!(
        written(&[], both()).await,
        [
            "NODE         NAMESPACE    POD                      CONTAINER  T  PID    COMM             IP SADDR            DADDR            SPORT  DPORT",
            "node-1       shop         web-0                    main       C  42     curl             4  10.0.0.1         10.0.0.2         40000  80",
            "node-1       shop         web-0                    main       X  44     reaper           4  10.0.0.1         10.0.0.2         40000  80",
        ]
    );
    assert_eq!(
        written(&["-v", "-t"], both()).await,
        [
            "NODE         NAMESPACE    POD                      CONTAINER  TIME(ns)      TYPE         PID    COMM             IP SADDR            DADDR            SPORT  DPORT  NETNS",
            "node-1       shop         web-0                    main       0             connect      42     curl             4  10.0.0.1         10.0.0.2         40000  80     4026531840",
            "node-1       shop         web-0                    main       1001500000    close        44     reaper           4  10.0.0.1         10.0.0.2         40000  80     4026531840",
        ]
    );
    assert_eq!(
        written(&["-o", "wide", "-t"], both()).await,
        [
            "NODE         NAMESPACE    POD                      CONTAINER  TIME(s)  T  PID    COMM             IP SADDR            DADDR            SPORT  DPORT  REASON       MS           TX_BYTES   RX_BYTES   RETRANS RTT(ms)  ID",
            "node-1       shop         web-0                    main       0.000    C  42     curl             4  10.0.0.1         10.0.0.2         40000  80     -            -            -          -          -       -        1",
            "node-1       shop         web-0                    main       1.002    X  44     reaper           4  10.0.0.1         10.0.0.2         40000  80     reset-remote 1.500        10         20         1       0.250    2",
        ]
    );
}

fn as_object(event: &v1::Event) -> Value {
    let second = event.sequence;
    let mut object = json!({
        "type": "connect", "time": format!("2024-01-01T00:00:0{second}.0005Z"), "node": "node-1",
        "sequence": second, "attribution": "resolved", "namespace": "shop", "pod": "web-0", "pod_uid": "u-1",
        "container": "main", "container_id": "containerd://c-1", "image": "image:1",
        "workload": { "kind": "Deployment", "name": "web" }, "labels": { "app": "web" }, "host_network": false,
        "id": second.to_string(), "role": "client", "pid": 42, "tid": 43, "uid": 1000, "comm": "curl",
        "source": "connect", "cgroup_id": 5, "mntns": 6, "netns": 4026531840_u32, "ip": 4, "saddr": "10.0.0.1",
        "daddr": "10.0.0.2", "sport": 40000, "dport": 80, "syn": format!("2024-01-01T00:00:0{second}Z"),
        "established": format!("2024-01-01T00:00:0{second}.0005Z"), "handshake_ns": 500_000,
    });
    if event.r#type() == v1::EventType::Close {
        for (key, value) in [
            ("type", json!("close")),
            ("time", json!(format!("2024-01-01T00:00:0{second}.002Z"))),
            ("duration_ns", json!(1_500_000)),
            ("reason", json!("reset-remote")),
            ("errno", json!(104)),
            ("errno_inferred", json!(true)),
            ("closer_pid", json!(44)),
            ("closer_comm", json!("reaper")),
            ("bytes_sent", json!(10)),
            ("bytes_received", json!(20)),
            ("segments_sent", json!(3)),
            ("segments_received", json!(4)),
            ("retransmits", json!(1)),
            ("srtt_us", json!(250)),
        ] {
            object[key] = value;
        }
    }
    object
}

#[tokio::test]
async fn objects() {
    let expected: Vec<Value> = both().iter().map(as_object).collect();
    let lines = written(&["-o", "jsonl"], both()).await;
    let objects: Vec<Value> = lines
        .iter()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(objects, expected);

    let text = written(&["-o", "json"], both()).await.join("\n");
    let objects: Result<Vec<Value>, _> = serde_json::Deserializer::from_str(&text)
        .into_iter()
        .collect();
    assert_eq!(objects.expect("JSON"), expected);
    assert!(text.starts_with("{\n    \"type\": \"connect\",\n"));

    let yaml = written(&["-o", "yaml"], vec![connect("web-0", 1)]).await;
    assert_eq!(
        yaml[..3],
        [
            "---",
            "type: connect",
            "time: \"2024-01-01T00:00:01.0005Z\""
        ]
    );
    assert!(yaml.contains(&"  kind: Deployment".into()), "{yaml:?}");

    assert_eq!(
        written(&["-o", "name"], both()).await,
        ["pod/web-0", "pod/web-0"]
    );
    assert_eq!(
        written(
            &["-o", "custom-columns=POD:.pod,WHY:.reason,APP:.labels.app"],
            both()
        )
        .await,
        [
            "POD   WHY   APP",
            "web-0   <none>   web",
            "web-0   reset-remote   web",
        ]
    );
    assert_eq!(
        written(
            &["-o", r#"jsonpath={.workload.name}:{.dport}{"\n"}"#],
            both()
        )
        .await,
        ["web:80", "web:80"]
    );
}

#[tokio::test]
async fn columns_stay_where_they_are() {
    let long = "a-pod-whose-name-is-longer-than-the-column";
    let rows = written(
        &[],
        vec![connect("web-0", 1), connect(long, 2), connect("web-0", 3)],
    )
    .await;
    let at = |row: &str| row.find("main").expect("a container");
    assert_eq!(at(&rows[1]), 51);
    assert!(rows[2].contains(&format!("{long} main")));
    assert_eq!(at(&rows[3]), at(&rows[2]));
}

#[tokio::test]
async fn names_that_want_to_act_on_the_terminal() {
    let mut event = connect("web\u{1b}[31m\u{202e}0", 1);
    let process = event.connection.as_mut().and_then(|c| c.process.as_mut());
    process.expect("a process").comm = "a\nb\tc\u{7f}".into();
    let rows = written(&[], vec![event.clone()]).await;
    assert_eq!(rows.len(), 2);
    assert!(
        rows[1].contains(" web?[31m?0 ") && rows[1].contains(" a?b?c? "),
        "{rows:?}"
    );
    let rows = written(&["-o", "jsonpath={.pod} {.comm}"], vec![event]).await;
    assert_eq!(rows, ["web?[31m?0 a?b?c?"]);
}

#[tokio::test]
async fn rows_are_coloured_by_pod() {
    let rows = written(
        &["--color", "always"],
        vec![connect("web-0", 1), connect("web-0", 2)],
    )
    .await;
    let color = |row: &str| row.split_once("\x1b[").expect("a colour").1[..3].to_string();
    assert_eq!(color(&rows[1]), color(&rows[2]));
    assert!(!rows[0].contains('\x1b'));
}

/// What a plugin writes to a terminal when its agent has an event.
async fn shown(args: &[&str], variables: &[(&str, &str)]) -> String {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&terminal).expect("a terminal");
    unlockpt(&terminal).expect("a terminal");
    let name = ptsname(&terminal, Vec::new()).expect("a terminal");
    let side = File::options()
        .write(true)
        .open(name.to_str().expect("text"));
    let mut agent = Agent::start("node-1").await;
    let address = agent.address.to_string();
    let mut command = command(&[&["--server", &address, "--last", "9"], args].concat());
    command
        .env("TERM", "xterm")
        .envs(variables.iter().copied())
        .stdout(side.expect("a terminal"));
    let mut child = command.spawn().expect("the plugin starts");
    // Its end of the terminal goes with it.
    drop(command);
    let watch = agent.watched().await;
    watch.status(false, 9).await;
    watch.events(vec![connect("web-0", 1)]).await;
    drop(watch);
    let status = soon("the plugin ends", child.wait()).await;
    assert!(status.expect("a status").success());
    // A terminal that nobody writes to any more is an error to read from, not its end.
    let mut text = Vec::new();
    let _ = File::from(terminal).read_to_end(&mut text);
    String::from_utf8(text).expect("text")
}

#[tokio::test]
async fn a_terminal_is_coloured_unless_somebody_objects() {
    let plain = " shop         web-0                    main       C ";
    for (args, variables, coloured) in [
        (&[][..], &[][..], true),
        (&[], &[("NO_COLOR", "1")], false),
        (&[], &[("TERM", "dumb")], false),
        (&["--color", "never"], &[], false),
        (&["--color", "always"], &[("NO_COLOR", "1")], true),
    ] {
        let text = shown(args, variables).await;
        assert_eq!(text.contains("\x1b["), coloured, "{args:?} {variables:?}");
        assert_eq!(text.contains(plain), !coloured, "{text}");
        // What is no row has no colours.
        let objects = shown(&[args, &["-o", "name"]].concat(), variables).await;
        assert_eq!(objects, "pod/web-0\r\n", "{args:?} {variables:?}");
    }
    let rows = written(&[], both()).await;
    assert!(rows.iter().all(|row| !row.contains('\x1b')));
}

#[tokio::test]
async fn what_is_asked() {
    let mut agent = Agent::start("node-1").await;
    let plugin = Plugin::of(
        &agent,
        &[
            "-n", "shop", "web-0", "--port", "80", "--not", "host", "--since", "5m",
        ],
    );
    let watch = agent.watched().await;
    assert_eq!(
        watch.request,
        v1::WatchRequest {
            allow: vec![v1::Filter {
                namespaces: vec!["shop".into()],
                pods: vec!["web-0".into()],
                ports: vec![80],
                ..v1::Filter::default()
            }],
            deny: vec![v1::Filter {
                scope: v1::Scope::Host.into(),
                ..v1::Filter::default()
            }],
            history: Some(History::Since(prost_types::Duration {
                seconds: 300,
                nanos: 0,
            })),
            history_only: true,
            id: watch.request.id.clone(),
        }
    );
    watch.status(false, 0).await;
    drop(watch);
    let ended = plugin.ended().await;
    assert_eq!((ended.code, ended.out.len()), (Some(0), 1));
    assert_eq!(ended.err, [NOTHING_REMEMBERED]);
}

#[tokio::test]
async fn the_past_and_what_follows() {
    let mut agent = Agent::start("node-1").await;
    let mut plugin = Plugin::of(
        &agent,
        &["--last", "1", "-f", "-o", "jsonpath={.sequence}{\"\\n\"}"],
    );
    let watch = agent.watched().await;
    assert_eq!(watch.request.history, Some(History::Last(1)));
    assert!(!watch.request.history_only);
    watch.status(false, 7).await;
    watch.events(vec![connect("web-0", 7)]).await;
    watch.status(true, 7).await;
    assert_eq!(plugin.line().await, "7");
    watch.events(vec![connect("web-0", 9)]).await;
    assert_eq!(plugin.line().await, "9");
    assert_eq!(plugin.interrupt().await.well(), [""; 0]);
    watch.left().await;
}

#[tokio::test]
async fn losses_are_told_as_they_happen_and_at_the_end() {
    let mut agent = Agent::start("node-1").await;
    let mut plugin = Plugin::of(&agent, &["-o", "name"]);
    let watch = agent.watched().await;
    let lost = |source: v1::LossSource, count| {
        Message::Lost(v1::Lost {
            source: source.into(),
            count,
            position: None,
        })
    };
    watch.live(0).await;
    watch.send(lost(v1::LossSource::Subscriber, 3)).await;
    assert_eq!(
        plugin.said().await,
        "node-1 lost 3 events that this program was too slow for"
    );
    watch.send(lost(v1::LossSource::Ring, 1)).await;
    watch.send(lost(v1::LossSource::Subscriber, 4)).await;
    assert_eq!(
        plugin.said().await,
        "node-1 lost 1 events in the kernel's ring"
    );
    assert_eq!(
        plugin.said().await,
        "node-1 lost 4 events that this program was too slow for"
    );
    assert_eq!(
        plugin.interrupt().await,
        Ended {
            code: Some(3),
            out: vec![],
            err: vec![
                "in all, node-1 lost 1 events in the kernel's ring, 7 events that this program was too slow for"
                    .into()
            ],
        }
    );
}

#[tokio::test]
async fn a_stream_that_breaks_is_resumed() {
    let mut agent = Agent::start("node-1").await;
    let mut plugin = Plugin::of(&agent, &["-o", "jsonpath={.sequence}{\"\\n\"}"]);
    let watch = agent.watched().await;
    assert_eq!(watch.request.history, None);
    let id = watch.request.id.clone();
    assert_eq!(id.len(), 32);
    watch.live(5).await;
    watch.events(vec![connect("web-0", 7)]).await;
    assert_eq!(plugin.line().await, "7");
    watch.fail(Status::unavailable("out to lunch")).await;
    assert_eq!(
        plugin.said().await,
        "node-1 is not heard: out to lunch; trying again"
    );

    let watch = agent.watched().await;
    let position = Position {
        epoch: 1,
        sequence: 7,
        lost: 0,
    };
    assert_eq!(watch.request.history, Some(History::Resume(position)));
    // The agent may not know yet that the other has gone.
    assert_ne!(watch.request.id, id);
    watch.status(false, 9).await;
    watch
        .events(vec![connect("web-0", 8), connect("web-0", 9)])
        .await;
    watch.status(true, 9).await;
    assert_eq!(plugin.said().await, "node-1 is heard again");
    assert_eq!([plugin.line().await, plugin.line().await], ["8", "9"]);
    assert_eq!(
        plugin.interrupt().await,
        Ended {
            code: Some(3),
            out: vec![],
            err: vec!["nodes not heard all the time: node-1".into()],
        }
    );
}

#[tokio::test]
async fn where_a_stream_stands_without_events_is_known_too() {
    let mut agent = Agent::start("node-1").await;
    let mut plugin = Plugin::of(&agent, &[]);
    let watch = agent.watched().await;
    watch.live(5).await;
    plugin.line().await;
    // Everything before has been taken when it breaks.
    watch.fail(Status::unavailable("x")).await;
    plugin.said().await;
    let position = Position {
        epoch: 1,
        sequence: 5,
        lost: 0,
    };
    let watch = agent.watched().await;
    assert_eq!(watch.request.history, Some(History::Resume(position)));
    // It breaks before it has caught up: the past is still to come.
    watch.status(false, 99).await;
    watch.fail(Status::unavailable("x")).await;
    let watch = agent.watched().await;
    assert_eq!(watch.request.history, Some(History::Resume(position)));
}

#[tokio::test]
async fn where_a_stream_stands_behind_a_loss_is_known_too() {
    let mut agent = Agent::start("node-1").await;
    let plugin = Plugin::of(&agent, &["-o", "name"]);
    let position = |sequence, lost| Position {
        epoch: 1,
        sequence,
        lost,
    };
    let loss = |position| {
        Message::Lost(v1::Lost {
            source: v1::LossSource::Ring.into(),
            count: 1,
            position,
        })
    };
    let mut watch = agent.watched().await;
    watch.live(5).await;
    for (message, expected) in [
        (loss(Some(position(5, 1))), position(5, 1)),
        // Another loss was to follow.
        (loss(None), position(5, 1)),
        (
            Message::Status(v1::NodeStatus {
                live: true,
                sequence: 6,
                lost: 2,
                ..v1::NodeStatus::default()
            }),
            position(6, 2),
        ),
        (
            Message::Events(v1::Events {
                events: vec![connect("web-0", 7)],
            }),
            position(7, 0),
        ),
    ] {
        watch.send(message).await;
        watch.fail(Status::unavailable("x")).await;
        watch = agent.watched().await;
        assert_eq!(watch.request.history, Some(History::Resume(expected)));
    }
    assert_eq!(plugin.interrupt().await.code, Some(3));
}

#[tokio::test]
async fn an_agent_that_starts_again_is_told() {
    let mut agent = Agent::start("node-1").await;
    let mut plugin = Plugin::of(&agent, &["-o", "name"]);
    let watch = agent.watched().await;
    watch.live(5).await;
    watch.fail(Status::unavailable("bye")).await;
    assert_eq!(
        plugin.said().await,
        "node-1 is not heard: bye; trying again"
    );
    let watch = agent.watched().await.in_run(2);
    watch.live(0).await;
    watch.events(vec![connect("web-0", 1)]).await;
    assert_eq!(plugin.said().await, "node-1 is heard again");
    assert_eq!(
        plugin.said().await,
        "the agent of node-1 has started again: what happened in between is not shown"
    );
    assert_eq!(plugin.line().await, "pod/web-0");
    assert_eq!(plugin.interrupt().await.code, Some(3));
}

#[tokio::test]
async fn what_an_agent_says_of_itself_is_told_once() {
    let mut agent = Agent::start("node-1").await;
    let mut plugin = Plugin::of(&agent, &["-o", "name"]);
    let watch = agent.watched().await;
    let status = |error: &str| {
        Message::Status(v1::NodeStatus {
            pods_error: error.into(),
            shortcomings: vec!["accepts through io_uring".into()],
            ..v1::NodeStatus::default()
        })
    };
    for error in ["no \x1banswer", "no \x1banswer", ""] {
        watch.send(status(error)).await;
    }
    assert_eq!(plugin.said().await, "node-1 may lack names: no ?answer");
    assert_eq!(plugin.said().await, "node-1: accepts through io_uring");
    assert_eq!(plugin.said().await, "node-1 names its pods again");
    plugin.interrupt().await.well();
}

#[tokio::test]
async fn what_an_agent_refuses_is_the_users_error() {
    let agent = Agent::start("node-1").await;
    for args in [&[][..], &["--last", "1"], &["connections"]] {
        let args = [&["-p", NOBODYS, "-o", "name"], args].concat();
        assert_eq!(
            Plugin::of(&agent, &args).ended().await,
            Ended {
                code: Some(2),
                out: vec![],
                err: vec!["allow[0].pids: no ?[31msuch pid".into()],
            }
        );
    }
}

#[tokio::test]
async fn an_agent_that_is_not_there() {
    let nobody = Nobody::new();
    let address = nobody.address().to_string();
    for args in [&[][..], &["status"], &["connections"]] {
        let ended = Plugin::start(&[&["--server", &address, "-o", "name"], args].concat())
            .ended()
            .await;
        assert!(ended.err[0].contains(&address), "{ended:?}");
        assert!(ended.err[0].contains("Connection refused"), "{ended:?}");
        assert_eq!((ended.code, ended.out), (Some(1), vec![]), "{args:?}");
    }
}

#[tokio::test]
async fn a_socket_in_the_file_system() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("agent.sock");
    let mut agent = Agent::on(&path, "node-1");
    let address = format!("unix:{}", path.display());
    let mut plugin = Plugin::start(&["--server", &address, "-o", "name"]);
    let watch = agent.watched().await;
    watch.live(0).await;
    watch.events(vec![connect("web-0", 1)]).await;
    assert_eq!(plugin.line().await, "pod/web-0");
    plugin.interrupt().await.well();
}

#[tokio::test]
async fn it_ends_when_the_time_is_over() {
    let mut agent = Agent::start("node-1").await;
    // Enough for it to start and to be sent events on a busy machine.
    let plugin = Plugin::of(&agent, &["--duration", "10s", "-o", "name"]);
    let watch = agent.watched().await;
    watch.live(0).await;
    watch.events(both()).await;
    assert_eq!(plugin.ended().await.well(), ["pod/web-0", "pod/web-0"]);
}

#[tokio::test]
async fn nobody_reads_the_output_any_more() {
    let mut agent = Agent::start("node-1").await;
    let (reader, writer) = io::pipe().expect("a pipe");
    let address = agent.address.to_string();
    let mut child = command(&["--server", &address, "-o", "name"])
        .stdout(writer)
        .spawn()
        .expect("the plugin starts");
    drop(reader);
    let watch = agent.watched().await;
    watch.live(0).await;
    watch.events(both()).await;
    let status = soon("the plugin ends", child.wait())
        .await
        .expect("a status");
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn connections_that_are_open() {
    let agent = Agent::start("node-1").await;
    assert_eq!(
        Plugin::of(&agent, &["connections", "-n", "shop", "-t"])
            .ended()
            .await
            .well(),
        [
            "NODE         NAMESPACE    POD                      CONTAINER  TIME(s)  T  PID    COMM             IP SADDR            DADDR            SPORT  DPORT",
            "node-1       shop         a                        main       0.000    E  42     curl             4  10.0.0.1         10.0.0.2         40000  80",
            "node-1       shop         b                        main       1.000    E  42     curl             4  10.0.0.1         10.0.0.2         40000  80",
        ]
    );
    let json = Plugin::of(&agent, &["connections", "-o", "jsonl"])
        .ended()
        .await
        .well();
    let first: Value = serde_json::from_str(&json[0]).expect("JSON");
    assert_eq!(
        (&first["type"], &first["id"]),
        (&json!("existing"), &json!("1"))
    );
    assert_eq!(connection("", "a", 1).id, "1");
}

#[tokio::test]
async fn the_status_of_an_agent() {
    let agent = Agent::start("node-1").await;
    assert_eq!(
        Plugin::of(&agent, &["status"]).ended().await.well(),
        [
            "NODE     VERSION   KERNEL   HOOKS   PODS   CONTAINERS   SUBSCRIBERS   EVENTS   LOST   NOTES",
            "node-1   1.2.3     6.1.0    1/2     7      9            2             1234     5      accepts through io_uring; cgroupmap lacks room for 1",
        ]
    );
    let json = Plugin::of(&agent, &["status", "-o", "json"])
        .ended()
        .await
        .well()
        .join("\n");
    let status: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(
        status["hooks"][1],
        json!({
            "name": "fentry/security_sock_graft", "attached": false, "detail": "refused"
        })
    );
    assert_eq!(status["lost"], json!([{ "source": "ring", "count": 5 }]));
    assert_eq!(
        status["pods"],
        json!({ "source": "api", "synced": true, "known": 7 })
    );
    assert_eq!(
        status["filter_maps"],
        json!([{ "name": "cgroupmap", "entries": 8, "capacity": 8, "without_room": 1 }])
    );
    assert_eq!(status["paused_seconds"], json!(3605));
    assert_eq!(status.get("paused_since"), None);
}

#[tokio::test]
async fn the_status_of_an_agent_that_traces_nothing_now() {
    let agent = Agent::start(IDLE).await;
    assert_eq!(
        Plugin::of(&agent, &["status"]).ended().await.well(),
        [
            "NODE     VERSION   KERNEL   HOOKS   PODS   CONTAINERS   SUBSCRIBERS   EVENTS   LOST   NOTES",
            "idle-1   1.2.3     6.1.0    idle    7      9            0             1234     5      accepts through io_uring; cgroupmap lacks room for 1",
        ]
    );
    let json = Plugin::of(&agent, &["status", "-o", "json"])
        .ended()
        .await
        .well()
        .join("\n");
    let status: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(status["paused_since"], json!("2024-01-01T00:01:00.0005Z"));
    assert_eq!(status["paused_seconds"], json!(3605));
    assert_eq!(
        status["hooks"][0],
        json!({ "name": "tp_btf/inet_sock_set_state", "attached": false })
    );
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_before_anybody_is_asked() {
    for args in [
        &["--port", "0"][..],
        &["-l", "=x"],
        &["--type", "open"],
        &["-A", "-n", "shop"],
        &["--since", "5m", "connections"],
        &["-o", "custom-columns"],
        &["--bogus"],
    ] {
        let ended = Plugin::start(&[&["--server", "256.0.0.1:1"], args].concat())
            .ended()
            .await;
        assert_eq!((ended.code, ended.out), (Some(2), vec![]), "{args:?}");
        assert!(!ended.err.is_empty(), "{args:?}");
    }
}

#[tokio::test]
async fn completion() {
    for shell in ["bash", "zsh", "fish"] {
        let script = Plugin::start(&["completion", shell]).ended().await.well();
        assert!(
            script.iter().any(|l| l.contains("kubectl-tcptracer")),
            "{shell}"
        );
    }
    let folder = tempfile::tempdir().expect("a folder");
    let called = folder.path().join("kubectl_complete-tcptracer");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_kubectl-tcptracer"), &called).expect("a link");
    for (words, expected) in [
        (&["--type", "c"][..], &["connect", "close", ":4"][..]),
        (&["--agent-n"], &["--agent-namespace", ":4"]),
        (&["--tls-ca", ""], &[":0"]),
        // Without a cluster there are no pods.
        (&["s"], &["status", ":4"]),
        (&["--", ""], &[":4"]),
    ] {
        let mut command = tokio::process::Command::new(&called);
        command
            .args(words)
            .env_remove("KUBECONFIG")
            .env("HOME", "/nonexistent");
        let output = command.output().await.expect("it runs");
        let lines = String::from_utf8(output.stdout).expect("text");
        assert_eq!(lines.lines().collect::<Vec<_>>(), expected, "{words:?}");
    }
}
