//! How a watch ends: what happened before is shown or reported.

use std::future::pending;
use std::io::{self, BufRead, BufReader, PipeReader};
use std::time::Duration;

use serde_json::json;
use tcptracer_proto::v1::watch_response::Message;
use tcptracer_proto::v1::{self, LossSource};
use tokio::io::AsyncReadExt;
use tokio::process::Child;
use tokio::time::{sleep, timeout};
use tonic::Status;

use crate::agent::{Agent, Manner, Watch, connect};
use crate::api::Api;
use crate::deadline::soon;
use crate::plugin::{Ended, Plugin, command, signal};

const SEQUENCES: &str = "jsonpath={.node}{.sequence}{\"\\n\"}";

fn slow(count: u64) -> Message {
    Message::Lost(v1::Lost {
        source: LossSource::Subscriber.into(),
        count,
        position: None,
    })
}

/// A plugin that has shown a first event, and its stream.
async fn live(agent: &mut Agent) -> (Plugin, Watch) {
    let mut plugin = Plugin::of(agent, &["-o", SEQUENCES]);
    let watch = agent.watched().await;
    watch.live(0).await;
    watch.events(vec![connect("web-0", 1)]).await;
    assert_eq!(plugin.line().await, "node-11");
    (plugin, watch)
}

/// A plugin whose output nobody reads, and what could be read.
async fn unread(agent: &mut Agent) -> (Child, PipeReader, Watch) {
    let (reader, writer) = io::pipe().expect("a pipe");
    let address = agent.address.to_string();
    let child = command(&["--server", &address, "-o", "jsonl"])
        .stdout(writer)
        .spawn()
        .expect("the plugin starts");
    let watch = agent.watched().await;
    watch.live(0).await;
    (child, reader, watch)
}

/// Sends events until the plugin takes no more; returns how many.
async fn fill(watch: &Watch) -> u64 {
    const BATCH: u64 = 200;
    const STUCK: Duration = Duration::from_millis(300);
    let mut sent = 0;
    while timeout(STUCK, watch.room()).await.is_ok() {
        let events = (1..=BATCH).map(|n| connect("web-0", sent + n)).collect();
        assert!(watch.try_events(events));
        sent += BATCH;
    }
    sent
}

#[tokio::test]
async fn what_an_agent_has_left_to_say_is_shown_and_reported() {
    let mut agent = Agent::that("node-1", Manner::ByTest).await;
    let (plugin, watch) = live(&mut agent).await;
    plugin.signal("INT").await;
    watch.asked_to_end().await;
    watch.events(vec![connect("web-0", 2)]).await;
    watch.send(slow(3)).await;
    watch.events(vec![connect("web-0", 6)]).await;
    drop(watch);
    assert_eq!(
        plugin.ended().await,
        Ended {
            code: Some(3),
            out: vec!["node-12".into(), "node-16".into()],
            err: vec![
                "node-1 lost 3 events that this program was too slow for".into(),
                "in all, node-1 lost 3 events that this program was too slow for".into(),
            ],
        }
    );
}

/// The agent has more than it can send, and loses some, as agents do: it reports that once its stream is to end.
#[tokio::test]
async fn a_reader_that_was_stopped_gets_all_that_is_not_reported_as_lost() {
    const LOST: u64 = 12_345;
    let mut agent = Agent::that("node-1", Manner::ByTest).await;
    let (mut child, reader, watch) = unread(&mut agent).await;
    let sent = fill(&watch).await;
    signal(&child, "INT", 1).await;
    // Although the plugin cannot write.
    watch.asked_to_end().await;
    let read = tokio::task::spawn_blocking(|| BufReader::new(reader).lines().count());
    watch.send(slow(LOST)).await;
    drop(watch);

    let shown = soon("the output ends", read).await.expect("it is read");
    let mut err = String::new();
    let mut stderr = child.stderr.take().expect("a stderr");
    let all = stderr.read_to_string(&mut err);
    soon("stderr ends", all).await.expect("text");
    let status = soon("the plugin ends", child.wait()).await;
    assert_eq!(status.expect("a status").code(), Some(3), "{err}");
    let summary = format!("in all, node-1 lost {LOST} events that this program was too slow for\n");
    assert!(err.ends_with(&summary), "{err}");
    assert_eq!(shown as u64, sent);
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once_though_it_cannot_write() {
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        let mut agent = Agent::that("node-1", Manner::ByTest).await;
        let (mut child, _reader, watch) = unread(&mut agent).await;
        fill(&watch).await;
        signal(&child, "TERM", 1).await;
        watch.asked_to_end().await;
        let ended = async {
            // One that comes at once counts as the first.
            loop {
                if let Ok(ended) = timeout(Duration::from_millis(50), child.wait()).await {
                    return ended.expect("a status").code();
                }
                signal(&child, name, 1).await;
            }
        };
        assert_eq!(soon("it ends", ended).await, Some(code));
    }
}

