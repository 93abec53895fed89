//! What each further subscriber costs the agent.

use std::thread;
use std::time::Duration;

use anyhow::Result;

use crate::agent::Agent;
use crate::load::EVENTS;
use crate::node::LOADED;
use crate::printer::{Keep, SETTLE};
use crate::stage::Stage;
use crate::stats::median;
use crate::targets::Targets;

/// How many more than one.
const FURTHER: u32 = 10;

/// How often one is compared with many.
const ROUNDS: usize = 5;

const SLICE: Duration = Duration::from_millis(500);

/// Most that the agent may take for an event and a further subscriber, in nanoseconds.
const FURTHER_NS: f64 = 100.0;

pub fn measure(stage: &mut Stage, agent: &Agent, targets: &mut Targets) -> Result<()> {
    let lost = agent.lost()?;
    let (mut of_one, mut of_many, mut further) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let one = per_event(stage, agent, 1)?;
        let many = per_event(stage, agent, 1 + FURTHER)?;
        further.push((many.ns - one.ns) / f64::from(FURTHER));
        of_one.push(one);
        of_many.push(many);
    }
    let lost = agent.lost()? - lost;
    let column = |of: &[PerEvent], value: fn(&PerEvent) -> f64| {
        median(&of.iter().map(value).collect::<Vec<_>>())
    };
    let many = 1 + FURTHER;
    println!(
        "\nthe agent takes {:.0} ns for an event with 1 subscriber, {:.0} ns with {many}: {:.0} ns for each further one; \
         lost: {lost}\nit holds {:.1} MiB with 1 subscriber, {:.1} MiB with {many}",
        column(&of_one, |of| of.ns),
        column(&of_many, |of| of.ns),
        median(&further),
        column(&of_one, |of| of.rss),
        column(&of_many, |of| of.rss),
    );
    let what = "a further subscriber: the agent's CPU an event";
    targets.at_most(what, median(&further), FURTHER_NS, "ns");
    Ok(())
}

struct PerEvent {
    /// CPU time.
    ns: f64,
    /// In MiB, afterwards.
    rss: f64,
}

fn per_event(stage: &mut Stage, agent: &Agent, subscribers: u32) -> Result<PerEvent> {
    stage.interrupt.check()?;
    let plugins = stage.plugins(subscribers, agent, LOADED, Keep::Nothing)?;
    thread::sleep(SETTLE);
    let before = agent.cpu()?;
    let events = EVENTS * stage.load.run(SLICE)?.connections;
    // As many as the plugins are, they fall behind.
    for plugin in &plugins {
        plugin.wait_for_lines(events)?;
    }
    thread::sleep(SETTLE);
    let taken = agent.cpu()?.saturating_sub(before);
    let rss = agent.rss()?;
    for plugin in plugins {
        plugin.stop()?;
    }
    agent.wait_for_subscribers(0)?;
    Ok(PerEvent {
        ns: taken.as_nanos() as f64 / events as f64,
        rss,
    })
}
