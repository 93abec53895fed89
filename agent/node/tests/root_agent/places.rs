//! Places in which an agent may find itself: a pid namespace of its own, a part of the cgroups, cgroups that say
//! nothing, and a folder of pins that others use as well.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use libbpf_rs::{MapCore, MapHandle};
use nix::sys::signal::Signal;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use serde_json::json;
use tcptracer_proto::v1::{self, Attribution, EventType, Evidence};
use tcptracer_testing::tests;
use tcptracer_testing::{Actor, Netns, wait_until};
use tempfile::TempDir;

use crate::client::{identity, kinds, of};
use crate::node::{Node, command, fresh_id, fresh_uid, pod};
use crate::runc::{self, Container, Network};

tests![
    a_pid_namespace_of_its_own,
    what_a_pid_namespace_hides_is_told,
    a_part_of_the_cgroups,
    cgroups_that_say_nothing,
    pins_are_one_agents_only,
    who_uses_a_map_finds_it_empty_at_the_end,
    sets_that_are_not_wanted_any_more_are_removed,
];

const LOCAL: &str = "127.0.0.1:0";

fn container(node: &mut Node, namespace: &str, name: &str) -> Container {
    let (uid, id) = (fresh_uid(), fresh_id());
    node.add(pod(namespace, name, &uid, &[("main", &id)]));
    runc::create(node, &uid, &id, &Network::Own).start(name)
}

/// As in a pod that does not share the host's: cgroups do not tell it which processes they have.
fn a_pid_namespace_of_its_own() {
    let launcher = ["unshare", "--pid", "--fork", "--kill-child"];
    let mut node = Node::launched(&launcher, |_| Vec::new());
    let cart = container(&mut node, "shop", "cart-0");
    let _db = container(&mut node, "other", "db-0");
    let agent = node.client();
    let _watch = agent.watch(of("shop"));
    wait_until("the mount namespace is known", || {
        node.keys("mntnsmap") == HashSet::from([cart.actor.mntns()])
    });
    assert_eq!(node.keys("cgroupmap"), HashSet::from([cart.cgroup_id()]));
}

/// Whether it shows the host's processes at `/proc` or its own only.
fn what_a_pid_namespace_hides_is_told() {
    const TOLD: &str = "connections and listeners that are there before the start are not known";
    let netns = Netns::new();
    let mut early = Actor::inside(&netns, "early");
    let at = early.listen(LOCAL);
    early.connect(at);
    let own = ["unshare", "--pid", "--fork", "--kill-child"];
    let with_proc = [&own[..], &["--mount-proc"]].concat();
    for (launcher, is_told) in [(&[][..], false), (&own, true), (&with_proc, true)] {
        let node = Node::launched(launcher, |_| Vec::new());
        let agent = node.client();
        let shortcomings = agent.info().shortcomings;
        assert_eq!(
            shortcomings.iter().any(|s| s.starts_with(TOLD)),
            is_told,
            "{launcher:?}: {shortcomings:?}"
        );
        let known = agent.connections(vec![v1::Filter {
            netns: vec![netns.inode as u32],
            ..v1::Filter::default()
        }]);
        assert_eq!(known.is_empty(), is_told, "{launcher:?}: {known:?}");
    }
}

/// A folder that shows a part of the cgroups.
struct Part(TempDir);

impl Part {
    fn of(cgroup: &Path) -> Self {
        let folder = TempDir::new().expect("a folder for the test");
        mount_bind(cgroup, folder.path()).expect("a part can be mounted");
        Self(folder)
    }

    fn options(&self) -> Vec<String> {
        vec!["--cgroupfs".into(), self.0.path().display().to_string()]
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        unmount(self.0.path(), UnmountFlags::DETACH).expect("the part can be unmounted");
    }
}

/// As in a node that is a container itself. The kernel tells of cgroups by their paths from its own root, and of
/// those of other nodes as well.
fn a_part_of_the_cgroups() {
    let mut part = None;
    let mut elsewhere = Node::new();
    // Nobody tells of these: they are there before.
    let mut older = ["old-0", "old-1"].map(|name| elsewhere.pod("shop", name, json!({})));
    let mut node = Node::ahead_of_others(|cgroups| part.insert(Part::of(cgroups)).options());
    let agent = node.client();
    wait_until("the pods are read", || {
        agent.info().pods.is_some_and(|p| p.synced)
    });
    let mut watch = agent.watch(vec![v1::Filter {
        netns: [&node, &elsewhere].map(|n| n.netns.inode as u32).into(),
        ..v1::Filter::default()
    }]);
    for old in &mut older {
        let there = old.actor.listen(LOCAL);
        old.actor.connect(there);
    }
    let mut other = elsewhere.pod("shop", "cart-1", json!({}));
    // Unlike the other node's, this one's pod is told late.
    let (uid, id) = (fresh_uid(), fresh_id());
    let mut cart = node.container(uid.clone(), id.clone(), "cart");
    let at = cart.actor.listen(LOCAL);
    cart.actor.connect(at);
    let events = watch.events(1);
    assert_eq!(identity(&events[0]).attribution(), Attribution::Pending);
    assert_eq!(identity(&events[0]).container_id, id);
    node.add_pod("shop", "cart-0", json!({}), &uid, &id);
    agent.wait_for_pods(1);

    let there = other.actor.listen(LOCAL);
    other.actor.connect(there);
    other.actor.close();
    cart.actor.close();
    let events = watch.events(1);
    assert_eq!(kinds(&events), [EventType::Close]);
    assert_eq!(identity(&events[0]).pod, "cart-0");
    assert_eq!(agent.info().containers, 1);
    let unknown = "tcptracer_attributions_total{result=\"unknown\"}";
    let metrics = node.get("/metrics");
    assert!(!metrics.contains(unknown), "{metrics}");
    node.assert_all_is_told([&mut watch]);
    drop(watch);
    drop((cart, older, other, node, elsewhere));
}

