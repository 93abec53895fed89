//! A subscriber, one call at a time.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tcptracer_proto::v1::tcp_tracer_service_client::TcpTracerServiceClient;
use tcptracer_proto::v1::watch_response::Message;
use tcptracer_proto::v1::{self, EventType, LossSource};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use tcptracer_testing::{DEADLINE, End, wait_until};

/// A connection to an agent, and the runtime that it needs.
pub struct Client {
    runtime: Runtime,
    channel: Channel,
    service: TcpTracerServiceClient<Channel>,
}

/// A stream of events.
pub struct Watch<'a> {
    client: &'a Client,
    stream: Streaming<v1::WatchResponse>,
    pub epoch: u64,
    /// The pauses that the agent has reported.
    pub pauses: Vec<v1::Paused>,
}

fn within<T>(what: &str, runtime: &Runtime, future: impl Future<Output = T>) -> T {
    runtime
        .block_on(async { timeout(DEADLINE, future).await })
        .unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

impl Client {
    pub fn connect(socket: &Path) -> Self {
        Self::try_connect(socket).expect("the agent can be reached")
    }

    pub fn try_connect(socket: &Path) -> Result<Self, tonic::transport::Error> {
        let connector = |socket: PathBuf| async move {
            let stream = UnixStream::connect(socket).await?;
            Ok(TokioIo::new(stream))
        };
        Self::by(socket, connector)
    }

    /// With TLS; the agent is expected to be called `agent`.
    pub fn secure(socket: &Path, config: ClientConfig) -> Result<Self, tonic::transport::Error> {
        let tls = TlsConnector::from(Arc::new(config));
        let connector = move |socket: PathBuf| {
            let tls = tls.clone();
            async move {
                let stream = UnixStream::connect(socket).await?;
                let name = ServerName::try_from("agent").expect("a name");
                Ok(TokioIo::new(tls.connect(name, stream).await?))
            }
        };
        Self::by(socket, connector)
    }

    fn by<T, F>(
        socket: &Path,
        connector: impl Fn(PathBuf) -> F + Send + 'static,
    ) -> Result<Self, tonic::transport::Error>
    where
        T: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
        F: Future<Output = io::Result<T>> + Send,
    {
        let runtime = Runtime::new().expect("a runtime");
        let socket = socket.to_path_buf();
        let connector = tower::service_fn(move |_| connector(socket.clone()));
        let channel = within("a connection", &runtime, async {
            Endpoint::from_static("http://agent")
                // A client that does not read has the agent wait soon.
                .initial_stream_window_size(1 << 16)
                .initial_connection_window_size(1 << 20)
                .connect_with_connector(connector)
                .await
        })?;
        let service = TcpTracerServiceClient::new(channel.clone());
        Ok(Self {
            runtime,
            channel,
            service,
        })
    }

    /// For other services that are served there.
    pub fn ask<T>(&self, ask: impl AsyncFnOnce(Channel) -> T) -> T {
        within("an answer", &self.runtime, ask(self.channel.clone()))
    }

    pub fn try_watch(&self, request: v1::WatchRequest) -> Result<Watch<'_>, Status> {
        let mut service = self.service.clone();
        let stream = within("a stream", &self.runtime, service.watch(request))?.into_inner();
        let mut watch = Watch {
            client: self,
            stream,
            epoch: 0,
            pauses: Vec::new(),
        };
        let first = watch.message().expect("a stream begins with the status");
        assert!(
            matches!(first, Message::Status(ref s) if !s.live),
            "{first:?}"
        );
        Ok(watch)
    }

    /// A stream that is live.
    pub fn watch(&self, allow: Vec<v1::Filter>) -> Watch<'_> {
        self.watch_as("", allow)
    }

    /// The same, which can be ended by its id.
    pub fn watch_as(&self, id: &str, allow: Vec<v1::Filter>) -> Watch<'_> {
        let request = v1::WatchRequest {
            allow,
            id: id.into(),
            ..v1::WatchRequest::default()
        };
        let mut watch = self.try_watch(request).expect("the filter is valid");
        let second = watch.message().expect("the stream goes on");
        assert!(
            matches!(second, Message::Status(ref s) if s.live),
            "{second:?}"
        );
        watch
    }

    pub fn end_watch(&self, id: &str) -> Result<(), Status> {
        let mut service = self.service.clone();
        let request = v1::EndWatchRequest { id: id.into() };
        within("an answer", &self.runtime, service.end_watch(request)).map(drop)
    }

    pub fn connections(&self, allow: Vec<v1::Filter>) -> Vec<v1::Connection> {
        let mut service = self.service.clone();
        let request = v1::ListConnectionsRequest {
            allow,
            deny: Vec::new(),
        };
        within("the connections", &self.runtime, async {
            let mut batches = service.list_connections(request).await?.into_inner();
            let mut all = Vec::new();
            while let Some(batch) = batches.message().await? {
                all.extend(batch.connections);
            }
            Ok::<_, Status>(all)
        })
        .expect("the agent lists them")
    }

    /// Until so many pods and as many containers are known.
    #[track_caller]
    pub fn wait_for_pods(&self, count: u32) {
        wait_until("the pods are known", || {
            let info = self.info();
            info.containers == count && info.pods.is_some_and(|p| p.pods == count)
        });
    }

    pub fn try_info(&self) -> Result<v1::GetServerInfoResponse, Status> {
        let mut service = self.service.clone();
        let request = v1::GetServerInfoRequest {};
        let answer = service.get_server_info(request);
        Ok(within("the agent's answer", &self.runtime, answer)?.into_inner())
    }

    pub fn info(&self) -> v1::GetServerInfoResponse {
        self.try_info().expect("the agent answers")
    }

    /// What was lost of ours.
    pub fn losses(&self) -> Vec<v1::Lost> {
        let mut lost = self.info().lost;
        lost.retain(|lost| !is_others(lost));
        lost
    }
}

