//! Which processes' events come, and that nobody else's do.

use std::num::NonZeroU32;

use libbpf_rs::MapType;
use tcptracer::bpf::{Config, Filter};
use tcptracer_event::Reason::{Local, Remote};
use tcptracer_testing::{Actor, Cgroup, Netns, Pin, Test};

use super::ends::Pair;
use crate::trace::{Trace, Want, of};

pub const CASES: &[Test] = &[
    (
        "pid_of_the_owner_or_the_closer",
        pid_of_the_owner_or_the_closer,
    ),
    ("cgroup_map", cgroup_map),
    ("cgroup_map_of_any_make", cgroup_map_of_any_make),
    ("cgroup_map_holds_a_slice", cgroup_map_holds_a_slice),
    ("map_edited_while_tracing", map_edited_while_tracing),
    ("nothing_is_kept_of_others", nothing_is_kept_of_others),
    ("refusals_of_others_are_left", refusals_of_others_are_left),
    ("others_take_no_room", others_take_no_room),
    ("undecided_cgroups_pass", undecided_cgroups_pass),
    ("far_below_a_selected_cgroup", far_below_a_selected_cgroup),
    (
        "who_accepts_is_asked_and_not_who_listens",
        who_accepts_is_asked_and_not_who_listens,
    ),
    ("mntns_map_and_processes_that_are_killed", mntns_map),
    ("both_maps", || maps(false)),
    ("either_map", || maps(true)),
];

fn trace(netns: &Netns, change: impl FnOnce(&mut Filter)) -> Trace {
    let mut filter = of(netns);
    change(&mut filter);
    Trace::with(Config {
        filter,
        ..Config::default()
    })
}

pub fn in_cgroup(comm: &str, netns: &Netns, cgroup: &Cgroup) -> Actor {
    let actor = Actor::inside(netns, comm);
    actor.join(cgroup);
    actor
}

fn pid_of_the_owner_or_the_closer() {
    let netns = Netns::new();
    let mut p = Pair::new(&netns);
    let child = p.server.spawn("child", "a");
    let of_pid = |pid: u32| trace(&netns, |f| f.pid = NonZeroU32::new(pid));
    let (client, owner, closer, nobody) = (
        of_pid(p.client.pid()),
        of_pid(p.server.pid()),
        of_pid(child),
        of_pid(std::process::id()),
    );
    p.server.ask("close a");
    p.server.tell("child", "close a");
    p.client.ask("eof c");
    p.client.ask("close c");
    // These started when the connection was open.
    let end = p.accept.close(Local).closer(child, "child");
    client.said_exactly(&[p.connect.snapshot().close(Remote)]);
    owner.said_exactly(&[end.snapshot()]);
    closer.said_exactly(&[end.snapshot()]);
    nobody.said_exactly(&[]);
    let client = p.connect.close(Remote);
    p.ended(client, end)
}

/// A client in a cgroup below another one, and a server outside of both.
fn cgroup_map() {
    let netns = Netns::new();
    let parent = Cgroup::new();
    let (inner, sibling) = (parent.child("inner"), parent.child("sibling"));
    let mut server = Actor::inside(&netns, "server");
    let mut client = in_cgroup("client", &netns, &inner);
    let maps = [
        Pin::holding(&[inner.id()]),
        Pin::holding(&[parent.id()]),
        Pin::holding(&[sibling.id()]),
        Pin::holding(&[]),
    ];
    let [itself, above, beside, empty] = maps
        .each_ref()
        .map(|map| trace(&netns, |f| f.cgroup_map = Some(map.path().into())));
    let at = server.address("listen l 127.0.0.1:0");
    let from = client.address(&format!("connect c {at}"));
    server.ask("accept a l");
    // The client's end comes in softirq, where no process is its own.
    server.ask("close a");
    client.ask("eof c");
    client.ask("close c");
    let connect = Want::connect(&client, from, at);
    let wanted = [connect.clone(), connect.close(Remote)];
    itself.said_exactly(&wanted);
    above.said_exactly(&wanted);
    beside.said_exactly(&[]);
    empty.said_exactly(&[]);
}

