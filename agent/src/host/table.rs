//! The columns of bcc's tcptracer, to the byte, and those that `-x` adds.

use crate::event::{Event, Kind, Nanos};

use super::text;

/// Which of the layouts to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// `-t`
    pub timestamp: bool,
    /// `-v`
    pub verbose: bool,
    /// `-v` without `-N`
    pub netns: bool,
    /// `-x`
    pub extended: bool,
}

/// Writes rows; remembers the first event, to which timestamps are relative.
#[derive(Debug)]
pub struct Table {
    layout: Layout,
    first: Option<Nanos>,
}

impl Table {
    /// No event has been written yet.
    pub fn new(layout: Layout) -> Self {
        Self {
            layout,
            first: None,
        }
    }

    /// The column names, without a newline.
    pub fn header(&self) -> String {
        let Layout {
            timestamp,
            verbose,
            netns,
            extended,
        } = self.layout;
        let mut line = match (timestamp, verbose) {
            (false, _) => String::new(),
            (true, false) => format!("{:<9}", "TIME(s)"),
            (true, true) => format!("{:<14}", "TIME(ns)"),
        };
        line += &if verbose {
            format!("{:<12} ", "TYPE")
        } else {
            format!("{:<2} ", "T")
        };
        line += &format!(
            "{:<6} {:<16} {:<2} {:<16} {:<16} {:<6} ",
            "PID", "COMM", "IP", "SADDR", "DADDR", "SPORT"
        );
        // The wider one is where the rows have a space before NETNS.
        line += &if verbose {
            format!("{:<7}", "DPORT")
        } else {
            format!("{:<6}", "DPORT")
        };
        if netns {
            line += &format!("{:<8}", "NETNS");
        }
        if extended {
            line +=
                &extended_columns(["REASON", "MS", "TX_BYTES", "RX_BYTES", "RETRANS", "RTT(ms)"]);
        }
        line
    }

    /// One event, without a newline.
    pub fn row(&mut self, event: &Event) -> String {
        let since = since(*self.first.get_or_insert(event.time), event.time);
        let Layout {
            timestamp,
            verbose,
            netns,
            extended,
        } = self.layout;
        let mut line = match (timestamp, verbose) {
            (false, _) => String::new(),
            (true, false) => format!("{:<9.3}", since as f64 / 1e9),
            (true, true) => format!("{since:<14}"),
        };
        line += &if verbose {
            format!("{:<12} ", text::kind(event.kind))
        } else {
            format!("{:<2} ", letter(event.kind))
        };
        let (pid, comm) = event
            .closer
            .map_or((event.owner.pid, event.owner.comm), |c| (c.pid, c.comm));
        line += &format!(
            "{pid:<6} {:<16} {:<2} {:<16} {:<16} {:<6} {:<6}",
            text::comm(&comm),
            text::ip_version(event),
            address(event.local),
            address(event.remote),
            event.local.port(),
            event.remote.port(),
        );
        if netns {
            line += &format!(" {:<8}", event.netns);
        }
        if extended {
            let counters = event.counters.as_ref();
            let ended = matches!(event.kind, Kind::Close | Kind::Failed);
            line += &extended_columns([
                if ended {
                    text::reason(event.reason)
                } else {
                    "-"
                },
                &or_dash(event.duration().map(millis)),
                &or_dash(counters.map(|c| c.bytes_sent.to_string())),
                &or_dash(counters.map(|c| c.bytes_received.to_string())),
                &or_dash(counters.map(|c| c.retransmits.to_string())),
                &or_dash(counters.map(|c| millis(u64::from(c.srtt_us) * 1000))),
            ]);
        }
        line
    }
}

/// Events of different CPUs may be out of order, so this can be negative.
fn since(first: Nanos, now: Nanos) -> i64 {
    now.wrapping_sub(first) as i64
}

fn letter(kind: Kind) -> char {
    match kind {
        Kind::Connect => 'C',
        Kind::Accept => 'A',
        Kind::Close => 'X',
        Kind::Failed => 'F',
        Kind::Existing => 'E',
    }
}

/// bcc puts IPv6 addresses in brackets.
fn address(address: std::net::SocketAddr) -> String {
    let ip = text::address(address.ip());
    if address.is_ipv4() {
        ip
    } else {
        format!("[{ip}]")
    }
}

fn extended_columns([reason, ms, tx, rx, retransmits, rtt]: [&str; 6]) -> String {
    format!(" {reason:<12} {ms:<12} {tx:<10} {rx:<10} {retransmits:<7} {rtt:<8}")
}

fn millis(nanos: Nanos) -> String {
    format!("{:.3}", nanos as f64 / 1e6)
}

