/*!
From events and other objects to stdout.

[`Printer`] owns stdout. What it is given has been made printable already; it only lays it out.
*/

mod args;
mod columns;
mod format;
mod path;
mod table;

use std::io::{self, BufWriter, StdoutLock, Write};

use anstream::{AutoStream, ColorChoice};
use anyhow::Context;
use serde::Serialize;

use args::Color;
pub use args::OutputArgs;
pub use columns::{Cell, Columns};
pub use format::Format;
pub use path::{CustomColumns, Template};
use table::{Layout, Table};
use tcptracer_event::Seconds;

use crate::event::Row;

/// Where events and connections go.
pub struct Output {
    printer: Printer,
    table: Table,
    seconds: Seconds,
    line: String,
}

impl Output {
    /// Writes the header, if there is one. `one_netns`: the network namespace is known, so it has no column.
    pub fn start(args: &OutputArgs, one_netns: bool) -> io::Result<Self> {
        let mut printer = Printer::start(args)?;
        let mut table = Table::new(Layout {
            timestamp: args.timestamp,
            verbose: args.verbose,
            netns: args.verbose && !one_netns,
            wide: matches!(args.output, Format::Wide),
            colored: printer.colored,
        });
        if printer.is_table() {
            printer.line(&table.header())?;
            printer.flush()?;
        }
        Ok(Self {
            printer,
            table,
            seconds: Seconds::default(),
            line: String::new(),
        })
    }

    /// One event or connection.
    pub fn row(&mut self, row: &Row) -> anyhow::Result<()> {
        match self.printer.style {
            Style::Table => Ok(self.printer.line(&self.table.row(row))?),
            Style::JsonLines => {
                self.line.clear();
                row.write_json(&mut self.seconds, &mut self.line);
                Ok(self.printer.line(&self.line)?)
            }
            _ => self.printer.object(row),
        }
    }

    /// To be called whenever nothing more is to be written for now.
    pub fn flush(&mut self) -> io::Result<()> {
        self.printer.flush()
    }
}

/// An object that can be written in every format but as a row of a table, which its own kind lays out.
pub trait Object: Serialize {
    /// Its kind and name, as `-o name` writes them.
    fn name(&self) -> String;
}

impl Object for Row {
    fn name(&self) -> String {
        match self.whose.pod.as_str() {
            "" => format!("node/{}", self.whose.node),
            pod => format!("pod/{pod}"),
        }
    }
}

/// What is kept from one object to the next.
enum Style {
    Table,
    Json,
    JsonLines,
    Yaml,
    Name,
    CustomColumns(CustomColumns, Columns),
    JsonPath(Template),
}

/// Owns stdout.
pub struct Printer {
    to: BufWriter<AutoStream<StdoutLock<'static>>>,
    style: Style,
    /// Whether rows may be coloured.
    pub colored: bool,
}

impl Printer {
    /// Writes the header of custom columns, if these are asked for.
    pub fn start(args: &OutputArgs) -> io::Result<Self> {
        let stdout = io::stdout();
        let choice = match args.color {
            Color::Auto => AutoStream::choice(&stdout),
            Color::Always => ColorChoice::Always,
            Color::Never => ColorChoice::Never,
        };
        let colored = choice != ColorChoice::Never;
        let stream = match colored {
            true => AutoStream::always(stdout.lock()),
            // Nothing is coloured then, so nothing has to be taken out.
            false => AutoStream::always_ansi(stdout.lock()),
        };
        let mut to = BufWriter::with_capacity(ROOM, stream);
        let style = match args.output.clone() {
            Format::Table | Format::Wide => Style::Table,
            Format::Json => Style::Json,
            Format::JsonLines => Style::JsonLines,
            Format::Yaml => Style::Yaml,
            Format::Name => Style::Name,
            Format::JsonPath(template) => Style::JsonPath(template),
            Format::CustomColumns(custom) => {
                let mut columns = Columns::new(custom.widths(), CUSTOM_GAP);
                writeln!(to, "{}", columns.line(custom.header()))?;
                Style::CustomColumns(custom, columns)
            }
        };
        to.flush()?;
        Ok(Self { to, style, colored })
    }

    /// Whether a table is to be written, with [`Self::line`].
    pub fn is_table(&self) -> bool {
        matches!(self.style, Style::Table)
    }

    /// A line that is laid out already.
    pub fn line(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.to, "{line}")
    }

    /// An object, in the format that was asked for. Tables have none.
    pub fn object(&mut self, object: &impl Object) -> anyhow::Result<()> {
        match &mut self.style {
            Style::Table => {}
            Style::Json => writeln!(self.to, "{}", pretty(object)?)?,
            Style::JsonLines => writeln!(self.to, "{}", serde_json::to_string(object)?)?,
            Style::Yaml => {
                let yaml = serde_saphyr::to_string(object).context("cannot write YAML")?;
                write!(self.to, "---\n{yaml}")?;
            }
            Style::Name => writeln!(self.to, "{}", object.name())?,
            Style::CustomColumns(custom, columns) => {
                let object = serde_json::to_value(object)?;
                writeln!(self.to, "{}", columns.line(custom.cells(&object)))?;
            }
            Style::JsonPath(template) => {
                let text = template.fill(&serde_json::to_value(object)?);
                write!(self.to, "{text}")?;
            }
        }
        Ok(())
    }

    /// To be called whenever nothing more is to be written for now.
    pub fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// So much is written at a time while more is to be written.
const ROOM: usize = 1 << 16;

/// Spaces between custom columns, as kubectl has them.
const CUSTOM_GAP: usize = 3;

/// JSON over several lines, indented as kubectl does.
fn pretty(object: &impl Serialize) -> serde_json::Result<String> {
    let mut bytes = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
    object.serialize(&mut serializer)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
