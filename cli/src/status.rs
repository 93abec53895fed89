//! `status`: what the agents are, and how they fare.

use anyhow::Result;
use jiff::Timestamp;
use serde::Serialize;
use tcptracer_client::dial::Dialer;
use tcptracer_client::time::timestamp;
use tcptracer_event::LossSource;
use tcptracer_event::printable;
use tcptracer_proto::v1::GetServerInfoResponse;

use crate::ask;
use crate::exit::Code;
use crate::plan::Plan;
use crate::render::{Cell, Columns, Object, Printer};
use crate::report::Report;
use crate::way::Way;

/// One agent. docs/kubectl-tcptracer.md has the meanings.
#[derive(Debug, Serialize)]
struct Info {
    node: String,
    version: String,
    kernel: String,
    started: Option<Timestamp>,
    epoch: u64,
    sequence: u64,
    hooks: Vec<Hook>,
    shortcomings: Vec<String>,
    pods: Pods,
    containers: u32,
    subscribers: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    paused_since: Option<Timestamp>,
    paused_seconds: u64,
    lost: Vec<Lost>,
    filter_maps: Vec<FilterMap>,
}

#[derive(Debug, Serialize)]
struct Hook {
    name: String,
    attached: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    detail: String,
}

#[derive(Debug, Serialize)]
struct Pods {
    source: String,
    synced: bool,
    known: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    error: String,
}

#[derive(Debug, Serialize)]
struct Lost {
    source: &'static str,
    count: u64,
}

#[derive(Debug, Serialize)]
struct FilterMap {
    name: String,
    entries: u32,
    capacity: u32,
    without_room: u32,
}

impl Object for Info {
    fn name(&self) -> String {
        format!("node/{}", self.node)
    }
}

/// Asks all, and writes what they say by node.
pub async fn run(
    dialer: Dialer<Way>,
    plan: &Plan,
    mut printer: Printer,
    mut report: Report,
) -> Result<Code> {
    let infos = ask::all(plan, &mut report, async |target| {
        dialer.server_info(&target).await
    });
    let mut infos: Vec<_> = infos.await?.into_iter().map(Info::from).collect();
    infos.sort_by(|a, b| a.node.cmp(&b.node));
    if printer.is_table() && !infos.is_empty() {
        for line in table(&infos) {
            printer.line(&line)?;
        }
    }
    for info in &infos {
        printer.object(info)?;
    }
    printer.flush()?;
    Ok(report.code())
}

impl From<GetServerInfoResponse> for Info {
    fn from(info: GetServerInfoResponse) -> Self {
        let pods = info.pods.unwrap_or_default();
        Self {
            node: printable(&info.node).into_owned(),
            version: printable(&info.version).into_owned(),
            kernel: printable(&info.kernel).into_owned(),
            started: info.started.and_then(timestamp),
            epoch: info.epoch,
            sequence: info.sequence,
            hooks: info
                .hooks
                .into_iter()
                .map(|hook| Hook {
                    name: printable(&hook.name).into_owned(),
                    attached: hook.attached,
                    detail: printable(&hook.detail).into_owned(),
                })
                .collect(),
            shortcomings: info
                .shortcomings
                .iter()
                .map(|s| printable(s).into_owned())
                .collect(),
            pods: Pods {
                source: printable(&pods.source).into_owned(),
                synced: pods.synced,
                known: pods.pods,
                error: printable(&pods.error).into_owned(),
            },
            containers: info.containers,
            subscribers: info.subscribers,
            paused_since: info.paused_since.and_then(timestamp),
            paused_seconds: info
                .paused_for
                .map_or(0, |paused| paused.seconds.try_into().unwrap_or(0)),
            lost: info
                .lost
                .iter()
                .map(|lost| Lost {
                    source: lost.source().known().map_or("unknown", LossSource::name),
                    count: lost.count,
                })
                .collect(),
            filter_maps: info
                .filter_maps
                .iter()
                .map(|map| FilterMap {
                    name: printable(&map.name).into_owned(),
                    entries: map.entries,
                    capacity: map.capacity,
                    without_room: map.without_room,
                })
                .collect(),
        }
    }
}

type Column = (&'static str, fn(&Info) -> String);

const COLUMNS: [Column; 10] = [
    ("NODE", |info| info.node.clone()),
    ("VERSION", |info| info.version.clone()),
    ("KERNEL", |info| info.kernel.clone()),
    ("HOOKS", |info| {
        let attached = info.hooks.iter().filter(|hook| hook.attached).count();
        match info.paused_since {
            Some(_) => "idle".into(),
            None => format!("{attached}/{}", info.hooks.len()),
        }
    }),
    ("PODS", |info| info.pods.known.to_string()),
    ("CONTAINERS", |info| info.containers.to_string()),
    ("SUBSCRIBERS", |info| info.subscribers.to_string()),
    ("EVENTS", |info| info.sequence.to_string()),
    ("LOST", |info| {
        info.lost.iter().map(|l| l.count).sum::<u64>().to_string()
    }),
    ("NOTES", notes),
];

/// As wide as the widest cell.
fn table(infos: &[Info]) -> Vec<String> {
    let header = COLUMNS.map(|(name, _)| name.to_string());
    let cells = infos.iter().map(|info| COLUMNS.map(|(_, cell)| cell(info)));
    let rows: Vec<_> = std::iter::once(header).chain(cells).collect();
    let widths = (0..COLUMNS.len()).map(|at| {
        let cells = rows.iter().map(|row| row[at].chars().count());
        cells.max().unwrap_or_default()
    });
    let mut columns = Columns::new(widths, 3);
    rows.into_iter()
        .map(|row| columns.line(row.map(Cell::from)))
        .collect()
}

fn notes(info: &Info) -> String {
    let mut notes = Vec::new();
    if !info.pods.error.is_empty() {
        notes.push(format!("pods: {}", info.pods.error));
    } else if !info.pods.synced {
        notes.push("pods are not known yet".into());
    }
    notes.extend(info.shortcomings.iter().cloned());
    let full = info.filter_maps.iter().filter(|map| map.without_room > 0);
    notes.extend(full.map(|map| format!("{} lacks room for {}", map.name, map.without_room)));
    notes.join("; ")
}
