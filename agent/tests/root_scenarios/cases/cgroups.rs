//! Cgroups that come and go, as the agent learns of containers.

use tcptracer::bpf::Config;
use tcptracer_event::CgroupChange;
use tcptracer_event::Reason::Local;
use tcptracer_testing::{Cgroup, Netns, Test};

use super::filters::in_cgroup;
use crate::trace::{Said, Trace, Want, of};

pub const CASES: &[Test] = &[
    ("cgroups_made_and_removed", made_and_removed),
    ("cgroup_with_a_long_path", long_path),
    ("cgroup_told_before_its_connections", before_its_connections),
];

/// The most bytes of a path that can be reported.
const LONGEST: usize = 510;

/// Tells of cgroups as well as of connections. v2 is number 0.
fn trace(netns: &Netns, hierarchy: u32) -> Trace {
    Trace::with(Config {
        filter: of(netns),
        cgroups: Some(hierarchy),
        ..Config::default()
    })
}

fn made(cgroup: &Cgroup) -> CgroupChange {
    CgroupChange::Made {
        id: cgroup.id(),
        path: cgroup.path_in_hierarchy(),
    }
}

fn removed(cgroup: &Cgroup) -> CgroupChange {
    CgroupChange::Removed { id: cgroup.id() }
}

/// What was said of these cgroups. The host may have others that come and go.
fn of_ours(said: &Said, wanted: &[CgroupChange]) -> Vec<CgroupChange> {
    let id = |change: &CgroupChange| match *change {
        CgroupChange::Made { id, .. } | CgroupChange::Removed { id } => id,
    };
    let all = said.cgroups.iter().map(|(change, _)| change);
    let is_ours = |change: &&CgroupChange| wanted.iter().any(|w| id(w) == id(change));
    all.filter(is_ours).cloned().collect()
}

fn made_and_removed() {
    let netns = Netns::new();
    let older = Cgroup::new();
    let tracer = trace(&netns, 0);
    let of_another_hierarchy = trace(&netns, 4711);
    let without = Trace::of(&netns);

    let outer = Cgroup::new();
    let inner = outer.child("cri-containerd-0123.scope");
    let wanted = [
        made(&outer),
        made(&inner),
        removed(&inner),
        removed(&outer),
        removed(&older),
    ];
    drop(inner);
    drop(outer);
    drop(older);

    let said = tracer.stop_after(0);
    assert!(of_ours(&said, &wanted) == wanted, "{:?}", said.cgroups);
    for other in [of_another_hierarchy, without] {
        let said = other.stop_after(0);
        assert!(said.cgroups.is_empty(), "{:?}", said.cgroups);
    }
}

/// A cgroup whose path is not told is counted as lost.
fn long_path() {
    let netns = Netns::new();
    let tracer = trace(&netns, 0);
    let outer = Cgroup::new();
    let middle = outer.child("m".repeat(250));
    let rest = LONGEST - middle.path_in_hierarchy().len() - 1;
    let longest = middle.child("l".repeat(rest));
    let too_long = middle.child("t".repeat(rest + 1));
    let below = too_long.child("x");
    let told = [made(&outer), made(&middle), made(&longest)];
    let all = [&told[..], &[made(&too_long), made(&below)]].concat();
    let said = tracer.stop_after(0);
    assert!(of_ours(&said, &all) == told, "{:?}", said.cgroups);
    assert!(said.losses.cgroups >= 2, "{:?}", said.losses);
}

/// So the reader knows the container when it sees the first event of a process in it.
fn before_its_connections() {
    let netns = Netns::new();
    let tracer = trace(&netns, 0);
    let cgroup = Cgroup::new();
    let wanted = [made(&cgroup)];
    let mut actor = in_cgroup("actor", &netns, &cgroup);
    let at = actor.address("connect-self c");
    actor.ask("close c");

    let said = tracer.stop_after(2);
    let connect = Want::connect(&actor, at, at);
    crate::trace::same(
        said.events.iter().map(Want::from),
        vec![connect.clone(), connect.close(Local)],
    );
    let before: Vec<_> = said
        .cgroups
        .iter()
        .filter(|(_, events)| *events == 0)
        .collect();
    assert!(
        before.iter().any(|(change, _)| *change == wanted[0]),
        "{:?}",
        said.cgroups
    );
    let id = cgroup.id();
    assert!(
        said.events.iter().all(|e| e.owner.cgroup_id == id),
        "{:?}",
        said.events
    );
}
