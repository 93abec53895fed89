//! What to trace, and how much memory to spend on it.

use std::num::NonZeroU32;
use std::path::PathBuf;

/// The address family of a socket. An IPv6 socket that talks to an IPv4 peer counts as IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `AF_INET`.
    V4,
    /// `AF_INET6`.
    V6,
}

/// Which connections to report. Everything given has to hold, but see [`Filter::either_map`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The process (thread group) that owns or closes the connection, in the initial pid namespace.
    pub pid: Option<NonZeroU32>,
    /// Inode of the socket's network namespace.
    pub netns: Option<NonZeroU32>,
    /// Family of the socket.
    pub family: Option<Family>,
    /// A pinned hash whose 8-byte keys are ids of v2 cgroups; processes below them count as well.
    pub cgroup_map: Option<PathBuf>,
    /// A pinned hash whose 8-byte keys are inodes of mount namespaces.
    pub mntns_map: Option<PathBuf>,
    /// Of two maps, it is enough that one has the process.
    pub either_map: bool,
    /// Nobody else edits the maps, and a [`Generation`](super::Generation) hears of each change of them. So it is remembered who
    /// passes, and nothing is kept of connections of others: [`Seeder`](super::Seeder) finds those that are open once somebody
    /// passes who did not.
    pub owns_maps: bool,
}

/// What hooks are attached for. Each includes those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Demand {
    /// Cgroups that come and go, if those are to be reported; nothing that connections or system calls pass.
    #[default]
    Nothing,
    /// Connections.
    Connections,
    /// Connects that fail as well, before a SYN is sent.
    Failures,
}

/// Everything the tracer is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Which connections to report.
    pub filter: Filter,
    /// Report connects that fail.
    pub failed: bool,
    /// Report the connections that are open at the start.
    pub existing: bool,
    /// Report the cgroups of this hierarchy that come and go. v2 is number 0.
    pub cgroups: Option<u32>,
    /// After the start have only those hooks attached that this takes and, later, that
    /// [`Control::attach`](super::Control::attach) asks for. Without it all that are used stay attached.
    pub on_demand: Option<Demand>,
    /// Size of the ring in bytes, a power of two and a multiple of the page size.
    pub ring_bytes: u32,
    /// How many connections can be followed at a time. Memory for all of them is taken at the
    /// start: about 240 bytes each.
    pub max_connections: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            filter: Filter::default(),
            failed: false,
            existing: false,
            cgroups: None,
            on_demand: None,
            // At 232 bytes a record: half a second of 70,000 events a second.
            ring_bytes: 8 << 20,
            max_connections: 65_536,
        }
    }
}

impl Config {
    /// What is wanted of the kernel as long as somebody wants anything.
    pub(super) fn demand(&self) -> Demand {
        match self.failed {
            true => Demand::Failures,
            false => Demand::Connections,
        }
    }
}
