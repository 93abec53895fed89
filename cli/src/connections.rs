//! `connections`: what is open now, on all nodes that are asked.

use std::time::Duration;

use anyhow::Result;
use tcptracer_proto::v1::ListConnectionsRequest;

use crate::ask;
use crate::dial::{Agent, Dialer, Target, within};
use crate::event::Row;
use crate::exit::{Code, refused};
use crate::plan::Plan;
use crate::render::Output;
use crate::report::Report;
use crate::request::Filters;
use crate::text::printable;

/// Asks all, and writes what they have in the order in which it was established.
pub async fn run(
    dialer: Dialer,
    filters: Filters,
    plan: &Plan,
    mut output: Output,
    mut report: Report,
) -> Result<Code> {
    let found = ask::all(plan, &mut report, |target| {
        connections(dialer.clone(), target, filters.clone())
    });
    let mut rows: Vec<Row> = found.await?.into_iter().flatten().collect();
    rows.sort_by(|a, b| (a.time, &a.node, &a.id).cmp(&(b.time, &b.node, &b.id)));
    for row in &rows {
        output.row(row)?;
    }
    output.flush()?;
    Ok(report.code())
}

async fn connections(dialer: Dialer, target: Target, filters: Filters) -> Result<Vec<Row>> {
    let (agent, tunnel) = dialer.dial(&target).await?;
    let rows = tunnel.guard(listed(agent, dialer.timeout, filters));
    rows.await.map_err(refused)
}

async fn listed(mut agent: Agent, timeout: Option<Duration>, filters: Filters) -> Result<Vec<Row>> {
    let request = ListConnectionsRequest {
        allow: filters.allow,
        deny: filters.deny,
    };
    let ask = async { Ok(agent.list_connections(request).await?.into_inner()) };
    let mut stream = within(timeout, ask).await?;
    let mut rows = Vec::new();
    while let Some(batch) = within(timeout, async { Ok(stream.message().await?) }).await? {
        let node = printable(&batch.node);
        rows.extend(
            batch
                .connections
                .into_iter()
                .map(|c| Row::of_connection(&node, c)),
        );
    }
    Ok(rows)
}
