//! `-o json`.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use jiff::Timestamp;
use serde_json::Value;

use tcptracer_testing::{End, Tool, World, header_of};

tcptracer_testing::tests![
    the_fields_of_each_type,
    the_fields_of_an_existing_connection,
    one_id_from_open_to_close,
    times_are_rfc_3339_and_agree,
    who_and_where,
    addresses_have_no_brackets,
    bytes_are_exact,
    reasons,
    a_socket_destroyed_from_outside,
    options_of_the_table_do_not_matter,
];

const COMMON: &str = "type time id role pid tid uid comm source cgroup_id mntns netns \
                      ip saddr daddr sport dport";
const OPENED_CLIENT: &str = "syn established handshake_ns";
const OPENED_SERVER: &str = "established accepted accept_wait_ns";
const CLOSED: &str = "duration_ns reason first_fin closer_pid closer_comm";
const COUNTERS: &str = "bytes_sent bytes_received segments_sent segments_received retransmits \
                        srtt_us";

#[track_caller]
fn assert_fields(object: &Value, expected: &[&str]) {
    let actual: BTreeSet<&str> = object
        .as_object()
        .expect("an object")
        .keys()
        .map(String::as_str)
        .collect();
    let expected: BTreeSet<&str> = expected.iter().flat_map(|f| f.split_whitespace()).collect();
    assert_eq!(actual, expected, "{object}");
}

/// The events of a connection: of the client and of the server, open and close.
struct Events {
    client: [Value; 2],
    server: [Value; 2],
}

/// Opens a connection, sends over it both ways and closes it, the client first.
#[track_caller]
fn session() -> (World, Events, [End; 2]) {
    let mut world = World::new();
    let to = world.server.listen("127.0.0.1:0");
    let mut tool = Tool::json_on(&world, &[]);
    let (client, server) = world.open(to);
    world.client.send(9);
    world.server.receive(9);
    world.server.send(9);
    world.client.receive(9);
    world.close();
    let objects = tool.objects(4);
    assert_eq!(tool.stop().quietly().len(), 4);
    let events = Events {
        client: events_of(&objects, &client),
        server: events_of(&objects, &server),
    };
    (world, events, [client, server])
}

/// The two events of an end.
#[track_caller]
fn events_of(objects: &[Value], end: &End) -> [Value; 2] {
    let own: Vec<Value> = objects
        .iter()
        .filter(|o| o["sport"] == end.local.port() && o["dport"] == end.remote.port())
        .cloned()
        .collect();
    own.try_into()
        .unwrap_or_else(|own| panic!("not two events: {own:#?}"))
}

fn the_fields_of_each_type() {
    let (_, events, _) = session();
    let [connect, close] = &events.client;
    assert_eq!(
        (&connect["type"], &close["type"]),
        (&"connect".into(), &"close".into())
    );
    assert_fields(connect, &[COMMON, OPENED_CLIENT]);
    assert_fields(close, &[COMMON, OPENED_CLIENT, CLOSED, COUNTERS]);
    let [accept, close] = &events.server;
    assert_eq!(
        (&accept["type"], &close["type"]),
        (&"accept".into(), &"close".into())
    );
    assert_fields(accept, &[COMMON, OPENED_SERVER]);
    assert_fields(close, &[COMMON, OPENED_SERVER, CLOSED, COUNTERS]);
}

fn the_fields_of_an_existing_connection() {
    let mut world = World::new();
    let to = world.server.listen("127.0.0.1:0");
    let (client, server) = world.open(to);
    world.client.send(3);
    world.server.receive(3);
    let mut tool = Tool::json_on(&world, &["--existing"]);
    let objects = tool.objects(2);
    world.close();
    let objects = [objects, tool.objects(4).split_off(2)].concat();
    assert_eq!(tool.stop().quietly().len(), 4);
    for (end, role, sent) in [(&client, "client", 3), (&server, "server", 0)] {
        let [existing, close] = events_of(&objects, end);
        assert_fields(&existing, &[COMMON, COUNTERS]);
        assert_fields(
            &close,
            &[COMMON, CLOSED.trim_start_matches("duration_ns"), COUNTERS],
        );
        for object in [&existing, &close] {
            assert_eq!(object["pid"], end.pid, "{object}");
            assert_eq!(object["comm"], end.comm.as_str(), "{object}");
            assert_eq!(object["role"], role, "{object}");
            assert_eq!(object["source"], "snapshot", "{object}");
            assert_eq!(object["bytes_sent"], sent, "{object}");
        }
        assert_eq!(existing["type"], "existing");
        assert_eq!(existing["id"], close["id"]);
    }
}

