//! The banner, the headers and the rows, to the byte, in all layouts.

use tcptracer_testing::{
    Actor, Cgroup, End, Netns, Pin, Tool, World, assert_same, header, header_of,
};

tcptracer_testing::tests![
    plain,
    plain_ipv6,
    timestamp,
    verbose,
    verbose_of_one_netns,
    verbose_timestamp,
    extended,
    verbose_timestamp_extended,
    a_long_ipv6_address_is_not_truncated,
    a_v4_mapped_address_stays_ipv6,
    a_dual_stack_listener_has_v4_mapped_peers,
    namespaces_are_told_apart,
    a_row_is_written_at_once,
];

/// One connection, and what is written with these options: the header and the four rows.
#[track_caller]
fn lines(world: &mut World, listen: &str, args: &[&str]) -> (String, Vec<String>, End, End) {
    let to = world.server.listen(listen);
    let mut tool = Tool::on(world, args);
    let (client, server) = world.visit(to);
    tool.rows(4);
    let header = tool.header.clone();
    (header, tool.stop().quietly(), client, server)
}

/// C, A, X and X of a connection.
fn rows(client: &End, server: &End) -> Vec<String> {
    vec![
        client.row('C'),
        server.row('A'),
        client.row('X'),
        server.row('X'),
    ]
}

fn verbose_rows(client: &End, server: &End) -> Vec<String> {
    vec![
        client.verbose_row("connect"),
        server.verbose_row("accept"),
        client.verbose_row("close"),
        server.verbose_row("close"),
    ]
}

fn netns_rows(world: &World, (client, server): &(End, End)) -> Vec<String> {
    let netns = world.netns.inode;
    vec![
        client.netns_row("connect", netns),
        server.netns_row("accept", netns),
        client.netns_row("close", netns),
        server.netns_row("close", netns),
    ]
}

/// Cuts the first column off. It is a number, padded to `width` on the right.
#[track_caller]
fn cut_time(row: &str, width: usize) -> (f64, String) {
    let (column, rest) = row.split_at(width);
    let number = column.trim_end_matches(' ');
    let time = number.parse().expect("a time");
    assert_eq!(format!("{number:<width$}"), column);
    (time, rest.into())
}

/// Cuts the columns of `-x` off, each padded on the right.
#[track_caller]
fn cut_extended(row: &str, body: usize) -> (String, [String; 6]) {
    let (body, mut rest) = row.split_at(body);
    let cells = [12, 12, 10, 10, 7, 8].map(|width: usize| {
        let (cell, after) = rest.split_at(width + 1);
        rest = after;
        let cell = cell.strip_prefix(' ').expect("a separator");
        cell.trim_end_matches(' ').to_owned()
    });
    assert_eq!(rest, "");
    (body.into(), cells)
}

/// The first is zero, the others are not negative.
#[track_caller]
fn assert_times(times: &[f64]) {
    assert_eq!(times[0], 0.0, "{times:?}");
    assert!(times.iter().all(|t| (0.0..1e10).contains(t)), "{times:?}");
}

fn plain() {
    let mut world = World::new();
    let (header, actual, client, server) = lines(&mut world, "127.0.0.1:0", &[]);
    assert_eq!(header, header_of(false));
    assert_same(actual, rows(&client, &server));
}

fn plain_ipv6() {
    let mut world = World::new();
    let (_, actual, client, server) = lines(&mut world, "[::1]:0", &[]);
    assert!(
        client
            .body()
            .contains(" 6  [::1]            [::1]            ")
    );
    assert_same(actual, rows(&client, &server));
}

fn timestamp() {
    let mut world = World::new();
    let (got, actual, client, server) = lines(&mut world, "127.0.0.1:0", &["-t"]);
    assert_eq!(
        got,
        header(
            "TIME(s)··T··PID····COMM·············IP·SADDR············DADDR············SPORT··DPORT·"
        )
    );
    assert!(actual[0].starts_with("0.000    "), "{actual:?}");
    let (times, actual): (Vec<f64>, _) = actual
        .iter()
        .map(|row| {
            let (seconds, decimals) = row.split_once('.').expect("a decimal point");
            assert!(seconds.parse::<u64>().is_ok(), "{row}");
            assert_eq!(decimals.find(' '), Some(3), "{row}");
            cut_time(row, 9)
        })
        .unzip();
    assert_times(&times);
    assert_same(actual, rows(&client, &server));
}

