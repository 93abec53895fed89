//! Whose a connection is, the columns of bcc's tcptracer, and those that `-o wide` adds.

use anstyle::{AnsiColor, Style};
use jiff::Timestamp;

use super::columns::{Cell, Columns};
use crate::event::{Attribution, Row};

/// Which columns to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// `-t`
    pub timestamp: bool,
    /// `-v`
    pub verbose: bool,
    /// `-v` without `-N`
    pub netns: bool,
    /// `-o wide`
    pub wide: bool,
    /// Rows are coloured by pod.
    pub colored: bool,
}

/// Lays rows out; remembers the first one's time, to which the others are relative.
pub struct Table {
    layout: Layout,
    columns: Columns,
    first: Option<Timestamp>,
}

/// A column: its name and its least width.
type Column = (&'static str, usize);

impl Table {
    /// No row has been written yet.
    pub fn new(layout: Layout) -> Self {
        Self {
            layout,
            columns: Columns::new(columns(layout).map(|(_, width)| width), 1),
            first: None,
        }
    }

    /// The names of the columns.
    pub fn header(&mut self) -> String {
        self.columns
            .line(columns(self.layout).map(|(name, _)| name.into()))
    }

    /// One event or connection.
    pub fn row(&mut self, row: &Row) -> String {
        let mut cells: Vec<Cell> = self.whose(row).into();
        if self.layout.timestamp {
            cells.push(self.time(row.time).into());
        }
        cells.extend(self.what(row).map(Cell::from));
        if self.layout.netns {
            cells.push(row.netns.to_string().into());
        }
        if self.layout.wide {
            cells.extend(lifecycle(row).map(Cell::from));
        }
        self.columns.line(cells)
    }

    fn whose(&self, row: &Row) -> [Cell; 4] {
        // What is not there is told from what is not known.
        let none = match row.attribution {
            Attribution::Host => "-",
            _ => "?",
        };
        let named = |name: &str| match name {
            "" => none.into(),
            name => name.to_string(),
        };
        let style = match self.layout.colored && !row.pod.is_empty() {
            true => color(&row.namespace, &row.pod),
            false => Style::new(),
        };
        [
            row.node.as_str().into(),
            Cell::from(named(&row.namespace)).styled(style),
            Cell::from(named(&row.pod)).styled(style),
            Cell::from(named(&row.container)).styled(style),
        ]
    }

    fn time(&mut self, time: Option<Timestamp>) -> String {
        let Some(time) = time else {
            return "-".into();
        };
        let first = *self.first.get_or_insert(time);
        let since = time.as_nanosecond() - first.as_nanosecond();
        match self.layout.verbose {
            true => since.to_string(),
            false => format!("{:.3}", since as f64 / 1e9),
        }
    }

    fn what(&self, row: &Row) -> [String; 8] {
        let kind = match self.layout.verbose {
            true => row.r#type.name(),
            false => row.r#type.letter(),
        };
        [
            kind.into(),
            row.closer_pid.unwrap_or(row.pid).to_string(),
            row.closer_comm.as_ref().unwrap_or(&row.comm).clone(),
            row.ip.map_or("?".into(), |ip| ip.to_string()),
            address(row.ip, &row.saddr),
            address(row.ip, &row.daddr),
            row.sport.to_string(),
            row.dport.to_string(),
        ]
    }
}

fn columns(layout: Layout) -> impl Iterator<Item = Column> {
    let time = match layout.verbose {
        true => ("TIME(ns)", 13),
        false => ("TIME(s)", 8),
    };
    let kind = match layout.verbose {
        true => ("TYPE", 12),
        false => ("T", 2),
    };
    let whose = [
        ("NODE", 12),
        ("NAMESPACE", 12),
        ("POD", 24),
        ("CONTAINER", 10),
    ];
    let what = [
        kind,
        ("PID", 6),
        ("COMM", 16),
        ("IP", 2),
        ("SADDR", 16),
        ("DADDR", 16),
        ("SPORT", 6),
        ("DPORT", 6),
    ];
    let lifecycle = [
        ("REASON", 12),
        ("MS", 12),
        ("TX_BYTES", 10),
        ("RX_BYTES", 10),
        ("RETRANS", 7),
        ("RTT(ms)", 8),
        ("ID", 20),
    ];
    whose
        .into_iter()
        .chain(layout.timestamp.then_some(time))
        .chain(what)
        .chain(layout.netns.then_some(("NETNS", 10)))
        .chain(lifecycle.into_iter().filter(move |_| layout.wide))
}

fn lifecycle(row: &Row) -> [String; 7] {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    let number = |value: Option<u64>| or_dash(value.map(|n| n.to_string()));
    [
        or_dash(row.reason.map(Into::into)),
        or_dash(row.duration_ns.map(|ns| millis(ns as f64 / 1e6))),
        number(row.bytes_sent),
        number(row.bytes_received),
        number(row.retransmits.map(Into::into)),
        or_dash(row.srtt_us.map(|us| millis(us as f64 / 1e3))),
        row.id.clone(),
    ]
}

fn millis(millis: f64) -> String {
    format!("{millis:.3}")
}

/// bcc puts IPv6 addresses in brackets.
fn address(ip: Option<u8>, address: &str) -> String {
    match ip {
        Some(6) => format!("[{address}]"),
        _ => address.into(),
    }
}

/// Colours that can be read on dark and on light grounds.
const COLORS: [AnsiColor; 10] = [
    AnsiColor::Cyan,
    AnsiColor::Green,
    AnsiColor::Magenta,
    AnsiColor::Yellow,
    AnsiColor::Blue,
    AnsiColor::BrightCyan,
    AnsiColor::BrightGreen,
    AnsiColor::BrightMagenta,
    AnsiColor::BrightYellow,
    AnsiColor::BrightBlue,
];

/// The pod's colour: the same in every run (FNV-1a).
fn color(namespace: &str, pod: &str) -> Style {
    let hash = namespace
        .bytes()
        .chain(*b"/")
        .chain(pod.bytes())
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    COLORS[(hash % COLORS.len() as u64) as usize].on_default()
}
