//! A fake API server: lists and watches of pods and namespaces, and port-forwards that lead to fake agents.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use futures::{SinkExt, StreamExt, stream};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;

use crate::plugin::Plugin;

/// A cluster.
pub struct Api {
    shared: Arc<Shared>,
    address: SocketAddr,
    folder: TempDir,
    server: tokio::task::JoinHandle<()>,
}

struct Shared {
    state: Mutex<Objects>,
    /// Namespace, type and object of every change of a pod.
    changes: broadcast::Sender<(&'static str, Value)>,
}

#[derive(Default)]
struct Objects {
    /// Namespace/name → pod.
    pods: BTreeMap<String, Value>,
    /// Where a port-forward to a pod leads.
    agents: BTreeMap<String, SocketAddr>,
    /// Pods to which a port was forwarded.
    forwarded: Vec<String>,
    /// Only these namespaces may be listed.
    only: Option<Vec<String>>,
    /// The headers of each request.
    requests: Vec<HeaderMap>,
}

type Params = BTreeMap<String, String>;

impl Api {
    pub async fn start() -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changes: broadcast::channel(64).0,
        });
        let router = Router::new()
            .route("/api/v1/pods", get(all_pods))
            .route("/api/v1/namespaces", get(namespaces))
            .route("/api/v1/namespaces/{namespace}/pods", get(some_pods))
            .route(
                "/api/v1/namespaces/{namespace}/pods/{name}/portforward",
                get(forward),
            )
            .layer(from_fn_with_state(shared.clone(), note))
            .with_state(shared.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        let folder = tempfile::tempdir().expect("a folder");
        let kubeconfig = format!(
            "{{apiVersion: v1, kind: Config, current-context: c, \
             clusters: [{{name: c, cluster: {{server: 'http://{address}'}}}}], \
             contexts: [{{name: c, context: {{cluster: c, user: u, namespace: shop}}}}], users: []}}"
        );
        std::fs::write(folder.path().join("config"), kubeconfig).expect("a kubeconfig");
        Self {
            shared,
            address,
            folder,
            server,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What requests had in this header since the last time; all had the same.
    #[track_caller]
    pub fn header(&self, name: &str) -> Vec<String> {
        let requests = std::mem::take(&mut self.state().requests);
        let values = |headers: &HeaderMap| -> Vec<String> {
            let values = headers.get_all(name).iter();
            values
                .map(|value| value.to_str().expect("text").into())
                .collect()
        };
        let first = values(requests.first().expect("a request"));
        assert!(requests.iter().all(|request| values(request) == first));
        first
    }

    /// The kubeconfig, with this put in the place of that.
    pub fn kubeconfig_with(&self, old: &str, new: &str) -> String {
        let text = std::fs::read_to_string(self.kubeconfig()).expect("a kubeconfig");
        assert!(text.contains(old), "{text}");
        let path = self.folder.path().join("changed");
        std::fs::write(&path, text.replace(old, new)).expect("a file");
        path.display().to_string()
    }

    pub fn kubeconfig(&self) -> String {
        self.folder.path().join("config").display().to_string()
    }

    pub fn plugin(&self, args: &[&str]) -> Plugin {
        Plugin::start(&[&["--kubeconfig", &self.kubeconfig()], args].concat())
    }

    /// The user may look into these namespaces only.
    pub fn allow_only(&self, namespaces: &[&str]) {
        self.state().only = Some(namespaces.iter().map(ToString::to_string).collect());
    }

    /// Adds or changes a pod.
    pub fn pod(&self, namespace: &str, name: &str, node: &str, labels: Value) {
        self.apply(json!({
            "metadata": {
                "namespace": namespace, "name": name, "labels": labels, "resourceVersion": "5",
                "creationTimestamp": "2024-01-01T00:00:00Z",
            },
            "spec": { "nodeName": node, "containers": [{ "name": "main" }] },
        }));
    }

    /// Adds the pod of an agent, which answers at `address`.
    pub fn agent(&self, name: &str, node: &str, address: SocketAddr) {
        let ready = json!({ "conditions": [{ "type": "Ready", "status": "True" }] });
        self.agent_with(name, node, address, json!({}), ready);
    }

    /// The same, of an agent that speaks TLS and has a certificate for this name.
    pub fn agent_with_tls(&self, name: &str, node: &str, address: SocketAddr, tls_name: &str) {
        let ready = json!({ "conditions": [{ "type": "Ready", "status": "True" }] });
        let annotations = json!({ "tcptracer/tls-server-name": tls_name, "other": "x" });
        self.agent_with(name, node, address, annotations, ready);
    }

    /// The same, of an agent that is not ready.
    pub fn agent_in(&self, name: &str, node: &str, address: SocketAddr, container: Value) {
        let status = json!({
            "phase": "Running",
            "conditions": [{ "type": "Ready", "status": "False" }],
            "containerStatuses": [{
                "name": "agent", "state": container,
                "image": "", "imageID": "", "ready": false, "restartCount": 0,
            }],
        });
        self.agent_with(name, node, address, json!({}), status);
    }

    fn agent_with(
        &self,
        name: &str,
        node: &str,
        address: SocketAddr,
        annotations: Value,
        status: Value,
    ) {
        self.state()
            .agents
            .insert(format!("tcptracer/{name}"), address);
        self.apply(json!({
            "metadata": {
                "namespace": "tcptracer", "name": name, "resourceVersion": "5",
                "creationTimestamp": "2024-01-01T00:00:00Z",
                "labels": {
                    "app.kubernetes.io/name": "tcptracer", "app.kubernetes.io/component": "agent",
                },
                "annotations": annotations,
            },
            "spec": { "nodeName": node, "containers": [{ "name": "agent" }] },
            "status": status,
        }));
    }

    fn apply(&self, pod: Value) {
        let mut state = self.state();
        let kind = match state.pods.insert(key(&pod), pod.clone()) {
            None => "ADDED",
            Some(_) => "MODIFIED",
        };
        let _ = self.shared.changes.send((kind, pod));
    }

    pub fn delete(&self, namespace: &str, name: &str) {
        let mut state = self.state();
        let pod = state.pods.remove(&format!("{namespace}/{name}"));
        let pod = pod.expect("the pod is there");
        let _ = self.shared.changes.send(("DELETED", pod));
    }

    /// Pods to which a port was forwarded.
    pub fn forwarded(&self) -> Vec<String> {
        self.state().forwarded.clone()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, Objects> {
        self.shared.state.lock().expect("nobody has panicked")
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn key(pod: &Value) -> String {
    let text = |field: &str| {
        pod["metadata"][field]
            .as_str()
            .unwrap_or_default()
            .to_string()
    };
    format!("{}/{}", text("namespace"), text("name"))
}

/// `a=b,c=d`; the fake knows no other selectors.
fn has_labels(pod: &Value, selector: &str) -> bool {
    selector.split(',').filter(|s| !s.is_empty()).all(|pair| {
        let (label, value) = pair.split_once('=').expect("a pair");
        pod["metadata"]["labels"][label] == value
    })
}

async fn note(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    {
        let mut state = shared.state.lock().expect("nobody has panicked");
        state.requests.push(request.headers().clone());
    }
    next.run(request).await
}

async fn all_pods(State(shared): State<Arc<Shared>>, Query(params): Query<Params>) -> Response {
    pods(&shared, None, &params)
}

async fn some_pods(
    State(shared): State<Arc<Shared>>,
    Path(namespace): Path<String>,
    Query(params): Query<Params>,
) -> Response {
    pods(&shared, Some(namespace), &params)
}

fn pods(shared: &Shared, namespace: Option<String>, params: &Params) -> Response {
    let state = shared.state.lock().expect("nobody has panicked");
    let forbidden = state.only.as_ref().is_some_and(|only| match &namespace {
        Some(namespace) => !only.contains(namespace),
        None => true,
    });
    if forbidden {
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403,
            "message": "pods is forbidden",
        });
        return (StatusCode::FORBIDDEN, Json(status)).into_response();
    }
    let selector = params.get("labelSelector").cloned().unwrap_or_default();
    let in_namespace = move |pod: &Value| {
        let of = &pod["metadata"]["namespace"];
        namespace.as_ref().is_none_or(|n| of == n.as_str())
    };
    if !params.contains_key("watch") {
        let selected = |pod: &&Value| in_namespace(pod) && has_labels(pod, &selector);
        let items: Vec<&Value> = state.pods.values().filter(selected).collect();
        return Json(json!({
            "kind": "PodList", "apiVersion": "v1", "metadata": { "resourceVersion": "5" }, "items": items,
        }))
        .into_response();
    }
    // What changes between the list and the watch is told as well: to the client it is the same.
    let known = state.pods.values().map(|pod| ("ADDED", pod.clone()));
    let known: Vec<_> = known.collect();
    let changes = stream::unfold(shared.changes.subscribe(), |mut changes| async move {
        Some((changes.recv().await.ok()?, changes))
    });
    let lines = stream::iter(known)
        .chain(changes)
        .filter_map(move |(kind, pod)| {
            // A pod that has lost its labels is deleted, for those who look for them.
            let kind = match has_labels(&pod, &selector) {
                true => kind,
                false => "DELETED",
            };
            let line = format!("{}\n", json!({ "type": kind, "object": pod }));
            let line = in_namespace(&pod).then(|| Ok::<_, Infallible>(Bytes::from(line)));
            std::future::ready(line)
        });
    Body::from_stream(lines).into_response()
}

async fn namespaces(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let state = shared.state.lock().expect("nobody has panicked");
    let mut names: Vec<_> = state
        .pods
        .keys()
        .filter_map(|key| key.split('/').next())
        .collect();
    names.dedup();
    let items: Vec<_> = names
        .iter()
        .map(
            |name| json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }),
        )
        .collect();
    Json(
        json!({ "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "items": items }),
    )
}

async fn forward(
    State(shared): State<Arc<Shared>>,
    Path((namespace, name)): Path<(String, String)>,
    Query(params): Query<Params>,
    upgrade: WebSocketUpgrade,
) -> Response {
    let pod = format!("{namespace}/{name}");
    let port = params["ports"].parse().expect("a port");
    let address = {
        let mut state = shared.state.lock().expect("nobody has panicked");
        let Some(address) = state.agents.get(&pod).copied() else {
            return StatusCode::NOT_FOUND.into_response();
        };
        state.forwarded.push(pod);
        address
    };
    upgrade
        .protocols(["v4.channel.k8s.io"])
        .on_upgrade(move |socket| tunnel(socket, port, address))
}

/// Channel 0 carries data, channel 1 errors; the first message on each says the port.
async fn tunnel(mut socket: WebSocket, port: u16, address: SocketAddr) {
    let message = |channel: u8, bytes: &[u8]| Message::binary([&[channel], bytes].concat());
    for channel in [0, 1] {
        let _ = socket.send(message(channel, &port.to_le_bytes())).await;
    }
    let Ok(stream) = TcpStream::connect(address).await else {
        let _ = socket
            .send(message(1, b"nobody listens on the port\n"))
            .await;
        // As a real one: the client hangs up, once it has read why.
        while let Some(Ok(_)) = socket.recv().await {}
        return;
    };
    let (mut from_agent, mut to_agent) = stream.into_split();
    let (mut to_client, mut from_client) = socket.split();
    let mut bytes = vec![0; 65536];
    loop {
        tokio::select! {
            read = from_agent.read(&mut bytes) => match read {
                Ok(n @ 1..) => {
                    if to_client.send(message(0, &bytes[..n])).await.is_err() {
                        return;
                    }
                }
                _ => return,
            },
            message = from_client.next() => match message {
                Some(Ok(Message::Binary(data))) => {
                    if to_agent.write_all(&data[1..]).await.is_err() {
                        return;
                    }
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                _ => return,
            },
        }
    }
}
