/*!
The node's task: it owns everything that changes while the agent runs.

Cgroups and events come from the tracer, pods from their source, questions from the servers, each by a
channel; the task takes one at a time, so no state is shared and none is locked. It waits for nobody: what it
cannot name yet is held back for some tens of milliseconds at most, and subscribers have queues. Nor does a
question make it work long, or keep it from the tracer: what takes time is done by who asks, in [`Handle`].
*/

mod containers;
mod ends;
mod handle;
mod held;
mod selection;
mod task;

use std::collections::{HashMap, HashSet};

use tcptracer::clock::Clock;
use tcptracer_event::Event;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::filter::Matcher;
use crate::hub::{Past, Subscription, Taken};
use crate::identity::{Attribution, Owner};
use crate::report::Report;

pub use containers::Containers;
pub use handle::Handle;
pub use selection::{FilterSet, Pair, PinnedFilterSet};
pub use task::{Inputs, Node, Parts};

/// What the servers ask the task for.
#[derive(Debug)]
pub enum Command {
    /// Events, from now on or from the past.
    Subscribe {
        /// By which it can be ended.
        id: Option<String>,
        /// Which ones.
        matcher: Matcher,
        /// What of the past.
        past: Past,
        /// Whether to go on after the past.
        follow: bool,
        /// Where they come.
        reply: oneshot::Sender<Result<Subscription, Taken>>,
    },
    /// That a subscription ends, with everything that the kernel has reported by now.
    End {
        /// Its id.
        id: String,
        /// Whether there is one. Its own end says when that is done.
        reply: oneshot::Sender<bool>,
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
