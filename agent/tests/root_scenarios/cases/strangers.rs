//! Only TCP is TCP.

use tcptracer::bpf::Config;
use tcptracer_event::Reason::{Local, Remote};
use tcptracer_testing::{Actor, Netns, Test};

use crate::actors::server_and_client;
use crate::trace::{Trace, Want, of, same};

pub const CASES: &[Test] = &[
    ("strangers_open_before_the_start", || strangers(true)),
    ("strangers_while_tracing", || strangers(false)),
];

/// Sockets that are not TCP's, though they have its numbers: they are not listed, make no events, and do not harm the
/// snapshot, the list or other connections.
fn strangers(before: bool) {
    let netns = Netns::new();
    let (mut server, mut client) = server_and_client(&netns);
    let mut stranger = Actor::inside(&netns, "stranger");
    let at = server.address("listen l 127.0.0.1:0");
    let from = client.address(&format!("connect c {at}"));
    server.ask("accept a l");
    if before {
        stranger.ask("strangers");
    }

    let trace = Trace::with(Config {
        filter: of(&netns),
        existing: true,
        failed: true,
        ..Config::default()
    });
    if !before {
        stranger.ask("strangers");
    }
    let raw: usize = stranger
        .ask("strangers-to-nowhere")
        .parse()
        .expect("a number");
    assert!(raw >= 2, "{raw} raw sockets");
    let connect = Want::connect(&client, from, at).snapshot();
    let accept = Want::accept(&server, at, from).snapshot();
    let listed = trace.connections();
    let uncounted = [connect.existing(), accept.existing()].map(|w| w.uncounted());
    same(listed.iter().map(Want::from), uncounted.into());
    stranger.exit();
    client.ask("close c");
    server.ask("eof a");
    server.ask("close a");
    trace.said_exactly(&[
        connect.existing().bytes(0, 0),
        accept.existing().bytes(0, 0),
        connect.close(Local),
        accept.close(Remote),
    ]);
}
