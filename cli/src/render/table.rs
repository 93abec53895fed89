//! Whose a connection is, the columns of bcc's tcptracer, and those that `-o wide` adds.

use anstyle::{AnsiColor, Style};
use jiff::Timestamp;
use tcptracer_event::columns;

use super::columns::{Cell, Columns};
use crate::event::{Attribution, Row, Whose};

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
    columns: Vec<Column>,
    widths: Columns,
    first: Option<Timestamp>,
}

struct Column {
    name: &'static str,
    width: usize,
    cell: CellOf,
}

/// The text of a row; the other is the first row's time, once there is one.
type CellOf = Box<dyn for<'a> Fn(&'a Row, &mut Option<Timestamp>) -> Cell<'a>>;

impl Table {
    /// No row has been written yet.
    pub fn new(layout: Layout) -> Self {
        let columns = columns(layout);
        Self {
            widths: Columns::new(columns.iter().map(|column| column.width), 1),
            columns,
            first: None,
        }
    }

    /// The names of the columns.
    pub fn header(&mut self) -> String {
        let names = self.columns.iter().map(|column| column.name.into());
        self.widths.line(names)
    }

    /// One event or connection.
    pub fn row(&mut self, row: &Row) -> String {
        let first = &mut self.first;
        let cells = self.columns.iter().map(|column| (column.cell)(row, first));
        self.widths.line(cells)
    }
}

fn columns(layout: Layout) -> Vec<Column> {
    let mut columns = whose(layout.colored);
    columns.extend(layout.timestamp.then(|| time(layout.verbose)));
    columns.push(shared(columns::kind(layout.verbose)));
    columns.extend(columns::connection().map(shared));
    columns.extend(layout.netns.then(|| shared(columns::netns(10))));
    if layout.wide {
        columns.extend(columns::lifecycle().map(shared));
        columns.push(Column {
            name: "ID",
            width: 20,
            cell: Box::new(|row, _| (&*row.record.id).into()),
        });
    }
    columns
}

/// One that the host tool has as well.
fn shared(from: columns::Column<Timestamp>) -> Column {
    let columns::Column { name, width, cell } = from;
    Column {
        name,
        width,
        cell: Box::new(move |row, _| {
            let mut text = String::new();
            cell(&row.record, &mut text);
            text.into()
        }),
    }
}

fn whose(colored: bool) -> Vec<Column> {
    let column = |name, width, of: fn(&Whose) -> &str| Column {
        name,
        width,
        cell: Box::new(move |row, _| {
            let whose = &row.whose;
            // What is not there is told from what is not known.
            let text = match (of(whose), whose.attribution) {
                ("", Attribution::Host) => "-",
                ("", _) => "?",
                (text, _) => text,
            };
            let style = match colored && !whose.pod.is_empty() {
                true => color(&whose.namespace, &whose.pod),
                false => Style::new(),
            };
            Cell::from(text).styled(style)
        }),
    };
    vec![
        Column {
            name: "NODE",
            width: 12,
            cell: Box::new(|row, _| row.whose.node.as_str().into()),
        },
        column("NAMESPACE", 12, |whose| &whose.namespace),
        column("POD", 24, |whose| &whose.pod),
        column("CONTAINER", 10, |whose| &whose.container),
    ]
}

/// Since the first row.
fn time(verbose: bool) -> Column {
    let (name, width) = match verbose {
        true => ("TIME(ns)", 13),
        false => ("TIME(s)", 8),
    };
    Column {
        name,
        width,
        cell: Box::new(move |row, first| {
            let Some(time) = row.record.time else {
                return "-".into();
            };
            let first = *first.get_or_insert(time);
            let since = time.as_nanosecond() - first.as_nanosecond();
            match verbose {
                true => since.to_string().into(),
                false => format!("{:.3}", since as f64 / 1e9).into(),
            }
        }),
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
