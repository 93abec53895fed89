//! A fake agent: the gRPC API, with a test that says what each stream carries.

use std::collections::HashMap;
use std::future::{pending, ready};
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures::{Stream, StreamExt, stream};
use tcptracer_proto::Frame;
use tcptracer_proto::server::{TcpTracerService, TcpTracerServiceServer};
use tcptracer_proto::v1::watch_response::Message;
use tcptracer_proto::v1::{self, WatchRequest, WatchResponse};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream, UnixListenerStream};
use tonic::transport::server::Router;
use tonic::transport::{Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use crate::deadline::soon;

/// A node's agent.
pub struct Agent {
    pub address: SocketAddr,
    watches: mpsc::UnboundedReceiver<Watch>,
    server: tokio::task::JoinHandle<()>,
}

/// A stream that a client has opened.
pub struct Watch {
    pub request: WatchRequest,
    envelope: WatchResponse,
    to: mpsc::Sender<Sent>,
    asked_to_end: Arc<Notify>,
}

/// What goes into a stream; nothing is its end.
type Sent = Option<Result<Frame, Status>>;

/// How an agent ends a watch that it is asked to end.
#[derive(Clone, Copy)]
pub enum Manner {
    /// At once, behind all that was sent.
    AtOnce,
    /// When the test drops it.
    ByTest,
    /// Not at all, nor does it answer.
    Silent,
    /// It does not know the call.
    Unknown,
}

impl Agent {
    pub async fn start(node: &str) -> Self {
        Self::that(node, Manner::AtOnce).await
    }

    /// One with manners of its own.
    pub async fn that(node: &str, manner: Manner) -> Self {
        Self::started(node, None, manner).await
    }

    pub async fn with_tls(node: &str, tls: ServerTlsConfig) -> Self {
        Self::started(node, Some(tls), Manner::AtOnce).await
    }

    async fn started(node: &str, tls: Option<ServerTlsConfig>, manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (router, watches) = service(node, tls, manner);
        let server = tokio::spawn(async move {
            let _ = router
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await;
        });
        Self {
            address,
            watches,
            server,
        }
    }

    /// The same, on a socket in the file system.
    pub fn on(path: &Path, node: &str) -> Self {
        Self::started_on(path, node, None)
    }

    pub fn on_with_tls(path: &Path, node: &str, tls: ServerTlsConfig) -> Self {
        Self::started_on(path, node, Some(tls))
    }

    fn started_on(path: &Path, node: &str, tls: Option<ServerTlsConfig>) -> Self {
        let listener = UnixListener::bind(path).expect("a socket");
        let (router, watches) = service(node, tls, Manner::AtOnce);
        let server = tokio::spawn(async move {
            let _ = router
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await;
        });
        Self {
            address: ([127, 0, 0, 1], 0).into(),
            watches,
            server,
        }
    }

    /// The next stream that a client opens.
    pub async fn watched(&mut self) -> Watch {
        soon("a client opens a stream", self.watches.recv())
            .await
            .expect("the agent runs")
    }

    /// Nobody has opened a stream that was not looked at.
    pub fn is_left_alone(&mut self) -> bool {
        self.watches.try_recv().is_err()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Watch {
    pub async fn send(&self, message: Message) {
        assert!(self.try_send(message).await, "the client listens");
    }

    /// To a client that may have gone; says whether it listens.
    async fn try_send(&self, message: Message) -> bool {
        let frame = Frame::message(&self.envelope, message);
        self.to.send(Some(Ok(frame))).await.is_ok()
    }

    /// Sends events if there is room at once; says whether there was.
    pub fn try_events(&self, events: Vec<v1::Event>) -> bool {
        let message = Message::Events(v1::Events { events });
        let frame = Frame::message(&self.envelope, message);
        self.to.try_send(Some(Ok(frame))).is_ok()
    }

    /// Waits until there is room for a message.
    pub async fn room(&self) {
        drop(self.to.reserve().await.expect("the client listens"));
    }

    /// Waits until the client asks for the end.
    pub async fn asked_to_end(&self) {
        soon("the client ends the stream", self.asked_to_end.notified()).await;
    }

    pub async fn events(&self, events: Vec<v1::Event>) {
        self.send(Message::Events(v1::Events { events })).await;
    }

    pub async fn paused(&self, pause: v1::Paused) {
        self.send(Message::Paused(pause)).await;
    }

    /// What comes before history, and after it.
    pub async fn status(&self, live: bool, sequence: u64) {
        self.send(status(live, sequence)).await;
    }

    /// The same to a client that may have gone; says whether it listens.
    pub async fn try_status(&self, live: bool, sequence: u64) -> bool {
        self.try_send(status(live, sequence)).await
    }

    pub async fn live(&self, sequence: u64) {
        self.status(false, sequence).await;
        self.status(true, sequence).await;
    }

    /// From here on it is another run of the agent.
    pub fn in_run(mut self, epoch: u64) -> Self {
        self.envelope.epoch = epoch;
        self
    }

    pub async fn fail(self, status: Status) {
        let _ = self.to.send(Some(Err(status))).await;
    }

    /// Waits for the client to have gone.
    pub async fn left(&self) {
        soon("the client leaves", self.to.closed()).await;
    }
}

fn status(live: bool, sequence: u64) -> Message {
    Message::Status(v1::NodeStatus {
        live,
        sequence,
        pods_synced: true,
        ..v1::NodeStatus::default()
    })
}

fn service(
    node: &str,
    tls: Option<ServerTlsConfig>,
    manner: Manner,
) -> (Router, mpsc::UnboundedReceiver<Watch>) {
    let (to, watches) = mpsc::unbounded_channel();
    let service = Service {
        node: node.into(),
        to,
        manner,
        open: Mutex::default(),
    };
    let mut server = Server::builder();
    if let Some(tls) = tls {
        server = server.tls_config(tls).expect("certificates");
    }
    (
        server.add_service(TcpTracerServiceServer::new(service)),
        watches,
    )
}

struct Service {
    node: String,
    to: mpsc::UnboundedSender<Watch>,
    manner: Manner,
    /// By their ids.
    open: Mutex<HashMap<String, Open>>,
}

/// A stream, for as long as the test has it.
#[derive(Clone)]
struct Open {
    to: mpsc::WeakSender<Sent>,
    asked_to_end: Arc<Notify>,
}

/// A process that no agent knows, and one that only the agent of n2 does not.
pub const NOBODYS: &str = "4242";
pub const NOT_OF_N2: &str = "4243";

/// A node whose agent traces nothing now.
pub const IDLE: &str = "idle-1";

impl Service {
    fn validate(&self, allow: &[v1::Filter]) -> Result<(), Status> {
        let refuses = |pid: &u32| match pid.to_string().as_str() {
            NOBODYS => true,
            NOT_OF_N2 => self.node == "n2",
            _ => false,
        };
        if allow.iter().flat_map(|f| &f.pids).any(refuses) {
            return Err(Status::invalid_argument(
                "allow[0].pids: no \x1b[31msuch pid",
            ));
        }
        Ok(())
    }
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl TcpTracerService for Service {
    type WatchStream = Streamed<Frame>;
    type ListConnectionsStream = Streamed<v1::ListConnectionsResponse>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        self.validate(&request.allow)?;
        let (to, messages) = mpsc::channel(4);
        let open = Open {
            to: to.downgrade(),
            asked_to_end: Arc::default(),
        };
        let asked_to_end = Arc::clone(&open.asked_to_end);
        let other = self
            .open
            .lock()
            .expect("no panic")
            .insert(request.id.clone(), open);
        assert!(other.is_none(), "an id is used again");
        let watch = Watch {
            request,
            envelope: WatchResponse {
                node: self.node.clone(),
                epoch: 1,
                message: None,
            },
            to,
            asked_to_end,
        };
        let _ = self.to.send(watch);
        let messages = ReceiverStream::new(messages)
            .take_while(|sent| ready(sent.is_some()))
            .filter_map(ready);
        Ok(Response::new(Box::pin(messages)))
    }

    async fn end_watch(
        &self,
        request: Request<v1::EndWatchRequest>,
    ) -> Result<Response<v1::EndWatchResponse>, Status> {
        let id = request.into_inner().id;
        let open = self.open.lock().expect("no panic").get(&id).cloned();
        let open = open.ok_or_else(|| Status::not_found("id: no watch goes by it"))?;
        open.asked_to_end.notify_one();
        match self.manner {
            Manner::AtOnce => {
                let to = open.to.upgrade();
                let to = to.ok_or_else(|| Status::not_found("id: no watch goes by it"))?;
                let _ = to.send(None).await;
            }
            Manner::ByTest => {}
            Manner::Silent => pending().await,
            Manner::Unknown => return Err(Status::unimplemented("")),
        }
        Ok(Response::new(v1::EndWatchResponse {}))
    }

    async fn list_connections(
        &self,
        request: Request<v1::ListConnectionsRequest>,
    ) -> Result<Response<Self::ListConnectionsStream>, Status> {
        let allow = request.into_inner().allow;
        self.validate(&allow)?;
        let namespaces = allow.first().map(|f| f.namespaces.clone());
        let namespace = namespaces.unwrap_or_default().join("+");
        let batches = [(2, "b"), (1, "a")].map(|(second, pod)| {
            Ok(v1::ListConnectionsResponse {
                node: self.node.clone(),
                epoch: 1,
                connections: vec![connection(&namespace, pod, second)],
            })
        });
        Ok(Response::new(Box::pin(stream::iter(batches))))
    }

    async fn get_server_info(
        &self,
        _: Request<v1::GetServerInfoRequest>,
    ) -> Result<Response<v1::GetServerInfoResponse>, Status> {
        let idle = self.node == IDLE;
        let hook = |name: &str, attached, detail: &str| v1::Hook {
            name: name.into(),
            attached: attached && !idle,
            detail: detail.into(),
        };
        Ok(Response::new(v1::GetServerInfoResponse {
            node: self.node.clone(),
            epoch: 1,
            version: "1.2.3".into(),
            kernel: "6.1.0".into(),
            hooks: vec![
                hook("tp_btf/inet_sock_set_state", true, ""),
                hook("fentry/security_sock_graft", false, "refused"),
            ],
            shortcomings: vec!["accepts through io_uring".into()],
            pods: Some(v1::PodsStatus {
                source: "api".into(),
                synced: true,
                pods: 7,
                error: String::new(),
            }),
            subscribers: if idle { 0 } else { 2 },
            containers: 9,
            sequence: 1234,
            lost: vec![v1::Lost {
                source: v1::LossSource::Ring.into(),
                count: 5,
                position: None,
            }],
            filter_maps: vec![v1::FilterMap {
                name: "cgroupmap".into(),
                entries: 8,
                capacity: 8,
                without_room: 1,
            }],
            paused_since: if idle {
                time(START + 60, 500_000)
            } else {
                None
            },
            paused_for: Some(prost_types::Duration {
                seconds: 3_605,
                nanos: 999_999_999,
            }),
            ..v1::GetServerInfoResponse::default()
        }))
    }
}

fn time(seconds: i64, nanos: i32) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds, nanos })
}

