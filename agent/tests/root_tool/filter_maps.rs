//! `--cgroupmap` and `--mntnsmap`.

use libbpf_rs::MapType;

use tcptracer_testing::{
    Actor, Cgroup, End, Netns, Pin, Tool, World, assert_same, header_of, own_mounts,
};

tcptracer_testing::tests![
    maps_of_every_documented_shape_are_taken,
    every_kind_of_hash_is_taken,
    a_relative_path_is_taken,
    an_empty_map_lets_nothing_pass,
    a_cgroup_map_is_live,
    a_mntns_map_is_live,
    a_cgroup_selects_those_below_it,
    a_cgroup_does_not_select_those_above_it,
    both_maps_have_to_match,
    a_process_that_exits_is_matched_by_its_mount_namespace,
    a_process_that_exits_is_matched_by_its_cgroup,
    a_mntns_filter_takes_accepts,
];

/// All four events of a connection.
fn rows(ends: &(End, End)) -> Vec<String> {
    vec![
        ends.0.row('C'),
        ends.1.row('A'),
        ends.0.row('X'),
        ends.1.row('X'),
    ]
}

/// A client and a server that share a mount namespace of their own.
fn world_with_own_mounts() -> World {
    own_mounts(World::new)
}

fn an_empty_map_lets_nothing_pass() {
    for option in ["--cgroupmap", "--mntnsmap"] {
        let mut world = World::new();
        let to = world.server.listen("127.0.0.1:0");
        let pin = Pin::hash();
        let tool = Tool::on(&world, &[option, pin.path()]);
        assert_eq!(tool.header, header_of(false));
        world.visit(to);
        assert_eq!(tool.stop().quietly(), [""; 0], "{option}");
    }
}

/// Connections before, while and after `key` is in the map; `args` name the map, and what else
/// there is already matches.
#[track_caller]
fn assert_live(world: &mut World, args: &[&str], pin: &Pin, key: u64) {
    let to = world.server.listen("127.0.0.1:0");
    let mut tool = Tool::on(world, args);
    world.visit(to);
    pin.insert(key);
    let selected = world.visit(to);
    tool.rows(4);
    pin.delete(key);
    world.visit(to);
    assert_same(tool.stop().quietly(), rows(&selected));
}

fn maps_of_every_documented_shape_are_taken() {
    for (value, entries) in [(8, 128), (4, 1024), (4, 10240)] {
        let cgroup = Cgroup::new();
        let mut world = World::new();
        cgroup.add(world.client.pid());
        cgroup.add(world.server.pid());
        let [cgroups, mounts] = [(); 2].map(|()| Pin::new(MapType::Hash, 8, value, entries));
        mounts.insert(world.client.mntns());
        let args = ["--mntnsmap", mounts.path(), "--cgroupmap", cgroups.path()];
        assert_live(&mut world, &args, &cgroups, cgroup.id());
    }
}

fn every_kind_of_hash_is_taken() {
    for kind in [
        MapType::LruHash,
        MapType::PercpuHash,
        MapType::LruPercpuHash,
    ] {
        let mut world = World::new();
        let key = world.client.mntns();
        let pin = Pin::new(kind, 8, 8, 64);
        assert_live(&mut world, &["--mntnsmap", pin.path()], &pin, key);
    }
}

fn a_relative_path_is_taken() {
    let world = World::new();
    let pin = Pin::hash();
    let (directory, name) = pin.path().rsplit_once('/').expect("a directory");
    let mut tool = Tool::spawn(Tool::command().current_dir(directory).args([
        "-N",
        &world.inode(),
        "--cgroupmap",
        name,
    ]));
    tool.wait_for_header();
    tool.stop().quietly();
}

fn a_cgroup_map_is_live() {
    let cgroup = Cgroup::new();
    let mut world = World::new();
    // Only the client is selected, and another process that is not in the cgroup is not.
    cgroup.add(world.client.pid());
    let to = world.server.listen("127.0.0.1:0");
    let pin = Pin::hash();
    let mut tool = Tool::on(&world, &["--cgroupmap", pin.path()]);
    world.visit(to);
    pin.insert(cgroup.id());
    let (client, _) = world.visit(to);
    tool.rows(2);
    pin.delete(cgroup.id());
    world.visit(to);
    assert_eq!(tool.stop().quietly(), [client.row('C'), client.row('X')]);
}

fn a_mntns_map_is_live() {
    let mut world = world_with_own_mounts();
    let mut stranger = Actor::inside(&world.netns, "stranger");
    let key = world.client.mntns();
    assert_ne!(key, stranger.mntns());
    let to = world.server.listen("127.0.0.1:0");
    let pin = Pin::hash();
    let mut tool = Tool::on(&world, &["--mntnsmap", pin.path()]);
    world.visit(to);
    pin.insert(key);
    let selected = world.visit(to);
    // The stranger's end is not selected, the server's is.
    stranger.connect(to);
    let server = world.server.accept();
    stranger.close();
    world.server.close();
    tool.rows(6);
    pin.delete(key);
    world.visit(to);
    let mut expected = rows(&selected);
    expected.extend([server.row('A'), server.row('X')]);
    assert_same(tool.stop().quietly(), expected);
}

