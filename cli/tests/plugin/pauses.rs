//! Times in which an agent traced nothing, as no client was subscribed.

use futures::future::join_all;
use serde_json::json;
use tcptracer_proto::v1::watch_response::Message;
use tcptracer_proto::v1::{self, Position, watch_request::History};
use tonic::Status;

use crate::agent::{Agent, Watch, connect, pause};
use crate::api::Api;
use crate::plugin::{Ended, NOTHING_REMEMBERED, Plugin};

const SEQUENCES: &str = "jsonpath={.node}{.sequence}{\"\\n\"}";

const STARTS: &str = "tracing starts now on node-1: no client was subscribed before";
const NOT_HEARD: &str = "node-1 is not heard: out to lunch; trying again";

fn lunch() -> Status {
    Status::unavailable("out to lunch")
}

fn events<const N: usize>(sequences: [u64; N]) -> Message {
    Message::Events(v1::Events {
        events: sequences.map(|n| connect("web-0", n)).into(),
    })
}

fn paused(from: i64, to: Option<i64>) -> Message {
    Message::Paused(pause(from, to))
}

fn behind(sequence: u64, lost: u64) -> Position {
    Position {
        epoch: 1,
        sequence,
        lost,
    }
}

/// A pause, and where to resume behind it.
fn paused_at(from: i64, to: i64, position: Position) -> Message {
    Message::Paused(v1::Paused {
        position: Some(position),
        ..pause(from, Some(to))
    })
}

fn ended(code: i32, out: &[String], err: &[&str]) -> Ended {
    Ended {
        code: Some(code),
        out: out.into(),
        err: err.iter().map(ToString::to_string).collect(),
    }
}

/// Nodes with an agent each.
async fn nodes<const N: usize>(names: [&str; N]) -> (Api, [Agent; N]) {
    let api = Api::start().await;
    let agents = join_all(names.map(Agent::start)).await;
    for (name, agent) in names.into_iter().zip(&agents) {
        api.agent(&format!("agent-{name}"), name, agent.address);
        api.pod("shop", &format!("web-{name}"), name, json!({}));
    }
    let agents = agents.try_into();
    (api, agents.unwrap_or_else(|_| unreachable!("one each")))
}

/// The streams that a client opens to all of them.
async fn watches<const N: usize>(agents: &mut [Agent; N]) -> [Watch; N] {
    let opened = join_all(agents.iter_mut().map(Agent::watched)).await;
    let opened = opened.try_into();
    opened.unwrap_or_else(|_| unreachable!("one each"))
}

/// What a plugin that asks for the past only writes when its agent says this of it.
async fn told(args: &[&str], past: Vec<Message>) -> Ended {
    let mut agent = Agent::start("node-1").await;
    let plugin = Plugin::of(&agent, args);
    let watch = agent.watched().await;
    assert!(watch.request.history_only);
    watch.status(false, 9).await;
    for message in past {
        watch.send(message).await;
    }
    watch.status(true, 9).await;
    drop(watch);
    plugin.ended().await
}

#[tokio::test]
async fn of_what_was_asked_for_they_are_told_and_leave_the_rows_as_they_are() {
    let since = ["--since", "5m"];
    let rows = told(&since, vec![events([1, 2]), events([5])]).await.well();
    assert_eq!(rows.len(), 4);
    for (past, line) in [
        (
            vec![events([1, 2]), paused(3, Some(4)), events([5])],
            "node-1 traced nothing from 2024-01-01T00:00:03Z to 2024-01-01T00:00:04Z: no client was subscribed",
        ),
        (
            vec![paused(0, Some(1)), events([1, 2, 5])],
            "node-1 traced nothing from 2024-01-01T00:00:00Z to 2024-01-01T00:00:01Z: no client was subscribed",
        ),
        (
            vec![events([1, 2, 5]), paused(6, None)],
            "node-1 traced nothing from 2024-01-01T00:00:06Z to now: no client was subscribed",
        ),
        (
            vec![
                events([1]),
                paused(1, Some(2)),
                events([2]),
                paused(3, Some(4)),
                events([5]),
            ],
            "node-1 traced nothing in 2 periods between 2024-01-01T00:00:01Z and 2024-01-01T00:00:04Z: no client was subscribed",
        ),
        (
            vec![
                paused(0, Some(1)),
                events([1, 2]),
                paused(3, Some(4)),
                events([5]),
                paused(6, None),
            ],
            "node-1 traced nothing in 3 periods between 2024-01-01T00:00:00Z and now: no client was subscribed",
        ),
    ] {
        assert_eq!(
            told(&since, past).await,
            ended(3, &rows, &[line, "nodes not traced all the time: node-1"])
        );
    }
}

