//! Hooks that are detached while nobody asks for what they see, and attached again.

use std::collections::HashSet;
use std::env;
use std::time::Duration;

use tcptracer::bpf::Demand::{Connections, Failures, Nothing};
use tcptracer_event::Kind::{self, Accept, Close, Connect};
use tcptracer_event::Losses;
use tcptracer_event::Reason::{Local, Remote, ResetLocal, ResetRemote};
use tcptracer_testing::{Actor, Netns, Test};

use super::load::on_one_cpu;
use crate::actors::server_and_client;
use crate::trace::{Trace, Want, same_but_for};

pub const CASES: &[Test] = &[
    ("open_across_a_pause", open_across_a_pause),
    ("connects_again_across_pauses", connects_again_across_pauses),
    (
        "refused_while_failures_are_wanted",
        refused_while_failures_are_wanted,
    ),
    ("attached_and_detached_under_load", || {
        // To attach, the kernel patches functions that other processors may be in. An emulator may have them run what was
        // there while it was patched, which ends the kernel (QEMU 7.2).
        match env::var_os("EMULATED") {
            Some(_) => on_one_cpu(attached_and_detached_under_load),
            None => attached_and_detached_under_load(),
        }
    }),
];

/// Closes of what was open all the while are right; what was closed meanwhile is never reported.
fn open_across_a_pause() {
    let netns = Netns::new();
    let (mut server, mut client) = server_and_client(&netns);
    let mut trace = Trace::on_demand_of(&netns);
    let at = server.address("listen l 127.0.0.1:0");
    let open = |server: &mut Actor, client: &mut Actor, name: &str| {
        let from = client.address(&format!("connect {name} {at}"));
        server.ask(&format!("accept {name} l"));
        [
            Want::connect(client, from, at),
            Want::accept(server, at, from),
        ]
    };
    let close = |server: &mut Actor, client: &mut Actor, name: &str| {
        client.ask(&format!("close {name}"));
        server.ask(&format!("eof {name}"));
        server.ask(&format!("close {name}"));
    };
    let kept = open(&mut server, &mut client, "kept");
    let gone = open(&mut server, &mut client, "gone");
    let half = open(&mut server, &mut client, "half");
    client.ask("send kept 11");
    server.ask("recv kept 11");
    trace.wait_for_all("all are open", 6, |e| e.kind != Close);

    trace.attach(Nothing);
    let new = open(&mut server, &mut client, "new");
    server.ask("send kept 5");
    client.ask("recv kept 5");
    close(&mut server, &mut client, "gone");
    client.ask("shutdown half");
    server.ask("eof half");
    // Sockets of others are where those were that are gone.
    client.ask("visit-itself 200");
    trace.attach(Connections);
    client.ask("visit-itself 200");
    for name in ["kept", "new", "half"] {
        close(&mut server, &mut client, name);
    }

    let plan = trace.plan();
    // Where no socket can remember it, it is found as at the start.
    let remembered = |want: &Want| match plan.memory {
        true => want.clone(),
        false => want.snapshot(),
    };
    let mut wanted = [&kept[..], &gone, &half].concat();
    wanted.extend([
        remembered(&kept[0]).close(Local).bytes(11, 5),
        remembered(&kept[1]).close(Remote).bytes(5, 11),
        new[0].snapshot().close(Local),
        new[1].snapshot().close(Remote),
        // Nothing saw who sent the FIN.
        remembered(&half[0]).close(Local).no_closer(),
        remembered(&half[1]).close(Remote),
    ]);
    let visits = 200;
    let mut said = trace.stop_after(wanted.len() + 4 * visits);
    assert_eq!(
        said.events.len(),
        wanted.len() + 4 * visits,
        "{:?}",
        said.losses
    );
    said.events
        .retain(|e| [e.local.port(), e.remote.port()].contains(&at.port()));
    crate::trace::same(said.events.iter().map(Want::from), wanted);
    assert_eq!(said.losses.untracked, 0);
    // Each that was seen to open and to close did so by one id.
    let ids = |kind| {
        let events = said.events.iter().filter(move |e| e.kind == kind);
        events.map(|e| e.id).collect::<HashSet<_>>()
    };
    let both = ids(Close)
        .intersection(&ids(Connect).union(&ids(Accept)).copied().collect())
        .count();
    assert_eq!(both, if plan.memory { 4 } else { 0 });
}

