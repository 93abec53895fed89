//! Asking every agent once, for `connections` and `status`.

use std::future::Future;

use anyhow::Result;
use futures::{StreamExt, stream};

use crate::dial::Target;
use crate::exit::Usage;
use crate::plan::Plan;
use crate::report::Report;

/// Nodes that are asked at the same time.
const AT_A_TIME: usize = 16;

/// Asks all of the plan, and tells of those that do not answer. What all find invalid is an error.
pub async fn all<T, F>(
    plan: &Plan,
    report: &mut Report,
    ask: impl Fn(Target) -> F,
) -> Result<Vec<T>>
where
    F: Future<Output = Result<T>>,
{
    report.planned(plan);
    let answers = stream::iter(plan.ask.clone())
        .map(|(node, target)| {
            let answer = ask(target);
            async { (node, answer.await) }
        })
        .buffer_unordered(AT_A_TIME);
    let answers: Vec<(String, Result<T>)> = answers.collect().await;

    let (mut found, mut failed) = (Vec::new(), Vec::new());
    for (node, answer) in answers {
        match answer {
            Ok(answer) => found.push(answer),
            Err(e) => failed.push((node, e)),
        }
    }
    if !found.is_empty() {
        report.heard();
    } else if let Some(at) = failed.iter().position(|(_, e)| e.is::<Usage>()) {
        return Err(failed.swap_remove(at).1);
    }
    failed.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (node, e) in failed {
        report.failed(&node, &e);
    }
    Ok(found)
}
