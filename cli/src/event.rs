//! An event or a connection as it is shown: what came from an agent, with every text made printable.
//!
//! The field names are a promise: those of the host tool (docs/json.md), from [`Record::put_fields`], and those that say where
//! and whose it was. What does not apply is left out.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::ser::{Serialize, SerializeMap, Serializer};
use tcptracer_client::time::timestamp;
use tcptracer_event::{Field, Kind, Reason, Record, Role, Source, Value, printable};
use tcptracer_proto::v1;

/// How sure it is whose the process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Workload {
    /// Such as `Deployment`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// Where it happened, and whose it is. Fields in the order in which they are written; docs/kubectl-tcptracer.md has their
/// meanings.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Whose {
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
}
/// One event, or one open connection.
#[derive(Clone, Debug)]
pub struct Row {
    pub whose: Whose,
    pub record: Record<'static, Timestamp>,
}

impl Row {
    /// An event of `node`.
    pub fn of_event(node: &str, event: v1::Event) -> Self {
        let kind = event.r#type().known();
        let reason = event.reason().known().unwrap_or(Reason::Unknown);
        let counters = event.counters.as_ref();
        let srtt = counters.and_then(|c| c.srtt).and_then(nanos);
        let of_connection = Self::of_connection(node, event.connection.unwrap_or_default());
        Self {
            whose: Whose {
                sequence: Some(event.sequence),
                ..of_connection.whose
            },
            record: Record {
                kind,
                time: event.time.and_then(timestamp),
                first_fin: event.first_fin.and_then(timestamp),
                duration_ns: event.duration.and_then(nanos),
                reason: kind.is_some_and(Kind::is_end).then_some(reason),
                errno: (event.errno != 0).then_some(event.errno),
                errno_inferred: event.errno_inferred,
                closer_pid: event.closer.as_ref().map(|c| c.pid),
                closer_comm: event.closer.map(|c| printable(c.comm)),
                bytes_sent: counters.map(|c| c.bytes_sent),
                bytes_received: counters.map(|c| c.bytes_received),
                segments_sent: counters.map(|c| c.segments_sent),
                segments_received: counters.map(|c| c.segments_received),
                retransmits: counters.map(|c| c.retransmits),
                srtt_us: srtt.map(|ns| ns / 1000),
                ..of_connection.record
            },
        }
    }

    /// A connection of `node` that is open now.
    pub fn of_connection(node: &str, connection: v1::Connection) -> Self {
        let role = connection.role().known().unwrap_or(Role::Unknown);
        let ip = ip(connection.family());
        let process = connection.process.unwrap_or_default();
        let local = connection.local.unwrap_or_default();
        let remote = connection.remote.unwrap_or_default();
        let [syn, established, accepted] =
            [connection.syn, connection.established, connection.accepted]
                .map(|t| t.and_then(timestamp));
        Self {
            whose: Whose::new(node, connection.identity.unwrap_or_default()),
            record: Record {
                kind: Some(Kind::Existing),
                time: established.or(accepted).or(syn),
                id: printable(connection.id),
                role,
                pid: process.pid,
                tid: process.tid,
                uid: process.uid,
                source: process.source().known().unwrap_or(Source::Unknown),
                comm: printable(process.comm),
                cgroup_id: process.cgroup_id,
                mntns: process.mntns,
                netns: connection.netns,
                ip,
                saddr: printable(local.address),
                daddr: printable(remote.address),
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
                errno_inferred: false,
                closer_pid: None,
                closer_comm: None,
                bytes_sent: None,
                bytes_received: None,
                segments_sent: None,
                segments_received: None,
                retransmits: None,
                srtt_us: None,
            },
        }
    }
}

impl Whose {
    fn new(node: &str, identity: v1::Identity) -> Self {
        let attribution = attribution(identity.attribution());
        let labels = identity.labels.into_iter();
        Self {
            node: printable(node).into_owned(),
            sequence: None,
            attribution,
            host_network: (!identity.pod.is_empty()).then_some(identity.host_network),
            namespace: printable(identity.namespace).into_owned(),
            pod: printable(identity.pod).into_owned(),
            pod_uid: printable(identity.pod_uid).into_owned(),
            container: printable(identity.container).into_owned(),
            container_id: printable(identity.container_id).into_owned(),
            image: printable(identity.image).into_owned(),
            workload: identity.workload.map(|w| Workload {
                kind: printable(w.kind).into_owned(),
                name: printable(w.name).into_owned(),
            }),
            labels: labels
                .map(|(key, value)| (printable(key).into_owned(), printable(value).into_owned()))
                .collect(),
        }
    }
}

impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(serde::Serialize)]
        struct Written<'a> {
            #[serde(flatten)]
            head: Head<'a>,
            #[serde(flatten)]
            whose: &'a Whose,
            #[serde(flatten)]
            rest: Rest<'a>,
        }
        Written {
            head: Head(&self.record),
            whose: &self.whose,
            rest: Rest(&self.record),
        }
        .serialize(serializer)
    }
}

struct Head<'a>(&'a Record<'static, Timestamp>);

impl Serialize for Head<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        self.0.put_head(|field| put(&mut map, field))?;
        map.end()
    }
}

struct Rest<'a>(&'a Record<'static, Timestamp>);

impl Serialize for Rest<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        self.0.put_fields(|field| put(&mut map, field))?;
        map.end()
    }
}

fn put<M: SerializeMap>(map: &mut M, (name, value): Field<'_, Timestamp>) -> Result<(), M::Error> {
    match value {
        Value::Text(text) => map.serialize_entry(name, text),
        Value::Number(number) => map.serialize_entry(name, &number),
        Value::Flag(flag) => map.serialize_entry(name, &flag),
        Value::Time(time) => map.serialize_entry(name, &time),
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

fn ip(family: v1::IpFamily) -> Option<u8> {
    match family {
        v1::IpFamily::V4 => Some(4),
        v1::IpFamily::V6 => Some(6),
        v1::IpFamily::Unspecified => None,
    }
}

fn nanos(duration: prost_types::Duration) -> Option<u64> {
    let duration = std::time::Duration::try_from(duration).ok()?;
    u64::try_from(duration.as_nanos()).ok()
}

fn between(from: Option<Timestamp>, to: Option<Timestamp>) -> Option<u64> {
    u64::try_from(to?.as_nanosecond() - from?.as_nanosecond()).ok()
}
