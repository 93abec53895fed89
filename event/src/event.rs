//! One event in the life of a connection.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;

use crate::text::{printable, push_number};

/// A time, in nanoseconds of `CLOCK_MONOTONIC`.
pub type Nanos = u64;

/// Identifies a connection from its open to its close.
///
/// It is the socket's cookie, the number that `ss -e` prints in hexadecimal as `sk:`. A socket that
/// is connected again after it was disconnected keeps its cookie, so `life` counts the attempts
/// before this one. Where the kernel gave no cookie the id has its top bit set: unique, but no cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId {
    /// The socket's cookie.
    pub cookie: u64,
    /// How many times this socket had tried to connect before.
    pub life: u16,
}

impl ConnectionId {
    /// Appends it as all outputs have it, to a text that takes everything.
    pub fn write(self, to: &mut impl fmt::Write) {
        push_number(to, self.cookie);
        if self.life > 0 {
            let _ = to.write_str(".");
            push_number(to, self.life);
        }
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        self.write(&mut text);
        f.write_str(&text)
    }
}

/// What happened to the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// This side connected, and the connection is established.
    Connect,
    /// A process accepted the connection.
    Accept,
    /// The connection ended.
    Close,
    /// This side tried to connect and the connection was never established. Opt-in.
    Failed,
    /// The connection was open when tracing started. Opt-in.
    Existing,
}

impl Kind {
    /// Its name, as the column TYPE and JSON have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Accept => "accept",
            Self::Close => "close",
            Self::Failed => "failed",
            Self::Existing => "existing",
        }
    }

    /// Its letter, as the column T has it.
    pub const fn letter(self) -> &'static str {
        match self {
            Self::Connect => "C",
            Self::Accept => "A",
            Self::Close => "X",
            Self::Failed => "F",
            Self::Existing => "E",
        }
    }

    /// Whether it is the end of a connection, which has a reason.
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Close | Self::Failed)
    }
}

/// Which side of the connection the socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// It connected.
    Client,
    /// It was accepted.
    Server,
    /// Not known.
    Unknown,
}

impl Role {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::Unknown => "unknown",
        }
    }
}

/// How the owner of a connection is known, from the most to the least exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// It called `connect`.
    Connect,
    /// It called `accept`.
    Accept,
    /// It called `listen`; no hook saw who accepted.
    Listener,
    /// It held the socket when tracing started.
    Snapshot,
    /// It closed the connection; no hook saw who connected, or who accepted where several listen.
    Closer,
    /// There is no owner.
    Unknown,
}

impl Source {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Accept => "accept",
            Self::Listener => "listener",
            Self::Snapshot => "snapshot",
            Self::Closer => "closer",
            Self::Unknown => "unknown",
        }
    }
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// This side sent the first FIN.
    Local,
    /// The peer sent the first FIN.
    Remote,
    /// This side aborted it with a RST: linger 0, or unread data at close.
    ResetLocal,
    /// A RST was received.
    ResetRemote,
    /// The peer stopped answering.
    Timeout,
    /// The socket was destroyed from outside, as `ss -K` does.
    Abort,
    /// Not known.
    Unknown,
}

impl Reason {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Remote => "remote",
            Self::ResetLocal => "reset-local",
            Self::ResetRemote => "reset-remote",
            Self::Timeout => "timeout",
            Self::Abort => "abort",
            Self::Unknown => "unknown",
        }
    }
}

/// A thread's name as the kernel keeps it: any bytes but NUL, at most 15.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Comm([u8; 16]);

impl Comm {
    /// From the kernel's fixed array; what follows the first NUL is ignored.
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The name, without its terminator.
    pub fn as_bytes(&self) -> &[u8] {
        let end = self.0.iter().position(|&b| b == 0);
        &self.0[..end.unwrap_or(self.0.len())]
    }

    /// The name, with nothing in it that acts on a terminal.
    pub fn printable(&self) -> Cow<'_, str> {
        printable(self.lossy())
    }

    /// The raw name, with invalid UTF-8 replaced. Control characters are the caller's concern.
    pub fn lossy(&self) -> Cow<'_, str> {
        match str::from_utf8(self.as_bytes()) {
            Ok(name) => name.into(),
            Err(_) => String::from_utf8_lossy(self.as_bytes()),
        }
    }
}

/// As [`Comm::lossy`].
impl fmt::Display for Comm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.lossy())
    }
}