/// As on a host without cgroup v2, where every process is in the root.
fn cgroups_that_say_nothing() {
    let folder = TempDir::new().expect("a folder for the test");
    symlink("/sys/fs/cgroup/memory", folder.path().join("memory")).expect("a link");
    let v1 = folder.path().display().to_string();
    let mut node = Node::launched(&[], |_| vec!["--cgroupfs".into(), v1]);
    let agent = node.client();
    let mut cart = container(&mut node, "shop", "cart-0");
    let mut db = container(&mut node, "other", "db-0");
    for container in [&cart, &db] {
        let pid = container.actor.pid().to_string();
        fs::write(node.mount().join("cgroup.procs"), pid).expect("a process can be moved");
    }
    let mut watch = agent.watch(of("shop"));
    wait_until("the mount namespace is known", || {
        node.keys("mntnsmap") == HashSet::from([cart.actor.mntns()])
    });

    for container in [&mut db, &mut cart] {
        let at = container.actor.listen(LOCAL);
        container.actor.connect(at);
    }
    // Its last close trails it.
    cart.actor.exit();
    let events = watch.events(2);
    assert_eq!(kinds(&events), [EventType::Connect, EventType::Close]);
    for event in &events {
        let who = identity(event);
        assert_eq!(
            (who.pod.as_str(), who.container.as_str()),
            ("cart-0", "main")
        );
        assert_eq!(who.evidence(), Evidence::Mntns);
    }
    node.assert_all_is_told([&mut watch]);
}

fn pins_are_one_agents_only() {
    let node = Node::new();
    let output = command()
        .args(["--pods", "file:/nonexistent", "--grpc-listen", LOCAL])
        .args(["--http-listen", LOCAL, "--pin-dir"])
        .arg(&node.pins)
        .stdin(Stdio::null())
        .output()
        .expect("the agent runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let why = format!("another agent uses {}: ", node.pins.display());
    assert!(said.contains(&why), "{said}");
    assert!(node.keys("cgroupmap").is_empty());
}

fn pinned(path: PathBuf) -> MapHandle {
    MapHandle::from_pinned_path(path).expect("the map is pinned")
}

fn who_uses_a_map_finds_it_empty_at_the_end() {
    let mut node = Node::with(&["--filter-set", "carts=shop:app=cart"]);
    let _cart = node.pod("shop", "cart-0", json!({"app": "cart"}));
    let map = pinned(node.pins.join("carts/cgroupmap"));
    wait_until("the set has the pod", || map.keys().count() == 1);
    node.agent.signal(Signal::SIGTERM);
    assert_eq!(node.agent.end(), Some(0));
    assert_eq!(map.keys().count(), 0);
    assert!(!node.pins.exists());
}

fn sets_that_are_not_wanted_any_more_are_removed() {
    let mut node = Node::with(&["--filter-set", "carts=shop:app=cart;webs=shop:app=web"]);
    let kept = pinned(node.pins.join("webs/cgroupmap"));
    node.agent.signal(Signal::SIGKILL);
    node.agent.end();
    assert!(node.pins.join("carts/cgroupmap").exists());
    // What others have put there is theirs.
    fs::create_dir(node.pins.join("others")).expect("a folder");

    let sets = node.options.last_mut().expect("it has options");
    *sets = "webs=shop:app=web".into();
    node.restart();
    assert!(!node.pins.join("carts").exists());
    // Who uses the set goes on with it.
    let now = pinned(node.pins.join("webs/cgroupmap"));
    let id = |map: &MapHandle| map.info().expect("the kernel knows the map").info.id;
    assert_eq!(id(&now), id(&kept));
    node.agent.signal(Signal::SIGTERM);
    assert_eq!(node.agent.end(), Some(0));
    assert!(!node.pins.join("webs").exists());
}
