//! The command line. Help, usage errors and the man page all come from these definitions.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};

use crate::bpf::{Config, Family, Filter};
use crate::check;

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The columns of bcc's tcptracer
    Table,
    /// One JSON object a line, with every field
    Json,
}

/// Trace TCP connections that are established, as they open and close.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "tcptracer",
    version,
    about = "Trace TCP connections that are established, as they open and close",
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true,
    after_help = "\
Examples:
  tcptracer              trace all connections
  tcptracer -t           with the time since the first event
  tcptracer -v           with long type names and network namespaces
  tcptracer -p 181       only connections that PID 181 owns or closes
  tcptracer -4           only IPv4 sockets
  tcptracer -x           with why, how long, how much
  tcptracer -o json      everything, for programs
  tcptracer --cgroupmap /sys/fs/bpf/test01    only cgroups in this BPF map
  tcptracer --mntnsmap /sys/fs/bpf/mnt_set    only mount namespaces in this BPF map
  tcptracer check        what this host offers, and what is lost without it"
)]
pub struct Args {
    /// Something else than tracing.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Write the type in full and the network namespace
    #[arg(short, long)]
    pub verbose: bool,

    /// Write the time since the first event: seconds, or nanoseconds with -v
    #[arg(short, long)]
    pub timestamp: bool,

    /// Trace only connections that this process owns or closes
    #[arg(
        short,
        long,
        value_name = "PID",
        default_value_t = 0,
        hide_default_value = true
    )]
    pub pid: u32,

    /// Trace only sockets of this network namespace (an inode number)
    #[arg(
        short = 'N',
        long,
        value_name = "NETNS",
        default_value_t = 0,
        hide_default_value = true
    )]
    pub netns: u32,

    /// Trace only cgroups, and those below them, whose ids are in this pinned BPF map
    #[arg(long, value_name = "MAPPATH")]
    pub cgroupmap: Option<PathBuf>,

    /// Trace only mount namespaces whose inode numbers are in this pinned BPF map
    #[arg(long, value_name = "MAPPATH")]
    pub mntnsmap: Option<PathBuf>,

    /// Trace only IPv4 sockets
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    pub ipv4: bool,

    /// Trace only IPv6 sockets, those with IPv4 peers included
    #[arg(short = '6', long)]
    pub ipv6: bool,

    /// Add columns: reason, duration, bytes, retransmits, round-trip time
    #[arg(short = 'x', long)]
    pub extended: bool,

    /// How to write events
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = Format::Table)]
    pub output: Format,

    /// Trace connects that fail, too
    #[arg(long)]
    pub failed: bool,

    /// List the connections that are open at the start first
    #[arg(long)]
    pub existing: bool,

    /// Stop after this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub duration: Option<u32>,

    /// Say on stderr at the end how many events were seen, written and lost
    #[arg(long)]
    pub stats: bool,

    /// Room for events that are not read yet, in bytes: a power of two from 4096
    #[arg(long, value_name = "BYTES", value_parser = ring_size, default_value_t = Config::default().ring_bytes)]
    pub ring_size: u32,

    /// Room for connections that are followed at a time
    #[arg(
        long,
        value_name = "NUMBER",
        value_parser = clap::value_parser!(u32).range(1..=16_777_216),
        default_value_t = Config::default().max_connections
    )]
    pub max_connections: u32,
}

/// What the tool does beside tracing.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Say what this host offers: exit code 0 if tracing is complete, 3 if degraded, 1 if impossible
    Check(check::Args),
}

/// The kernel takes nothing else for a ring.
fn ring_size(arg: &str) -> Result<u32, String> {
    let bytes: u32 = arg.parse().map_err(|e| format!("{e}"))?;
    if bytes < 4096 || !bytes.is_power_of_two() {
        return Err("not a power of two from 4096 to 2147483648".into());
    }
    Ok(bytes)
}

impl Args {
    /// What the tracer has to do.
    pub fn config(&self) -> Config {
        Config {
            filter: Filter {
                pid: NonZeroU32::new(self.pid),
                netns: NonZeroU32::new(self.netns),
                family: match (self.ipv4, self.ipv6) {
                    (true, _) => Some(Family::V4),
                    (_, true) => Some(Family::V6),
                    _ => None,
                },
                cgroup_map: self.cgroupmap.clone(),
                mntns_map: self.mntnsmap.clone(),
                either_map: false,
                owns_maps: false,
            },
            failed: self.failed,
            existing: self.existing,
            cgroups: None,
            on_demand: None,
            ring_bytes: self.ring_size,
            max_connections: self.max_connections,
        }
    }

    /// When to stop by itself.
    pub fn time_limit(&self) -> Option<Duration> {
        self.duration.map(|s| Duration::from_secs(s.into()))
    }
}
