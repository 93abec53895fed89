//! Links that delay and lose packets. They need netem, which not every kernel has: to be asked for.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tcptracer::event::Reason::{Local, Remote, Timeout};

use super::Case;
use crate::actor::Actor;
use crate::trace::{Trace, Want};
use crate::world::{NetNs, linked, wait_for};

pub const CASES: &[Case] = &[
    ("netem_delay_and_loss", delay_and_loss),
    ("netem_link_goes_dead", link_goes_dead),
    ("netem_syn_is_lost", syn_is_lost),
];

const DELAY: Duration = Duration::from_millis(30);
/// How long the kernel waits for the answer to the first SYN.
const FIRST_RTO: Duration = Duration::from_secs(1);

/// Sets what happens to all that leaves by the only link.
fn netem(netns: &NetNs, link: &str, loss: &str) -> Result<()> {
    let delay = format!("{}ms", DELAY.as_millis());
    netns.inside(|| {
        let status = Command::new("tc")
            .args(["qdisc", "replace", "dev", link, "root", "netem"])
            .args(["delay", &delay, "loss", loss])
            .status()
            .context("cannot run tc")?;
        ensure!(status.success(), "tc qdisc replace failed");
        Ok(())
    })
}

/// How many segments this namespace has sent again, by the kernel's own count.
fn retransmitted(netns: &NetNs) -> Result<u32> {
    let snmp = netns.inside(|| Ok(fs::read_to_string("/proc/thread-self/net/snmp")?))?;
    let mut tcp = snmp.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = tcp.next().zip(tcp.next()).context("no Tcp in snmp")?;
    let (_, value) = names
        .split(' ')
        .zip(values.split(' '))
        .find(|(name, _)| *name == "RetransSegs")
        .context("no RetransSegs in snmp")?;
    Ok(value.parse()?)
}

struct Link {
    near: NetNs,
    far: NetNs,
    server: Actor,
    client: Actor,
}

impl Link {
    /// A client in `near` and a server in `far`, with a delay both ways.
    fn new() -> Result<Self> {
        let (near, far) = linked()?;
        netem(&near, "near", "0%")?;
        netem(&far, "far", "0%")?;
        Ok(Self {
            server: Actor::new("server", &far)?,
            client: Actor::new("client", &near)?,
            near,
            far,
        })
    }
}

fn delay_and_loss() -> Result<()> {
    const ROUNDS: u64 = 30;
    let mut l = Link::new()?;
    let (near, far) = (Trace::of(&l.near)?, Trace::of(&l.far)?);
    let at = l.server.address("listen l 192.0.2.2:0")?;
    let from = l.client.address(&format!("connect c {at}"))?;
    l.server.ask("accept a l")?;

    netem(&l.near, "near", "10%")?;
    netem(&l.far, "far", "10%")?;
    for _ in 0..ROUNDS {
        l.client.ask("send c 1")?;
        l.server.ask("recv a 1")?;
        l.server.ask("send a 2")?;
        l.client.ask("recv c 2")?;
    }
    // Not left to chance: each side loses all for a while.
    for (netns, link, sender, socket) in [
        (&l.near, "near", &mut l.client, "c"),
        (&l.far, "far", &mut l.server, "a"),
    ] {
        let before = retransmitted(netns)?;
        netem(netns, link, "100%")?;
        sender.ask(&format!("send {socket} 4"))?;
        wait_for("retransmissions", || {
            Ok((retransmitted(netns)? >= before + 2).then_some(()))
        })?;
        netem(netns, link, "0%")?;
    }
    l.server.ask("recv a 4")?;
    l.client.ask("recv c 4")?;
    l.client.ask("close c")?;
    l.server.ask("eof a")?;
    l.server.ask("close a")?;

    let connect = Want::connect(&l.client, from, at);
    let accept = Want::accept(&l.server, at, from);
    let (sent, received) = (ROUNDS + 4, 2 * ROUNDS + 4);
    let near = near.said_exactly(&[connect.clone(), connect.close(Local).bytes(sent, received)])?;
    let far = far.said_exactly(&[accept.clone(), accept.close(Remote).bytes(received, sent)])?;
    for (events, netns) in [(&near, &l.near), (&far, &l.far)] {
        let counters = events[1].counters.context("not counted")?;
        let retransmitted = retransmitted(netns)?;
        ensure!(
            counters.retransmits == retransmitted && retransmitted >= 2,
            "of {retransmitted}: {counters:?}"
        );
        let srtt = Duration::from_micros(counters.srtt_us.into());
        ensure!(
            (2 * DELAY..Duration::from_secs(2)).contains(&srtt),
            "{counters:?}"
        );
    }
    let handshake = near[1].handshake().map(Duration::from_nanos);
    ensure!(handshake >= Some(2 * DELAY), "{handshake:?}");
    Ok(())
}

fn link_goes_dead() -> Result<()> {
    let mut l = Link::new()?;
    let trace = Trace::of(&l.near)?;
    let at = l.server.address("listen l 192.0.2.2:0")?;
    let from = l.client.address(&format!("connect c {at}"))?;
    l.server.ask("accept a l")?;
    l.client.ask("user-timeout c 2000")?;
    netem(&l.far, "far", "100%")?;
    l.client.ask("send c 5")?;
    ensure!(l.client.ask("error c")? == "110");
    l.client.ask("close c")?;

    let connect = Want::connect(&l.client, from, at);
    let end = connect.close(Timeout).errno(110).no_closer().bytes(5, 0);
    let events = trace.said_exactly(&[connect, end])?;
    let counters = events[1].counters.context("not counted")?;
    ensure!(
        counters.retransmits == retransmitted(&l.near)? && counters.retransmits > 0,
        "{counters:?}"
    );
    Ok(())
}

/// The first SYN is lost; what follows is an ordinary connection that took longer.
fn syn_is_lost() -> Result<()> {
    let mut l = Link::new()?;
    // Who is not known on the link yet is not even sent a SYN.
    let closed = l.server.address("listen l 192.0.2.2:0")?;
    l.server.ask("close l")?;
    l.client.ask(&format!("refused 1 {closed}"))?;
    let at = l.server.address("listen l 192.0.2.2:0")?;
    let trace = Trace::of(&l.near)?;
    netem(&l.near, "near", "100%")?;
    let from = l.client.address(&format!("connect c {at} nonblocking"))?;
    wait_for("the second SYN", || {
        Ok((retransmitted(&l.near)? > 0).then_some(()))
    })?;
    netem(&l.near, "near", "0%")?;
    l.client.ask("connected c")?;
    l.server.ask("accept a l")?;
    l.client.ask("close c")?;
    l.server.ask("eof a")?;
    l.server.ask("close a")?;

    let connect = Want::connect(&l.client, from, at);
    let events = trace.said_exactly(&[connect.clone(), connect.close(Local)])?;
    let counters = events[1].counters.context("not counted")?;
    ensure!(
        counters.retransmits == retransmitted(&l.near)?,
        "{counters:?}"
    );
    let handshake = events[1].handshake().map(Duration::from_nanos);
    ensure!(handshake >= Some(FIRST_RTO), "{handshake:?}");
    Ok(())
}
