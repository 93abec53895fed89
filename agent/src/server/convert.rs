//! Between the domain and `tcptracer.v1`. Pure; every refusal names the field.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use jiff::Timestamp;
use tcptracer_proto::EncodedEvent;
use tcptracer_proto::v1;
use thiserror::Error;

use crate::clock::Clock;
use crate::event::{Event, Kind, Nanos, Reason, Role, Source};
use crate::filter::{Filter, MAX_FILTERS, Matcher, Scope, What, Whose};
use crate::hub::{Loss, LossSource, Status};
use crate::identity::{Attribution, Evidence, Names};
use crate::kube::Workload;

/// Values in one field of a filter, at most.
const MAX_VALUES: usize = 256;

/// A request that cannot be carried out, and which of its fields is why.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{field}: {why}")]
pub struct InvalidField {
    field: String,
    why: String,
}

fn invalid<T>(field: impl Into<String>, why: impl ToString) -> Result<T, InvalidField> {
    Err(InvalidField {
        field: field.into(),
        why: why.to_string(),
    })
}

/// The filters of a request; `node` is this one's name.
pub fn matcher(
    allow: Vec<v1::Filter>,
    deny: Vec<v1::Filter>,
    node: &str,
) -> Result<Matcher, InvalidField> {
    let list = |name: &str, filters: Vec<v1::Filter>| {
        if filters.len() > MAX_FILTERS {
            return invalid(name, format!("more than {MAX_FILTERS} filters"));
        }
        filters
            .into_iter()
            .enumerate()
            .map(|(at, f)| filter(f, node, &format!("{name}[{at}]")))
            .collect()
    };
    Ok(Matcher::new(list("allow", allow)?, list("deny", deny)?))
}

fn filter(from: v1::Filter, node: &str, at: &str) -> Result<Filter, InvalidField> {
    for (name, values) in [
        ("namespaces", from.namespaces.len()),
        ("pods", from.pods.len()),
        ("containers", from.containers.len()),
        ("workloads", from.workloads.len()),
        ("nodes", from.nodes.len()),
        ("pids", from.pids.len()),
        ("netns", from.netns.len()),
        ("families", from.families.len()),
        ("ports", from.ports.len()),
        ("cidrs", from.cidrs.len()),
        ("types", from.types.len()),
    ] {
        if values > MAX_VALUES {
            return invalid(
                format!("{at}.{name}"),
                format!("more than {MAX_VALUES} values"),
            );
        }
    }
    Ok(Filter {
        whose: whose(&from, node, at)?,
        what: what(&from, at)?,
    })
}

fn whose(from: &v1::Filter, node: &str, at: &str) -> Result<Whose, InvalidField> {
    let scope = match v1::Scope::try_from(from.scope) {
        Ok(v1::Scope::Unspecified) => None,
        Ok(v1::Scope::Pods) => Some(Scope::Pods),
        Ok(v1::Scope::Host) => Some(Scope::Host),
        Err(_) => {
            return invalid(
                format!("{at}.scope"),
                format!("{} is not a scope", from.scope),
            );
        }
    };
    let labels = match from.label_selector.as_str() {
        "" => None,
        text => match text.parse() {
            Ok(selector) => Some(selector),
            Err(e) => return invalid(format!("{at}.label_selector"), e),
        },
    };
    Ok(Whose {
        scope,
        namespaces: from.namespaces.iter().cloned().collect(),
        pods: from.pods.iter().cloned().collect(),
        labels,
        containers: from.containers.iter().cloned().collect(),
        workloads: from
            .workloads
            .iter()
            .map(|w| Workload {
                kind: w.kind.clone(),
                name: w.name.clone(),
            })
            .collect(),
        elsewhere: !from.nodes.is_empty() && !from.nodes.iter().any(|n| n == node),
    })
}

