//! Listeners, queues, and threads that wait.

use std::net::SocketAddr;
use std::path::Path;

use tcptracer::bpf::{Config, Facts, Impossible, Place};
use tcptracer_event::Reason::{Local, Remote, ResetLocal, ResetRemote};
use tcptracer_testing::{Actor, Netns, Test, cover, own_mounts};

use crate::actors::server_and_client;
use crate::trace::{Trace, Want, of};

pub const CASES: &[Test] = &[
    (
        "accept_blocked_before_the_start",
        accept_blocked_before_the_start,
    ),
    ("many_blocked_accepts", many_blocked_accepts),
    ("accept_without_tracefs", accept_without_tracefs),
    ("accepted_from_a_queue_older_than_the_tracer", old_queue),
    ("listener_closed_with_a_queue", listener_closed_with_a_queue),
    ("reset_in_the_queue_then_accepted", reset_in_the_queue),
    ("reset_in_the_queue_never_accepted", reset_never_accepted),
    ("reuseport", reuseport),
    ("dual_stack_listener", dual_stack_listener),
    ("unused_sockets_are_silent", unused_sockets_are_silent),
];

/// One connection to `at`, accepted by `server` as `a` meanwhile; both ends closed.
pub fn one_connection(
    server: &mut Actor,
    client: &mut Actor,
    at: SocketAddr,
    accept: impl FnOnce(&mut Actor) -> String,
) -> [Want; 4] {
    let from = client.address(&format!("connect c {at}"));
    accept(server);
    client.ask("close c");
    server.ask("eof a");
    server.ask("close a");
    let connect = Want::connect(client, from, at);
    let accept = Want::accept(server, at, from);
    Want::life(&connect, &accept, [Local, Remote])
}

fn accept_blocked_before_the_start() {
    let netns = Netns::new();
    let (mut server, mut client) = server_and_client(&netns);
    let at = server.address("listen l 127.0.0.1:0");
    server.begin("accept a l");
    server.wait_until_it_accepts();
    let trace = Trace::of(&netns);
    let wanted = one_connection(&mut server, &mut client, at, Actor::answer);
    trace.said_exactly(&wanted);
}

/// Runs it where there is no tracefs.
fn without_tracefs<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    own_mounts(|| {
        for path in ["/sys/kernel/tracing", "/sys/kernel/debug"] {
            cover(Path::new(path));
        }
        f()
    })
}

/// Only the trampoline is left, which sees each accept, also of a thread that was blocked in it before. Where the kernel
/// refuses that, nothing is.
fn accept_without_tracefs() {
    let netns = Netns::new();
    let (mut server, mut client) = server_and_client(&netns);
    let at = server.address("listen l 127.0.0.1:0");
    server.begin("accept a l");
    server.wait_until_it_accepts();
    let config = Config {
        filter: of(&netns),
        ..Config::default()
    };
    let trace = match without_tracefs(|| Trace::start(config)) {
        Ok(trace) => trace,
        Err(e) => {
            assert!(e.downcast_ref() == Some(&Impossible::NoAcceptHook), "{e:#}");
            assert!(!Facts::gather(false).works(Place::SockGraft));
            return;
        }
    };
    assert!(trace.plan().shortcomings().is_empty(), "{:?}", trace.plan());
    let blocked = one_connection(&mut server, &mut client, at, Actor::answer);
    let later = one_connection(&mut server, &mut client, at, |s| s.ask("accept a l"));
    trace.said_exactly(&[blocked, later].concat());
}

fn many_blocked_accepts() {
    let netns = Netns::new();
    let mut blocked = Actor::inside(&netns, "blocked");
    let (mut server, mut client) = server_and_client(&netns);
    let trace = Trace::of(&netns);
    blocked.ask("listen l 127.0.0.1:0");
    blocked.ask("accept-blocked 30 l");
    let at = server.address("listen l 127.0.0.1:0");
    let wanted = one_connection(&mut server, &mut client, at, |s| s.ask("accept a l"));
    trace.said_exactly(&wanted);
}

fn old_queue() {
    let netns = Netns::new();
    let (mut server, mut client) = server_and_client(&netns);
    let at = server.address("listen l 127.0.0.1:0");
    let from = client.address(&format!("connect c {at}"));
    let trace = Trace::of(&netns);
    server.ask("accept a l");
    client.ask("close c");
    server.ask("eof a");
    server.ask("close a");
    let accept = Want::accept(&server, at, from);
    // The client was connected before the start.
    let connect = Want::connect(&client, from, at).snapshot();
    trace.said_exactly(&[accept.clone(), accept.close(Remote), connect.close(Local)]);
}

