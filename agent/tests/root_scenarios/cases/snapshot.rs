//! Connections that are older than the tracer.

use tcptracer::bpf::Config;
use tcptracer_event::Kind;
use tcptracer_event::Reason::{Local, Remote};
use tcptracer_testing::{Actor, Netns, Test};

use crate::actors::server_and_client;
use crate::links::linked;
use crate::trace::{Trace, Want, of, same};

pub const CASES: &[Test] = &[
    ("open_before_the_start", || open_before_the_start(false)),
    ("open_before_the_start_and_listed", || {
        open_before_the_start(true)
    }),
    ("connecting_before_the_start", connecting_before_the_start),
    ("open_in_several_namespaces", open_in_several_namespaces),
    ("open_without_its_listener", open_without_its_listener),
    ("half_closed_before_the_start", half_closed_before_the_start),
];

fn open_before_the_start(existing: bool) {
    let netns = Netns::new();
    let (mut server, mut client) = server_and_client(&netns);
    let at = server.address("listen l 127.0.0.1:0");
    let from = client.address(&format!("connect c {at}"));
    server.ask("accept a l");
    client.ask("send c 11");
    server.ask("recv a 11");

    let trace = Trace::with(Config {
        filter: of(&netns),
        existing,
        ..Config::default()
    });
    server.ask("send a 5");
    client.ask("recv c 5");
    client.ask("close c");
    server.ask("eof a");
    server.ask("close a");

    let connect = Want::connect(&client, from, at).snapshot();
    let accept = Want::accept(&server, at, from).snapshot();
    let mut wanted = vec![
        connect.close(Local).bytes(11, 5),
        accept.close(Remote).bytes(5, 11),
    ];
    if existing {
        wanted.push(connect.existing().bytes(11, 0));
        wanted.push(accept.existing().bytes(0, 11));
    }
    trace.said_exactly(&wanted);
}

/// It is in SYN_SENT at the start, because no answer comes back.
fn connecting_before_the_start() {
    let (near, far) = linked();
    // The client sends its SYN again after a second, and then the answer finds its way.
    far.ip(&["route", "replace", "blackhole", "192.0.2.1/32"]);
    let mut server = Actor::inside(&far, "server");
    let mut client = Actor::inside(&near, "client");
    let at = server.address("listen l 192.0.2.2:0");
    client.ask(&format!("connect c {at} nonblocking"));

    let trace = Trace::of(&near);
    far.ip(&["route", "del", "blackhole", "192.0.2.1/32"]);
    let from = client.address("connected c");
    client.ask("close c");
    server.ask("accept a l");
    server.ask("eof a");
    server.ask("close a");
    let connect = Want::connect(&client, from, at);
    trace.said_exactly(&[connect.clone(), connect.close(Local)]);
}

fn open_in_several_namespaces() {
    let mut ends = Vec::new();
    let mut wanted = Vec::new();
    for _ in 0..2 {
        let netns = Netns::new();
        let (mut server, mut client) = server_and_client(&netns);
        let at = server.address("listen l 127.0.0.1:0");
        let from = client.address(&format!("connect c {at}"));
        server.ask("accept a l");
        let connect = Want::connect(&client, from, at).snapshot();
        let accept = Want::accept(&server, at, from).snapshot();
        wanted.extend([
            connect.existing().bytes(0, 0),
            accept.existing().bytes(0, 0),
        ]);
        wanted.extend([connect.close(Local), accept.close(Remote)]);
        ends.push((netns, server, client));
    }
    let mut trace = Trace::with(Config {
        existing: true,
        ..Config::default()
    });
    for (_, server, client) in &mut ends {
        client.ask("close c");
        server.ask("eof a");
        server.ask("close a");
    }
    // This one sees the whole host, so only what these processes did counts.
    let ours: Vec<u32> = ends
        .iter()
        .flat_map(|(_, server, client)| [server.pid(), client.pid()])
        .collect();
    for &pid in &ours {
        trace.wait_for("the close", |e| e.owner.pid == pid && e.kind == Kind::Close);
    }
    let said = trace.stop_after(0);
    let of_ours = said.events.iter().filter(|e| ours.contains(&e.owner.pid));
    same(of_ours.map(Want::from), wanted)
}

/// Which end connected is known although nobody listens any more when the tracer starts. One has sent more than the other has read.
fn open_without_its_listener() {
    let netns = Netns::new();
    let (mut server, mut client) = server_and_client(&netns);
    let at = server.address("listen l 127.0.0.1:0");
    let mut open = |name: &str| {
        let from = client.address(&format!("connect {name} {at}"));
        server.ask(&format!("accept {name} l"));
        from
    };
    let (idle, half) = (open("idle"), open("half"));
    let busy = open("busy");
    client.ask("send busy 11");
    server.ask("recv busy 11");
    server.ask("send busy 7");
    client.ask("shutdown half");
    server.ask("eof half");
    server.ask("close l");
    let trace = Trace::with(Config {
        filter: of(&netns),
        existing: true,
        ..Config::default()
    });
    let found = |from, sent, received| {
        [
            Want::connect(&client, from, at)
                .existing()
                .bytes(sent, received),
            Want::accept(&server, at, from)
                .existing()
                .bytes(received, sent),
        ]
    };
    let wanted = [found(idle, 0, 0), found(half, 0, 0), found(busy, 11, 7)];
    trace.said_exactly(&wanted.concat());
}

fn half_closed_before_the_start() {
    let netns = Netns::new();
    let (mut server, mut client) = server_and_client(&netns);
    let at = server.address("listen l 127.0.0.1:0");
    let from = client.address(&format!("connect c {at}"));
    server.ask("accept a l");
    client.ask("shutdown c");
    server.ask("eof a");
    let trace = Trace::of(&netns);
    server.ask("close a");
    client.ask("eof c");
    client.ask("close c");
    // Who sent the client's FIN was not seen.
    let connect = Want::connect(&client, from, at).snapshot();
    let accept = Want::accept(&server, at, from).snapshot();
    trace.said_exactly(&[connect.close(Local).no_closer(), accept.close(Remote)]);
}