fn cgroup_map_of_any_make() {
    let netns = Netns::new();
    let cgroup = Cgroup::new();
    let key = cgroup.id();
    for (kind, name, value_size, entries) in [
        (MapType::Hash, "cgroupset", 8, 128),
        (MapType::Hash, "mnt_ns_set", 4, 10_240),
        (MapType::LruHash, "", 4, 1024),
        (MapType::Hash, "conns", 24, 1),
    ] {
        let map = Pin::called(name, kind, 8, value_size, entries);
        map.insert(key);
        let mut client = in_cgroup("client", &netns, &cgroup);
        let tracer = trace(&netns, |f| f.cgroup_map = Some(map.path().into()));
        let at = client.address("connect-self c");
        client.ask("close c");
        let connect = Want::connect(&client, at, at);
        tracer.said_exactly(&[connect.clone(), connect.close(Local)]);
    }
}

/// As systemd and a container runtime nest them; only leaves have processes.
fn cgroup_map_holds_a_slice() {
    let netns = Netns::new();
    let kubepods = Cgroup::new();
    let burstable = kubepods.child("kubepods-burstable.slice");
    let pod = burstable.child("kubepods-burstable-pod0cafe000_1dea_4add_9bad_00000000beef.slice");
    let container = pod.child(format!("cri-containerd-{}.scope", "0".repeat(64)));
    let other = burstable.child("kubepods-burstable-podf00d.slice");
    let map = Pin::holding(&[pod.id()]);
    let mut inside = in_cgroup("inside", &netns, &container);
    let mut outside = in_cgroup("outside", &netns, &other);
    let tracer = trace(&netns, |f| f.cgroup_map = Some(map.path().into()));

    outside.ask("connect-self c");
    outside.ask("close c");
    let at = inside.address("connect-self c");
    inside.ask("close c");
    let connect = Want::connect(&inside, at, at);
    let events = tracer.said_exactly(&[connect.clone(), connect.close(Local)]);
    let leaf = container.id();
    assert!(
        events.iter().all(|e| e.owner.cgroup_id == leaf),
        "{events:?}"
    );
}

fn map_edited_while_tracing() {
    let netns = Netns::new();
    let cgroup = Cgroup::new();
    let map = Pin::holding(&[]);
    let mut actor = in_cgroup("actor", &netns, &cgroup);
    let tracer = trace(&netns, |f| f.cgroup_map = Some(map.path().into()));

    let before = actor.address("connect-self before");
    map.insert(cgroup.id());
    // It was opened unseen, and its state was kept.
    actor.ask("close before");
    let while_in = actor.address("connect-self while");
    actor.ask("close while");
    let across = actor.address("connect-self across");
    map.delete(cgroup.id());
    actor.ask("close across");
    actor.ask("connect-self after");
    actor.ask("close after");

    let want = |at| Want::connect(&actor, at, at);
    tracer.said_exactly(&[
        want(before).close(Local),
        want(while_in),
        want(while_in).close(Local),
        want(across),
    ]);
}

/// As the agent has it, whose maps nobody else edits. Nothing is kept of who is not selected; what is open once somebody is, is
/// looked for.
fn nothing_is_kept_of_others() {
    let netns = Netns::new();
    let cgroup = Cgroup::new();
    let map = Pin::holding(&[]);
    let mut actor = in_cgroup("actor", &netns, &cgroup);
    let tracer = trace(&netns, |f| {
        f.cgroup_map = Some(map.path().into());
        f.owns_maps = true;
    });

    actor.ask("connect-self gone");
    actor.ask("close gone");
    let before = actor.address("connect-self before");
    assert_eq!(tracer.connections(), []);
    tracer.grow();
    map.insert(cgroup.id());
    // The verdict is kept until the programs hear of the change.
    let kept = actor.address("connect-self kept");
    assert_eq!(tracer.connections(), []);
    tracer.changed();
    tracer.seed();
    actor.ask("close before");
    actor.ask("close kept");
    let while_in = actor.address("connect-self while");
    map.delete(cgroup.id());
    tracer.changed();
    // What is followed is so until its end.
    actor.ask("close while");
    actor.ask("connect-self after");
    actor.ask("close after");

    let want = |at| Want::connect(&actor, at, at);
    let found = |at| want(at).snapshot();
    tracer.said_exactly(&[
        found(before).close(Local),
        found(kept).close(Local),
        want(while_in),
        want(while_in).close(Local),
    ]);
}

