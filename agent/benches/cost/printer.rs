//! Programs that print events, as they are released: the host tool and the plugin. What they print is read through a pipe.

use std::io::{Read, pipe};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use nix::sys::signal::Signal;
use serde::Deserialize;
use tcptracer_testing::lines::{Lines, Next};
use tcptracer_testing::program;

use crate::allocations::Counter;
use crate::cpu::pin_to_cpu;
use crate::latency::Latency;
use crate::load::Load;
use crate::tied::{self, Tied};

/// How long it may take to print its first event.
const PATIENCE: Duration = Duration::from_secs(30);

/// After the load has stopped, all of its events have been printed. What is counted afterwards fails if one is missing.
pub const SETTLE: Duration = Duration::from_millis(300);

/// Room for as much as a pipe holds.
const ROOM: usize = 64 * 1024;

/// Whether what is printed is kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    Nothing,
    Everything,
}

/// What was read at once.
struct Chunk {
    /// Since the epoch, in nanoseconds.
    arrived: u64,
    bytes: Vec<u8>,
}

/// A running one.
pub struct Printer {
    process: Tied,
    /// What it says of itself, to be read as long as it runs.
    complaints: Lines,
    lines: Arc<AtomicU64>,
    /// The reader adds to it, and whoever measures takes out what has come.
    chunks: Arc<Mutex<Vec<Chunk>>>,
    reader: JoinHandle<()>,
}

impl Printer {
    /// The host tool, with these arguments. Returns once it reports the load, whose events alone it prints.
    pub fn host_tool(
        arguments: &[&str],
        load: &mut Load,
        cpu: usize,
        keep: Keep,
        counter: Option<&Counter>,
    ) -> Result<Self> {
        let mut command = tied::command(&program("tcptracer"), cpu)?;
        command
            .args(["-N", &load.netns.to_string()])
            .args(arguments);
        let mut printer = Self::start(command, cpu, keep, counter)?;
        printer.wait_for_events(load)?;
        Ok(printer)
    }

    /// The plugin, which shows the pods of a namespace. It may take a moment until it is subscribed.
    pub fn plugin(
        agent: &str,
        namespace: &str,
        cpu: usize,
        keep: Keep,
        counter: Option<&Counter>,
    ) -> Result<Self> {
        let mut command = tied::command(&program("kubectl-tcptracer"), cpu)?;
        command.args(["--server", agent, "-n", namespace, "-o", "jsonl"]);
        Self::start(command, cpu, keep, counter)
    }

    fn start(
        mut command: Command,
        cpu: usize,
        keep: Keep,
        counter: Option<&Counter>,
    ) -> Result<Self> {
        let (reads, writes) = pipe()?;
        command
            .stdin(Stdio::null())
            .stdout(writes)
            .stderr(Stdio::piped());
        if let Some(counter) = counter {
            counter.attach(&mut command);
        }
        let mut process = Tied::start(&mut command)?;
        let stderr = process.child.stderr.take().context("no pipe")?;
        // Else this process' end would keep the pipe open.
        drop(command);
        let lines = Arc::new(AtomicU64::new(0));
        let chunks = Arc::new(Mutex::new(Vec::new()));
        let reader = thread::spawn({
            let (lines, chunks) = (Arc::clone(&lines), Arc::clone(&chunks));
            move || {
                // Wherever it runs the lines have to be read.
                let _ = pin_to_cpu(cpu);
                read(reads, keep, &lines, &chunks);
            }
        });
        Ok(Self {
            process,
            complaints: Lines::of(stderr),
            lines,
            chunks,
            reader,
        })
    }

    /// The first lines are headers.
    fn wait_for_events(&mut self, load: &mut Load) -> Result<()> {
        const HEADERS: u64 = 2;
        let begin = Instant::now();
        while self.lines() <= HEADERS {
            if let Some(status) = self.process.child.try_wait()? {
                bail!("the program ended: {status}: {}", self.complained());
            }
            ensure!(begin.elapsed() < PATIENCE, "the program prints nothing");
            load.run(Duration::from_millis(3))?;
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Until it has printed so many.
    pub fn wait_for_lines(&self, count: u64) -> Result<()> {
        let begin = Instant::now();
        while self.lines() < count {
            ensure!(begin.elapsed() < PATIENCE, "events are missing");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// How many it has printed.
    pub fn lines(&self) -> u64 {
        self.lines.load(Ordering::Relaxed)
    }

    pub fn cpu(&self) -> Result<Duration> {
        self.process.cpu()
    }

    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }

    /// Of the events, as objects, that it has printed since the last call. What it is printing has to be whole lines.
    pub fn latencies(&self) -> Result<Vec<Latency>> {
        let mut kept = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        latencies(&std::mem::take(&mut *kept))
    }

    /// What it has said, once it has ended.
    fn complained(&mut self) -> String {
        let mut said = Vec::new();
        while let Next::Line(line) = self.complaints.next_within(PATIENCE) {
            said.push(line);
        }
        said.join("; ")
    }

    /// Ends it. Returns how many lines it has printed in all.
    pub fn stop(mut self) -> Result<u64> {
        let status = self.process.end_by(Signal::SIGINT)?;
        // The plugin says so if something is lost, and that is counted by its agent.
        ensure!(
            matches!(status.code(), Some(0 | 3)),
            "the program ended: {status}: {}",
            self.complained()
        );
        // What was written at the end is counted as well.
        let _ = self.reader.join();
        Ok(self.lines.load(Ordering::Relaxed))
    }
}

/// Until nobody writes any more.
fn read(mut from: impl Read, keep: Keep, lines: &AtomicU64, chunks: &Mutex<Vec<Chunk>>) {
    let mut room = vec![0; ROOM];
    while let Ok(length @ 1..) = from.read(&mut room) {
        let arrived = now();
        let bytes = &room[..length];
        if keep == Keep::Everything {
            let bytes = bytes.to_vec();
            let mut kept = chunks.lock().unwrap_or_else(PoisonError::into_inner);
            kept.push(Chunk { arrived, bytes });
        }
        let count = memchr::memchr_iter(b'\n', bytes).count();
        lines.fetch_add(count as u64, Ordering::Relaxed);
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}

#[derive(Deserialize)]
struct Event {
    time: Timestamp,
}

/// A line has arrived when its end has.
fn latencies(chunks: &[Chunk]) -> Result<Vec<Latency>> {
    let mut latencies = Vec::new();
    let mut line = Vec::new();
    for chunk in chunks {
        for piece in chunk.bytes.split_inclusive(|&byte| byte == b'\n') {
            line.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                let event: Event = serde_json::from_slice(&line).context("no event")?;
                let time = u64::try_from(event.time.as_nanosecond())?;
                latencies.push(Latency {
                    time,
                    delay: chunk.arrived.saturating_sub(time),
                });
                line.clear();
            }
        }
    }
    Ok(latencies)
}