/// Without `-N`, so that the namespaces are written: by the cgroup of these worlds' processes.
#[track_caller]
fn verbose_on<'w>(cgroup: &Cgroup, worlds: impl IntoIterator<Item = &'w World>) -> (Pin, Tool) {
    for world in worlds {
        cgroup.add(world.client.pid());
        cgroup.add(world.server.pid());
    }
    let pin = Pin::hash();
    pin.insert(cgroup.id());
    let tool = Tool::start(["-v", "--cgroupmap", pin.path()]);
    (pin, tool)
}

fn verbose() {
    let cgroup = Cgroup::new();
    let mut world = World::new();
    let to = world.server.listen("127.0.0.1:0");
    let (_pin, mut tool) = verbose_on(&cgroup, [&world]);
    assert_eq!(
        tool.header,
        header(
            "TYPE·········PID····COMM·············IP·SADDR············DADDR············SPORT··DPORT··NETNS···"
        )
    );
    let ends = world.visit(to);
    tool.rows(4);
    assert_same(tool.stop().quietly(), netns_rows(&world, &ends));
}

fn verbose_of_one_netns() {
    let mut world = World::new();
    let (header, actual, client, server) = lines(&mut world, "127.0.0.1:0", &["-v"]);
    assert_eq!(header, header_of(true));
    assert_same(actual, verbose_rows(&client, &server));
}

fn verbose_timestamp() {
    let mut world = World::new();
    let netns = world.netns.inode;
    let to = world.server.listen("127.0.0.1:0");
    // By pid, so that the first row is one of ours and the namespace is written.
    let mut tool = Tool::start(["-t", "-v", "-p", &world.client.pid().to_string()]);
    assert_eq!(
        tool.header,
        header(
            "TIME(ns)······TYPE·········PID····COMM·············IP·SADDR············DADDR············SPORT··DPORT··NETNS···"
        )
    );
    let (client, _) = world.visit(to);
    tool.rows(2);
    let actual = tool.stop().quietly();
    assert!(
        actual[0].starts_with("0             connect "),
        "{actual:?}"
    );
    let (times, actual): (Vec<f64>, Vec<String>) = actual
        .iter()
        .map(|row| {
            assert!(!row[..14].contains('.'), "{row}");
            cut_time(row, 14)
        })
        .unzip();
    assert_times(&times);
    assert_eq!(
        actual,
        [
            client.netns_row("connect", netns),
            client.netns_row("close", netns)
        ]
    );
}

fn extended() {
    let mut world = World::new();
    let to = world.server.listen("127.0.0.1:0");
    let mut tool = Tool::on(&world, &["-x"]);
    assert_eq!(
        tool.header,
        header_of(false) + " REASON       MS           TX_BYTES   RX_BYTES   RETRANS RTT(ms) "
    );
    let (client, server) = world.open(to);
    world.client.send(100_000);
    world.server.receive(100_000);
    world.server.send(7);
    world.client.receive(7);
    world.close();
    tool.rows(4);

    let width = client.row('C').len();
    let mut bodies = Vec::new();
    for row in tool.stop().quietly() {
        let (body, [reason, ms, sent, received, retransmits, rtt]) = cut_extended(&row, width);
        if body.starts_with('X') {
            let is_client = body == client.row('X');
            assert_eq!(reason, if is_client { "local" } else { "remote" }, "{row}");
            assert_eq!(sent, if is_client { "100000" } else { "7" }, "{row}");
            assert_eq!(received, if is_client { "7" } else { "100000" }, "{row}");
            assert!(ms.parse::<f64>().is_ok_and(|ms| ms > 0.0), "{row}");
            assert!(retransmits.parse::<u32>().is_ok(), "{row}");
            assert!(rtt.parse::<f64>().is_ok_and(|rtt| rtt >= 0.0), "{row}");
        } else {
            let cells = [reason, ms, sent, received, retransmits, rtt];
            assert_eq!(cells, ["-"; 6], "{row}");
        }
        bodies.push(body);
    }
    assert_same(bodies, rows(&client, &server));
}

