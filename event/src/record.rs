//! An event as it is written, whoever reported it: by the host tool from the kernel, by the plugin from an agent.

use std::borrow::Cow;

use crate::text::write_address;
use crate::{Event, Kind, Nanos, Reason, Role, Source};

/// An event, or an open connection, as it is written. `T` is a moment that can be shown. All text is printable.
#[derive(Clone, Debug, PartialEq)]
pub struct Record<'a, T> {
    /// What happened; `None` if this program does not know it.
    pub kind: Option<Kind>,
    /// When.
    pub time: Option<T>,
    /// The connection's id.
    pub id: Cow<'a, str>,
    /// Which side of it this is.
    pub role: Role,
    /// The owner's process.
    pub pid: u32,
    /// Its thread.
    pub tid: u32,
    /// Its user.
    pub uid: u32,
    /// The thread's name.
    pub comm: Cow<'a, str>,
    /// How the owner is known.
    pub source: Source,
    /// The id of the owner's cgroup.
    pub cgroup_id: u64,
    /// The inode of its mount namespace.
    pub mntns: u32,
    /// The inode of the socket's network namespace.
    pub netns: u32,
    /// The version of IP that the socket speaks to its user.
    pub ip: Option<u8>,
    /// This side's address.
    pub saddr: Cow<'a, str>,
    /// The peer's address.
    pub daddr: Cow<'a, str>,
    /// This side's port.
    pub sport: u32,
    /// The peer's port.
    pub dport: u32,
    /// When the SYN was sent, on the client.
    pub syn: Option<T>,
    /// When the handshake completed.
    pub established: Option<T>,
    /// When it was accepted, on the server.
    pub accepted: Option<T>,
    /// When the first FIN was sent or received.
    pub first_fin: Option<T>,
    /// From the SYN to the end of the handshake.
    pub handshake_ns: Option<Nanos>,
    /// How long it waited to be accepted.
    pub accept_wait_ns: Option<Nanos>,
    /// How long it was open.
    pub duration_ns: Option<Nanos>,
    /// Why it ended, if it has.
    pub reason: Option<Reason>,
    /// The `errno` it ended with, if one.
    pub errno: Option<u32>,
    /// The `errno` follows from what the socket still showed.
    pub errno_inferred: bool,
    /// The process that closed it.
    pub closer_pid: Option<u32>,
    /// The name of its thread.
    pub closer_comm: Option<Cow<'a, str>>,
    /// Payload bytes sent.
    pub bytes_sent: Option<u64>,
    /// Payload bytes received.
    pub bytes_received: Option<u64>,
    /// Segments sent.
    pub segments_sent: Option<u32>,
    /// Segments received.
    pub segments_received: Option<u32>,
    /// Segments sent again.
    pub retransmits: Option<u32>,
    /// Smoothed round-trip time in microseconds, if it was measured.
    pub srtt_us: Option<u64>,
}

/// A field's name. It is kept as it stands in an object behind another field, since it is written at one go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name(&'static str);

impl Name {
    /// For [`field_name`](crate::field_name).
    #[doc(hidden)]
    pub const fn quoted(quoted: &'static str) -> Self {
        Self(quoted)
    }

    /// The name.
    pub fn as_str(self) -> &'static str {
        &self.0[2..self.0.len() - 2]
    }

    /// With a comma in front, in quotes, and with a colon behind.
    pub(crate) fn as_json(self) -> &'static str {
        self.0
    }
}

/// The [`Name`] of a field, from a literal that needs no escapes.
#[macro_export]
macro_rules! field_name {
    ($name:literal) => {
        $crate::Name::quoted(concat!(",\"", $name, "\":"))
    };
}

#[cfg(test)]
pub(crate) use field_name;

/// Takes the fields of an object, one after the other: each way to write them is one, so that none looks at what kind of
/// field it has.
pub trait Put<T> {
    /// Why it may not take one.
    type Error;

    /// A text.
    fn text(&mut self, name: Name, text: &str) -> Result<(), Self::Error>;

    /// A text of this program: lower case, and nothing in it takes an escape.
    fn word(&mut self, name: Name, word: &'static str) -> Result<(), Self::Error> {
        self.text(name, word)
    }

    /// A number.
    fn number(&mut self, name: Name, number: u64) -> Result<(), Self::Error>;

    /// Whether it is so.
    fn flag(&mut self, name: Name, flag: bool) -> Result<(), Self::Error>;

    /// A moment.
    fn time(&mut self, name: Name, time: T) -> Result<(), Self::Error>;

    /// An object of texts, which may have any names.
    fn texts(&mut self, name: Name, texts: &[(&str, &str)]) -> Result<(), Self::Error>;
}