/// Connects that fail before a SYN is sent, and after that.
fn refusals_of_others_are_left() {
    let netns = Netns::new();
    let cgroup = Cgroup::new();
    let map = Pin::holding(&[]);
    let mut client = in_cgroup("client", &netns, &cgroup);
    let mut filter = of(&netns);
    filter.cgroup_map = Some(map.path().into());
    filter.owns_maps = true;
    let tracer = Trace::with(Config {
        filter,
        failed: true,
        ..Config::default()
    });
    let nowhere = "203.0.113.7:80".parse().expect("an address");
    let refused = client.address("listen l 127.0.0.1:0");
    client.ask("close l");

    assert!(client.ask_error(&format!("connect c {nowhere}")) == 101);
    client.ask(&format!("refused 3 {refused}"));
    tracer.grow();
    map.insert(cgroup.id());
    tracer.changed();
    assert!(client.ask_error(&format!("connect c {nowhere}")) == 101);
    client.ask("close c");
    tracer.said_exactly(&[Want::without_a_route(&client, nowhere)]);
}

/// As many connections as find no room in the table, and none of them is in it: neither while somebody may accept them, nor
/// once somebody has.
fn others_take_no_room() {
    const MANY: usize = 32;
    let netns = Netns::new();
    let cgroups = [Cgroup::new(), Cgroup::new()];
    let map = Pin::holding(&[cgroups[0].id()]);
    let mut filter = of(&netns);
    filter.cgroup_map = Some(map.path().into());
    filter.owns_maps = true;
    let tracer = Trace::with(Config {
        filter,
        max_connections: 8,
        ..Config::default()
    });
    let [mut server, mut client] = ["server", "client"].map(|c| in_cgroup(c, &netns, &cgroups[1]));
    let at = server.address("listen l 127.0.0.1:0");
    for i in 0..MANY {
        client.ask(&format!("connect c{i} {at}"));
    }
    for i in 0..MANY / 2 {
        server.ask(&format!("accept a{i} l"));
    }

    let mut selected = in_cgroup("selected", &netns, &cgroups[0]);
    let here = selected.address("listen l 127.0.0.1:0");
    let from = selected.address(&format!("connect c {here}"));
    selected.ask("accept a l");
    selected.ask("close c");
    selected.ask("eof a");
    selected.ask("close a");
    for i in 0..MANY {
        client.ask(&format!("close c{i}"));
    }
    let connect = Want::connect(&selected, from, here);
    let accept = Want::accept(&selected, here, from);
    tracer.said_exactly(&Want::life(&connect, &accept, [Local, Remote]));
}

/// A cgroup so new that it may be one that is to be selected: who connects in it, and whose connections are to be accepted.
fn undecided_cgroups_pass() {
    let netns = Netns::new();
    let map = Pin::holding(&[]);
    let tracer = trace(&netns, |f| {
        f.cgroup_map = Some(map.path().into());
        f.owns_maps = true;
    });
    let cgroups = [(); 3].map(|()| Cgroup::new());
    let [old, first, second] = [0, 1, 2].map(|i| in_cgroup("actor", &netns, &cgroups[i]));
    let mut actors = [old, first, second];
    let visit = |actor: &mut Actor| {
        let here = actor.address("listen l 127.0.0.1:0");
        let from = actor.address(&format!("connect c {here}"));
        actor.ask("accept a l");
        for then in ["close c", "eof a", "close a", "close l"] {
            actor.ask(then);
        }
        let connect = Want::connect(actor, from, here);
        let accept = Want::accept(actor, here, from);
        Want::life(&connect, &accept, [Local, Remote])
    };

    // At first all are decided. What is open when that changes is looked for once it is decided.
    actors[1].ask("connect-self open");
    tracer.decide(cgroups[0].id());
    tracer.changed();
    tracer.seed();
    assert_eq!(tracer.connections(), []);
    actors[1].ask("close open");
    let mut wanted = Vec::new();
    visit(&mut actors[0]);
    wanted.extend(visit(&mut actors[1]));
    wanted.extend(visit(&mut actors[2]));
    map.insert(cgroups[1].id());
    tracer.changed();
    tracer.decide(cgroups[1].id());
    wanted.extend(visit(&mut actors[1]));
    wanted.extend(visit(&mut actors[2]));
    tracer.decide(cgroups[2].id());
    visit(&mut actors[2]);
    wanted.extend(visit(&mut actors[1]));
    tracer.said_exactly(&wanted);
}

