//! Follows agents, pods and nodes that come and go, and keeps a [`Plan`] of whom to ask.
//!
//! One task owns what is known of the cluster; everybody else sees the plan only.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use futures::stream::{BoxStream, SelectAll};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::ListParams;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use tcptracer_client::error::Error;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::agent_pod::{AgentPod, SERVER_NAME};
use crate::exit::{explained, say};
use crate::plan::{Plan, Wanted, plan};
use crate::request::Selection;

/// What an agent's pod is known by.
const AGENT_LABELS: &str = "app.kubernetes.io/name=tcptracer,app.kubernetes.io/component=agent";
/// A node is asked on after its last selected pod has gone: its last closes are still to come.
const LINGER: Duration = Duration::from_secs(60);

/// What to look for.
#[derive(Clone)]
pub struct Search {
    /// To the API server.
    pub client: Client,
    /// Whose pods.
    pub selection: Selection,
    /// Where agents are; everywhere, if it is not given.
    pub agent_namespace: Option<String>,
    /// Nodes that may be asked at a time.
    pub max_nodes: usize,
    /// How long the API server may take to answer, until there is a plan.
    pub timeout: Option<Duration>,
}

impl Search {
    /// Where agents are looked for, and by what; for people.
    pub fn agents(&self) -> String {
        match &self.agent_namespace {
            Some(namespace) => format!("namespace {namespace}, labels {AGENT_LABELS}"),
            None => format!("labels {AGENT_LABELS}"),
        }
    }
}

/// Starts to follow the cluster, for as long as somebody looks at the plan. The first
/// plan is there once everything has been listed; an error before that ends it, later ones are told and tried again.
pub async fn follow(search: Search) -> Result<watch::Receiver<Plan>> {
    let mut cluster = View::new(search.selection.clone(), search.max_nodes);
    let mut changes = changes(&search).await?;
    while !cluster.is_complete() {
        let next = async { changes.next().await.context("the watches have ended") };
        let change = within(search.timeout, next).await?;
        let (source, event) = change.map_err(explain)?;
        cluster.take(source, event);
    }
    let (to, plans) = watch::channel(cluster.plan(Instant::now()));
    tokio::spawn(keep_up(cluster, changes, to));
    Ok(plans)
}

async fn keep_up(mut cluster: View, mut changes: Changes, to: watch::Sender<Plan>) {
    let mut told = None;
    loop {
        let expiry = cluster.next_expiry();
        tokio::select! {
            change = changes.next() => match change {
                Some(Ok((source, event))) => {
                    told = None;
                    cluster.take(source, event);
                }
                // The program is ending, and with it what the watches need.
                Some(Err(_)) if to.is_closed() => return,
                Some(Err(e)) => {
                    let why = explained(&explain(e));
                    if told.as_ref() != Some(&why) {
                        say(&format!("the pods are not followed at the moment: {why}"));
                        told = Some(why);
                    }
                }
                None => return,
            },
            () = tokio::time::sleep_until(expiry.unwrap_or_else(Instant::now)), if expiry.is_some() => {}
            () = to.closed() => return,
        }
        let plan = cluster.plan(Instant::now());
        to.send_if_modified(|current| {
            let changed = *current != plan;
            if changed {
                *current = plan;
            }
            changed
        });
    }
}

/// A watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    Agents(usize),
    Pods(usize),
}

type Change = Result<(Source, Event<Pod>), watcher::Error>;
type Changes = SelectAll<BoxStream<'static, Change>>;

async fn changes(search: &Search) -> Result<Changes> {
    let client = &search.client;
    let mut changes = SelectAll::new();
    for (at, namespace) in agent_namespaces(search).await?.into_iter().enumerate() {
        let pods = pods_in(client, namespace.as_deref());
        changes.push(changes_of(Source::Agents(at), pods, AGENT_LABELS));
    }
    let selection = &search.selection;
    if !selection.is_every_node() {
        for (at, namespace) in selection.scopes().enumerate() {
            let pods = pods_in(client, namespace);
            changes.push(changes_of(Source::Pods(at), pods, &selection.labels));
        }
    }
    Ok(changes)
}

fn changes_of(source: Source, pods: Api<Pod>, labels: &str) -> BoxStream<'static, Change> {
    watcher(pods, watcher::Config::default().labels(labels))
        .default_backoff()
        .map_ok(move |event| (source, event))
        .boxed()
}

