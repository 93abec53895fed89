//! Filters, the past, and subscribers that are slow.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use serde_json::json;
use tcptracer_proto::v1::watch_request::History;
use tcptracer_proto::v1::watch_response::Message;
use tcptracer_proto::v1::{self, EventType};
use tcptracer_testing::tests;
use tcptracer_testing::wait_until;
use tonic::Code;

use crate::client::{Client, Watch, kinds, of};
use crate::node::{Container, Node};

tests![
    an_invalid_filter_names_the_field,
    events_are_filtered_by_what_they_are,
    failed_connects_come_if_asked_for,
    the_past_is_sent_first,
    a_stream_is_resumed,
    what_the_history_lost_is_told,
    a_slow_subscriber_is_told_what_it_lost,
    who_has_read_nothing_is_told_all_at_its_end,
    a_watch_is_ended_by_its_id,
    many_subscribers_get_the_same,
    garbage_does_no_harm,
];

const LOCAL: &str = "127.0.0.1:0";

/// A server nobody asks for, and a client of the namespace `shop`.
struct Shop {
    client: Container,
    at: std::net::SocketAddr,
    server: Container,
    node: Node,
}

impl Shop {
    fn with(options: &[&str]) -> Self {
        let mut node = Node::with(options);
        let mut server = node.pod("other", "db-0", json!({}));
        let client = node.pod("shop", "cart-0", json!({}));
        let agent = node.client();
        agent.wait_for_pods(2);
        Self {
            at: server.actor.listen(LOCAL),
            server,
            client,
            node,
        }
    }

    /// Two events of the client's.
    fn visit(&mut self) {
        self.client.actor.connect(self.at);
        self.server.actor.accept();
        self.client.actor.close();
        self.server.actor.close();
    }
}

fn sequences(events: &[v1::Event]) -> Vec<u64> {
    events.iter().map(|e| e.sequence).collect()
}

fn from(agent: &Client, history: History) -> Watch<'_> {
    let request = v1::WatchRequest {
        allow: of("shop"),
        history: Some(history),
        ..v1::WatchRequest::default()
    };
    agent.try_watch(request).expect("the request is valid")
}

/// The stream has sent the past.
fn assert_live(watch: &mut Watch<'_>, sequence: u64) {
    match watch.message() {
        Some(Message::Status(status)) => {
            assert!(status.live);
            assert_eq!(status.sequence, sequence);
        }
        other => panic!("{other:?} instead of the status"),
    }
}

fn an_invalid_filter_names_the_field() {
    let node = Node::new();
    let agent = node.client();
    let filter = v1::Filter::default;
    for (filter, why) in [
        (
            v1::Filter {
                label_selector: "app in cart".into(),
                ..filter()
            },
            "deny[1].label_selector: expected `(` at character 8",
        ),
        (
            v1::Filter {
                ports: vec![65_536],
                ..filter()
            },
            "deny[1].ports: 65536 is not a port",
        ),
        (
            v1::Filter {
                cidrs: vec!["10.0.0.0/33\x1b".into()],
                ..filter()
            },
            "deny[1].cidrs: `10.0.0.0/33\\u{1b}` is not a network or an address",
        ),
        (
            v1::Filter {
                types: vec![99],
                ..filter()
            },
            "deny[1].types: 99 is not a type of event",
        ),
        (
            v1::Filter {
                families: vec![1, 99],
                ..filter()
            },
            "deny[1].families: 99 is not an IP family",
        ),
        (
            v1::Filter {
                scope: 99,
                ..filter()
            },
            "deny[1].scope: 99 is not a scope",
        ),
        (
            v1::Filter {
                pids: vec![1; 257],
                ..filter()
            },
            "deny[1].pids: more than 256 values",
        ),
    ] {
        let request = v1::WatchRequest {
            deny: vec![v1::Filter::default(), filter],
            ..v1::WatchRequest::default()
        };
        let status = agent.try_watch(request).err().expect("it is refused");
        assert_eq!(
            (status.code(), status.message()),
            (Code::InvalidArgument, why)
        );
    }
    let none = v1::WatchRequest {
        history_only: true,
        ..v1::WatchRequest::default()
    };
    let status = agent.try_watch(none).err().expect("it is refused");
    assert_eq!(status.message(), "history_only: no history was asked for");
    let many = v1::WatchRequest {
        allow: vec![v1::Filter::default(); 33],
        ..v1::WatchRequest::default()
    };
    let status = agent.try_watch(many).err().expect("it is refused");
    assert_eq!(status.message(), "allow: more than 32 filters");
    assert_eq!(agent.info().subscribers, 0);
}

