//! The actor's side.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{self, Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::libc::{EINPROGRESS, EPROTONOSUPPORT, SYS_accept4};
use nix::sched::{CloneFlags, unshare};
use procfs::process::Process;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space, set_name};
use socket2::{Domain, Protocol, SockAddr, SockFilter, Socket, Type};

use super::control::{channel, read_line, receive, send};
use super::load::Load;
use super::polled;
use super::process::{ACTOR, sleeps_in};
use super::ring::Ring;
use super::strangers::Strangers;
use crate::DEADLINE;

/// A socket filter that accepts no byte: `ret #0`.
const DROP_ALL: SockFilter = SockFilter::new(0x06, 0, 0, 0);
const MSG_FASTOPEN: i32 = 0x2000_0000;
const IPPROTO_MPTCP: i32 = 262;

/// What this process does if it was started as an actor.
pub fn act() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("actor: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<()> {
    let control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut state = State::default();
    // A read error is the end of the test.
    while let Ok(line) = read_line(&control) {
        let words: Vec<&str> = line.split(' ').collect();
        let result = match words[..] {
            ["exit"] => process::exit(0),
            ["take", name] => receive(&control).map(|socket| {
                state.keep(name, socket.into());
                String::new()
            }),
            _ => state.execute(&words),
        };
        match result {
            Ok(answer) => writeln!(&control, "ok {answer}")?,
            Err(e) => match e
                .downcast_ref::<io::Error>()
                .and_then(io::Error::raw_os_error)
            {
                Some(errno) => writeln!(&control, "err {errno}")?,
                None => writeln!(&control, "bad {e:#}")?,
            },
        }
    }
    Ok(())
}

/// Returns what `ready` yields, within the deadline.
fn wait_for<T>(what: &str, mut ready: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = ready()? {
            return Ok(value);
        }
        ensure!(start.elapsed() < DEADLINE, "{what}: waited in vain");
        thread::sleep(Duration::from_millis(1));
    }
}

#[derive(Default)]
struct State {
    sockets: HashMap<String, Socket>,
    children: HashMap<String, (Child, UnixStream)>,
    ring: Option<Ring>,
    strangers: Option<Strangers>,
    load: Option<Load>,
}

impl State {
    fn socket(&self, name: &str) -> Result<&Socket> {
        self.sockets
            .get(name)
            .with_context(|| format!("no socket {name}"))
    }

    fn take(&mut self, name: &str) -> Result<Socket> {
        let socket = self.sockets.remove(name);
        socket.with_context(|| format!("no socket {name}"))
    }

    fn keep(&mut self, name: &str, socket: Socket) {
        self.sockets.insert(name.into(), socket);
    }

    /// Sends a line to a child.
    fn begin(&self, comm: &str, line: &str) -> Result<&UnixStream> {
        let (_, control) = self.children.get(comm).context("no such child")?;
        writeln!(&*control, "{line}")?;
        Ok(control)
    }

    fn tell(&self, comm: &str, line: &str) -> Result<String> {
        answer(comm, self.begin(comm, line)?)
    }