fn or_dash(value: Option<String>) -> String {
    value.unwrap_or_else(|| "-".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Closer, Comm, ConnectionId, Counters, Process, Reason, Role, Source};

    fn comm(name: &str) -> Comm {
        let mut bytes = [0; 16];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Comm::new(bytes)
    }

    fn telnet(kind: Kind) -> Event {
        Event {
            kind,
            time: 5_000_000_000,
            id: ConnectionId { cookie: 7, life: 0 },
            role: Role::Client,
            owner: Process {
                pid: 28943,
                tid: 28943,
                uid: 0,
                comm: comm("telnet"),
                cgroup_id: 1,
                mntns: 1,
            },
            source: Source::Connect,
            closer: None,
            netns: 4_026_531_992,
            local: "192.168.1.2:59306".parse().expect("an address"),
            remote: "192.168.1.1:23".parse().expect("an address"),
            syn: None,
            established: Some(4_000_000_000),
            accepted: None,
            first_fin: None,
            reason: Reason::Local,
            errno: 0,
            counters: None,
        }
    }

    fn nc() -> Event {
        let event = telnet(Kind::Accept);
        Event {
            owner: Process {
                pid: 28817,
                comm: comm("nc"),
                ..event.owner
            },
            local: "[::1]:80".parse().expect("an address"),
            remote: "[::1]:55758".parse().expect("an address"),
            ..event
        }
    }

    /// `·` stands for a space, as in the contract.
    #[track_caller]
    fn lines(layout: Layout, events: &[Event]) -> Vec<String> {
        let mut table = Table::new(layout);
        let mut lines = vec![table.header()];
        lines.extend(events.iter().map(|e| table.row(e)));
        lines.into_iter().map(|l| l.replace(' ', "·")).collect()
    }

    #[test]
    fn plain() {
        assert_eq!(
            lines(Layout::default(), &[telnet(Kind::Connect), nc()]),
            [
                "T··PID····COMM·············IP·SADDR············DADDR············SPORT··DPORT·",
                "C··28943··telnet···········4··192.168.1.2······192.168.1.1······59306··23····",
                "A··28817··nc···············6··[::1]············[::1]············80·····55758·",
            ]
        );
    }

    #[test]
    fn timestamp() {
        let layout = Layout {
            timestamp: true,
            ..Layout::default()
        };
        let later = Event {
            time: 8_546_000_000,
            ..nc()
        };
        let earlier = Event {
            time: 4_999_000_000,
            ..nc()
        };
        assert_eq!(
            lines(layout, &[telnet(Kind::Connect), later, earlier]),
            [
                "TIME(s)··T··PID····COMM·············IP·SADDR············DADDR············SPORT··DPORT·",
                "0.000····C··28943··telnet···········4··192.168.1.2······192.168.1.1······59306··23····",
                "3.546····A··28817··nc···············6··[::1]············[::1]············80·····55758·",
                "-0.001···A··28817··nc···············6··[::1]············[::1]············80·····55758·",
            ]
        );
    }

    #[test]
    fn verbose() {
        let layout = Layout {
            verbose: true,
            netns: true,
            ..Layout::default()
        };
        assert_eq!(
            lines(layout, &[telnet(Kind::Connect)]),
            [
                "TYPE·········PID····COMM·············IP·SADDR············DADDR············SPORT··DPORT··NETNS···",
                "connect······28943··telnet···········4··192.168.1.2······192.168.1.1······59306··23·····4026531992",
            ]
        );
    }

    #[test]
    fn verbose_of_one_netns() {
        let layout = Layout {
            verbose: true,
            ..Layout::default()
        };
        assert_eq!(
            lines(layout, &[telnet(Kind::Close)]),
            [
                "TYPE·········PID····COMM·············IP·SADDR············DADDR············SPORT··DPORT··",
                "close········28943··telnet···········4··192.168.1.2······192.168.1.1······59306··23····",
            ]
        );
    }

    #[test]
    fn verbose_timestamp() {
        let layout = Layout {
            timestamp: true,
            verbose: true,
            netns: true,
            ..Layout::default()
        };
        let later = Event {
            time: 5_000_000_000 + 3_546_123_456,
            ..nc()
        };
        assert_eq!(
            lines(layout, &[telnet(Kind::Connect), later]),
            [
                "TIME(ns)······TYPE·········PID····COMM·············IP·SADDR············DADDR············SPORT··DPORT··NETNS···",
                "0·············connect······28943··telnet···········4··192.168.1.2······192.168.1.1······59306··23·····4026531992",
                "3546123456····accept·······28817··nc···············6··[::1]············[::1]············80·····55758··4026531992",
            ]
        );
    }

    #[test]
    fn extended_and_the_closer() {
        let layout = Layout {
            extended: true,
            ..Layout::default()
        };
        let close = Event {
            closer: Some(Closer {
                pid: 4,
                comm: comm("worker"),
            }),
            counters: Some(Counters {
                bytes_sent: 1000,
                bytes_received: 12,
                segments_sent: 9,
                segments_received: 9,
                retransmits: 1,
                srtt_us: 1500,
            }),
            ..telnet(Kind::Close)
        };
        assert_eq!(
            lines(layout, &[telnet(Kind::Connect), close]),
            [
                "T··PID····COMM·············IP·SADDR············DADDR············SPORT··DPORT··REASON·······MS···········TX_BYTES···RX_BYTES···RETRANS·RTT(ms)·",
                "C··28943··telnet···········4··192.168.1.2······192.168.1.1······59306··23·····-············-············-··········-··········-·······-·······",
                "X··4······worker···········4··192.168.1.2······192.168.1.1······59306··23·····local········1000.000·····1000·······12·········1·······1.500···",
            ]
        );
    }
}
