/*!
Processes that make connections, one command at a time.

An actor is this binary again, started as [`ACTOR`]. It obeys one line at a time, each answered by one line: `ok …`,
`err <errno>` or `bad <why>`, so a test knows when something has been done. Its control channel is a Unix socket on stdin;
it ends with that, hence with the test. An actor may start others of its own, to which it hands lines on (`tell`), sockets
by inheritance (`spawn … NAME`) or by SCM_RIGHTS (`give`). What it knows to do is in `serve`.

There are methods for what most tests do. They name the sockets, so that a test need not.
*/

mod control;
mod load;
mod polled;
mod process;
mod ring;
mod serve;
mod strangers;

pub use control::channel;
pub use process::ACTOR;
pub use ring::knows_multishot;
pub use serve::{act, knows_mptcp};

use std::ffi::OsStr;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use nix::libc::{ECONNREFUSED, ECONNRESET, SYS_accept4, SYS_connect};

use control::read_line;
use process::{Process, sleeps_in};

use crate::{Cgroup, End, Netns, wait_until};

/// A process under the test's control. Killed on drop.
pub struct Actor {
    process: Process,
    control: UnixStream,
    /// The names of connections that the test has not named, the oldest first.
    connections: Vec<String>,
    /// How many names have been given.
    named: usize,
    /// Its name as the kernel shows it.
    pub comm: String,
}

impl Actor {
    /// Starts in the namespaces of the calling thread.
    pub fn here(comm: &str) -> Self {
        Self::with_raw_comm(comm.as_bytes(), comm)
    }

    /// Its name is `comm`, of which the tool is expected to make `shown`.
    pub fn with_raw_comm(comm: &[u8], shown: &str) -> Self {
        let (control, stdin) = channel().expect("a channel");
        let child = Command::new("/proc/self/exe")
            .arg(ACTOR)
            .stdin(stdin)
            .stdout(Stdio::null())
            .spawn()
            .expect("an actor starts");
        Self::named(child.into(), control, comm, shown)
    }

    /// One that a runtime has started, with the other end of a [`channel`] as its stdin. It has to be this process' child
    /// by now.
    pub fn adopted(pid: u32, control: UnixStream, comm: &str) -> Self {
        Self::named(Process::new(pid), control, comm.as_bytes(), comm)
    }

    fn named(process: Process, control: UnixStream, comm: &[u8], shown: &str) -> Self {
        let mut actor = Self {
            process,
            control,
            connections: Vec::new(),
            named: 0,
            comm: shown.into(),
        };
        let bytes: Vec<String> = comm.iter().map(u8::to_string).collect();
        actor.ask(&format!("name {}", bytes.join(",")));
        actor
    }

