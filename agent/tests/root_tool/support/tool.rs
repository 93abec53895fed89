//! The tool, run as a person or a script runs it.

use std::ffi::OsStr;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::lines::{Lines, Next};
use super::{BANNER, DEADLINE, World};

/// A running tool, whose stdout and stderr are pipes that are read. Killed on drop.
pub struct Tool {
    child: Child,
    out: Lines,
    err: Lines,
    rows: Vec<String>,
    /// The second line.
    pub header: String,
    /// Connections of this port are none of the test's.
    beacon: Option<u16>,
}

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub rows: Vec<String>,
    pub stderr: Vec<String>,
}

impl Ended {
    /// By itself, well, and without a word.
    #[track_caller]
    pub fn quietly(self) -> Vec<String> {
        assert_eq!(self.status.code(), Some(0), "{self:?}");
        assert!(self.stderr.is_empty(), "{self:?}");
        self.rows
    }

    /// With this exit code and a single line on stderr, which is returned.
    #[track_caller]
    pub fn with_one_line(self, code: i32) -> String {
        assert_eq!(self.status.code(), Some(code), "{self:?}");
        match &self.stderr[..] {
            [line] => line.clone(),
            _ => panic!("not exactly one line on stderr: {self:?}"),
        }
    }
}

impl Tool {
    /// The command, to which arguments can be added.
    pub fn command() -> Command {
        Command::new(env!("CARGO_BIN_EXE_tcptracer"))
    }

