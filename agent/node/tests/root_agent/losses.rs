//! What the kernel or the agent lost, and that nothing stays wrong because of it.

use std::collections::HashSet;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use std::{process, thread};

use anyhow::Result;
use nix::sys::signal::Signal;
use serde_json::json;
use tcptracer::bpf::{self, Demand, LostCgroups, PinDir, Shortcoming};
use tcptracer_agent::cgroup::Hierarchy;
use tcptracer_agent::filter::Matcher;
use tcptracer_agent::hub::{Hub, Past};
use tcptracer_agent::identity::Index;
use tcptracer_agent::kube::Update;
use tcptracer_agent::metrics::Metrics;
use tcptracer_agent::node::{self, Command, Containers, Inputs, Pair, Programs, Refusal};
use tcptracer_agent::report::Report;
use tcptracer_event::{Comm, ConnectionId, Event, Kind, Process, Reason, Role, Source};
use tcptracer_proto::v1::watch_response::Message;
use tcptracer_proto::v1::{self, LossSource};
use tcptracer_testing::tests;
use tcptracer_testing::{DEADLINE, mount_points, wait_until};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::client::{Client, Watch, identity, of};
use crate::node::{Node, get};

tests![
    a_container_whose_coming_was_lost_is_found,
    what_the_ring_lost_is_told_to_who_ends_at_once,
    a_flood_of_questions_loses_no_event,
    after_each_question_the_tracer_has_its_turn,
    a_hook_that_is_refused_later_is_told,
    hooks_that_cannot_be_attached_are_told,
    a_watch_that_waits_can_be_ended,
    who_idles_does_not_keep_others_from_asking,
    a_full_map_is_told_to_who_comes_later_too,
    a_full_filter_set_is_told,
];

const LOCAL: &str = "127.0.0.1:0";

/// More than the ring has room for: each visit has four events of 232 bytes.
const TOO_MANY_VISITS: usize = (8 << 20) / 232 / 4 + 1000;

/// The ring is full when a container is made. It is in no filter map then, so no event of its own can tell of it.
fn a_container_whose_coming_was_lost_is_found() {
    let mut node = Node::new();
    let mut server = node.pod("other", "db-0", json!({}));
    let mut noisy = node.pod("shop", "noisy-0", json!({}));
    let agent = node.client();
    agent.wait_for_pods(2);
    let at = server.actor.listen(LOCAL);
    let mut watch = agent.watch(of("shop"));

    node.agent.signal(Signal::SIGSTOP);
    noisy.actor.visit_itself(TOO_MANY_VISITS);
    let mut cart = node.pod("shop", "cart-0", json!({}));
    node.agent.signal(Signal::SIGCONT);

    wait_until("the container is selected", || {
        node.keys("cgroupmap").contains(&cart.cgroup_id())
    });
    cart.actor.connect(at);
    let (mut lost, mut last) = (0, None);
    while last.is_none() {
        match watch.message().expect("the stream goes on") {
            Message::Events(batch) => {
                let mut events = batch.events.into_iter();
                last = events.find(|e| identity(e).pod == "cart-0");
            }
            Message::Lost(told) => match told.source() {
                LossSource::Ring => lost += told.count,
                _ => panic!("{told:?}"),
            },
            other => panic!("{other:?}"),
        }
    }
    assert!(lost > 0, "the ring had room for all");
    assert_eq!(identity(&last.expect("an event")).container_id, cart.id);
}

/// The agent has reported nothing of it when it is asked to end the watch.
fn what_the_ring_lost_is_told_to_who_ends_at_once() {
    let mut node = Node::new();
    let mut noisy = node.pod("shop", "noisy-0", json!({}));
    let agent = node.client();
    agent.wait_for_pods(1);
    let mut watch = agent.watch_as("noisy", of("shop"));

    node.agent.signal(Signal::SIGSTOP);
    noisy.actor.visit_itself(TOO_MANY_VISITS);
    node.agent.signal(Signal::SIGCONT);
    agent.end_watch("noisy").expect("it is open");

    let (events, lost) = watch.rest();
    assert!(lost[&LossSource::Ring] > 0, "the ring had room for all");
    let all = events.len() as u64 + lost.values().sum::<u64>();
    assert_eq!(all, 4 * TOO_MANY_VISITS as u64, "{lost:?}");
}

