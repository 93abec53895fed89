//! The way to agents: one address, or tunnels through the API server to their pods.

use std::fmt;

use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use tcptracer_client::address::Address;
use tcptracer_client::dial::{self, Connection};
use tcptracer_client::error::Error;
use tcptracer_client::tls::Tls;

use crate::agent_pod::SERVER_NAME;

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

/// Which way agents are reached.
#[derive(Clone)]
pub enum Way {
    /// By an address.
    Server {
        /// Which.
        address: Address,
        /// Whom to trust; set to use TLS.
        tls: Option<Tls>,
    },
    /// Through the API server.
    Cluster {
        /// To the API server.
        client: Client,
        /// Of the agents, in their pods.
        port: u16,
        /// Whom to trust, of those that use TLS.
        tls: Option<Tls>,
    },
}

impl dial::Way for Way {
    type Target = Target;

    async fn connect(&self, target: &Target) -> Result<Connection, Error> {
        match (self, target) {
            (Self::Server { address, tls }, _) => Connection::to(address, tls.as_ref()).await,
            (
                Self::Cluster { client, port, tls },
                Target::Pod {
                    namespace,
                    name,
                    tls_name,
                    ..
                },
            ) => {
                let tls = of_pod(tls.as_ref(), tls_name.as_deref()).map_err(|why| {
                    Error::Invalid(format!("the agent in the pod {namespace}/{name}: {why}"))
                })?;
                to_pod(client.clone(), namespace, name, *port, tls).await
            }
            (Self::Cluster { .. }, Target::Server) => {
                Err(Error::Invalid("no agent was given by an address".into()))
            }
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server { address, .. } => address.fmt(f),
            Self::Cluster { .. } => f.write_str("the cluster"),
        }
    }
}

/// With the agent of a pod, of which the API server says whether it speaks TLS, and as who. Neither side is given up
/// silently.
fn of_pod(given: Option<&Tls>, name: Option<&str>) -> Result<Option<Tls>, String> {
    match (given, name) {
        (None, None) => Ok(None),
        (Some(tls), Some(name)) => Ok(Some(tls.named(name))),
        (None, Some(_)) => Err(
            "it uses TLS: give --tls-ca, and --tls-cert and --tls-key if it wants a certificate"
                .into(),
        ),
        (Some(_), None) => Err(format!(
            "it uses no TLS, which --tls-ca asks for: its pod has no annotation {SERVER_NAME}"
        )),
    }
}

/// The tunnel is dialled first: why that fails is better known than why gRPC does.
async fn to_pod(
    client: Client,
    namespace: &str,
    name: &str,
    port: u16,
    tls: Option<Tls>,
) -> Result<Connection, Error> {
    let pods: Api<Pod> = Api::namespaced(client, namespace);
    let forward = async {
        let mut forward = pods
            .portforward(name, &[port])
            .await
            .map_err(explain)
            .with_context(|| format!("cannot forward a port to the pod {namespace}/{name}"))?;
        let stream = forward
            .take_stream(port)
            .context("the tunnel has no stream")?;
        let broken = forward
            .take_error(port)
            .context("the tunnel has no errors")?;
        anyhow::Ok((stream, broken))
    };
    let (stream, broken) = forward.await.map_err(|e| Error::Way(e.into()))?;
    Connection::over(stream, tls.as_ref(), broken).await
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
