/*!
Processes that do what a test tells them: this binary, started as `actor`.

An actor obeys one line at a time, each answered by one line: `ok …` or `err <errno>`. Its control
channel is a Unix socket on stdin. A child actor is started by its parent, which hands lines on to it
(`tell`), sockets by inheritance (`spawn … NAME`) or by SCM_RIGHTS (`give`).
*/

use std::collections::HashMap;
use std::env;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sched::{CloneFlags, unshare};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Protocol, SockAddr, SockFilter, Socket, Type};

use crate::ring::Ring;
use crate::world::{Absent, NetNs, PATIENCE, wait_for};

/// A socket filter that accepts no byte: `ret #0`.
const DROP_ALL: SockFilter = SockFilter::new(0x06, 0, 0, 0);
const MSG_FASTOPEN: i32 = 0x2000_0000;
const IPPROTO_MPTCP: i32 = 262;

// === The test's side ===

/// A process under the test's control; killed when dropped.
pub struct Actor {
    /// Its name as the kernel shows it.
    pub comm: String,
    pub pid: u32,
    child: Option<Child>,
    control: UnixStream,
}

/// The two that most scenarios have.
pub fn server_and_client(netns: &NetNs) -> Result<(Actor, Actor)> {
    Ok((Actor::new("server", netns)?, Actor::new("client", netns)?))
}

/// Where and as what to start an actor.
#[derive(Default)]
pub struct Start<'a> {
    pub netns: Option<&'a NetNs>,
    pub cgroup: Option<&'a Path>,
    pub own_mounts: bool,
}

impl Actor {
    /// An actor called `comm` in `netns`.
    pub fn new(comm: &str, netns: &NetNs) -> Result<Self> {
        Self::start(
            comm,
            &Start {
                netns: Some(netns),
                ..Start::default()
            },
        )
    }

    pub fn start(comm: &str, start: &Start<'_>) -> Result<Self> {
        let (control, theirs) = UnixStream::pair()?;
        control.set_read_timeout(Some(PATIENCE))?;
        let mut command = Command::new("/proc/self/exe");
        command.args(["actor", comm]);
        if let Some(netns) = start.netns {
            command.arg(format!("netns={}", netns.path()));
        }
        if let Some(cgroup) = start.cgroup {
            command.arg(format!("cgroup={}", cgroup.display()));
        }
        if start.own_mounts {
            command.arg("own-mounts");
        }
        let child = command
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start an actor")?;
        let mut actor = Self {
            comm: comm.into(),
            pid: child.id(),
            child: Some(child),
            control,
        };
        ensure!(actor.answer()? == "ready", "{comm} is not ready");
        Ok(actor)
    }

    /// Sends a line and waits for the answer, which has to be `ok`; returns what follows.
    pub fn ask(&mut self, line: &str) -> Result<String> {
        self.begin(line)?;
        self.answer()
            .with_context(|| format!("{}: {line}", self.comm))
    }

    /// As [`Self::ask`], where the answer has to be an error; returns the errno.
    pub fn ask_error(&mut self, line: &str) -> Result<i32> {
        self.begin(line)?;
        let answer = read_line(&self.control)?;
        let errno = answer.strip_prefix("err ");
        Ok(errno
            .with_context(|| format!("{}: {line}: not an error but {answer}", self.comm))?
            .parse()?)
    }

    /// As [`Self::ask`], where the answer has to be an address.
    pub fn address(&mut self, line: &str) -> Result<SocketAddr> {
        Ok(self.ask(line)?.parse()?)
    }

    /// Sends a line; the answer is to be fetched with [`Self::answer`].
    pub fn begin(&mut self, line: &str) -> Result<()> {
        Ok(writeln!(&self.control, "{line}")?)
    }

    pub fn answer(&mut self) -> Result<String> {
        let line = read_line(&self.control)?;
        let answer = line.strip_prefix("ok").map(|s| s.trim().to_owned());
        answer.with_context(|| format!("{} answers {line}", self.comm))
    }

    /// Waits until the actor's main thread sleeps in `accept4`.
    pub fn wait_until_it_accepts(&self) -> Result<()> {
        self.wait_until_in(nix::libc::SYS_accept4)
    }

    /// Waits until the actor's main thread sleeps in `connect`.
    pub fn wait_until_it_connects(&self) -> Result<()> {
        self.wait_until_in(nix::libc::SYS_connect)
    }

    fn wait_until_in(&self, call: i64) -> Result<()> {
        let path = format!("/proc/{}/syscall", self.pid);
        let wanted = format!("{call} ");
        wait_for("the actor blocks in the system call", || {
            Ok(fs::read_to_string(&path)?
                .starts_with(&wanted)
                .then_some(()))
        })
    }

