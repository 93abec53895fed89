//! An event or a connection as it is shown: what came from an agent, with every text made printable.
//!
//! The field names are a promise, and those of the host tool (docs/json.md) where it has them; what does not apply is
//! left out.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use tcptracer_proto::v1;

use crate::text::printable;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// This side connected.
    Connect,
    /// A process accepted.
    Accept,
    /// The connection ended.
    Close,
    /// A connect that never was established.
    Failed,
    /// It is open now.
    Existing,
    /// An agent newer than this program may know others.
    Unknown,
}

impl Kind {
    /// As in the column TYPE.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Accept => "accept",
            Self::Close => "close",
            Self::Failed => "failed",
            Self::Existing => "existing",
            Self::Unknown => "unknown",
        }
    }

    /// As in the column T.
    pub fn letter(self) -> &'static str {
        match self {
            Self::Connect => "C",
            Self::Accept => "A",
            Self::Close => "X",
            Self::Failed => "F",
            Self::Existing => "E",
            Self::Unknown => "?",
        }
    }
}

/// How sure it is whose the process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Attribution {
    /// A container of a pod that is named.
    Resolved,
    /// In no container.
    Host,
    /// A container whose pod was not known yet.
    Pending,
    /// It could not be told.
    Unknown,
}

/// What made the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Workload {
    /// Such as `Deployment`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// One event, or one open connection. Fields in the order in which they are written; docs/kubectl-tcptracer.md has
/// their meanings.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub r#type: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<Timestamp>,
    pub node: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    pub attribution: Attribution,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pod: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pod_uid: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub container: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub container_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub image: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<Workload>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_network: Option<bool>,
    pub id: String,
    pub role: &'static str,
    pub pid: u32,
    pub tid: u32,
    pub uid: u32,
    pub comm: String,
    pub source: &'static str,
    pub cgroup_id: u64,
    pub mntns: u32,
    pub netns: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<u8>,
    pub saddr: String,
    pub daddr: String,
    pub sport: u32,
    pub dport: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub syn: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub established: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_fin: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handshake_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accept_wait_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closer_pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closer_comm: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_sent: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_received: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segments_sent: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segments_received: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retransmits: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub srtt_us: Option<u64>,
}