impl fmt::Debug for Comm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.as_bytes().escape_ascii())
    }
}

/// The process that owns a connection, as it was when it became the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Process {
    /// Process (thread group) id in the initial pid namespace.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// Real user id in the initial user namespace.
    pub uid: u32,
    /// The thread's name.
    pub comm: Comm,
    /// Id of its cgroup in the v2 hierarchy.
    pub cgroup_id: u64,
    /// Inode of its mount namespace; 0 if the process was exiting.
    pub mntns: u32,
}

/// The process that closed a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Closer {
    /// Process (thread group) id in the initial pid namespace.
    pub pid: u32,
    /// The thread's name.
    pub comm: Comm,
}

/// The socket's final counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Counters {
    /// Payload bytes sent, each counted once however often it was retransmitted.
    pub bytes_sent: u64,
    /// Payload bytes received.
    pub bytes_received: u64,
    /// Segments sent, control segments included.
    pub segments_sent: u32,
    /// Segments received, control segments included.
    pub segments_received: u32,
    /// Segments sent again.
    pub retransmits: u32,
    /// Smoothed round-trip time in microseconds; 0 if it was never measured.
    pub srtt_us: u32,
}

/// One event in the life of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    /// What happened.
    pub kind: Kind,
    /// When.
    pub time: Nanos,
    /// To which connection.
    pub id: ConnectionId,
    /// Which side of it this is.
    pub role: Role,
    /// The process that connected or accepted.
    pub owner: Process,
    /// How the owner is known.
    pub source: Source,
    /// The process that closed it, on [`Kind::Close`] and [`Kind::Failed`] if one did.
    pub closer: Option<Closer>,
    /// Inode of the socket's network namespace.
    pub netns: u32,
    /// This side's address. An `AF_INET6` socket has an IPv6 address here, v4-mapped or not.
    pub local: SocketAddr,
    /// The peer's address.
    pub remote: SocketAddr,
    /// When the SYN was sent, on the client.
    pub syn: Option<Nanos>,
    /// When the handshake completed.
    pub established: Option<Nanos>,
    /// When it was accepted, on the server.
    pub accepted: Option<Nanos>,
    /// When the first FIN was sent or received, on [`Kind::Close`].
    pub first_fin: Option<Nanos>,
    /// Why it ended, on [`Kind::Close`] and [`Kind::Failed`].
    pub reason: Reason,
    /// The `errno` it ended with; 0 if none.
    pub errno: u16,
    /// The process read, and so cleared, the error before the kernel's hooks saw it: `errno` follows from what the
    /// socket still shows.
    pub errno_inferred: bool,
    /// On [`Kind::Close`] and [`Kind::Existing`], unless the socket was gone before they were read.
    pub counters: Option<Counters>,
}

impl Event {
    /// When the owner was in the cgroup and the namespaces that are told of it; `None` if long ago.
    pub fn owned_since(&self) -> Option<Nanos> {
        match self.source {
            Source::Closer => Some(self.time),
            Source::Snapshot | Source::Unknown => None,
            _ => self.syn.or(self.accepted).or(self.established),
        }
    }

    /// From the SYN to the end of the handshake, on the client.
    pub fn handshake(&self) -> Option<Nanos> {
        Some(self.established?.saturating_sub(self.syn?))
    }

    /// How long it waited to be accepted, on the server.
    pub fn accept_wait(&self) -> Option<Nanos> {
        Some(self.accepted?.saturating_sub(self.established?))
    }

    /// How long it was open, on [`Kind::Close`].
    pub fn duration(&self) -> Option<Nanos> {
        match self.kind {
            Kind::Close => Some(self.time.saturating_sub(self.established?)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn printed(name: &[u8]) -> String {
        let mut bytes = [0; 16];
        bytes[..name.len()].copy_from_slice(name);
        Comm::new(bytes).printable().into_owned()
    }

    #[test]
    fn a_name_cannot_reach_the_terminal() {
        assert_eq!(printed(b"nc"), "nc");
        assert_eq!(printed(b"a b"), "a b");
        assert_eq!(printed(b"\x1b[31mred\n"), "?[31mred?");
        assert_eq!(printed("a\u{202e}b\u{9b}".as_bytes()), "a?b?");
        assert_eq!(printed(b"bad\xff"), "bad\u{fffd}");
    }
}
