//! An event or a connection as it is shown: what came from an agent, with every text made printable.
//!
//! The field names are a promise: those of the host tool (docs/json.md), from [`Record::put_fields`], and those that say where
//! and whose it was. What does not apply is left out.

use std::collections::BTreeMap;
use std::convert::Infallible;

use jiff::Timestamp;
use serde::ser::{Serialize, SerializeMap, Serializer};
use tcptracer_client::time::timestamp;
use tcptracer_event::{
    Field, Kind, Object, Reason, Record, Role, Seconds, Source, Value, printable,
};
use tcptracer_proto::v1;

/// How sure it is whose the process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

impl Attribution {
    fn name(self) -> &'static str {
        match self {
            Self::Resolved => "resolved",
            Self::Host => "host",
            Self::Pending => "pending",
            Self::Unknown => "unknown",
        }
    }
}

/// What made the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Such as `Deployment`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// Where it happened, and whose it is. What is empty is not known.
#[derive(Clone, Debug)]
pub struct Whose {
    pub node: String,
    pub sequence: Option<u64>,
    pub attribution: Attribution,
    pub namespace: String,
    pub pod: String,
    pub pod_uid: String,
    pub container: String,
    pub container_id: String,
    pub image: String,
    pub workload: Option<Workload>,
    pub labels: BTreeMap<String, String>,
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

impl Whose {
    /// Puts out the fields of JSON, in the order in which they are written; docs/kubectl-tcptracer.md has their meanings.
    fn put_fields<E>(
        &self,
        mut put: impl FnMut(Field<'_, Timestamp>) -> Result<(), E>,
    ) -> Result<(), E> {
        put(("node", Value::Text(&self.node)))?;
        if let Some(sequence) = self.sequence {
            put(("sequence", Value::Number(sequence)))?;
        }
        put(("attribution", Value::Text(self.attribution.name())))?;
        for (name, text) in [
            ("namespace", &self.namespace),
            ("pod", &self.pod),
            ("pod_uid", &self.pod_uid),
            ("container", &self.container),
            ("container_id", &self.container_id),
            ("image", &self.image),
        ] {
            if !text.is_empty() {
                put((name, Value::Text(text)))?;
            }
        }
        if let Some(Workload { kind, name }) = &self.workload {
            put(("workload", Value::Texts(&[("kind", kind), ("name", name)])))?;
        }
        if !self.labels.is_empty() {
            let labels: Vec<_> = self
                .labels
                .iter()
                .map(|(key, value)| (&**key, &**value))
                .collect();
            put(("labels", Value::Texts(&labels)))?;
        }
        if let Some(host_network) = self.host_network {
            put(("host_network", Value::Flag(host_network)))?;
        }
        Ok(())
    }
}

impl Row {
    /// Puts out the fields of JSON, in the order in which they are written.
    fn put_fields<E>(
        &self,
        mut put: impl FnMut(Field<'_, Timestamp>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.record.put_head(&mut put)?;
        self.whose.put_fields(&mut put)?;
        self.record.put_fields(&mut put)
    }

    /// Appends it as an object of JSON.
    pub fn write_json(&self, seconds: &mut Seconds, to: &mut String) {
        let mut object = Object::begin(to, |time, to: &mut String| write_time(seconds, time, to));
        let Ok(()) = self.put_fields(|field| {
            object.put(field);
            Ok::<_, Infallible>(())
        });
        object.end();
    }
}

fn write_time(seconds: &mut Seconds, time: Timestamp, to: &mut String) {
    match (
        u64::try_from(time.as_second()),
        u32::try_from(time.subsec_nanosecond()),
    ) {
        (Ok(_), Ok(nanos)) => seconds.write(to, time.as_second(), nanos, |second| {
            Timestamp::from_second(second)
                .unwrap_or_default()
                .to_string()
        }),
        // Before 1970.
        _ => *to += &time.to_string(),
    }
}

impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        self.put_fields(|(name, value)| match value {
            Value::Text(text) => map.serialize_entry(name, text),
            Value::Number(number) => map.serialize_entry(name, &number),
            Value::Flag(flag) => map.serialize_entry(name, &flag),
            Value::Time(time) => map.serialize_entry(name, &time),
            Value::Texts(texts) => map.serialize_entry(name, &Texts(texts)),
        })?;
        map.end()
    }
}

struct Texts<'a>(&'a [(&'a str, &'a str)]);

impl Serialize for Texts<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().copied())
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
