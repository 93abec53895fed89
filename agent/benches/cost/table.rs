//! The table of rows that is printed in the end.

use procfs::{CpuInfo, Current, LoadAverage};
use rustix::system::uname;

use crate::latency::{self, Latency};
use crate::rows::{Base, Pair, Row, Shown, Tool};
use crate::stats::{estimate, median};
use crate::targets::Targets;
use crate::tracer::Mode;

/// Most that the host tool may add to a connection that is not selected, in microseconds.
const UNSELECTED_US: f64 = 1.2;
/// The same for one that is.
const SELECTED_US: f64 = 3.5;
/// The same of the agent.
const AGENT_UNSELECTED_US: f64 = 1.6;
const AGENT_SELECTED_US: f64 = 2.4;
/// Most that the agent may take itself for a connection that a subscriber sees, in microseconds.
const AGENT_OWN_US: f64 = 5.0;
/// Least share of the connection rate that is kept.
const RATE_KEPT: f64 = 0.92;
/// Most that half of the isolated events may take to the consumer in our own process, in milliseconds.
const LATENCY_MS: f64 = 1.0;

/// The machine, because the numbers are of this one only.
pub fn print_machine(load_cpu: usize, tool_cpu: usize) {
    let cpuinfo = CpuInfo::current().ok();
    let model = cpuinfo.as_ref().and_then(|info| info.model_name(0));
    let model = model.unwrap_or("unknown CPU");
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    println!(
        "{model}, {cpus} CPUs; Linux {}; load on CPU {load_cpu}, tools on CPU {tool_cpu}",
        uname().release().to_string_lossy(),
    );
    print_load();
}

/// What else the machine does.
pub fn print_load() {
    if let Ok(load) = LoadAverage::current() {
        println!(
            "load average {:.2} {:.2} {:.2} {}/{} {}",
            load.one, load.five, load.fifteen, load.cur, load.max, load.latest_pid
        );
    }
}

pub fn print_rows(rows: &[Row], bases: &[Base]) {
    let base = |value: fn(&Base) -> f64| median(&bases.iter().map(value).collect::<Vec<_>>());
    println!(
        "\nwithout a tool: {:.1} µs of CPU time a connection, {:.0} connections a second, {:.0} ns a getppid\n",
        base(|base| base.slice.cpu_us()),
        base(|base| base.slice.rate()),
        base(|base| base.unrelated_ns),
    );
    println!(
        "{:<34} {:>5}  {:>22}  {:>7}  {:>9}  {:>7}  {:>9}  {:>19}  {:>6}  {:>18}",
        "",
        "pairs",
        "added µs [95 % CI]",
        "added %",
        "rate kept",
        "own µs",
        "plugin µs",
        "events / expected",
        "lost",
        "getppid ns"
    );
    for row in rows {
        println!("{}", line(row));
    }
    println!(
        "\nadded: CPU time of the load thread for a connection (both ends), softirq included; \
         own: that of the tool's process;\nplugin: that of the plugin's; getppid: what a system call \
         pays that has nothing to do with connections.\nMedians of paired differences against the slices before \
         and after; of an agent with a plugin, against those beside it while nobody is subscribed.\nThese numbers hold for this machine only: compare rows, not runs."
    );
    let skipped: u64 = rows.iter().map(|row| row.skipped).sum();
    if skipped > 0 {
        println!("The kernel skipped {skipped} runs of our programs, which others made up for.");
    }
}

fn line(row: &Row) -> String {
    if row.pairs.is_empty() {
        return format!("{:<34} {:>5}", row.label, 0);
    }
    let added = estimate(&column(row, |p| p.added_cpu));
    let (own, captured, lost) = match row.tool {
        Tool::Ours(_, Mode::Nothing | Mode::Empty) => Default::default(),
        _ => (
            format!("{:.2}", median(&column(row, |p| p.own_cpu))),
            format!("{} / {}", row.captured, row.expected),
            row.lost.to_string(),
        ),
    };
    let plugin = match row.tool {
        Tool::Agent(Shown::Others | Shown::Load) => {
            format!("{:.2}", median(&column(row, |p| p.plugin_cpu)))
        }
        _ => String::new(),
    };
    format!(
        "{:<34} {:>5}  {:>22}  {:>7.1}  {:>9.3}  {own:>7}  {plugin:>9}  {captured:>19}  {lost:>6}  {:>18}",
        row.label,
        row.pairs.len(),
        format!("{:+.2} [{:.2}, {:.2}]", added.median, added.low, added.high),
        median(&column(row, |p| p.added_share)) * 100.0,
        median(&column(row, |p| p.rate_kept)),
        format!(
            "{:+.1} ({:+.1} %)",
            median(&column(row, |p| p.added_unrelated)),
            median(&column(row, |p| p.unrelated_share)) * 100.0
        )
    )
}

fn column(row: &Row, value: impl Fn(&Pair) -> f64) -> Vec<f64> {
    row.pairs.iter().map(value).collect()
}

/// The targets, for every row of ours that has one.
pub fn check_rows(rows: &[Row], targets: &mut Targets) {
    for row in rows.iter().filter(|row| !row.pairs.is_empty()) {
        let label = &row.label;
        let added = estimate(&column(row, |p| p.added_cpu));
        let limit = match row.tool {
            Tool::Ours(_, Mode::Unselected | Mode::Unfollowed) => UNSELECTED_US,
            Tool::Ours(_, Mode::Selected) => SELECTED_US,
            Tool::Agent(Shown::Nothing) => {
                let what = format!("{label}: added to a connection");
                targets.nothing(&what, added, "µs");
                continue;
            }
            Tool::Agent(Shown::Others) => AGENT_UNSELECTED_US,
            Tool::Agent(Shown::Load) => AGENT_SELECTED_US,
            Tool::Ours(_, Mode::Nothing | Mode::Empty) | Tool::Peer(_) => continue,
        };
        let what = format!("{label}: added to a connection");
        targets.at_most(&what, added.median, limit, "µs");
        match row.tool {
            Tool::Agent(Shown::Load) => {
                let own = median(&column(row, |p| p.own_cpu));
                let what = format!("{label}: its own CPU a connection");
                targets.at_most(&what, own, AGENT_OWN_US, "µs");
            }
            Tool::Ours(..) => {
                let kept = median(&column(row, |p| p.rate_kept));
                targets.at_least(&format!("{label}: kept"), kept, RATE_KEPT, "of the rate");
            }
            _ => {}
        }
    }
}

/// Of our own process.
pub fn print_latencies(latencies: &[Latency], targets: &mut Targets) {
    let isolated = latency::isolated(latencies);
    println!(
        "\nan isolated event is in user space after {:.3} ms (p50), {:.3} ms (p99), {:.3} ms (worst)",
        isolated.p50, isolated.p99, isolated.worst
    );
    let all = latency::all(latencies);
    println!(
        "with the events that closely follow one: {:.3} ms (p50), {:.3} ms (p99), {:.3} ms (worst)",
        all.p50, all.p99, all.worst
    );
    let what = "an isolated event in user space: p50";
    targets.at_most(what, isolated.p50, LATENCY_MS, "ms");
}
