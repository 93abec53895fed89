//! The calls.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures::stream;
use futures::{Stream, StreamExt};
use jiff::Timestamp;
use tcptracer::clock::monotonic_now;
use tcptracer_event::{Event, Nanos};
use tcptracer_proto::server::{TcpTracerService, TcpTracerServiceServer};
use tcptracer_proto::v1;
use tcptracer_proto::v1::watch_request::History;
use tcptracer_proto::v1::watch_response::Message;
use tcptracer_proto::{DESCRIPTORS, Frame};
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::connection::{Door, KEEPALIVE};
use super::listen::Listener;
use crate::api;
use crate::hub::{Item, Past, Position, Subscription};
use crate::identity::Attribution;
use crate::node::{CannotAttach, Handle, Refusal};

/// A request is a few filters; anything larger is refused.
const MAX_REQUEST: usize = 1 << 20;

/// Bytes in the id of a watch.
const MAX_ID: usize = 64;

/// Connections in one message of a list.
const LIST_BATCH: usize = 512;

/// A client that takes nothing of its list for so long is given up: others wait for theirs.
const PATIENCE: Duration = Duration::from_secs(30);

/// What does not change while the agent runs.
#[derive(Clone, Debug)]
pub struct About {
    /// The node's name.
    pub node: String,
    /// The run.
    pub epoch: u64,
    /// When it began.
    pub started: Timestamp,
    /// The kernel's release.
    pub kernel: String,
    /// Hooks that the kernel does not allow, with what is said of that.
    pub refused_hooks: Vec<(&'static str, &'static str)>,
    /// The labels of pods that events carry.
    pub labels: Vec<String>,
    /// `api`, `kubelet` or `file`.
    pub pod_source: &'static str,
}

/// The service.
#[derive(Clone, Debug)]
pub struct Service {
    about: Arc<About>,
    node: Handle,
    streams: Arc<Semaphore>,
}

impl Service {
    /// At most `max_streams` are served at a time.
    pub fn new(about: Arc<About>, node: Handle, max_streams: usize) -> Self {
        Self {
            about,
            node,
            streams: Arc::new(Semaphore::new(max_streams)),
        }
    }

    fn permit(&self) -> Result<OwnedSemaphorePermit, Status> {
        Arc::clone(&self.streams)
            .try_acquire_owned()
            .map_err(|_| Status::resource_exhausted("too many streams are open (--max-streams)"))
    }

    fn envelope(&self) -> v1::WatchResponse {
        v1::WatchResponse {
            node: self.about.node.clone(),
            epoch: self.about.epoch,
            message: None,
        }
    }

    /// Those whose programs are loaded, and those that are refused.
    fn hooks(&self) -> Vec<v1::Hook> {
        let hook = |name: &str, why_not: Option<&str>| v1::Hook {
            name: name.into(),
            attached: why_not.is_none(),
            detail: why_not.unwrap_or_default().into(),
        };
        let loaded = self.node.programs().iter();
        let refused = self.about.refused_hooks.iter();
        loaded
            .map(|program| hook(program.hook(), program.why_not_attached()))
            .chain(refused.map(|(name, why_not)| hook(name, Some(why_not))))
            .collect()
    }

    fn past(&self, history: Option<History>) -> Result<Past, Status> {
        let invalid = |why: &str| Err(Status::invalid_argument(format!("history: {why}")));
        Ok(match history {
            None => Past::None,
            Some(History::Since(duration)) => match Duration::try_from(duration) {
                Ok(duration) => {
                    let ago = Nanos::try_from(duration.as_nanos()).unwrap_or(Nanos::MAX);
                    Past::Since(monotonic_now().saturating_sub(ago))
                }
                Err(_) => return invalid("since is negative or out of range"),
            },
            Some(History::Last(0)) => return invalid("last is 0"),
            Some(History::Last(n)) => Past::Last(n as usize),
            // A position of another run says nothing about this one.
            Some(History::Resume(at)) if at.epoch != self.about.epoch => Past::None,
            Some(History::Resume(at)) => Past::After(Position {
                sequence: at.sequence,
                lost: at.lost,
            }),
        })
    }
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl TcpTracerService for Service {
    type WatchStream = Streamed<Frame>;

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        let matcher = api::matcher(request.allow, request.deny, &self.about.node)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        if request.history_only && request.history.is_none() {
            return Err(Status::invalid_argument(
                "history_only: no history was asked for",
            ));
        }
        if request.id.len() > MAX_ID {
            let why = format!("id: more than {MAX_ID} bytes");
            return Err(Status::invalid_argument(why));
        }
        let id = Some(request.id).filter(|id| !id.is_empty());
        let past = self.past(request.history)?;
        let permit = self.permit()?;
        let follow = !request.history_only;
        let subscribed = self.node.subscribe(id, matcher, past, follow).await;
        let subscription = subscribed
            .ok_or_else(ending)?
            .map_err(|refusal| match refusal {
                Refusal::Taken => Status::already_exists("id: another watch goes by it"),
                Refusal::CannotAttach(why) => Status::unavailable(why.to_string()),
            })?;
        let frames = stream::unfold(
            (subscription, self.envelope(), permit),
            |(mut subscription, envelope, permit)| async {
                let frame = next_frame(&mut subscription, &envelope).await?;
                Some((Ok(frame), (subscription, envelope, permit)))
            },
        );
        Ok(Response::new(Box::pin(frames)))
    }

