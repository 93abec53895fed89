//! The real program, run as a user runs it.

use std::net::SocketAddr;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::net::TcpSocket;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use crate::agent::Agent;
use crate::deadline::soon;

/// A running plugin.
pub struct Plugin {
    child: Child,
    out: mpsc::UnboundedReceiver<String>,
    err: mpsc::UnboundedReceiver<String>,
}

/// What a plugin that has ended has written.
#[derive(Debug, PartialEq)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: Vec<String>,
    pub err: Vec<String>,
}

impl Ended {
    /// With exit code 0 and nothing on stderr.
    #[track_caller]
    pub fn well(self) -> Vec<String> {
        assert_eq!(
            (self.code, &self.err[..]),
            (Some(0), &[][..]),
            "{:?}",
            self.out
        );
        self.out
    }
}

/// What is said where there is no past.
pub const NOTHING_REMEMBERED: &str =
    "the agents remember nothing of this; what nobody watches they record only with --record";

pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-tcptracer"));
    command
        .args(args)
        .env_clear()
        .env("HOME", "/nonexistent")
        .kill_on_drop(true)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

impl Plugin {
    pub fn start(args: &[&str]) -> Self {
        Self::spawn(&mut command(args))
    }

    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command.spawn().expect("the plugin starts");
        Self {
            out: lines(child.stdout.take().expect("a stdout")),
            err: lines(child.stderr.take().expect("a stderr")),
            child,
        }
    }

    /// Of one agent on the loopback interface.
    pub fn of(agent: &Agent, args: &[&str]) -> Self {
        let address = agent.address.to_string();
        Self::start(&[&["--server", &address], args].concat())
    }

    /// The next line of stdout.
    pub async fn line(&mut self) -> String {
        soon("a line of output", self.out.recv())
            .await
            .expect("the output goes on")
    }

    /// The next line of stderr, without the program's name.
    pub async fn said(&mut self) -> String {
        let line = soon("a line of stderr", self.err.recv()).await;
        without_name(line.expect("it says something"))
    }

    /// Waits for its own end.
    pub async fn ended(mut self) -> Ended {
        let status = soon("the plugin ends", self.child.wait()).await;
        let mut out = Vec::new();
        while let Some(line) = soon("the output ends", self.out.recv()).await {
            out.push(line);
        }
        let mut err = Vec::new();
        while let Some(line) = soon("stderr ends", self.err.recv()).await {
            err.push(without_name(line));
        }
        Ended {
            code: status.expect("the plugin can be waited for").code(),
            out,
            err,
        }
    }

    /// Ends it as Ctrl-C does.
    pub async fn interrupt(self) -> Ended {
        self.signal("INT").await;
        self.ended().await
    }

    pub async fn signal(&self, name: &str) {
        signal(&self.child, name, 1).await;
    }

    /// Without a pause.
    pub async fn signal_twice(&self, name: &str) {
        signal(&self.child, name, 2).await;
    }
}

/// Sends a signal so many times to a plugin that runs.
pub async fn signal(plugin: &Child, name: &str, times: usize) {
    let id = plugin.id().expect("the plugin runs").to_string();
    let mut kill = Command::new("kill");
    kill.args(["-s", name]).args(vec![&id; times]);
    assert!(kill.status().await.expect("kill runs").success());
}

/// An address at which nobody listens, nor can anybody else as long as the value lives.
pub struct Nobody(TcpSocket);

impl Nobody {
    pub fn new() -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        socket.bind(any).expect("a port");
        Self(socket)
    }

    pub fn address(&self) -> SocketAddr {
        self.0.local_addr().expect("an address")
    }
}

fn without_name(line: String) -> String {
    match line.strip_prefix("kubectl tcptracer: ") {
        Some(line) => line.into(),
        None => line,
    }
}

fn lines(from: impl AsyncRead + Unpin + Send + 'static) -> mpsc::UnboundedReceiver<String> {
    let (to, lines) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut from = BufReader::new(from).lines();
        while let Ok(Some(line)) = from.next_line().await {
            if to.send(line).is_err() {
                return;
            }
        }
    });
    lines
}