fn pods_in(client: &Client, namespace: Option<&str>) -> Api<Pod> {
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Where to look for agents: everywhere at once, or in each namespace that the user may look into.
async fn agent_namespaces(search: &Search) -> Result<Vec<Option<String>>> {
    if search.agent_namespace.is_some() {
        return Ok(vec![search.agent_namespace.clone()]);
    }
    let agents = ListParams::default().labels(AGENT_LABELS).limit(1);
    let agents_of =
        async |pods: Api<Pod>| within(search.timeout, async { Ok(pods.list(&agents).await) }).await;
    match agents_of(pods_in(&search.client, None)).await? {
        Ok(_) => return Ok(vec![None]),
        Err(kube::Error::Api(status)) if status.code == 403 => {}
        Err(e) => return Err(anyhow::Error::new(e).context("cannot look for agents")),
    }
    let namespaces: Api<Namespace> = Api::all(search.client.clone());
    let all = ListParams::default();
    let namespaces = async { Ok(namespaces.list_metadata(&all).await) };
    let namespaces = within(search.timeout, namespaces)
        .await?
        .context("may not look for agents in all namespaces: name theirs with --agent-namespace")?;
    let mut found = Vec::new();
    for namespace in namespaces {
        let name = namespace.name_any();
        let pods = agents_of(pods_in(&search.client, Some(&name))).await?;
        if pods.is_ok_and(|pods| !pods.items.is_empty()) {
            found.push(Some(name));
        }
    }
    anyhow::ensure!(
        !found.is_empty(),
        "found no agents where you may look: name their namespace with --agent-namespace, or install them"
    );
    Ok(found)
}

async fn within<T>(timeout: Option<Duration>, work: impl Future<Output = Result<T>>) -> Result<T> {
    match timeout {
        None => work.await,
        Some(timeout) => tokio::time::timeout(timeout, work)
            .await
            .map_err(|_| Error::TimedOut(timeout))?,
    }
}

fn explain(error: watcher::Error) -> anyhow::Error {
    use watcher::Error;
    let code = match &error {
        Error::InitialListFailed(kube::Error::Api(status))
        | Error::WatchStartFailed(kube::Error::Api(status)) => Some(status.code),
        Error::WatchError(status) => Some(status.code),
        _ => None,
    };
    let advice = match code {
        Some(401) => "the API server does not accept the credentials",
        Some(403) => "it takes list and watch on pods, those of the agents and those to be shown",
        _ => "cannot watch pods",
    };
    anyhow!(error).context(advice)
}

/// What is known of the cluster.
struct View {
    selection: Selection,
    max_nodes: usize,
    /// What is being listed, until it is complete.
    listed: HashMap<Source, Vec<Pod>>,
    complete: HashMap<Source, bool>,
    agents: HashMap<(Source, String), AgentPod>,
    /// Selected pods → their nodes.
    pods: HashMap<(Source, String), String>,
    /// Nodes whose last selected pod has gone, and until when they are asked on.
    left: HashMap<String, Instant>,
    asked: BTreeSet<String>,
}

impl View {
    fn new(selection: Selection, max_nodes: usize) -> Self {
        let every = selection.is_every_node();
        let pods = if every { 0 } else { selection.scopes().count() };
        Self {
            max_nodes,
            listed: HashMap::new(),
            complete: (0..pods).map(|at| (Source::Pods(at), false)).collect(),
            agents: HashMap::new(),
            pods: HashMap::new(),
            left: HashMap::new(),
            asked: BTreeSet::new(),
            selection,
        }
    }

    /// Everything has been listed once.
    fn is_complete(&self) -> bool {
        let agents = |source: &Source| matches!(source, Source::Agents(_));
        self.complete.keys().any(agents) && self.complete.values().all(|complete| *complete)
    }

    fn take(&mut self, source: Source, event: Event<Pod>) {
        match event {
            Event::Init => {
                self.complete.entry(source).or_insert(false);
                self.listed.insert(source, Vec::new());
            }
            Event::InitApply(pod) => self.listed.entry(source).or_default().push(slim(pod)),
            Event::InitDone => {
                let pods = self.listed.remove(&source).unwrap_or_default();
                let known: BTreeSet<_> = pods.iter().map(key).collect();
                self.agents
                    .retain(|(of, name), _| *of != source || known.contains(name));
                let gone: Vec<_> = self
                    .pods
                    .keys()
                    .filter(|(of, name)| *of == source && !known.contains(name))
                    .cloned()
                    .collect();
                gone.iter().for_each(|pod| self.forget(pod));
                pods.into_iter().for_each(|pod| self.apply(source, &pod));
                self.complete.insert(source, true);
            }
            Event::Apply(pod) => self.apply(source, &pod),
            Event::Delete(pod) => {
                let key = (source, key(&pod));
                self.agents.remove(&key);
                self.forget(&key);
            }
        }
    }

    fn apply(&mut self, source: Source, pod: &Pod) {
        let Some(node) = pod.spec.as_ref().and_then(|s| s.node_name.clone()) else {
            return;
        };
        let key = (source, key(pod));
        match source {
            Source::Agents(_) => {
                self.agents.insert(key, AgentPod::of(pod, node));
            }
            Source::Pods(_) if self.selection.selects(pod) => {
                self.left.remove(&node);
                self.pods.insert(key, node);
            }
            Source::Pods(_) => self.forget(&key),
        }
    }

    fn forget(&mut self, pod: &(Source, String)) {
        let Some(node) = self.pods.remove(pod) else {
            return;
        };
        if !self.pods.values().any(|n| *n == node) {
            self.left.insert(node, Instant::now() + LINGER);
        }
    }

    fn next_expiry(&self) -> Option<Instant> {
        self.left.values().min().copied()
    }

    fn plan(&mut self, now: Instant) -> Plan {
        self.left.retain(|_, until| *until > now);
        let wanted = match self.selection.is_every_node() {
            true => Wanted::EveryNode,
            false => Wanted::Nodes(
                self.pods
                    .values()
                    .chain(self.left.keys())
                    .cloned()
                    .collect(),
            ),
        };
        let agents: Vec<_> = self.agents.values().cloned().collect();
        let Selection {
            nodes, not_nodes, ..
        } = &self.selection;
        let (max, asked) = (self.max_nodes, &self.asked);
        let plan = plan(&agents, &wanted, nodes, not_nodes, max, asked);
        self.asked = plan.ask.keys().cloned().collect();
        plan
    }
}

/// Namespace and name.
fn key(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any())
}

/// A list is held until it is complete; only what is looked at.
fn slim(mut pod: Pod) -> Pod {
    pod.metadata.managed_fields = None;
    if let Some(annotations) = &mut pod.metadata.annotations {
        annotations.retain(|key, _| key == SERVER_NAME);
    }
    if let Some(spec) = &mut pod.spec {
        spec.volumes = None;
        spec.tolerations = None;
    }
    pod
}