/// A connection of a pod, established so many seconds after 2024 began.
pub fn connection(namespace: &str, pod: &str, second: i64) -> v1::Connection {
    let at = |address: &str, port| {
        Some(v1::Endpoint {
            address: address.into(),
            port,
        })
    };
    v1::Connection {
        id: format!("{second}"),
        role: v1::Role::Client.into(),
        process: Some(v1::Process {
            pid: 42,
            tid: 43,
            uid: 1000,
            comm: "curl".into(),
            cgroup_id: 5,
            mntns: 6,
            source: v1::ProcessSource::Connect.into(),
        }),
        identity: Some(v1::Identity {
            attribution: v1::Attribution::Resolved.into(),
            namespace: namespace.into(),
            pod: pod.into(),
            pod_uid: "u-1".into(),
            container: "main".into(),
            container_id: "containerd://c-1".into(),
            image: "image:1".into(),
            workload: Some(v1::Workload {
                kind: "Deployment".into(),
                name: "web".into(),
            }),
            labels: [("app".to_string(), "web".to_string())].into(),
            host_network: false,
            evidence: v1::Evidence::Cgroup.into(),
        }),
        netns: 4026531840,
        local: at("10.0.0.1", 40000),
        remote: at("10.0.0.2", 80),
        family: v1::IpFamily::V4.into(),
        syn: time(START + second, 0),
        established: time(START + second, 500_000),
        accepted: None,
    }
}

