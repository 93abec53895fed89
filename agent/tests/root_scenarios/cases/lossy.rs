//! Links that delay and lose packets. They need netem, which not every kernel has: to be asked for.

use std::fs;
use std::process::Command;
use std::time::Duration;

use tcptracer_event::Reason::{Local, Remote, Timeout};
use tcptracer_testing::{Actor, Netns, Test, wait_until};

use crate::links::linked;
use crate::trace::{Trace, Want};

pub const CASES: &[Test] = &[
    ("netem_delay_and_loss", delay_and_loss),
    ("netem_link_goes_dead", link_goes_dead),
    ("netem_syn_is_lost", syn_is_lost),
];

const DELAY: Duration = Duration::from_millis(30);
/// How long the kernel waits for the answer to the first SYN.
const FIRST_RTO: Duration = Duration::from_secs(1);

/// Sets what happens to all that leaves by the only link.
fn netem(netns: &Netns, link: &str, loss: &str) {
    let delay = format!("{}ms", DELAY.as_millis());
    netns.enter(|| {
        let status = Command::new("tc")
            .args(["qdisc", "replace", "dev", link, "root", "netem"])
            .args(["delay", &delay, "loss", loss])
            .status()
            .expect("tc runs");
        assert!(status.success(), "tc qdisc replace failed");
    })
}

/// How many segments this namespace has sent again, by the kernel's own count.
///
/// procfs wants all of its counters to be there, and 7.3 no longer counts UDP-Lite.
fn retransmitted(netns: &Netns) -> u32 {
    let snmp = netns.enter(|| fs::read_to_string("/proc/thread-self/net/snmp"));
    let snmp = snmp.expect("the counters can be read");
    let mut tcp = snmp.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = tcp.next().zip(tcp.next()).expect("Tcp in snmp");
    let mut counters = names.split(' ').zip(values.split(' '));
    let sent_again = counters.find(|(name, _)| *name == "RetransSegs");
    let (_, count) = sent_again.expect("RetransSegs in snmp");
    count.parse().expect("a number")
}

struct Link {
    near: Netns,
    far: Netns,
    server: Actor,
    client: Actor,
}

impl Link {
    /// A client in `near` and a server in `far`, with a delay both ways.
    fn new() -> Self {
        let (near, far) = linked();
        netem(&near, "eth0", "0%");
        netem(&far, "eth1", "0%");
        Self {
            server: Actor::inside(&far, "server"),
            client: Actor::inside(&near, "client"),
            near,
            far,
        }
    }
}

fn delay_and_loss() {
    const ROUNDS: u64 = 30;
    let mut l = Link::new();
    let (near, far) = (Trace::of(&l.near), Trace::of(&l.far));
    let at = l.server.address("listen l 192.0.2.2:0");
    let from = l.client.address(&format!("connect c {at}"));
    l.server.ask("accept a l");

    netem(&l.near, "eth0", "10%");
    netem(&l.far, "eth1", "10%");
    for _ in 0..ROUNDS {
        l.client.ask("send c 1");
        l.server.ask("recv a 1");
        l.server.ask("send a 2");
        l.client.ask("recv c 2");
    }
    // Not left to chance: each side loses all for a while.
    for (netns, link, sender, socket) in [
        (&l.near, "eth0", &mut l.client, "c"),
        (&l.far, "eth1", &mut l.server, "a"),
    ] {
        let before = retransmitted(netns);
        netem(netns, link, "100%");
        sender.ask(&format!("send {socket} 4"));
        wait_until("retransmissions", || retransmitted(netns) >= before + 2);
        netem(netns, link, "0%");
    }
    l.server.ask("recv a 4");
    l.client.ask("recv c 4");
    l.client.ask("close c");
    l.server.ask("eof a");
    l.server.ask("close a");

    let connect = Want::connect(&l.client, from, at);
    let accept = Want::accept(&l.server, at, from);
    let (sent, received) = (ROUNDS + 4, 2 * ROUNDS + 4);
    let near = near.said_exactly(&[connect.clone(), connect.close(Local).bytes(sent, received)]);
    let far = far.said_exactly(&[accept.clone(), accept.close(Remote).bytes(received, sent)]);
    for (events, netns) in [(&near, &l.near), (&far, &l.far)] {
        let counters = events[1].counters.expect("not counted");
        let retransmitted = retransmitted(netns);
        assert!(
            counters.retransmits == retransmitted && retransmitted >= 2,
            "of {retransmitted}: {counters:?}"
        );
        let srtt = Duration::from_micros(counters.srtt_us.into());
        assert!(
            (2 * DELAY..Duration::from_secs(2)).contains(&srtt),
            "{counters:?}"
        );
    }
    let handshake = near[1].handshake().map(Duration::from_nanos);
    assert!(handshake >= Some(2 * DELAY), "{handshake:?}");
}

fn link_goes_dead() {
    let mut l = Link::new();
    let trace = Trace::of(&l.near);
    let at = l.server.address("listen l 192.0.2.2:0");
    let from = l.client.address(&format!("connect c {at}"));
    l.server.ask("accept a l");
    l.client.ask("user-timeout c 2000");
    netem(&l.far, "eth1", "100%");
    l.client.ask("send c 5");
    assert!(l.client.ask("error c") == "110");
    l.client.ask("close c");

    let connect = Want::connect(&l.client, from, at);
    let end = connect.close(Timeout).errno(110).no_closer().bytes(5, 0);
    let events = trace.said_exactly(&[connect, end]);
    let counters = events[1].counters.expect("not counted");
    assert!(
        counters.retransmits == retransmitted(&l.near) && counters.retransmits > 0,
        "{counters:?}"
    );
}

/// The first SYN is lost; what follows is an ordinary connection that took longer.
fn syn_is_lost() {
    let mut l = Link::new();
    // Who is not known on the link yet is not even sent a SYN.
    let closed = l.server.address("listen l 192.0.2.2:0");
    l.server.ask("close l");
    l.client.ask(&format!("refused 1 {closed}"));
    let at = l.server.address("listen l 192.0.2.2:0");
    let trace = Trace::of(&l.near);
    netem(&l.near, "eth0", "100%");
    let from = l.client.address(&format!("connect c {at} nonblocking"));
    wait_until("the second SYN", || retransmitted(&l.near) > 0);
    netem(&l.near, "eth0", "0%");
    l.client.ask("connected c");
    l.server.ask("accept a l");
    l.client.ask("close c");
    l.server.ask("eof a");
    l.server.ask("close a");

    let connect = Want::connect(&l.client, from, at);
    let events = trace.said_exactly(&[connect.clone(), connect.close(Local)]);
    let counters = events[1].counters.expect("not counted");
    assert!(
        counters.retransmits == retransmitted(&l.near),
        "{counters:?}"
    );
    let handshake = events[1].handshake().map(Duration::from_nanos);
    assert!(handshake >= Some(FIRST_RTO), "{handshake:?}");
}
