//! Accepts and connects that no system call shows.

use tcptracer::bpf::Plan;
use tcptracer_event::Reason::{Local, Remote};
use tcptracer_event::Source;
use tcptracer_testing::{Actor, Netns, Test, absent, knows_multishot};

use crate::actors::server_and_client;
use crate::trace::{Trace, Want};

pub const CASES: &[Test] = &[
    ("io_uring_accept", || accepts("plain", false, false)),
    ("io_uring_accept_multishot", || {
        accepts("plain", true, false)
    }),
    ("io_uring_accept_by_a_kernel_thread", || {
        accepts("sqpoll", false, false)
    }),
    ("io_uring_accept_on_an_old_listener", || {
        accepts("plain", false, true)
    }),
    ("io_uring_connect_without_a_route", connect_without_a_route),
];

const ROUNDS: usize = 12;

const HOOK: &str = "tp/io_uring/io_uring_complete";

/// Until the hook is attached, who listens is said to have accepted; then it is who really did. It
/// is the same process here, so only the source may change, and only once.
fn accepts(kind: &str, multishot: bool, old_listener: bool) {
    if multishot && !knows_multishot() {
        absent("multishot accept");
    }
    let netns = Netns::new();
    let (mut server, mut client) = server_and_client(&netns);
    let before = old_listener.then(|| server.address("listen l 127.0.0.1:0"));
    let mut trace = Trace::of(&netns);
    // It is not even loaded where a trampoline sees these accepts.
    let Plan {
        io_uring_accept, ..
    } = trace.plan();
    let later = io_uring_accept.then(|| "attached once it is needed".into());
    assert!(trace.why_not_attached(HOOK) == later);
    let at = match before {
        Some(at) => at,
        None => server.address("listen l 127.0.0.1:0"),
    };
    server.ask(&format!("ring {kind}"));
    let mut wanted = Vec::new();
    let mut sources = Vec::new();
    for _ in 0..ROUNDS {
        let from = client.address(&format!("connect c {at}"));
        match multishot {
            true => server.ask("ring-multishot l a"),
            false => server.ask("ring-accept a l"),
        };
        client.ask("close c");
        server.ask("eof a");
        server.ask("close a");
        if multishot {
            // Its request stays armed in the ring and would take the next connection.
            server.ask(&format!("ring {kind}"));
        }
        let accepted = trace.wait_for("the accept", |e| e.local == at && e.remote == from);
        trace.wait_for("its end", |e| {
            e.local == at && e.remote == from && e.counters.is_some()
        });
        sources.push(accepted.source);
        let connect = Want::connect(&client, from, at);
        let accept = Want::accept(&server, at, from).source(accepted.source);
        wanted.extend(Want::life(&connect, &accept, [Local, Remote]));
    }
    assert!(trace.why_not_attached(HOOK).is_none());
    trace.said_exactly(&wanted);
    // A trampoline sees these accepts as well; only without it is there anything to learn.
    let changes = sources.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!(changes <= 1, "{sources:?}");
    assert!(
        sources
            .iter()
            .all(|s| matches!(s, Source::Listener | Source::Accept)),
        "{sources:?}"
    );
    assert!(sources.last() == Some(&Source::Accept), "{sources:?}");
}

/// No system call shows it: where trampolines are refused, nothing does.
fn connect_without_a_route() {
    let netns = Netns::new();
    let mut client = Actor::inside(&netns, "client");
    let at = "203.0.113.7:80".parse().expect("an address");
    let trace = Trace::with_failures_of(&netns);
    client.ask("ring plain");
    assert!(client.ask_error(&format!("ring-connect c {at}")) == 101);
    let attempt = Want::without_a_route(&client, at);
    let seen = trace.plan().refusals.then_some(attempt);
    trace.said_exactly(seen.as_slice());
}
