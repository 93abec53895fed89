//! What TCP allows and few programs do.

use std::net::SocketAddr;

use tcptracer::bpf::{Config, Family, Filter};
use tcptracer_event::Kind;
use tcptracer_event::Reason::{Local, Remote, ResetLocal, ResetRemote, Unknown};
use tcptracer_testing::{Actor, Netns, Test, absent, knows_mptcp};

use crate::actors::server_and_client;
use crate::trace::{Trace, Want, of, same};

pub const CASES: &[Test] = &[
    ("self_connect", self_connect),
    ("socket_that_connects_again", socket_that_connects_again),
    ("mapped_address", mapped_address),
    ("fast_open", fast_open),
    (
        "fast_open_accepted_before_the_handshake_is_over",
        fast_open_early,
    ),
    ("mptcp", || mptcp("mptcp", "mptcp")),
    ("mptcp_listener_and_plain_client", || mptcp("", "mptcp")),
    ("plain_listener_and_mptcp_client", || mptcp("mptcp", "")),
    ("mptcp_open_before_the_start", mptcp_open_before_the_start),
    ("mptcp_without_a_route", mptcp_without_a_route),
];

fn self_connect() {
    let netns = Netns::new();
    let mut actor = Actor::inside(&netns, "narcissus");
    let trace = Trace::of(&netns);
    let at = actor.address("connect-self c");
    actor.ask("send c 4");
    actor.ask("recv c 4");
    actor.ask("close c");
    let connect = Want::connect(&actor, at, at);
    trace.said_exactly(&[connect.clone(), connect.close(Local).bytes(4, 4)]);
}

fn socket_that_connects_again() {
    let netns = Netns::new();
    let (mut server, mut client) = server_and_client(&netns);
    let trace = Trace::of(&netns);
    let at = server.address("listen l 127.0.0.1:0");
    let mut wanted = Vec::new();
    for life in 0..3 {
        let from = client.address(&format!("connect c {at}"));
        server.ask("accept a l");
        let connect = Want::connect(&client, from, at);
        let accept = Want::accept(&server, at, from);
        wanted.extend([connect.clone(), accept.clone()]);
        if life < 2 {
            client.ask("unspec c");
            assert!(server.ask("error a") == "104");
            server.ask("close a");
            wanted.push(connect.close(ResetLocal));
            wanted.push(accept.close(ResetRemote).errno(104).no_closer());
        } else {
            client.ask("close c");
            server.ask("eof a");
            server.ask("close a");
            wanted.extend([connect.close(Local), accept.close(Remote)]);
        }
    }
    let events = trace.said_exactly(&wanted);
    let mut lives: Vec<_> = events
        .iter()
        .filter(|e| e.kind == Kind::Connect)
        .map(|e| e.id)
        .collect();
    lives.sort();
    assert!(lives.iter().map(|id| id.life).eq(0..3), "{lives:?}");
    assert!(
        lives.iter().all(|id| id.cookie == lives[0].cookie),
        "{lives:?}"
    );
}

/// An IPv6 socket that connects to an IPv4 address is IPv6 to `-4` and `-6`, and never lost.
fn mapped_address() {
    let netns = Netns::new();
    let (mut server, mut client) = server_and_client(&netns);
    let by_family = |family| -> Trace {
        Trace::with(Config {
            filter: Filter {
                family: Some(family),
                ..of(&netns)
            },
            ..Config::default()
        })
    };
    let (any, v4, v6) = (
        Trace::of(&netns),
        by_family(Family::V4),
        by_family(Family::V6),
    );
    let port = server.address("listen l 127.0.0.1:0").port();
    let at = format!("[::ffff:127.0.0.1]:{port}")
        .parse()
        .expect("an address");
    let from = client.address(&format!("connect c {at}"));
    server.ask("accept a l");
    client.ask("close c");
    server.ask("eof a");
    server.ask("close a");
    let connect = Want::connect(&client, from, at);
    let accept = Want::accept(
        &server,
        format!("127.0.0.1:{port}").parse().expect("an address"),
        format!("127.0.0.1:{}", from.port())
            .parse()
            .expect("an address"),
    );
    let of_client = [connect.clone(), connect.close(Local)];
    let of_server = [accept.clone(), accept.close(Remote)];
    any.said_exactly(&[&of_client[..], &of_server[..]].concat());
    v4.said_exactly(&of_server);
    v6.said_exactly(&of_client);
}

/// The second connection of a client has a cookie, and its data in the SYN.
fn fast_open() {
    let netns = Netns::new();
    netns.sysctl("ipv4/tcp_fastopen", "0x403");
    let (mut server, mut client) = server_and_client(&netns);
    let trace = Trace::of(&netns);
    let at = server.address("listen l 127.0.0.1:0");
    let mut wanted = Vec::new();
    for _ in 0..2 {
        let from = client.address(&format!("connect c {at} fastopen=hello"));
        server.ask("accept a l");
        wanted.extend(greeted(&mut server, &mut client, from, at));
    }
    trace.said_exactly(&wanted);
}