fn events_are_filtered_by_what_they_are() {
    let mut shop = Shop::with(&[]);
    let agent = shop.node.client();
    let with = |change: fn(&mut v1::Filter, u32), value| {
        let mut filters = of("shop");
        change(&mut filters[0], value);
        agent.watch(filters)
    };
    let port = u32::from(shop.at.port());
    let mut closes = with(|f, _| f.types = vec![EventType::Close.into()], 0);
    let mut v6 = with(|f, _| f.families = vec![v1::IpFamily::V6.into()], 0);
    let mut to_port = with(|f, port| f.ports = vec![port], port);
    let mut other_port = with(|f, port| f.ports = vec![port], port ^ 1);
    let mut network = with(|f, _| f.cidrs = vec!["127.0.0.0/8".into()], 0);
    let mut elsewhere = with(|f, _| f.nodes = vec!["node-2".into()], 0);
    let pid = shop.client.actor.pid();
    let mut by_pid = with(|f, pid| f.pids = vec![pid], pid);

    shop.visit();
    assert_eq!(sequences(&closes.events(1)), [2]);
    for watch in [&mut to_port, &mut network, &mut by_pid] {
        assert_eq!(sequences(&watch.events(2)), [1, 2]);
    }
    shop.node.assert_all_is_told([
        &mut closes,
        &mut v6,
        &mut to_port,
        &mut other_port,
        &mut network,
        &mut elsewhere,
        &mut by_pid,
    ]);
}

