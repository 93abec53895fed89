//! The rows of the table: what is compared, and what was measured of it.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::load::{Load, Slice};
use crate::stage::Stage;
use crate::tcplife::Tcplife;
use crate::tracer::Mode;

/// Long enough for thousands of connections, short enough that neighbours see the same noise.
const SLICE: Duration = Duration::from_millis(130);

/// What takes its time to start has fewer slices, which are longer.
pub const LONG_SLICE: Duration = Duration::from_millis(300);

/// A slice of the peer in every so many rounds.
const PEER_EVERY: usize = 6;

/// Load before each slice, for caches and page faults.
const WARM_UP: Duration = Duration::from_millis(15);

/// For the tool to take what is left, and after its end for the kernel to free what it had.
pub const SETTLE: Duration = Duration::from_millis(40);

/// Something that can be attached.
pub enum Tool {
    /// One of our modes, in one of the tracer processes.
    Ours(usize, Mode),
    /// tcplife.
    Peer(PathBuf),
    /// An agent, and a plugin that shows what is asked for.
    Agent(Shown),
}

/// What the plugin shows of an agent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// There is no plugin.
    Nothing,
    /// All pods but that of the load.
    Others,
    /// The pod of the load.
    Load,
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
    /// What the plugin pays.
    pub plugin_cpu: f64,
    /// What a system call pays that has nothing to do with connections, in nanoseconds.
    pub added_unrelated: f64,
    /// The same as a share of what it pays without the tool.
    pub unrelated_share: f64,
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
            Tool::Peer(_) => round.is_multiple_of(PEER_EVERY),
            // Whose rows come together, in `sessions`.
            Tool::Agent(_) => false,
        }
    }

    /// A slice with the tool, and those before and after it.
    pub fn add(&mut self, before: &Base, measured: &Measured, after: &Base) {
        let Loaded { slice, .. } = &measured.load;
        let base_cpu = f64::midpoint(before.slice.cpu_us(), after.slice.cpu_us());
        let base_rate = f64::midpoint(before.slice.rate(), after.slice.rate());
        let base_unrelated = f64::midpoint(before.unrelated_ns, after.unrelated_ns);
        let added_cpu = slice.cpu_us() - base_cpu;
        let added_unrelated = measured.load.unrelated_ns - base_unrelated;
        let per_connection =
            |cpu: Duration| cpu.as_secs_f64() * 1e6 / measured.load.connections as f64;
        let [own_cpu, plugin_cpu] = measured.load.cpu.map(per_connection);
        self.pairs.push(Pair {
            added_cpu,
            added_share: added_cpu / base_cpu,
            rate_kept: slice.rate() / base_rate,
            own_cpu,
            plugin_cpu,
            added_unrelated,
            unrelated_share: added_unrelated / base_unrelated,
        });
        self.expected += measured.load.connections * self.events_per_connection;
        self.captured += measured.captured;
        self.lost += measured.lost;
        self.skipped += measured.skipped;
    }
}

/// A slice without any tool.
#[derive(Clone)]
pub struct Base {
    pub slice: Slice,
    pub unrelated_ns: f64,
}

impl Base {
    pub fn measure(load: &mut Load) -> Result<Self> {
        load.run(WARM_UP)?;
        Ok(Self {
            slice: load.run(SLICE)?,
            unrelated_ns: load.unrelated_ns()?,
        })
    }
}

/// A slice with a tool.
pub struct Measured {
    pub load: Loaded,
    pub captured: u64,
    pub lost: u64,
    pub skipped: u64,
}

/// What the load did beside a tool.
pub struct Loaded {
    slice: Slice,
    /// Those of the warm-up included.
    connections: u64,
    unrelated_ns: f64,
    /// What went by on the clocks of the tool and the plugin.
    cpu: [Duration; 2],
}

/// Each row that is due once, between base slices. `before` is the base slice that was measured last.
///
/// The order changes from round to round, so that no row always follows the same one.
pub fn round(stage: &mut Stage, round: usize, rows: &mut [Row], before: &mut Base) -> Result<()> {
    let mut order: Vec<usize> = (0..rows.len()).filter(|&i| rows[i].due(round)).collect();
    let shift = round / 2 % order.len().max(1);
    order.rotate_left(shift);
    if round % 2 == 1 {
        order.reverse();
    }
    for index in order {
        run(stage, &mut rows[index], before)?;
    }
    Ok(())
}

fn run(stage: &mut Stage, row: &mut Row, before: &mut Base) -> Result<()> {
    stage.interrupt.check()?;
    let measured = with_tool(stage, &row.tool).with_context(|| row.label.clone())?;
    thread::sleep(SETTLE);
    let after = Base::measure(&mut stage.load)?;
    row.add(before, &measured, &after);
    *before = after;
    Ok(())
}

fn with_tool(stage: &mut Stage, tool: &Tool) -> Result<Measured> {
    match tool {
        Tool::Ours(process, mode) => with_ours(stage, *process, *mode),
        Tool::Peer(program) => with_peer(stage, program.clone()),
        Tool::Agent(_) => bail!("it has slices in sessions only"),
    }
}

fn with_ours(stage: &mut Stage, process: usize, mode: Mode) -> Result<Measured> {
    let process = &mut stage.processes[process];
    process.start(mode, stage.load.netns)?;
    let clocks = || Ok([process.cpu()?, Duration::ZERO]);
    let load = loaded(&mut stage.load, SLICE, clocks)?;
    let report = process.stop()?;
    Ok(Measured {
        load,
        captured: report.events,
        lost: report.lost,
        skipped: report.skipped,
    })
}

fn with_peer(stage: &mut Stage, program: PathBuf) -> Result<Measured> {
    let peer = Tcplife::start(&program, stage.tool_cpu, &mut stage.load)?;
    let clocks = || Ok([peer.cpu()?, Duration::ZERO]);
    let load = loaded(&mut stage.load, LONG_SLICE, clocks)?;
    let (captured, lost) = peer.stop()?;
    Ok(Measured {
        load,
        captured,
        lost,
        skipped: 0,
    })
}

pub fn loaded(
    load: &mut Load,
    time: Duration,
    clocks: impl Fn() -> Result<[Duration; 2]>,
) -> Result<Loaded> {
    let begin = clocks()?;
    let warm = load.run(WARM_UP)?;
    let slice = load.run(time)?;
    let unrelated_ns = load.unrelated_ns()?;
    thread::sleep(SETTLE);
    let end = clocks()?;
    Ok(Loaded {
        slice,
        connections: warm.connections + slice.connections,
        unrelated_ns,
        cpu: [0, 1].map(|clock| end[clock].saturating_sub(begin[clock])),
    })
}
