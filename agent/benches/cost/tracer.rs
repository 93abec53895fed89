/*!
Our own tracer, in a process of its own so that its CPU time can be told apart.

The process is this binary, executed again with [`ROLE`]. What it takes and answers are [`Order`] and [`Answer`]. It lives in a
mount namespace with a bpf file system of its own, so that what it pins goes with it however it ends.
*/

use std::ffi::OsStr;
use std::num::NonZeroU32;
use std::sync::mpsc::Receiver;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use libbpf_rs::MapType;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tcptracer::bpf::{Config, Filter, Message, Tracer};
use tcptracer_event::Event;
use tcptracer_testing::{Pin, own_pins};

use crate::latency::Latency;
use crate::programs::{Attached, attach_all, compile};
use crate::worker::{self, Worker};

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

/// Latencies kept of one run: what the sparse load makes, and no burden on the fast one.
const LATENCIES: usize = 4096;

/// The tracer's process, seen from the bench.
pub struct TracerProcess(Worker);

impl TracerProcess {
    /// `binary` is this bench or another build of it.
    pub fn spawn(binary: &OsStr, cpu: usize) -> Result<Self> {
        Ok(Self(Worker::spawn(binary, ROLE, cpu)?))
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
        self.0.cpu()
    }

    fn order(&mut self, order: &Order) -> Result<Answer> {
        self.0.ask(order).context("the tracer")
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
    worker::settle(cpu)?;
    own_pins(obey)
}

fn obey() -> Result<()> {
    // The filter map of somebody who has selected no pod yet.
    let unselecting_map = Pin::called("cgroupmap", MapType::Hash, 8, 8, 512);
    let empty_program = compile(EMPTY_PROGRAM)?;
    let mut running = Running::Nothing;

    worker::serve(|order| match order {
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
    })
}

enum Running {
    Nothing,
    Empty(Attached),
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
            Self::Empty(attached) => {
                drop(attached);
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
