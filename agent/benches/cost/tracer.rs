/*!
Our own tracer, in a process of its own so that its CPU time can be told apart.

The process is this binary, executed again with [`ROLE`]. It takes orders on standard input and
answers each with one line of JSON: [`Order`] and [`Answer`]. It lives in a mount namespace with a
bpf file system of its own, so that what it pins goes with it however it ends.
*/

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write, stdin, stdout};
use std::num::NonZeroU32;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use libbpf_rs::{Link, MapType, ObjectBuilder};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tcptracer::bpf::{Config, Filter, Message, Tracer};
use tcptracer_event::Event;
use tcptracer_testing::{Pin, own_pins};

use crate::cpu::pin_to_cpu;

/// The argument that makes this binary the tracer's process.
pub const ROLE: &str = "--tracer-process";

const EMPTY_PROGRAM: &str = include_str!("empty.bpf.c");

/// What is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Nothing: what the method itself makes of no difference.
    Nothing,
    /// A program that does nothing, on the hook where we have most to do.
    Empty,
    /// Ours, following every connection, with a cgroup map that selects none.
    Unselected,
    /// Ours, with a filter that lets no connection be followed.
    Unfollowed,
    /// Ours, reporting everything.
    Selected,
}

#[derive(Serialize, Deserialize)]
enum Order {
    /// Attach, and count the events of this network namespace.
    Start(Mode, u32),
    /// Detach and report.
    Stop,
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Started,
    Stopped(Report),
    Failed(String),
}

/// What the tracer has seen between a start and a stop.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Events of the load's network namespace.
    pub events: u64,
    /// Events and connections that the tracer counts as lost, on the whole host.
    pub lost: u64,
    /// Runs of its programs that the kernel skipped; a later hook makes up for most of them.
    pub skipped: u64,
    /// From an event to its arrival in user space, in nanoseconds, of the first events.
    pub latencies: Vec<Latency>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Latency {
    /// When it happened.
    pub time: u64,
    /// How much later it arrived.
    pub delay: u64,
}

/// Latencies kept of one run: what the sparse load makes, and no burden on the fast one.
const LATENCIES: usize = 4096;

/// The tracer's process, seen from the bench.
pub struct TracerProcess {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    clock: ClockId,
}

impl TracerProcess {
    /// `binary` is this bench or another build of it.
    pub fn spawn(binary: &OsStr, cpu: usize) -> Result<Self> {
        let mut child = Command::new(binary)
            .args([ROLE, &cpu.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", binary.display()))?;
        let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(child.id())?))?;
        let orders = child.stdin.take();
        let answers = child.stdout.take().context("no pipe")?;
        Ok(Self {
            child,
            orders,
            answers: BufReader::new(answers),
            clock,
        })
    }

    pub fn start(&mut self, mode: Mode, netns: u32) -> Result<()> {
        match self.order(&Order::Start(mode, netns))? {
            Answer::Started => Ok(()),
            answer => unexpected(answer),
        }
    }

    pub fn stop(&mut self) -> Result<Report> {
        match self.order(&Order::Stop)? {
            Answer::Stopped(report) => Ok(report),
            answer => unexpected(answer),
        }
    }

    /// CPU time of all its threads.
    pub fn cpu(&self) -> Result<Duration> {
        Ok(clock_gettime(self.clock)?.into())
    }

    fn order(&mut self, order: &Order) -> Result<Answer> {
        let mut line = serde_json::to_string(order)?;
        line.push('\n');
        let orders = self
            .orders
            .as_mut()
            .context("the tracer's process is gone")?;
        orders.write_all(line.as_bytes())?;
        line.clear();
        self.answers.read_line(&mut line)?;
        serde_json::from_str(&line).context("the tracer's process died")
    }
}

impl Drop for TracerProcess {
    fn drop(&mut self) {
        // It ends with its input.
        drop(self.orders.take());
        let _ = self.child.wait();
    }
}

fn unexpected<T>(answer: Answer) -> Result<T> {
    match answer {
        Answer::Failed(why) => bail!("the tracer: {why}"),
        _ => bail!("the tracer's process answered something else"),
    }
}

