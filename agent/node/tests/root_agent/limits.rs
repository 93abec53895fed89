//! What clients and containers may try.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;

use nix::sys::signal::Signal;
use serde_json::json;
use tcptracer_proto::v1;
use tcptracer_proto::v1::watch_response::Message;
use tcptracer_testing::tests;
use tcptracer_testing::{Actor, DEADLINE, wait_until};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1alpha;

use crate::client::{Client, identity, of};
use crate::node::{Node, fresh_id, fresh_uid};
use crate::subscriber::{Got, Subscriber};

tests![
    a_stopped_client_loses_its_own_events_only,
    streams_are_limited,
    connections_are_limited,
    requests_are_limited,
    health_and_reflection_answer,
    hostile_names_reach_the_client_unharmed,
    a_cgroup_of_a_hostile_name_is_its_containers,
];

const LOCAL: &str = "127.0.0.1:0";

/// A process that is stopped for a while. Another gets everything meanwhile; the stopped one is then told how many
/// it lost and where, to the very event.
fn a_stopped_client_loses_its_own_events_only() {
    const ROUNDS: usize = 10;
    const VISITS: usize = 1000;
    const ALL: u64 = (4 * ROUNDS * VISITS) as u64;
    let mut node = Node::with(&["--queue", "512", "--history", "0"]);
    let mut cart = node.pod("shop", "cart-0", json!({}));
    let agent = node.client();
    agent.wait_for_pods(1);
    let mut stopped = Subscriber::start(&node.socket(), "shop");
    let mut quick = agent.watch(of("shop"));
    stopped.signal(Signal::SIGSTOP);

    let mut last = 0;
    for _ in 0..ROUNDS * VISITS / 50 {
        // No more at a time than its queue has room for.
        cart.actor.visit_itself(50);
        for event in quick.events(4 * 50) {
            assert_eq!(event.sequence, last + 1);
            last = event.sequence;
        }
    }
    assert_eq!(last, ALL);

    stopped.signal(Signal::SIGCONT);
    let (mut at, mut lost) = (0, 0);
    while at < ALL {
        match stopped.next() {
            Got::Event(number) => {
                assert_eq!(number, at + 1, "in its place");
                at = number;
            }
            Got::Lost(count) => {
                lost += count;
                at += count;
            }
            Got::Live => panic!("it was live before"),
        }
    }
    assert_eq!(at, ALL);
    assert!(lost > 0, "there was room for all");
    cart.actor.visit_itself(1);
    let numbers = [1, 2, 3, 4].map(|n| ALL + n);
    let next: Vec<_> = (0..4).map(|_| stopped.next()).collect();
    assert_eq!(next, numbers.map(Got::Event));
    // In between the other got nothing else.
    let next: Vec<_> = quick.events(4).iter().map(|event| event.sequence).collect();
    assert_eq!(next, numbers);
    node.assert_metrics(&[&format!(
        "tcptracer_lost_total{{place=\"subscriber\"}} {lost}"
    )]);
}

fn streams_are_limited() {
    let node = Node::with(&["--max-streams", "2"]);
    let agent = node.client();
    let first = agent.watch(of("shop"));
    let _second = agent.watch(of("shop"));
    let status = agent.try_watch(v1::WatchRequest::default()).err();
    let status = status.expect("it is refused");
    assert_eq!(
        (status.code(), status.message()),
        (
            Code::ResourceExhausted,
            "too many streams are open (--max-streams)"
        )
    );
    // Questions that are no streams are answered.
    assert_eq!(agent.info().subscribers, 2);
    drop(first);
    wait_until("there is room again", || {
        agent.try_watch(v1::WatchRequest::default()).is_ok()
    });
}

/// Who is served stays so; who comes when it is full is turned away at once, until somebody leaves.
fn connections_are_limited() {
    const LIMIT: usize = 1 + 64;
    const TOO_MANY: usize = 6;
    let node = Node::with(&["--max-streams", "1"]);
    let agent = node.client();
    let watch = agent.watch(of("shop"));
    let idle: Vec<_> = (1..LIMIT + TOO_MANY)
        .map(|_| {
            let stream = UnixStream::connect(node.socket()).expect("the agent listens");
            stream.set_nonblocking(true).expect("it can be asked");
            stream
        })
        .collect();
    let is_closed = |mut stream: &UnixStream| matches!(stream.read(&mut [0]), Ok(0));
    let refused = format!("tcptracer_refused_connections_total {TOO_MANY}");
    wait_until("some are refused", || {
        node.get("/metrics").lines().any(|line| line == refused)
    });
    wait_until("they are closed", || {
        idle.iter().filter(|stream| is_closed(stream)).count() == TOO_MANY
    });
    let why = "because 65 are open (--max-streams and 64)";
    let told = || node.agent.log.recv_timeout(DEADLINE).expect("it is logged");
    while !told().contains(why) {}
    assert!(!node.agent.log.try_iter().any(|line| line.contains(why)));
    assert_eq!(agent.info().subscribers, 1);

    drop(idle);
    wait_until("there is room again", || {
        Client::try_connect(&node.socket()).is_ok_and(|client| client.try_info().is_ok())
    });
    drop(watch);
}