/// As `timeout` does.
#[tokio::test]
async fn a_signal_that_is_sent_twice_ends_it_in_order() {
    let mut agent = Agent::that("node-1", Manner::ByTest).await;
    let (plugin, watch) = live(&mut agent).await;
    plugin.signal_twice("TERM").await;
    watch.asked_to_end().await;
    watch.events(vec![connect("web-0", 2)]).await;
    drop(watch);
    assert_eq!(plugin.ended().await.well(), ["node-12"]);
}

#[tokio::test]
async fn events_of_all_nodes_are_in_order_to_the_end() {
    let api = Api::start().await;
    let mut one = Agent::that("n1", Manner::ByTest).await;
    let mut two = Agent::that("n2", Manner::ByTest).await;
    for (agent, name, node) in [(&one, "agent-1", "n1"), (&two, "agent-2", "n2")] {
        api.agent(name, node, agent.address);
        api.pod("shop", &format!("web-{node}"), node, json!({}));
    }
    let mut plugin = api.plugin(&["-o", SEQUENCES]);
    let (n1, n2) = (one.watched().await, two.watched().await);
    assert_ne!(n1.request.id, n2.request.id);
    n1.live(0).await;
    n2.live(0).await;
    n1.events(vec![connect("web-n1", 1)]).await;
    n2.events(vec![connect("web-n2", 2)]).await;
    assert_eq!([plugin.line().await, plugin.line().await], ["n11", "n22"]);
    plugin.signal("INT").await;
    n1.asked_to_end().await;
    n2.asked_to_end().await;
    n1.events(vec![connect("web-n1", 4), connect("web-n1", 6)])
        .await;
    n2.events(vec![connect("web-n2", 3), connect("web-n2", 5)])
        .await;
    drop(n1);
    n2.events(vec![connect("web-n2", 7)]).await;
    drop(n2);
    assert_eq!(
        plugin.ended().await.well(),
        ["n23", "n14", "n25", "n16", "n27"]
    );
}

#[tokio::test]
async fn an_older_agent_that_cannot_end_a_watch_is_left() {
    let mut agent = Agent::that("node-1", Manner::Unknown).await;
    let (plugin, watch) = live(&mut agent).await;
    assert_eq!(plugin.interrupt().await.well(), [""; 0]);
    watch.left().await;
}

#[tokio::test]
async fn an_agent_that_does_not_answer_at_the_end_is_reported() {
    let mut agent = Agent::that("node-1", Manner::Silent).await;
    let (plugin, _watch) = live(&mut agent).await;
    assert_eq!(
        plugin.interrupt().await,
        Ended {
            code: Some(3),
            out: vec![],
            err: vec![
                "node-1 is not heard: it did not end its stream in time".into(),
                "nodes not heard all the time: node-1".into(),
            ],
        }
    );
}

#[tokio::test]
async fn an_agent_that_goes_on_talking_at_the_end_is_reported() {
    let mut agent = Agent::that("node-1", Manner::ByTest).await;
    let (plugin, watch) = live(&mut agent).await;
    let talk = async {
        while watch.try_status(true, 1).await {
            sleep(Duration::from_millis(100)).await;
        }
        // The plugin has given it up, and has not ended yet.
        pending::<()>().await;
    };
    let ended = tokio::select! {
        ended = plugin.interrupt() => ended,
        () = talk => unreachable!("it goes on for ever"),
    };
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert_eq!(
        ended.err[0],
        "node-1 is not heard: it did not end its stream in time"
    );
}

#[tokio::test]
async fn a_stream_that_breaks_at_the_end_is_reported() {
    let mut agent = Agent::that("node-1", Manner::ByTest).await;
    let (plugin, watch) = live(&mut agent).await;
    plugin.signal("INT").await;
    watch.asked_to_end().await;
    watch.fail(Status::unavailable("out to lunch")).await;
    assert_eq!(
        plugin.ended().await,
        Ended {
            code: Some(3),
            out: vec![],
            err: vec![
                "node-1 is not heard: out to lunch".into(),
                "nodes not heard all the time: node-1".into(),
            ],
        }
    );
}

/// That has been reported when it broke.
#[tokio::test]
async fn an_agent_that_is_not_connected_is_not_waited_for() {
    let mut agent = Agent::start("node-1").await;
    let mut plugin = Plugin::of(&agent, &["-o", SEQUENCES]);
    let watch = agent.watched().await;
    watch.live(0).await;
    watch.fail(Status::unavailable("out to lunch")).await;
    drop(agent);
    assert_eq!(
        plugin.said().await,
        "node-1 is not heard: out to lunch; trying again"
    );
    assert_eq!(
        plugin.interrupt().await,
        Ended {
            code: Some(3),
            out: vec![],
            err: vec!["nodes not heard all the time: node-1".into()],
        }
    );
}
