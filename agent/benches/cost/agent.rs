//! The agent, as it is released.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use tcptracer_testing::lines::{Lines, Next};
use tcptracer_testing::{program, v2_mount};

use crate::allocations::Counter;
use crate::node::Node;
use crate::tied::{self, Tied};

/// How long it may take for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two questions to it.
const PAUSE: Duration = Duration::from_millis(10);

/// A running agent, which detaches its hooks as soon as nobody needs them.
pub struct Agent {
    process: Tied,
    /// Where it serves gRPC.
    pub grpc: String,
    http: String,
    /// To be read as long as it runs.
    _log: Lines,
}

/// As the image has it (Dockerfile).
const IMAGE_TUNABLES: &str = "glibc.malloc.mmap_threshold=1048576";

impl Agent {
    /// Returns once it knows its pods, and nothing is attached that is not needed.
    pub fn start(node: &Node, cpu: usize, counter: Option<&Counter>) -> Result<Self> {
        let mut command = tied::command(&program("tcptracer-agent"), cpu)?;
        command
            .env("GLIBC_TUNABLES", IMAGE_TUNABLES)
            .args(["--node-name", "bench", "--detach-after", "0"])
            .args(["--grpc-listen", "127.0.0.1:0"])
            .args(["--http-listen", "127.0.0.1:0"])
            .arg("--pods")
            .arg(format!("file:{}", node.pods().display()))
            .arg("--pin-dir")
            .arg(node.pins())
            .arg("--cgroupfs")
            .arg(v2_mount())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if let Some(counter) = counter {
            counter.attach(&mut command);
        }
        let mut process = Tied::start(&mut command)?;
        let stderr = process.child.stderr.take().context("no pipe")?;
        let mut log = Lines::of(stderr);
        let (grpc, http) = addresses(&mut log)?;
        let agent = Self {
            process,
            grpc,
            http,
            _log: log,
        };
        agent.wait("knows its pods", "pods_synced", 1.0)?;
        agent.wait_until_idle()?;
        Ok(agent)
    }

    /// Until it has nothing attached that it needs for subscribers only.
    pub fn wait_until_idle(&self) -> Result<()> {
        self.wait("comes to rest", "idle", 1.0)
    }

    /// Until so many get what happens.
    pub fn wait_for_subscribers(&self, count: u32) -> Result<()> {
        self.wait(
            &format!("serves {count} subscribers"),
            "subscribers",
            count.into(),
        )
    }

    fn wait(&self, what: &str, metric: &str, value: f64) -> Result<()> {
        let begin = Instant::now();
        while self.metric(metric)? != value {
            ensure!(
                begin.elapsed() < PATIENCE,
                "waited in vain until the agent {what}"
            );
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// What it counts as lost, at all places.
    pub fn lost(&self) -> Result<u64> {
        Ok(self.metric("lost_total")? as u64)
    }

    /// The sum over all labels.
    fn metric(&self, name: &str) -> Result<f64> {
        let mut stream = TcpStream::connect(&self.http).context("the agent does not listen")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "GET /metrics HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let name = format!("tcptracer_{name}");
        let values = answer.lines().filter_map(|line| {
            let (labelled, value) = line.rsplit_once(' ')?;
            let (bare, _) = labelled.split_once('{').unwrap_or((labelled, ""));
            (bare == name).then(|| value.parse::<f64>().ok())?
        });
        Ok(values.sum())
    }

    pub fn cpu(&self) -> Result<Duration> {
        self.process.cpu()
    }

    /// In MiB.
    pub fn rss(&self) -> Result<f64> {
        self.process.rss()
    }

    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }

    /// Returns once it has removed what it had made.
    pub fn stop(mut self) -> Result<()> {
        let status = self.process.end_by(Signal::SIGTERM)?;
        ensure!(status.success(), "the agent ended: {status}");
        Ok(())
    }
}

/// Where it serves gRPC and HTTP, which it says once it traces.
fn addresses(log: &mut Lines) -> Result<(String, String)> {
    let mut said = Vec::new();
    loop {
        let Next::Line(line) = log.next_within(PATIENCE) else {
            bail!("the agent does not start: {said:?}");
        };
        if let Some((_, listens)) = line.split_once("gRPC on ") {
            let (grpc, http) = listens.split_once(", HTTP on ").context(line.clone())?;
            return Ok((grpc.into(), http.into()));
        }
        said.push(line);
    }
}
