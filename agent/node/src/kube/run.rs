//! From a source's choice to its updates.

use std::convert::Infallible;
use std::sync::Arc;

use anyhow::Result;
use tokio::sync::{Notify, mpsc};

use super::source::{Gone, Source, Update, UpdateSender};
use super::{api, file, kubelet};

/// Feeds `updates` until its receiver is gone. What can heal is reported as an update; an error is
/// what cannot. `wanted` is notified when a pod seems to be missing.
pub async fn run(
    source: Source,
    node: String,
    wanted: Arc<Notify>,
    updates: mpsc::Sender<Update>,
) -> Result<()> {
    let updates = UpdateSender::new(updates);
    let Gone = match source {
        Source::Api => api::run(&node, updates).await?,
        Source::Kubelet(kubelet) => kubelet::run(&kubelet, &wanted, updates).await?,
        Source::File(path) => file::run(&path, &wanted, updates)
            .await
            .map_or_else(|gone| gone, never),
    };
    Ok(())
}

fn never(value: Infallible) -> Gone {
    match value {}
}