    /// Starts in a network namespace.
    pub fn inside(netns: &Netns, comm: &str) -> Self {
        netns.enter(|| Self::here(comm))
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Inode of its mount namespace.
    pub fn mntns(&self) -> u64 {
        let namespaces = self.shown().namespaces().expect("the actor runs");
        namespaces.0[OsStr::new("mnt")].identifier
    }

    /// Moves it into a cgroup.
    pub fn join(&self, cgroup: &Cgroup) {
        cgroup.add(self.pid());
    }

    /// Has it leave for a mount namespace of its own, and returns the inode of that.
    pub fn leave_mounts(&mut self) -> u64 {
        self.ask("leave-mounts");
        self.mntns()
    }

    /// Sends a line and waits for the answer, which has to be `ok`; returns what follows.
    #[track_caller]
    pub fn ask(&mut self, line: &str) -> String {
        self.begin(line);
        match self.line().split_once(' ') {
            Some(("ok", answer)) => answer.into(),
            other => panic!("{} answers {other:?} to '{line}'", self.comm),
        }
    }

    /// As [`Self::ask`], where the answer has to be an error; returns the errno.
    #[track_caller]
    pub fn ask_error(&mut self, line: &str) -> i32 {
        self.begin(line);
        match self.line().split_once(' ') {
            Some(("err", errno)) => errno.parse().expect("a number"),
            other => panic!("{} answers {other:?} to '{line}', not an error", self.comm),
        }
    }

    /// As [`Self::ask`], where the answer has to be an address.
    #[track_caller]
    pub fn address(&mut self, line: &str) -> SocketAddr {
        self.ask(line).parse().expect("an address")
    }

    /// Sends a line; the answer is to be fetched with [`Self::answer`] if it is waited for.
    #[track_caller]
    pub fn begin(&mut self, line: &str) {
        writeln!(&self.control, "{line}").expect("the actor listens");
    }

    #[track_caller]
    pub fn answer(&mut self) -> String {
        match self.line().split_once(' ') {
            Some(("ok", answer)) => answer.into(),
            other => panic!("{} answers {other:?}", self.comm),
        }
    }

    #[track_caller]
    fn line(&self) -> String {
        read_line(&self.control).unwrap_or_else(|e| panic!("{}: {e:#}", self.comm))
    }

    /// Waits until its main thread sleeps in `accept4`.
    #[track_caller]
    pub fn wait_until_it_accepts(&self) {
        self.wait_until_in(SYS_accept4);
    }

    /// Waits until its main thread sleeps in `connect`.
    #[track_caller]
    pub fn wait_until_it_connects(&self) {
        self.wait_until_in(SYS_connect);
    }

    #[track_caller]
    fn wait_until_in(&self, call: i64) {
        let shown = self.shown();
        wait_until("the actor blocks in the system call", || {
            sleeps_in(shown.syscall(), call)
        });
    }

    /// What the kernel tells of it.
    fn shown(&self) -> procfs::process::Process {
        procfs::process::Process::new(self.pid().cast_signed()).expect("the actor runs")
    }

    /// Starts a child actor called `comm`, which inherits the socket `name`; returns its pid.
    #[track_caller]
    pub fn spawn(&mut self, comm: &str, name: &str) -> u32 {
        self.ask(&format!("spawn {comm} {name}"))
            .parse()
            .expect("a pid")
    }

    /// Has the child actor obey a line.
    #[track_caller]
    pub fn tell(&mut self, comm: &str, line: &str) -> String {
        self.ask(&format!("tell {comm} {line}"))
    }

    /// Exits with its sockets open.
    pub fn exit(&mut self) {
        // Nobody listens if it has ended already.
        let _ = writeln!(&self.control, "exit");
        self.process.wait();
    }

    /// Ends it with its sockets open.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Listens; a free port is chosen for port 0.
    #[track_caller]
    pub fn listen(&mut self, address: &str) -> SocketAddr {
        self.address(&format!("listen l {address} reuseaddr"))
    }

    /// Stops to listen.
    #[track_caller]
    pub fn stop_listening(&mut self) {
        self.ask("close l");
    }

    #[track_caller]
    pub fn connect(&mut self, to: SocketAddr) -> End {
        let name = self.new_name();
        let local = self.address(&format!("connect {name} {to}"));
        self.keep(name, local, to)
    }

    /// Connects in a thread of that name.
    #[track_caller]
    pub fn connect_in_thread(&mut self, comm: &str, to: SocketAddr) -> End {
        let name = self.new_name();
        let local = self.address(&format!("connect-as {comm} {name} {to}"));
        End {
            comm: comm.into(),
            ..self.keep(name, local, to)
        }
    }

    /// Connects where nobody listens.
    #[track_caller]
    pub fn be_refused(&mut self, by: SocketAddr) {
        let name = self.new_name();
        assert_eq!(
            self.ask_error(&format!("connect {name} {by}")),
            ECONNREFUSED
        );
        self.ask(&format!("close {name}"));
    }

    #[track_caller]
    pub fn accept(&mut self) -> End {
        let name = self.new_name();
        let remote = self.address(&format!("accept {name} l"));
        let local = self.address(&format!("local {name}"));
        self.keep(name, local, remote)
    }

    /// Sends that many bytes over its last connection.
    #[track_caller]
    pub fn send(&mut self, bytes: usize) {
        let name = self.last().to_owned();
        self.ask(&format!("send {name} {bytes}"));
    }

    /// Receives that many bytes from its last connection.
    #[track_caller]
    pub fn receive(&mut self, bytes: usize) {
        let name = self.last().to_owned();
        self.ask(&format!("recv {name} {bytes}"));
    }

    /// Waits until the peer has reset its last connection.
    #[track_caller]
    pub fn be_reset(&mut self) {
        let name = self.last().to_owned();
        assert_eq!(self.ask_error(&format!("recv {name} 1")), ECONNRESET);
    }

    /// Closes its connections.
    #[track_caller]
    pub fn close(&mut self) {
        self.close_each(|_| "close");
    }

    /// Closes each of its connections once the peer's FIN or RST has come: a busy kernel delivers them later.
    #[track_caller]
    pub fn close_after_peer(&mut self) {
        self.close_each(|_| "outlast");
    }

    /// The same where its connections are with itself, first the client's end and then the server's.
    #[track_caller]
    pub fn close_with_itself(&mut self) {
        self.close_each(|number| match number % 2 {
            0 => "close",
            _ => "outlast",
        });
    }

    #[track_caller]
    fn close_each(&mut self, how: impl Fn(usize) -> &'static str) {
        for (number, name) in std::mem::take(&mut self.connections).iter().enumerate() {
            self.ask(&format!("{} {name}", how(number)));
        }
    }

    /// Gives its last connection to a child actor, and returns what both call it.
    #[track_caller]
    pub fn hand_over(&mut self, to: &str) -> String {
        let name = self.connections.pop().expect("a connection");
        self.ask(&format!("give {to} {name}"));
        self.ask(&format!("close {name}"));
        name
    }

    /// Makes and closes connections with itself until it is told to stop. Returns the port it listens on.
    #[track_caller]
    pub fn start_load(&mut self) -> u16 {
        self.address("start-load").port()
    }

    /// Returns how many connections the load has made.
    #[track_caller]
    pub fn stop_load(&mut self) -> usize {
        self.ask("stop-load").parse().expect("a number")
    }

    /// Connects to itself so many times, one after the other, and closes both ends.
    #[track_caller]
    pub fn visit_itself(&mut self, times: usize) {
        self.ask(&format!("visit-itself {times}"));
    }

    fn new_name(&mut self) -> String {
        self.named += 1;
        format!("connection-{}", self.named)
    }

    #[track_caller]
    fn last(&self) -> &str {
        self.connections.last().expect("a connection")
    }

    fn keep(&mut self, name: String, local: SocketAddr, remote: SocketAddr) -> End {
        self.connections.push(name);
        End {
            pid: self.pid(),
            comm: self.comm.clone(),
            local,
            remote,
        }
    }
}