/// Everything that can be asked is, over and over, by several at a time.
fn a_flood_of_questions_loses_no_event() {
    const ROUNDS: usize = 5;
    const VISITS: usize = 5000;
    let mut node = Node::new();
    let mut cart = node.pod("shop", "cart-0", json!({}));
    let agent = node.client();
    agent.wait_for_pods(1);
    let mut watch = agent.watch(of("shop"));

    let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    let events = thread::scope(|scope| {
        let over_and_over = |ask: &dyn Fn()| {
            while !stop.load(Ordering::Relaxed) {
                ask();
                answered.fetch_add(1, Ordering::Relaxed);
            }
        };
        for path in ["/livez", "/livez", "/readyz", "/metrics", "/metrics"] {
            let http = &node.agent.http;
            scope.spawn(move || {
                over_and_over(&|| {
                    assert!(get(http, path).starts_with("HTTP/1.1 200 OK"));
                });
            });
        }
        let ask: [fn(&Client); 2] = [
            |agent| {
                agent.info();
            },
            |agent| {
                agent.connections(of("shop"));
            },
        ];
        for ask in ask {
            let agent = node.client();
            scope.spawn(move || over_and_over(&|| ask(&agent)));
        }
        wait_until("the flood is on", || answered.load(Ordering::Relaxed) > 100);
        let mut events = Vec::new();
        for _ in 0..ROUNDS {
            cart.actor.visit_itself(VISITS);
            events.extend(watch.events(4 * VISITS));
        }
        stop.store(true, Ordering::Relaxed);
        events
    });
    let sequences = events.iter().map(|e| e.sequence);
    assert!(sequences.eq(1..=(4 * ROUNDS * VISITS) as u64));
    assert_eq!(agent.losses(), []);
}

/// Nothing filters by the maps.
struct NoPrograms;

impl Programs for NoPrograms {
    fn grow(&self) -> Result<()> {
        Ok(())
    }

    fn changed(&self) -> Result<()> {
        Ok(())
    }

    fn decide(&self, _: u64) -> Result<()> {
        Ok(())
    }

    fn begin_look(&self) -> Result<LostCgroups> {
        Ok(LostCgroups::default())
    }

    fn has_lost(&self, _: LostCgroups) -> Result<bool> {
        Ok(false)
    }

    fn heal(&self, _: LostCgroups) -> Result<()> {
        Ok(())
    }
}

/// The node's task alone, and what it hears from.
struct Task {
    node: node::Node,
    inputs: Inputs,
    tracer: mpsc::Sender<bpf::Message>,
    commands: mpsc::Sender<Command>,
    _pods: mpsc::Sender<Update>,
    stop: CancellationToken,
}

impl Task {
    /// `room` is for as many questions, and messages of the tracer.
    fn new(name: &str, room: usize) -> Self {
        let pins = PathBuf::from(format!(
            "/sys/fs/bpf/tcptracer-test-{}-{name}",
            process::id()
        ));
        let pins = PinDir::open(&pins, &[]).expect("pins can be made");
        let hierarchy = Hierarchy::detect(&mount_points("cgroup2")[0]).expect("the cgroups");
        let node = node::Node::new(node::Parts {
            index: Index::new(true),
            containers: Containers::new(hierarchy, "/proc".into()),
            sets: Vec::new(),
            maps: Pair::open(&pins, None, 1).expect("the maps can be pinned"),
            pins,
            hub: Hub::new(0, 0),
            metrics: Arc::new(Metrics::new(false)),
            labels: Vec::new(),
            shortcomings: Vec::new(),
            wanted: Arc::default(),
            flush: Box::new(|| 1),
            attach: Box::new(|_| 1),
            attached: Demand::Nothing,
            keep_attached: Duration::ZERO,
            programs: Box::new(NoPrograms),
            decided: None,
            seed: Arc::new(|| Ok(())),
            record: None,
        });
        let (tracer, messages) = mpsc::channel(room);
        let (commands, asked) = mpsc::channel(room);
        let (updates, pods) = mpsc::channel(1);
        let stop = CancellationToken::new();
        Self {
            node,
            inputs: Inputs {
                tracer: messages,
                pods,
                commands: asked,
                stop: stop.clone(),
            },
            tracer,
            commands,
            _pods: updates,
            stop,
        }
    }

    fn say(&self, message: bpf::Message) {
        self.tracer.try_send(message).expect("there is room");
    }