fn a_cgroup_selects_those_below_it() {
    let parent = Cgroup::new();
    let child = parent.child("child");
    let mut world = World::new();
    child.add(world.client.pid());
    child.add(world.server.pid());
    let pin = Pin::hash();
    let args = ["--cgroupmap", pin.path()];
    assert_live(&mut world, &args, &pin, parent.id());
}

fn a_cgroup_does_not_select_those_above_it() {
    let parent = Cgroup::new();
    let child = parent.child("child");
    let mut world = World::new();
    parent.add(world.client.pid());
    child.add(world.server.pid());
    let to = world.server.listen("127.0.0.1:0");
    let pin = Pin::hash();
    pin.insert(child.id());
    let mut tool = Tool::on(&world, &["--cgroupmap", pin.path()]);
    let (_, server) = world.visit(to);
    tool.rows(2);
    assert_eq!(tool.stop().quietly(), [server.row('A'), server.row('X')]);
}

fn both_maps_have_to_match() {
    let cgroup = Cgroup::new();
    let netns = Netns::new();
    let mut server = Actor::inside(&netns, "server");
    let to = server.listen("127.0.0.1:0");
    let [mut both, mut only_mntns] =
        own_mounts(|| ["both", "only-mntns"].map(|comm| Actor::inside(&netns, comm)));
    let mut only_cgroup = Actor::inside(&netns, "only-cgroup");
    cgroup.add(both.pid());
    cgroup.add(only_cgroup.pid());
    let (cgroups, mounts) = (Pin::hash(), Pin::hash());
    cgroups.insert(cgroup.id());
    mounts.insert(both.mntns());
    let mut tool = Tool::start([
        "-N",
        &netns.inode.to_string(),
        "--cgroupmap",
        cgroups.path(),
        "--mntnsmap",
        mounts.path(),
    ]);
    let [_, _, end] = [&mut only_mntns, &mut only_cgroup, &mut both].map(|client| {
        let end = client.connect(to);
        client.close();
        server.accept();
        server.close();
        end
    });
    tool.rows(2);
    assert_eq!(tool.stop().quietly(), [end.row('C'), end.row('X')]);
}

/// Processes that end with an open socket, of which some are selected; the rows of those.
#[track_caller]
fn assert_ends(
    netns: &Netns,
    filter: [&str; 2],
    selected: &mut [Actor; 2],
    others: &mut [Actor; 2],
) {
    let mut server = Actor::inside(netns, "server");
    let to = server.listen("127.0.0.1:0");
    let mut tool = Tool::start(["-N", &netns.inode.to_string(), filter[0], filter[1]]);
    let mut expected = Vec::new();
    for [killed, exits] in [others, selected] {
        expected.clear();
        for client in [&mut *killed, &mut *exits] {
            let end = client.connect(to);
            server.accept();
            expected.extend([end.row('C'), end.row('X')]);
        }
        killed.kill();
        exits.exit();
        server.close();
    }
    tool.rows(4);
    assert_same(tool.stop().quietly(), expected);
}

fn a_process_that_exits_is_matched_by_its_mount_namespace() {
    let netns = Netns::new();
    let actors = || ["killed", "exits"].map(|comm| Actor::inside(&netns, comm));
    let mut selected = own_mounts(actors);
    let mut others = own_mounts(actors);
    let pin = Pin::hash();
    pin.insert(selected[0].mntns());
    assert_ends(
        &netns,
        ["--mntnsmap", pin.path()],
        &mut selected,
        &mut others,
    );
}

fn a_process_that_exits_is_matched_by_its_cgroup() {
    let (cgroup, other) = (Cgroup::new(), Cgroup::new());
    let netns = Netns::new();
    let actors = |cgroup: &Cgroup| {
        ["killed", "exits"].map(|comm| {
            let actor = Actor::inside(&netns, comm);
            cgroup.add(actor.pid());
            actor
        })
    };
    let mut selected = actors(&cgroup);
    let mut others = actors(&other);
    let pin = Pin::hash();
    pin.insert(cgroup.id());
    assert_ends(
        &netns,
        ["--cgroupmap", pin.path()],
        &mut selected,
        &mut others,
    );
}

fn a_mntns_filter_takes_accepts() {
    let netns = Netns::new();
    let mut server = own_mounts(|| Actor::inside(&netns, "server"));
    let mut client = Actor::inside(&netns, "client");
    let to = server.listen("127.0.0.1:0");
    let pin = Pin::hash();
    pin.insert(server.mntns());
    let mut tool = Tool::start(["-N", &netns.inode.to_string(), "--mntnsmap", pin.path()]);
    client.connect(to);
    let end = server.accept();
    client.close();
    server.close();
    tool.rows(2);
    assert_eq!(tool.stop().quietly(), [end.row('A'), end.row('X')]);
}
