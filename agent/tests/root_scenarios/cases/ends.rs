//! The ways a connection ends, and who is said to have ended it.

use tcptracer_event::Kind;
use tcptracer_event::Reason::{Local, Remote, ResetLocal, ResetRemote, Timeout};
use tcptracer_testing::{Actor, Netns, Test};

use crate::links::linked;
use crate::trace::{Trace, Want};

pub const CASES: &[Test] = &[
    ("linger_0", linger_0),
    ("linger_0_of_the_server", linger_0_of_the_server),
    ("unread_data", unread_data),
    ("reset_after_the_peer_closed", reset_after_the_peer_closed),
    ("data_after_it_was_closed", data_after_it_was_closed),
    ("aborted_after_half_close", aborted_after_half_close),
    ("half_close", half_close),
    ("peer_stops_answering", peer_stops_answering),
    ("process_exits", || process_ends("exit")),
    ("process_is_killed", || process_ends("kill")),
];

/// An open connection between two actors, traced from its beginning.
pub struct Pair {
    pub server: Actor,
    pub client: Actor,
    pub trace: Trace,
    pub connect: Want,
    pub accept: Want,
}

impl Pair {
    pub fn new(netns: &Netns) -> Self {
        let mut server = Actor::inside(netns, "server");
        let mut client = Actor::inside(netns, "client");
        let trace = Trace::of(netns);
        let at = server.address("listen l 127.0.0.1:0");
        let from = client.address(&format!("connect c {at}"));
        server.ask("accept a l");
        Self {
            connect: Want::connect(&client, from, at),
            accept: Want::accept(&server, at, from),
            server,
            client,
            trace,
        }
    }

    /// The connection was opened, ended as given, and nothing else happened.
    pub fn ended(self, client_end: Want, server_end: Want) {
        self.trace
            .said_exactly(&[self.connect, self.accept, client_end, server_end]);
    }
}

fn linger_0() {
    let netns = Netns::new();
    let mut p = Pair::new(&netns);
    p.client.ask("linger0 c");
    p.client.ask("close c");
    assert!(p.server.ask("error a") == "104");
    p.server.ask("close a");
    let client = p.connect.close(ResetLocal);
    let server = p.accept.close(ResetRemote).errno(104).no_closer();
    p.ended(client, server)
}

fn linger_0_of_the_server() {
    let netns = Netns::new();
    let mut p = Pair::new(&netns);
    p.server.ask("linger0 a");
    p.server.ask("close a");
    assert!(p.client.ask("error c") == "104");
    p.client.ask("close c");
    let client = p.connect.close(ResetRemote).errno(104).no_closer();
    let server = p.accept.close(ResetLocal);
    p.ended(client, server)
}

fn unread_data() {
    let netns = Netns::new();
    let mut p = Pair::new(&netns);
    p.client.ask("send c 5");
    p.server.ask("unread a 5");
    p.server.ask("close a");
    assert!(p.client.ask("error c") == "104");
    p.client.ask("close c");
    let client = p
        .connect
        .close(ResetRemote)
        .errno(104)
        .no_closer()
        .bytes(5, 0);
    let server = p.accept.close(ResetLocal).bytes(0, 5);
    p.ended(client, server)
}

/// The server's FIN comes, then a RST, because the server's process is gone when data arrives.
fn reset_after_the_peer_closed() {
    let netns = Netns::new();
    let mut p = Pair::new(&netns);
    p.server.ask("close a");
    p.client.ask("eof c");
    p.client.ask("send c 7");
    assert!(p.client.ask("error c") == "32");
    p.client.ask("close c");
    let client = p
        .connect
        .close(ResetRemote)
        .errno(32)
        .no_closer()
        .bytes(7, 0);
    let server = p.accept.close(Local);
    p.ended(client, server)
}

/// The same seen from the client: it closes, the server still sends.
fn data_after_it_was_closed() {
    let netns = Netns::new();
    let mut p = Pair::new(&netns);
    p.client.ask("close c");
    p.server.ask("eof a");
    // Before its FIN is acknowledged the client would be reset itself.
    let client = p.client.pid();
    p.trace.wait_for("the client's end", |e| {
        e.kind == Kind::Close && e.owner.pid == client
    });
    p.server.ask("send a 7");
    assert!(p.server.ask("error a") == "32");
    p.server.ask("close a");
    let client = p.connect.close(Local);
    let server = p
        .accept
        .close(ResetRemote)
        .errno(32)
        .no_closer()
        .bytes(7, 0);
    p.ended(client, server)
}

fn aborted_after_half_close() {
    let netns = Netns::new();
    let mut p = Pair::new(&netns);
    p.client.ask("shutdown c");
    p.server.ask("eof a");
    p.client.ask("linger0 c");
    p.client.ask("close c");
    assert!(p.server.ask("error a") == "32");
    p.server.ask("close a");
    let client = p.connect.close(ResetLocal);
    let server = p.accept.close(ResetRemote).errno(32).no_closer();
    p.ended(client, server)
}

fn half_close() {
    let netns = Netns::new();
    let mut p = Pair::new(&netns);
    p.client.ask("send c 10");
    p.client.ask("shutdown c");
    p.server.ask("recv a 10");
    p.server.ask("eof a");
    p.server.ask("send a 20");
    p.client.ask("recv c 20");
    p.server.ask("close a");
    p.client.ask("eof c");
    p.client.ask("close c");
    let client = p.connect.close(Local).bytes(10, 20);
    let server = p.accept.close(Remote).bytes(20, 10);
    p.ended(client, server)
}

fn peer_stops_answering() {
    let (near, far) = linked();
    let mut server = Actor::inside(&far, "server");
    let mut client = Actor::inside(&near, "client");
    let trace = Trace::of(&near);
    let at = server.address("listen l 192.0.2.2:0");
    let from = client.address(&format!("connect c {at}"));
    server.ask("accept a l");
    // The server's side stays up; its packets find no way.
    far.ip(&["route", "replace", "blackhole", "192.0.2.1/32"]);
    client.ask("user-timeout c 300");
    client.ask("send c 9");
    assert!(client.ask("error c") == "110");
    client.ask("close c");

    let connect = Want::connect(&client, from, at);
    let end = connect.close(Timeout).errno(110).no_closer().bytes(9, 0);
    let events = trace.said_exactly(&[connect, end]);
    let counters = events[1].counters.expect("counted");
    assert!(counters.retransmits > 0, "{counters:?}");
}

fn process_ends(how: &str) {
    let netns = Netns::new();
    let mut p = Pair::new(&netns);
    let client = p.connect.close(Local);
    let server = p.accept.close(Remote);
    match how {
        "kill" => p.client.kill(),
        _ => p.client.exit(),
    }
    p.server.ask("eof a");
    p.server.ask("close a");
    p.ended(client, server)
}