fn one_id_from_open_to_close() {
    let (_, events, _) = session();
    let ids = [&events.client, &events.server].map(|[open, close]| {
        assert_eq!(open["id"], close["id"]);
        let id = open["id"].as_str().expect("a string");
        id.parse::<u64>().expect("a socket's cookie")
    });
    assert_ne!(ids[0], ids[1]);
}

/// An RFC 3339 time in UTC, in nanoseconds.
#[track_caller]
fn time(object: &Value, field: &str) -> i128 {
    let text = object[field].as_str().expect(field);
    assert!(text.ends_with('Z') && text[10..].starts_with('T'), "{text}");
    let time: Timestamp = text.parse().expect("an RFC 3339 time");
    time.as_nanosecond()
}

#[track_caller]
fn nanos(object: &Value, field: &str) -> i128 {
    object[field].as_u64().expect(field).into()
}

fn times_are_rfc_3339_and_agree() {
    let before = Timestamp::now().as_nanosecond();
    let (_, events, _) = session();
    let after = Timestamp::now().as_nanosecond();
    // The clock of the events is related to that of the day to a millisecond.
    let slack = 10_000_000;

    for [open, close] in [&events.client, &events.server] {
        assert_eq!(open["established"], close["established"]);
        let established = time(open, "established");
        assert!((before - slack..=after + slack).contains(&established));
        let (fin, end) = (time(close, "first_fin"), time(close, "time"));
        assert!(established <= fin && fin <= end, "{close}");
        assert_eq!(nanos(close, "duration_ns"), end - established);
    }
    let [connect, close] = &events.client;
    assert_eq!(connect["syn"], close["syn"]);
    assert_eq!(connect["time"], connect["established"]);
    assert_eq!(
        nanos(connect, "handshake_ns"),
        time(connect, "established") - time(connect, "syn")
    );
    let [accept, close] = &events.server;
    assert_eq!(accept["accepted"], close["accepted"]);
    assert_eq!(accept["time"], accept["accepted"]);
    assert_eq!(
        nanos(accept, "accept_wait_ns"),
        time(accept, "accepted") - time(accept, "established")
    );
}

fn who_and_where() {
    let (world, events, [client, server]) = session();
    for (objects, end, actor, role, source) in [
        (&events.client, client, &world.client, "client", "connect"),
        (&events.server, server, &world.server, "server", "accept"),
    ] {
        for object in objects {
            assert_eq!(object["role"], role, "{object}");
            assert_eq!(object["source"], source, "{object}");
            assert_eq!(object["pid"], end.pid, "{object}");
            assert_eq!(object["tid"], end.pid, "{object}");
            assert_eq!(object["uid"], 0, "{object}");
            assert_eq!(object["comm"], end.comm.as_str(), "{object}");
            assert_eq!(object["mntns"], actor.mntns(), "{object}");
            assert_eq!(object["netns"], world.netns.inode, "{object}");
            assert_eq!(object["ip"], 4, "{object}");
            assert_eq!(object["saddr"], end.local.ip().to_string(), "{object}");
            assert_eq!(object["daddr"], end.remote.ip().to_string(), "{object}");
            assert!(object["cgroup_id"].is_u64(), "{object}");
        }
        assert_eq!(objects[1]["closer_pid"], end.pid);
        assert_eq!(objects[1]["closer_comm"], end.comm.as_str());
    }
}

