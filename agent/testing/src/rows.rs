//! The rows of bcc's tcptracer, written down once more, from its format strings.

use std::net::SocketAddr;

/// The first line.
pub const BANNER: &str = "Tracing TCP established connections. Ctrl-C to end.";

/// One end of a connection and the process that has it.
#[derive(Clone, Debug)]
pub struct End {
    pub pid: u32,
    pub comm: String,
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

impl End {
    /// `"%-6d %-16s %-2d %-16s %-16s %-6d %-6d"`
    pub fn body(&self) -> String {
        format!(
            "{:<6} {:<16} {:<2} {:<16} {:<16} {:<6} {:<6}",
            self.pid,
            self.comm,
            if self.local.is_ipv4() { 4 } else { 6 },
            address(self.local),
            address(self.remote),
            self.local.port(),
            self.remote.port(),
        )
    }

    /// Without `-v`.
    pub fn row(&self, letter: char) -> String {
        format!("{letter:<2} {}", self.body())
    }

    /// With `-v` and `-N`.
    pub fn verbose_row(&self, name: &str) -> String {
        format!("{name:<12} {}", self.body())
    }

    /// With `-v`.
    pub fn netns_row(&self, name: &str, netns: u64) -> String {
        format!("{name:<12} {} {netns:<8}", self.body())
    }

    /// The same end in the hands of another process.
    pub fn held_by(&self, pid: u32, comm: &str) -> Self {
        Self {
            pid,
            comm: comm.into(),
            ..self.clone()
        }
    }
}

fn address(address: SocketAddr) -> String {
    match address {
        SocketAddr::V4(v4) => v4.ip().to_string(),
        SocketAddr::V6(v6) => format!("[{}]", v6.ip()),
    }
}

/// The header of a layout, with `·` for the spaces.
pub fn header(dotted: &str) -> String {
    dotted.replace('·', " ")
}

/// The header of the layouts without options.
pub fn header_of(verbose: bool) -> String {
    header(if verbose {
        "TYPE·········PID····COMM·············IP·SADDR············DADDR············SPORT··DPORT··"
    } else {
        "T··PID····COMM·············IP·SADDR············DADDR············SPORT··DPORT·"
    })
}

/// The same lines in any order: that of events of different processes is not promised.
#[track_caller]
pub fn assert_same(mut actual: Vec<String>, mut expected: Vec<String>) {
    actual.sort();
    expected.sort();
    assert!(
        actual == expected,
        "got\n{actual:#?}\nbut expected\n{expected:#?}"
    );
}