fn what(from: &v1::Filter, at: &str) -> Result<What, InvalidField> {
    let mut what = What {
        pids: from.pids.iter().copied().collect(),
        netns: from.netns.iter().copied().collect(),
        ..What::default()
    };
    for port in &from.ports {
        match u16::try_from(*port) {
            Ok(port) if port > 0 => what.ports.insert(port),
            _ => return invalid(format!("{at}.ports"), format!("{port} is not a port")),
        };
    }
    for cidr in &from.cidrs {
        let network = cidr
            .parse::<IpNet>()
            .or_else(|_| cidr.parse::<IpAddr>().map(IpNet::from));
        match network {
            Ok(network) => what.networks.push(network),
            Err(_) => {
                let why = format!("`{}` is not a network or an address", cidr.escape_debug());
                return invalid(format!("{at}.cidrs"), why);
            }
        }
    }
    if !from.families.is_empty() {
        (what.v4, what.v6) = (false, false);
    }
    for family in &from.families {
        match v1::IpFamily::try_from(*family) {
            Ok(v1::IpFamily::V4) => what.v4 = true,
            Ok(v1::IpFamily::V6) => what.v6 = true,
            _ => {
                return invalid(
                    format!("{at}.families"),
                    format!("{family} is not an IP family"),
                );
            }
        }
    }
    for kind in &from.types {
        what.kinds.push(match v1::EventType::try_from(*kind) {
            Ok(v1::EventType::Connect) => Kind::Connect,
            Ok(v1::EventType::Accept) => Kind::Accept,
            Ok(v1::EventType::Close) => Kind::Close,
            Ok(v1::EventType::Failed) => Kind::Failed,
            _ => {
                return invalid(
                    format!("{at}.types"),
                    format!("{kind} is not a type of event"),
                );
            }
        });
    }
    Ok(what)
}

/// Encodes an event. Of the pod's labels, those in `labels` are given.
pub fn encode(
    sequence: u64,
    event: &Event,
    who: &Attribution,
    clock: Clock,
    labels: &[String],
) -> EncodedEvent {
    let ended = matches!(event.kind, Kind::Close | Kind::Failed);
    EncodedEvent::new(&v1::Event {
        sequence,
        r#type: match event.kind {
            Kind::Connect => v1::EventType::Connect,
            Kind::Accept => v1::EventType::Accept,
            Kind::Close => v1::EventType::Close,
            Kind::Failed => v1::EventType::Failed,
            // Not an event; only the list of connections has it.
            Kind::Existing => v1::EventType::Unspecified,
        }
        .into(),
        time: Some(timestamp(clock.at(event.time))),
        connection: Some(connection(event, who, clock, labels)),
        closer: event.closer.map(|closer| v1::Closer {
            pid: closer.pid,
            comm: closer.comm.to_string(),
        }),
        reason: match event.reason {
            _ if !ended => v1::CloseReason::Unspecified,
            Reason::Local => v1::CloseReason::Local,
            Reason::Remote => v1::CloseReason::Remote,
            Reason::ResetLocal => v1::CloseReason::ResetLocal,
            Reason::ResetRemote => v1::CloseReason::ResetRemote,
            Reason::Timeout => v1::CloseReason::Timeout,
            Reason::Abort => v1::CloseReason::Abort,
            Reason::Unknown => v1::CloseReason::Unspecified,
        }
        .into(),
        errno: event.errno.into(),
        first_fin: event.first_fin.map(|t| timestamp(clock.at(t))),
        duration: event.duration().map(duration),
        counters: event.counters.map(|c| v1::Counters {
            bytes_sent: c.bytes_sent,
            bytes_received: c.bytes_received,
            segments_sent: c.segments_sent,
            segments_received: c.segments_received,
            retransmits: c.retransmits,
            srtt: (c.srtt_us != 0).then(|| duration(Nanos::from(c.srtt_us) * 1000)),
        }),
    })
}

/// A connection, with what is known of it at the event.
pub fn connection(
    event: &Event,
    who: &Attribution,
    clock: Clock,
    labels: &[String],
) -> v1::Connection {
    let at = |time: Option<Nanos>| time.map(|t| timestamp(clock.at(t)));
    let owner = &event.owner;
    v1::Connection {
        id: event.id.to_string(),
        role: match event.role {
            Role::Client => v1::Role::Client,
            Role::Server => v1::Role::Server,
            Role::Unknown => v1::Role::Unspecified,
        }
        .into(),
        process: Some(v1::Process {
            pid: owner.pid,
            tid: owner.tid,
            uid: owner.uid,
            comm: owner.comm.to_string(),
            cgroup_id: owner.cgroup_id,
            mntns: owner.mntns,
            source: match event.source {
                Source::Connect => v1::ProcessSource::Connect,
                Source::Accept => v1::ProcessSource::Accept,
                Source::Listener => v1::ProcessSource::Listener,
                Source::Snapshot => v1::ProcessSource::Snapshot,
                Source::Closer => v1::ProcessSource::Closer,
                Source::Unknown => v1::ProcessSource::Unspecified,
            }
            .into(),
        }),
        identity: Some(identity(who, labels)),
        netns: event.netns,
        local: Some(endpoint(event.local)),
        remote: Some(endpoint(event.remote)),
        family: match event.local.is_ipv4() {
            true => v1::IpFamily::V4,
            false => v1::IpFamily::V6,
        }
        .into(),
        syn: at(event.syn),
        established: at(event.established),
        accepted: at(event.accepted),
    }
}

