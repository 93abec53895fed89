//! How it ends: by a signal, by itself, with its reader. Nothing is left behind.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use libbpf_rs::query::{LinkInfoIter, MapInfoIter, ProgInfoIter};
use rustix::pipe::fcntl_setpipe_size;
use rustix::process::{Pid, Signal, kill_process};
use tcptracer_testing::{
    BANNER, DEADLINE, Pin, Tool, World, assert_no_pins, assert_same, header_of, is_there, stats,
    wait_until,
};

use crate::losses::total;

tcptracer_testing::tests![
    ctrl_c,
    sigterm,
    a_killed_tool_leaves_nothing,
    nothing_is_left_in_the_kernel,
    a_filter_map_stays_pinned,
    duration,
    stats_agree_with_the_rows,
    a_reader_that_leaves_ends_it,
    a_reader_that_left_before_the_start_ends_it,
    a_second_signal_ends_it_though_nobody_reads,
    output_waits_for_a_slow_reader,
    what_a_blocked_reader_makes_it_lose_is_reported,
    an_unwritable_stderr_does_not_matter,
    a_loss_is_survived_without_stderr,
];

/// A signal ends it well, after all rows.
#[track_caller]
fn assert_ended_by(signal: Signal) {
    let mut world = World::new();
    let to = world.server.listen("127.0.0.1:0");
    let tool = Tool::on(&world, &[]);
    let (client, server) = world.visit(to);
    world.netns.wait_until_closed();
    assert_same(
        tool.stop_by(signal).quietly(),
        vec![
            client.row('C'),
            server.row('A'),
            client.row('X'),
            server.row('X'),
        ],
    );
}

fn ctrl_c() {
    assert_ended_by(Signal::INT);
}

fn sigterm() {
    assert_ended_by(Signal::TERM);
}

/// Ids of what a tool holds in the kernel: programs, maps, links.
type Held = [BTreeSet<u32>; 3];

#[track_caller]
fn held(tool: &Tool) -> Held {
    let held = [tool.programs(), tool.maps(), tool.links()];
    for ids in &held {
        assert!(!ids.is_empty(), "{held:?}");
    }
    let names: Vec<String> = ProgInfoIter::default()
        .filter(|program| held[0].contains(&program.id))
        .map(|program| program.name.to_string_lossy().into_owned())
        .collect();
    assert_eq!(names.len(), held[0].len());
    assert!(
        names.iter().all(|name| name.starts_with("tt_")),
        "{names:?}"
    );
    held
}

/// The kernel frees things a moment after the last process has let go of them.
#[track_caller]
fn assert_gone([programs, maps, links]: &Held) {
    wait_until("its programs, maps and links go", || {
        !(ProgInfoIter::default().any(|p| programs.contains(&p.id))
            || MapInfoIter::default().any(|m| maps.contains(&m.id))
            || LinkInfoIter::default().any(|l| links.contains(&l.id)))
    });
}

fn nothing_is_left_in_the_kernel() {
    assert_no_pins(|| {
        for signal in [Signal::INT, Signal::TERM] {
            let world = World::new();
            let tool = Tool::on(&world, &["--failed", "--existing"]);
            let held = held(&tool);
            tool.stop_by(signal).quietly();
            assert_gone(&held);
        }
    });
}

fn a_killed_tool_leaves_nothing() {
    assert_no_pins(|| {
        let world = World::new();
        let tool = Tool::on(&world, &[]);
        let held = held(&tool);
        assert_eq!(tool.stop_by(Signal::KILL).status.code(), None);
        assert_gone(&held);
    });
}

fn a_filter_map_stays_pinned() {
    assert_no_pins(|| {
        let world = World::new();
        let pin = Pin::hash();
        pin.insert(1);
        Tool::on(&world, &["--cgroupmap", pin.path()])
            .stop()
            .quietly();
        assert!(is_there(Path::new(pin.path())));
        // Its key is still in it.
        pin.delete(1);
    });
}

