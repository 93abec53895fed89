//! `-p`, `-N`, `-4` and `-6`.

use tcptracer_testing::{End, Tool, World, assert_same};

tcptracer_testing::tests![
    a_pid_selects_its_own_connections,
    a_pid_selects_the_owner_whoever_closes,
    a_pid_selects_the_closer,
    a_pid_selects_every_thread,
    pid_0_is_no_filter,
    netns_0_is_no_filter,
    other_namespaces_are_absent,
    ipv4_is_by_socket_family,
    ipv6_is_by_socket_family,
];

fn a_pid_selects_its_own_connections() {
    let mut world = World::new();
    let to = world.server.listen("127.0.0.1:0");
    let pid = world.server.pid().to_string();
    let mut tool = Tool::on(&world, &["-p", &pid]);
    let (_, server) = world.visit(to);
    tool.rows(2);
    assert_eq!(tool.stop().quietly(), [server.row('A'), server.row('X')]);
}

/// A connection that the server accepts and another process closes. `choose` names the process to
/// trace, of the server and the other; returns what was written, the server's end and the other's.
#[track_caller]
fn handed_over(choose: fn(u32, u32) -> u32, count: usize) -> (Vec<String>, End, End) {
    let mut world = World::new();
    let to = world.server.listen("127.0.0.1:0");
    let holder = world.server.spawn("holder", "l");
    let pid = choose(world.server.pid(), holder).to_string();
    let mut tool = Tool::on(&world, &["-p", &pid]);
    let (_, server) = world.open(to);
    let stream = world.server.hand_over("holder");
    world.client.close();
    world.server.tell("holder", &format!("outlast {stream}"));
    tool.rows(count);
    (
        tool.stop().quietly(),
        server.clone(),
        server.held_by(holder, "holder"),
    )
}

fn a_pid_selects_the_owner_whoever_closes() {
    let (rows, server, holder) = handed_over(|server, _| server, 2);
    assert_eq!(rows, [server.row('A'), holder.row('X')]);
}

fn a_pid_selects_the_closer() {
    let (rows, _, holder) = handed_over(|_, holder| holder, 1);
    assert_eq!(rows, [holder.row('X')]);
}

fn a_pid_selects_every_thread() {
    let mut world = World::new();
    let to = world.server.listen("127.0.0.1:0");
    let pid = world.client.pid().to_string();
    let mut tool = Tool::on(&world, &["-p", &pid]);
    let worker = world.client.connect_in_thread("worker", to);
    world.server.accept();
    world.close();
    tool.rows(2);
    let closer = worker.held_by(worker.pid, "client");
    assert_eq!(tool.stop().quietly(), [worker.row('C'), closer.row('X')]);
}

fn pid_0_is_no_filter() {
    let mut world = World::new();
    let to = world.server.listen("127.0.0.1:0");
    let mut tool = Tool::on(&world, &["-p", "0"]);
    let (client, server) = world.visit(to);
    tool.rows(4);
    assert_same(
        tool.stop().quietly(),
        vec![
            client.row('C'),
            server.row('A'),
            client.row('X'),
            server.row('X'),
        ],
    );
}

fn netns_0_is_no_filter() {
    let mut world = World::new();
    let netns = world.netns.inode;
    let to = world.server.listen("127.0.0.1:0");
    let pid = world.client.pid().to_string();
    let mut tool = Tool::start(["-v", "-N", "0", "-p", &pid]);
    let (client, _) = world.visit(to);
    tool.rows(2);
    assert_eq!(
        tool.stop().quietly(),
        [
            client.netns_row("connect", netns),
            client.netns_row("close", netns)
        ]
    );
}

fn other_namespaces_are_absent() {
    let mut world = World::new();
    let mut other = World::new();
    let to = world.server.listen("127.0.0.1:0");
    let to_other = other.server.listen("127.0.0.1:0");
    let mut tool = Tool::on(&world, &[]);
    other.visit(to_other);
    let (client, server) = world.visit(to);
    other.visit(to_other);
    tool.rows(4);
    assert_same(
        tool.stop().quietly(),
        vec![
            client.row('C'),
            server.row('A'),
            client.row('X'),
            server.row('X'),
        ],
    );
}

/// Ends of connections, client and server: v4 to v4, v6 to v6, v4-mapped to v4, v4 to dual stack.
fn visit_all(world: &mut World) -> [(End, End); 4] {
    let mut visit = |listen: &str, connect: &str| {
        let port = world.server.listen(listen).port();
        let to = format!("{connect}:{port}").parse().expect("an address");
        world.visit(to)
    };
    [
        visit("127.0.0.1:0", "127.0.0.1"),
        visit("[::1]:0", "[::1]"),
        visit("127.0.0.1:0", "[::ffff:127.0.0.1]"),
        visit("[::]:0", "127.0.0.1"),
    ]
}

fn ipv4_is_by_socket_family() {
    let mut world = World::new();
    let mut tool = Tool::on(&world, &["-4"]);
    let [v4, _, mapped, dual] = visit_all(&mut world);
    tool.rows(8);
    assert_same(
        tool.stop().quietly(),
        vec![
            v4.0.row('C'),
            v4.1.row('A'),
            v4.0.row('X'),
            v4.1.row('X'),
            mapped.1.row('A'),
            mapped.1.row('X'),
            dual.0.row('C'),
            dual.0.row('X'),
        ],
    );
}

fn ipv6_is_by_socket_family() {
    let mut world = World::new();
    let mut tool = Tool::on(&world, &["-6"]);
    let [_, v6, mapped, dual] = visit_all(&mut world);
    tool.rows(8);
    assert_same(
        tool.stop().quietly(),
        vec![
            v6.0.row('C'),
            v6.1.row('A'),
            v6.0.row('X'),
            v6.1.row('X'),
            mapped.0.row('C'),
            mapped.0.row('X'),
            dual.1.row('A'),
            dual.1.row('X'),
        ],
    );
}