fn listener_closed_with_a_queue() {
    let netns = Netns::new();
    let (mut server, mut client) = server_and_client(&netns);
    let trace = Trace::of(&netns);
    let at = server.address("listen l 127.0.0.1:0");
    let from = client.address(&format!("connect c {at}"));
    server.ask("close l");
    assert!(client.ask("error c") == "104");
    client.ask("close c");
    let connect = Want::connect(&client, from, at);
    trace.said_exactly(&[
        connect.clone(),
        connect.close(ResetRemote).errno(104).no_closer(),
    ]);
}

fn reset_in_the_queue() {
    let netns = Netns::new();
    let (mut server, mut client) = server_and_client(&netns);
    let trace = Trace::of(&netns);
    let at = server.address("listen l 127.0.0.1:0");
    let from = client.address(&format!("connect c {at}"));
    client.ask("linger0 c");
    client.ask("close c");
    // The reset may be on its way still.
    netns.wait_until_closed();
    server.ask("accept a l");
    server.ask("close a");
    let connect = Want::connect(&client, from, at);
    let accept = Want::accept(&server, at, from);
    trace.said_exactly(&[
        connect.clone(),
        connect.close(ResetLocal),
        accept.clone(),
        accept.close(ResetRemote).errno(104).no_closer(),
    ]);
}

fn reset_never_accepted() {
    let netns = Netns::new();
    let (mut server, mut client) = server_and_client(&netns);
    let trace = Trace::of(&netns);
    let at = server.address("listen l 127.0.0.1:0");
    let from = client.address(&format!("connect c {at}"));
    client.ask("linger0 c");
    client.ask("close c");
    server.ask("close l");
    let connect = Want::connect(&client, from, at);
    trace.said_exactly(&[connect.clone(), connect.close(ResetLocal)]);
}

/// Connections until each of two listeners on one port has had one.
fn reuseport() {
    let netns = Netns::new();
    let mut servers = [Actor::inside(&netns, "one"), Actor::inside(&netns, "two")];
    let mut client = Actor::inside(&netns, "client");
    let trace = Trace::of(&netns);
    let at = servers[0].address("listen l 127.0.0.1:0 reuseport");
    servers[1].address(&format!("listen l {at} reuseport"));

    let mut wanted = Vec::new();
    for server in &mut servers {
        server.begin("accept a l");
    }
    // The kernel picks by hash, so keep on until both have been picked.
    let mut froms = Vec::new();
    for i in 0..64 {
        let from = client.address(&format!("connect c{i} {at}"));
        froms.push(from);
        wanted.push(Want::connect(&client, from, at));
    }
    for server in &mut servers {
        let from: SocketAddr = server.answer().parse().expect("an address");
        assert!(froms.contains(&from), "{from} is no client");
        server.ask("linger0 a");
        server.ask("close a");
        server.ask("close l");
        let accept = Want::accept(server, at, from);
        wanted.extend([accept.clone(), accept.close(ResetLocal)]);
    }
    // All others were reset with the queues they waited in.
    for (i, from) in froms.into_iter().enumerate() {
        assert!(client.ask(&format!("error c{i}")) == "104");
        let end = Want::connect(&client, from, at).close(ResetRemote);
        wanted.push(end.errno(104).no_closer());
    }
    trace.said_exactly(&wanted);
}

fn dual_stack_listener() {
    let netns = Netns::new();
    let (mut server, mut client) = server_and_client(&netns);
    let trace = Trace::of(&netns);
    let port = server.address("listen l [::]:0").port();
    let from = client.address(&format!("connect c 127.0.0.1:{port}"));
    server.ask("accept a l");
    client.ask("close c");
    server.ask("eof a");
    server.ask("close a");
    let connect = Want::connect(
        &client,
        from,
        format!("127.0.0.1:{port}").parse().expect("an address"),
    );
    let accept = Want::accept(
        &server,
        format!("[::ffff:127.0.0.1]:{port}")
            .parse()
            .expect("an address"),
        format!("[::ffff:127.0.0.1]:{}", from.port())
            .parse()
            .expect("an address"),
    );
    trace.said_exactly(&Want::life(&connect, &accept, [Local, Remote]));
}

fn unused_sockets_are_silent() {
    let netns = Netns::new();
    let mut actor = Actor::inside(&netns, "actor");
    let trace = Trace::of(&netns);
    actor.ask("listen l 127.0.0.1:0");
    actor.ask("listen m [::1]:0");
    actor.ask("close l");
    actor.exit();
    trace.said_exactly(&[]);
}