fn duration() {
    let mut world = World::new();
    // Connections are made all the time: one alone might come too late.
    world.client.start_load();
    let start = Instant::now();
    let mut tool = Tool::on(&world, &["--duration", "1"]);
    let rows = tool.end().quietly();
    assert!(start.elapsed() >= Duration::from_secs(1));
    let connect = format!("C  {:<6} load ", world.client.pid());
    assert!(
        rows.iter().any(|row| row.starts_with(&connect)),
        "{connect} in {rows:?}"
    );
}

fn stats_agree_with_the_rows() {
    let mut world = World::new();
    let to = world.server.listen("127.0.0.1:0");
    let mut tool = Tool::on(&world, &["--stats"]);
    for _ in 0..5 {
        world.visit(to);
    }
    tool.rows(20);
    let ended = tool.stop();
    let rows = ended.rows.len() as u64;
    assert_eq!(rows, 20);
    let line = ended.with_one_line(0);
    assert_eq!(stats(&line), [rows, rows, 0], "{line}");
    assert!(line.contains("0 not followed for want of room"), "{line}");
}

/// A tool whose stdout the test does not read for it. Killed on drop.
struct Unread(Child);

impl Unread {
    fn start(world: &World, args: &[&str]) -> Self {
        let child = Tool::command()
            .args(["-N", &world.inode()])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        Self(child.expect("the tool can be run"))
    }

