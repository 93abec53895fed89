//! Decodes the records of the ring: `bpf/event.h` seen from this side.
//!
//! Nothing here touches libbpf but the generated constants and the compile-time comparison with the
//! generated layout. Any bytes decode to an event or to an error.

use std::mem::{offset_of, size_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tcptracer_event::{
    CgroupChange, Closer, Comm, ConnectionId, Counters, Event, Kind, Nanos, Process, Reason, Role,
    Source,
};
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::skel::types::{self, tt_cgroup_change, tt_reason, tt_role, tt_source, tt_type};

pub const AF_INET: u16 = 2;
pub const AF_INET6: u16 = 10;

/// `struct tt_process`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawProcess {
    cgroup_id: u64,
    pid: u32,
    tid: u32,
    uid: u32,
    mntns: u32,
    comm: [u8; 16],
}

/// `struct tt_conn`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawConn {
    cookie: u64,
    t_syn: u64,
    t_established: u64,
    t_accepted: u64,
    t_fin: u64,
    t_closed: u64,
    owner: RawProcess,
    local: [u8; 16],
    remote: [u8; 16],
    netns: u32,
    closer_pid: u32,
    closer_comm: [u8; 16],
    family: u16,
    local_port: u16,
    remote_port: u16,
    error: u16,
    noticed: u16,
    life: u16,
    role: u8,
    source: u8,
    reason: u8,
    opened: u8,
    closed: u8,
    reported: u8,
    grafted: u8,
    closer_selected: u8,
    error_inferred: u8,
    pad: [u8; 3],
}

/// `struct tt_slot`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawSlot {
    key: u64,
    claims: u64,
    conn: RawConn,
    tail: u64,
}

/// How many slots a set has.
pub const TT_WAYS: u32 = 4;

/// `struct tt_set`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawSet {
    spilled: u64,
    slots: [RawSlot; TT_WAYS as usize],
}

/// `struct tt_event`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawEvent {
    time: u64,
    conn: RawConn,
    bytes_sent: u64,
    bytes_received: u64,
    segs_out: u32,
    segs_in: u32,
    retransmits: u32,
    srtt_us: u32,
    r#type: u8,
    counted: u8,
    pad: [u8; 6],
}

const PATH_LEN: usize = 512;

/// `struct tt_cgroup`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawCgroup {
    id: u64,
    change: u32,
    path_len: u32,
    path: [u8; PATH_LEN],
}

/// Fails the build when a field is not where the programs put it.
macro_rules! same_layout {
    ($ours:ty, $theirs:ty, $($field:ident),+ $(,)?) => {
        const _: () = {
            assert!(size_of::<$ours>() == size_of::<$theirs>());
            $(assert!(offset_of!($ours, $field) == offset_of!($theirs, $field));)+
        };
    };
}

same_layout!(
    RawProcess,
    types::tt_process,
    cgroup_id,
    pid,
    tid,
    uid,
    mntns,
    comm
);
same_layout!(
    RawConn,
    types::tt_conn,
    cookie,
    t_syn,
    t_established,
    t_accepted,
    t_fin,
    t_closed,
    owner,
    local,
    remote,
    netns,
    closer_pid,
    closer_comm,
    family,
    local_port,
    remote_port,
    error,
    noticed,
    life,
    role,
    source,
    reason,
    opened,
    closed,
    reported,
    grafted,
    closer_selected,
    error_inferred,
    pad,
);
same_layout!(RawSlot, types::tt_slot, key, claims, conn, tail);
same_layout!(RawSet, types::tt_set, spilled, slots);
same_layout!(
    RawEvent,
    types::tt_event,
    time,
    conn,
    bytes_sent,
    bytes_received,
    segs_out,
    segs_in,
    retransmits,
    srtt_us,
    r#type,
    counted,
    pad,
);
same_layout!(RawCgroup, types::tt_cgroup, id, change, path_len, path);

/// Size of an event's record in bytes.
const EVENT_SIZE: usize = size_of::<RawEvent>();

/// Size of a cgroup's record in bytes.
const CGROUP_SIZE: usize = size_of::<RawCgroup>();

/// What the ring holds.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are events, and a box for each would cost more"
)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reported {
    /// Something happened to a connection.
    Event(Event),
    /// A cgroup came or went.
    Cgroup(CgroupChange),
    /// A cgroup of this id came, and its path is longer than a record.
    LongCgroup(u64),
}

