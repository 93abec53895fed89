//! `--failed` and `--existing`.

use std::net::SocketAddr;

use tcptracer_testing::{Actor, End, Tool, World, assert_same};

tcptracer_testing::tests![
    a_refused_connect_is_an_f_row,
    a_refused_connect_in_the_verbose_layout,
    a_refused_connect_has_its_errno_in_json,
    a_refused_connect_is_not_shown_by_default,
    connections_that_succeed_are_shown_beside_failed_ones,
    existing_connections_are_listed_on_request,
    existing_connections_are_named_in_the_verbose_layout,
    existing_connections_are_not_listed_by_default,
    listeners_are_not_listed,
];

/// An address of the world at which nobody listens any more.
fn nobody(world: &mut World, listen: &str) -> SocketAddr {
    let address = world.server.listen(listen);
    world.server.stop_listening();
    address
}

/// The client's end of a failed connect, of which only the row tells the port.
#[track_caller]
fn refused_end(world: &World, to: SocketAddr, row: &str) -> End {
    let columns: Vec<&str> = row.split_whitespace().collect();
    let port: u16 = columns[6].parse().expect("a port");
    assert_ne!(port, 0, "{row}");
    End {
        pid: world.client.pid(),
        comm: world.client.comm.clone(),
        local: SocketAddr::new(to.ip(), port),
        remote: to,
    }
}

fn a_refused_connect_is_an_f_row() {
    for listen in ["127.0.0.1:0", "[::1]:0"] {
        let mut world = World::new();
        let to = nobody(&mut world, listen);
        let mut tool = Tool::on(&world, &["--failed"]);
        world.client.be_refused(to);
        tool.rows(1);
        let rows = tool.stop().quietly();
        let end = refused_end(&world, to, &rows[0]);
        assert_eq!(rows, [end.row('F')]);
    }
}

fn a_refused_connect_in_the_verbose_layout() {
    let mut world = World::new();
    let to = nobody(&mut world, "127.0.0.1:0");
    let mut tool = Tool::on(&world, &["-v", "--failed"]);
    world.client.be_refused(to);
    tool.rows(1);
    let rows = tool.stop().quietly();
    let end = refused_end(&world, to, &rows[0]);
    assert_eq!(rows, [end.verbose_row("failed")]);
}

fn a_refused_connect_has_its_errno_in_json() {
    let mut world = World::new();
    let to = nobody(&mut world, "127.0.0.1:0");
    let mut tool = Tool::json_on(&world, &["--failed"]);
    world.client.be_refused(to);
    let objects = tool.objects(1);
    assert_eq!(tool.stop().quietly().len(), 1);
    let failed = &objects[0];
    assert_eq!(failed["type"], "failed");
    assert_eq!(failed["errno"], 111);
    assert_eq!(failed["reason"], "reset-remote");
    assert_eq!(failed["role"], "client");
    assert_eq!(failed["pid"], world.client.pid());
    assert_eq!(failed["dport"], to.port());
    assert!(failed.get("established").is_none(), "{failed}");
    assert!(failed.get("bytes_sent").is_none(), "{failed}");
}

fn a_refused_connect_is_not_shown_by_default() {
    let mut world = World::new();
    let to = nobody(&mut world, "127.0.0.1:0");
    let mut tool = Tool::on(&world, &[]);
    world.client.be_refused(to);
    let open = world.server.listen("127.0.0.1:0");
    let (client, server) = world.visit(open);
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

fn connections_that_succeed_are_shown_beside_failed_ones() {
    let mut world = World::new();
    let to = nobody(&mut world, "127.0.0.1:0");
    let open = world.server.listen("127.0.0.1:0");
    let mut tool = Tool::on(&world, &["--failed"]);
    let (client, server) = world.visit(open);
    tool.rows(4);
    world.client.be_refused(to);
    tool.rows(5);
    let rows = tool.stop().quietly();
    let failed = refused_end(&world, to, &rows[4]);
    assert_same(
        rows,
        vec![
            client.row('C'),
            server.row('A'),
            client.row('X'),
            server.row('X'),
            failed.row('F'),
        ],
    );
}

fn existing_connections_are_listed_on_request() {
    for listen in ["127.0.0.1:0", "[::1]:0"] {
        let mut world = World::new();
        let to = world.server.listen(listen);
        let (client, server) = world.open(to);
        let mut tool = Tool::on(&world, &["--existing"]);
        tool.rows(2);
        world.close();
        tool.rows(4);
        let rows = tool.stop().quietly();
        assert_same(rows[..2].to_vec(), vec![client.row('E'), server.row('E')]);
        assert_same(rows[2..].to_vec(), vec![client.row('X'), server.row('X')]);
    }
}

fn existing_connections_are_named_in_the_verbose_layout() {
    let mut world = World::new();
    let to = world.server.listen("127.0.0.1:0");
    let (client, server) = world.open(to);
    let mut tool = Tool::on(&world, &["-v", "--existing"]);
    tool.rows(2);
    assert_same(
        tool.stop().quietly(),
        vec![
            client.verbose_row("existing"),
            server.verbose_row("existing"),
        ],
    );
}

fn existing_connections_are_not_listed_by_default() {
    let mut world = World::new();
    let to = world.server.listen("127.0.0.1:0");
    let (client, server) = world.open(to);
    let mut tool = Tool::on(&world, &[]);
    world.close();
    tool.rows(2);
    assert_same(
        tool.stop().quietly(),
        vec![client.row('X'), server.row('X')],
    );
}

fn listeners_are_not_listed() {
    let mut world = World::new();
    world.server.listen("127.0.0.1:0");
    let mut other = Actor::inside(&world.netns, "other");
    other.listen("[::]:0");
    let tool = Tool::on(&world, &["--existing"]);
    other.stop_listening();
    world.server.stop_listening();
    assert_eq!(tool.stop().quietly(), [""; 0]);
}
