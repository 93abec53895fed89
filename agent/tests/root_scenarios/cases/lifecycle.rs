//! Connections that open and close as most do, and connects that fail.

use tcptracer_event::Reason::{Local, Remote, ResetRemote, Timeout};
use tcptracer_testing::{Actor, Netns, Test};

use crate::actors::server_and_client;
use crate::links::black_hole;
use crate::trace::{Trace, Want};

pub const CASES: &[Test] = &[
    ("client_closes_first", || both_ways("127.0.0.1:0", true)),
    ("server_closes_first", || both_ways("127.0.0.1:0", false)),
    ("ipv6", || both_ways("[::1]:0", true)),
    ("times_are_measured", times_are_measured),
    ("refused", refused),
    ("refused_without_blocking", refused_without_blocking),
    ("connected_without_blocking", connected_without_blocking),
    ("closed_before_it_connected", closed_before_it_connected),
    ("killed_before_it_connected", killed_before_it_connected),
    ("nobody_answers", nobody_answers),
    ("no_route", no_route),
];

fn both_ways(any: &str, client_first: bool) {
    let netns = Netns::new();
    let (mut server, mut client) = server_and_client(&netns);
    let trace = Trace::of(&netns);

    let at = server.address(&format!("listen l {any}"));
    let from = client.address(&format!("connect c {at}"));
    server.ask("accept a l");
    client.ask("send c 70000");
    server.ask("recv a 70000");
    server.ask("send a 123");
    client.ask("recv c 123");
    let (first, second, one, other) = match client_first {
        true => (&mut client, &mut server, "c", "a"),
        false => (&mut server, &mut client, "a", "c"),
    };
    first.ask(&format!("close {one}"));
    second.ask(&format!("eof {other}"));
    second.ask(&format!("close {other}"));

    let connect = Want::connect(&client, from, at);
    let accept = Want::accept(&server, at, from);
    let (client_reason, server_reason) = match client_first {
        true => (Local, Remote),
        false => (Remote, Local),
    };
    trace.said_exactly(&[
        connect.clone(),
        accept.clone(),
        connect.close(client_reason).bytes(70000, 123),
        accept.close(server_reason).bytes(123, 70000),
    ]);
}

fn times_are_measured() {
    let netns = Netns::new();
    let (mut server, mut client) = server_and_client(&netns);
    let trace = Trace::of(&netns);

    let at = server.address("listen l 127.0.0.1:0");
    let from = client.address(&format!("connect c {at}"));
    // However long this takes, it is a lower bound.
    let waited = std::time::Instant::now();
    while waited.elapsed().as_millis() < 50 {
        std::thread::yield_now();
    }
    let waited = waited.elapsed().as_nanos() as u64;
    server.ask("accept a l");
    client.ask("close c");
    server.ask("eof a");
    server.ask("close a");

    let connect = Want::connect(&client, from, at);
    let accept = Want::accept(&server, at, from);
    let events = trace.said_exactly(&Want::life(&connect, &accept, [Local, Remote]));
    for event in &events {
        let server_side = event.local == at;
        assert!(event.handshake().is_some() != server_side, "{event:?}");
        assert!(event.accept_wait().is_some() == server_side, "{event:?}");
        assert!(event.accept_wait().is_none_or(|w| w >= waited), "{event:?}");
        assert!(event.duration().is_none_or(|d| d >= waited), "{event:?}");
        if let Some(counters) = event.counters {
            assert!(event.first_fin.is_some(), "{event:?}");
            assert!(counters.segments_sent >= 1, "{event:?}");
            assert!(counters.segments_received >= 2, "{event:?}");
            assert!(counters.retransmits == 0, "{event:?}");
        }
    }
}

/// An address of the namespace where nobody listens.
fn closed_port(netns: &Netns) -> std::net::SocketAddr {
    let mut actor = Actor::inside(netns, "reserve");
    let at = actor.address("listen l 127.0.0.1:0");
    actor.ask("close l");
    at
}

