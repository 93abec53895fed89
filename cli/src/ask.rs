//! Asking every agent once, for `connections` and `status`.

use anyhow::Result;
use futures::{StreamExt, stream};
use tcptracer_client::error::Error;

use crate::exit::is_usage;
use crate::plan::Plan;
use crate::report::Report;
use crate::way::Target;

/// Nodes that are asked at the same time.
const AT_A_TIME: usize = 16;

/// Asks all of the plan, and tells of those that do not answer. What all find invalid is an error.
pub async fn all<T>(
    plan: &Plan,
    report: &mut Report,
    ask: impl AsyncFn(Target) -> Result<T, Error>,
) -> Result<Vec<T>> {
    report.planned(plan);
    let answers = stream::iter(plan.ask.clone())
        .map(|(node, target)| {
            let answer = ask(target);
            async { (node, answer.await) }
        })
        .buffer_unordered(AT_A_TIME);
    let answers: Vec<(String, Result<T, Error>)> = answers.collect().await;

    let (mut found, mut failed) = (Vec::new(), Vec::new());
    for (node, answer) in answers {
        match answer {
            Ok(answer) => found.push(answer),
            Err(e) => failed.push((node, anyhow::Error::new(e))),
        }
    }
    if !found.is_empty() {
        report.heard();
    } else if let Some(at) = failed.iter().position(|(_, e)| is_usage(e)) {
        return Err(failed.swap_remove(at).1);
    }
    failed.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (node, e) in failed {
        report.failed(&node, &e);
    }
    Ok(found)
}
