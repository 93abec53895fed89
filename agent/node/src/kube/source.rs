//! The sources and what they say.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use k8s_openapi::api::core::v1 as core;
use serde::Deserialize;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::pod::Pod;

/// Reasons of one outage to log, each once; each may have something in it that changes.
const MAX_LOGGED: usize = 16;

/// How to reach a kubelet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubelet {
    /// `https://ADDRESS:10250`.
    pub url: String,
    /// Where the token for it is, if it wants one. Read for each question.
    pub token_file: Option<PathBuf>,
    /// Whose certificate it has, PEM; without one, the system's authorities.
    pub ca_file: Option<PathBuf>,
    /// Do not look at its certificate.
    pub insecure: bool,
}

/// Where the node's pods come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The API server; found as kubectl finds it, or from inside of a pod.
    Api,
    /// The node's kubelet.
    Kubelet(Kubelet),
    /// A file with what a kubelet says at `/pods`, read again when it changes.
    File(PathBuf),
}

impl Source {
    /// Its name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Kubelet(_) => "kubelet",
            Self::File(_) => "file",
        }
    }
}

/// What a source says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// All pods of the node, in place of those known before.
    Replaced(Vec<Arc<Pod>>),
    /// A pod is new or has changed.
    Applied(Arc<Pod>),
    /// The pod with this uid is gone.
    Deleted(String),
    /// It does not answer, for this reason; said again if it is another. What is known stays valid.
    Failed(String),
    /// It answers again.
    Recovered,
}

/// Its consumer is gone: the agent is ending.
pub(super) struct Gone;

/// Tells the consumer, and logs; failures and recoveries only when they are news.
pub(super) struct UpdateSender {
    updates: mpsc::Sender<Update>,
    outage: Option<Outage>,
}

/// The source does not answer.
#[derive(Default)]
struct Outage {
    /// Why, as of the last time.
    why: String,
    /// The reasons that have been logged: they may take turns.
    logged: HashSet<String>,
}

impl UpdateSender {
    pub(super) fn new(updates: mpsc::Sender<Update>) -> Self {
        Self {
            updates,
            outage: None,
        }
    }

    pub(super) async fn send(&mut self, update: Update) -> Result<(), Gone> {
        self.updates.send(update).await.map_err(|_| Gone)
    }

    pub(super) async fn failed(&mut self, error: &anyhow::Error) -> Result<(), Gone> {
        let why = format!("{error:#}");
        let outage = self.outage.get_or_insert_default();
        if outage.why == why {
            return Ok(());
        }
        outage.why.clone_from(&why);
        if outage.logged.len() < MAX_LOGGED && outage.logged.insert(why.clone()) {
            warn!("pods: {why}");
        }
        self.send(Update::Failed(why)).await
    }

    pub(super) async fn works(&mut self) -> Result<(), Gone> {
        if self.outage.take().is_none() {
            return Ok(());
        }
        info!("pods: their source answers again");
        self.send(Update::Recovered).await
    }
}

#[derive(Deserialize)]
struct PodList {
    #[serde(default)]
    items: Vec<core::Pod>,
    kind: String,
}

/// The pods in what a kubelet says at `/pods`.
pub(super) fn parse(json: &[u8]) -> Result<Vec<Arc<Pod>>> {
    let list: PodList = serde_json::from_slice(json)?;
    anyhow::ensure!(
        list.kind == "PodList" || list.kind == "List",
        "it is a {} and no PodList",
        list.kind.escape_debug()
    );
    Ok(list
        .items
        .into_iter()
        .filter_map(Pod::new)
        .map(Arc::new)
        .collect())
}
