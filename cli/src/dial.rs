//! Channels to agents: one address, or a tunnel through the API server to a pod.

use std::error::Error as _;
use std::fmt;
use std::future::Future;
use std::io;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use tcptracer_proto::v1::tcp_tracer_service_client::TcpTracerServiceClient;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::Status;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tower::service_fn;

use crate::args::Address;
use crate::text::printable;
use crate::tls::Tls;

/// A client of one agent.
pub type Agent = TcpTracerServiceClient<Channel>;

/// What a connection goes through, which may know why it breaks.
#[derive(Clone)]
pub struct Tunnel {
    /// Of one through the API server: why it broke, or nothing if it was closed.
    broken: Option<Shared<BoxFuture<'static, Option<String>>>>,
    /// What may be the matter if the connection fails before there is an answer.
    suspicion: Option<&'static str>,
}

/// A tunnel that breaks says why at about the same time.
const TUNNEL_PATIENCE: Duration = Duration::from_millis(200);

impl Tunnel {
    /// Does what comes before the first answer, unless the tunnel breaks.
    pub async fn guard<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let broken = async {
            match self.broken.clone() {
                Some(broken) => match broken.await {
                    Some(why) => anyhow!("{}", printable(why.trim())),
                    // It was closed; the work notices.
                    None => std::future::pending().await,
                },
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            done = work => match done {
                Ok(done) => Ok(done),
                Err(e) => Err(self.explain(self.suspect(e)).await),
            },
            why = broken => Err(why),
        }
    }

    /// Adds why the tunnel broke to what came of it.
    pub async fn explain(&self, error: Error) -> Error {
        let Some(broken) = self.broken.clone() else {
            return error;
        };
        match tokio::time::timeout(TUNNEL_PATIENCE, broken).await {
            Ok(Some(why)) => error.context(printable(why.trim())),
            _ => error,
        }
    }

    fn suspect(&self, error: Error) -> Error {
        match self.suspicion {
            Some(suspicion) if has_hung_up(&error) => error.context(suspicion),
            _ => error,
        }
    }
}

/// Whether a connection has ended without an answer. A server that misses TLS, or a certificate, may or may not get
/// round to saying why.
fn has_hung_up(error: &Error) -> bool {
    error.chain().any(|cause| {
        let status = cause.downcast_ref::<Status>();
        let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        status.is_some_and(|s| s.source().is_some())
            || matches!(
                kind,
                Some(
                    io::ErrorKind::BrokenPipe
                        | io::ErrorKind::ConnectionReset
                        | io::ErrorKind::UnexpectedEof
                )
            )
    })
}

/// Where an agent is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The one of `--server`.
    Server,
    /// In a pod.
    Pod {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        name: String,
        /// It says so. Once it does, it is worth an attempt at once.
        ready: bool,
        /// The name in the agent's certificate, if it speaks TLS.
        tls_name: Option<String>,
    },
}

/// How agents are reached.
#[derive(Clone)]
pub struct Dialer {
    /// Which way.
    pub way: Way,
    /// Whom to trust; set to use TLS.
    pub tls: Option<Tls>,
    /// How long an agent may take to connect, or to answer what it can answer at once.
    pub timeout: Option<Duration>,
}

/// Which way agents are reached.
#[derive(Clone)]
pub enum Way {
    /// By an address.
    Server {
        /// Which.
        address: Address,
        /// The name in the agent's certificate, if it is another.
        tls_name: Option<String>,
    },
    /// Through the API server.
    Cluster {
        /// To the API server.
        client: Client,
        /// Of the agents, in their pods.
        port: u16,
    },
}

/// What an agent may answer at once. It sends far less; a server that sends more is none.
const MAX_MESSAGE: usize = 16 << 20;
/// A tunnel whose other end has vanished is told by its silence.
const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

impl Dialer {
    /// Connects. What comes back is one connection: when it breaks, dial again.
    pub async fn dial(&self, target: &Target) -> Result<(Agent, Tunnel)> {
        let (channel, tunnel) = within(self.timeout, self.channel(target)).await?;
        Ok((
            Agent::new(channel).max_decoding_message_size(MAX_MESSAGE),
            tunnel,
        ))
    }

