/*!
What tracing costs the traced: `cargo bench --bench cost`, as root, in less than five minutes.

A load thread opens and closes connections on one CPU while a tool runs on another. Slices of load
with a tool alternate with slices without any, and each is compared with its two neighbours only,
so that what else happens on the machine hits both alike. All rows take turns in one run, because
numbers of different runs cannot be compared.

`tracer` and `tcplife` are the tools, `rows` the measurement, `table` what is made of it.
*/

mod cpu;
mod load;
mod rows;
mod stats;
mod table;
mod tcplife;
mod tracer;

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use nix::unistd::Uid;

use rows::{Row, Stage, Tool};
use tracer::{Latency, Mode};

const LOAD_CPU: usize = 0;
const TOOL_CPU: usize = 1;

/// A slice of the peer in every so many rounds: it takes long to start.
const PEER_EVERY: usize = 4;

/// Load before anything is measured.
const WARM_UP: Duration = Duration::from_secs(1);

/// The connections whose latency is measured, and the pause before each end of them.
const SPARSE: (u32, Duration) = (150, Duration::from_millis(20));

/// Measures what tracing costs the traced.
#[derive(Parser)]
struct Options {
    /// Slices of each row of ours
    #[arg(long, default_value_t = 80)]
    rounds: usize,

    /// Stop after this time even if rounds are missing
    #[arg(long, value_name = "SECONDS", default_value_t = 260)]
    limit: u64,

    /// Compare with another build of this bench, in the same run
    #[arg(long, value_name = "BINARY")]
    against: Vec<PathBuf>,

    /// Only the rows with this in their name
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
        if role == tcplife::ROLE {
            return tcplife::become_tied(cpu, command);
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
    let mut rows = make_rows(&mut stage, options)?;

    table::print_machine(LOAD_CPU, TOOL_CPU);
    stage.load.run(WARM_UP)?;
    let mut base = stage.base()?;
    // Not counted: the first start of each tool is like no other.
    stage.round(0, &mut rows, &mut base)?;
    rows.iter_mut().for_each(Row::clear);

    let (mut base_cpu, mut base_rate) = (Vec::new(), Vec::new());
    let begin = Instant::now();
    for round in 0..options.rounds {
        if begin.elapsed() > Duration::from_secs(options.limit) {
            break;
        }
        stage.round(round, &mut rows, &mut base)?;
        base_cpu.push(base.cpu_us());
        base_rate.push(base.rate());
    }
    let latencies = measure_latency(&mut stage)?;
    table::print_rows(&rows, &base_cpu, &base_rate);
    table::print_targets(&rows, &latencies);
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
    rows.push(Row::new(
        "tcplife",
        Tool::Peer(tcplife::find()?, PEER_EVERY),
        2,
    ));
    let only = &options.only;
    rows.retain(|row| only.is_empty() || only.iter().any(|text| row.label.contains(text)));
    Ok(rows)
}

fn rows_of_ours(name: &str, process: usize) -> [Row; 3] {
    let row = |what: &str, mode, events| {
        Row::new(format!("{name}, {what}"), Tool::Ours(process, mode), events)
    };
    [
        row("nothing followed", Mode::Unfollowed, 0),
        row("nothing selected", Mode::Unselected, 0),
        row("everything selected", Mode::Selected, 4),
    ]
}

fn measure_latency(stage: &mut Stage) -> Result<Vec<Latency>> {
    let (connections, pause) = SPARSE;
    let process = stage.processes.first_mut().context("no tracer")?;
    process.start(Mode::Selected, stage.load.netns)?;
    stage.load.sparse(connections, pause)?;
    Ok(process.stop()?.latencies)
}