    /// Lets the process end in whatever way `line` makes it, and waits for it.
    pub fn end_by(&mut self, line: &str) -> Result<()> {
        self.begin(line)?;
        self.reap()
    }

    pub fn kill(&mut self) -> Result<()> {
        self.child.as_mut().context("it is gone")?.kill()?;
        self.reap()
    }

    fn reap(&mut self) -> Result<()> {
        self.child.take().context("it is gone")?.wait()?;
        Ok(())
    }

    /// Starts a child actor called `comm`, which inherits the socket `name`; returns its pid.
    pub fn spawn(&mut self, comm: &str, name: &str) -> Result<u32> {
        Ok(self.ask(&format!("spawn {comm} {name}"))?.parse()?)
    }

    /// Has the child actor obey a line.
    pub fn tell(&mut self, comm: &str, line: &str) -> Result<String> {
        self.ask(&format!("tell {comm} {line}"))
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Unbuffered, since a descriptor may follow the line.
fn read_line(mut from: &UnixStream) -> Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        ensure!(
            from.read(&mut byte).context("no answer")? == 1,
            "it is gone"
        );
        if byte[0] == b'\n' {
            return Ok(String::from_utf8(line)?);
        }
        line.push(byte[0]);
    }
}

// === The actor's side ===

/// The arguments, if this process was started as an actor.
pub fn role_of_this_process() -> Option<Vec<String>> {
    let args: Vec<String> = env::args().skip(1).collect();
    (args.first().map(String::as_str) == Some("actor")).then_some(args)
}

pub fn run(args: &[String]) -> ExitCode {
    match obey(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{}: {e:?}", args.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn obey(args: &[String]) -> Result<()> {
    let control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut state = State::default();
    rustix::thread::set_name(&CString::new(args[1].as_str())?)?;
    for arg in &args[2..] {
        match arg.split_once('=').unwrap_or((arg, "")) {
            ("netns", path) => enter(path)?,
            ("cgroup", path) => fs::write(Path::new(path).join("cgroup.procs"), "0")?,
            ("own-mounts", _) => unshare(CloneFlags::CLONE_NEWNS)?,
            ("inherit", name) => {
                let socket = io::stdout().as_fd().try_clone_to_owned()?;
                rustix::stdio::dup2_stdout(File::open("/dev/null")?)?;
                state.sockets.insert(name.into(), Socket::from(socket));
            }
            _ => bail!("unknown argument {arg}"),
        }
    }
    writeln!(&control, "ok ready")?;
    // A read error is the end of the test.
    while let Ok(line) = read_line(&control) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["exit"] => std::process::exit(0),
            ["take", name] => {
                let socket = receive(&control)?;
                state.sockets.insert(name.into(), socket);
                writeln!(&control, "ok")?;
            }
            _ => match state.execute(&words) {
                Ok(answer) => writeln!(&control, "ok {answer}")?,
                Err(e) => match e
                    .downcast_ref::<io::Error>()
                    .and_then(io::Error::raw_os_error)
                {
                    Some(errno) => writeln!(&control, "err {errno}")?,
                    None => writeln!(&control, "bad {e:#}")?,
                },
            },
        }
    }
    Ok(())
}

fn enter(netns: &str) -> Result<()> {
    let file = File::open(netns)?;
    Ok(move_into_link_name_space(
        file.as_fd(),
        Some(LinkNameSpaceType::Network),
    )?)
}

#[derive(Default)]
struct State {
    sockets: HashMap<String, Socket>,
    children: HashMap<String, (Child, UnixStream)>,
    ring: Option<Ring>,
}

impl State {
    fn socket(&self, name: &str) -> Result<&Socket> {
        self.sockets
            .get(name)
            .with_context(|| format!("no socket {name}"))
    }

    fn keep(&mut self, name: &str, socket: Socket) {
        self.sockets.insert(name.into(), socket);
    }

