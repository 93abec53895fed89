//! A process chooses its own name; nothing in it may reach a terminal raw.

use tcptracer_testing::{Actor, Netns, Tool, World, assert_same};

tcptracer_testing::tests![in_the_table, in_json];

/// Names and what is to be shown of them. At most 15 bytes count.
const NAMES: &[(&[u8], &str)] = &[
    (b"\x1b[31m\n", "?[31m?"),
    (b"a b\tc", "a b?c"),
    (b"\x7fdel\rcr", "?del?cr"),
    (b"\"quoted\\\"", "\"quoted\\\""),
    (b"bad\xff\xfeutf8", "bad\u{fffd}\u{fffd}utf8"),
    ("\u{202e}rtl\u{9b}csi".as_bytes(), "?rtl?csi"),
    ("größe".as_bytes(), "größe"),
    (b"123456789012345678", "123456789012345"),
];

fn in_the_table() {
    let netns = Netns::new();
    let mut server = Actor::inside(&netns, "server");
    let to = server.listen("127.0.0.1:0");
    let mut tool = Tool::start(["-N", &netns.inode.to_string()]);
    let mut expected = Vec::new();
    for (comm, shown) in NAMES {
        let mut client = netns.enter(|| Actor::with_raw_comm(comm, shown));
        let end = client.connect(to);
        let accepted = server.accept();
        client.close();
        server.close();
        expected.extend([
            end.row('C'),
            accepted.row('A'),
            end.row('X'),
            accepted.row('X'),
        ]);
    }
    tool.rows(expected.len());
    let rows = tool.stop().quietly();
    assert!(!rows.concat().contains(char::is_control));
    assert_same(rows, expected);
}

fn in_json() {
    let mut world = World::new();
    let to = world.server.listen("127.0.0.1:0");
    let mut tool = Tool::json_on(&world, &[]);
    for (count, (comm, shown)) in NAMES.iter().enumerate() {
        world.client = world.netns.enter(|| Actor::with_raw_comm(comm, shown));
        let (client, _) = world.visit(to);
        let objects = tool.objects(4 * (count + 1));
        let mut names = Vec::new();
        for object in objects.iter().filter(|o| o["pid"] == client.pid) {
            names.push(&object["comm"]);
            names.extend(object.get("closer_comm"));
        }
        assert_eq!(names, [shown; 3], "{objects:#?}");
    }
    let lines = tool.stop().quietly().concat();
    assert!(!lines.contains(char::is_control), "{lines:?}");
}