    /// Runs it and takes over its output.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the tool can be run");
        Self {
            out: Lines::of(child.stdout.take().expect("a stdout")),
            err: Lines::of(child.stderr.take().expect("a stderr")),
            child,
            rows: Vec::new(),
            header: String::new(),
            beacon: None,
        }
    }

    /// Runs it until it traces.
    pub fn start<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Self {
        let mut tool = Self::spawn(Self::command().args(args));
        tool.wait_for_header();
        tool
    }

    /// Runs it until it traces, on the connections of this world only.
    pub fn on(world: &World, args: &[&str]) -> Self {
        let inode = world.inode();
        Self::start(args.iter().copied().chain(["-N", &inode]))
    }

    /// The same with JSON. That it traces shows when it reports a connection, so some are made.
    pub fn json_on(world: &World, args: &[&str]) -> Self {
        let mut tool = Self::spawn(
            Self::command()
                .args(["-o", "json", "-N", &world.inode()])
                .args(args),
        );
        let start = Instant::now();
        world.netns.enter(|| {
            let beacon = TcpListener::bind("127.0.0.1:0").expect("a listener");
            let address = beacon.local_addr().expect("an address");
            tool.beacon = Some(address.port());
            while !tool.has_written() {
                assert!(start.elapsed() < DEADLINE, "the tool reports nothing");
                let _stream = TcpStream::connect(address).expect("a connection");
                beacon.accept().expect("an accepted connection");
            }
        });
        tool
    }

    /// Whether there has been a line; waits a moment for one.
    #[track_caller]
    fn has_written(&mut self) -> bool {
        match self.out.next_within(Duration::from_millis(20)) {
            Next::Line(line) => self.take(line),
            Next::Nothing => return false,
            Next::End => panic!("the tool does not run: {:?}", self.end()),
        }
        true
    }

    /// Waits until it traces: that is when the banner and the header come.
    #[track_caller]
    pub fn wait_for_header(&mut self) {
        let banner = self.out.next_within(DEADLINE);
        if banner != Next::Line(BANNER.into()) {
            panic!("{banner:?} instead of the banner; {:?}", self.end());
        }
        match self.out.next_within(DEADLINE) {
            Next::Line(header) => self.header = header,
            other => panic!("{other:?} instead of the header"),
        }
    }

    /// Runs it to its end.
    pub fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Ended {
        Self::spawn(Self::command().args(args)).end()
    }

    /// Waits until so many rows have been written in all.
    #[track_caller]
    pub fn rows(&mut self, count: usize) -> &[String] {
        let start = Instant::now();
        while self.rows.len() < count {
            let left = DEADLINE.saturating_sub(start.elapsed());
            match self.out.next_within(left) {
                Next::Line(line) => self.take(line),
                other => panic!("{other:?} instead of {count} rows after {:#?}", self.rows),
            }
        }
        &self.rows
    }

    /// Waits for a row.
    #[track_caller]
    pub fn row(&mut self, expected: &str) {
        let start = Instant::now();
        while !self.rows.iter().any(|row| row == expected) {
            let left = DEADLINE.saturating_sub(start.elapsed());
            match self.out.next_within(left) {
                Next::Line(line) => self.take(line),
                other => panic!("{other:?} instead of\n{expected}\nafter {:#?}", self.rows),
            }
        }
    }

    /// Waits until so many objects have been written in all, and parses them.
    #[track_caller]
    pub fn objects(&mut self, count: usize) -> Vec<Value> {
        self.rows(count).iter().map(|row| object(row)).collect()
    }

    /// Waits for a line on stderr.
    #[track_caller]
    pub fn complaint(&mut self) -> String {
        match self.err.next_within(DEADLINE) {
            Next::Line(line) => line,
            other => panic!("{other:?} instead of a line on stderr"),
        }
    }

    fn take(&mut self, line: String) {
        let is_beacon = self.beacon.is_some_and(|port| {
            let object = object(&line);
            object["sport"] == port || object["dport"] == port
        });
        if !is_beacon {
            self.rows.push(line);
        }
    }

    /// Ids of the programs that it holds.
    pub fn programs(&self) -> Vec<u32> {
        self.ids_of("prog_id:")
    }

    /// Ids of the maps that it holds.
    pub fn maps(&self) -> Vec<u32> {
        self.ids_of("map_id:")
    }

    /// Ids of the links that it holds.
    pub fn links(&self) -> Vec<u32> {
        self.ids_of("link_id:")
    }

    /// What the kernel tells about the file descriptors.
    fn ids_of(&self, key: &str) -> Vec<u32> {
        let directory = format!("/proc/{}/fdinfo", self.child.id());
        let files = fs::read_dir(directory).expect("the tool runs");
        let mut ids: Vec<u32> = files
            .filter_map(|file| fs::read_to_string(file.ok()?.path()).ok())
            .filter_map(|info| {
                let line = info.lines().find_map(|line| line.strip_prefix(key))?;
                line.trim().parse().ok()
            })
            .collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the tool runs");
    }

    /// Ends it by Ctrl-C.
    #[track_caller]
    pub fn stop(self) -> Ended {
        self.stop_by(Signal::INT)
    }

    #[track_caller]
    pub fn stop_by(mut self, signal: Signal) -> Ended {
        self.signal(signal);
        self.end()
    }

    /// Waits until it ends.
    #[track_caller]
    pub fn end(&mut self) -> Ended {
        let start = Instant::now();
        let mut stderr = Vec::new();
        loop {
            match self
                .out
                .next_within(DEADLINE.saturating_sub(start.elapsed()))
            {
                Next::Line(line) => self.take(line),
                Next::End => break,
                Next::Nothing => panic!("the tool does not end; rows: {:#?}", self.rows),
            }
        }
        while let Next::Line(line) = self.err.next_within(DEADLINE) {
            stderr.push(line);
        }
        Ended {
            status: self.child.wait().expect("the tool ends"),
            rows: std::mem::take(&mut self.rows),
            stderr,
        }
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_none()
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn object(line: &str) -> Value {
    match serde_json::from_str(line) {
        Ok(value @ Value::Object(_)) => value,
        other => panic!("not an object: {other:?}: {line}"),
    }
}

/// The numbers of the `--stats` line: seen, written, lost.
#[track_caller]
pub fn stats(line: &str) -> [u64; 3] {
    let rest = line.strip_prefix("tcptracer: ").expect("the tool's name");
    let mut parts = rest.split(", ");
    let mut number = |unit: &str| {
        let part = parts.next().expect("a count");
        let (number, rest) = part.split_once(' ').expect("a count and its unit");
        assert!(rest.starts_with(unit), "{unit} is missing: {line}");
        number.parse().expect("a number")
    };
    [number("events seen"), number("written"), number("lost")]
}