/// The other side: takes orders until its input ends.
pub fn serve(cpu: &str) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    pin_to_cpu(cpu.parse()?)?;
    own_pins(obey)
}

fn obey() -> Result<()> {
    // The filter map of somebody who has selected no pod yet.
    let unselecting_map = Pin::called("cgroupmap", MapType::Hash, 8, 8, 512);
    let empty_program = compile(EMPTY_PROGRAM)?;
    let mut running = Running::Nothing;

    for line in stdin().lines() {
        let answer = match serde_json::from_str(&line?)? {
            Order::Start(mode, netns) => {
                match Running::start(mode, netns, unselecting_map.path(), &empty_program) {
                    Ok(started) => {
                        running = started;
                        Answer::Started
                    }
                    Err(e) => Answer::Failed(format!("{e:#}")),
                }
            }
            Order::Stop => match std::mem::replace(&mut running, Running::Nothing).stop() {
                Ok(report) => Answer::Stopped(report),
                Err(e) => Answer::Failed(format!("{e:#}")),
            },
        };
        let mut out = stdout().lock();
        serde_json::to_writer(&mut out, &answer)?;
        out.write_all(b"\n")?;
        out.flush()?;
    }
    Ok(())
}

fn compile(source: &str) -> Result<Vec<u8>> {
    let mut clang = Command::new("clang")
        .args(["-target", "bpf", "-O2", "-x", "c", "-c", "-", "-o", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run clang (apt-get install clang)")?;
    // So small a source fits in the pipe.
    clang
        .stdin
        .take()
        .context("no pipe")?
        .write_all(source.as_bytes())?;
    let output = clang.wait_with_output()?;
    ensure!(
        output.status.success(),
        "clang cannot compile the empty program"
    );
    Ok(output.stdout)
}

enum Running {
    Nothing,
    Empty(Vec<Link>),
    Ours(Tracer, JoinHandle<Report>),
}

impl Running {
    fn start(mode: Mode, netns: u32, unselecting: &str, empty: &[u8]) -> Result<Self> {
        let filter = match mode {
            Mode::Nothing => return Ok(Self::Nothing),
            Mode::Empty => return attach_all(empty).map(Self::Empty),
            Mode::Unselected => Filter {
                cgroup_map: Some(unselecting.into()),
                ..Filter::default()
            },
            Mode::Unfollowed => Filter {
                // No namespace has the inode 1.
                netns: NonZeroU32::new(1),
                ..Filter::default()
            },
            Mode::Selected => Filter::default(),
        };
        let (tracer, messages) = Tracer::start(Config {
            filter,
            ..Config::default()
        })?;
        let consumer = thread::spawn(move || consume(&messages, netns));
        Ok(Self::Ours(tracer, consumer))
    }

    fn stop(self) -> Result<Report> {
        match self {
            Self::Nothing => Ok(Report::default()),
            Self::Empty(links) => {
                drop(links);
                Ok(Report::default())
            }
            Self::Ours(tracer, consumer) => {
                let losses = tracer.stop();
                let report = consumer
                    .join()
                    .map_err(|_| anyhow!("the consumer panicked"))?;
                Ok(Report {
                    lost: losses.events() + losses.map_full + losses.untracked,
                    skipped: losses.skipped_runs,
                    ..report
                })
            }
        }
    }
}

/// The links keep the programs loaded.
fn attach_all(object: &[u8]) -> Result<Vec<Link>> {
    let object = ObjectBuilder::default().open_memory(object)?.load()?;
    object
        .progs_mut()
        .map(|prog| prog.attach().context("cannot attach the empty program"))
        .collect()
}

fn consume(messages: &Receiver<Message>, netns: u32) -> Report {
    let mut report = Report::default();

    for message in messages {
        if let Message::Events(events) = message {
            let now = monotonic();
            for event in events.iter().filter(|e| e.netns == netns) {
                note(&mut report, event, now);
            }
        }
    }
    report
}

fn note(report: &mut Report, event: &Event, now: u64) {
    report.events += 1;
    if report.latencies.len() < LATENCIES {
        report.latencies.push(Latency {
            time: event.time,
            delay: now.saturating_sub(event.time),
        });
    }
}

fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
    now.map_or(0, |t| t.as_nanos() as u64)
}
