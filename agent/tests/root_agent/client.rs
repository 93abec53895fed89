//! A subscriber, one call at a time.

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tcptracer_proto::v1::tcp_tracer_service_client::TcpTracerServiceClient;
use tcptracer_proto::v1::watch_response::Message;
use tcptracer_proto::v1::{self, EventType};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use crate::support::{DEADLINE, End, wait_until};

/// A connection to an agent, and the runtime that it needs.
pub struct Client {
    runtime: Runtime,
    service: TcpTracerServiceClient<Channel>,
}

/// A stream of events.
pub struct Watch<'a> {
    client: &'a Client,
    stream: Streaming<v1::WatchResponse>,
    pub epoch: u64,
}

fn within<T>(what: &str, runtime: &Runtime, future: impl Future<Output = T>) -> T {
    runtime
        .block_on(async { timeout(DEADLINE, future).await })
        .unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

impl Client {
    pub fn connect(socket: &Path) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let socket = socket.to_path_buf();
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move {
                let stream = UnixStream::connect(socket).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        });
        let channel = within("a connection", &runtime, async {
            Endpoint::from_static("http://agent")
                // A client that does not read has the agent wait soon.
                .initial_stream_window_size(1 << 16)
                .initial_connection_window_size(1 << 20)
                .connect_with_connector(connector)
                .await
        });
        let service = TcpTracerServiceClient::new(channel.expect("the agent can be reached"));
        Self { runtime, service }
    }

    pub fn try_watch(&self, request: v1::WatchRequest) -> Result<Watch<'_>, Status> {
        let mut service = self.service.clone();
        let stream = within("a stream", &self.runtime, service.watch(request))?.into_inner();
        let mut watch = Watch {
            client: self,
            stream,
            epoch: 0,
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
        let request = v1::WatchRequest {
            allow,
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

    pub fn info(&self) -> v1::GetServerInfoResponse {
        let mut service = self.service.clone();
        let request = v1::GetServerInfoRequest {};
        within(
            "the agent's answer",
            &self.runtime,
            service.get_server_info(request),
        )
        .expect("the agent answers")
        .into_inner()
    }
}

impl Watch<'_> {
    /// The next message, or `None` at the end.
    pub fn message(&mut self) -> Option<Message> {
        let next = within("a message", &self.client.runtime, self.stream.message());
        let response = next.expect("the stream goes well")?;
        assert_eq!(response.node, "node-1");
        self.epoch = response.epoch;
        response.message
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

    /// Nothing comes. What could come has been taken by the agent before.
    #[track_caller]
    pub fn nothing(&mut self) {
        let next = self
            .client
            .runtime
            .block_on(async { timeout(Duration::from_millis(300), self.stream.message()).await });
        assert!(next.is_err(), "{next:?}");
    }
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