/// A container may make cgroups as deep as it likes.
fn far_below_a_selected_cgroup() {
    const LEVELS: usize = 70;
    let netns = Netns::new();
    let tops = [Cgroup::new(), Cgroup::new()];
    let map = Pin::holding(&[tops[0].id()]);
    let tracer = trace(&netns, |f| {
        f.cgroup_map = Some(map.path().into());
        f.owns_maps = true;
    });
    // The last is to be removed first.
    let below = tops.each_ref().map(|top| {
        let mut below = Vec::new();
        for _ in 0..LEVELS {
            let deeper = below.first().unwrap_or(top).child("n");
            below.insert(0, deeper);
        }
        below
    });
    let [mut selected, mut other] = [0, 1].map(|i| in_cgroup("actor", &netns, &below[i][0]));
    let at = selected.address("connect-self c");
    selected.ask("close c");
    other.ask("connect-self c");
    other.ask("close c");
    let want = Want::connect(&selected, at, at);
    tracer.said_exactly(&[want.clone(), want.close(Local)]);
}

/// The listener's owner is not who accepts: it has handed its socket over.
fn who_accepts_is_asked_and_not_who_listens() {
    let netns = Netns::new();
    let cgroups = [Cgroup::new(), Cgroup::new()];
    for selected in [0, 1] {
        let map = Pin::holding(&[cgroups[selected].id()]);
        let tracer = trace(&netns, |f| {
            f.cgroup_map = Some(map.path().into());
            f.owns_maps = true;
        });
        let mut owner = in_cgroup("owner", &netns, &cgroups[0]);
        let at = owner.address("listen l 127.0.0.1:0");
        let child = owner.spawn("child", "l");
        cgroups[1].add(child);
        let mut client = Actor::inside(&netns, "client");
        let from = client.address(&format!("connect c {at}"));
        owner.tell("child", "accept a l");
        owner.tell("child", "close a");
        client.ask("eof c");
        client.ask("close c");
        let accept = Want::accept(&owner, at, from).by(child, "child");
        let accepted = [accept.clone(), accept.close(Local)];
        tracer.said_exactly(match selected {
            0 => &[],
            _ => &accepted,
        });
    }
}

fn client_with_mounts(comm: &str, netns: &Netns, cgroup: Option<&Cgroup>) -> (Actor, u64) {
    let mut actor = Actor::inside(netns, comm);
    if let Some(cgroup) = cgroup {
        actor.join(cgroup);
    }
    let mounts = actor.leave_mounts();
    (actor, mounts)
}

/// A process that is killed has no mount namespace any more when its sockets are closed.
fn mntns_map() {
    let netns = Netns::new();
    let mut server = Actor::inside(&netns, "server");
    let (mut selected, mounts) = client_with_mounts("selected", &netns, None);
    let (mut other, _) = client_with_mounts("other", &netns, None);
    let map = Pin::holding(&[mounts]);
    let tracer = trace(&netns, |f| f.mntns_map = Some(map.path().into()));

    let at = server.address("listen l 127.0.0.1:0");
    let from = selected.address(&format!("connect c {at}"));
    server.ask("accept a l");
    other.ask(&format!("connect c {at}"));
    server.ask("accept b l");
    let connect = Want::connect(&selected, from, at);
    let end = connect.close(Local);
    other.kill();
    server.ask("eof b");
    server.ask("close b");
    selected.kill();
    server.ask("eof a");
    server.ask("close a");
    tracer.said_exactly(&[connect, end]);
}

/// Of two maps, both have to hold the process, or one is enough, as the agent has it.
fn maps(either: bool) {
    let netns = Netns::new();
    let cgroup = Cgroup::new();
    let (mut both, mounts) = client_with_mounts("both", &netns, Some(&cgroup));
    let (mut only_cgroup, _) = client_with_mounts("cgroup", &netns, Some(&cgroup));
    let (mut only_mounts, other_mounts) = client_with_mounts("mounts", &netns, None);
    let (mut neither, _) = client_with_mounts("neither", &netns, None);
    let cgroups = Pin::holding(&[cgroup.id()]);
    let mntns = Pin::holding(&[mounts, other_mounts]);
    let tracer = trace(&netns, |f| {
        f.cgroup_map = Some(cgroups.path().into());
        f.mntns_map = Some(mntns.path().into());
        f.either_map = either;
    });
    let mut wanted = Vec::new();
    for (actor, passes) in [
        (&mut both, true),
        (&mut only_cgroup, either),
        (&mut only_mounts, either),
        (&mut neither, false),
    ] {
        let at = actor.address("connect-self c");
        actor.ask("close c");
        if passes {
            let connect = Want::connect(actor, at, at);
            wanted.extend([connect.clone(), connect.close(Local)]);
        }
    }
    tracer.said_exactly(&wanted);
}
