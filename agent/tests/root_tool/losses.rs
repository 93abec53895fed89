//! More than there is room for: what is missing is counted, to the last event.

use rustix::process::Signal;

use tcptracer_testing::{Tool, World, stats};

tcptracer_testing::tests![a_small_ring_overflows, too_many_connections_at_a_time];

/// The number before these words, from lines on stderr.
pub fn total(stderr: &[String], words: &str) -> u64 {
    stderr
        .iter()
        .filter(|line| line.contains(words))
        .map(|line| {
            let number = line.strip_prefix("tcptracer: ").expect("the tool's name");
            let (number, _) = number.split_once(' ').expect("a number and words");
            number.parse::<u64>().expect("a number")
        })
        .sum()
}

fn a_small_ring_overflows() {
    const CONNECTIONS: u64 = 500;
    let mut world = World::new();
    let to = world.server.listen("127.0.0.1:0");
    let mut tool = Tool::on(&world, &["--ring-size", "4096", "--stats"]);
    // Nobody reads the ring until it has been full.
    tool.signal(Signal::STOP);
    for _ in 0..CONNECTIONS {
        world.open(to);
    }
    world.close();
    world.netns.wait_until_closed();
    tool.signal(Signal::CONT);
    // Told while it runs, not only at the end.
    let complaint = tool.complaint();
    assert!(
        complaint.contains("events lost: the ring was full (--ring-size"),
        "{complaint}"
    );
    assert!(tool.runs());

    let mut ended = tool.stop();
    ended.stderr.insert(0, complaint);
    assert_eq!(ended.status.code(), Some(3), "{ended:?}");
    let line = ended.stderr.pop().expect("the line of --stats");
    let [seen, written, lost] = stats(&line);
    assert_eq!(written, ended.rows.len() as u64, "{line}");
    assert_eq!(lost, total(&ended.stderr, "the ring was full"), "{ended:?}");
    assert!(lost > 0, "{line}");
    assert_eq!(seen, written + lost, "{line}");
    assert_eq!(seen, 4 * CONNECTIONS, "{line}");
}

fn too_many_connections_at_a_time() {
    const CONNECTIONS: u64 = 10;
    let mut world = World::new();
    let to = world.server.listen("127.0.0.1:0");
    let mut tool = Tool::on(&world, &["--max-connections", "4", "--stats"]);
    for _ in 0..CONNECTIONS {
        world.open(to);
    }
    world.close();
    world.netns.wait_until_closed();
    let complaint = tool.complaint();
    assert!(
        complaint.contains("connections not followed: too many are open (--max-connections"),
        "{complaint}"
    );

    let mut ended = tool.stop();
    ended.stderr.insert(0, complaint);
    assert_eq!(ended.status.code(), Some(3), "{ended:?}");
    let line = ended.stderr.pop().expect("the line of --stats");
    // Each end that was followed has two rows, and none has one.
    let rows = ended.rows.len() as u64;
    let missed = 2 * CONNECTIONS - rows / 2;
    assert!(
        line.contains(&format!(
            "connections: {missed} not followed for want of room, {missed} ended untracked"
        )),
        "{ended:#?}\n{line}"
    );
    let told = total(&ended.stderr, "connections not followed");
    assert_eq!(told, missed, "{ended:#?}");
}