fn identity(who: &Attribution, labels: &[String]) -> v1::Identity {
    let without_names = |attribution: v1::Attribution| v1::Identity {
        attribution: attribution.into(),
        ..v1::Identity::default()
    };
    match who {
        Attribution::Resolved(names, evidence) => v1::Identity {
            evidence: evidence_of(*evidence).into(),
            ..named(names, labels)
        },
        Attribution::Pending(id, evidence) => v1::Identity {
            container_id: id.to_string(),
            evidence: evidence_of(*evidence).into(),
            ..without_names(v1::Attribution::Pending)
        },
        Attribution::Host => without_names(v1::Attribution::Host),
        Attribution::Foreign | Attribution::Unknown => without_names(v1::Attribution::Unknown),
    }
}

fn named(names: &Names, labels: &[String]) -> v1::Identity {
    let pod = &names.pod;
    let container = names.container.and_then(|at| pod.containers.get(at));
    let asked = |key: &String| Some((key.clone(), pod.labels.get(key)?.clone()));
    v1::Identity {
        attribution: v1::Attribution::Resolved.into(),
        namespace: pod.namespace.clone(),
        pod: pod.name.clone(),
        pod_uid: pod.uid.clone(),
        container: container.map(|c| c.name.clone()).unwrap_or_default(),
        container_id: names.container_id.to_string(),
        image: container.map(|c| c.image.clone()).unwrap_or_default(),
        workload: pod.workload.as_ref().map(|w| v1::Workload {
            kind: w.kind.clone(),
            name: w.name.clone(),
        }),
        labels: labels.iter().filter_map(asked).collect::<HashMap<_, _>>(),
        host_network: pod.host_network,
        evidence: v1::Evidence::Unspecified.into(),
    }
}

fn evidence_of(evidence: Evidence) -> v1::Evidence {
    match evidence {
        Evidence::Cgroup => v1::Evidence::Cgroup,
        Evidence::MountNamespace => v1::Evidence::Mntns,
    }
}

fn endpoint(address: SocketAddr) -> v1::Endpoint {
    v1::Endpoint {
        address: address.ip().to_string(),
        port: address.port().into(),
    }
}

/// A loss as it is told.
pub fn lost(loss: Loss) -> v1::Lost {
    v1::Lost {
        source: match loss.source {
            LossSource::Ring => v1::LossSource::Ring,
            LossSource::Connections => v1::LossSource::Connections,
            LossSource::Untracked => v1::LossSource::Untracked,
            LossSource::Agent => v1::LossSource::Agent,
            LossSource::Subscriber => v1::LossSource::Subscriber,
            LossSource::History => v1::LossSource::History,
            LossSource::FilterMap => v1::LossSource::FilterMap,
        }
        .into(),
        count: loss.count,
    }
}

/// The node's status as it is told.
pub fn status(status: &Status, sequence: u64, live: bool) -> v1::NodeStatus {
    v1::NodeStatus {
        sequence,
        pods_synced: status.pods_synced,
        pods_error: status.pods_error.clone().unwrap_or_default(),
        shortcomings: status.shortcomings.clone(),
        live,
    }
}

/// A moment.
pub fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: time.as_second(),
        nanos: time.subsec_nanosecond(),
    }
}

fn duration(nanos: Nanos) -> prost_types::Duration {
    prost_types::Duration {
        seconds: (nanos / 1_000_000_000) as i64,
        nanos: (nanos % 1_000_000_000) as i32,
    }
}