    fn ask(&self) -> oneshot::Receiver<Report> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Report(reply);
        self.commands.try_send(command).expect("there is room");
        answer
    }

    /// Runs it until all is answered.
    fn answers(self, questions: Vec<oneshot::Receiver<Report>>) -> Vec<Report> {
        Runtime::new().expect("a runtime").block_on(async {
            let task = tokio::spawn(self.node.run(self.inputs));
            let mut answers = Vec::new();
            for question in questions {
                answers.push(question.await.expect("an answer"));
            }
            self.stop.cancel();
            drop(self.tracer);
            let ended = task.await.expect("the task does not panic");
            ended.expect("the task ends well");
            answers
        })
    }
}

/// With as many questions before the task as there are messages of the tracer: each answer knows of one event more.
fn after_each_question_the_tracer_has_its_turn() {
    const EACH: usize = 200;
    let task = Task::new("task", EACH);
    let mut questions = Vec::new();
    for _ in 0..EACH {
        task.say(bpf::Message::Events(vec![EVENT]));
        questions.push(task.ask());
    }
    let answers = task.answers(questions);
    let sequences = answers.iter().map(|report| report.sequence);
    assert!(sequences.eq(0..EACH as u64));
}

/// The kernel may refuse what it took before, when it is tried at the start.
fn a_hook_that_is_refused_later_is_told() {
    let task = Task::new("hook", 2);
    task.say(bpf::Message::Lacks(
        Shortcoming::IoUringAccepts,
        "no permission".into(),
    ));
    let questions = vec![task.ask(), task.ask()];
    let answers = task.answers(questions);
    let told: Vec<_> = answers.iter().map(|r| &r.status.shortcomings[..]).collect();
    let lacks = Shortcoming::IoUringAccepts.to_string();
    assert_eq!(told, [&[][..], &[lacks]]);
}

/// Who needs them is refused, with the reason, and the agent is not ready.
fn hooks_that_cannot_be_attached_are_told() {
    let task = Task::new("attach", 4);
    let (reply, refused) = oneshot::channel();
    let subscribe = Command::Subscribe {
        id: None,
        matcher: Matcher::new(Vec::new(), Vec::new()),
        past: Past::None,
        follow: true,
        reply,
    };
    let (reply, unfollowed) = oneshot::channel();
    let follow = Command::Follow {
        matcher: Matcher::new(Vec::new(), Vec::new()),
        reply,
    };
    for command in [subscribe, follow] {
        task.commands.try_send(command).expect("there is room");
    }
    let before = task.ask();
    // The tracer is asked for each.
    for _ in 0..2 {
        task.say(bpf::Message::Hooks(1, Err("no memory".into())));
    }
    let answers = task.answers(vec![before]);
    let why = refused.blocking_recv().expect("an answer");
    assert!(
        matches!(&why, Err(Refusal::CannotAttach(why)) if why.to_string() == "cannot attach the hooks: no memory"),
        "{why:?}"
    );
    assert!(unfollowed.blocking_recv().expect("an answer").is_err());
    assert_eq!(answers[0].attach_error.as_deref(), Some("no memory"));
    assert!(answers[0].paused_since.is_some() && answers[0].subscribers == 0);
}

/// It gets the past that it wants, and nothing else.
fn a_watch_that_waits_can_be_ended() {
    let task = Task::new("waits", 4);
    let (reply, subscribed) = oneshot::channel();
    let subscribe = Command::Subscribe {
        id: Some("x".into()),
        matcher: Matcher::new(Vec::new(), Vec::new()),
        past: Past::None,
        follow: true,
        reply,
    };
    let (first, [ended, again]) = {
        let (first, ended) = oneshot::channel();
        let (second, again) = oneshot::channel();
        ([first, second], [ended, again])
    };
    task.commands.try_send(subscribe).expect("there is room");
    for reply in first {
        let end = Command::End {
            id: "x".into(),
            reply,
        };
        task.commands.try_send(end).expect("there is room");
    }
    let after = task.ask();
    let answers = task.answers(vec![after]);
    assert_eq!(ended.blocking_recv(), Ok(true));
    assert_eq!(again.blocking_recv(), Ok(false));
    let mut watch = subscribed
        .blocking_recv()
        .expect("an answer")
        .expect("nobody else goes by the id");
    let runtime = Runtime::new().expect("a runtime");
    let mut items = 0;
    while runtime.block_on(watch.next()).is_some() {
        items += 1;
    }
    // How the node fares, before the past and behind it.
    assert_eq!((items, answers[0].subscribers), (2, 0));
}

