//! Many connections: what is lost is counted, and nothing is counted that is not.

use std::collections::HashSet;
use std::env;
use std::fs;
use std::thread::available_parallelism;
use std::time::Duration;

use rustix::mount::{MountFlags, mount};
use rustix::process::setpriority_process;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tcptracer::bpf::Config;
use tcptracer_event::Kind::{Accept, Close, Connect};
use tcptracer_event::Losses;
use tcptracer_testing::{Actor, Netns, Test, aside, own_mounts};

use super::accepts::one_connection;
use crate::actors::server_and_client;
use crate::trace::{Said, Trace, of};

pub const CASES: &[Test] = &[
    ("refused_by_the_thousand", refused_by_the_thousand),
    ("storm", || storm(false)),
    ("storm_with_packets_steered_to_the_other_cpu", || {
        storm(true)
    }),
    ("ring_overflows", || on_one_cpu(ring_overflows)),
    ("state_map_is_full", state_map_is_full),
    ("a_full_table_needs_no_event", a_full_table_needs_no_event),
];

fn refused_by_the_thousand() {
    let netns = Netns::new();
    let (mut server, mut client) = server_and_client(&netns);
    let trace = Trace::of(&netns);
    let at = server.address("listen l 127.0.0.1:0");
    let refused = server.address("listen m 127.0.0.1:0");
    server.ask("close m");
    client.ask(&format!("refused 12000 {refused}"));
    client.ask(&format!(
        "refused 2000 [::ffff:127.0.0.1]:{}",
        refused.port()
    ));
    let wanted = one_connection(&mut server, &mut client, at, |s| s.ask("accept a l"));
    trace.said_exactly(&wanted);
}

/// Has each packet on loopback handled by all CPUs in turn of their flow's hash, so that softirq
/// finds other processes being traced.
fn steer_packets(netns: &Netns) {
    let cpus = available_parallelism().expect("a number of CPUs").get();
    let mask = format!("{:x}", (1u32 << cpus.min(31)) - 1);
    netns.enter(|| {
        // sysfs shows the namespace that it is mounted in.
        own_mounts(|| {
            mount("sysfs", "/sys", "sysfs", MountFlags::empty(), None).expect("a sysfs");
            fs::write("/sys/class/net/lo/queues/rx-0/rps_cpus", mask).expect("packets are steered");
        });
    });
}

fn storm(steered: bool) {
    const PAIRS: usize = 4;
    // Emulated processors take too long for as many.
    let each = match env::var("STORM_CONNECTIONS") {
        Ok(connections) => connections.parse::<usize>().expect("a number") / PAIRS,
        Err(_) => 10_000,
    };
    let netns = Netns::new();
    if steered {
        steer_packets(&netns);
    }
    let mut actors = Vec::new();
    for i in 0..PAIRS {
        let mut server = Actor::inside(&netns, &format!("server{i}"));
        let client = Actor::inside(&netns, &format!("client{i}"));
        let at = server.address("listen l 127.0.0.1:0");
        actors.push((server, client, at));
    }
    let trace = Trace::of(&netns);
    let is_preempted = trace.plan().is_preempted();
    for (server, client, at) in &mut actors {
        server.begin(&format!("serve {each} l"));
        client.begin(&format!("clients {each} {at}"));
    }
    let made = PAIRS * each;
    // Where some may be missing, nothing is to be gained by waiting for them.
    let said = match is_preempted {
        true => trace.stop_after_silence(4 * made, Duration::from_secs(20)),
        false => trace.stop_after(4 * made),
    };
    for (server, client, _) in &mut actors {
        server.answer();
        client.answer();
    }

    let skipped = said.losses.skipped_runs;
    let (connects, accepts, closes) = (said.count(Connect), said.count(Accept), said.count(Close));
    eprintln!(
        "storm (steered: {steered}): of {made} connections {connects} connects, {accepts} accepts, \
         {closes} closes of {}; {skipped} program runs skipped, {:?}",
        2 * made,
        said.losses
    );
    // That none comes twice was checked when the trace was stopped. What is missing has to be
    // accounted for by runs that the kernel skipped, and by nothing else.
    let missing = ((4 * made) - (connects + accepts + closes)) as u64;
    assert!(missing <= skipped, "{missing} missing, {skipped} skipped");
    assert!(said.losses.untracked <= missing, "{:?}", said.losses);
    assert!(
        said.losses
            == Losses {
                skipped_runs: skipped,
                untracked: said.losses.untracked,
                ..Losses::default()
            },
        "{:?}",
        said.losses
    );
    // Only where tasks are preempted in programs can all of a connection's runs be skipped.
    assert!(connects == made || is_preempted, "{connects} connects");
    for (server, client, at) in &actors {
        for event in said.events.iter().filter(|e| e.remote == *at) {
            assert!(event.owner.pid == client.pid(), "{event:?}");
        }
        for event in said.events.iter().filter(|e| e.local == *at) {
            assert!(event.owner.pid == server.pid(), "{event:?}");
        }
    }
}

