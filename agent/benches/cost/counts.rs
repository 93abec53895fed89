//! What does not depend on the machine: allocations, system calls and bytes, each for a thousand events.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::agent::Agent;
use crate::allocations::{Allocations, Counter};
use crate::load::{EVENTS, Load};
use crate::node::LOADED;
use crate::printer::{Keep, Printer, SETTLE};
use crate::proxy::Proxy;
use crate::stage::Stage;
use crate::syscalls::SystemCalls;

/// Load before what is counted, until every buffer is as large as it gets.
const WARM_UP: Duration = Duration::from_millis(500);

/// Load that is counted.
const SLICE: Duration = Duration::from_secs(1);

pub fn measure(stage: &mut Stage) -> Result<()> {
    let allocations = Allocations::new()?;
    let calls = SystemCalls::new()?;
    println!(
        "\n{:<34} {:>11}  {:>12}  {:>13}",
        "for 1,000 events", "allocations", "system calls", "bytes on wire"
    );
    for (name, arguments) in [
        ("tcptracer", &[][..]),
        ("tcptracer -o json", &["-o", "json"]),
    ] {
        stage.interrupt.check()?;
        let counter = allocations.counter(name)?;
        let (load, cpu) = (&mut stage.load, stage.tool_cpu);
        let tool = Printer::host_tool(arguments, load, cpu, Keep::Nothing, Some(&counter))?;
        let counted = Counted::new(name, tool.pid(), counter, &calls)?;
        print(&run(load, &tool, &calls, &[counted], || 0)?);
        tool.stop()?;
    }

    stage.interrupt.check()?;
    let counter = allocations.counter("agent")?;
    let agent = Agent::start(&stage.node, stage.tool_cpu, Some(&counter))?;
    let agents = Counted::new("agent", agent.pid(), counter, &calls)?;
    let proxy = Proxy::to(&agent.grpc, stage.tool_cpu)?;
    let counter = allocations.counter("plugin")?;
    let address = proxy.address.to_string();
    let plugin = Printer::plugin(
        &address,
        LOADED,
        stage.tool_cpu,
        Keep::Nothing,
        Some(&counter),
    )?;
    agent.wait_for_subscribers(1)?;
    let plugins = Counted::new("plugin -o jsonl", plugin.pid(), counter, &calls)?;
    let both = [agents, plugins];
    let wire = || proxy.answered();
    print(&run(&mut stage.load, &plugin, &calls, &both, wire)?);
    plugin.stop()?;
    agent.stop()
}

/// A process that is counted.
struct Counted {
    name: &'static str,
    pid: u32,
    allocations: Counter,
}

impl Counted {
    fn new(
        name: &'static str,
        pid: u32,
        allocations: Counter,
        calls: &SystemCalls,
    ) -> Result<Self> {
        calls.watch(pid)?;
        Ok(Self {
            name,
            pid,
            allocations,
        })
    }
}

/// Up to a moment.
struct Counts {
    allocations: u64,
    calls: u64,
    wire: u64,
}

/// For a thousand events.
struct Share {
    name: &'static str,
    allocations: f64,
    calls: f64,
    wire: f64,
}

/// What is counted between two moments of one run, before each of which everything has been printed.
fn run(
    load: &mut Load,
    printer: &Printer,
    calls: &SystemCalls,
    processes: &[Counted],
    wire: impl Fn() -> u64,
) -> Result<Vec<Share>> {
    let counts = || -> Result<Vec<Counts>> {
        thread::sleep(SETTLE);
        let of_one = |process: &Counted| {
            Ok(Counts {
                allocations: process.allocations.count()?,
                calls: calls.count(process.pid)?,
                wire: wire(),
            })
        };
        processes.iter().map(of_one).collect()
    };
    load.run(WARM_UP)?;
    let (before, printed) = (counts()?, printer.lines());
    let events = load.run(SLICE)?.connections * EVENTS;
    let after = counts()?;
    let printed = printer.lines() - printed;
    ensure!(
        printed == events,
        "{printed} of {events} events were printed"
    );
    let share = |before: u64, after: u64| (after - before) as f64 * 1e3 / events as f64;
    let moments = before.iter().zip(&after);
    let shares = processes
        .iter()
        .zip(moments)
        .map(|(process, (before, after))| Share {
            name: process.name,
            allocations: share(before.allocations, after.allocations),
            calls: share(before.calls, after.calls),
            wire: share(before.wire, after.wire),
        });
    Ok(shares.collect())
}

fn print(shares: &[Share]) {
    for share in shares {
        let wire = match share.wire {
            0.0 => String::new(),
            bytes => format!("{bytes:.0}"),
        };
        println!(
            "{:<34} {:>11.1}  {:>12.1}  {wire:>13}",
            share.name, share.allocations, share.calls
        );
    }
}
