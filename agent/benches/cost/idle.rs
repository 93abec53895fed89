//! What an agent takes while nobody is subscribed.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use tcptracer_testing::attached_programs;

use crate::agent::Agent;
use crate::node::PODS;
use crate::targets::Targets;

/// For how long it is watched.
const WATCHED: Duration = Duration::from_secs(10);

/// After its start.
const SETTLE: Duration = Duration::from_secs(1);

/// Most that it may take of a CPU, in percent.
const SHARE: f64 = 0.1;

/// Most memory that it may hold, in MiB.
const RSS: f64 = 28.0;

/// To be called before anybody has subscribed.
pub fn measure(agent: &Agent, targets: &mut Targets) -> Result<()> {
    thread::sleep(SETTLE);
    let (before, begin) = (agent.cpu()?, Instant::now());
    thread::sleep(WATCHED);
    let taken = agent.cpu()?.saturating_sub(before);
    let share = taken.as_secs_f64() / begin.elapsed().as_secs_f64() * 100.0;
    let rss = agent.rss()?;
    let attached = attached_programs(agent.pid());
    println!(
        "\nan idle agent of {} pods takes {share:.3} % of a CPU over {WATCHED:?}, and holds {rss:.1} MiB; attached: {}",
        PODS,
        attached.join(", ")
    );
    targets.at_most("an idle agent: its share of a CPU", share, SHARE, "%");
    targets.at_most("an idle agent: its memory", rss, RSS, "MiB");
    Ok(())
}
