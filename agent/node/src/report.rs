//! How the agent fares, as the node's task and the kernel say it on being asked.

use std::time::Duration;

use crate::hub::{Loss, Status};
use crate::identity::Sizes;
use jiff::Timestamp;

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
    /// Since when the agent has traced nothing because no client is subscribed; `None` while it traces.
    pub paused_since: Option<Timestamp>,
    /// How long that was so since the start.
    pub paused_for: Duration,
    /// Why the hooks could not be attached when somebody subscribed.
    pub attach_error: Option<String>,
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
