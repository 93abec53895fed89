//! Connections to agents: by their addresses, or over any stream.

use std::future::{Future, pending, ready};
use std::io;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use hyper_util::rt::TokioIo;
use tcptracer_event::printable;
use tcptracer_proto::client::TcpTracerServiceClient;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tower::service_fn;

use crate::address::Address;
use crate::error::{Error, ErrorKind, Suspicion};
use crate::tls::Tls;

/// A client of one agent.
pub type Agent = TcpTracerServiceClient<Channel>;

/// A way to agents. [`Direct`] is the one by their addresses; who reaches them through something else, such as a tunnel,
/// brings another.
pub trait Way: Clone + Send + Sync + 'static {
    /// Which agent is meant.
    type Target: Clone + Send + Sync + 'static;

    /// Connects. What it says of failures that are not of this crate is an [`Error::Way`], or [`Error::Invalid`] if it is of
    /// no use to try again.
    fn connect(
        &self,
        target: &Self::Target,
    ) -> impl Future<Output = Result<Connection, Error>> + Send;
}

/// How agents are reached.
#[derive(Clone, Debug)]
pub struct Dialer<W> {
    /// Which way.
    pub way: W,
    /// How long an agent may take to connect, or to answer what it can answer at once.
    pub timeout: Option<Duration>,
}

impl<W: Way> Dialer<W> {
    /// Connects. What comes back is one connection: when it breaks, dial again.
    pub async fn dial(&self, target: &W::Target) -> Result<Connection, Error> {
        self.within(self.way.connect(target)).await
    }

    /// Gives up after a while.
    pub(crate) async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        match self.timeout {
            None => work.await,
            Some(timeout) => tokio::time::timeout(timeout, work)
                .await
                .map_err(|_| Error::TimedOut(timeout))?,
        }
    }
}

/// By addresses.
#[derive(Clone, Debug, Default)]
pub struct Direct {
    /// Whom to trust; set to use TLS.
    pub tls: Option<Tls>,
}

impl Way for Direct {
    type Target = Address;

    async fn connect(&self, address: &Address) -> Result<Connection, Error> {
        Connection::to(address, self.tls.as_ref()).await
    }
}

/// A connection to one agent.
pub struct Connection {
    /// The agent.
    pub agent: Agent,
    pub(crate) tunnel: Tunnel,
}

/// What a connection goes through, which may know why it breaks.
pub(crate) struct Tunnel {
    /// Why it broke, or nothing if it was closed.
    broken: Option<Shared<BoxFuture<'static, Option<String>>>>,
    /// What may be the matter if the connection fails before there is an answer.
    suspicion: Option<Suspicion>,
}

/// A tunnel that breaks says why at about the same time.
const TUNNEL_PATIENCE: Duration = Duration::from_millis(200);

impl Tunnel {
    /// Does what comes before the first answer, unless the tunnel breaks.
    pub(crate) async fn guard<T>(
        &self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let broken = async {
            match self.broken.clone() {
                Some(broken) => match broken.await {
                    Some(why) => Error::Tunnel {
                        why: printable(why.trim()).into_owned(),
                        source: None,
                    },
                    // It was closed; the work notices.
                    None => pending().await,
                },
                None => pending().await,
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
    pub(crate) async fn explain(&self, error: Error) -> Error {
        let Some(broken) = self.broken.clone() else {
            return error;
        };
        // That has come through the tunnel.
        if error.kind() == ErrorKind::Invalid {
            return error;
        }
        match tokio::time::timeout(TUNNEL_PATIENCE, broken).await {
            Ok(Some(why)) => Error::Tunnel {
                why: printable(why.trim()).into_owned(),
                source: Some(Box::new(error)),
            },
            _ => error,
        }
    }

    fn suspect(&self, error: Error) -> Error {
        match self.suspicion {
            Some(suspicion) if error.has_hung_up() => Error::HungUp {
                suspicion,
                source: Box::new(error),
            },
            _ => error,
        }
    }
}

/// What an agent may answer at once. It sends far less; a server that sends more is none.
const MAX_MESSAGE: usize = 16 << 20;
/// A tunnel whose other end has vanished is told by its silence.
const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

impl Connection {
    /// To an address.
    pub async fn to(address: &Address, tls: Option<&Tls>) -> Result<Self, Error> {
        let tunnel = Tunnel {
            broken: None,
            suspicion: Some(tls.map_or(Suspicion::SpeaksTls, Tls::suspicion)),
        };
        Self::through(tunnel, to_address(address, tls)).await
    }

    /// Over a stream that somebody else has opened, to an agent that is known to speak TLS or not. `broken` says why the
    /// stream broke, once it has; nothing, as soon as it is clear that it will not say.
    pub async fn over<S>(
        stream: S,
        tls: Option<&Tls>,
        broken: impl Future<Output = Option<String>> + Send + 'static,
    ) -> Result<Self, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let tunnel = Tunnel {
            broken: Some(broken.boxed().shared()),
            suspicion: tls.map(Tls::suspicion),
        };
        let mut stream = Some(stream);
        let channel = over(tls, move || ready(stream.take().ok_or_else(used_up)));
        Self::through(tunnel, channel).await
    }

    async fn through(
        tunnel: Tunnel,
        channel: impl Future<Output = Result<Channel, Error>>,
    ) -> Result<Self, Error> {
        let channel = tunnel.guard(channel).await?;
        Ok(Self {
            agent: Agent::new(channel).max_decoding_message_size(MAX_MESSAGE),
            tunnel,
        })
    }
}

/// `authority`: a host, and a port where it counts.
fn endpoint(authority: &str, tls: Option<ClientTlsConfig>) -> Result<Endpoint, Error> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{authority}"))?
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    match tls {
        Some(tls) => endpoint.tls_config(tls).map_err(Error::Certificates),
        None => Ok(endpoint),
    }
}

async fn to_address(address: &Address, tls: Option<&Tls>) -> Result<Channel, Error> {
    match address {
        Address::Tcp(address) => Ok(endpoint(address, tls.map(Tls::config))?.connect().await?),
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

fn used_up() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the tunnel is closed")
}

/// HTTP/2 over any stream.
async fn over<F, S>(
    tls: Option<&Tls>,
    mut connect: impl FnMut() -> F + Send + 'static,
) -> Result<Channel, Error>
where
    F: Future<Output = io::Result<S>> + Send + 'static,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connector = service_fn(move |_| {
        let stream = connect();
        async move { io::Result::Ok(TokioIo::new(stream.await?)) }
    });
    // It only becomes the authority in the requests, and the name in the certificate if nobody has said another.
    Ok(endpoint("localhost", tls.map(Tls::config))?
        .connect_with_connector(connector)
        .await?)
}
