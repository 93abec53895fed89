//! The tool, run as a person or a script runs it.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsStr;
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use procfs::process::Process;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::lines::{Lines, Next};
use crate::{BANNER, DEADLINE, World};

/// A running tool, whose stdout and stderr are pipes that are read. Killed on drop.
pub struct Tool {
    child: Child,
    out: Lines,
    err: Lines,
    rows: Vec<String>,
    /// The second line.
    pub header: String,
    /// Connections of its port are none of the test's. It keeps others from that port.
    beacon: Option<TcpListener>,
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
        Command::new(program("tcptracer"))
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
            let beacon = TcpListener::bind("[::]:0").expect("a listener");
            let port = port_of(&beacon);
            tool.beacon = Some(beacon.try_clone().expect("a listener"));
            while !tool.take_next() {
                assert!(start.elapsed() < DEADLINE, "the tool reports nothing");
                let _stream =
                    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("a connection");
                beacon.accept().expect("an accepted connection");
            }
        });
        tool
    }

    /// Takes its next line, for which it waits a moment, and says whether there was one.
    #[track_caller]
    fn take_next(&mut self) -> bool {
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
        let is_beacon = self.beacon.as_ref().map(port_of).is_some_and(|port| {
            let object = object(&line);
            object["sport"] == port || object["dport"] == port
        });
        if !is_beacon {
            self.rows.push(line);
        }
    }

    /// Ids of the programs that it holds.
    pub fn programs(&self) -> BTreeSet<u32> {
        ids_of(self.child.id(), "prog_id:")
    }

    /// Ids of the maps that it holds.
    pub fn maps(&self) -> BTreeSet<u32> {
        ids_of(self.child.id(), "map_id:")
    }

    /// Ids of the links that it holds.
    pub fn links(&self) -> BTreeSet<u32> {
        ids_of(self.child.id(), "link_id:")
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

/// A program of this project, which is built beside the tests.
pub fn program(name: &str) -> PathBuf {
    let test = env::current_exe().expect("the test's own path");
    let built = test
        .ancestors()
        .nth(2)
        .expect("the folder of what is built");
    let program = built.join(name);
    assert!(
        program.exists(),
        "{} is missing: cargo build",
        program.display()
    );
    program
}

/// What the kernel tells about the file descriptors of a process, by the key; nothing if it has ended.
pub fn ids_of(pid: u32, key: &str) -> BTreeSet<u32> {
    let Ok(process) = Process::new(pid.cast_signed()) else {
        return BTreeSet::new();
    };
    let files = process.fd().into_iter().flatten().flatten();
    files
        .filter_map(|file| {
            let info = process.open_relative(format!("fdinfo/{}", file.fd));
            // procfs has no type for what the kernel writes there.
            let info = io::read_to_string(info.ok()?).ok()?;
            let line = info.lines().find_map(|line| line.strip_prefix(key))?;
            line.trim().parse().ok()
        })
        .collect()
}

fn port_of(listener: &TcpListener) -> u16 {
    listener.local_addr().expect("an address").port()
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
