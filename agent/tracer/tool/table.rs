//! The columns of bcc's tcptracer, to the byte, and those that `-x` adds.

use std::fmt::Write;

use tcptracer_event::columns::{self, Column};
use tcptracer_event::{Event, Nanos, Record};

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

/// Writes rows; remembers the first event, to which timestamps are relative. A row needs no moment but that.
pub struct Table {
    layout: Layout,
    columns: Vec<Column<()>>,
    first: Option<Nanos>,
}

impl Table {
    /// No event has been written yet.
    pub fn new(layout: Layout) -> Self {
        let mut columns = vec![columns::kind(layout.verbose)];
        columns.extend(columns::connection());
        columns.extend(layout.netns.then(|| columns::netns(8)));
        columns.extend(columns::lifecycle().into_iter().filter(|_| layout.extended));
        Self {
            layout,
            columns,
            first: None,
        }
    }

    /// The column names, without a newline.
    pub fn header(&self) -> String {
        let mut line = match (self.layout.timestamp, self.layout.verbose) {
            (false, _) => String::new(),
            (true, false) => format!("{:<9}", "TIME(s)"),
            (true, true) => format!("{:<14}", "TIME(ns)"),
        };
        for (at, column) in self.columns.iter().enumerate() {
            put(&mut line, at, column.width, |to| to.push_str(column.name));
            // bcc has a space more here, and none before NETNS.
            if column.name == "DPORT" && self.layout.verbose && !self.layout.netns {
                line.push(' ');
            }
        }
        line
    }

    /// Appends one event, without a newline. `texts` is taken for what a [`Record`] takes.
    pub fn write_row(&mut self, event: &Event, texts: &mut String, to: &mut String) {
        let since = since(*self.first.get_or_insert(event.time), event.time);
        // A string takes everything.
        match (self.layout.timestamp, self.layout.verbose) {
            (false, _) => {}
            (true, false) => _ = write!(to, "{:<9.3}", since as f64 / 1e9),
            (true, true) => _ = write!(to, "{since:<14}"),
        }
        let record = Record::of(event, texts, |_| ());
        for (at, column) in self.columns.iter().enumerate() {
            put(to, at, column.width, |to| (column.cell)(&record, to));
        }
    }
}

/// Appends a cell of this width, with a space before all but the first.
fn put(line: &mut String, at: usize, width: usize, cell: impl FnOnce(&mut String)) {
    if at > 0 {
        line.push(' ');
    }
    let start = line.len();
    cell(line);
    let cell = &line[start..];
    let taken = match cell.is_ascii() {
        true => cell.len(),
        false => cell.chars().count(),
    };
    let mut lacks = width.saturating_sub(taken);
    while lacks > 0 {
        let spaces = &SPACES[..lacks.min(SPACES.len())];
        line.push_str(spaces);
        lacks -= spaces.len();
    }
}

const SPACES: &str = "                ";

/// Events of different CPUs may be out of order, so this can be negative.
fn since(first: Nanos, now: Nanos) -> i64 {
    now.wrapping_sub(first) as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use tcptracer_event::{
        Closer, Comm, ConnectionId, Counters, Kind, Process, Reason, Role, Source,
    };

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
            errno_inferred: false,
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
        let mut texts = String::new();
        lines.extend(events.iter().map(|event| {
            let mut row = String::new();
            table.write_row(event, &mut texts, &mut row);
            row
        }));
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
