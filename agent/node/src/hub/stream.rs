//! What a subscriber asks for and what it gets.

use std::sync::Arc;

use jiff::Timestamp;
use tcptracer_event::{LossSource, Nanos};
use tcptracer_proto::EncodedEvent;

/// So much was lost there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Where.
    pub source: LossSource,
    /// How much since the last time.
    pub count: u64,
}

/// A time in which nothing was traced, since nobody asked. What happened then is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pause {
    /// When it began.
    pub from: Timestamp,
    /// When it ended, if it has.
    pub to: Option<Timestamp>,
}

/// A place in the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The last event before it.
    pub sequence: u64,
    /// How much had been reported as lost to all subscribers before it; a pause counts as one.
    pub lost: u64,
}

/// Another subscriber goes by that id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken;

/// How the node fares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The pods are known.
    pub pods_synced: bool,
    /// Why the source of pods does not answer.
    pub pods_error: Option<String>,
    /// What goes unseen.
    pub shortcomings: Vec<String>,
}

/// What to send of the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Past {
    /// Nothing.
    None,
    /// Events at this time or later.
    Since(Nanos),
    /// So many of the latest that pass.
    Last(usize),
    /// What came after this.
    After(Position),
}

/// What a subscriber gets.
#[derive(Clone, Debug)]
pub enum Item {
    /// Events, in order.
    Events(Vec<EncodedEvent>),
    /// Something was lost here, and where to resume behind it; not given if more that was lost there follows.
    Lost(Loss, Option<Position>),
    /// Nothing was traced here, and where to resume behind it.
    Paused(Pause, Position),
    /// How the node fares, where that is, and whether what follows is new.
    Status(Arc<Status>, Position, bool),
}

impl Item {
    /// How much of the queue it takes.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Events(events) => events.len(),
            Self::Lost(..) | Self::Paused(..) | Self::Status(..) => 1,
        }
    }
}
