//! One object a line. The field names are a promise; what does not apply is left out.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::Serialize;

use super::text;
use crate::clock::Clock;
use crate::event::{Event, Kind, Nanos};

/// The fields, in the order in which they are written. Documented in docs/json.md.
#[derive(Serialize)]
struct Line<'a> {
    r#type: &'a str,
    time: Timestamp,
    id: String,
    role: &'a str,
    pid: u32,
    tid: u32,
    uid: u32,
    comm: String,
    source: &'a str,
    cgroup_id: u64,
    mntns: u32,
    netns: u32,
    ip: u8,
    saddr: IpAddr,
    daddr: IpAddr,
    sport: u16,
    dport: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    syn: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    established: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accepted: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_fin: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    handshake_ns: Option<Nanos>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accept_wait_ns: Option<Nanos>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_ns: Option<Nanos>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    errno: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    closer_pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    closer_comm: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_sent: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_received: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    segments_sent: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    segments_received: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retransmits: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    srtt_us: Option<u32>,
}

/// One event, without a newline.
pub fn line(event: &Event, clock: Clock) -> String {
    let at = |time: Option<Nanos>| time.map(|t| clock.at(t));
    let ended = matches!(event.kind, Kind::Close | Kind::Failed);
    let counters = event.counters.as_ref();
    let line = Line {
        r#type: text::kind(event.kind),
        time: clock.at(event.time),
        id: event.id.to_string(),
        role: text::role(event.role),
        pid: event.owner.pid,
        tid: event.owner.tid,
        uid: event.owner.uid,
        // JSON escapes what is unsafe, but not all of it: DEL and bidi overrides pass.
        comm: text::comm(&event.owner.comm),
        source: text::source(event.source),
        cgroup_id: event.owner.cgroup_id,
        mntns: event.owner.mntns,
        netns: event.netns,
        ip: text::ip_version(event),
        saddr: event.local.ip(),
        daddr: event.remote.ip(),
        sport: event.local.port(),
        dport: event.remote.port(),
        syn: at(event.syn),
        established: at(event.established),
        accepted: at(event.accepted),
        first_fin: at(event.first_fin),
        handshake_ns: event.handshake(),
        accept_wait_ns: event.accept_wait(),
        duration_ns: event.duration(),
        reason: ended.then(|| text::reason(event.reason)),
        errno: (ended && event.errno != 0).then_some(event.errno),
        closer_pid: event.closer.map(|c| c.pid),
        closer_comm: event.closer.map(|c| text::comm(&c.comm)),
        bytes_sent: counters.map(|c| c.bytes_sent),
        bytes_received: counters.map(|c| c.bytes_received),
        segments_sent: counters.map(|c| c.segments_sent),
        segments_received: counters.map(|c| c.segments_received),
        retransmits: counters.map(|c| c.retransmits),
        srtt_us: counters.and_then(|c| (c.srtt_us != 0).then_some(c.srtt_us)),
    };
    // Nothing in it can fail to serialise.
    serde_json::to_string(&line).unwrap_or_default()
}
