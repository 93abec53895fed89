/*!
The node's task: it owns everything that changes while the agent runs.

Cgroups and events come from the tracer, pods from their source, questions from the servers, each by a
channel; the task takes one at a time, so no state is shared and none is locked. It waits for nobody: what it
cannot name yet is held back for some tens of milliseconds at most, and subscribers have queues. Nor does a
question make it work long, or keep it from the tracer: what takes time is done by who asks, in [`Handle`].
*/

mod containers;
mod handle;
mod held;
mod selection;
mod task;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::clock::{self, Clock};
use crate::event::{Event, Nanos};
use crate::filter::Matcher;
use crate::hub::{Loss, Position, Status, Subscription};
use crate::identity::{Attribution, ContainerKey, Index, Sizes};

pub use containers::Containers;
pub use handle::{Handle, ProgramRuns};
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
    /// After this.
    After(Position),
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
    /// Whose processes are, all as of one moment, and how to write times then.
    Name {
        /// Theirs.
        owners: HashSet<Owner>,
        /// Where the answer comes.
        reply: oneshot::Sender<(Clock, HashMap<Owner, Attribution>)>,
    },
    /// How the agent fares.
    Report(oneshot::Sender<Report>),
}

/// What tells whose a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// The id of its cgroup.
    pub cgroup: u64,
    /// The inode of its mount namespace.
    pub mntns: u64,
    /// When it was in both; long ago, if that is not known.
    pub since: Option<Nanos>,
}

impl Owner {
    /// The event's.
    pub fn of(event: &Event) -> Self {
        Self {
            cgroup: event.owner.cgroup_id,
            mntns: event.owner.mntns.into(),
            since: event.owned_since(),
        }
    }

    /// Whose it is, by what is known now.
    fn whose(self, index: &Index) -> (Option<ContainerKey>, Attribution) {
        let since = self.since.and_then(clock::instant);
        index.attribute(self.cgroup, self.mntns, since)
    }
}

/// The connections that are open.
#[derive(Debug)]
pub struct Listing {
    /// Relates their times to the time of day.
    pub clock: Clock,
    /// Their state, and whose they are, in the order in which they were opened.
    pub connections: Vec<(Event, Attribution)>,
    /// There are few lists at a time.
    _turn: OwnedSemaphorePermit,
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
    /// Containers for which there is none.
    pub without_room: usize,
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
}

impl Report {
    /// Whether the pods are known and their source answers.
    pub fn is_synced(&self) -> bool {
        self.status.pods_synced && self.status.pods_error.is_none()
    }
}
