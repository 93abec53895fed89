//! `connections`: what is open now, on all nodes that are asked.

use anyhow::Result;
use tcptracer_client::dial::Dialer;
use tcptracer_client::request::Filters;

use crate::ask;
use crate::event::Row;
use crate::exit::Code;
use crate::plan::Plan;
use crate::render::Output;
use crate::report::Report;
use crate::way::Way;

/// Asks all, and writes what they have in the order in which it was established.
pub async fn run(
    dialer: Dialer<Way>,
    filters: Filters,
    plan: &Plan,
    mut output: Output,
    mut report: Report,
) -> Result<Code> {
    let found = ask::all(plan, &mut report, async |target| {
        dialer
            .connections(&target, filters.clone(), Row::of_connection)
            .await
    });
    let mut rows: Vec<Row> = found.await?.into_iter().flatten().collect();
    rows.sort_by(|a, b| {
        let [left, right] = [a, b].map(|r| (r.record.time, &r.whose.node, &r.record.id));
        left.cmp(&right)
    });
    for row in &rows {
        output.row(row)?;
    }
    output.flush()?;
    Ok(report.code())
}