    fn execute(&mut self, words: &[&str]) -> Result<String> {
        match *words {
            ["netns", path] => enter(path)?,
            ["listen", name, address, ref options @ ..] => {
                let address: SocketAddr = address.parse()?;
                let socket = new_socket(address, options)?;
                if options.contains(&"reuseport") {
                    socket.set_reuse_port(true)?;
                }
                socket.bind(&address.into())?;
                socket.listen(1024)?;
                let local = address_of(socket.local_addr()?)?;
                self.keep(name, socket);
                return Ok(local.to_string());
            }
            // Kept also if it fails, as a program would have it.
            ["connect", name, address, ref options @ ..] => {
                let address: SocketAddr = address.parse()?;
                let socket = match self.sockets.remove(name) {
                    Some(socket) => socket,
                    None => new_socket(address, options)?,
                };
                let result = connect(&socket, address, options);
                let local = socket.local_addr().and_then(address_of);
                self.keep(name, socket);
                result?;
                return Ok(local?.to_string());
            }
            ["socket", name, family, ref options @ ..] => {
                let socket = new_socket(family.parse()?, options)?;
                self.keep(name, socket);
            }
            // Whatever arrives for the socket is dropped, until it hears again.
            ["deaf", name] => self.socket(name)?.attach_filter(&[DROP_ALL])?,
            ["hear", name] => self.socket(name)?.detach_filter()?,
            ["connected", name] => {
                let socket = self.socket(name)?;
                wait_for("the connect", || Ok(socket.peer_addr().ok()))?;
                return Ok(address_of(socket.local_addr()?)?.to_string());
            }
            ["connect-self", name] => {
                let any: SocketAddr = "127.0.0.1:0".parse()?;
                let socket = new_socket(any, &[])?;
                socket.bind(&any.into())?;
                socket.connect(&socket.local_addr()?)?;
                let local = address_of(socket.local_addr()?)?;
                self.keep(name, socket);
                return Ok(local.to_string());
            }
            ["connect-as", thread_name, name, address] => {
                let address: SocketAddr = address.parse()?;
                let comm = CString::new(thread_name)?;
                let socket = thread::spawn(move || -> Result<Socket> {
                    rustix::thread::set_name(&comm)?;
                    let socket = new_socket(address, &[])?;
                    socket.connect(&address.into())?;
                    Ok(socket)
                })
                .join()
                .map_err(|_| anyhow!("the thread panicked"))??;
                let local = address_of(socket.local_addr()?)?;
                self.keep(name, socket);
                return Ok(local.to_string());
            }
            ["refused", count, address] => {
                let address: SocketAddr = address.parse()?;
                for _ in 0..count.parse()? {
                    let socket = new_socket(address, &[])?;
                    ensure!(socket.connect(&address.into()).is_err(), "it is accepted");
                }
            }
            ["accept", name, listener] => {
                let (socket, peer) = self.socket(listener)?.accept()?;
                self.keep(name, socket);
                return Ok(address_of(peer)?.to_string());
            }
            // Threads that block in accept for ever.
            ["accept-blocked", count, listener] => {
                for _ in 0..count.parse()? {
                    let socket = self.socket(listener)?.try_clone()?;
                    thread::spawn(move || socket.accept().map(drop));
                }
                let wanted = format!("{} ", nix::libc::SYS_accept4);
                let count: usize = count.parse()?;
                wait_for("the threads block", || {
                    let blocked = fs::read_dir("/proc/self/task")?
                        .filter_map(|t| fs::read_to_string(t.ok()?.path().join("syscall")).ok())
                        .filter(|s| s.starts_with(&wanted));
                    Ok((blocked.count() == count).then_some(()))
                })?;
            }
            ["send", name, count] => {
                let mut socket = self.socket(name)?;
                socket.write_all(&vec![b'x'; count.parse()?])?;
            }
            ["recv", name, count] => {
                let mut socket = self.socket(name)?;
                socket.read_exact(&mut vec![0; count.parse()?])?;
            }
            ["eof", name] => {
                let mut socket = self.socket(name)?;
                ensure!(socket.read(&mut [0])? == 0, "there is data");
            }
            // Waits until `count` bytes can be read, and does not read them.
            ["unread", name, count] => {
                let socket = self.socket(name)?;
                let mut room = vec![MaybeUninit::uninit(); count.parse()?];
                wait_for("the data", || {
                    Ok((socket.peek(&mut room)? == room.len()).then_some(()))
                })?;
            }
            // Waits until the connection is over, and says with which error.
            ["error", name] => {
                let socket = self.socket(name)?;
                let error = wait_for("an error", || Ok(socket.take_error()?))?;
                return Ok(error.raw_os_error().unwrap_or(0).to_string());
            }
            ["shutdown", name] => self.socket(name)?.shutdown(Shutdown::Write)?,
            ["linger0", name] => self.socket(name)?.set_linger(Some(Duration::ZERO))?,
            ["user-timeout", name, millis] => self
                .socket(name)?
                .set_tcp_user_timeout(Some(Duration::from_millis(millis.parse()?)))?,
            ["unspec", name] => rustix::net::connect_unspec(self.socket(name)?)?,
            ["close", name] => drop(self.sockets.remove(name).context("no such socket")?),
            // Connections from end to end, one after the other.
            ["clients", count, address] => {
                let address: SocketAddr = address.parse()?;
                for _ in 0..count.parse()? {
                    let socket = new_socket(address, &[])?;
                    socket.connect(&address.into())?;
                    ensure!((&socket).read(&mut [0])? == 0, "there is data");
                }
            }
            ["serve", count, listener] => {
                let listener = self.socket(listener)?;
                for _ in 0..count.parse()? {
                    drop(listener.accept()?);
                }
            }
            ["ring", kind] => self.ring = Some(Ring::new(kind == "sqpoll")?),
            ["ring-accept", name, listener] => {
                let listener = self.socket(listener)?.as_fd().try_clone_to_owned()?;
                let ring = self.ring.as_mut().context("no ring")?;
                let socket = ring.accept(&listener)?;
                self.keep(name, Socket::from(socket));
            }
            ["ring-multishot", listener, ref names @ ..] => {
                let listener = self.socket(listener)?.as_fd().try_clone_to_owned()?;
                let ring = self.ring.as_mut().context("no ring")?;
                let sockets = ring.accept_many(&listener, names.len())?;
                for (name, socket) in names.iter().zip(sockets) {
                    self.keep(name, Socket::from(socket));
                }
            }
            ["spawn", comm, name] => {
                let (control, theirs) = UnixStream::pair()?;
                control.set_read_timeout(Some(PATIENCE))?;
                let socket = self.socket(name)?.try_clone()?;
                let child = Command::new("/proc/self/exe")
                    .args(["actor", comm, &format!("inherit={name}")])
                    .stdin(Stdio::from(OwnedFd::from(theirs)))
                    .stdout(Stdio::from(OwnedFd::from(socket)))
                    .spawn()?;
                ensure!(read_line(&control)? == "ok ready", "{comm} is not ready");
                let pid = child.id();
                self.children.insert(comm.into(), (child, control));
                return Ok(pid.to_string());
            }
            ["tell", comm, ref line @ ..] => {
                let (_, control) = self.children.get(comm).context("no such child")?;
                writeln!(&*control, "{}", line.join(" "))?;
                let answer = read_line(control)?;
                return Ok(answer
                    .strip_prefix("ok")
                    .with_context(|| format!("{comm} answers {answer}"))?
                    .trim()
                    .into());
            }
            ["give", comm, name] => {
                let (_, control) = self.children.get(comm).context("no such child")?;
                writeln!(&*control, "take {name}")?;
                send(control, self.socket(name)?)?;
                ensure!(read_line(control)? == "ok", "{comm} does not take it");
            }
            ["reap", comm] => {
                let (mut child, control) = self.children.remove(comm).context("no such child")?;
                writeln!(&control, "exit")?;
                child.wait()?;
            }
            _ => bail!("unknown command {words:?}"),
        }
        Ok(String::new())
    }
}

