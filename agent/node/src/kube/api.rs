//! Pods from the API server: one watch of this node's pods, never a poll.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use futures::StreamExt;
use k8s_openapi::api::core::v1 as core;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Config};

use super::pod::Pod;
use super::source::{Gone, Update, UpdateSender};

/// Between two looks whether a server that went away is back. A watch that works is silent until
/// something happens.
const PROBE: Duration = Duration::from_secs(2);

pub(super) async fn run(node: &str, updates: UpdateSender) -> Result<Gone> {
    let config = Config::infer()
        .await
        .context("--pods api: found neither a kubeconfig nor the service account of a pod")?;
    let client = Client::try_from(config).context("--pods api: cannot use the configuration")?;
    Ok(watch(client, node, updates).await)
}

/// A list from the server's cache, and then a watch. kube restarts it as long as it runs: from where it was, or
/// with a list if the server does not remember that.
pub(super) async fn watch(client: Client, node: &str, mut updates: UpdateSender) -> Gone {
    let config = watcher::Config {
        // A list in pages is not answered from the cache.
        page_size: None,
        ..watcher::Config::default()
            .fields(&format!("spec.nodeName={node}"))
            .any_semantic()
    };
    let pods: Api<core::Pod> = Api::all(client.clone());
    let mut events = watcher(pods, config).default_backoff().boxed();
    let mut listed = Vec::new();
    let mut unreachable = false;

    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = tokio::time::sleep(PROBE), if unreachable => {
                if client.apiserver_version().await.is_ok() {
                    unreachable = false;
                    if let Err(gone) = updates.works().await {
                        return gone;
                    }
                }
                continue;
            }
        };
        // The stream does not end; should it, say so and not spin.
        let Some(event) = event else {
            let _ = updates
                .failed(&anyhow!("the watch of pods has ended"))
                .await;
            return Gone;
        };
        let told = match event {
            // It is about to list, and has not been answered yet.
            Ok(Event::Init) => {
                listed.clear();
                Ok(())
            }
            Ok(event) => {
                unreachable = false;
                match updates.works().await {
                    Ok(()) => tell(event, &mut listed, &mut updates).await,
                    gone => gone,
                }
            }
            // The server has forgotten where we were: a list follows.
            Err(watcher::Error::WatchError(status)) if status.code == 410 => Ok(()),
            Err(e) => {
                unreachable = is_unreachable(&e);
                updates.failed(&explain(e)).await
            }
        };
        if let Err(gone) = told {
            return gone;
        }
    }
}

async fn tell(
    event: Event<core::Pod>,
    listed: &mut Vec<Arc<Pod>>,
    updates: &mut UpdateSender,
) -> Result<(), Gone> {
    match event {
        Event::Init => {}
        Event::InitApply(pod) => listed.extend(Pod::new(pod).map(Arc::new)),
        Event::InitDone => {
            return updates.send(Update::Replaced(std::mem::take(listed))).await;
        }
        Event::Apply(pod) => {
            if let Some(pod) = Pod::new(pod) {
                return updates.send(Update::Applied(Arc::new(pod))).await;
            }
        }
        Event::Delete(pod) => {
            if let Some(uid) = pod.metadata.uid {
                return updates.send(Update::Deleted(uid)).await;
            }
        }
    }
    Ok(())
}

/// Whether the server did not answer at all.
fn is_unreachable(error: &watcher::Error) -> bool {
    use watcher::Error;
    match error {
        Error::InitialListFailed(e) | Error::WatchStartFailed(e) | Error::WatchFailed(e) => {
            !matches!(e, kube::Error::Api(_))
        }
        Error::WatchError(_) | Error::NoResourceVersion => false,
    }
}

fn explain(error: watcher::Error) -> anyhow::Error {
    use watcher::Error;
    let status = match &error {
        Error::InitialListFailed(kube::Error::Api(status))
        | Error::WatchStartFailed(kube::Error::Api(status)) => Some(status),
        Error::WatchError(status) => Some(status),
        _ => None,
    };
    let advice = match status.map(|s| s.code) {
        Some(401) => "the API server does not accept our credentials",
        Some(403) => {
            "the API server does not let us watch pods: the service account needs list and watch on pods"
        }
        _ => "cannot watch the pods of this node",
    };
    anyhow::Error::new(error).context(advice)
}
