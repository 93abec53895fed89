//! From messages to stdout and stderr, and the tally for `--stats`.

use std::io::{self, Write};

use tcptracer_event::{Event, Losses};

use super::args::{Args, Format};
use super::json;
use super::table::{Layout, Table};
use crate::bpf::Message;
use crate::clock::{Clock, Moments};

enum Style {
    Table(Table),
    Json(Moments),
}

/// So much is written at a time while messages keep coming.
const ROOM: usize = 1 << 16;

/// Owns stdout, and what is not written to it yet.
pub struct Output<W> {
    to: W,
    style: Style,
    lines: String,
    /// Taken by each event, so that none takes memory of its own.
    texts: String,
    written: u64,
    lost: Losses,
}

impl<W: Write> Output<W> {
    /// Writes what comes before the first event.
    pub fn start(args: &Args, to: W) -> io::Result<Self> {
        let mut lines = String::with_capacity(ROOM);
        let style = match args.output {
            Format::Json => Style::Json(Moments::new(Clock::now())),
            Format::Table => {
                let table = Table::new(Layout {
                    timestamp: args.timestamp,
                    verbose: args.verbose,
                    netns: args.verbose && args.netns == 0,
                    extended: args.extended,
                });
                lines += "Tracing TCP established connections. Ctrl-C to end.\n";
                lines += &table.header();
                lines.push('\n');
                Style::Table(table)
            }
        };
        let mut output = Self {
            to,
            style,
            lines,
            texts: String::new(),
            written: 0,
            lost: Losses::default(),
        };
        output.flush()?;
        Ok(output)
    }

    /// Writes what a message says; losses go to stderr at once.
    pub fn put(&mut self, message: &Message) -> io::Result<()> {
        match message {
            Message::Lost(total) => self.report_losses(total),
            Message::Lacks(what, why) => say(&format!("{what}: {why}")),
            Message::Cgroups(_) | Message::Hooks(..) | Message::Flushed(_) => {}
            Message::Events(events) => {
                if let Style::Json(moments) = &mut self.style {
                    moments.keep_up();
                }
                for event in events {
                    self.put_event(event)?;
                }
            }
        }
        Ok(())
    }

    fn put_event(&mut self, event: &Event) -> io::Result<()> {
        match &mut self.style {
            Style::Table(table) => table.write_row(event, &mut self.texts, &mut self.lines),
            Style::Json(moments) => {
                json::write_line(event, moments, &mut self.texts, &mut self.lines);
            }
        }
        self.lines.push('\n');
        self.written += 1;
        match self.lines.len() < ROOM {
            true => Ok(()),
            false => self.flush(),
        }
    }

    /// Writes to stderr what was lost since the last time; `total` is since the start.
    pub fn report_losses(&mut self, total: &Losses) {
        warn_of(&self.lost, total);
        self.lost = *total;
    }

    /// To be called whenever no message waits, so that no line stays behind.
    pub fn flush(&mut self) -> io::Result<()> {
        self.to.write_all(self.lines.as_bytes())?;
        self.lines.clear();
        self.to.flush()
    }

    /// How many events were written.
    pub fn written(&self) -> u64 {
        self.written
    }
}

/// One line to stderr. That nobody reads it any more must not end the tracing.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr(), "tcptracer: {line}");
}

/// What has been lost since the last time, and what to do about it.
fn warn_of(before: &Losses, now: &Losses) {
    let warn = |count: u64, what: &str| {
        if count > 0 {
            say(&format!("{count} {what}"));
        }
    };
    warn(
        now.ring_full - before.ring_full,
        "events lost: the ring was full (--ring-size makes it larger)",
    );
    warn(
        now.queue_full - before.queue_full,
        "events lost: the output is read too slowly",
    );
    warn(
        now.map_full - before.map_full,
        "connections not followed: too many are open (--max-connections makes room)",
    );
    warn(
        now.undecodable - before.undecodable,
        "events lost: the records could not be decoded",
    );
}

/// The line of `--stats`.
pub fn stats(written: u64, lost: &Losses) -> String {
    format!(
        "{} events seen, {written} written, {} lost (ring full {}, output too slow {}, \
         undecodable {}); connections: {} not followed for want of room, {} ended untracked; \
         {} program runs skipped by the kernel",
        written + lost.events(),
        lost.events(),
        lost.ring_full,
        lost.queue_full,
        lost.undecodable,
        lost.map_full,
        lost.untracked,
        lost.skipped_runs,
    )
}
