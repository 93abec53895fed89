//! Channels to agents: one address, or a tunnel through the API server to a pod.

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
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tower::service_fn;

use crate::args::{Address, AgentArgs};
use crate::text::printable;

/// A client of one agent.
pub type Agent = TcpTracerServiceClient<Channel>;

/// The tunnel that a connection goes through, if any: it knows why it breaks.
#[derive(Clone)]
pub struct Tunnel(Option<Shared<BoxFuture<'static, Option<String>>>>);

/// A tunnel that breaks says why at about the same time.
const TUNNEL_PATIENCE: Duration = Duration::from_millis(200);

impl Tunnel {
    /// Does some work, unless the tunnel breaks.
    pub async fn guard<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let Some(tunnel) = self.0.clone() else {
            return work.await;
        };
        let broken = async {
            match tunnel.await {
                Some(why) => anyhow!("{}", printable(why.trim())),
                // It was closed; the work notices.
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            done = work => match done {
                Ok(done) => Ok(done),
                Err(e) => Err(self.explain(e).await),
            },
            why = broken => Err(why),
        }
    }

    /// Adds why the tunnel broke to what came of it.
    pub async fn explain(&self, error: Error) -> Error {
        let Some(tunnel) = self.0.clone() else {
            return error;
        };
        match tokio::time::timeout(TUNNEL_PATIENCE, tunnel).await {
            Ok(Some(why)) => error.context(printable(why.trim())),
            _ => error,
        }
    }
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
    },
}

/// How agents are reached.
#[derive(Clone)]
pub enum Dialer {
    /// By an address.
    Server {
        /// Which.
        address: Address,
        /// Set to use TLS.
        tls: Option<ClientTlsConfig>,
        /// How long connecting may take.
        timeout: Option<Duration>,
    },
    /// Through the API server.
    Cluster {
        /// To the API server.
        client: Client,
        /// Of the agents, in their pods.
        port: u16,
        /// How long connecting may take.
        timeout: Option<Duration>,
    },
}

/// What an agent may answer at once. It sends far less; a server that sends more is none.
const MAX_MESSAGE: usize = 16 << 20;
/// A tunnel whose other end has vanished is told by its silence.
const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

impl Dialer {
    /// To the address of `--server`.
    pub fn to_server(
        address: Address,
        args: &AgentArgs,
        server_name: Option<&str>,
        timeout: Option<Duration>,
    ) -> Result<Self> {
        Ok(Self::Server {
            address,
            tls: tls(args, server_name)?,
            timeout,
        })
    }

    /// How long an agent may take to connect, or to answer what it can answer at once.
    pub fn timeout(&self) -> Option<Duration> {
        match self {
            Self::Server { timeout, .. } | Self::Cluster { timeout, .. } => *timeout,
        }
    }

    /// Connects. What comes back is one connection: when it breaks, dial again.
    pub async fn dial(&self, target: &Target) -> Result<(Agent, Tunnel)> {
        let (channel, tunnel) = within(self.timeout(), self.channel(target)).await?;
        Ok((
            Agent::new(channel).max_decoding_message_size(MAX_MESSAGE),
            tunnel,
        ))
    }

    async fn channel(&self, target: &Target) -> Result<(Channel, Tunnel)> {
        match (self, target) {
            (Self::Server { address, tls, .. }, _) => {
                Ok((to_address(address, tls.as_ref()).await?, Tunnel(None)))
            }
            (
                Self::Cluster { client, port, .. },
                Target::Pod {
                    namespace, name, ..
                },
            ) => to_pod(client.clone(), namespace, name, *port).await,
            (Self::Cluster { .. }, Target::Server) => {
                anyhow::bail!("no agent was given by an address")
            }
        }
    }
}

impl fmt::Display for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server { address, .. } => address.fmt(f),
            Self::Cluster { .. } => f.write_str("the cluster"),
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

fn endpoint(uri: String) -> Result<Endpoint> {
    Ok(Endpoint::from_shared(uri)?
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

async fn to_address(address: &Address, tls: Option<&ClientTlsConfig>) -> Result<Channel> {
    match address {
        Address::Tcp(address) => {
            let scheme = if tls.is_some() { "https" } else { "http" };
            let mut endpoint = endpoint(format!("{scheme}://{address}"))?;
            if let Some(tls) = tls {
                endpoint = endpoint
                    .tls_config(tls.clone())
                    .context("cannot use the certificates")?;
            }
            Ok(endpoint.connect().await?)
        }
        #[cfg(unix)]
        Address::Unix(path) => {
            let path = path.clone();
            over(move || {
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
    let tunnel = Tunnel(Some(error.boxed().shared()));
    let mut stream = Some(stream);
    let channel = over(move || std::future::ready(stream.take().ok_or_else(used_up)));
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
async fn over<F, S>(mut connect: impl FnMut() -> F + Send + 'static) -> Result<Channel>
where
    F: Future<Output = io::Result<S>> + Send + 'static,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connector = service_fn(move |_| {
        let stream = connect();
        async move { io::Result::Ok(TokioIo::new(stream.await?)) }
    });
    // The address only becomes the authority in the requests.
    Ok(endpoint("http://agent".into())?
        .connect_with_connector(connector)
        .await?)
}

fn tls(args: &AgentArgs, server_name: Option<&str>) -> Result<Option<ClientTlsConfig>> {
    let Some(ca) = &args.tls_ca else {
        return Ok(None);
    };
    let read = |path: &std::path::PathBuf| {
        std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca)?));
    if let (Some(certificate), Some(key)) = (&args.tls_cert, &args.tls_key) {
        tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    if let Some(name) = server_name {
        tls = tls.domain_name(name);
    }
    Ok(Some(tls))
}