fn verbose_timestamp_extended() {
    let mut world = World::new();
    let netns = world.netns.inode;
    let to = world.server.listen("127.0.0.1:0");
    let pid = world.client.pid().to_string();
    let mut tool = Tool::start(["-t", "-v", "-x", "-p", &pid]);
    assert_eq!(
        tool.header,
        header("TIME(ns)······")
            + &header_of(true)
            + "NETNS   "
            + " REASON       MS           TX_BYTES   RX_BYTES   RETRANS RTT(ms) "
    );
    let (client, _) = world.visit(to);
    tool.rows(2);
    let rows = tool.stop().quietly();
    for (row, name) in rows.iter().zip(["connect", "close"]) {
        let expected = client.netns_row(name, netns);
        let (_, rest) = cut_time(row, 14);
        let (body, [reason, ..]) = cut_extended(&rest, expected.len());
        assert_eq!(body, expected);
        assert_eq!(reason, if name == "close" { "local" } else { "-" });
    }
}

fn a_long_ipv6_address_is_not_truncated() {
    const LONG: &str = "fd12:3456:789a:1111:2222:3333:4444:5555";
    assert_eq!(LONG.len(), 39);
    let mut world = World::new();
    world.netns.add_address(&format!("{LONG}/128"));
    let (_, actual, client, server) = lines(&mut world, &format!("[{LONG}]:0"), &[]);
    assert!(
        client.body().contains(&format!("6  [{LONG}] [{LONG}] ")),
        "{client:?}"
    );
    assert_same(actual, rows(&client, &server));
}

fn a_v4_mapped_address_stays_ipv6() {
    let mut world = World::new();
    let port = world.server.listen("127.0.0.1:0").port();
    let mut tool = Tool::on(&world, &[]);
    let mapped = format!("[::ffff:127.0.0.1]:{port}").parse();
    let (client, server) = world.visit(mapped.expect("an address"));
    tool.rows(4);
    assert!(
        client
            .body()
            .contains("6  [::ffff:127.0.0.1] [::ffff:127.0.0.1] "),
        "{client:?}"
    );
    assert_same(tool.stop().quietly(), rows(&client, &server));
}

fn a_dual_stack_listener_has_v4_mapped_peers() {
    let mut world = World::new();
    let port = world.server.listen("[::]:0").port();
    let mut tool = Tool::on(&world, &[]);
    let to = format!("127.0.0.1:{port}").parse();
    let (client, server) = world.visit(to.expect("an address"));
    tool.rows(4);
    assert!(client.body().contains("4  127.0.0.1 "), "{client:?}");
    assert!(
        server.body().contains("6  [::ffff:127.0.0.1] "),
        "{server:?}"
    );
    assert_same(tool.stop().quietly(), rows(&client, &server));
}

fn namespaces_are_told_apart() {
    let cgroup = Cgroup::new();
    let mut worlds = [World::new(), World::new()];
    assert_ne!(worlds[0].netns.inode, worlds[1].netns.inode);
    let (_pin, mut tool) = verbose_on(&cgroup, &worlds);
    let mut expected = Vec::new();
    for world in &mut worlds {
        let to = world.server.listen("127.0.0.1:0");
        let ends = world.visit(to);
        expected.extend(netns_rows(world, &ends));
    }
    tool.rows(expected.len());
    assert_same(tool.stop().quietly(), expected);
}

fn a_row_is_written_at_once() {
    let netns = Netns::new();
    let mut server = Actor::inside(&netns, "server");
    let mut client = Actor::inside(&netns, "client");
    let to = server.listen("127.0.0.1:0");
    let mut tool = Tool::start(["-N", &netns.inode.to_string()]);
    // Nothing follows that could push a line out of a buffer.
    let end = client.connect(to);
    assert_eq!(tool.rows(1), [end.row('C')]);
    assert!(tool.runs());
    let end = server.accept();
    assert_eq!(tool.rows(2)[1], end.row('A'));
    assert!(tool.runs());
}
