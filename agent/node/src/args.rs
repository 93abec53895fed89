//! The command line of the agent. Every option can be given by an environment variable as well; an empty one
//! counts as none, since manifests made from templates set those.

use std::collections::HashSet;
use std::env;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use clap::builder::{BoolishValueParser, Resettable};
use clap::error::ErrorKind;
use clap::{Arg, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use rustix::system::uname;

use crate::health::{HTTP_LISTEN, HealthArgs};
use crate::kube::{Kubelet, Source};
use crate::node::FilterSet;
use crate::preflight::{Places, PreflightArgs};
use crate::server::{Address, Tls};

const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// Where pods come from, as asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pods {
    /// The API server.
    Api,
    /// The kubelet.
    Kubelet,
    /// A file.
    File(PathBuf),
}

impl FromStr for Pods {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("file:")) {
            ("api", _) => Ok(Self::Api),
            ("kubelet", _) => Ok(Self::Kubelet),
            (_, Some(path)) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => Err("expected api, kubelet or file:PATH".into()),
        }
    }
}

/// Traces the TCP connections of a node, names the pods behind them, and serves them over gRPC.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "tcptracer-agent",
    version,
    about = "Traces the TCP connections of a node, names the pods behind them, and serves them over gRPC",
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true
)]
pub struct Args {
    /// Something else than tracing.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// The name of this node [default: the host's name]
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,

    /// Where pods come from: api, kubelet, or file:PATH with what a kubelet says at /pods
    #[arg(
        long,
        env = "TCPTRACER_PODS",
        value_name = "SOURCE",
        default_value = "api"
    )]
    pub pods: Pods,

    /// The kubelet's address [default: https://NODE:10250]
    #[arg(long, env = "TCPTRACER_KUBELET_URL", value_name = "URL")]
    pub kubelet_url: Option<String>,

    /// The token for the kubelet [default: the service account's, if there is one]
    #[arg(long, env = "TCPTRACER_KUBELET_TOKEN_FILE", value_name = "FILE")]
    pub kubelet_token_file: Option<PathBuf>,

    /// Whose certificate the kubelet has [default: the service account's CA, if there is one]
    #[arg(long, env = "TCPTRACER_KUBELET_CA_FILE", value_name = "FILE")]
    pub kubelet_ca_file: Option<PathBuf>,

    /// Do not look at the kubelet's certificate
    #[arg(long, env = "TCPTRACER_KUBELET_INSECURE", value_parser = BoolishValueParser::new())]
    pub kubelet_insecure: bool,

    /// Labels of pods that events carry
    #[arg(
        long,
        env = "TCPTRACER_POD_LABELS",
        value_name = "KEY,…",
        value_delimiter = ','
    )]
    pub pod_labels: Vec<String>,

    /// Where to serve gRPC: ADDRESS:PORT or unix:PATH
    #[arg(
        long,
        env = "TCPTRACER_GRPC_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:50051"
    )]
    pub grpc_listen: Address,

    /// Serve gRPC in the clear on an address that others can reach
    #[arg(long, env = "TCPTRACER_INSECURE", value_parser = BoolishValueParser::new())]
    pub insecure: bool,

    /// The server's certificate, PEM; read again when it changes
    #[arg(
        long,
        env = "TCPTRACER_TLS_CERT",
        value_name = "FILE",
        requires = "tls_key"
    )]
    pub tls_cert: Option<PathBuf>,

    /// The key of the server's certificate, PEM
    #[arg(
        long,
        env = "TCPTRACER_TLS_KEY",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    pub tls_key: Option<PathBuf>,

    /// Whose certificates clients have to show, PEM
    #[arg(
        long,
        env = "TCPTRACER_TLS_CLIENT_CA",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    pub tls_client_ca: Option<PathBuf>,

    /// Streams that may be open at a time
    #[arg(
        long,
        env = "TCPTRACER_MAX_STREAMS",
        value_name = "N",
        default_value_t = 256,
        value_parser = clap::value_parser!(u32).range(1..=65_536)
    )]
    pub max_streams: u32,

    /// Where to serve /livez, /readyz and /metrics
    #[arg(
        long,
        env = "TCPTRACER_HTTP_LISTEN",
        value_name = "ADDRESS",
        default_value = HTTP_LISTEN
    )]
    pub http_listen: SocketAddr,

    /// Count events by pod as well as by namespace
    #[arg(long, env = "TCPTRACER_METRICS_BY_POD", value_parser = BoolishValueParser::new())]
    pub metrics_by_pod: bool,

    /// Events to keep for subscribers that ask for the past
    #[arg(
        long,
        env = "TCPTRACER_HISTORY",
        value_name = "EVENTS",
        default_value_t = 8192,
        value_parser = clap::value_parser!(u32).range(0..=1_000_000)
    )]
    pub history: u32,

    /// Record the connections of all pods also while nobody subscribes, so that there is a past to ask for
    #[arg(long, env = "TCPTRACER_RECORD", value_parser = BoolishValueParser::new())]
    pub record: bool,

    /// Seconds after which the agent detaches the hooks that no client needs any more
    #[arg(
        long,
        env = "TCPTRACER_DETACH_AFTER",
        value_name = "SECONDS",
        default_value_t = 60,
        value_parser = clap::value_parser!(u32).range(0..=86_400)
    )]
    pub detach_after: u32,

    /// Events to keep for a subscriber that is slow, before it loses some
    #[arg(
        long,
        env = "TCPTRACER_QUEUE",
        value_name = "EVENTS",
        default_value_t = 65_536,
        value_parser = clap::value_parser!(u32).range(512..=1_000_000)
    )]
    pub queue: u32,

    /// Where the agent finds the host.
    #[command(flatten)]
    pub places: Places,

    /// Keep maps with the containers of a selection for other tools, in PIN_DIR/NAME
    #[arg(
        long,
        env = "TCPTRACER_FILTER_SETS",
        value_name = "NAME=[NAMESPACE:]SELECTOR",
        value_delimiter = ';'
    )]
    pub filter_set: Vec<FilterSet>,

    /// Containers that a filter map has room for
    #[arg(
        long,
        env = "TCPTRACER_MAX_CONTAINERS",
        value_name = "N",
        default_value_t = 4096,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000)
    )]
    pub max_containers: u32,

    /// Connections to follow at a time; 240 bytes each are taken at the start
    #[arg(
        long,
        env = "TCPTRACER_MAX_CONNECTIONS",
        value_name = "N",
        default_value_t = 65_536,
        value_parser = clap::value_parser!(u32).range(1..=16_777_216)
    )]
    pub max_connections: u32,

    /// Seconds that streams may take to end after SIGTERM
    #[arg(
        long,
        env = "TCPTRACER_GRACE_PERIOD",
        value_name = "SECONDS",
        default_value_t = 10
    )]
    pub grace_period: u32,

    /// What to log: error, warn, info, debug, trace, or a list of such by module
    #[arg(
        long,
        env = "TCPTRACER_LOG",
        value_name = "FILTER",
        default_value = "info"
    )]
    pub log: String,

    /// How to write the log
    #[arg(
        long,
        env = "TCPTRACER_LOG_FORMAT",
        value_name = "FORMAT",
        value_enum,
        default_value_t = LogFormat::Text
    )]
    pub log_format: LogFormat,
}