/// A record that the programs cannot have written.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    /// Not of a size that there is.
    #[error("a record of {0} bytes, neither {EVENT_SIZE} nor {CGROUP_SIZE}")]
    Size(usize),
    /// A field holds a number that stands for nothing.
    #[error("a record with {field} {value}")]
    Value {
        /// The field.
        field: &'static str,
        /// What it holds.
        value: u16,
    },
}

fn unknown<T>(field: &'static str, value: impl Into<u16>) -> Result<T, DecodeError> {
    Err(DecodeError::Value {
        field,
        value: value.into(),
    })
}

/// Decodes one record of the ring. It need not be aligned.
pub fn decode(record: &[u8]) -> Result<Reported, DecodeError> {
    match record.len() {
        CGROUP_SIZE => decode_cgroup(record),
        _ => decode_event(record).map(Reported::Event),
    }
}

fn decode_cgroup(record: &[u8]) -> Result<Reported, DecodeError> {
    let raw = RawCgroup::read_from_bytes(record).map_err(|_| DecodeError::Size(record.len()))?;
    let RawCgroup { id, path_len, .. } = raw;
    let path = &raw.path[..PATH_LEN.min(path_len as usize)];

    Ok(match tt_cgroup_change(raw.change) {
        tt_cgroup_change::TT_CGROUP_MADE if path_len as usize + 1 >= PATH_LEN => {
            Reported::LongCgroup(id)
        }
        tt_cgroup_change::TT_CGROUP_MADE => {
            let path = String::from_utf8_lossy(path).into_owned();
            Reported::Cgroup(CgroupChange::Made { id, path })
        }
        tt_cgroup_change::TT_CGROUP_REMOVED => Reported::Cgroup(CgroupChange::Removed { id }),
        // Small numbers only, and this one is not.
        _ => return unknown("change", raw.change as u16),
    })
}

/// Decodes the record of an event, from the ring or the snapshot.
fn decode_event(record: &[u8]) -> Result<Event, DecodeError> {
    let raw = RawEvent::read_from_bytes(record).map_err(|_| DecodeError::Size(record.len()))?;
    event(&raw)
}

/// Decodes as many records as there are; also says how many could not be.
pub fn decode_events(records: &[u8]) -> (Vec<Event>, u64) {
    sort_out(records.chunks(EVENT_SIZE).map(decode_event))
}

/// Decodes entries of the table of connections, and yields those of [`decode_connection`]; also says how many could
/// not be decoded.
pub fn decode_connections<E: AsRef<[u8]>>(
    entries: impl Iterator<Item = E>,
    now: Nanos,
) -> (Vec<Event>, u64) {
    sort_out(entries.filter_map(|entry| decode_connection(entry.as_ref(), now).transpose()))
}

/// The same of sets of the table. A slot whose connection came while it was read is left out: it was not there before.
pub fn decode_sets<E: AsRef<[u8]>>(sets: impl Iterator<Item = E>, now: Nanos) -> (Vec<Event>, u64) {
    sort_out(sets.flat_map(|set| decode_set(set.as_ref(), now)))
}

fn decode_set(set: &[u8], now: Nanos) -> Vec<Result<Event, DecodeError>> {
    let Ok(set) = RawSet::read_from_bytes(set) else {
        return vec![Err(DecodeError::Size(set.len()))];
    };
    let slots = set.slots.iter();
    let taken = slots.filter(|slot| slot.key != 0 && slot.key == slot.tail);
    taken
        .filter_map(|slot| existing(slot.conn, now).transpose())
        .collect()
}

fn sort_out(decoded: impl Iterator<Item = Result<Event, DecodeError>>) -> (Vec<Event>, u64) {
    let mut bad = 0;
    let events = decoded.filter_map(|event| event.inspect_err(|_| bad += 1).ok());
    (events.collect(), bad)
}

/// Decodes an entry of the table of connections, if it is established and open: as an event of kind
/// [`Kind::Existing`] at `now`.
fn decode_connection(entry: &[u8], now: Nanos) -> Result<Option<Event>, DecodeError> {
    let conn = RawConn::read_from_bytes(entry).map_err(|_| DecodeError::Size(entry.len()))?;
    existing(conn, now)
}

