//! The error that ends a connect is not lost to threads that read it at once.

use tcptracer_event::Event;
use tcptracer_event::Kind::{Close, Failed};
use tcptracer_event::Reason::{ResetRemote, Timeout};
use tcptracer_testing::{Actor, Netns, Test};

use crate::actors::server_and_client;
use crate::links::black_hole;
use crate::trace::Trace;

pub const CASES: &[Test] = &[
    ("timeouts_that_are_polled", timeouts_that_are_polled),
    (
        "timeouts_behind_closed_windows_that_are_polled",
        closed_windows_that_are_polled,
    ),
];

fn timeouts_that_are_polled() {
    const COUNT: usize = 1000;
    let (netns, _other, at) = black_hole();
    let mut client = Actor::inside(&netns, "client");
    let mut trace = Trace::with_failures_of(&netns);
    let read = client.ask(&format!("polled-connects {COUNT} 100 {at}"));
    assert!(read == format!("110={COUNT}"), "errors read: {read}");

    let failed = trace.wait_for_all("the failures", COUNT, |e| e.kind == Failed);
    all_timed_out(&trace, &failed);
    trace.said_no_more_than(COUNT)
}

/// The peer's processes read nothing, and its kernel answers each probe.
fn closed_windows_that_are_polled() {
    const COUNT: usize = 30;
    let netns = Netns::new();
    let (mut server, mut client) = server_and_client(&netns);
    let mut trace = Trace::of(&netns);
    let at = server.address("listen l 127.0.0.1:0");
    client.begin(&format!("polled-sends {COUNT} {at}"));
    for i in 0..COUNT {
        server.ask(&format!("accept a{i} l"));
    }
    let read = client.answer();
    assert!(read == format!("110={COUNT}"), "errors read: {read}");

    let pid = client.pid();
    let is_end = |e: &Event| e.kind == Close && e.owner.pid == pid;
    let ended = trace.wait_for_all("the ends", COUNT, is_end);
    all_timed_out(&trace, &ended);
    // Both sides were opened. A server's end stays open, unless its answer to a probe is so late that it finds no socket any more:
    // then its peer's kernel resets it.
    let said = trace.stop_after(3 * COUNT);
    said.lost_nothing();
    let is_late = |e: &Event| {
        e.kind == Close && e.owner.pid == server.pid() && e.reason == ResetRemote && e.errno == 104
    };
    let others: Vec<_> = said.events.iter().filter(|e| !is_late(e)).collect();
    assert!(others.len() == 3 * COUNT, "{others:#?}");
}

fn all_timed_out(trace: &Trace, events: &[Event]) {
    for event in events {
        let is = (event.reason, event.errno);
        assert!(is == (Timeout, 110), "not timed out: {event:#?}");
        assert!(event.closer.is_none(), "nobody closed it: {event:#?}");
    }
    let inferred = events.iter().filter(|e| e.errno_inferred).count();
    let count = events.len();
    eprintln!("{inferred} of {count} errors were read before the hook on the transition ran");
    // An argument of a hook cannot be read too early.
    assert!(inferred == 0 || !trace.plan().fatal_errors, "{inferred}");
}