impl Drop for State {
    fn drop(&mut self) {
        for (child, _) in self.children.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Fails if there are no MPTCP sockets here.
pub fn needs_mptcp() -> Result<()> {
    match new_socket("127.0.0.1:0".parse()?, &["mptcp"]) {
        Err(e) if e.raw_os_error() == Some(nix::libc::EPROTONOSUPPORT) => bail!(Absent("MPTCP")),
        Err(e) => Err(e.into()),
        Ok(_) => Ok(()),
    }
}

fn new_socket(address: SocketAddr, options: &[&str]) -> io::Result<Socket> {
    let protocol = match options.contains(&"mptcp") {
        true => Protocol::from(IPPROTO_MPTCP),
        false => Protocol::TCP,
    };
    Socket::new(Domain::for_address(address), Type::STREAM, Some(protocol))
}

fn connect(socket: &Socket, address: SocketAddr, options: &[&str]) -> io::Result<()> {
    for option in options {
        match option.split_once('=').unwrap_or((option, "")) {
            ("nonblocking", _) => socket.set_nonblocking(true)?,
            ("fastopen", data) => {
                let sent =
                    socket.send_to_with_flags(data.as_bytes(), &address.into(), MSG_FASTOPEN)?;
                return match sent == data.len() {
                    true => Ok(()),
                    false => Err(io::ErrorKind::WriteZero.into()),
                };
            }
            _ => {}
        }
    }
    match socket.connect(&address.into()) {
        Err(e) if e.raw_os_error() == Some(nix::libc::EINPROGRESS) => Ok(()),
        result => result,
    }
}

fn address_of(address: SockAddr) -> io::Result<SocketAddr> {
    address.as_socket().ok_or(io::ErrorKind::Unsupported.into())
}

fn send(control: &UnixStream, socket: &Socket) -> Result<()> {
    let fds = [socket.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ensure!(
        ancillary.push(SendAncillaryMessage::ScmRights(&fds)),
        "no room for a descriptor"
    );
    sendmsg(
        control,
        &[IoSlice::new(b"!")],
        &mut ancillary,
        SendFlags::empty(),
    )?;
    Ok(())
}

fn receive(control: &UnixStream) -> Result<Socket> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(
        control,
        &mut [IoSliceMut::new(&mut [0])],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message {
            return Ok(Socket::from(fds.next().context("no descriptor")?));
        }
    }
    bail!("no descriptor")
}
