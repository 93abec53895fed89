//! An event or a connection as it is shown: what came from an agent, with every text made printable.
//!
//! Whose it is is the same for nearly all events of one container: [`Owners`] keeps that of each, and rows share it.
//!
//! The field names are a promise: those of the host tool (docs/json.md), from [`Record::put_fields`], and those that say where
//! and whose it was. What does not apply is left out.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use jiff::Timestamp;
use serde::ser::{Serialize, SerializeMap, Serializer};
use tcptracer_client::time::timestamp;
use tcptracer_event::{
    Kind, Name, Object, Put, Reason, Record, Role, Seconds, Source, field_name, printable,
};
use tcptracer_proto::{ConnectionView, EventBytes, IdentityBytes, Malformed, v1};

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
    /// Its fields of JSON, once they have been written: those before the sequence, and those behind it.
    json: OnceLock<[String; 2]>,
}

/// One event, or one open connection.
#[derive(Clone, Debug)]
pub struct Row {
    pub sequence: Option<u64>,
    pub whose: Arc<Whose>,
    pub record: Record<'static, Timestamp>,
}

impl Row {
    /// An event of `node`.
    pub fn of_event(
        node: &str,
        event: EventBytes<'_>,
        owners: &mut Owners,
    ) -> Result<Self, Malformed> {
        let event = event.view()?;
        let kind = event.kind;
        let reason = event.reason.unwrap_or(Reason::Unknown);
        let counters = event.counters;
        let srtt = counters.and_then(|c| c.srtt).and_then(nanos);
        Ok(Self {
            sequence: Some(event.sequence),
            whose: owners.whose(node, event.identity)?,
            record: Record {
                kind,
                time: event.time.and_then(timestamp),
                first_fin: event.first_fin.and_then(timestamp),
                duration_ns: event.duration.and_then(nanos),
                reason: kind.is_some_and(Kind::is_end).then_some(reason),
                errno: (event.errno != 0).then_some(event.errno),
                errno_inferred: event.errno_inferred,
                closer_pid: event.closer.map(|c| c.pid),
                closer_comm: event.closer.map(|c| own(c.comm)),
                bytes_sent: counters.map(|c| c.bytes_sent),
                bytes_received: counters.map(|c| c.bytes_received),
                segments_sent: counters.map(|c| c.segments_sent),
                segments_received: counters.map(|c| c.segments_received),
                retransmits: counters.map(|c| c.retransmits),
                srtt_us: srtt.map(|ns| ns / 1000),
                ..record(&event.connection)
            },
        })
    }

    /// A connection of `node` that is open now.
    pub fn of_connection(node: &str, mut connection: v1::Connection) -> Self {
        let identity = connection.identity.take().unwrap_or_default();
        Self {
            sequence: None,
            whose: Whose::new(node, identity).into(),
            record: record(&(&connection).into()),
        }
    }
}

/// What is said of a connection that is open.
fn record(connection: &ConnectionView<'_>) -> Record<'static, Timestamp> {
    let ConnectionView {
        process,
        local,
        remote,
        ..
    } = connection;
    let [syn, established, accepted] =
        [connection.syn, connection.established, connection.accepted]
            .map(|t| t.and_then(timestamp));
    Record {
        kind: Some(Kind::Existing),
        time: established.or(accepted).or(syn),
        id: own(connection.id),
        role: connection.role.unwrap_or(Role::Unknown),
        pid: process.pid,
        tid: process.tid,
        uid: process.uid,
        source: process.source.unwrap_or(Source::Unknown),
        comm: own(process.comm),
        cgroup_id: process.cgroup_id,
        mntns: process.mntns,
        netns: connection.netns,
        ip: ip(connection.family),
        saddr: own(local.address),
        daddr: own(remote.address),
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
    }
}

fn own(text: &str) -> Cow<'static, str> {
    Cow::Owned(printable(text).into_owned())
}

/// What was said of owners before. Most events are of the same as the one before or as an earlier one.
#[derive(Debug, Default)]
pub struct Owners {
    last: Option<(Box<[u8]>, Arc<Whose>)>,
    known: HashMap<Box<[u8]>, Arc<Whose>>,
}

/// Owners that are kept. With more, those before are forgotten, and read again when they come again.
const MAX_OWNERS: usize = 4096;

impl Owners {
    fn whose(&mut self, node: &str, identity: IdentityBytes<'_>) -> Result<Arc<Whose>, Malformed> {
        if let Some((bytes, whose)) = &self.last
            && **bytes == *identity.as_bytes()
            && whose.node == node
        {
            return Ok(Arc::clone(whose));
        }
        let known = self.known.get(identity.as_bytes());
        let whose = match known.filter(|whose| whose.node == node) {
            Some(whose) => Arc::clone(whose),
            None => {
                if self.known.len() >= MAX_OWNERS {
                    self.known.clear();
                }
                let whose = Arc::new(Whose::new(node, identity.message()?));
                self.known
                    .insert(identity.as_bytes().into(), Arc::clone(&whose));
                whose
            }
        };
        self.last = Some((identity.as_bytes().into(), Arc::clone(&whose)));
        Ok(whose)
    }
}

