/*!
The node's task: it owns everything that changes while the agent runs.

Cgroups and events come from the tracer, pods from their source, questions from the servers, each by a
channel; the task takes one at a time, so no state is shared and none is locked. It waits for nobody: what it
cannot name yet is held back for some tens of milliseconds at most, and subscribers have queues.
*/

mod containers;
mod held;
mod selection;
mod task;

use std::time::Duration;

use tokio::sync::oneshot;

use crate::clock::Clock;
use crate::event::Event;
use crate::filter::Matcher;
use crate::hub::{Loss, Status, Subscription};
use crate::identity::{Attribution, Sizes};

pub use containers::Containers;
pub use selection::{FilterSet, Pair, PinnedFilterSet};
pub use task::{Config, Inputs, Node};

/// Where a subscription begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// With what happens next.
    Now,
    /// So long ago.
    Ago(Duration),
    /// With so many of the latest events.
    Last(usize),
    /// After this event.
    After(u64),
}

/// What the servers ask the task for.
#[derive(Debug)]
pub enum Command {
    /// Events, from now on or from the past.
    Subscribe {
        /// Which ones.
        matcher: Matcher,
        /// From when on.
        since: Since,
        /// Whether to go on after the past.
        follow: bool,
        /// Where they come.
        reply: oneshot::Sender<Subscription>,
    },
    /// The connections that are open.
    Connections {
        /// Which ones.
        matcher: Matcher,
        /// Where the answer comes.
        reply: oneshot::Sender<anyhow::Result<Listing>>,
    },
    /// How the agent fares.
    Report(oneshot::Sender<Report>),
}

/// The connections that are open.
#[derive(Clone, Debug)]
pub struct Listing {
    /// Relates their times to the time of day.
    pub clock: Clock,
    /// Their state, and whose they are, as they were opened.
    pub connections: Vec<(Event, Attribution)>,
}

/// A filter map in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapUse {
    /// Its name: `cgroupmap`, `mntnsmap`, with the filter set's before it.
    pub name: String,
    /// Entries in use.
    pub entries: usize,
    /// Entries there is room for.
    pub capacity: usize,
}

/// What a program has cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramRuns {
    /// Its hook.
    pub hook: &'static str,
    /// How long it ran in all.
    pub run_time: Duration,
    /// How often.
    pub runs: u64,
}

/// How the agent fares.
#[derive(Clone, Debug)]
pub struct Report {
    /// As subscribers are told.
    pub status: Status,
    /// The last event's number.
    pub sequence: u64,
    /// Open streams.
    pub subscribers: usize,
    /// Events in the history.
    pub history: usize,
    /// Pods that exist.
    pub pods: usize,
    /// How much is known.
    pub sizes: Sizes,
    /// What was lost since the start, but for subscribers that were too slow.
    pub lost: Vec<Loss>,
    /// Filter maps.
    pub maps: Vec<MapUse>,
    /// Programs.
    pub programs: Vec<ProgramRuns>,
}

impl Report {
    /// Whether the pods are known and their source answers.
    pub fn is_synced(&self) -> bool {
        self.status.pods_synced && self.status.pods_error.is_none()
    }
}