    fn execute(&mut self, words: &[&str]) -> Result<String> {
        match *words {
            ["name", bytes] => {
                let bytes: Result<Vec<u8>, _> = bytes.split(',').map(str::parse).collect();
                set_name(&CString::new(bytes?)?)?;
            }
            ["netns", path] => {
                let namespace = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(File::open(path)?.as_fd(), namespace)?;
            }
            ["leave-mounts"] => unshare(CloneFlags::CLONE_NEWNS)?,
            // What this process was started with.
            ["inherit", name] => {
                let socket = io::stdout().as_fd().try_clone_to_owned()?;
                rustix::stdio::dup2_stdout(File::open("/dev/null")?)?;
                self.keep(name, Socket::from(socket));
            }
            ["listen", name, address, ref options @ ..] => {
                let address: SocketAddr = address.parse()?;
                let socket = new_socket(address, options)?;
                if options.contains(&"reuseport") {
                    socket.set_reuse_port(true)?;
                }
                if options.contains(&"reuseaddr") {
                    socket.set_reuse_address(true)?;
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
                    set_name(&comm)?;
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
            ["polled-connects", count, at_a_time, address] => {
                return polled::connects(count.parse()?, at_a_time.parse()?, address.parse()?);
            }
            ["polled-sends", count, address] => {
                return polled::sends(count.parse()?, address.parse()?);
            }
            ["strangers"] => self.strangers = Some(Strangers::new()?),
            ["strangers-to-nowhere"] => {
                let strangers = self.strangers.as_ref().context("no strangers")?;
                return Ok(strangers.connect_to_nowhere()?.to_string());
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
                let count: usize = count.parse()?;
                wait_for("the threads block", || {
                    let threads = Process::myself()?.tasks()?.flatten();
                    let blocked = threads.filter(|t| sleeps_in(t.syscall(), SYS_accept4));
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
            ["local", name] => {
                return Ok(address_of(self.socket(name)?.local_addr()?)?.to_string());
            }
            // Closes it once the peer's FIN or RST has come.
            ["outlast", name] => outlast(self.take(name)?),
            ["shutdown", name] => self.socket(name)?.shutdown(Shutdown::Write)?,
            ["linger0", name] => self.socket(name)?.set_linger(Some(Duration::ZERO))?,
            ["user-timeout", name, millis] => self
                .socket(name)?
                .set_tcp_user_timeout(Some(Duration::from_millis(millis.parse()?)))?,
            ["unspec", name] => rustix::net::connect_unspec(self.socket(name)?)?,
            ["close", name] => drop(self.take(name)?),
            // Connections from end to end, one after the other.
            ["clients", count, address] => {
                let address: SocketAddr = address.parse()?;
                for _ in 0..count.parse()? {
                    let socket = new_socket(address, &[])?;
                    socket.connect(&address.into())?;
                    ensure!((&socket).read(&mut [0])? == 0, "there is data");
                }
            }
            ["visit-itself", times] => {
                let listener = TcpListener::bind("127.0.0.1:0")?;
                let address = listener.local_addr()?;
                for _ in 0..times.parse()? {
                    drop((TcpStream::connect(address)?, listener.accept()?));
                }
            }
            ["start-load"] => {
                let (load, address) = Load::start()?;
                self.load = Some(load);
                return Ok(address.to_string());
            }
            ["stop-load"] => {
                let load = self.load.take().context("no load")?;
                return Ok(load.stop()?.to_string());
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
            ["ring-connect", name, address] => {
                let address: SocketAddr = address.parse()?;
                let socket = new_socket(address, &[])?;
                let ring = self.ring.as_mut().context("no ring")?;
                ring.connect(&socket, &address.into())?;
                self.keep(name, socket);
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
                let (control, stdin) = channel()?;
                let socket = self.socket(name)?.try_clone()?;
                let child = Command::new("/proc/self/exe")
                    .arg(ACTOR)
                    .stdin(stdin)
                    .stdout(Stdio::from(OwnedFd::from(socket)))
                    .spawn()?;
                let pid = child.id();
                self.children.insert(comm.into(), (child, control));
                let bytes: Vec<String> = comm.bytes().map(|byte| byte.to_string()).collect();
                self.tell(comm, &format!("name {}", bytes.join(",")))?;
                self.tell(comm, &format!("inherit {name}"))?;
                return Ok(pid.to_string());
            }
            ["tell", comm, ref line @ ..] => return self.tell(comm, &line.join(" ")),
            ["give", comm, name] => {
                let control = self.begin(comm, &format!("take {name}"))?;
                send(control, self.socket(name)?)?;
                answer(comm, control)?;
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

/// What a child answers, which has to be `ok`.
fn answer(comm: &str, control: &UnixStream) -> Result<String> {
    let line = read_line(control)?;
    let answer = line.strip_prefix("ok ");
    Ok(answer
        .with_context(|| format!("{comm} answers {line}"))?
        .into())
}

/// Keeps a connection until the peer closes or resets it.
fn outlast(mut socket: Socket) {
    let _ = socket.read_to_end(&mut Vec::new());
}

/// Whether the kernel has MPTCP sockets.
pub fn knows_mptcp() -> bool {
    match new_socket(SocketAddr::from(([127, 0, 0, 1], 0)), &["mptcp"]) {
        Err(e) if e.raw_os_error() == Some(EPROTONOSUPPORT) => false,
        Err(e) => panic!("no MPTCP socket: {e}"),
        Ok(_) => true,
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
        Err(e) if e.raw_os_error() == Some(EINPROGRESS) => Ok(()),
        result => result,
    }
}

fn address_of(address: SockAddr) -> io::Result<SocketAddr> {
    address.as_socket().ok_or(io::ErrorKind::Unsupported.into())
}