    /// Waits until it ends; its exit code and what it said on stderr.
    #[track_caller]
    fn end(mut self) -> (Option<i32>, String) {
        wait_until("the tool ends", || {
            self.0.try_wait().expect("it is our child").is_some()
        });
        let mut stderr = String::new();
        let mut pipe = self.0.stderr.take().expect("a stderr");
        pipe.read_to_string(&mut stderr).expect("it can be read");
        (self.0.wait().expect("it has ended").code(), stderr)
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn a_reader_that_leaves_ends_it() {
    let mut world = World::new();
    let to = world.server.listen("127.0.0.1:0");
    let mut tool = Unread::start(&world, &[]);
    let mut stdout = BufReader::new(tool.0.stdout.take().expect("a stdout"));
    let mut line = || {
        let mut line = String::new();
        stdout.read_line(&mut line).expect("a line");
        line
    };
    assert_eq!(line(), format!("{BANNER}\n"));
    assert_eq!(line(), format!("{}\n", header_of(false)));
    let client = world.client.connect(to);
    assert_eq!(line(), format!("{}\n", client.row('C')));
    // As head -3 does.
    drop(stdout);
    world.server.accept();
    assert_eq!(tool.end(), (Some(0), String::new()));
}

fn a_reader_that_left_before_the_start_ends_it() {
    let world = World::new();
    let mut tool = Unread::start(&world, &[]);
    drop(tool.0.stdout.take());
    assert_eq!(tool.end(), (Some(0), String::new()));
}

/// Makes the pipe from the tool as small as it can be, and waits for the header in it; returns its size.
fn shrink_pipe(tool: &Unread) -> usize {
    let stdout = tool.0.stdout.as_ref().expect("a stdout");
    let size = fcntl_setpipe_size(stdout, 4096).expect("a pipe can be made small");
    wait_until("the header comes", || {
        rustix::io::ioctl_fionread(stdout).expect("a pipe") > BANNER.len() as u64 + 2
    });
    size
}

/// Makes many more rows than the pipe from the tool can hold: it is blocked, or will be.
fn block(world: &mut World, tool: &Unread) {
    let size = shrink_pipe(tool);
    let to = world.server.listen("127.0.0.1:0");
    let mut written = 0;
    while written < 4 * size {
        let (client, server) = world.visit(to);
        written += 2 * (client.row('C').len() + server.row('A').len());
    }
}

fn a_second_signal_ends_it_though_nobody_reads() {
    let mut world = World::new();
    let mut tool = Unread::start(&world, &[]);
    block(&mut world, &tool);
    let pid = Pid::from_child(&tool.0);
    // Two that come at once count as one, so they are repeated until it is gone.
    let start = Instant::now();
    while tool.0.try_wait().expect("it is our child").is_none() {
        assert!(start.elapsed() < DEADLINE, "the tool does not end");
        kill_process(pid, Signal::INT).expect("it is our child");
        thread::sleep(Duration::from_millis(20));
    }
    let (code, stderr) = tool.end();
    assert_eq!((code, stderr), (Some(130), String::new()));
}

fn output_waits_for_a_slow_reader() {
    let mut world = World::new();
    let mut tool = Unread::start(&world, &["--stats"]);
    block(&mut world, &tool);
    let to = world.server.listen("127.0.0.1:0");
    let (client, server) = world.visit(to);
    world.netns.wait_until_closed();
    kill_process(Pid::from_child(&tool.0), Signal::INT).expect("it is our child");
    let mut text = String::new();
    let mut stdout = tool.0.stdout.take().expect("a stdout");
    stdout.read_to_string(&mut text).expect("UTF-8");
    for row in [
        client.row('C'),
        server.row('A'),
        client.row('X'),
        server.row('X'),
    ] {
        assert!(text.lines().any(|line| line == row), "{row} is missing");
    }
    let rows = text.lines().count() as u64 - 2;
    let (code, stderr) = tool.end();
    assert_eq!(code, Some(0));
    assert_eq!(stats(stderr.trim_end()), [rows, rows, 0], "{stderr}");
}

fn what_a_blocked_reader_makes_it_lose_is_reported() {
    // More events than the queue can hold, however they are batched.
    const CONNECTIONS: u64 = 35_000;
    let mut world = World::new();
    let mut tool = Unread::start(&world, &["--stats"]);
    shrink_pipe(&tool);
    let to = world.server.listen("127.0.0.1:0");
    for _ in 0..CONNECTIONS {
        world.visit(to);
    }
    world.netns.wait_until_closed();
    kill_process(Pid::from_child(&tool.0), Signal::INT).expect("it is our child");
    let mut text = String::new();
    let mut stdout = tool.0.stdout.take().expect("a stdout");
    stdout.read_to_string(&mut text).expect("UTF-8");
    let rows = text.lines().count() as u64 - 2;
    let (code, stderr) = tool.end();
    assert_eq!(code, Some(3), "{stderr}");
    let mut lines: Vec<String> = stderr.lines().map(Into::into).collect();
    let last = lines.pop().expect("the line of --stats");
    let lost = total(&lines, "events lost");
    assert!(lost > 0, "{stderr}");
    assert_eq!(rows + lost, 4 * CONNECTIONS, "{stderr}");
    assert_eq!(stats(&last), [rows + lost, rows, lost], "{stderr}");
}

/// A file that takes nothing.
fn full() -> File {
    let full = File::options().write(true).open("/dev/full");
    full.expect("the device that is full")
}

fn an_unwritable_stderr_does_not_matter() {
    let world = World::new();
    for (args, code) in [
        (["--duration", "1", "--stats"], 0),
        (["--cgroupmap", "/", "--stats"], 1),
    ] {
        let mut command = Tool::command();
        command.args(args).args(["-N", &world.inode()]);
        let status = command.stdout(Stdio::null()).stderr(full()).status();
        let status = status.expect("the tool can be run");
        assert_eq!(status.code(), Some(code), "{args:?}");
    }
}

fn a_loss_is_survived_without_stderr() {
    let mut world = World::new();
    let mut command = Tool::command();
    command.args(["-N", &world.inode(), "--max-connections", "2"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(full())
        .spawn()
        .expect("the tool can be run");
    let mut stdout = BufReader::new(child.stdout.take().expect("a stdout"));
    let mut tool = Unread(child);
    for _ in 0..2 {
        stdout.read_line(&mut String::new()).expect("a line");
    }
    let to = world.server.listen("127.0.0.1:0");
    for _ in 0..4 {
        world.open(to);
    }
    world.close();
    // Then there is room again.
    world.netns.wait_until_closed();
    let (client, _) = world.visit(to);
    world.netns.wait_until_closed();
    kill_process(Pid::from_child(&tool.0), Signal::INT).expect("it is our child");
    let mut text = String::new();
    stdout.read_to_string(&mut text).expect("UTF-8");
    assert!(text.contains(&client.row('X')), "{text}");
    wait_until("the tool ends", || {
        tool.0.try_wait().expect("it is our child").is_some()
    });
    assert_eq!(tool.0.wait().expect("it has ended").code(), Some(3));
}
