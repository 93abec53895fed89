//! One event as an element of `Events.events`, written field by field: a busy node has many, and a message would have its
//! texts in memory of their own. Fields come in the order of their numbers, as they do in an encoded message.

use std::net::SocketAddr;
use std::sync::Arc;

use prost::Message;
use prost_types::Timestamp;
use tcptracer_event::{Counters, Event, Nanos, Process, Reason, Source, write_address};

use crate::v1;
use crate::wire::Writer;

/// `events` in `Events`.
pub(crate) const EVENT_FIELD: u32 = 1;

/// What an event without labels of pods takes at most, in most cases.
const ROOM: usize = 640;

/// Whose a process is, encoded. Who keeps it does not encode it for every event.
#[derive(Clone, Debug, Default)]
pub struct EncodedIdentity(Box<[u8]>);

impl EncodedIdentity {
    /// Encodes it.
    pub fn new(identity: &v1::Identity) -> Self {
        Self(identity.encode_to_vec().into())
    }
}

/// One event as an element of `Events.events`. A clone shares the bytes.
#[derive(Clone, Debug)]
pub struct EncodedEvent(Arc<[u8]>);

impl EncodedEvent {
    /// Encodes an event; `at` says what time of day a time of the kernel was.
    pub fn new(
        sequence: u64,
        event: &Event,
        identity: &EncodedIdentity,
        at: &dyn Fn(Nanos) -> Timestamp,
    ) -> Self {
        let mut to = Writer::with_capacity(ROOM);
        to.long(EVENT_FIELD, |to| {
            write_event(to, sequence, event, identity, at);
        });
        Self(to.into_bytes().into())
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

fn write_event(
    to: &mut Writer,
    sequence: u64,
    event: &Event,
    identity: &EncodedIdentity,
    at: &dyn Fn(Nanos) -> Timestamp,
) {
    let reason = match event.kind.is_end() {
        true => event.reason,
        false => Reason::Unknown,
    };
    to.number(1, sequence);
    to.number(2, v1::EventType::from(event.kind) as u32);
    write_timestamp(to, 3, at(event.time));
    to.long(4, |to| write_connection(to, event, identity, at));
    if let Some(closer) = event.closer {
        to.short(5, |to| {
            to.number(1, closer.pid);
            to.text(2, &closer.comm.lossy());
        });
    }
    to.number(6, v1::CloseReason::from(reason) as u32);
    to.number(7, event.errno);
    if let Some(first_fin) = event.first_fin {
        write_timestamp(to, 8, at(first_fin));
    }
    if let Some(took) = event.duration() {
        write_duration(to, 9, std::time::Duration::from_nanos(took));
    }
    if let Some(counters) = event.counters {
        to.short(10, |to| write_counters(to, counters));
    }
    to.number(11, event.errno_inferred);
}

fn write_connection(
    to: &mut Writer,
    event: &Event,
    identity: &EncodedIdentity,
    at: &dyn Fn(Nanos) -> Timestamp,
) {
    let family = match event.local.is_ipv4() {
        true => v1::IpFamily::V4,
        false => v1::IpFamily::V6,
    };
    to.short(1, |to| event.id.write(to));
    to.number(2, v1::Role::from(event.role) as u32);
    to.short(3, |to| write_process(to, event.owner, event.source));
    to.bytes(4, &identity.0);
    to.number(5, event.netns);
    to.short(6, |to| write_endpoint(to, event.local));
    to.short(7, |to| write_endpoint(to, event.remote));
    to.number(8, family as u32);
    for (field, time) in [
        (9, event.syn),
        (10, event.established),
        (11, event.accepted),
    ] {
        if let Some(time) = time {
            write_timestamp(to, field, at(time));
        }
    }
}

fn write_process(to: &mut Writer, process: Process, source: Source) {
    to.number(1, process.pid);
    to.number(2, process.tid);
    to.number(3, process.uid);
    to.text(4, &process.comm.lossy());
    to.number(5, process.cgroup_id);
    to.number(6, process.mntns);
    to.number(7, v1::ProcessSource::from(source) as u32);
}

fn write_endpoint(to: &mut Writer, endpoint: SocketAddr) {
    to.short(1, |to| write_address(to, endpoint.ip()));
    to.number(2, endpoint.port());
}

fn write_counters(to: &mut Writer, counters: Counters) {
    to.number(1, counters.bytes_sent);
    to.number(2, counters.bytes_received);
    to.number(3, counters.segments_sent);
    to.number(4, counters.segments_received);
    to.number(5, counters.retransmits);
    if counters.srtt_us != 0 {
        let srtt = std::time::Duration::from_micros(counters.srtt_us.into());
        write_duration(to, 6, srtt);
    }
}

fn write_timestamp(to: &mut Writer, field: u32, time: Timestamp) {
    let Timestamp { seconds, nanos } = time;
    to.short(field, |to| {
        to.signed(1, seconds);
        to.signed(2, nanos.into());
    });
}

fn write_duration(to: &mut Writer, field: u32, took: std::time::Duration) {
    to.short(field, |to| {
        to.number(1, took.as_secs());
        to.number(2, took.subsec_nanos());
    });
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use tcptracer_event::{Closer, Comm, ConnectionId, Kind, Role};

    use super::*;
    use crate::view::EventBytes;

    /// The end of a connection of which everything is known.
    fn event() -> Event {
        Event {
            kind: Kind::Close,
            time: 9,
            id: ConnectionId { cookie: 7, life: 2 },
            role: Role::Client,
            owner: Process {
                pid: 10,
                tid: 11,
                uid: 12,
                comm: Comm::new(*b"curl\0\0\0\0\0\0\0\0\0\0\0\0"),
                cgroup_id: 13,
                mntns: 14,
            },
            source: Source::Snapshot,
            closer: Some(Closer {
                pid: 15,
                comm: Comm::new(*b"worker\xff\0\0\0\0\0\0\0\0\0"),
            }),
            netns: 16,
            local: "10.0.0.1:17".parse().expect("an address"),
            remote: "[2001:db8::2]:18".parse().expect("an address"),
            syn: Some(1),
            established: Some(3),
            accepted: Some(7),
            first_fin: Some(8),
            reason: Reason::ResetRemote,
            errno: 104,
            errno_inferred: true,
            counters: Some(Counters {
                bytes_sent: 21,
                bytes_received: 22,
                segments_sent: 23,
                segments_received: 24,
                retransmits: 25,
                srtt_us: 26,
            }),
        }
    }

    fn at(time: Nanos) -> Timestamp {
        Timestamp {
            seconds: time as i64 - 5,
            nanos: time as i32 % 1000,
        }
    }

    fn identity(labels: usize) -> v1::Identity {
        v1::Identity {
            pod: "cart-1".into(),
            image: "x".repeat(labels),
            ..v1::Identity::default()
        }
    }

    /// An event of this number.
    pub fn encoded(sequence: u64) -> EncodedEvent {
        EncodedEvent::new(sequence, &event(), &EncodedIdentity::default(), &at)
    }

    /// The message behind the key and the length that it has as an element.
    #[track_caller]
    fn decoded(encoded: &EncodedEvent) -> v1::Event {
        let v1::Events { mut events } = v1::Events::decode(encoded.as_bytes()).expect("events");
        assert_eq!(events.len(), 1);
        events.remove(0)
    }

    /// The bytes are those of the message, and a view has what the message has.
    #[track_caller]
    fn is_as_its_message(event: &Event, identity: &v1::Identity) {
        let encoded = EncodedEvent::new(3, event, &EncodedIdentity::new(identity), &at);
        let message = decoded(&encoded);
        let mut again = Vec::new();
        prost::encoding::message::encode(EVENT_FIELD, &message, &mut again);
        assert_eq!(encoded.as_bytes(), again);

        let bytes = message.encode_to_vec();
        let view = EventBytes(&bytes).view().expect("it can be read");
        let connection = message.connection.as_ref().expect("a connection");
        assert_eq!(view.identity.message().as_ref(), Ok(identity));
        assert_eq!(connection.identity.as_ref(), Some(identity));
        assert_eq!(
            format!("{:?}", view.connection),
            format!("{:?}", crate::ConnectionView::from(connection))
        );
        assert_eq!(
            (view.sequence, view.kind, view.time, view.reason),
            (3, Some(event.kind), message.time, message.reason().known())
        );
        assert_eq!(
            (view.errno, view.errno_inferred, view.first_fin),
            (message.errno, message.errno_inferred, message.first_fin)
        );
        assert_eq!(
            (view.duration, view.counters),
            (message.duration, message.counters)
        );
        let closer = message.closer.as_ref();
        assert_eq!(
            view.closer.map(|c| (c.pid, c.comm)),
            closer.map(|c| (c.pid, &*c.comm))
        );
    }

    #[test]
    fn what_is_written_is_the_message_that_it_stands_for() {
        for kind in [Kind::Connect, Kind::Accept, Kind::Close, Kind::Failed] {
            // Lengths that take one byte, two and three.
            for length in [0, 60, 127, 128, 16_000, 20_000] {
                is_as_its_message(&Event { kind, ..event() }, &identity(length));
            }
        }
        let bare = Event {
            kind: Kind::Connect,
            owner: Process {
                pid: 0,
                tid: 0,
                uid: 0,
                comm: Comm::new([0; 16]),
                cgroup_id: 0,
                mntns: 0,
            },
            closer: None,
            syn: None,
            established: None,
            accepted: None,
            first_fin: None,
            counters: None,
            ..event()
        };
        is_as_its_message(&bare, &v1::Identity::default());
    }

    proptest! {
        #[test]
        fn any_event_is_as_its_message(
            time in any::<u64>(), cookie in any::<u64>(), comm in any::<[u8; 16]>(), ip in any::<std::net::IpAddr>(),
            port in any::<u16>(), pid in any::<u32>(), labels in 0_usize..400,
        ) {
            let base = event();
            let event = Event {
                time,
                id: ConnectionId { cookie, ..base.id },
                owner: Process { pid, comm: Comm::new(comm), ..base.owner },
                local: SocketAddr::new(ip, port),
                syn: Some(time / 2),
                ..base
            };
            is_as_its_message(&event, &identity(labels));
        }

        /// Nothing that an agent sends does any harm.
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let event = EventBytes(&bytes);
            if let Ok(view) = event.view() {
                prop_assert_eq!(event.sequence(), Ok(view.sequence));
            }
        }
    }
}
