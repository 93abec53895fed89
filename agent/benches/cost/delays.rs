//! How long an event takes to the standard output of who prints it.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::agent::Agent;
use crate::latency::{self, Latency, Percentiles};
use crate::node::LOADED;
use crate::printer::{Keep, Printer, SETTLE};
use crate::stage::Stage;
use crate::targets::Targets;

/// The connections whose latency is measured, and the pause before each end of them.
pub const SPARSE: (u32, Duration) = (150, Duration::from_millis(20));

/// How long the load runs as fast as it can.
const SATURATED: Duration = Duration::from_secs(1);

/// Most that half of the isolated events may take to the plugin's output, in milliseconds.
const PLUGIN_MS: f64 = 0.25;

pub fn of_host_tool(stage: &mut Stage) -> Result<()> {
    let (load, cpu) = (&mut stage.load, stage.tool_cpu);
    let tool = Printer::host_tool(&["-o", "json"], load, cpu, Keep::Everything, None)?;
    measure(stage, "tcptracer -o json", &tool)?;
    tool.stop()?;
    Ok(())
}

pub fn of_plugin(stage: &mut Stage, agent: &Agent, targets: &mut Targets) -> Result<()> {
    let mut plugins = stage.plugins(1, agent, LOADED, Keep::Everything)?;
    let plugin = plugins.pop().context("no plugin")?;
    let isolated = measure(stage, "agent and plugin -o jsonl", &plugin)?;
    plugin.stop()?;
    agent.wait_for_subscribers(0)?;
    let what = "an isolated event on the plugin's stdout: p50";
    targets.at_most(what, isolated.p50, PLUGIN_MS, "ms");
    Ok(())
}

/// Returns those of isolated events.
fn measure(stage: &mut Stage, what: &str, printer: &Printer) -> Result<Percentiles> {
    stage.interrupt.check()?;
    settled(printer)?;
    let (connections, pause) = SPARSE;
    stage.load.sparse(connections, pause)?;
    let isolated = latency::isolated(&settled(printer)?);
    stage.load.run(SATURATED)?;
    let saturated = latency::all(&settled(printer)?);
    for (when, of) in [("isolated", &isolated), ("under full load", &saturated)] {
        println!(
            "{what}: an event is on stdout after {:.3} ms (p50), {:.3} ms (p99), {:.3} ms (worst), {when}",
            of.p50, of.p99, of.worst
        );
    }
    Ok(isolated)
}

fn settled(printer: &Printer) -> Result<Vec<Latency>> {
    thread::sleep(SETTLE);
    printer.latencies()
}
