//! What is printed in the end.

use procfs::{CpuInfo, Current, LoadAverage};
use rustix::system::uname;

use crate::rows::{Pair, Row, Tool};
use crate::stats::{estimate, median, quantile};
use crate::tracer::{Latency, Mode};

/// Most that ours may add to a connection that is not selected, in microseconds.
const UNSELECTED_US: f64 = 1.2;
/// The same for one that is.
const SELECTED_US: f64 = 3.5;
/// Least share of the connection rate that is kept.
const RATE_KEPT: f64 = 0.92;
/// Most that half of the isolated events may take to user space, in milliseconds.
const LATENCY_MS: f64 = 1.0;

/// An event is isolated if none came in the 10 ms before it.
const ISOLATION_NS: u64 = 10_000_000;

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
    if let Ok(load) = LoadAverage::current() {
        println!(
            "load average {:.2} {:.2} {:.2} {}/{} {}",
            load.one, load.five, load.fifteen, load.cur, load.max, load.latest_pid
        );
    }
}

pub fn print_rows(rows: &[Row], base_cpu: &[f64], base_rate: &[f64]) {
    println!(
        "\nwithout a tool: {:.1} µs of CPU time a connection, {:.0} connections a second\n",
        median(base_cpu),
        median(base_rate)
    );
    println!(
        "{:<34} {:>5}  {:>22}  {:>7}  {:>9}  {:>7}  {:>19}  {:>6}",
        "",
        "pairs",
        "added µs [95 % CI]",
        "added %",
        "rate kept",
        "own µs",
        "events / expected",
        "lost"
    );
    for row in rows {
        println!("{}", line(row));
    }
    println!(
        "\nadded: CPU time of the load thread for a connection (both ends), softirq included; \
         own: that of the tool's process.\nMedians of paired differences against the slices before \
         and after. These numbers hold for this machine only: compare rows, not runs."
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
    format!(
        "{:<34} {:>5}  {:>22}  {:>7.1}  {:>9.3}  {own:>7}  {captured:>19}  {lost:>6}",
        row.label,
        row.pairs.len(),
        format!("{:+.2} [{:.2}, {:.2}]", added.median, added.low, added.high),
        median(&column(row, |p| p.added_share)) * 100.0,
        median(&column(row, |p| p.rate_kept)),
    )
}

fn column(row: &Row, value: impl Fn(&Pair) -> f64) -> Vec<f64> {
    row.pairs.iter().map(value).collect()
}

/// The targets, for every row of ours that has one.
pub fn print_targets(rows: &[Row], latencies: &[Latency]) {
    println!();
    for row in rows.iter().filter(|row| !row.pairs.is_empty()) {
        let limit = match row.tool {
            Tool::Ours(_, Mode::Unselected | Mode::Unfollowed) => UNSELECTED_US,
            Tool::Ours(_, Mode::Selected) => SELECTED_US,
            _ => continue,
        };
        let added = median(&column(row, |p| p.added_cpu));
        let kept = median(&column(row, |p| p.rate_kept));
        println!(
            "{:<34} ≤ {limit} µs: {}; ≥ {RATE_KEPT} of the rate: {}",
            row.label,
            verdict(added, limit, added <= limit),
            verdict(kept, RATE_KEPT, kept >= RATE_KEPT),
        );
    }
    print_latencies(latencies);
}

fn verdict(value: f64, limit: f64, met: bool) -> String {
    if met {
        format!("met ({value:.2})")
    } else {
        format!("MISSED by {:.2} ({value:.2})", (value - limit).abs())
    }
}

fn print_latencies(latencies: &[Latency]) {
    let all: Vec<f64> = latencies.iter().map(|l| l.delay as f64 / 1e6).collect();
    let isolated: Vec<f64> = latencies
        .windows(2)
        .filter(|pair| pair[1].time.saturating_sub(pair[0].time) >= ISOLATION_NS)
        .map(|pair| pair[1].delay as f64 / 1e6)
        .collect();
    let [p50, p99, worst] = percentiles(isolated);
    println!(
        "an isolated event is in user space after {p50:.3} ms (p50), {p99:.3} ms (p99), \
         {worst:.3} ms (worst); ≤ {LATENCY_MS} ms p50: {}",
        verdict(p50, LATENCY_MS, p50 <= LATENCY_MS)
    );
    let [p50, p99, worst] = percentiles(all);
    println!(
        "with the events that closely follow one: {p50:.3} ms (p50), {p99:.3} ms (p99), \
         {worst:.3} ms (worst)"
    );
}

fn percentiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [0.5, 0.99, 1.0].map(|q| quantile(&values, q))
}