fn existing(conn: RawConn, now: Nanos) -> Result<Option<Event>, DecodeError> {
    if conn.closed != 0 || conn.opened == 0 {
        return Ok(None);
    }
    event(&RawEvent {
        time: now,
        conn,
        bytes_sent: 0,
        bytes_received: 0,
        segs_out: 0,
        segs_in: 0,
        retransmits: 0,
        srtt_us: 0,
        r#type: tt_type::TT_EXISTING.0 as u8,
        counted: 0,
        pad: [0; 6],
    })
    .map(Some)
}

fn event(raw: &RawEvent) -> Result<Event, DecodeError> {
    let conn = &raw.conn;
    let kind = kind(raw.r#type)?;
    // An accept that is reported late, or a connection found half closed, is on its way to its end
    // already; its opening says nothing of that.
    let ended = matches!(kind, Kind::Close | Kind::Failed);

    Ok(Event {
        kind,
        time: raw.time,
        id: ConnectionId {
            cookie: conn.cookie,
            life: conn.life,
        },
        role: role(conn.role)?,
        owner: Process {
            pid: conn.owner.pid,
            tid: conn.owner.tid,
            uid: conn.owner.uid,
            comm: Comm::new(conn.owner.comm),
            cgroup_id: conn.owner.cgroup_id,
            mntns: conn.owner.mntns,
        },
        source: source(conn.source)?,
        closer: (ended && conn.closer_pid != 0).then(|| Closer {
            pid: conn.closer_pid,
            comm: Comm::new(conn.closer_comm),
        }),
        netns: conn.netns,
        local: address(conn.family, conn.local, conn.local_port)?,
        remote: address(conn.family, conn.remote, conn.remote_port)?,
        syn: known(conn.t_syn),
        established: known(conn.t_established),
        accepted: known(conn.t_accepted),
        first_fin: known(conn.t_fin).filter(|_| ended),
        reason: match reason(conn.reason)? {
            reason if ended => reason,
            _ => Reason::Unknown,
        },
        errno: if ended { conn.error } else { 0 },
        errno_inferred: ended && conn.error_inferred != 0,
        counters: (raw.counted != 0).then_some(Counters {
            bytes_sent: raw.bytes_sent,
            bytes_received: raw.bytes_received,
            segments_sent: raw.segs_out,
            segments_received: raw.segs_in,
            retransmits: raw.retransmits,
            srtt_us: raw.srtt_us,
        }),
    })
}

fn known(time: Nanos) -> Option<Nanos> {
    (time != 0).then_some(time)
}

fn address(family: u16, bytes: [u8; 16], port: u16) -> Result<SocketAddr, DecodeError> {
    let ip = match family {
        AF_INET => {
            let [a, b, c, d, ..] = bytes;
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
        AF_INET6 => IpAddr::V6(Ipv6Addr::from(bytes)),
        _ => return unknown("family", family),
    };
    Ok(SocketAddr::new(ip, port))
}

fn kind(value: u8) -> Result<Kind, DecodeError> {
    Ok(match tt_type(value.into()) {
        tt_type::TT_CONNECT => Kind::Connect,
        tt_type::TT_ACCEPT => Kind::Accept,
        tt_type::TT_CLOSE => Kind::Close,
        tt_type::TT_FAILED => Kind::Failed,
        tt_type::TT_EXISTING => Kind::Existing,
        _ => return unknown("type", value),
    })
}

fn role(value: u8) -> Result<Role, DecodeError> {
    Ok(match tt_role(value.into()) {
        tt_role::TT_ROLE_UNKNOWN => Role::Unknown,
        tt_role::TT_ROLE_CLIENT => Role::Client,
        tt_role::TT_ROLE_SERVER => Role::Server,
        _ => return unknown("role", value),
    })
}

fn source(value: u8) -> Result<Source, DecodeError> {
    Ok(match tt_source(value.into()) {
        tt_source::TT_SOURCE_UNKNOWN => Source::Unknown,
        tt_source::TT_SOURCE_CONNECT => Source::Connect,
        tt_source::TT_SOURCE_ACCEPT => Source::Accept,
        tt_source::TT_SOURCE_LISTENER => Source::Listener,
        tt_source::TT_SOURCE_SNAPSHOT => Source::Snapshot,
        tt_source::TT_SOURCE_CLOSER => Source::Closer,
        _ => return unknown("source", value),
    })
}

fn reason(value: u8) -> Result<Reason, DecodeError> {
    Ok(match tt_reason(value.into()) {
        tt_reason::TT_REASON_UNKNOWN => Reason::Unknown,
        tt_reason::TT_REASON_LOCAL => Reason::Local,
        tt_reason::TT_REASON_REMOTE => Reason::Remote,
        tt_reason::TT_REASON_RESET_LOCAL => Reason::ResetLocal,
        tt_reason::TT_REASON_RESET_REMOTE => Reason::ResetRemote,
        tt_reason::TT_REASON_TIMEOUT => Reason::Timeout,
        tt_reason::TT_REASON_ABORT => Reason::Abort,
        _ => return unknown("reason", value),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&bytes);
        }

        #[test]
        fn any_cgroup_record_decodes_or_is_refused(
            bytes in prop::collection::vec(any::<u8>(), CGROUP_SIZE), change in 0u32..4,
        ) {
            let mut bytes = bytes;
            bytes[offset_of!(RawCgroup, change)..][..4].copy_from_slice(&change.to_ne_bytes());
            prop_assert_eq!(decode(&bytes).is_ok(), change == 1 || change == 2);
        }

        #[test]
        fn any_record_of_the_right_size_decodes_or_is_refused(
            bytes in prop::collection::vec(any::<u8>(), EVENT_SIZE),
            kind in 0u8..8, family in 0u16..12, small in 0u8..8,
        ) {
            let mut bytes = bytes;
            let conn = offset_of!(RawEvent, conn);
            bytes[offset_of!(RawEvent, r#type)] = kind;
            bytes[conn + offset_of!(RawConn, family)..][..2].copy_from_slice(&family.to_ne_bytes());
            bytes[conn + offset_of!(RawConn, role)] = small % 3;
            bytes[conn + offset_of!(RawConn, source)] = small % 6;
            bytes[conn + offset_of!(RawConn, reason)] = small % 7;
            let valid = (1..=5).contains(&kind) && (family == AF_INET || family == AF_INET6);
            prop_assert_eq!(decode(&bytes).is_ok(), valid);
        }
    }

    #[test]
    fn a_record_that_is_short_or_long_is_refused() {
        for size in [0, 8, EVENT_SIZE - 1, EVENT_SIZE + 1] {
            assert_eq!(decode(&vec![0; size]), Err(DecodeError::Size(size)));
        }
    }

    /// A record of an open connection of this family.
    fn open(family: u16) -> Vec<u8> {
        let mut bytes = vec![0u8; EVENT_SIZE];
        let conn = offset_of!(RawEvent, conn);
        bytes[offset_of!(RawEvent, r#type)] = 5;
        bytes[conn + offset_of!(RawConn, family)..][..2].copy_from_slice(&family.to_ne_bytes());
        bytes[conn + offset_of!(RawConn, opened)] = 1;
        bytes
    }

    #[test]
    fn a_bad_record_costs_no_other() {
        const AF_NETLINK: u16 = 16;
        let records = [AF_INET, AF_NETLINK, AF_INET6].map(open);
        let (events, bad) = decode_events(&records.concat());
        assert_eq!((events.len(), bad), (2, 1));
        let (events, bad) = decode_events(&records.concat()[..2 * EVENT_SIZE + 1]);
        assert_eq!((events.len(), bad), (1, 2));

        let conn = offset_of!(RawEvent, conn);
        let entries = records
            .iter()
            .map(|r| &r[conn..conn + size_of::<RawConn>()]);
        let closed = vec![0u8; size_of::<RawConn>()];
        let all = entries.chain([&closed[..], &closed[1..]]);
        let (events, bad) = decode_connections(all, 1);
        assert_eq!((events.len(), bad), (2, 2));
    }

    #[test]
    fn a_misaligned_record_decodes() {
        let mut bytes = vec![0u8; EVENT_SIZE + 1];
        bytes[1 + offset_of!(RawEvent, r#type)] = 1;
        let family = 1 + offset_of!(RawEvent, conn) + offset_of!(RawConn, family);
        bytes[family..][..2].copy_from_slice(&AF_INET.to_ne_bytes());
        assert_eq!(decode_event(&bytes[1..]).map(|e| e.kind), Ok(Kind::Connect));
    }
}