    async fn end_watch(
        &self,
        request: Request<v1::EndWatchRequest>,
    ) -> Result<Response<v1::EndWatchResponse>, Status> {
        let found = self.node.end(request.into_inner().id).await;
        match found.ok_or_else(ending)? {
            true => Ok(Response::new(v1::EndWatchResponse {})),
            false => Err(Status::not_found("id: no watch goes by it")),
        }
    }

    type ListConnectionsStream = Streamed<v1::ListConnectionsResponse>;

    async fn list_connections(
        &self,
        request: Request<v1::ListConnectionsRequest>,
    ) -> Result<Response<Self::ListConnectionsStream>, Status> {
        let request = request.into_inner();
        let matcher = api::matcher(request.allow, request.deny, &self.about.node)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        let permit = self.permit()?;
        let listing = self.node.list(matcher).await;
        let listing = listing
            .map_err(|e| match e.is::<CannotAttach>() {
                true => Status::unavailable(format!("{e:#}")),
                false => Status::internal(format!("{e:#}")),
            })?
            .ok_or_else(ending)?;
        let about = Arc::clone(&self.about);
        let response = move |batch: &[(Event, Attribution)]| v1::ListConnectionsResponse {
            node: about.node.clone(),
            epoch: about.epoch,
            connections: batch
                .iter()
                .map(|(event, who)| api::connection(event, who, listing.clock, &about.labels))
                .collect(),
        };
        // Each is made as it is taken: for a slow client, the list is held and not the messages as well.
        let mut sent = 0;
        let batches = std::iter::from_fn(move || {
            let batch = listing.connections[sent..].chunks(LIST_BATCH).next()?;
            sent += batch.len();
            Some(response(batch))
        });
        let (to, answers) = mpsc::channel(1);
        tokio::spawn(hand_out(batches, to, PATIENCE));
        let answers = ReceiverStream::new(answers).map(move |answer| {
            let _permit = &permit;
            answer
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn get_server_info(
        &self,
        _: Request<v1::GetServerInfoRequest>,
    ) -> Result<Response<v1::GetServerInfoResponse>, Status> {
        let report = self.node.report().await.ok_or_else(ending)?;
        let about = &self.about;
        Ok(Response::new(v1::GetServerInfoResponse {
            node: about.node.clone(),
            epoch: about.epoch,
            version: env!("CARGO_PKG_VERSION").into(),
            started: Some(api::timestamp(about.started)),
            kernel: about.kernel.clone(),
            hooks: self.hooks(),
            shortcomings: report.status.shortcomings.clone(),
            pods: Some(v1::PodsStatus {
                source: about.pod_source.into(),
                synced: report.status.pods_synced,
                pods: report.pods as u32,
                error: report.status.pods_error.clone().unwrap_or_default(),
            }),
            subscribers: report.subscribers as u32,
            sequence: report.sequence,
            lost: report.lost.into_iter().map(api::lost).collect(),
            containers: report.sizes.containers as u32,
            paused_since: report.paused_since.map(api::timestamp),
            paused_for: Some(api::duration(report.paused_for)),
            filter_maps: report.maps.into_iter().map(api::filter_map).collect(),
        }))
    }
}

fn ending() -> Status {
    Status::unavailable("the agent is ending")
}

/// Until all is handed out or the client has gone. One that takes nothing for so long finds an error in place of the
/// rest.
async fn hand_out<T>(
    mut batches: impl Iterator<Item = T>,
    to: mpsc::Sender<Result<T, Status>>,
    patience: Duration,
) {
    for batch in batches.by_ref() {
        match to.send_timeout(Ok(batch), patience).await {
            Ok(()) => {}
            Err(SendTimeoutError::Closed(_)) => return,
            Err(SendTimeoutError::Timeout(_)) => {
                // The error may wait for the client; the list must not.
                drop(batches);
                let why = format!("nothing of the list was taken for {patience:?}");
                let _ = to.send(Err(Status::deadline_exceeded(why))).await;
                return;
            }
        }
    }
}

async fn next_frame(
    subscription: &mut Subscription,
    envelope: &v1::WatchResponse,
) -> Option<Frame> {
    Some(match subscription.next().await? {
        Item::Events(events) => Frame::events(envelope, &events),
        Item::Lost(loss, behind) => {
            let lost = v1::Lost {
                position: behind.map(|at| api::position(at, envelope.epoch)),
                ..api::lost(loss)
            };
            Frame::message(envelope, Message::Lost(lost))
        }
        Item::Paused(pause, behind) => {
            let paused = api::paused(pause, api::position(behind, envelope.epoch));
            Frame::message(envelope, Message::Paused(paused))
        }
        Item::Status(status, at, live) => {
            let status = api::status(&status, at, live);
            Frame::message(envelope, Message::Status(status))
        }
    })
}

/// Serves whom the door admits until `stop`, and then until the streams have ended.
pub async fn serve(
    service: Service,
    listener: Listener,
    door: Door,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let reflection = |builder: tonic_reflection::server::Builder<'static>| {
        builder
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let (health_reporter, health) = tonic_health::server::health_reporter();
    health_reporter
        .set_serving::<TcpTracerServiceServer<Service>>()
        .await;
    let routes =
        Routes::new(TcpTracerServiceServer::new(service).max_decoding_message_size(MAX_REQUEST))
            .add_service(health)
            .add_service(reflection(tonic_reflection::server::Builder::configure()).build_v1()?)
            .add_service(
                reflection(tonic_reflection::server::Builder::configure()).build_v1alpha()?,
            );

    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .tcp_nodelay(true)
        .add_routes(routes)
        .serve_with_incoming_shutdown(listener.incoming(door), stop.cancelled_owned())
        .await
        .context("the gRPC server failed")
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use tokio::sync::mpsc::error::TryRecvError;
    use tokio::time::timeout;
    use tonic::Code;

    use super::*;

    /// Nothing that is waited for takes this long unless it is broken.
    const DEADLINE: Duration = Duration::from_secs(20);

    /// A list of so many batches, which are numbers, and its end when it is not held any more.
    fn list(batches: u32) -> (impl Iterator<Item = u32> + Send, mpsc::Receiver<()>) {
        let (held, released) = mpsc::channel(1);
        let list = (1..=batches).inspect(move |_| assert!(!held.is_closed()));
        (list, released)
    }

    async fn in_time<T>(future: impl Future<Output = T>) -> T {
        timeout(DEADLINE, future).await.expect("in time")
    }

    #[tokio::test]
    async fn a_list_is_held_until_it_was_taken() {
        let (batches, mut released) = list(3);
        let (to, mut taken) = mpsc::channel(1);
        tokio::spawn(hand_out(batches, to, DEADLINE));
        for expected in 1..=3 {
            assert!(expected == 3 || released.try_recv() == Err(TryRecvError::Empty));
            let batch = in_time(taken.recv()).await.expect("it goes on");
            assert_eq!(batch.expect("a batch"), expected);
        }
        assert!(in_time(taken.recv()).await.is_none());
        assert_eq!(in_time(released.recv()).await, None);
    }

    #[tokio::test]
    async fn who_takes_nothing_loses_the_rest_and_is_told() {
        let (batches, mut released) = list(3);
        let (to, mut taken) = mpsc::channel(1);
        tokio::spawn(hand_out(batches, to, Duration::from_millis(50)));
        assert_eq!(in_time(released.recv()).await, None);
        let batch = in_time(taken.recv()).await.expect("what was on its way");
        assert_eq!(batch.expect("a batch"), 1);
        let end = in_time(taken.recv()).await.expect("why it ends");
        let status = end.expect_err("the rest is given up");
        assert_eq!(
            (status.code(), status.message()),
            (
                Code::DeadlineExceeded,
                "nothing of the list was taken for 50ms"
            )
        );
        assert!(in_time(taken.recv()).await.is_none());
    }

    #[tokio::test]
    async fn the_list_of_who_has_gone_is_not_held() {
        let (batches, mut released) = list(3);
        let (to, taken) = mpsc::channel(1);
        tokio::spawn(hand_out(batches, to, DEADLINE));
        drop(taken);
        assert_eq!(in_time(released.recv()).await, None);
    }
}
