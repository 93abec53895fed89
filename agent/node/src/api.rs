//! Between the domain and `tcptracer.v1`. Pure; every refusal names the field.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use tcptracer::clock::Clock;
use tcptracer_event::{Event, Nanos};
use tcptracer_proto::v1;
use tcptracer_proto::{EncodedEvent, EncodedIdentity};
use thiserror::Error;

use crate::filter::{Filter, MAX_FILTERS, Matcher, Scope, What, Whose};
use crate::hub::{Loss, Pause, Position, Status};
use crate::identity::{Attribution, Evidence, Names};
use crate::kube::Workload;
use crate::report::MapUse;

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
        let known = v1::EventType::try_from(*kind).ok();
        match known.and_then(v1::EventType::known) {
            Some(kind) => what.kinds.push(kind),
            None => {
                return invalid(
                    format!("{at}.types"),
                    format!("{kind} is not a type of event"),
                );
            }
        }
    }
    Ok(what)
}

/// Encodes an event. Of the pod's labels, those in `labels` are given; they are the same for all events.
pub fn encode(
    sequence: u64,
    event: &Event,
    who: &Attribution,
    clock: Clock,
    labels: &[String],
) -> EncodedEvent {
    let encoded = || EncodedIdentity::new(&identity(who, labels));
    let at = |time| timestamp(clock.at(time));
    match who {
        Attribution::Resolved(names, evidence) => {
            let identity = names.encoded.by(*evidence, encoded);
            EncodedEvent::new(sequence, event, identity, &at)
        }
        _ => EncodedEvent::new(sequence, event, &encoded(), &at),
    }
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
        role: v1::Role::from(event.role).into(),
        process: Some(v1::Process {
            pid: owner.pid,
            tid: owner.tid,
            uid: owner.uid,
            comm: owner.comm.to_string(),
            cgroup_id: owner.cgroup_id,
            mntns: owner.mntns,
            source: v1::ProcessSource::from(event.source).into(),
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
        source: v1::LossSource::from(loss.source).into(),
        count: loss.count,
        position: None,
    }
}

/// A pause, as the API reports it.
pub fn paused(pause: Pause, behind: v1::Position) -> v1::Paused {
    v1::Paused {
        from: Some(timestamp(pause.from)),
        to: pause.to.map(timestamp),
        position: Some(behind),
    }
}

/// A place in the stream of this run.
pub fn position(at: Position, epoch: u64) -> v1::Position {
    v1::Position {
        epoch,
        sequence: at.sequence,
        lost: at.lost,
    }
}

/// A filter map as it is told.
pub fn filter_map(map: MapUse) -> v1::FilterMap {
    v1::FilterMap {
        name: map.name,
        entries: map.entries as u32,
        capacity: map.capacity as u32,
        without_room: map.without_room as u32,
    }
}

/// The node's status as it is told.
pub fn status(status: &Status, at: Position, live: bool) -> v1::NodeStatus {
    v1::NodeStatus {
        sequence: at.sequence,
        pods_synced: status.pods_synced,
        pods_error: status.pods_error.clone().unwrap_or_default(),
        shortcomings: status.shortcomings.clone(),
        live,
        lost: at.lost,
    }
}

/// A moment.
pub fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: time.as_second(),
        nanos: time.subsec_nanosecond(),
    }
}