fn bytes_are_exact() {
    let mut world = World::new();
    let to = world.server.listen("127.0.0.1:0");
    let mut tool = Tool::json_on(&world, &[]);
    let cases = [(0, 0), (1, 0), (123_457, 3), (5, 1_000_001)];
    let all = cases.map(|(to_server, to_client)| {
        let ends = world.open(to);
        world.client.send(to_server);
        world.server.receive(to_server);
        // More than the buffers hold: the client has to receive while the server sends.
        let mut left = to_client;
        while left > 0 {
            let part = left.min(50_000);
            world.server.send(part);
            world.client.receive(part);
            left -= part;
        }
        world.close();
        ends
    });
    let objects = tool.objects(4 * cases.len());
    tool.stop().quietly();
    for ((to_server, to_client), (client, server)) in cases.into_iter().zip(all) {
        for (end, sent, received) in [
            (client, to_server, to_client),
            (server, to_client, to_server),
        ] {
            let [_, close] = events_of(&objects, &end);
            assert_eq!(close["bytes_sent"], sent, "{close}");
            assert_eq!(close["bytes_received"], received, "{close}");
            assert!(close["segments_sent"].as_u64() >= Some(1), "{close}");
            assert!(close["segments_received"].as_u64() >= Some(1), "{close}");
        }
    }
}

fn addresses_have_no_brackets() {
    let mut world = World::new();
    let port = world.server.listen("127.0.0.1:0").port();
    let mut tool = Tool::json_on(&world, &[]);
    let mapped = format!("[::ffff:127.0.0.1]:{port}").parse();
    let (client, server) = world.visit(mapped.expect("an address"));
    let to = world.server.listen("[::1]:0");
    let (six, _) = world.visit(to);
    let objects = tool.objects(8);
    tool.stop().quietly();
    for (end, ip, address) in [
        (client, 6, "::ffff:127.0.0.1"),
        (server, 4, "127.0.0.1"),
        (six, 6, "::1"),
    ] {
        for event in events_of(&objects, &end) {
            assert_eq!(event["ip"], ip, "{event}");
            assert_eq!(event["saddr"], address, "{event}");
            assert_eq!(event["daddr"], address, "{event}");
        }
    }
}

fn reasons() {
    let (_, events, _) = session();
    assert_eq!(events.client[1]["reason"], "local");
    assert_eq!(events.server[1]["reason"], "remote");

    // Closed with data unread: the kernel sends a RST.
    let mut world = World::new();
    let to = world.server.listen("127.0.0.1:0");
    let mut tool = Tool::json_on(&world, &[]);
    let (client, server) = world.open(to);
    world.client.send(10);
    world.server.receive(4);
    world.server.close();
    world.client.be_reset();
    world.client.close();
    let objects = tool.objects(4);
    tool.stop().quietly();
    let [_, close] = events_of(&objects, &server);
    assert_eq!(close["reason"], "reset-local", "{close}");
    assert_eq!(close["closer_pid"], server.pid, "{close}");
    assert_fields(
        &close,
        &[
            COMMON,
            OPENED_SERVER,
            CLOSED.replace("first_fin ", "").as_str(),
            COUNTERS,
        ],
    );
    let [_, close] = events_of(&objects, &client);
    assert_eq!(close["reason"], "reset-remote", "{close}");
    assert_eq!(close["errno"], 104, "{close}");
}

/// By `ss -tK`, which the event names as the closer.
fn a_socket_destroyed_from_outside() {
    let mut world = World::new();
    let to = world.server.listen("127.0.0.1:0");
    let mut tool = Tool::json_on(&world, &[]);
    let (client, server) = world.open(to);
    let port = client.local.port().to_string();
    let status = world.netns.enter(|| {
        Command::new("ss")
            .args(["-tK", "sport", "=", &port])
            .stdout(Stdio::null())
            .status()
            .expect("ss runs")
    });
    assert!(status.success(), "ss -tK: {status}");
    world.close();
    let objects = tool.objects(4);
    tool.stop().quietly();
    let [_, close] = events_of(&objects, &client);
    assert_eq!(close["reason"], "abort", "{close}");
    assert_eq!(close["errno"], 103, "{close}");
    assert_eq!(close["closer_comm"], "ss", "{close}");
    assert_eq!(close["pid"], client.pid, "{close}");
    let [_, close] = events_of(&objects, &server);
    assert_eq!(close["reason"], "reset-remote", "{close}");
}

fn options_of_the_table_do_not_matter() {
    let mut world = World::new();
    let to = world.server.listen("127.0.0.1:0");
    let mut tool = Tool::json_on(&world, &["-t", "-v", "-x"]);
    let (client, _) = world.visit(to);
    let [connect, _] = events_of(&tool.objects(4), &client);
    assert_fields(&connect, &[COMMON, OPENED_CLIENT]);
    let lines = tool.stop().quietly();
    assert!(!lines.contains(&header_of(true)), "{lines:?}");
}