impl Watch<'_> {
    /// The next message, or `None` at the end.
    pub fn message(&mut self) -> Option<Message> {
        self.message_within(DEADLINE)
    }

    /// The same, which may take longer.
    pub fn message_within(&mut self, limit: Duration) -> Option<Message> {
        let end = Instant::now() + limit;
        loop {
            let next = async { timeout_at(end, self.stream.message()).await };
            let next = self.client.runtime.block_on(next);
            let response = next
                .expect("a message comes in time")
                .expect("the stream goes well")?;
            assert_eq!(response.node, "node-1");
            self.epoch = response.epoch;
            match response.message {
                Some(Message::Lost(lost)) if is_others(&lost) => {}
                Some(Message::Paused(pause)) => self.pauses.push(pause),
                message => return message,
            }
        }
    }

    /// So many events, and nothing else.
    #[track_caller]
    pub fn events(&mut self, count: usize) -> Vec<v1::Event> {
        let mut events = Vec::new();
        while events.len() < count {
            match self.message() {
                Some(Message::Events(batch)) => events.extend(batch.events),
                other => panic!("{other:?} after {} of {count} events", events.len()),
            }
        }
        assert_eq!(events.len(), count, "{events:#?}");
        events
    }

    /// To the end of the stream: the events, and how many were lost where. Connections that had no room may be anybody's
    /// on this host.
    pub fn rest(&mut self) -> (Vec<v1::Event>, BTreeMap<LossSource, u64>) {
        let (mut events, mut lost) = (Vec::new(), BTreeMap::new());
        while let Some(message) = self.message() {
            match message {
                Message::Events(batch) => events.extend(batch.events),
                Message::Lost(told) => match told.source() {
                    LossSource::Connections => {}
                    source => *lost.entry(source).or_default() += told.count,
                },
                other => panic!("{other:?}"),
            }
        }
        (events, lost)
    }
}

/// The rest of the host may have had a connection before the agent that could not be found, which every subscriber is told.
/// Of ours each event is counted.
fn is_others(lost: &v1::Lost) -> bool {
    lost.source() == v1::LossSource::Untracked
}

/// The pods of a namespace.
pub fn of(namespace: &str) -> Vec<v1::Filter> {
    vec![v1::Filter {
        namespaces: vec![namespace.into()],
        ..v1::Filter::default()
    }]
}

/// Whose it is.
pub fn identity(event: &v1::Event) -> &v1::Identity {
    let connection = event.connection.as_ref().expect("it has a connection");
    connection.identity.as_ref().expect("it has an identity")
}

/// What happened.
pub fn kinds(events: &[v1::Event]) -> Vec<EventType> {
    events.iter().map(v1::Event::r#type).collect()
}

/// It is of this end of a connection.
#[track_caller]
pub fn assert_end(event: &v1::Event, end: &End) {
    let connection = event.connection.as_ref().expect("it has a connection");
    let process = connection.process.as_ref().expect("it has a process");
    let endpoint = |address: SocketAddr| {
        Some(v1::Endpoint {
            address: address.ip().to_string(),
            port: address.port().into(),
        })
    };
    assert_eq!((process.pid, &process.comm), (end.pid, &end.comm));
    assert_eq!(connection.local, endpoint(end.local));
    assert_eq!(connection.remote, endpoint(end.remote));
}