/// A time that something took.
pub fn duration(time: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: time.as_secs() as i64,
        nanos: time.subsec_nanos() as i32,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::fixture;
    use tcptracer_event::{Closer, Comm, Counters, Kind, Reason};
    use tcptracer_proto::Frame;
    use v1::watch_response::Message;

    /// Kernel time 0 is this time of day, in nanoseconds.
    const EPOCH: u64 = 1_700_000_000_000_000_000;

    fn clock() -> Clock {
        let epoch = Timestamp::from_nanosecond(EPOCH.into()).expect("a time");
        Clock::new(epoch, 0)
    }

    fn at(time: Nanos) -> prost_types::Timestamp {
        let time = EPOCH + time;
        prost_types::Timestamp {
            seconds: (time / 1_000_000_000) as i64,
            nanos: (time % 1_000_000_000) as i32,
        }
    }

    /// What a client gets to know of an event.
    fn told(event: &Event, who: &Attribution, labels: &[String]) -> v1::Event {
        let encoded = encode(3, event, who, clock(), labels);
        let frame = Frame::events(&v1::WatchResponse::default(), &[encoded]);
        let message = frame.decode().expect("a response").message;
        match message {
            Some(Message::Events(v1::Events { mut events })) => events.pop().expect("an event"),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn refused(change: impl FnOnce(&mut v1::Filter)) -> String {
        let mut filter = v1::Filter::default();
        change(&mut filter);
        matcher(vec![v1::Filter::default(), filter], Vec::new(), "node-1")
            .expect_err("it is refused")
            .to_string()
    }

    #[test]
    fn a_refusal_names_the_field_and_escapes_what_it_repeats() {
        assert_eq!(refused(|f| f.scope = 3), "allow[1].scope: 3 is not a scope");
        assert_eq!(
            refused(|f| f.families = vec![1, 99]),
            "allow[1].families: 99 is not an IP family"
        );
        assert_eq!(
            refused(|f| f.families = vec![0]),
            "allow[1].families: 0 is not an IP family"
        );
        assert_eq!(
            refused(|f| f.types = vec![1, 5]),
            "allow[1].types: 5 is not a type of event"
        );
        assert_eq!(
            refused(|f| f.types = vec![0]),
            "allow[1].types: 0 is not a type of event"
        );
        assert_eq!(
            refused(|f| f.ports = vec![80, 0]),
            "allow[1].ports: 0 is not a port"
        );
        assert_eq!(
            refused(|f| f.cidrs = vec!["\x1b]0;".into()]),
            "allow[1].cidrs: `\\u{1b}]0;` is not a network or an address"
        );
        assert_eq!(
            refused(|f| f.pods = vec![String::new(); 257]),
            "allow[1].pods: more than 256 values"
        );
        let many = matcher(Vec::new(), vec![v1::Filter::default(); 33], "node-1");
        assert_eq!(
            many.expect_err("it is refused").to_string(),
            "deny: more than 32 filters"
        );
    }

    #[test]
    fn a_filter_means_what_it_says() {
        let from = v1::Filter {
            scope: v1::Scope::Pods.into(),
            namespaces: vec!["shop".into()],
            pods: vec!["cart-1".into()],
            label_selector: "app=cart".into(),
            containers: vec!["main".into()],
            workloads: vec![v1::Workload {
                kind: "Deployment".into(),
                name: "cart".into(),
            }],
            nodes: vec!["node-0".into(), "node-1".into()],
            pids: vec![100],
            netns: vec![4_026_531_992],
            families: vec![v1::IpFamily::V4.into()],
            ports: vec![80],
            cidrs: vec!["10.0.0.0/8".into(), "2001:db8::1".into()],
            types: vec![v1::EventType::Failed.into()],
        };
        let passes = |from: v1::Filter, kind: Kind| {
            let matcher = matcher(vec![from], Vec::new(), "node-1").expect("it is valid");
            let verdicts = matcher.judge(&fixture::resolved(1));
            matcher.passes(verdicts, &fixture::event(kind, 1, 0))
        };
        assert!(passes(from.clone(), Kind::Failed));
        assert!(!passes(from.clone(), Kind::Connect));
        let mut elsewhere = from.clone();
        elsewhere.nodes.pop();
        assert!(!passes(elsewhere, Kind::Failed));
        let v6 = v1::Filter {
            families: vec![v1::IpFamily::V6.into()],
            ..from
        };
        assert!(!passes(v6, Kind::Failed));
    }

    #[test]
    fn a_close_is_told_in_full() {
        let event = Event {
            time: 9,
            closer: Some(Closer {
                pid: 200,
                comm: Comm::new(*b"\x1b[2J\xff\0\0\0\0\0\0\0\0\0\0\0"),
            }),
            syn: Some(1),
            established: Some(2),
            first_fin: Some(8),
            reason: Reason::ResetRemote,
            errno: 104,
            errno_inferred: true,
            counters: Some(Counters {
                bytes_sent: 1,
                bytes_received: 2,
                segments_sent: 3,
                segments_received: 4,
                retransmits: 5,
                srtt_us: 1_000_001,
            }),
            ..fixture::event(Kind::Close, 7, 42)
        };
        let labels = ["app".to_owned(), "missing".to_owned()];
        let told = told(&event, &fixture::resolved(1), &labels);
        let nanos = |nanos| prost_types::Duration { seconds: 0, nanos };
        assert_eq!(
            told,
            v1::Event {
                sequence: 3,
                r#type: v1::EventType::Close.into(),
                time: Some(at(9)),
                connection: Some(v1::Connection {
                    id: "7".into(),
                    role: v1::Role::Client.into(),
                    process: Some(v1::Process {
                        pid: 100,
                        tid: 101,
                        uid: 0,
                        comm: "curl".into(),
                        cgroup_id: 42,
                        mntns: 0,
                        source: v1::ProcessSource::Connect.into(),
                    }),
                    identity: Some(v1::Identity {
                        attribution: v1::Attribution::Resolved.into(),
                        namespace: "shop".into(),
                        pod: "cart-1".into(),
                        pod_uid: "00000001-0000-4000-8000-000000000000".into(),
                        container: "main".into(),
                        container_id: fixture::container_id(1),
                        image: "registry/cart:1".into(),
                        workload: Some(v1::Workload {
                            kind: "Deployment".into(),
                            name: "cart".into(),
                        }),
                        labels: HashMap::from([("app".into(), "cart".into())]),
                        host_network: false,
                        evidence: v1::Evidence::Cgroup.into(),
                    }),
                    netns: 4_026_531_992,
                    local: Some(v1::Endpoint {
                        address: "10.0.0.1".into(),
                        port: 40_000,
                    }),
                    remote: Some(v1::Endpoint {
                        address: "10.0.0.2".into(),
                        port: 80,
                    }),
                    family: v1::IpFamily::V4.into(),
                    syn: Some(at(1)),
                    established: Some(at(2)),
                    accepted: None,
                }),
                closer: Some(v1::Closer {
                    pid: 200,
                    comm: "\u{1b}[2J\u{fffd}".into(),
                }),
                reason: v1::CloseReason::ResetRemote.into(),
                errno: 104,
                errno_inferred: true,
                first_fin: Some(at(8)),
                duration: Some(nanos(7)),
                counters: Some(v1::Counters {
                    bytes_sent: 1,
                    bytes_received: 2,
                    segments_sent: 3,
                    segments_received: 4,
                    retransmits: 5,
                    srtt: Some(prost_types::Duration {
                        seconds: 1,
                        nanos: 1000,
                    }),
                }),
            }
        );
    }

    #[test]
    fn who_cannot_be_named_has_no_names() {
        let unnamed = |attribution: v1::Attribution| v1::Identity {
            attribution: attribution.into(),
            ..v1::Identity::default()
        };
        let pending = Attribution::Pending(Arc::from("id"), Evidence::MountNamespace);
        for (who, expected) in [
            (Attribution::Host, unnamed(v1::Attribution::Host)),
            (Attribution::Unknown, unnamed(v1::Attribution::Unknown)),
            (
                pending,
                v1::Identity {
                    container_id: "id".into(),
                    evidence: v1::Evidence::Mntns.into(),
                    ..unnamed(v1::Attribution::Pending)
                },
            ),
        ] {
            assert_eq!(identity(&who, &[]), expected);
        }
    }

    fn strings() -> impl Strategy<Value = Vec<String>> {
        prop::collection::vec(any::<String>(), 0..3)
    }

    proptest! {
        /// Nothing that a client sends does any harm.
        #[test]
        fn any_filter_is_taken_or_refused_by_field(
            scope in -1i32..4, names in strings(), selector in any::<String>(), cidrs in strings(),
            ports in prop::collection::vec(0u32..70_000, 0..3),
            enums in prop::collection::vec(-1i32..6, 0..3),
        ) {
            let filter = v1::Filter {
                scope,
                namespaces: names.clone(),
                pods: names,
                label_selector: selector,
                cidrs,
                ports,
                families: enums.clone(),
                types: enums,
                ..v1::Filter::default()
            };
            if let Err(e) = matcher(vec![filter], Vec::new(), "node-1") {
                let said = e.to_string();
                prop_assert!(said.starts_with("allow[0]."), "{}", said);
            }
        }

        #[test]
        fn times_and_addresses_come_back(
            time in 0u64..1 << 50, life in any::<u16>(), ip in any::<IpAddr>(), port in any::<u16>(),
            wait in 0u64..1 << 40,
        ) {
            let event = Event {
                time: time + wait,
                established: Some(time),
                local: SocketAddr::new(ip, port),
                ..fixture::event(Kind::Close, 7, 0)
            };
            let event = Event {
                id: tcptracer_event::ConnectionId { life, ..event.id },
                ..event
            };
            let told = told(&event, &Attribution::Host, &[]);
            prop_assert_eq!(told.time, Some(at(time + wait)));
            let duration = told.duration.expect("a duration");
            prop_assert_eq!(duration.seconds as u64 * 1_000_000_000 + duration.nanos as u64, wait);
            let connection = told.connection.expect("a connection");
            prop_assert_eq!(connection.established, Some(at(time)));
            prop_assert_eq!(connection.id, event.id.to_string());
            let local = connection.local.expect("an endpoint");
            prop_assert_eq!(local.address.parse(), Ok(ip));
            prop_assert_eq!(local.port, u32::from(port));
        }
    }
}