/// The client has sent 5 bytes; both ends are closed.
fn greeted(server: &mut Actor, client: &mut Actor, from: SocketAddr, at: SocketAddr) -> [Want; 4] {
    server.ask("recv a 5");
    client.ask("connected c");
    client.ask("close c");
    server.ask("eof a");
    server.ask("close a");
    let connect = Want::connect(client, from, at);
    let accept = Want::accept(server, at, from);
    let client_end = connect.close(Local).bytes(5, 0);
    let server_end = accept.close(Remote).bytes(0, 5);
    [connect, accept, client_end, server_end]
}

/// The server has the data before the client has the SYN-ACK: it accepts what is not established.
fn fast_open_early() {
    let netns = Netns::new();
    // No cookies, and every listener takes part.
    netns.sysctl("ipv4/tcp_fastopen", "0x607");
    let (mut server, mut client) = server_and_client(&netns);
    let trace = Trace::of(&netns);
    let at = server.address("listen l 127.0.0.1:0");
    client.ask("socket c 127.0.0.1:0");
    client.ask("deaf c");
    let from = client.address(&format!("connect c {at} nonblocking fastopen=hello"));
    server.ask("accept a l");
    client.ask("hear c");
    let wanted = greeted(&mut server, &mut client, from, at);
    let events = trace.said_exactly(&wanted);
    let accept = events.iter().find(|e| e.kind == Kind::Accept);
    let accept = accept.expect("an accept");
    assert!(accept.accepted < accept.established, "{accept:?}");
    assert!(Some(accept.time) == accept.established, "{accept:?}");
    assert!(accept.accept_wait() == Some(0), "{accept:?}");
}

/// The TCP connection below is traced; the client's or the listener's MPTCP changes nothing.
fn mptcp(client_option: &str, listener_option: &str) {
    if !knows_mptcp() {
        absent("MPTCP");
    }
    let netns = Netns::new();
    let (mut server, mut client) = server_and_client(&netns);
    let trace = Trace::of(&netns);
    let at = server.address(format!("listen l 127.0.0.1:0 {listener_option}").trim_end());
    let from = client.address(format!("connect c {at} {client_option}").trim_end());
    server.ask("accept a l");
    client.ask("send c 6");
    server.ask("recv a 6");
    client.ask("close c");
    server.ask("eof a");
    server.ask("close a");
    let connect = Want::connect(&client, from, at);
    let accept = Want::accept(&server, at, from);
    let ends = [
        connect.close(Local).bytes(6, 0),
        accept.close(Remote).bytes(0, 6),
    ];
    said_but_for_who_closed(trace, [connect, accept], ends)
}

/// Who closes a subflow, the process or the kernel for it, and which end first, is up to the kernel.
fn said_but_for_who_closed(trace: Trace, opens: [Want; 2], ends: [Want; 2]) {
    let blur = |want: Want| want.no_closer().reason(Unknown);
    let said = trace.stop_after(4);
    let wanted = opens.into_iter().chain(ends).map(blur).collect();
    same(said.events.iter().map(|e| blur(e.into())), wanted)
}

fn mptcp_open_before_the_start() {
    if !knows_mptcp() {
        absent("MPTCP");
    }
    let netns = Netns::new();
    let (mut server, mut client) = server_and_client(&netns);
    let at = server.address("listen l 127.0.0.1:0 mptcp");
    let from = client.address(&format!("connect c {at} mptcp"));
    server.ask("accept a l");
    let trace = Trace::with(Config {
        filter: of(&netns),
        existing: true,
        ..Config::default()
    });
    client.ask("send c 8");
    server.ask("recv a 8");
    client.ask("close c");
    server.ask("eof a");
    server.ask("close a");
    let connect = Want::connect(&client, from, at).existing().bytes(0, 0);
    let accept = Want::accept(&server, at, from).existing().bytes(0, 0);
    let ends = [
        connect.close(Local).bytes(8, 0),
        accept.close(Remote).bytes(0, 8),
    ];
    said_but_for_who_closed(trace, [connect, accept], ends)
}

/// One call, in which the kernel has the TCP socket below connect.
fn mptcp_without_a_route() {
    if !knows_mptcp() {
        absent("MPTCP");
    }
    let netns = Netns::new();
    let mut client = Actor::inside(&netns, "client");
    let at = "203.0.113.7:80".parse().expect("an address");
    let trace = Trace::with_failures_of(&netns);
    assert!(client.ask_error(&format!("connect c {at} mptcp")) == 101);
    client.ask("close c");
    trace.said_exactly(&[Want::without_a_route(&client, at)]);
}
