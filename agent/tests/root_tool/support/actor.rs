/*!
Processes that make connections, one command at a time.

An actor is this binary again. It reads commands from its stdin and answers each with a line, so a
test knows when something has been done. It ends with its stdin, hence with the test.
*/

use std::ffi::CString;
use std::fs;
use std::io::{self, BufRead, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, Sender, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use rustix::thread::set_name;

use super::lines::{Lines, Next};
use super::{DEADLINE, End, Netns};

/// The first argument of an actor.
pub const ACTOR: &str = "actor";

/// The first argument of a process that an actor has given its connection to.
pub const HOLDER: &str = "holder";

/// How often a load makes a connection: often enough that some open and close at any moment, and seldom enough
/// that nothing is lost.
const LOAD_INTERVAL: Duration = Duration::from_millis(1);

/// A child of this process, one that it adopted as well. Killed and reaped on drop.
struct Process {
    pid: Pid,
    has_ended: bool,
}

impl Process {
    fn new(pid: u32) -> Self {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        Self {
            pid: pid.expect("a pid"),
            has_ended: false,
        }
    }

    fn kill(&mut self) {
        if !self.has_ended {
            let _ = kill_process(self.pid, Signal::KILL);
            self.wait();
        }
    }

    /// Until it ends.
    fn wait(&mut self) {
        if !self.has_ended {
            let _ = waitpid(Some(self.pid), WaitOptions::empty());
            self.has_ended = true;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A process under the test's control. Killed on drop.
pub struct Actor {
    process: Process,
    to: Option<ChildStdin>,
    from: Lines,
    pub comm: String,
}

impl Actor {
    /// Starts in the namespaces of the calling thread.
    pub fn here(comm: &str) -> Self {
        Self::with_raw_comm(comm.as_bytes(), comm)
    }

    /// Its name is `comm`, of which the tool is expected to make `shown`.
    pub fn with_raw_comm(comm: &[u8], shown: &str) -> Self {
        let mut child = Command::new("/proc/self/exe")
            .arg(ACTOR)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("an actor starts");
        let pid = child.id();
        Self::with_pipes_of(&mut child, pid, comm, shown)
    }

    /// One that a runtime has started, to which it left its own pipes. It has to be this process' child by now.
    pub fn adopted(runtime: &mut Child, pid: u32, comm: &str) -> Self {
        Self::with_pipes_of(runtime, pid, comm.as_bytes(), comm)
    }

    fn with_pipes_of(child: &mut Child, pid: u32, comm: &[u8], shown: &str) -> Self {
        let mut actor = Self {
            process: Process::new(pid),
            to: child.stdin.take(),
            from: Lines::of(child.stdout.take().expect("the actor has a stdout")),
            comm: shown.into(),
        };
        let bytes: Vec<String> = comm.iter().map(u8::to_string).collect();
        actor.tell(&format!("name {}", bytes.join(",")));
        actor
    }

    /// Starts in a network namespace.
    pub fn inside(netns: &Netns, comm: &str) -> Self {
        netns.enter(|| Self::here(comm))
    }

    pub fn pid(&self) -> u32 {
        self.process.pid.as_raw_nonzero().get().cast_unsigned()
    }

    /// Inode of its mount namespace.
    pub fn mntns(&self) -> u64 {
        fs::metadata(format!("/proc/{}/ns/mnt", self.pid()))
            .expect("the actor runs")
            .ino()
    }

    /// Listens; a free port is chosen for port 0.
    pub fn listen(&mut self, address: &str) -> SocketAddr {
        parse(&self.tell(&format!("listen {address}")))
    }

    pub fn connect(&mut self, to: SocketAddr) -> End {
        let answer = self.tell(&format!("connect {to}"));
        self.end(&answer)
    }

    /// Connects in a thread of that name.
    pub fn connect_in_thread(&mut self, comm: &str, to: SocketAddr) -> End {
        let answer = self.tell(&format!("connect-in-thread {comm} {to}"));
        End {
            comm: comm.into(),
            ..self.end(&answer)
        }
    }

    /// Connects where nobody listens.
    pub fn be_refused(&mut self, by: SocketAddr) {
        self.tell(&format!("be-refused {by}"));
    }

    pub fn accept(&mut self) -> End {
        let answer = self.tell("accept");
        self.end(&answer)
    }

    /// Sends that many bytes over its last connection.
    pub fn send(&mut self, bytes: usize) {
        self.tell(&format!("send {bytes}"));
    }

    /// Receives that many bytes from its last connection.
    pub fn receive(&mut self, bytes: usize) {
        self.tell(&format!("receive {bytes}"));
    }

    /// Closes its connections.
    pub fn close(&mut self) {
        self.tell("close");
    }

    /// Stops to listen.
    pub fn stop_listening(&mut self) {
        self.tell("stop-listening");
    }

    /// Starts a process called `holder` to hand a connection over to, and returns its pid.
    pub fn start_holder(&mut self) -> u32 {
        self.tell("start-holder").parse().expect("a pid")
    }

    /// Gives its last connection to the holder, which closes it after the peer has.
    pub fn hand_over(&mut self) {
        self.tell("hand-over");
    }

    /// Makes and closes connections with itself until it is told to stop. Returns the port it listens on.
    pub fn start_load(&mut self) -> u16 {
        self.tell("start-load").parse().expect("a port")
    }

    /// Connects to itself so many times, one after the other, and closes both ends.
    pub fn visit_itself(&mut self, times: usize) {
        self.tell(&format!("visit-itself {times}"));
    }

    /// Returns how many connections the load has made.
    pub fn stop_load(&mut self) -> usize {
        self.tell("stop-load").parse().expect("a number")
    }

    /// Ends it with its sockets open.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Exits with its sockets open.
    pub fn exit(&mut self) {
        drop(self.to.take());
        self.process.wait();
    }

    fn end(&self, answer: &str) -> End {
        let (local, remote) = answer.split_once(' ').expect("two addresses");
        End {
            pid: self.pid(),
            comm: self.comm.clone(),
            local: parse(local),
            remote: parse(remote),
        }
    }

    /// Has it do something, for which nobody waits.
    pub fn begin(&mut self, command: &str) {
        let to = self.to.as_mut().expect("the actor runs");
        writeln!(to, "{command}").expect("the actor listens");
    }

    fn tell(&mut self, command: &str) -> String {
        self.begin(command);
        let Next::Line(answer) = self.from.next_within(DEADLINE) else {
            panic!("the actor does not answer to '{command}'");
        };
        match answer.strip_prefix("ok ") {
            Some(answer) => answer.into(),
            None => panic!("the actor cannot {command}: {answer}"),
        }
    }
}

fn parse(address: &str) -> SocketAddr {
    address.parse().expect("an address")
}

/// A client and a server in a network namespace of their own.
pub struct World {
    pub client: Actor,
    pub server: Actor,
    pub netns: Netns,
}

impl World {
    pub fn new() -> Self {
        let netns = Netns::new();
        Self {
            client: Actor::inside(&netns, "client"),
            server: Actor::inside(&netns, "server"),
            netns,
        }
    }

    /// Its namespace, as an argument of the tool.
    pub fn inode(&self) -> String {
        self.netns.inode.to_string()
    }

    /// The client's end and the server's.
    pub fn open(&mut self, to: SocketAddr) -> (End, End) {
        let client = self.client.connect(to);
        (client, self.server.accept())
    }

    /// First the client, then the server.
    pub fn close(&mut self) {
        self.client.close();
        self.server.close();
    }

    /// Opened and closed.
    pub fn visit(&mut self, to: SocketAddr) -> (End, End) {
        let ends = self.open(to);
        self.close();
        ends
    }
}

/// The actor's side.
pub fn act() -> ExitCode {
    match Sockets::default().serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("actor: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// The holder's side: takes a connection from the socket on stdin and keeps it until the peer
/// closes it.
pub fn hold() -> ExitCode {
    let held = set_name(c"holder")
        .map_err(Into::into)
        .and_then(|()| receive_fd())
        .map(|fd| TcpStream::from(fd).read_to_end(&mut Vec::new()));
    match held {
        Ok(_) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn receive_fd() -> Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(
        io::stdin(),
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        RecvFlags::empty(),
    )?;
    control
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .context("no connection was handed over")
}

fn send_fd(to: &UnixStream, fd: OwnedFd) -> Result<()> {
    let fds = [fd.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(to, &[IoSlice::new(&[0])], &mut control, SendFlags::empty())?;
    Ok(())
}

#[derive(Default)]
struct Sockets {
    listener: Option<TcpListener>,
    streams: Vec<TcpStream>,
    holder: Option<UnixStream>,
    load: Option<Load>,
}

/// A thread that makes connections. It ends with the sender, and counts them.
struct Load {
    go_on: Sender<()>,
    thread: JoinHandle<io::Result<usize>>,
}

impl Load {
    fn on(listener: TcpListener) -> Result<Self> {
        let address = listener.local_addr()?;
        let (go_on, end) = mpsc::channel();
        let thread = thread::Builder::new().name("load".into()).spawn(move || {
            let mut count = 0;
            while end.try_recv() != Err(TryRecvError::Disconnected) {
                let _client = TcpStream::connect(address)?;
                let _server = listener.accept()?;
                count += 1;
                thread::sleep(LOAD_INTERVAL);
            }
            Ok(count)
        })?;
        Ok(Self { go_on, thread })
    }

    fn stop(self) -> Result<usize> {
        drop(self.go_on);
        let count = self.thread.join().ok().context("the load panicked")?;
        Ok(count?)
    }
}

impl Sockets {
    fn serve(mut self) -> Result<()> {
        for line in io::stdin().lock().lines() {
            match self.obey(&line?) {
                Ok(answer) => println!("ok {answer}"),
                Err(e) => println!("error {e:#}"),
            }
        }
        Ok(())
    }

    fn obey(&mut self, command: &str) -> Result<String> {
        let words: Vec<&str> = command.split(' ').collect();
        match words[..] {
            ["name", bytes] => {
                let bytes: Result<Vec<u8>, _> = bytes.split(',').map(str::parse).collect();
                set_name(&CString::new(bytes?)?)?;
            }
            ["listen", address] => {
                let listener = TcpListener::bind(address)?;
                let address = listener.local_addr()?;
                self.listener = Some(listener);
                return Ok(address.to_string());
            }
            ["stop-listening"] => self.listener = None,
            ["connect", to] => return self.keep(TcpStream::connect(to)?),
            ["connect-in-thread", name, to] => {
                let to: SocketAddr = to.parse()?;
                let thread = thread::Builder::new().name(name.into());
                let stream = thread.spawn(move || TcpStream::connect(to))?.join();
                return self.keep(stream.ok().context("the thread panicked")??);
            }
            ["be-refused", by] => match TcpStream::connect(by) {
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {}
                other => bail!("{other:?}"),
            },
            ["accept"] => {
                let listener = self.listener.as_ref().context("no listener")?;
                let (stream, _) = listener.accept()?;
                return self.keep(stream);
            }
            ["send", bytes] => self.last()?.write_all(&vec![b'x'; bytes.parse()?])?,
            ["receive", bytes] => self.last()?.read_exact(&mut vec![0; bytes.parse()?])?,
            ["close"] => self.streams.clear(),
            ["visit-itself", times] => {
                let listener = TcpListener::bind("127.0.0.1:0")?;
                let address = listener.local_addr()?;
                for _ in 0..times.parse()? {
                    drop((TcpStream::connect(address)?, listener.accept()?));
                }
            }
            ["start-load"] => {
                let listener = TcpListener::bind("127.0.0.1:0")?;
                let port = listener.local_addr()?.port();
                self.load = Some(Load::on(listener)?);
                return Ok(port.to_string());
            }
            ["stop-load"] => {
                let load = self.load.take().context("no load")?;
                return Ok(load.stop()?.to_string());
            }
            ["start-holder"] => {
                let (ours, its) = UnixStream::pair()?;
                self.holder = Some(ours);
                // It ends with the connection or with our end of the pair.
                let holder = Command::new("/proc/self/exe")
                    .arg(HOLDER)
                    .stdin(OwnedFd::from(its))
                    .stdout(Stdio::null())
                    .spawn()?;
                return Ok(holder.id().to_string());
            }
            ["hand-over"] => {
                let stream = self.streams.pop().context("no connection")?;
                send_fd(self.holder.as_ref().context("no holder")?, stream.into())?;
            }
            _ => bail!("not a command"),
        }
        Ok(String::new())
    }

    fn last(&mut self) -> Result<&mut TcpStream> {
        self.streams.last_mut().context("no connection")
    }

    fn keep(&mut self, stream: TcpStream) -> Result<String> {
        let ends = format!("{} {}", stream.local_addr()?, stream.peer_addr()?);
        self.streams.push(stream);
        Ok(ends)
    }
}
