//! `connections`: what is open now, on all nodes that are asked.

use std::time::Duration;

use anyhow::Result;
use futures::StreamExt;
use tcptracer_proto::v1::ListConnectionsRequest;
use tokio::sync::watch;

use crate::dial::{Agent, Dialer, Target, within};
use crate::event::Row;
use crate::exit::{Code, refused};
use crate::plan::Plan;
use crate::render::Output;
use crate::report::Report;
use crate::request::Filters;
use crate::text::printable;

/// Nodes that are asked at the same time.
pub const AT_A_TIME: usize = 16;

/// Asks all, and writes what they have in the order in which it was established.
pub async fn run(
    dialer: Dialer,
    filters: Filters,
    plans: watch::Receiver<Plan>,
    mut output: Output,
    mut report: Report,
) -> Result<Code> {
    let ask = plans.borrow().ask.clone();
    let answers = futures::stream::iter(ask)
        .map(|(node, target)| {
            let (dialer, filters) = (dialer.clone(), filters.clone());
            async move { (node, connections(&dialer, &target, filters).await) }
        })
        .buffer_unordered(AT_A_TIME);
    let answers: Vec<(String, Result<Vec<Row>>)> = answers.collect().await;

    let mut rows = Vec::new();
    let nobody = !answers.is_empty() && answers.iter().all(|(_, answer)| answer.is_err());
    for (node, answer) in answers {
        match answer {
            Ok(found) => rows.extend(found),
            Err(e) => report.failed(&node, e)?,
        }
    }
    rows.sort_by(|a, b| (a.time, &a.node, &a.id).cmp(&(b.time, &b.node, &b.id)));
    for row in &rows {
        output.row(row)?;
    }
    output.flush()?;
    Ok(if nobody { Code::Failed } else { report.code() })
}

async fn connections(dialer: &Dialer, target: &Target, filters: Filters) -> Result<Vec<Row>> {
    let (agent, tunnel) = dialer.dial(target).await?;
    let rows = tunnel.guard(listed(agent, dialer.timeout(), filters));
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
    while let Some(batch) = stream.message().await? {
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
