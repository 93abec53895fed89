/*!
What tracing costs the traced, and what the tools take themselves: `make bench`, as root, in less than five minutes.

A load thread opens and closes connections on one CPU while a tool runs on another. Slices of load
with a tool alternate with slices without any, and each is compared with its two neighbours only,
so that what else happens on the machine hits both alike. All rows take turns in one run, because
numbers of different runs cannot be compared. What follows the rows is measured of one tool at a time.

`tracer`, `tcplife`, `agent` and `printer` are the tools, `rows` the measurement, `table` what is made of it. `delays`,
`subscribers`, `idle` and `counts` are what follows. The host tool, the agent and the plugin are the release's.
*/

mod agent;
mod allocations;
mod counts;
mod cpu;
mod delays;
mod hooks;
mod idle;
mod interrupt;
mod latency;
mod load;
mod node;
mod printer;
mod programs;
mod proxy;
mod rows;
mod sessions;
mod stage;
mod stats;
mod subscribers;
mod syscalls;
mod table;
mod targets;
mod tcplife;
mod tied;
mod tracer;
mod worker;

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use nix::unistd::Uid;

use latency::Latency;
use load::EVENTS;
use rows::{Base, Row, Shown, Tool};
use stage::Stage;
use targets::Targets;
use tracer::Mode;

const LOAD_CPU: usize = 0;
const TOOL_CPU: usize = 1;

/// Rounds of the other rows for each session of the agent.
const SESSION_EVERY: usize = 4;

/// Load before anything is measured.
const WARM_UP: Duration = Duration::from_secs(1);

/// Measures what tracing costs the traced.
#[derive(Parser)]
struct Options {
    /// Slices of each row of ours
    #[arg(long, default_value_t = 63)]
    rounds: usize,

    /// Go on to what follows the rows after this time even if rounds are missing
    #[arg(long, value_name = "SECONDS", default_value_t = 200)]
    limit: u64,

    /// Compare with another build of this bench, in the same run
    #[arg(long, value_name = "BINARY")]
    against: Vec<PathBuf>,

    /// Only the rows with this in their name; or, of what follows them: latency, subscribers, idle, counts
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,

    /// Given by cargo bench
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    if let [role, cpu, command @ ..] = &arguments[..] {
        let cpu = cpu.to_str().unwrap_or_default();
        if role == tracer::ROLE {
            return tracer::serve(cpu);
        }
        if role == load::ROLE {
            return load::serve(cpu);
        }
        if role == tied::ROLE {
            return tied::become_tied(cpu, command);
        }
    }
    let options = Options::parse();
    // cargo test --all-targets runs this as well, and expects a test.
    if !options.bench {
        println!("not measured: use cargo bench, or --bench");
        return Ok(());
    }
    measure(&options)
}

fn measure(options: &Options) -> Result<()> {
    ensure!(Uid::effective().is_root(), "tracing needs root");
    let mut stage = Stage::new(LOAD_CPU, TOOL_CPU)?;
    let mut targets = Targets::default();
    table::print_machine(LOAD_CPU, TOOL_CPU);
    hooks::print_refusals()?;
    stage.load.run(WARM_UP)?;
    measure_rows(&mut stage, options, &mut targets)?;
    if options.wants("latency") {
        table::print_latencies(&measure_latency(&mut stage)?, &mut targets);
        delays::of_host_tool(&mut stage)?;
    }
    if ["idle", "latency", "subscribers"]
        .iter()
        .any(|name| options.wants(name))
    {
        measure_agent(&mut stage, options, &mut targets)?;
    }
    if options.wants("counts") {
        counts::measure(&mut stage)?;
    }
    targets.print();
    table::print_load();
    Ok(())
}

/// One agent for all, that which was idle first.
fn measure_agent(stage: &mut Stage, options: &Options, targets: &mut Targets) -> Result<()> {
    let agent = stage.agent()?;
    if options.wants("idle") {
        idle::measure(&agent, targets)?;
    }
    if options.wants("latency") {
        delays::of_plugin(stage, &agent, targets)?;
    }
    if options.wants("subscribers") {
        subscribers::measure(stage, &agent, targets)?;
    }
    agent.stop()
}

impl Options {
    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|text| name.contains(text))
    }
}

fn measure_rows(stage: &mut Stage, options: &Options, targets: &mut Targets) -> Result<()> {
    let mut rows = make_rows(stage, options)?;
    if rows.is_empty() {
        return Ok(());
    }
    let mut base = Base::measure(&mut stage.load)?;
    // Not counted: the first start of each tool is like no other.
    rows::round(stage, 0, &mut rows, &mut base)?;
    rows.iter_mut().for_each(Row::clear);
    let agents = rows.iter().any(|row| matches!(row.tool, Tool::Agent(_)));
    let mut bases = Vec::new();
    let begin = Instant::now();
    for round in 0..options.rounds {
        if begin.elapsed() > Duration::from_secs(options.limit) {
            break;
        }
        rows::round(stage, round, &mut rows, &mut base)?;
        bases.push(base.clone());
        if agents && round % SESSION_EVERY == SESSION_EVERY / 2 {
            sessions::run(stage, &mut rows, &mut base)?;
        }
    }
    table::print_rows(&rows, &bases);
    table::check_rows(&rows, targets);
    Ok(())
}

fn make_rows(stage: &mut Stage, options: &Options) -> Result<Vec<Row>> {
    let this = stage.add_process(env::current_exe()?.as_os_str())?;
    let mut rows = vec![Row::new(
        "nothing (error of the method)",
        Tool::Ours(this, Mode::Nothing),
        0,
    )];

    rows.push(Row::new("empty program", Tool::Ours(this, Mode::Empty), 0));
    rows.extend(rows_of_ours("tcptracer", this));
    for (number, binary) in options.against.iter().enumerate() {
        let other = stage.add_process(binary.as_os_str())?;
        rows.extend(rows_of_ours(&format!("build {}", number + 1), other));
    }
    rows.extend([
        Row::new("agent, nobody subscribed", Tool::Agent(Shown::Nothing), 0),
        Row::new("agent, pod not selected", Tool::Agent(Shown::Others), 0),
        Row::new("agent, pod selected", Tool::Agent(Shown::Load), EVENTS),
        Row::new("tcplife", Tool::Peer(tcplife::find()?), 2),
    ]);
    rows.retain(|row| options.wants(&row.label));
    Ok(rows)
}

fn rows_of_ours(name: &str, process: usize) -> [Row; 3] {
    let row = |what: &str, mode, events| {
        Row::new(format!("{name}, {what}"), Tool::Ours(process, mode), events)
    };
    [
        row("nothing followed", Mode::Unfollowed, 0),
        row("nothing selected", Mode::Unselected, 0),
        row("everything selected", Mode::Selected, EVENTS),
    ]
}

fn measure_latency(stage: &mut Stage) -> Result<Vec<Latency>> {
    let (connections, pause) = delays::SPARSE;
    let process = stage.processes.first_mut().context("no tracer")?;
    process.start(Mode::Selected, stage.load.netns)?;
    stage.load.sparse(connections, pause)?;
    Ok(process.stop()?.latencies)
}