/// Runs `f` on a thread whose threads and processes share one CPU.
pub fn on_one_cpu(f: impl FnOnce() + Send) {
    aside(|| {
        let allowed = sched_getaffinity(None).expect("some CPUs");
        let first = (0..CpuSet::MAX_CPU).find(|&cpu| allowed.is_set(cpu));
        let mut only = CpuSet::new();
        only.set(first.expect("a CPU"));
        sched_setaffinity(None, &only).expect("it may run there");
        f();
    });
}

/// The reader gets what the actors, one of which can always run, leave of the only CPU.
fn ring_overflows() {
    const MADE: usize = 3000;
    let netns = Netns::new();
    let (mut server, mut client) = server_and_client(&netns);
    setpriority_process(None, 19).expect("it can be nice");
    let mut trace = Trace::with(Config {
        filter: of(&netns),
        ring_bytes: 4096,
        ..Config::default()
    });
    let at = server.address("listen l 127.0.0.1:0");
    server.begin(&format!("serve {MADE} l"));
    client.ask(&format!("clients {MADE} {at}"));
    server.answer();
    // The last ones may be waiting for the acknowledgement of their FINs. In TIME_WAIT they have reached CLOSE.
    netns.wait_until_closed();
    let events = all_or_lost(trace.flush(), 4 * MADE);
    let said = trace.stop_after(0);
    assert!(all_or_lost(&said, 4 * MADE) == events);
}

/// So many events were made, and each came or was lost; returns how many came.
fn all_or_lost(said: &Said, made: usize) -> usize {
    let Losses {
        ring_full,
        queue_full,
        skipped_runs,
        ..
    } = said.losses;
    assert!(ring_full > 0, "{:?}", said.losses);
    assert!(
        said.events.len() as u64 + ring_full + queue_full == made as u64,
        "{} came, {:?}",
        said.events.len(),
        said.losses
    );
    assert!(
        said.losses
            == Losses {
                ring_full,
                queue_full,
                skipped_runs,
                ..Losses::default()
            },
        "{:?}",
        said.losses
    );
    said.events.len()
}

/// It is reported although nothing else is.
fn a_full_table_needs_no_event() {
    const ROOM: usize = 8;
    let netns = Netns::new();
    let (mut server, mut client) = server_and_client(&netns);
    let mut trace = Trace::with(Config {
        filter: of(&netns),
        max_connections: ROOM as u32,
        ..Config::default()
    });
    let at = server.address("listen l 127.0.0.1:0");
    for i in 0..ROOM {
        client.ask(&format!("connect c{i} {at}"));
    }
    // All that is to be said of them has been.
    let said = trace.flush();
    assert_eq!(said.count(Connect) + said.losses.map_full as usize, ROOM);
    let before = said.losses.map_full;
    client.ask(&format!("connect d {at}"));
    trace.wait_for_map_full(before + 1);
    assert_eq!(trace.flush().count(Accept), 0);
}

fn state_map_is_full() {
    let netns = Netns::new();
    let (mut server, mut client) = server_and_client(&netns);
    let mut trace = Trace::with(Config {
        filter: of(&netns),
        max_connections: 8,
        ..Config::default()
    });
    let at = server.address("listen l 127.0.0.1:0");
    for i in 0..32 {
        client.ask(&format!("connect c{i} {at}"));
        server.ask(&format!("accept a{i} l"));
    }
    for i in 0..32 {
        client.ask(&format!("close c{i}"));
        server.ask(&format!("eof a{i}"));
        server.ask(&format!("close a{i}"));
    }
    // There is room again.
    let from = client.address(&format!("connect c {at}"));
    server.ask("accept a l");
    client.ask("close c");
    server.ask("eof a");
    server.ask("close a");
    for local in [from, at] {
        trace.wait_for("the last close", |e| {
            e.kind == Close && e.local == local && (e.remote == from || e.remote == at)
        });
    }
    // An earlier connection may be waiting for the acknowledgement of its last FIN.
    netns.wait_until_closed();
    let said = trace.stop_after(0);
    // Of the 64 ends, 8 were followed.
    assert!(said.losses.map_full == 56, "{:?}", said.losses);
    assert!(said.losses.untracked == 56, "{:?}", said.losses);
    assert!(said.losses.events() == 0, "{:?}", said.losses);
    let opened: HashSet<_> = said
        .events
        .iter()
        .filter(|e| e.kind != Close)
        .map(|e| e.id)
        .collect();
    let closed: HashSet<_> = said
        .events
        .iter()
        .filter(|e| e.kind == Close)
        .map(|e| e.id)
        .collect();
    assert!(opened == closed, "opened {opened:?}\nclosed {closed:?}");
    assert!(opened.len() == 10, "{opened:?}");
}