    async fn channel(&self, target: &Target) -> Result<(Channel, Tunnel)> {
        match (&self.way, target) {
            (Way::Server { address, tls_name }, _) => {
                let tls = self.tls.as_ref().map(|tls| tls.with(tls_name.as_deref()));
                let tunnel = Tunnel {
                    broken: None,
                    suspicion: Some(Tls::suspicion(self.tls.as_ref())),
                };
                let channel = tunnel.guard(to_address(address, tls)).await?;
                Ok((channel, tunnel))
            }
            (
                Way::Cluster { client, port },
                Target::Pod {
                    namespace,
                    name,
                    tls_name,
                    ..
                },
            ) => {
                let tls = Tls::with_pod(self.tls.as_ref(), tls_name.as_deref())
                    .with_context(|| format!("the agent in the pod {namespace}/{name}"))?;
                let suspicion = tls.as_ref().map(|_| Tls::suspicion(self.tls.as_ref()));
                to_pod(client.clone(), namespace, name, *port, tls, suspicion).await
            }
            (Way::Cluster { .. }, Target::Server) => {
                anyhow::bail!("no agent was given by an address")
            }
        }
    }
}

impl fmt::Display for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.way {
            Way::Server { address, .. } => address.fmt(f),
            Way::Cluster { .. } => f.write_str("the cluster"),
        }
    }
}

/// Gives up after a while.
pub async fn within<T>(
    timeout: Option<Duration>,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    match timeout {
        None => work.await,
        Some(timeout) => tokio::time::timeout(timeout, work)
            .await
            .map_err(|_| anyhow!("no answer within {timeout:?} (--request-timeout)"))?,
    }
}

/// `authority`: a host, and a port where it counts.
fn endpoint(authority: &str, tls: Option<ClientTlsConfig>) -> Result<Endpoint> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{authority}"))?
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    match tls {
        Some(tls) => endpoint
            .tls_config(tls)
            .context("cannot use the certificates"),
        None => Ok(endpoint),
    }
}

async fn to_address(address: &Address, tls: Option<ClientTlsConfig>) -> Result<Channel> {
    match address {
        Address::Tcp(address) => Ok(endpoint(address, tls)?.connect().await?),
        #[cfg(unix)]
        Address::Unix(path) => {
            let path = path.clone();
            over(tls, move || {
                let path = path.clone();
                async move { tokio::net::UnixStream::connect(path).await }
            })
            .await
        }
    }
}

/// The tunnel is dialled first: why that fails is better known than why gRPC does.
async fn to_pod(
    client: Client,
    namespace: &str,
    name: &str,
    port: u16,
    tls: Option<ClientTlsConfig>,
    suspicion: Option<&'static str>,
) -> Result<(Channel, Tunnel)> {
    let pods: Api<Pod> = Api::namespaced(client, namespace);
    let mut forward = pods
        .portforward(name, &[port])
        .await
        .map_err(explain)
        .with_context(|| format!("cannot forward a port to the pod {namespace}/{name}"))?;
    let stream = forward
        .take_stream(port)
        .context("the tunnel has no stream")?;
    let error = forward
        .take_error(port)
        .context("the tunnel has no errors")?;
    let tunnel = Tunnel {
        broken: Some(error.boxed().shared()),
        suspicion,
    };
    let mut stream = Some(stream);
    let channel = over(tls, move || {
        std::future::ready(stream.take().ok_or_else(used_up))
    });
    Ok((tunnel.guard(channel).await?, tunnel))
}

fn used_up() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the tunnel is closed")
}

fn explain(error: kube::Error) -> anyhow::Error {
    // What the API server says of it comes with the upgrade's failure, or as its status.
    let refused = match &error {
        kube::Error::UpgradeConnection(_) => true,
        kube::Error::Api(status) => status.is_forbidden(),
        _ => false,
    };
    let error = anyhow::Error::new(error);
    match refused {
        true => error.context("refused; that takes `get` and `create` on pods/portforward"),
        false => error,
    }
}

/// HTTP/2 over any stream.
async fn over<F, S>(
    tls: Option<ClientTlsConfig>,
    mut connect: impl FnMut() -> F + Send + 'static,
) -> Result<Channel>
where
    F: Future<Output = io::Result<S>> + Send + 'static,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connector = service_fn(move |_| {
        let stream = connect();
        async move { io::Result::Ok(TokioIo::new(stream.await?)) }
    });
    // It only becomes the authority in the requests, and the name in the certificate if nobody has said another.
    Ok(endpoint("localhost", tls)?
        .connect_with_connector(connector)
        .await?)
}
