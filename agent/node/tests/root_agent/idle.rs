//! What costs nothing while nobody asks: hooks are attached on demand.

use std::time::{Duration, Instant};

use procfs::process::Process;
use serde_json::json;
use tcptracer_proto::v1::watch_request::History;
use tcptracer_proto::v1::watch_response::Message;
use tcptracer_proto::v1::{self, EventType};
use tcptracer_testing::tests;
use tcptracer_testing::wait_until;

use crate::client::{Client, Watch, kinds, of};
use crate::node::{Container, Node};

tests![
    nothing_is_attached_while_nobody_asks,
    refusals_are_watched_while_failures_are_wanted,
    what_is_open_is_known_before_a_watch_is_live,
    what_was_accepted_from_an_old_queue_keeps_its_id,
    a_list_attaches_for_itself,
    who_is_selected_later_is_followed,
    who_gets_a_label_later_is_followed,
    a_list_looks_for_those_whom_nobody_watches,
    who_asks_for_the_past_is_told_of_pauses,
    who_comes_back_finds_no_gap,
    what_is_recorded_keeps_the_hooks,
    a_watch_is_live_soon,
    a_thousand_subscribers_leave_nothing,
];

const LOCAL: &str = "127.0.0.1:0";

/// Those of cgroups, without which a container would be found late.
const IDLE: [&str; 2] = ["tt_cgroup_mkdir", "tt_cgroup_rmdir"];

fn detach_after(seconds: &str) -> Node {
    Node::with(&["--detach-after", seconds])
}

#[track_caller]
fn wait_until_idle(node: &Node) {
    wait_until("the hooks are detached", || node.agent.programs() == IDLE);
}

fn nothing_is_attached_while_nobody_asks() {
    let mut node = detach_after("1");
    let cart = node.pod("shop", "cart-0", json!({}));
    let agent = node.client();
    agent.wait_for_pods(1);
    wait_until_idle(&node);
    assert!(
        node.get("/readyz")
            .ends_with("ok: idle until a client subscribes\n")
    );
    node.assert_metrics(&["tcptracer_idle 1"]);
    let info = agent.info();
    let attached =
        |info: &v1::GetServerInfoResponse| info.hooks.iter().filter(|h| h.attached).count();
    assert_eq!(attached(&info), IDLE.len(), "{:?}", info.hooks);
    assert!(info.paused_since.is_some());

    let watch = agent.watch(of("shop"));
    assert!(
        node.agent
            .programs()
            .iter()
            .any(|name| name == "tt_set_state")
    );
    assert!(node.get("/readyz").ends_with("\r\n\r\nok\n"));
    node.assert_metrics(&["tcptracer_idle 0"]);
    let info = agent.info();
    assert!(attached(&info) > IDLE.len(), "{:?}", info.hooks);
    assert_eq!(info.paused_since, None);
    let paused = info.paused_for.expect("it has been paused");
    assert_eq!(watch.pauses.len(), 1);
    assert!(node.keys("cgroupmap").contains(&cart.cgroup_id()));

    drop(watch);
    wait_until_idle(&node);
    let now = agent.info().paused_for.expect("it is paused");
    assert!((now.seconds, now.nanos) > (paused.seconds, paused.nanos));
    node.assert_metrics(&["tcptracer_idle 1", "tcptracer_attach_errors_total 0"]);
}

fn refusals_are_watched_while_failures_are_wanted() {
    let mut node = detach_after("0");
    let mut cart = node.pod("shop", "cart-0", json!({}));
    let agent = node.client();
    agent.wait_for_pods(1);
    let watches_connects = || {
        node.agent
            .programs()
            .iter()
            .any(|name| name.contains("connect") && !name.starts_with("tt_seed"))
    };
    let _all = agent.watch(of("shop"));
    wait_until("connects are not watched", || !watches_connects());
    let failures = v1::Filter {
        types: vec![EventType::Failed.into()],
        ..of("shop").remove(0)
    };
    let mut watch = agent.watch(vec![failures]);
    assert!(watches_connects());
    assert_eq!(cart.actor.ask_error("connect c 192.0.2.1:9"), 101);
    assert_eq!(kinds(&watch.events(1)), [EventType::Failed]);
    drop(watch);
    wait_until("connects are not watched any more", || !watches_connects());
}