fn requests_are_limited() {
    let node = Node::new();
    let agent = node.client();
    let request = v1::WatchRequest {
        allow: vec![v1::Filter {
            label_selector: "a".repeat(1 << 20),
            ..v1::Filter::default()
        }],
        ..v1::WatchRequest::default()
    };
    let status = agent.try_watch(request).err().expect("it is refused");
    assert_eq!(status.code(), Code::OutOfRange);
    assert!(
        status.message().ends_with("the limit is: 1048576 bytes"),
        "{status}"
    );
    agent.watch(of("shop"));
}

fn health_and_reflection_answer() {
    const SERVICE: &str = "tcptracer.v1.TcpTracerService";
    let node = Node::new();
    let agent = node.client();
    for service in ["", SERVICE] {
        let request = HealthCheckRequest {
            service: service.into(),
        };
        let answer = agent.ask(async |channel| HealthClient::new(channel).check(request).await);
        let answer = answer.expect("an answer").into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }

    let reflect = |request| {
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(request),
        };
        let answer = agent.ask(async |channel| {
            let mut reflection = ServerReflectionClient::new(channel);
            let requests = futures::stream::iter([request]);
            let answers = reflection.server_reflection_info(requests).await?;
            answers.into_inner().message().await
        });
        let answer = answer.expect("an answer").expect("a message");
        answer.message_response.expect("what was asked for")
    };
    let MessageResponse::ListServicesResponse(services) =
        reflect(MessageRequest::ListServices(String::new()))
    else {
        panic!("not a list of services");
    };
    let names: BTreeSet<_> = services.service.into_iter().map(|s| s.name).collect();
    let expected = |reflection: &str| {
        ["grpc.health.v1.Health", reflection, SERVICE]
            .map(String::from)
            .into()
    };
    assert_eq!(names, expected("grpc.reflection.v1.ServerReflection"));
    let symbol = MessageRequest::FileContainingSymbol(format!("{SERVICE}.Watch"));
    let MessageResponse::FileDescriptorResponse(files) = reflect(symbol) else {
        panic!("not a file");
    };
    assert!(!files.file_descriptor_proto.is_empty());

    // As tools ask that are older.
    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            v1alpha::server_reflection_request::MessageRequest::ListServices(String::new()),
        ),
    };
    let answer = agent.ask(async |channel| {
        let mut reflection =
            v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
        let requests = futures::stream::iter([request]);
        let answers = reflection.server_reflection_info(requests).await?;
        answers.into_inner().message().await
    });
    let answer = answer.expect("an answer").expect("a message");
    let services = match answer.message_response {
        Some(v1alpha::server_reflection_response::MessageResponse::ListServicesResponse(
            services,
        )) => services,
        other => panic!("{other:?} is no list of services"),
    };
    let names: BTreeSet<_> = services.service.into_iter().map(|s| s.name).collect();
    assert_eq!(names, expected("grpc.reflection.v1alpha.ServerReflection"));
}

/// Escaping is for those who show them: on the wire they are as they were chosen.
fn hostile_names_reach_the_client_unharmed() {
    const LABEL: &str = "\u{1b}]0;owned\u{7}\u{202e}\n\"\\{}";
    let mut node = Node::with(&["--pod-labels", "app"]);
    let mut server = node.pod("other", "db-0", json!({}));
    let (uid, id) = (fresh_uid(), fresh_id());
    node.add_pod("shop", "cart-0", json!({ "app": LABEL }), &uid, &id);
    let comm = "\u{1b}[2J\n\u{fffd}\u{202e}";
    let actor = node
        .netns
        .enter(|| Actor::with_raw_comm(b"\x1b[2J\n\xff\xe2\x80\xae", comm));
    let mut client = node.container_of(uid, id, actor);
    let agent = node.client();
    agent.wait_for_pods(2);
    let mut watch = agent.watch(of("shop"));

    let end = client.actor.connect(server.actor.listen(LOCAL));
    let events = watch.events(1);
    crate::client::assert_end(&events[0], &end);
    let labels = &identity(&events[0]).labels;
    assert_eq!(labels.get("app").map(String::as_str), Some(LABEL));
    client.actor.close();
    match watch.message() {
        Some(Message::Events(batch)) => {
            let closer = batch.events[0].closer.as_ref().expect("who closed it");
            assert_eq!(closer.comm, comm);
        }
        other => panic!("{other:?} instead of the end"),
    }
}

/// Whether the kernel tells of it or it is found at the start.
fn a_cgroup_of_a_hostile_name_is_its_containers() {
    let mut node = Node::new();
    let mut cart = node.pod("shop", "cart-0", json!({}));
    let at = cart.actor.listen(LOCAL);
    node.client().wait_for_pods(1);
    cart.nest_as(OsStr::from_bytes(b"\x1b[2J\xff"));
    for is_found in [false, true] {
        if is_found {
            node.agent.signal(Signal::SIGTERM);
            assert_eq!(node.agent.end(), Some(0));
            node.restart();
        }
        let agent = node.client();
        agent.wait_for_pods(1);
        let mut watch = agent.watch(of("shop"));
        cart.actor.connect(at);
        cart.actor.close();
        for event in watch.events(2) {
            let who = identity(&event);
            assert_eq!((&*who.pod, &who.container_id), ("cart-0", &cart.id));
            assert_eq!(who.evidence(), v1::Evidence::Cgroup);
        }
    }
}
