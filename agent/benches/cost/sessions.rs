//! The rows of the agent. It takes seconds of CPU time to start, so it does that seldom, and all its rows have some slices each
//! time.
//!
//! With a plugin it is compared with slices in which nobody is subscribed, as whose agent it is the same process. Without one it
//! is compared with the slices before its start and after its end.

use std::thread;

use anyhow::{Context, Result};

use crate::agent::Agent;
use crate::node::{LOADED, OTHERS};
use crate::printer::{Keep, Printer};
use crate::rows::{Base, LONG_SLICE, Measured, Row, SETTLE, Shown, Tool, loaded};
use crate::stage::Stage;

/// How often the rows with a plugin take turns in a session.
const TURNS: usize = 4;

/// From a start to an end. `before` is the base slice that was measured last.
pub fn run(stage: &mut Stage, rows: &mut [Row], before: &mut Base) -> Result<()> {
    let agent = stage.agent()?;
    let mut idle = Base::measure(&mut stage.load)?;
    let mut alone = None;
    for turn in 0..TURNS {
        for row in &mut *rows {
            stage.interrupt.check()?;
            let Tool::Agent(shown) = row.tool else {
                continue;
            };
            let label = || row.label.clone();
            // As far from the one base slice as from the other.
            if shown == Shown::Nothing && turn != TURNS / 2 {
                continue;
            }
            let measured = beside(stage, &agent, shown).with_context(label)?;
            thread::sleep(SETTLE);
            if shown == Shown::Nothing {
                alone = Some(measured);
                continue;
            }
            let after = Base::measure(&mut stage.load)?;
            row.add(&idle, &measured, &after);
            idle = after;
        }
    }
    agent.stop()?;
    thread::sleep(SETTLE);
    let after = Base::measure(&mut stage.load)?;
    let is_alone = |row: &&mut Row| matches!(row.tool, Tool::Agent(Shown::Nothing));
    if let Some((row, measured)) = rows.iter_mut().find(is_alone).zip(alone) {
        row.add(before, &measured, &after);
    }
    *before = after;
    Ok(())
}

/// A slice beside the agent and the plugin that shows this.
fn beside(stage: &mut Stage, agent: &Agent, shown: Shown) -> Result<Measured> {
    let lost = agent.lost()?;
    let plugins = match shown {
        Shown::Nothing => Vec::new(),
        Shown::Others => stage.plugins(1, agent, OTHERS, Keep::Nothing)?,
        Shown::Load => stage.plugins(1, agent, LOADED, Keep::Nothing)?,
    };
    let clocks = || {
        let plugin = plugins.iter().map(Printer::cpu).sum::<Result<_>>()?;
        Ok([agent.cpu()?, plugin])
    };
    let load = loaded(&mut stage.load, LONG_SLICE, clocks)?;
    let mut captured = 0;
    for plugin in plugins {
        captured += plugin.stop()?;
    }
    agent.wait_for_subscribers(0)?;
    agent.wait_until_idle()?;
    Ok(Measured {
        load,
        captured,
        lost: agent.lost()? - lost,
        skipped: 0,
    })
}