impl Row {
    /// An event of `node`.
    pub fn of_event(node: &str, event: v1::Event) -> Self {
        let kind = kind(event.r#type());
        let ended = matches!(kind, Kind::Close | Kind::Failed);
        let reason = ended.then(|| reason(event.reason()));
        let mut row = Self::of_connection(node, event.connection.unwrap_or_default());
        row.r#type = kind;
        row.time = event.time.and_then(timestamp);
        row.sequence = Some(event.sequence);
        row.reason = reason;
        row.errno = (event.errno != 0).then_some(event.errno);
        row.first_fin = event.first_fin.and_then(timestamp);
        row.duration_ns = event.duration.and_then(nanos);
        row.closer_pid = event.closer.as_ref().map(|c| c.pid);
        row.closer_comm = event.closer.map(|c| printable(&c.comm));
        if let Some(counters) = event.counters {
            row.bytes_sent = Some(counters.bytes_sent);
            row.bytes_received = Some(counters.bytes_received);
            row.segments_sent = Some(counters.segments_sent);
            row.segments_received = Some(counters.segments_received);
            row.retransmits = Some(counters.retransmits);
            row.srtt_us = counters.srtt.and_then(nanos).map(|ns| ns / 1000);
        }
        row
    }

    /// A connection of `node` that is open now.
    pub fn of_connection(node: &str, connection: v1::Connection) -> Self {
        let role = role(connection.role());
        let ip = ip(connection.family());
        let process = connection.process.unwrap_or_default();
        let identity = connection.identity.unwrap_or_default();
        let local = connection.local.unwrap_or_default();
        let remote = connection.remote.unwrap_or_default();
        let [syn, established, accepted] =
            [connection.syn, connection.established, connection.accepted]
                .map(|t| t.and_then(timestamp));

        Self {
            r#type: Kind::Existing,
            time: established.or(accepted).or(syn),
            node: printable(node),
            sequence: None,
            attribution: attribution(identity.attribution()),
            host_network: (!identity.pod.is_empty()).then_some(identity.host_network),
            namespace: printable(&identity.namespace),
            pod: printable(&identity.pod),
            pod_uid: printable(&identity.pod_uid),
            container: printable(&identity.container),
            container_id: printable(&identity.container_id),
            image: printable(&identity.image),
            workload: identity.workload.map(|w| Workload {
                kind: printable(&w.kind),
                name: printable(&w.name),
            }),
            labels: identity
                .labels
                .iter()
                .map(|(key, value)| (printable(key), printable(value)))
                .collect(),
            id: printable(&connection.id),
            role,
            pid: process.pid,
            tid: process.tid,
            uid: process.uid,
            comm: printable(&process.comm),
            source: source(process.source()),
            cgroup_id: process.cgroup_id,
            mntns: process.mntns,
            netns: connection.netns,
            ip,
            saddr: printable(&local.address),
            daddr: printable(&remote.address),
            sport: local.port,
            dport: remote.port,
            handshake_ns: between(syn, established),
            accept_wait_ns: between(established, accepted),
            syn,
            established,
            accepted,
            first_fin: None,
            duration_ns: None,
            reason: None,
            errno: None,
            closer_pid: None,
            closer_comm: None,
            bytes_sent: None,
            bytes_received: None,
            segments_sent: None,
            segments_received: None,
            retransmits: None,
            srtt_us: None,
        }
    }
}

fn kind(kind: v1::EventType) -> Kind {
    match kind {
        v1::EventType::Connect => Kind::Connect,
        v1::EventType::Accept => Kind::Accept,
        v1::EventType::Close => Kind::Close,
        v1::EventType::Failed => Kind::Failed,
        v1::EventType::Unspecified => Kind::Unknown,
    }
}

fn attribution(attribution: v1::Attribution) -> Attribution {
    match attribution {
        v1::Attribution::Resolved => Attribution::Resolved,
        v1::Attribution::Host => Attribution::Host,
        v1::Attribution::Pending => Attribution::Pending,
        v1::Attribution::Unknown | v1::Attribution::Unspecified => Attribution::Unknown,
    }
}

fn role(role: v1::Role) -> &'static str {
    match role {
        v1::Role::Client => "client",
        v1::Role::Server => "server",
        v1::Role::Unspecified => "unknown",
    }
}

fn source(source: v1::ProcessSource) -> &'static str {
    match source {
        v1::ProcessSource::Connect => "connect",
        v1::ProcessSource::Accept => "accept",
        v1::ProcessSource::Listener => "listener",
        v1::ProcessSource::Snapshot => "snapshot",
        v1::ProcessSource::Closer => "closer",
        v1::ProcessSource::Unspecified => "unknown",
    }
}

fn reason(reason: v1::CloseReason) -> &'static str {
    match reason {
        v1::CloseReason::Local => "local",
        v1::CloseReason::Remote => "remote",
        v1::CloseReason::ResetLocal => "reset-local",
        v1::CloseReason::ResetRemote => "reset-remote",
        v1::CloseReason::Timeout => "timeout",
        v1::CloseReason::Abort => "abort",
        v1::CloseReason::Unspecified => "unknown",
    }
}

fn ip(family: v1::IpFamily) -> Option<u8> {
    match family {
        v1::IpFamily::V4 => Some(4),
        v1::IpFamily::V6 => Some(6),
        v1::IpFamily::Unspecified => None,
    }
}

/// `None` if it is no moment that can be written.
pub fn timestamp(time: prost_types::Timestamp) -> Option<Timestamp> {
    Timestamp::new(time.seconds, time.nanos).ok()
}

fn nanos(duration: prost_types::Duration) -> Option<u64> {
    let duration = std::time::Duration::try_from(duration).ok()?;
    u64::try_from(duration.as_nanos()).ok()
}

fn between(from: Option<Timestamp>, to: Option<Timestamp>) -> Option<u64> {
    u64::try_from(to?.as_nanosecond() - from?.as_nanosecond()).ok()
}