impl<'a, T: Copy> Record<'a, T> {
    /// An event of this host; `at` tells which moment a time of the kernel was. What it takes to write the numbers of an
    /// event as text replaces what is in `texts`: a busy host has many events.
    pub fn of(event: &'a Event, texts: &'a mut String, mut at: impl FnMut(Nanos) -> T) -> Self {
        let [id, saddr, daddr] = write_texts(event, texts);
        let counters = event.counters.as_ref();
        Self {
            kind: Some(event.kind),
            time: Some(at(event.time)),
            id: id.into(),
            role: event.role,
            pid: event.owner.pid,
            tid: event.owner.tid,
            uid: event.owner.uid,
            comm: event.owner.comm.printable(),
            source: event.source,
            cgroup_id: event.owner.cgroup_id,
            mntns: event.owner.mntns,
            netns: event.netns,
            ip: Some(if event.local.is_ipv4() { 4 } else { 6 }),
            saddr: saddr.into(),
            daddr: daddr.into(),
            sport: event.local.port().into(),
            dport: event.remote.port().into(),
            syn: event.syn.map(&mut at),
            established: event.established.map(&mut at),
            accepted: event.accepted.map(&mut at),
            first_fin: event.first_fin.map(&mut at),
            handshake_ns: event.handshake(),
            accept_wait_ns: event.accept_wait(),
            duration_ns: event.duration(),
            reason: event.kind.is_end().then_some(event.reason),
            errno: (event.kind.is_end() && event.errno != 0).then(|| event.errno.into()),
            errno_inferred: event.errno_inferred,
            closer_pid: event.closer.map(|c| c.pid),
            closer_comm: event.closer.as_ref().map(|c| c.comm.printable()),
            bytes_sent: counters.map(|c| c.bytes_sent),
            bytes_received: counters.map(|c| c.bytes_received),
            segments_sent: counters.map(|c| c.segments_sent),
            segments_received: counters.map(|c| c.segments_received),
            retransmits: counters.map(|c| c.retransmits),
            srtt_us: counters.and_then(|c| (c.srtt_us != 0).then(|| c.srtt_us.into())),
        }
    }

    /// Puts out the fields of JSON that say what happened and when. An output that adds fields of its own does so behind
    /// these.
    pub fn put_head<P: Put<T>>(&self, to: &mut P) -> Result<(), P::Error> {
        to.word(field_name!("type"), self.kind.map_or("unknown", Kind::name))?;
        match self.time {
            Some(time) => to.time(field_name!("time"), time),
            None => Ok(()),
        }
    }

    /// Puts out the other fields of JSON, in the order in which they are written. Their names are a promise. What does not
    /// apply is left out.
    pub fn put_fields<P: Put<T>>(&self, to: &mut P) -> Result<(), P::Error> {
        // One after the other, not as a list: a busy host has many.
        macro_rules! fields {
            ($($name:literal: $when:ident $kind:ident $value:expr;)+) => {
                $(fields!(@ $name $when $kind $value);)+
            };
            (@ $name:literal always $kind:ident $value:expr) => {
                to.$kind(field_name!($name), $value)?
            };
            (@ $name:literal known $kind:ident $value:expr) => {
                if let Some(value) = $value {
                    to.$kind(field_name!($name), value)?;
                }
            };
        }
        fields! {
            "id": always text &self.id;
            "role": always word self.role.name();
            "pid": always number self.pid.into();
            "tid": always number self.tid.into();
            "uid": always number self.uid.into();
            "comm": always text &self.comm;
            "source": always word self.source.name();
            "cgroup_id": always number self.cgroup_id;
            "mntns": always number self.mntns.into();
            "netns": always number self.netns.into();
            "ip": known number self.ip.map(u64::from);
            "saddr": always text &self.saddr;
            "daddr": always text &self.daddr;
            "sport": always number self.sport.into();
            "dport": always number self.dport.into();
            "syn": known time self.syn;
            "established": known time self.established;
            "accepted": known time self.accepted;
            "first_fin": known time self.first_fin;
            "handshake_ns": known number self.handshake_ns;
            "accept_wait_ns": known number self.accept_wait_ns;
            "duration_ns": known number self.duration_ns;
            "reason": known word self.reason.map(Reason::name);
            "errno": known number self.errno.map(u64::from);
            "errno_inferred": known flag self.errno_inferred.then_some(true);
            "closer_pid": known number self.closer_pid.map(u64::from);
            "closer_comm": known text self.closer_comm.as_deref();
            "bytes_sent": known number self.bytes_sent;
            "bytes_received": known number self.bytes_received;
            "segments_sent": known number self.segments_sent.map(u64::from);
            "segments_received": known number self.segments_received.map(u64::from);
            "retransmits": known number self.retransmits.map(u64::from);
            "srtt_us": known number self.srtt_us;
        }
        Ok(())
    }
}

