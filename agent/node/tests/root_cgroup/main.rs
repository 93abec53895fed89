/*!
Containers as `tcptracer_agent::cgroup` finds them, in real cgroups and namespaces.

Needs root. Each test makes cgroups of its own and looks at nothing else of what is there. The
processes in them are this binary again, as `actor` (see [`tcptracer_testing::Actor`]).
*/

mod places;

use std::collections::{HashMap, HashSet};
use std::env;
use std::ffi::{CStr, CString};
use std::fs;
use std::path::Path;
use std::process::{self, ExitCode};

use rustix::mount::{MountFlags, mount};
use tcptracer_agent::cgroup::{self, Cgroup, ContainerPath, Hierarchy, Mode};
use tcptracer_testing::{ACTOR, Actor, act, own_mounts, run, tests, v2_mount};

use places::Tree;

const UID: &str = "0b1c7d2e-58a4-4f0e-9d36-7a1f2c3b4d5e";
const ID: &str = "9f0d6c2b1a3e4f5061728394a5b6c7d8e9f00112233445566778899aabbccdde";
const PROC: &str = "/proc";

tests![
    every_cgroup_is_found_with_its_id,
    a_container_is_found_by_either_driver,
    what_is_removed_is_not_found,
    a_process_tells_its_mount_namespace_once_it_left_the_hosts,
    processes_below_a_container_are_the_containers,
    a_dead_container_has_no_processes,
    the_modes_are_told_apart,
];

fn main() -> ExitCode {
    if env::args().nth(1).as_deref() == Some(ACTOR) {
        return act();
    }
    run("root_cgroup", &[("", TESTS)])
}

/// The hierarchy in which the tests make theirs. Where there are others beside it, containers of others would decide which
/// one is found.
fn host() -> Hierarchy {
    Hierarchy::detect(&v2_mount()).expect("the host has cgroups")
}

/// What a scan finds of a tree.
fn scan(tree: &Tree) -> HashSet<(u64, String)> {
    let found = host().scan().expect("the cgroups can be scanned");
    found
        .into_iter()
        .filter(|cgroup| cgroup.path.starts_with(&tree.top))
        .map(key)
        .collect()
}

fn key(cgroup: Cgroup) -> (u64, String) {
    (cgroup.id, cgroup.path)
}

/// The path of a container by the cgroupfs driver, below a tree's top.
fn container_path() -> String {
    format!("/kubepods/burstable/pod{UID}/{ID}")
}

fn every_cgroup_is_found_with_its_id() {
    let mut tree = Tree::new();
    let paths = ["", "/kubepods", "/kubepods/a", "/kubepods/a/b", "/other"];
    let expected = paths.map(|path| key(tree.cgroup(path))).into();

    assert_eq!(scan(&tree), expected);
}

fn a_container_is_found_by_either_driver() {
    for (prefix, path) in [
        ("", container_path()),
        (
            "/kubelet.slice",
            format!(
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{}.slice/cri-containerd-{ID}.scope",
                UID.replace('-', "_")
            ),
        ),
    ] {
        let mut tree = Tree::new();
        let own = tree.cgroup(&path);
        let nested = tree.cgroup(&format!("{path}/nested"));
        let deeper = tree.cgroup(&format!("{path}/nested/deeper"));
        let prefix = format!("{}{prefix}", tree.top);
        let expected = ContainerPath {
            prefix: &prefix,
            pod_uid: UID.into(),
            container_id: ID,
            path: &own.path,
        };

        let found = scan(&tree);
        let containers: HashMap<_, _> = found
            .iter()
            .filter_map(|(id, path)| Some((*id, cgroup::parse(path)?)))
            .collect();
        let ids = [own.id, nested.id, deeper.id];
        let expected = ids.map(|id| (id, expected.clone())).into();
        assert_eq!(containers, expected);
    }
}

fn what_is_removed_is_not_found() {
    let mut tree = Tree::new();
    let stays = key(tree.cgroup("/stays"));
    let goes = tree.cgroup("/goes");
    tree.remove(&goes);

    assert_eq!(scan(&tree), [key(tree.cgroup("")), stays].into());
}

fn a_process_tells_its_mount_namespace_once_it_left_the_hosts() {
    let mut tree = Tree::new();
    let container = tree.cgroup(&container_path());
    let mut actor = Actor::here("actor");
    let host_mounts = actor.mntns();
    tree.add(actor.pid(), &container);

    let pids = host().processes(&container.path);
    assert_eq!(pids, [actor.pid()]);
    let proc = Path::new(PROC);
    assert_eq!(
        cgroup::host_mount_namespace(proc),
        Some(host_mounts),
        "the tests have to run in the host's mount namespace"
    );
    let found = || cgroup::mount_namespace(proc, &container.path, &pids, Some(host_mounts));
    assert!(found().is_none());

    let inode = actor.leave_mounts();
    assert_ne!(inode, host_mounts);
    assert_eq!(found().map(|f| f.inode), Some(inode));
}

fn processes_below_a_container_are_the_containers() {
    let mut tree = Tree::new();
    let container = tree.cgroup(&container_path());
    let below = tree.cgroup(&format!("{}/init.scope", container_path()));
    let sibling = tree.cgroup(&format!("/kubepods/burstable/pod{UID}/sibling"));
    let [inside, other] = ["inside", "other"].map(Actor::here);
    tree.add(inside.pid(), &below);
    tree.add(other.pid(), &sibling);

    assert_eq!(host().processes(&container.path), [inside.pid()]);
    assert_eq!(host().processes(&below.path), [inside.pid()]);

    let outside = Actor::here("actor");
    tree.add(outside.pid(), &container);
    assert_eq!(host().processes(&container.path), [outside.pid()]);
}

fn a_dead_container_has_no_processes() {
    let mut tree = Tree::new();
    let container = tree.cgroup(&container_path());
    let actor = Actor::here("actor");
    let pid = actor.pid();
    tree.add(pid, &container);
    assert_eq!(host().processes(&container.path), [pid]);

    // Reaped, so that its files in /proc are gone too.
    drop(actor);
    assert!(cgroup::mount_namespace(Path::new(PROC), &container.path, &[pid], None).is_none());
    tree.remove(&container);
    assert!(host().processes(&container.path).is_empty());
}

fn the_modes_are_told_apart() {
    let root = tempfile::tempdir().expect("a directory for the test");
    let root = root.path();
    own_mounts(|| {
        let mounted = |kind: &str, path: &Path, options: Option<&CStr>| {
            fs::create_dir_all(path).expect("a folder");
            mount("none", path, kind, MountFlags::empty(), options)
                .unwrap_or_else(|e| panic!("{kind} cannot be mounted: {e}"));
        };
        mounted("tmpfs", root, None);
        assert!(Hierarchy::detect(root).is_err());

        // A hierarchy without controllers, which every kernel has.
        let named = format!("none,name=tcptracer-test-{}", process::id());
        let named = CString::new(named).expect("no zeros");
        mounted("cgroup", &root.join("pids"), Some(&named));
        let mode = |path: &Path| Hierarchy::detect(path).expect("cgroups").mode();
        assert_eq!(mode(root), Mode::V1);

        let unified = root.join("unified");
        mounted("cgroup2", &unified, None);
        assert_eq!(mode(root), Mode::Hybrid);
        assert_eq!(mode(&unified), Mode::V2);

        let hierarchy = Hierarchy::detect(&unified).expect("cgroup v2 is there");
        assert!(hierarchy.is_whole());
        assert_eq!(hierarchy.number().expect("v2 has a number"), 0);
    });
}