#[tokio::test]
async fn they_are_told_beside_losses() {
    let lost = Message::Lost(v1::Lost {
        source: v1::LossSource::Ring.into(),
        count: 2,
        position: None,
    });
    let args = ["--since", "5m", "-o", SEQUENCES];
    let past = vec![events([1]), paused(3, Some(4)), lost, events([5])];
    assert_eq!(
        told(&args, past).await,
        ended(
            3,
            &["node-11".into(), "node-15".into()],
            &[
                "node-1 lost 2 events in the kernel's ring",
                "node-1 traced nothing from 2024-01-01T00:00:03Z to 2024-01-01T00:00:04Z: no client was subscribed",
                "in all, node-1 lost 2 events in the kernel's ring",
                "nodes not traced all the time: node-1",
            ]
        )
    );
}

#[tokio::test]
async fn one_that_goes_on_may_be_all_that_there_is() {
    assert_eq!(
        told(&["--since", "5m", "-o", "name"], vec![paused(6, None)]).await,
        ended(
            3,
            &[],
            &[
                "node-1 traced nothing from 2024-01-01T00:00:06Z to now: no client was subscribed",
                NOTHING_REMEMBERED,
                "nodes not traced all the time: node-1",
            ]
        )
    );
}

#[tokio::test]
async fn they_are_told_though_the_past_is_not_heard_to_its_end() {
    let mut agent = Agent::start("node-1").await;
    let plugin = Plugin::of(&agent, &["--since", "5m", "-o", SEQUENCES]);
    let watch = agent.watched().await;
    watch.status(false, 9).await;
    watch.send(events([1])).await;
    watch.paused(pause(3, Some(4))).await;
    watch.fail(lunch()).await;
    assert_eq!(
        plugin.ended().await,
        ended(
            3,
            &["node-11".into()],
            &[
                "node-1 is not heard: out to lunch",
                "node-1 traced nothing from 2024-01-01T00:00:03Z to 2024-01-01T00:00:04Z: no client was subscribed",
                "nodes not heard all the time: node-1",
                "nodes not traced all the time: node-1",
            ]
        )
    );
    assert!(agent.is_left_alone());
}

#[tokio::test]
async fn each_node_tells_of_its_own_once_it_is_live() {
    let (api, mut agents) = nodes(["n1", "n2"]).await;
    let mut plugin = api.plugin(&["-A", "--since", "5m", "-f", "-o", SEQUENCES]);
    let [n1, n2] = watches(&mut agents).await;
    n1.status(false, 0).await;
    n1.paused(pause(1, Some(2))).await;
    // Says that the pause has been heard as well.
    n1.send(Message::Lost(v1::Lost {
        source: v1::LossSource::Ring.into(),
        count: 1,
        position: None,
    }))
    .await;
    assert_eq!(plugin.said().await, "n1 lost 1 events in the kernel's ring");
    n2.status(false, 0).await;
    n2.paused(pause(3, Some(4))).await;
    n2.status(true, 0).await;
    assert_eq!(
        plugin.said().await,
        "n2 traced nothing from 2024-01-01T00:00:03Z to 2024-01-01T00:00:04Z: no client was subscribed"
    );
    n1.paused(pause(5, Some(6))).await;
    n1.status(true, 0).await;
    assert_eq!(
        plugin.said().await,
        "n1 traced nothing in 2 periods between 2024-01-01T00:00:01Z and 2024-01-01T00:00:06Z: no client was subscribed"
    );
    // Once.
    n1.status(true, 0).await;
    assert_eq!(
        plugin.interrupt().await,
        ended(
            3,
            &[],
            &[
                "in all, n1 lost 1 events in the kernel's ring",
                "nodes not traced all the time: n1, n2",
            ]
        )
    );
}