/// What the agent does beside tracing.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Say what this node offers: exit code 0 if tracing is complete, 3 if degraded, 1 if impossible
    Check(PreflightArgs),
    /// Ask the agent that runs beside this one whether it is alive or ready; for probes by command
    Probe(HealthArgs),
}

impl Args {
    /// This node's name.
    pub fn node(&self) -> String {
        self.node_name
            .clone()
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| uname().nodename().to_string_lossy().into_owned())
    }

    /// Where pods come from.
    pub fn source(&self) -> Source {
        let service_account = |file: &str| {
            let path = PathBuf::from(SERVICE_ACCOUNT).join(file);
            path.exists().then_some(path)
        };
        match &self.pods {
            Pods::Api => Source::Api,
            Pods::File(path) => Source::File(path.clone()),
            Pods::Kubelet => Source::Kubelet(Kubelet {
                url: self
                    .kubelet_url
                    .clone()
                    .unwrap_or_else(|| format!("https://{}:10250", self.node())),
                token_file: self
                    .kubelet_token_file
                    .clone()
                    .or_else(|| service_account("token")),
                ca_file: self
                    .kubelet_ca_file
                    .clone()
                    .or_else(|| service_account("ca.crt")),
                insecure: self.kubelet_insecure,
            }),
        }
    }

    /// From the command line and the environment. What cannot be used ends the process with code 2.
    pub fn read() -> Self {
        let mut command = Self::command()
            .mut_args(without_empty_variable)
            .mut_subcommands(|command| command.mut_args(without_empty_variable));
        let args = Self::from_arg_matches(&command.get_matches_mut()).unwrap_or_else(|e| e.exit());
        let checks = [
            args.tls().map(drop),
            args.log_filter().map(drop),
            args.check_filter_sets(),
        ];
        if let Some(e) = checks.into_iter().find_map(Result::err) {
            command
                .error(ErrorKind::ValueValidation, format!("{e:#}"))
                .exit();
        }
        args
    }

    /// How gRPC is secured.
    pub fn tls(&self) -> Result<Option<Tls>> {
        let tls = self.tls_cert.clone().zip(self.tls_key.clone());
        if tls.is_none() && !self.insecure && !self.grpc_listen.is_local() {
            bail!(
                "--grpc-listen {}: others can reach this address and would see every connection: \
                 give --tls-cert and --tls-key, or --insecure if the network is trusted",
                self.grpc_listen
            );
        }
        Ok(tls.map(|(cert, key)| Tls {
            cert,
            key,
            client_ca: self.tls_client_ca.clone(),
        }))
    }

    /// Each has a folder of its own.
    fn check_filter_sets(&self) -> Result<()> {
        let mut names = HashSet::new();
        match self.filter_set.iter().find(|set| !names.insert(&set.name)) {
            Some(set) => bail!("--filter-set: there are two of the name {}", set.name),
            None => Ok(()),
        }
    }

    /// What to log.
    pub fn log_filter(&self) -> Result<tracing_subscriber::EnvFilter> {
        self.log
            .parse()
            .with_context(|| format!("--log: {} is no filter", self.log.escape_debug()))
    }
}

/// The option without its variable if that is empty.
fn without_empty_variable(option: Arg) -> Arg {
    let value = option.get_env().and_then(env::var_os);
    match value.is_some_and(|value| value.is_empty()) {
        true => option.env(Resettable::Reset),
        false => option,
    }
}
