//! What was not reported, and where it was lost.

/// Where something was lost on the way to a subscriber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LossSource {
    /// The kernel's ring was full.
    Ring,
    /// The kernel's table of connections was full.
    Connections,
    /// Connections ended that were not followed.
    Untracked,
    /// The agent was too slow, or could not learn the container of an event.
    Agent,
    /// The subscriber was too slow.
    Subscriber,
    /// The history does not reach back so far.
    History,
    /// Containers for which the filter map had no room.
    FilterMap,
}

impl LossSource {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::Connections => "connections",
            Self::Untracked => "untracked",
            Self::Agent => "agent",
            Self::Subscriber => "subscriber",
            Self::History => "history",
            Self::FilterMap => "filter-map",
        }
    }
}

/// Everything that was not reported, counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Events that had no room in the ring.
    pub ring_full: u64,
    /// Connections that had no room in the state map: none of their events were reported.
    pub map_full: u64,
    /// Connections that ended without ever having had state; includes those of `map_full`.
    pub untracked: u64,
    /// Events that the consumer was too slow to take.
    pub queue_full: u64,
    /// Records that could not be decoded.
    pub undecodable: u64,
    /// Runs of our programs that the kernel skipped because they were running already. Most of
    /// what they would have said is made up for by a later hook.
    pub skipped_runs: u64,
    /// Cgroups whose creation or removal was not reported. They are no events: a consumer that keeps track of cgroups has to scan.
    pub cgroups: u64,
}

impl Losses {
    /// Events that were made and did not reach the consumer.
    pub fn events(&self) -> u64 {
        self.ring_full + self.queue_full + self.undecodable
    }

    /// The same by the place where it was lost.
    pub fn by_source(&self) -> [(LossSource, u64); 4] {
        [
            (LossSource::Ring, self.ring_full),
            (LossSource::Connections, self.map_full),
            (LossSource::Untracked, self.untracked),
            (LossSource::Agent, self.queue_full + self.undecodable),
        ]
    }
}