/// A socket that is connected again and again, also while nothing sees it: no two connections have the same id.
fn connects_again_across_pauses() {
    let netns = Netns::new();
    let (mut server, mut client) = server_and_client(&netns);
    let mut trace = Trace::on_demand_of(&netns);
    let at = server.address("listen l 127.0.0.1:0");
    let connect = |server: &mut Actor, client: &mut Actor| {
        let from = client.address(&format!("connect c {at}"));
        server.ask("accept a l");
        [
            Want::connect(client, from, at),
            Want::accept(server, at, from),
        ]
    };
    let reset = |server: &mut Actor, client: &mut Actor| {
        client.ask("unspec c");
        assert_eq!(server.ask("error a"), "104");
        server.ask("close a");
    };
    let closed = |connect: &Want, accept: &Want| {
        [
            connect.close(ResetLocal),
            accept.close(ResetRemote).errno(104).no_closer(),
        ]
    };
    let mut wanted = Vec::new();
    for _ in 0..2 {
        // One that is seen, one that is not, and one that is open when the pause ends.
        let [c, a] = connect(&mut server, &mut client);
        reset(&mut server, &mut client);
        wanted.extend([c.clone(), a.clone()]);
        wanted.extend(closed(&c, &a));
        trace.wait_for_all("the closes", wanted.len(), |_| true);
        trace.attach(Nothing);
        connect(&mut server, &mut client);
        reset(&mut server, &mut client);
        let [c, a] = connect(&mut server, &mut client);
        trace.attach(Connections);
        reset(&mut server, &mut client);
        wanted.extend(closed(&c.snapshot(), &a.snapshot()));
    }
    let clients = |e: &&tcptracer_event::Event| e.kind == Close && e.owner.pid == client.pid();
    let closes: Vec<_> = trace.said_exactly(&wanted);
    let ids: Vec<_> = closes.iter().filter(clients).map(|e| e.id).collect();
    let different: HashSet<_> = ids.iter().collect();
    assert_eq!((ids.len(), different.len()), (4, 4), "{ids:?}");
}

/// Connects that fail before a SYN are watched as long as somebody wants them.
fn refused_while_failures_are_wanted() {
    let netns = Netns::new();
    let (_server, mut client) = server_and_client(&netns);
    let mut trace = Trace::on_demand_of(&netns);
    let nowhere = "192.0.2.1:9".parse().expect("an address");
    let mut refused = || client.ask_error(&format!("connect c {nowhere}"));
    assert_eq!(refused(), 101);
    trace.attach(Failures);
    assert_eq!(refused(), 101);
    trace.wait_for("the failure", |e| e.kind == Kind::Failed);
    trace.attach(Connections);
    assert_eq!(refused(), 101);
    trace.attach(Nothing);
    assert_eq!(refused(), 101);
    trace.attach(Failures);
    assert_eq!(refused(), 101);
    trace.said_exactly(&[(); 2].map(|()| Want::without_a_route(&client, nowhere)));
}

/// While others connect and close all the time.
fn attached_and_detached_under_load() {
    const PAUSES: usize = 10;
    let netns = Netns::new();
    let (mut server, mut client) = server_and_client(&netns);
    let mut busy = Actor::inside(&netns, "busy");
    let mut trace = Trace::on_demand_of(&netns);
    let at = server.address("listen l 127.0.0.1:0");
    let mut kept = Vec::new();
    let (mut attached, mut detached) = (Vec::new(), Vec::new());
    busy.ask("start-load");
    let of_kept = |e: &tcptracer_event::Event| [e.local, e.remote].contains(&at);
    for n in 0..PAUSES {
        let from = client.address(&format!("connect c{n} {at}"));
        server.ask(&format!("accept a{n} l"));
        kept.push(Want::connect(&client, from, at));
        kept.push(Want::accept(&server, at, from));
        trace.flush();
        detached.push(trace.attach(Nothing));
        attached.push(trace.attach(Connections));
    }
    busy.ask("stop-load");
    for n in 0..PAUSES {
        client.ask(&format!("close c{n}"));
        server.ask(&format!("eof a{n}"));
        server.ask(&format!("close a{n}"));
    }
    let longest = |times: Vec<Duration>| times.into_iter().max().unwrap_or_default();
    eprintln!(
        "attached within {:?}, detached within {:?}",
        longest(attached),
        longest(detached)
    );

    let plan = trace.plan();
    trace.wait_for_all("the closes", 2 * PAUSES, |e| e.kind == Close && of_kept(e));
    let said = trace.stop_after(0);
    let closes = kept.iter().map(|want| {
        let reason = if want.clone() == want.source(tcptracer_event::Source::Connect) {
            Local
        } else {
            Remote
        };
        match plan.memory {
            true => want.close(reason),
            false => want.snapshot().close(reason),
        }
    });
    let wanted: Vec<_> = kept.iter().cloned().chain(closes).collect();
    // If a task was preempted in it, the kernel may have skipped the program that sees a connect or an accept. Then one event is
    // missing, and that of the close is another one.
    let affected = match plan.is_preempted() {
        true => 3 * said.losses.skipped_runs,
        false => 0,
    };
    let of_kept = said.events.iter().filter(|e| of_kept(e));
    same_but_for(affected, of_kept.map(Want::from), wanted);
    // Connections that were closing when the hooks came ended without having been followed.
    let Losses {
        untracked,
        skipped_runs,
        ..
    } = said.losses;
    let expected = Losses {
        untracked,
        skipped_runs,
        ..Losses::default()
    };
    assert_eq!(said.losses, expected);
}
