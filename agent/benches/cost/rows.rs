//! The rows of the table: what is compared, and what was measured of it.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::load::{Load, Slice};
use crate::tcplife::Tcplife;
use crate::tracer::{Mode, TracerProcess};

/// Long enough for thousands of connections, short enough that neighbours see the same noise.
const SLICE: Duration = Duration::from_millis(130);

/// The peer takes its time to attach, so there are fewer slices of it.
const PEER_SLICE: Duration = Duration::from_millis(300);

/// Load before each slice, for caches and page faults.
const WARM_UP: Duration = Duration::from_millis(15);

/// For the tool to take what is left, and after its end for the kernel to free what it had.
const SETTLE: Duration = Duration::from_millis(40);

/// Something that can be attached.
pub enum Tool {
    /// One of our modes, in one of the tracer processes.
    Ours(usize, Mode),
    /// tcplife, of which there is a slice in every so many rounds only.
    Peer(PathBuf, usize),
}

/// One row.
pub struct Row {
    pub label: String,
    pub tool: Tool,
    /// Events that each connection makes.
    pub events_per_connection: u64,
    pub pairs: Vec<Pair>,
    /// Over all slices with the tool.
    pub expected: u64,
    pub captured: u64,
    pub lost: u64,
    pub skipped: u64,
}

/// A slice with the tool against the mean of the slices before and after, without it.
pub struct Pair {
    /// What the load thread pays, in microseconds of CPU time per connection.
    pub added_cpu: f64,
    /// The same as a share of what it pays without the tool.
    pub added_share: f64,
    /// Connections a second with the tool, as a share of those without.
    pub rate_kept: f64,
    /// What the tool's own process pays, in microseconds of CPU time per connection.
    pub own_cpu: f64,
}

impl Row {
    pub fn new(label: impl Into<String>, tool: Tool, events_per_connection: u64) -> Self {
        Self {
            label: label.into(),
            tool,
            events_per_connection,
            pairs: Vec::new(),
            expected: 0,
            captured: 0,
            lost: 0,
            skipped: 0,
        }
    }

    /// Forgets what was measured.
    pub fn clear(&mut self) {
        self.pairs.clear();
        (self.expected, self.captured) = (0, 0);
        (self.lost, self.skipped) = (0, 0);
    }

    fn due(&self, round: usize) -> bool {
        match self.tool {
            Tool::Ours(..) => true,
            Tool::Peer(_, every) => round.is_multiple_of(every),
        }
    }
}

/// The load, and the processes the tools run in.
pub struct Stage {
    pub load: Load,
    pub processes: Vec<TracerProcess>,
    tool_cpu: usize,
}

/// A slice with a tool.
struct Measured {
    slice: Slice,
    own_cpu: f64,
    connections: u64,
    captured: u64,
    lost: u64,
    skipped: u64,
}

impl Stage {
    pub fn new(load_cpu: usize, tool_cpu: usize) -> Result<Self> {
        Ok(Self {
            load: Load::start(load_cpu)?,
            processes: Vec::new(),
            tool_cpu,
        })
    }

    /// Returns the index of the new process.
    pub fn add_process(&mut self, binary: &OsStr) -> Result<usize> {
        self.processes
            .push(TracerProcess::spawn(binary, self.tool_cpu)?);
        Ok(self.processes.len() - 1)
    }

    /// A slice without any tool.
    pub fn base(&self) -> Result<Slice> {
        self.load.run(WARM_UP)?;
        self.load.run(SLICE)
    }

    /// Each row once, between base slices. `before` is the base slice that was measured last.
    ///
    /// The order changes from round to round, so that no row always follows the same one.
    pub fn round(&mut self, round: usize, rows: &mut [Row], before: &mut Slice) -> Result<()> {
        let mut order: Vec<usize> = (0..rows.len()).filter(|&i| rows[i].due(round)).collect();
        let shift = round / 2 % order.len().max(1);
        order.rotate_left(shift);
        if round % 2 == 1 {
            order.reverse();
        }
        for index in order {
            let row = &mut rows[index];
            let measured = self
                .with_tool(&row.tool)
                .with_context(|| row.label.clone())?;
            thread::sleep(SETTLE);
            let after = self.base()?;
            let base_cpu = (before.cpu_us() + after.cpu_us()) / 2.0;
            let added_cpu = measured.slice.cpu_us() - base_cpu;
            row.pairs.push(Pair {
                added_cpu,
                added_share: added_cpu / base_cpu,
                rate_kept: measured.slice.rate() * 2.0 / (before.rate() + after.rate()),
                own_cpu: measured.own_cpu,
            });
            row.expected += measured.connections * row.events_per_connection;
            row.captured += measured.captured;
            row.lost += measured.lost;
            row.skipped += measured.skipped;
            *before = after;
        }
        Ok(())
    }

    fn with_tool(&mut self, tool: &Tool) -> Result<Measured> {
        match tool {
            Tool::Ours(process, mode) => self.with_ours(*process, *mode),
            Tool::Peer(program, _) => self.with_peer(program.clone()),
        }
    }

    fn with_ours(&mut self, process: usize, mode: Mode) -> Result<Measured> {
        let process = &mut self.processes[process];
        process.start(mode, self.load.netns)?;
        let (warm, slice, cpu) = loaded(&self.load, SLICE, || process.cpu())?;
        let report = process.stop()?;
        let connections = warm.connections + slice.connections;
        Ok(Measured {
            slice,
            own_cpu: cpu.as_secs_f64() * 1e6 / connections as f64,
            connections,
            captured: report.events,
            lost: report.lost,
            skipped: report.skipped,
        })
    }

    fn with_peer(&mut self, program: PathBuf) -> Result<Measured> {
        let peer = Tcplife::start(&program, self.tool_cpu, &mut self.load)?;
        let (warm, slice, cpu) = loaded(&self.load, PEER_SLICE, || peer.cpu())?;
        let (captured, lost) = peer.stop()?;
        let connections = warm.connections + slice.connections;
        Ok(Measured {
            slice,
            own_cpu: cpu.as_secs_f64() * 1e6 / connections as f64,
            connections,
            captured,
            lost,
            skipped: 0,
        })
    }
}

/// The warm-up, the slice, and the CPU time that went by on the tool's clock over both.
fn loaded(
    load: &Load,
    time: Duration,
    clock: impl Fn() -> Result<Duration>,
) -> Result<(Slice, Slice, Duration)> {
    let begin = clock()?;
    let warm = load.run(WARM_UP)?;
    let slice = load.run(time)?;
    thread::sleep(SETTLE);
    Ok((warm, slice, clock()?.saturating_sub(begin)))
}