fn refused() {
    let netns = Netns::new();
    let mut client = Actor::inside(&netns, "client");
    let at = closed_port(&netns);

    let silent = Trace::of(&netns);
    assert!(client.ask_error(&format!("connect c {at}")) == 111);
    client.ask("close c");
    silent.said_exactly(&[]);

    let trace = Trace::with_failures_of(&netns);
    assert!(client.ask_error(&format!("connect c {at}")) == 111);
    client.ask("close c");
    let said = trace.stop_after(1);
    let [event] = said.events[..] else {
        panic!("not one event: {:?}", said.events);
    };
    let wanted = Want::connect(&client, event.local, at).failed(ResetRemote, 111);
    assert!(Want::from(&event) == wanted, "{event:?}");
    assert!(event.local.port() != 0, "{event:?}");
}

fn refused_without_blocking() {
    let netns = Netns::new();
    let mut client = Actor::inside(&netns, "client");
    let at = closed_port(&netns);

    let silent = Trace::of(&netns);
    client.ask(&format!("connect c {at} nonblocking"));
    assert!(client.ask("error c") == "111");
    client.ask("close c");
    silent.said_exactly(&[]);

    // The second connect only fetches the error of the first.
    let trace = Trace::with_failures_of(&netns);
    let from = client.address(&format!("connect c {at} nonblocking"));
    assert!(client.ask_error(&format!("connect c {at}")) == 111);
    client.ask("close c");
    trace.said_exactly(&[Want::connect(&client, from, at).failed(ResetRemote, 111)]);
}

fn connected_without_blocking() {
    let netns = Netns::new();
    let (mut server, mut client) = server_and_client(&netns);
    let trace = Trace::of(&netns);

    let at = server.address("listen l 127.0.0.1:0");
    client.ask(&format!("connect c {at} nonblocking"));
    let from = client.address("connected c");
    server.ask("accept a l");
    client.ask("close c");
    server.ask("eof a");
    server.ask("close a");

    let connect = Want::connect(&client, from, at);
    let accept = Want::accept(&server, at, from);
    trace.said_exactly(&Want::life(&connect, &accept, [Local, Remote]));
}

fn closed_before_it_connected() {
    let (netns, _other, at) = black_hole();
    let mut client = Actor::inside(&netns, "client");

    let silent = Trace::of(&netns);
    client.ask(&format!("connect c {at} nonblocking"));
    client.ask("close c");
    silent.said_exactly(&[]);

    let trace = Trace::with_failures_of(&netns);
    let from = client.address(&format!("connect c {at} nonblocking"));
    client.ask("close c");
    trace.said_exactly(&[Want::connect(&client, from, at)
        .failed(Local, 0)
        .closer(client.pid(), "client")]);
}

fn killed_before_it_connected() {
    let (netns, _other, at) = black_hole();
    let mut client = Actor::inside(&netns, "client");
    let trace = Trace::with_failures_of(&netns);
    client.begin(&format!("connect c {at}"));
    client.wait_until_it_connects();
    client.kill();
    let said = trace.stop_after(1);
    let [event] = said.events[..] else {
        panic!("not one event: {:?}", said.events);
    };
    let wanted = Want::connect(&client, event.local, at).failed(Local, 0);
    assert!(
        Want::from(&event) == wanted.closer(client.pid(), "client"),
        "{event:?}"
    );
}

fn nobody_answers() {
    let (netns, _other, at) = black_hole();
    netns.sysctl("ipv4/tcp_syn_retries", "1");
    netns.sysctl_if_known("ipv4/tcp_syn_linear_timeouts", "0");
    let mut client = Actor::inside(&netns, "client");
    let trace = Trace::with_failures_of(&netns);

    let from = client.address(&format!("connect c {at} nonblocking"));
    assert!(client.ask("error c") == "110");
    client.ask("close c");
    trace.said_exactly(&[Want::connect(&client, from, at).failed(Timeout, 110)]);
}

fn no_route() {
    let netns = Netns::new();
    let mut client = Actor::inside(&netns, "client");
    let at = "203.0.113.7:80".parse().expect("an address");
    let trace = Trace::with_failures_of(&netns);

    assert!(client.ask_error(&format!("connect c {at}")) == 101);
    assert!(client.ask_error(&format!("connect c {at}")) == 101);
    client.ask("close c");
    let attempt = Want::without_a_route(&client, at);
    trace.said_exactly(&[attempt.clone(), attempt]);
}