/// 2024-01-01T00:00:00Z
const START: i64 = 1_704_067_200;

/// Nothing was traced from this second after 2024 began to that one, or the pause goes on.
pub fn pause(from: i64, to: Option<i64>) -> v1::Paused {
    // Nobody is told the rest of a second.
    let at = |second| time(START + second, 999_999_999);
    v1::Paused {
        from: at(from),
        to: to.and_then(at),
        position: None,
    }
}

/// A pod's connect, with its sequence number as its time in seconds.
pub fn connect(pod: &str, sequence: u64) -> v1::Event {
    let second = sequence.cast_signed();
    v1::Event {
        sequence,
        r#type: v1::EventType::Connect.into(),
        time: time(START + second, 500_000),
        connection: Some(connection("shop", pod, second)),
        ..v1::Event::default()
    }
}

/// The end of such a connection, 1.5 ms later.
pub fn close(pod: &str, sequence: u64) -> v1::Event {
    let second = sequence.cast_signed();
    v1::Event {
        sequence,
        r#type: v1::EventType::Close.into(),
        time: time(START + second, 2_000_000),
        connection: Some(connection("shop", pod, second)),
        closer: Some(v1::Closer {
            pid: 44,
            comm: "reaper".into(),
        }),
        reason: v1::CloseReason::ResetRemote.into(),
        errno: 104,
        errno_inferred: true,
        first_fin: None,
        duration: Some(prost_types::Duration {
            seconds: 0,
            nanos: 1_500_000,
        }),
        counters: Some(v1::Counters {
            bytes_sent: 10,
            bytes_received: 20,
            segments_sent: 3,
            segments_received: 4,
            retransmits: 1,
            srtt: Some(prost_types::Duration {
                seconds: 0,
                nanos: 250_000,
            }),
        }),
    }
}
