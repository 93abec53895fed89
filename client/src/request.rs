//! What agents are asked for.

use tcptracer_proto::v1;
use tcptracer_proto::v1::watch_request::History;

/// Which events, as an agent takes it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filters {
    /// One of these has to pass; all do if there is none.
    pub allow: Vec<v1::Filter>,
    /// None of these may pass.
    pub deny: Vec<v1::Filter>,
}

/// From when to when.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// What of the past: how long ago and later, or how many of the latest; of all agents together, if their streams are
    /// merged. Where to resume is the session's own concern.
    pub past: Option<History>,
    /// Go on with what happens.
    pub follow: bool,
}