impl Whose {
    fn new(node: &str, identity: v1::Identity) -> Self {
        let attribution = attribution(identity.attribution());
        let labels = identity.labels.into_iter();
        Self {
            node: printable(node).into_owned(),
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
            json: OnceLock::new(),
        }
    }
}

/// The fields of JSON, in the order in which they are written: first the node, then the sequence, then these.
/// docs/kubectl-tcptracer.md has their meanings.
impl Whose {
    fn put_node<P: Put<Timestamp>>(&self, to: &mut P) -> Result<(), P::Error> {
        to.text(field_name!("node"), &self.node)
    }

    fn put_fields<P: Put<Timestamp>>(&self, to: &mut P) -> Result<(), P::Error> {
        to.text(field_name!("attribution"), self.attribution.name())?;
        for (name, text) in [
            (field_name!("namespace"), &self.namespace),
            (field_name!("pod"), &self.pod),
            (field_name!("pod_uid"), &self.pod_uid),
            (field_name!("container"), &self.container),
            (field_name!("container_id"), &self.container_id),
            (field_name!("image"), &self.image),
        ] {
            if !text.is_empty() {
                to.text(name, text)?;
            }
        }
        if let Some(Workload { kind, name }) = &self.workload {
            to.texts(
                field_name!("workload"),
                &[("kind", kind.as_str()), ("name", name.as_str())],
            )?;
        }
        if !self.labels.is_empty() {
            let labels: Vec<_> = self
                .labels
                .iter()
                .map(|(key, value)| (&**key, &**value))
                .collect();
            to.texts(field_name!("labels"), &labels)?;
        }
        if let Some(host_network) = self.host_network {
            to.flag(field_name!("host_network"), host_network)?;
        }
        Ok(())
    }

    /// Both parts as JSON.
    fn json(&self) -> &[String; 2] {
        // There is no time among them.
        let write_time = |_: Timestamp, _: &mut String| {};
        self.json.get_or_init(|| {
            let [mut node, mut fields] = [String::new(), String::new()];
            let mut part = Object::begin(&mut node, write_time);
            let Ok(()) = self.put_node(&mut part);
            part.end_part();
            let mut part = Object::begin(&mut fields, write_time);
            let Ok(()) = self.put_fields(&mut part);
            part.end_part();
            [node, fields]
        })
    }
}

impl Row {
    fn put_sequence<P: Put<Timestamp>>(&self, to: &mut P) -> Result<(), P::Error> {
        match self.sequence {
            Some(sequence) => to.number(field_name!("sequence"), sequence),
            None => Ok(()),
        }
    }

    /// Appends it as an object of JSON: the fields that it has for serde, but those of whose it is are written once for all
    /// rows that share them.
    pub fn write_json(&self, seconds: &mut Seconds, to: &mut String) {
        let write_time = |time: Timestamp, to: &mut String| write_time(seconds, time, to);
        let mut object = Object::begin(to, write_time);
        let [node, fields] = self.whose.json();
        let Ok(()) = self.record.put_head(&mut object);
        object.put_part(node);
        let Ok(()) = self.put_sequence(&mut object);
        object.put_part(fields);
        let Ok(()) = self.record.put_fields(&mut object);
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

/// All of its fields, in the order in which they are written.
impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = Entries(serializer.serialize_map(None)?);
        self.record.put_head(&mut map)?;
        self.whose.put_node(&mut map)?;
        self.put_sequence(&mut map)?;
        self.whose.put_fields(&mut map)?;
        self.record.put_fields(&mut map)?;
        map.0.end()
    }
}

/// Fields as the entries of a map.
struct Entries<M>(M);

impl<M: SerializeMap> Put<Timestamp> for Entries<M> {
    type Error = M::Error;

    fn text(&mut self, name: Name, text: &str) -> Result<(), M::Error> {
        self.0.serialize_entry(name.as_str(), text)
    }

    fn number(&mut self, name: Name, number: u64) -> Result<(), M::Error> {
        self.0.serialize_entry(name.as_str(), &number)
    }

    fn flag(&mut self, name: Name, flag: bool) -> Result<(), M::Error> {
        self.0.serialize_entry(name.as_str(), &flag)
    }

    fn time(&mut self, name: Name, time: Timestamp) -> Result<(), M::Error> {
        self.0.serialize_entry(name.as_str(), &time)
    }

    fn texts(&mut self, name: Name, texts: &[(&str, &str)]) -> Result<(), M::Error> {
        self.0.serialize_entry(name.as_str(), &Texts(texts))
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