#[tokio::test]
async fn the_last_events_are_complete_whenever_they_happened() {
    let last = ["--last", "3"];
    let rows = told(&last, vec![events([1, 2]), events([5])]).await.well();
    assert_eq!(rows.len(), 4);
    for (past, said) in [
        (
            vec![events([1, 2]), paused(3, Some(4)), events([5])],
            "node-1 traced nothing from 2024-01-01T00:00:03Z to 2024-01-01T00:00:04Z: no client was subscribed",
        ),
        (
            vec![
                events([1]),
                paused(1, Some(2)),
                events([2]),
                paused(3, Some(4)),
                events([5]),
            ],
            "node-1 traced nothing in 2 periods between 2024-01-01T00:00:01Z and 2024-01-01T00:00:04Z: no client was subscribed",
        ),
    ] {
        assert_eq!(told(&last, past).await, ended(0, &rows, &[said]));
    }

    let mut agent = Agent::start("node-1").await;
    let mut plugin = Plugin::of(&agent, &["--last", "3", "-f", "-o", SEQUENCES]);
    let watch = agent.watched().await;
    watch.status(false, 1).await;
    watch.send(events([1])).await;
    watch.paused(pause(3, Some(4))).await;
    watch.status(true, 1).await;
    assert_eq!(
        plugin.said().await,
        "node-1 traced nothing from 2024-01-01T00:00:03Z to 2024-01-01T00:00:04Z: no client was subscribed"
    );
    assert_eq!(plugin.line().await, "node-11");
    assert_eq!(plugin.interrupt().await.well(), [""; 0]);
}

#[tokio::test]
async fn a_live_watch_begins_where_one_ends() {
    let mut agent = Agent::start("node-1").await;
    let mut plugin = Plugin::of(&agent, &["-o", SEQUENCES]);
    let watch = agent.watched().await;
    assert_eq!(watch.request.history, None);
    watch.status(false, 0).await;
    watch.paused(pause(1, Some(2))).await;
    watch.status(true, 0).await;
    assert_eq!(plugin.said().await, STARTS);
    watch.send(events([3])).await;
    assert_eq!(plugin.line().await, "node-13");
    // Once.
    watch.status(true, 3).await;
    assert_eq!(plugin.interrupt().await.well(), [""; 0]);
}

#[tokio::test]
async fn where_tracing_starts_is_told_on_one_line_once_all_are_live() {
    let (api, mut agents) = nodes(["n1", "n2", "n3"]).await;
    for (woken, which) in [
        (&["n2"][..], "n2"),
        (&["n1", "n2"], "2 nodes (n1 to n2)"),
        (&["n1", "n3"], "2 nodes (n1 to n3)"),
        (&["n1", "n2", "n3"], "3 nodes (n1 to n3)"),
    ] {
        let mut plugin = api.plugin(&["-A", "-o", SEQUENCES]);
        let watches = watches(&mut agents).await;
        for (node, watch) in ["n1", "n2", "n3"].into_iter().zip(&watches) {
            watch.status(false, 0).await;
            if woken.contains(&node) {
                watch.paused(pause(1, Some(2))).await;
            }
            watch.status(true, 0).await;
            // What is shown says that this has been heard before the next one is live.
            if node != "n3" {
                watch.send(events([3])).await;
                assert_eq!(plugin.line().await, format!("{node}3"));
            }
        }
        assert_eq!(
            plugin.said().await,
            format!("tracing starts now on {which}: no client was subscribed before")
        );
        assert_eq!(plugin.interrupt().await.well(), [""; 0]);
    }
}

#[tokio::test]
async fn a_node_that_is_asked_later_tells_later() {
    let (api, mut agents) = nodes(["n1"]).await;
    let mut two = Agent::start("n2").await;
    let mut plugin = api.plugin(&["-A", "-o", SEQUENCES]);
    let [n1] = watches(&mut agents).await;
    n1.status(false, 0).await;
    n1.paused(pause(1, Some(2))).await;
    n1.status(true, 0).await;
    assert_eq!(
        plugin.said().await,
        "tracing starts now on n1: no client was subscribed before"
    );
    api.agent("agent-n2", "n2", two.address);
    let n2 = two.watched().await;
    n2.status(false, 0).await;
    n2.paused(pause(1, Some(2))).await;
    n2.status(true, 0).await;
    assert_eq!(
        plugin.said().await,
        "tracing starts now on n2: no client was subscribed before"
    );
    assert_eq!(plugin.interrupt().await.well(), [""; 0]);
}