/// The id and the two addresses.
fn write_texts<'a>(event: &Event, texts: &'a mut String) -> [&'a str; 3] {
    texts.clear();
    event.id.write(texts);
    let id_end = texts.len();
    write_address(texts, event.local.ip());
    let local_end = texts.len();
    write_address(texts, event.remote.ip());
    [
        &texts[..id_end],
        &texts[id_end..local_end],
        &texts[local_end..],
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Closer, Comm, ConnectionId, Counters, Process};

    fn comm(name: &[u8]) -> Comm {
        let mut bytes = [0; 16];
        bytes[..name.len()].copy_from_slice(name);
        Comm::new(bytes)
    }

    /// The end of a connection of which everything is known.
    fn close() -> Event {
        Event {
            kind: Kind::Close,
            time: 9,
            id: ConnectionId { cookie: 7, life: 2 },
            role: Role::Client,
            owner: Process {
                pid: 10,
                tid: 11,
                uid: 12,
                comm: comm(b"cu\x1brl"),
                cgroup_id: 13,
                mntns: 14,
            },
            source: Source::Snapshot,
            closer: Some(Closer {
                pid: 15,
                comm: comm(b"worker"),
            }),
            netns: 16,
            local: "[2001:db8::1]:17".parse().expect("an address"),
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

    /// A line for each field.
    struct Shown(Vec<String>);

    impl Shown {
        fn show(&mut self, name: Name, value: impl std::fmt::Display) -> Result<(), ()> {
            self.0.push(format!("{}: {value}", name.as_str()));
            Ok(())
        }
    }

    impl Put<Nanos> for Shown {
        type Error = ();

        fn text(&mut self, name: Name, text: &str) -> Result<(), ()> {
            self.show(name, format_args!("{text:?}"))
        }

        fn number(&mut self, name: Name, number: u64) -> Result<(), ()> {
            self.show(name, number)
        }

        fn flag(&mut self, name: Name, flag: bool) -> Result<(), ()> {
            self.show(name, flag)
        }

        fn time(&mut self, name: Name, time: Nanos) -> Result<(), ()> {
            self.show(name, format_args!("at {time}"))
        }

        fn texts(&mut self, name: Name, texts: &[(&str, &str)]) -> Result<(), ()> {
            self.show(name, format_args!("{texts:?}"))
        }
    }

    fn written(event: &Event) -> String {
        let mut texts = String::new();
        let record = Record::of(event, &mut texts, |time| time);
        let mut shown = Shown(Vec::new());
        record.put_head(&mut shown).expect("it shows all");
        record.put_fields(&mut shown).expect("it shows all");
        shown.0.join("\n")
    }

    /// Who reads the JSON of the host tool or of the plugin relies on these names, and on nothing being left out.
    #[test]
    fn the_fields_of_json_are_a_promise() {
        assert_eq!(
            written(&close()),
            r#"type: "close"
time: at 9
id: "7.2"
role: "client"
pid: 10
tid: 11
uid: 12
comm: "cu?rl"
source: "snapshot"
cgroup_id: 13
mntns: 14
netns: 16
ip: 6
saddr: "2001:db8::1"
daddr: "2001:db8::2"
sport: 17
dport: 18
syn: at 1
established: at 3
accepted: at 7
first_fin: at 8
handshake_ns: 2
accept_wait_ns: 4
duration_ns: 6
reason: "reset-remote"
errno: 104
errno_inferred: true
closer_pid: 15
closer_comm: "worker"
bytes_sent: 21
bytes_received: 22
segments_sent: 23
segments_received: 24
retransmits: 25
srtt_us: 26"#
        );
    }

    #[test]
    fn what_does_not_apply_is_left_out() {
        let connect = Event {
            kind: Kind::Connect,
            closer: None,
            accepted: None,
            first_fin: None,
            errno_inferred: false,
            counters: None,
            ..close()
        };
        let written = written(&connect);
        let names: Vec<_> = written
            .lines()
            .filter_map(|line| Some(line.split_once(':')?.0))
            .collect();
        let expected = "type time id role pid tid uid comm source cgroup_id mntns netns ip saddr daddr sport dport syn \
            established handshake_ns";
        assert_eq!(names.join(" "), expected);
    }

    #[test]
    fn every_field_is_documented() {
        let documented = include_str!("../../docs/json.md");
        let written = written(&close());
        for line in written.lines() {
            let name = line.split_once(':').expect("a name").0;
            assert!(documented.contains(&format!("`{name}`")), "{name}");
        }
    }
}