fn failed_connects_come_if_asked_for() {
    let mut shop = Shop::with(&[]);
    let agent = shop.node.client();
    let mut filters = of("shop");
    filters[0].types = vec![EventType::Failed.into()];
    let mut failed = agent.watch(filters);
    let mut usual = agent.watch(of("shop"));

    let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    shop.client.actor.be_refused(nobody);
    let events = failed.events(1);
    assert_eq!(events[0].r#type(), EventType::Failed);
    assert_eq!(events[0].errno, 111);
    shop.node.assert_all_is_told([&mut failed, &mut usual]);
}

fn the_past_is_sent_first() {
    let mut shop = Shop::with(&["--record"]);
    let agent = shop.node.client();
    shop.visit();
    wait_until("the visit is over", || agent.info().sequence == 4);

    // The other two are the server's.
    let mut last = from(&agent, History::Last(1));
    assert_eq!(kinds(&last.events(1)), [EventType::Close]);
    assert_live(&mut last, 4);
    let hour = prost_types::Duration {
        seconds: 3600,
        nanos: 0,
    };
    let visit = [EventType::Connect, EventType::Close];
    let mut since = from(&agent, History::Since(hour));
    assert_eq!(kinds(&since.events(2)), visit);
    assert_live(&mut since, 4);

    let only = v1::WatchRequest {
        allow: of("shop"),
        history: Some(History::Last(100)),
        history_only: true,
        ..v1::WatchRequest::default()
    };
    let mut only = agent.try_watch(only).expect("the request is valid");
    assert_eq!(kinds(&only.events(2)), visit);
    assert_live(&mut only, 4);
    assert_eq!(only.message(), None);
    shop.visit();
    assert_eq!(kinds(&since.events(2)), visit);
}

fn a_stream_is_resumed() {
    let mut shop = Shop::with(&[]);
    let agent = shop.node.client();
    let mut first = agent.watch(of("shop"));
    let mut second = agent.watch(of("shop"));
    shop.visit();
    assert_eq!(sequences(&first.events(2)), [1, 2]);
    let epoch = first.epoch;
    drop(first);
    shop.visit();
    assert_eq!(sequences(&second.events(4)), [1, 2, 3, 4]);

    let resume = |epoch, sequence| {
        History::Resume(v1::Position {
            epoch,
            sequence,
            lost: 0,
        })
    };
    let mut resumed = from(&agent, resume(epoch, 2));
    assert_eq!(sequences(&resumed.events(2)), [3, 4]);
    assert_live(&mut resumed, 4);
    assert_live(&mut from(&agent, resume(epoch, 4)), 4);
    // The past of another run is another past: nothing, if nothing else is asked for.
    assert_live(&mut from(&agent, resume(epoch - 1, 2)), 4);
    let only = v1::WatchRequest {
        allow: of("shop"),
        history: Some(resume(epoch - 1, 2)),
        history_only: true,
        ..v1::WatchRequest::default()
    };
    let mut only = agent.try_watch(only).expect("the request is valid");
    assert_live(&mut only, 4);
    assert_eq!(only.message(), None);
}

fn what_the_history_lost_is_told() {
    let mut shop = Shop::with(&["--history", "2"]);
    let agent = shop.node.client();
    let mut watch = agent.watch(of("shop"));
    for _ in 0..3 {
        shop.visit();
    }
    watch.events(6);

    let position = |sequence| v1::Position {
        epoch: watch.epoch,
        sequence,
        lost: 0,
    };
    let mut resumed = from(&agent, History::Resume(position(1)));
    let Some(Message::Lost(lost)) = resumed.message() else {
        panic!("it is told first what is lost");
    };
    assert_eq!((lost.source(), lost.count), (v1::LossSource::History, 3));
    // Others' losses may be counted there as well.
    let at = lost.position.map(|at| (at.epoch, at.sequence));
    assert_eq!(at, Some((watch.epoch, 4)));
    assert_eq!(sequences(&resumed.events(2)), [5, 6]);
    assert_live(&mut resumed, 6);
}

/// It does not read at all for a while. What it then gets, and what it is told it lost, is all there was, in order.
fn a_slow_subscriber_is_told_what_it_lost() {
    const VISITS: u64 = 3000;
    let mut shop = Shop::with(&["--queue", "512", "--history", "0"]);
    let (slow, quick) = (shop.node.client(), shop.node.client());
    let mut watch = slow.watch(of("shop"));
    for _ in 0..VISITS {
        shop.visit();
    }
    wait_until("all is known", || quick.info().sequence == 2 * VISITS);

    let (mut got, mut lost, mut last) = (0, 0, 0);
    while got + lost < 2 * VISITS {
        match watch.message() {
            Some(Message::Events(batch)) => {
                for event in batch.events {
                    assert_eq!(event.sequence, last + 1, "in its place");
                    last = event.sequence;
                    got += 1;
                }
            }
            Some(Message::Lost(told)) => {
                assert_eq!(told.source(), v1::LossSource::Subscriber);
                lost += told.count;
                last += told.count;
            }
            other => panic!("{other:?} after {got} events, {lost} lost"),
        }
    }
    assert_eq!(got + lost, 2 * VISITS);
    assert!(lost > 0, "the queue had room for all");
    shop.visit();
    assert_eq!(
        sequences(&watch.events(2)),
        [2 * VISITS + 1, 2 * VISITS + 2]
    );
}

/// Its queue is full when it ends.
fn who_has_read_nothing_is_told_all_at_its_end() {
    const VISITS: u64 = 3000;
    let mut shop = Shop::with(&["--queue", "512", "--history", "0"]);
    let agent = shop.node.client();
    let mut watch = agent.watch_as("slow", of("shop"));
    for _ in 0..VISITS {
        shop.visit();
    }
    wait_until("all is known", || agent.info().sequence == 2 * VISITS);
    agent.end_watch("slow").expect("it is open");
    wait_until("it has ended", || agent.info().subscribers == 0);
    // What happens from then on is not its own.
    shop.visit();

    let (events, lost) = watch.rest();
    let sources: Vec<_> = lost.keys().copied().collect();
    assert_eq!(sources, [v1::LossSource::Subscriber]);
    assert_eq!(
        events.len() as u64 + lost[&v1::LossSource::Subscriber],
        2 * VISITS
    );
}

fn a_watch_is_ended_by_its_id() {
    let mut shop = Shop::with(&[]);
    let agent = shop.node.client();
    let code = |result: Result<(), tonic::Status>| result.expect_err("it is refused").code();
    assert_eq!(code(agent.end_watch("a")), Code::NotFound);

    let mut first = agent.watch_as("a", of("shop"));
    let mut other = agent.watch(of("shop"));
    let taken = v1::WatchRequest {
        id: "a".into(),
        ..v1::WatchRequest::default()
    };
    let long = v1::WatchRequest {
        id: "a".repeat(65),
        ..v1::WatchRequest::default()
    };
    for (request, expected) in [
        (taken, (Code::AlreadyExists, "id: another watch goes by it")),
        (long, (Code::InvalidArgument, "id: more than 64 bytes")),
    ] {
        let status = agent.try_watch(request).err().expect("it is refused");
        assert_eq!((status.code(), status.message()), expected);
    }
    // Who gave none has none.
    assert_eq!(code(agent.end_watch("")), Code::NotFound);

    shop.visit();
    agent.end_watch("a").expect("it is open");
    let (events, lost) = first.rest();
    assert_eq!((sequences(&events), lost.len()), (vec![1, 2], 0));
    assert_eq!(code(agent.end_watch("a")), Code::NotFound);
    let mut second = agent.watch_as("a", of("shop"));
    shop.visit();
    assert_eq!(sequences(&second.events(2)), [3, 4]);
    assert_eq!(sequences(&other.events(4)), [1, 2, 3, 4]);
    drop(second);
    // The agent notices a little later.
    wait_until("the id is free again", || {
        let again = v1::WatchRequest {
            id: "a".into(),
            ..v1::WatchRequest::default()
        };
        agent.try_watch(again).is_ok()
    });
}

fn many_subscribers_get_the_same() {
    let mut shop = Shop::with(&[]);
    let agent = shop.node.client();
    let mut all: Vec<_> = (0..100).map(|_| agent.watch(of("shop"))).collect();
    for _ in 0..5 {
        shop.visit();
    }
    let first = all[0].events(10);
    for watch in &mut all[1..] {
        assert_eq!(watch.events(10), first);
    }
    assert_eq!(agent.info().subscribers, 100);
    drop(all);
    wait_until("they are gone", || agent.info().subscribers == 0);
}

fn garbage_does_no_harm() {
    let mut shop = Shop::with(&[]);
    let agent = shop.node.client();
    let mut watch = agent.watch(of("shop"));
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], &[0; 100_000]] {
        let mut stream = UnixStream::connect(shop.node.socket()).expect("the agent listens");
        // It may hang up before it has read all.
        let _ = stream.write_all(garbage);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    shop.visit();
    assert_eq!(sequences(&watch.events(2)), [1, 2]);
}