#[tokio::test]
async fn of_a_node_that_is_asked_no_more_nothing_starts() {
    let (api, mut agents) = nodes(["n1", "n2"]).await;
    let mut plugin = api.plugin(&["-A", "-o", SEQUENCES]);
    let [n1, n2] = watches(&mut agents).await;
    n1.status(false, 0).await;
    n1.paused(pause(1, Some(2))).await;
    n1.status(true, 0).await;
    n1.send(events([3])).await;
    assert_eq!(plugin.line().await, "n13");
    api.delete("tcptracer", "agent-n1");
    n1.left().await;
    n2.live(0).await;
    n2.send(events([4])).await;
    assert_eq!(plugin.line().await, "n24");
    assert_eq!(plugin.interrupt().await.well(), [""; 0]);
}

#[tokio::test]
async fn a_stream_that_breaks_may_be_resumed_behind_one() {
    let mut agent = Agent::start("node-1").await;
    let mut plugin = Plugin::of(&agent, &["-o", SEQUENCES]);
    let watch = agent.watched().await;
    watch.live(5).await;
    watch.send(events([7])).await;
    assert_eq!(plugin.line().await, "node-17");
    watch.fail(lunch()).await;
    assert_eq!(plugin.said().await, NOT_HEARD);

    let watch = agent.watched().await;
    let position = behind(7, 0);
    assert_eq!(watch.request.history, Some(History::Resume(position)));
    watch.status(false, 7).await;
    watch.send(paused_at(60, 3_600, behind(7, 1))).await;
    watch.status(true, 7).await;
    assert_eq!(plugin.said().await, "node-1 is heard again");
    assert_eq!(
        plugin.said().await,
        "node-1 traced nothing from 2024-01-01T00:01:00Z to 2024-01-01T01:00:00Z: no client was subscribed"
    );
    watch.send(events([8])).await;
    assert_eq!(plugin.line().await, "node-18");
    assert_eq!(
        plugin.interrupt().await,
        ended(
            3,
            &[],
            &[
                "nodes not heard all the time: node-1",
                "nodes not traced all the time: node-1",
            ]
        )
    );
}

#[tokio::test]
async fn where_a_stream_stands_behind_one_is_known_too() {
    let mut agent = Agent::start("node-1").await;
    let mut plugin = Plugin::of(&agent, &["-o", SEQUENCES]);
    let watch = agent.watched().await;
    watch.live(5).await;
    watch.fail(lunch()).await;
    assert_eq!(plugin.said().await, NOT_HEARD);
    let mut watch = agent.watched().await;
    let position = behind(5, 0);
    assert_eq!(watch.request.history, Some(History::Resume(position)));
    // It never comes to be live, so all of this is still told.
    for (message, expected) in [
        (paused_at(1, 2, behind(5, 1)), behind(5, 1)),
        (paused(3, Some(4)), behind(5, 1)),
        (events([7]), behind(7, 0)),
        (paused_at(8, 9, behind(7, 2)), behind(7, 2)),
    ] {
        watch.status(false, 9).await;
        watch.send(message).await;
        watch.fail(lunch()).await;
        assert_eq!(plugin.said().await, "node-1 is heard again");
        assert_eq!(plugin.said().await, NOT_HEARD);
        watch = agent.watched().await;
        assert_eq!(watch.request.history, Some(History::Resume(expected)));
    }
    watch.live(7).await;
    assert_eq!(plugin.said().await, "node-1 is heard again");
    assert_eq!(
        plugin.said().await,
        "node-1 traced nothing in 3 periods between 2024-01-01T00:00:01Z and 2024-01-01T00:00:09Z: no client was subscribed"
    );
    assert_eq!(
        plugin.interrupt().await,
        ended(
            3,
            &["node-17".into()],
            &[
                "nodes not heard all the time: node-1",
                "nodes not traced all the time: node-1",
            ]
        )
    );
}