/// Of nobody: it does not wait to be named.
const EVENT: Event = Event {
    kind: Kind::Connect,
    time: 1,
    id: ConnectionId { cookie: 1, life: 0 },
    role: Role::Client,
    owner: Process {
        pid: 1,
        tid: 1,
        uid: 0,
        comm: Comm::new([0; 16]),
        cgroup_id: 0,
        mntns: 0,
    },
    source: Source::Connect,
    closer: None,
    netns: 1,
    local: ADDRESS,
    remote: ADDRESS,
    syn: None,
    established: None,
    accepted: None,
    first_fin: None,
    reason: Reason::Unknown,
    errno: 0,
    errno_inferred: false,
    counters: None,
};

const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

/// More connections than there is room for, on which nothing is asked.
fn who_idles_does_not_keep_others_from_asking() {
    let node = Node::new();
    let idle: Vec<_> = (0..200)
        .map(|_| TcpStream::connect(&node.agent.http).expect("the agent listens"))
        .collect();
    assert!(node.get("/livez").starts_with("HTTP/1.1 200 OK"));
    // The oldest have given way.
    let mut byte = [0];
    let mut first = &idle[0];
    first
        .set_read_timeout(Some(DEADLINE))
        .expect("a deadline can be set");
    assert_eq!(first.read(&mut byte).expect("its end"), 0);
}

fn without_room(count: u64) -> v1::Lost {
    v1::Lost {
        source: LossSource::FilterMap.into(),
        count,
        position: None,
    }
}

/// Those who subscribe when it is full, and those who ask how the agent fares; and counted once, however often the
/// maps are brought in step.
fn a_full_map_is_told_to_who_comes_later_too() {
    let mut node = Node::with(&["--max-containers", "1"]);
    let agent = node.client();
    let _pods: Vec<_> = (0..3)
        .map(|n| node.pod("shop", &format!("cart-{n}"), json!({})))
        .collect();
    agent.wait_for_pods(3);
    assert_eq!(agent.losses(), []);

    let mut early = agent.watch(of("shop"));
    assert_full(&mut early);
    let mut late = agent.watch(of("shop"));
    assert_full(&mut late);
    assert_eq!(agent.losses(), [without_room(2)]);
    node.assert_metrics(&[
        "tcptracer_lost_total{place=\"filter_map\"} 2",
        "tcptracer_map_errors_total 2",
    ]);
    node.assert_all_is_told([&mut early, &mut late]);
}

/// The next message is that there is no room for two, before any event. Others' losses may be counted there as well.
#[track_caller]
fn assert_full(watch: &mut Watch<'_>) {
    let Some(Message::Lost(told)) = watch.message() else {
        panic!("a loss comes first");
    };
    let at = told.position.expect("where it was");
    assert_eq!((at.epoch, at.sequence), (watch.epoch, 0));
    assert!(at.lost >= 2, "{at:?}");
    let position = None;
    assert_eq!(v1::Lost { position, ..told }, without_room(2));
}

/// It concerns no subscriber.
fn a_full_filter_set_is_told() {
    let mut node = Node::with(&[
        "--max-containers",
        "1",
        "--filter-set",
        "carts=shop:app=cart",
    ]);
    let agent = node.client();
    let cart = json!({"app": "cart"});
    let first = node.pod("shop", "cart-0", cart.clone());
    let second = node.pod("shop", "cart-1", cart);
    agent.wait_for_pods(2);
    let _other = node.pod("shop", "db-0", json!({}));
    agent.wait_for_pods(3);

    let told = "filter set carts: no room for 1 containers (--max-containers)";
    let log = || node.agent.log.recv_timeout(DEADLINE).expect("it is told");
    while !log().contains(told) {}
    node.assert_metrics(&["tcptracer_map_errors_total 1"]);
    let map = |name: &str, entries, without_room| v1::FilterMap {
        name: name.into(),
        entries,
        capacity: 1,
        without_room,
    };
    let info = agent.info();
    assert_eq!(agent.losses(), []);
    let of_subscribers = ["cgroupmap", "mntnsmap"].map(|name| map(name, 0, 0));
    assert_eq!(info.filter_maps[..2], of_subscribers);
    assert_eq!(info.filter_maps[2], map("carts/cgroupmap", 1, 1));
    // Its containers are in the mount namespace of the host, which is none of theirs.
    assert_eq!(info.filter_maps[3..], [map("carts/mntnsmap", 0, 0)]);

    drop(first);
    wait_until("there is room", || {
        agent.info().filter_maps[2] == map("carts/cgroupmap", 1, 0)
    });
    assert_eq!(
        node.keys("carts/cgroupmap"),
        HashSet::from([second.cgroup_id()])
    );
}
