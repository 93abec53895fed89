//! Which process a connection belongs to when several have a hand in it.

use tcptracer_event::Reason::{Local, Remote};
use tcptracer_testing::{Actor, Cgroup, Netns, Test};

use super::ends::Pair;
use super::filters::in_cgroup;
use crate::actors::server_and_client;
use crate::trace::{Trace, Want};

pub const CASES: &[Test] = &[
    (
        "child_closes_what_it_inherited",
        child_closes_what_it_inherited,
    ),
    ("worker_accepts_on_an_inherited_listener", worker_accepts),
    ("receiver_closes_what_it_was_given", receiver_closes),
    ("thread_connects", thread_connects),
    ("socket_of_another_namespace", socket_of_another_namespace),
    ("event_carries_the_process", event_carries_the_process),
];

fn child_closes_what_it_inherited() {
    let netns = Netns::new();
    let mut p = Pair::new(&netns);
    let child = p.server.spawn("child", "a");
    p.server.ask("close a");
    p.server.tell("child", "close a");
    p.client.ask("eof c");
    p.client.ask("close c");
    let client = p.connect.close(Remote);
    let server = p.accept.close(Local).closer(child, "child");
    p.ended(client, server)
}

fn worker_accepts() {
    let netns = Netns::new();
    let mut master = Actor::inside(&netns, "master");
    let mut client = Actor::inside(&netns, "client");
    let trace = Trace::of(&netns);

    let at = master.address("listen l 127.0.0.1:0");
    let worker = master.spawn("worker", "l");
    let from = client.address(&format!("connect c {at}"));
    master.tell("worker", "accept a l");
    master.tell("worker", "close a");
    client.ask("eof c");
    client.ask("close c");

    let connect = Want::connect(&client, from, at);
    let accept = Want::accept(&master, at, from).by(worker, "worker");
    trace.said_exactly(&Want::life(&connect, &accept, [Remote, Local]));
}

fn receiver_closes() {
    let netns = Netns::new();
    let mut p = Pair::new(&netns);
    // It inherits something else, and is given the socket later.
    let receiver = p.server.spawn("receiver", "l");
    p.server.ask("give receiver a");
    p.server.ask("close a");
    p.server.tell("receiver", "close a");
    p.client.ask("eof c");
    p.client.ask("close c");
    let client = p.connect.close(Remote);
    let server = p.accept.close(Local).closer(receiver, "receiver");
    p.ended(client, server)
}

fn thread_connects() {
    let netns = Netns::new();
    let (mut server, mut client) = server_and_client(&netns);
    let trace = Trace::of(&netns);

    let at = server.address("listen l 127.0.0.1:0");
    let from = client.address(&format!("connect-as worker c {at}"));
    server.ask("accept a l");
    client.ask("close c");
    server.ask("eof a");
    server.ask("close a");

    let connect = Want::connect(&client, from, at).by(client.pid(), "worker");
    let accept = Want::accept(&server, at, from);
    let events = trace.said_exactly(&[
        connect.clone(),
        accept.clone(),
        connect.close(Local).closer(client.pid(), "client"),
        accept.close(Remote),
    ]);
    for event in events.iter().filter(|e| e.remote == at) {
        assert!(event.owner.tid != event.owner.pid, "{event:?}");
    }
}

/// The socket stays where it was made, whatever namespace its process is in.
fn socket_of_another_namespace() {
    let (home, away) = (Netns::new(), Netns::new());
    let mut p = Pair::new(&home);
    let elsewhere = Trace::of(&away);
    p.client.ask(&format!("netns {}", away.path()));
    p.client.ask("send c 3");
    p.server.ask("recv a 3");
    p.client.ask("close c");
    p.server.ask("eof a");
    p.server.ask("close a");
    let client = p.connect.close(Local).bytes(3, 0);
    let server = p.accept.close(Remote).bytes(0, 3);
    elsewhere.said_exactly(&[]);
    let events = p.trace.said_exactly(&[p.connect, p.accept, client, server]);
    assert!(events.iter().all(|e| u64::from(e.netns) == home.inode));
}

fn event_carries_the_process() {
    let netns = Netns::new();
    let cgroup = Cgroup::new();
    let mut server = Actor::inside(&netns, "server");
    let mut client = in_cgroup("client", &netns, &cgroup);
    let mntns = client.leave_mounts();
    let mut trace = Trace::of(&netns);
    let at = server.address("listen l 127.0.0.1:0");
    client.ask(&format!("connect c {at}"));
    let event = trace.wait_for("the connect", |e| e.remote == at);
    assert!(event.owner.cgroup_id == cgroup.id(), "{event:?}");
    assert!(u64::from(event.owner.mntns) == mntns, "{event:?}");
    assert!(
        event.owner.uid == rustix::process::getuid().as_raw(),
        "{event:?}"
    );
    assert!(event.owner.tid == client.pid(), "{event:?}");
}