/// A server and a client with a connection that is open.
struct Open {
    cart: Container,
    db: Container,
    node: Node,
}

impl Open {
    fn with(options: &[&str]) -> Self {
        let mut node = Node::with(options);
        let mut db = node.pod("other", "db-0", json!({}));
        let mut cart = node.pod("shop", "cart-0", json!({}));
        let at = db.actor.listen(LOCAL);
        cart.actor.connect(at);
        db.actor.accept();
        Self { cart, db, node }
    }

    fn client(&self) -> Client {
        let agent = self.node.client();
        agent.wait_for_pods(2);
        wait_until_idle(&self.node);
        agent
    }
}

fn what_is_open_is_known_before_a_watch_is_live() {
    let mut open = Open::with(&["--detach-after", "0"]);
    let agent = open.client();
    let mut id = None;
    for _ in 0..3 {
        // Found anew each time, and the same.
        let watch = agent.watch(of("shop"));
        let listed = agent.connections(of("shop"));
        assert_eq!(listed.len(), 1);
        assert!(id.is_none_or(|id: String| id == listed[0].id));
        id = Some(listed[0].id.clone());
        drop(watch);
        wait_until_idle(&open.node);
    }
    let mut watch = agent.watch(of("shop"));
    open.cart.actor.close();
    let closed = watch.events(1).remove(0);
    assert_eq!(closed.r#type(), EventType::Close);
    assert_eq!(closed.reason(), v1::CloseReason::Local);
    assert_eq!(closed.connection.map(|c| c.id), id);
}

/// Its socket has no cookie when it is accepted, and gets one when it is found.
fn what_was_accepted_from_an_old_queue_keeps_its_id() {
    let mut node = detach_after("0");
    let mut db = node.pod("other", "db-0", json!({}));
    let mut cart = node.pod("shop", "cart-0", json!({}));
    let agent = node.client();
    agent.wait_for_pods(2);
    wait_until_idle(&node);
    let at = db.actor.listen(LOCAL);
    cart.actor.connect(at);
    let mut watch = agent.watch(of("other"));
    db.actor.accept();
    let accepted = watch.events(1).remove(0);
    assert_eq!(accepted.r#type(), EventType::Accept);
    drop(watch);
    wait_until_idle(&node);
    let listed = agent.connections(of("other"));
    let accepted = accepted.connection.expect("it has a connection");
    assert_eq!(listed, [accepted]);
}

fn a_list_attaches_for_itself() {
    let open = Open::with(&["--detach-after", "0"]);
    let agent = open.client();
    for _ in 0..3 {
        assert_eq!(agent.connections(of("shop")).len(), 1);
        wait_until_idle(&open.node);
    }
}

/// The other end of its connection has been watched all the while.
fn who_is_selected_later_is_followed() {
    let mut open = Open::with(&[]);
    let agent = open.client();
    let mut shop = agent.watch(of("shop"));
    let mut other = agent.watch(of("other"));
    open.cart.actor.close();
    open.db.actor.close();
    let reasons = [
        (&mut shop, v1::CloseReason::Local),
        (&mut other, v1::CloseReason::Remote),
    ];
    for (watch, reason) in reasons {
        let closed = watch.events(1).remove(0);
        assert_eq!(
            (closed.r#type(), closed.reason()),
            (EventType::Close, reason)
        );
    }
    assert_eq!(agent.losses(), []);
}

/// What it has open by then is followed, though nobody waits for that.
fn who_gets_a_label_later_is_followed() {
    let mut open = Open::with(&[]);
    let agent = open.client();
    let labelled = v1::Filter {
        label_selector: "watched".into(),
        ..v1::Filter::default()
    };
    let mut watch = agent.watch(vec![labelled]);
    open.node.relabel("db-0", json!({"watched": "yes"}));
    wait_until("the container is selected", || {
        open.node.keys("cgroupmap").contains(&open.db.cgroup_id())
    });
    // A list comes after the look for what is open.
    assert_eq!(agent.connections(of("other")).len(), 1);
    open.cart.actor.close();
    open.db.actor.close();
    let closed = watch.events(1).remove(0);
    assert_eq!(closed.r#type(), EventType::Close);
    assert_eq!(agent.losses(), []);
}

/// And lets them go again.
fn a_list_looks_for_those_whom_nobody_watches() {
    let open = Open::with(&["--detach-after", "3600"]);
    let agent = open.client();
    let _watch = agent.watch(of("shop"));
    for _ in 0..3 {
        assert_eq!(agent.connections(of("other")).len(), 1);
        wait_until("it is not selected any more", || {
            !open.node.keys("cgroupmap").contains(&open.db.cgroup_id())
        });
    }
    assert_eq!(agent.losses(), []);
}

/// How many events there were of the namespace, and how many pauses.
fn past(agent: &Client, history: History) -> (usize, usize) {
    past_of(agent, of("shop"), history)
}

fn past_of(agent: &Client, allow: Vec<v1::Filter>, history: History) -> (usize, usize) {
    let request = v1::WatchRequest {
        allow,
        history: Some(history),
        history_only: true,
        ..v1::WatchRequest::default()
    };
    let mut watch = agent.try_watch(request).expect("it is valid");
    let mut events = 0;
    while let Some(message) = watch.message() {
        if let Message::Events(batch) = message {
            events += batch.events.len();
        }
    }
    (events, watch.pauses.len())
}

fn ago(time: Duration) -> History {
    History::Since(prost_types::Duration {
        seconds: time.as_secs() as i64,
        nanos: time.subsec_nanos() as i32,
    })
}

fn who_asks_for_the_past_is_told_of_pauses() {
    let mut open = Open::with(&["--detach-after", "1"]);
    let agent = open.client();
    let mut watch = agent.watch(of("shop"));
    open.cart.actor.close();
    let closed = watch.events(1).remove(0);
    let position = v1::Position {
        epoch: watch.epoch,
        sequence: closed.sequence,
        lost: 0,
    };
    // Before the first pause nothing could be seen, and after the only event nothing was missed yet.
    let an_hour = || ago(Duration::from_secs(3600));
    assert_eq!(past(&agent, an_hour()), (1, 1));
    assert_eq!(past(&agent, History::Last(5)), (1, 0));
    assert_eq!(past(&agent, ago(Duration::ZERO)), (0, 0));
    assert_eq!(past(&agent, History::Resume(position)), (0, 0));

    drop(watch);
    wait_until_idle(&open.node);
    assert_eq!(past(&agent, an_hour()), (1, 2));
    assert_eq!(past(&agent, History::Last(5)), (1, 1));
    assert_eq!(past(&agent, ago(Duration::ZERO)), (0, 1));
    assert_eq!(past(&agent, History::Resume(position)), (0, 1));
    // Who resumes behind the pause has heard of it.
    let resumed = v1::WatchRequest {
        allow: of("shop"),
        history: Some(History::Resume(position)),
        ..v1::WatchRequest::default()
    };
    let mut watch = agent.try_watch(resumed).expect("it is valid");
    let Some(Message::Status(live)) = watch.message() else {
        panic!("the status follows");
    };
    assert!(live.live);
    let pause = &watch.pauses[0];
    assert!(pause.to.is_some() && watch.pauses.len() == 1);
    let behind = v1::Position {
        lost: live.lost,
        ..position
    };
    assert_eq!(pause.position, Some(behind));
    assert_eq!(past(&agent, History::Resume(behind)), (0, 0));
}

/// A stream breaks, and is resumed before the hooks are let go.
fn who_comes_back_finds_no_gap() {
    let mut open = Open::with(&[]);
    let agent = open.client();
    let watch = agent.watch(of("shop"));
    let position = v1::Position {
        epoch: watch.epoch,
        sequence: 0,
        lost: agent.info().lost.iter().map(|lost| lost.count).sum::<u64>() + 1,
    };
    drop(watch);
    wait_until("the stream has ended", || agent.info().subscribers == 0);
    open.cart.actor.close();
    let hour = Duration::from_secs(3600);
    wait_until("the close is remembered", || past(&agent, ago(hour)).0 == 1);
    assert_eq!(past(&agent, History::Resume(position)), (1, 0));
}

fn what_is_recorded_keeps_the_hooks() {
    let mut open = Open::with(&["--detach-after", "0", "--record"]);
    let agent = open.node.client();
    agent.wait_for_pods(2);
    wait_until("the container is selected", || {
        open.node.keys("cgroupmap").contains(&open.cart.cgroup_id())
    });
    // A list comes after the look for what is open.
    assert_eq!(agent.connections(of("shop")).len(), 1);
    open.cart.actor.close();
    // Whether the agent knew the pod when it connected does not matter.
    let closes = v1::Filter {
        types: vec![EventType::Close.into()],
        ..of("shop").remove(0)
    };
    wait_until("the close is recorded", || {
        let hour = ago(Duration::from_secs(3600));
        past_of(&agent, vec![closes.clone()], hour) == (1, 0)
    });
    assert!(open.node.agent.programs().len() > IDLE.len());
    assert!(agent.info().paused_since.is_none());
    assert_eq!(
        agent.info().paused_for.map(|p| (p.seconds, p.nanos)),
        Some((0, 0))
    );
}

/// With 110 pods and 2,000 sockets; also where the hooks are just being detached. A busy machine may take longer, so the
/// fastest of some counts.
fn a_watch_is_live_soon() {
    const SOON: Duration = Duration::from_millis(250);
    const ROUNDS: usize = 5;
    let mut node = Node::with(&["--detach-after", "0", "--max-containers", "256"]);
    let mut pods: Vec<_> = (0..110)
        .map(|n| node.pod("shop", &format!("cart-{n}"), json!({})))
        .collect();
    let at = pods[0].actor.address("listen l 127.0.0.1:0");
    for pod in &mut pods[1..101] {
        for n in 0..10 {
            pod.actor.address(&format!("connect c{n} {at}"));
        }
    }
    for n in 0..1000 {
        pods[0].actor.ask(&format!("accept a{n} l"));
    }
    let agent = node.client();
    agent.wait_for_pods(110);
    let time = |ready: &dyn Fn()| {
        let rounds = (0..ROUNDS).map(|_| {
            ready();
            let start = Instant::now();
            drop(agent.watch(of("shop")));
            start.elapsed()
        });
        rounds.min().expect("some rounds")
    };
    let idle = time(&|| wait_until_idle(&node));
    let is_detaching = || {
        wait_until("the agent begins to detach", || {
            agent.info().paused_since.is_some()
        });
    };
    let detaching = time(&is_detaching);
    eprintln!("live within {idle:?}, and {detaching:?} while the hooks are detached");
    assert!(idle < SOON, "{idle:?}");
    assert!(detaching < SOON, "{detaching:?}");
    assert_eq!(agent.connections(of("shop")).len(), 2000);
}

fn a_thousand_subscribers_leave_nothing() {
    let node = detach_after("0");
    let agent = node.client();
    wait_until_idle(&node);
    let open = || node.agent.files().count();
    let memory = || {
        let process = Process::new(node.agent.child.id().cast_signed());
        let status = process.and_then(|p| p.status()).expect("the agent runs");
        status.vmrss.expect("it has memory")
    };
    let come_and_go = |count: usize| {
        for _ in 0..count / 10 {
            let watches: Vec<Watch<'_>> = (0..10).map(|_| agent.watch(Vec::new())).collect();
            drop(watches);
        }
        wait_until("all have gone", || agent.info().subscribers == 0);
        wait_until_idle(&node);
    };
    // The first ones fill what is kept for those that follow.
    come_and_go(100);
    let (files, before) = (open(), memory());
    come_and_go(1000);
    assert_eq!(open(), files);
    let grown = memory().saturating_sub(before);
    assert!(grown < 4096, "{grown} KiB more than {before}");
}
