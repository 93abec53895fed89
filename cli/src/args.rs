//! The command line. What can be refused without asking anybody is refused here.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::PossibleValue;
use clap::{Args as Group, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use ipnet::IpNet;
use jiff::SignedDuration;
use tcptracer_client::address::{Address, InvalidAddress};
use tcptracer_event::Kind;
use tcptracer_proto::LabelSelector;
use tcptracer_proto::v1;

use crate::exit::Usage;
use crate::render::OutputArgs;

const AFTER_HELP: &str = "\
Filters: an event is shown if every flag that is given holds; of the values of one flag, one has to. `--not` hides what
passes it. Values are separated by commas, or the flag is repeated. In a cluster the namespace is the context's unless
-n or -A is given; -A shows everything that the agents see, processes outside of pods included (`--not host` hides them).
A pod that is called like a subcommand comes after `--`.

Exit codes:
  0  everything that was asked for was shown
  1  it could not be done, or no agent was heard
  2  the command line is invalid, or a filter to all agents
  3  it ended, but events were lost, or a node was not heard: no agent that runs, not reachable, or beyond --max-nodes;
     or an agent traced nothing for a part of the time that --since asks for
  130, 143  a second Ctrl-C or SIGTERM ended it at once

Examples:
  kubectl tcptracer                                   the pods of this namespace, live
  kubectl tcptracer web-0 web-1 -t                    two pods, with the time
  kubectl tcptracer -n shop -l app=cart -o wide       with why, how long, how much
  kubectl tcptracer -A --port 5432 --not namespace=kube-system
  kubectl tcptracer --since 5m --type close -o jsonl  what has closed in the last 5 minutes
  kubectl tcptracer --last 20 -f                      the last 20 events, then live
  kubectl tcptracer connections -l app=cart           what is open now
  kubectl tcptracer status                            how the agents fare
  kubectl tcptracer --server 127.0.0.1:50051          one agent, without a cluster";

/// Shows the TCP connections of pods as they open and close.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "kubectl-tcptracer",
    bin_name = "kubectl tcptracer",
    display_name = "kubectl tcptracer",
    version,
    about = "Show the TCP connections of pods as they open and close",
    after_help = AFTER_HELP
)]
pub struct Args {
    /// Something else than watching.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Only pods with these names
    #[arg(value_name = "POD", value_parser = pod)]
    pub pods: Vec<String>,

    /// Which events.
    #[command(flatten)]
    pub filters: FilterArgs,

    /// From when to when.
    #[command(flatten)]
    pub span: SpanArgs,

    /// How they are written.
    #[command(flatten)]
    pub output: OutputArgs,

    /// Whom to ask.
    #[command(flatten)]
    pub agents: AgentArgs,

    /// How to reach the cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// What else there is to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// List the connections that are open now
    Connections {
        /// Only pods with these names
        #[arg(value_name = "POD", value_parser = pod)]
        pods: Vec<String>,
    },
    /// Say how the agents fare: those of all nodes, or of those that hold the selected pods
    Status,
    /// Print the shell's completion script
    Completion {
        /// Which shell
        shell: Shell,
    },
}

impl Args {
    /// The names of pods, wherever they are given.
    pub fn pods(&self) -> &[String] {
        match &self.command {
            Some(Command::Connections { pods }) => pods,
            _ => &self.pods,
        }
    }

    /// Refuses what does not go together. Flags can stand before and behind a subcommand, where clap looks at
    /// each place alone.
    pub fn validate(&self) -> Result<(), Usage> {
        let filters = &self.filters;
        let agents = &self.agents;
        let span = &self.span;
        let spans =
            span.since.is_some() || span.last.is_some() || span.follow || span.duration.is_some();
        let why = if filters.all_namespaces && !filters.namespace.is_empty() {
            "--namespace and --all-namespaces exclude each other"
        } else if filters.ipv4 && filters.ipv6 {
            "--ipv4 and --ipv6 exclude each other"
        } else if filters.not.len() > MAX_NOT {
            "--not may be given 32 times; give several values at once, as in --not port=53,853"
        } else if self.command.is_some() && !self.pods.is_empty() {
            "names of pods stand behind the subcommand"
        } else if self.command.is_some() && spans {
            "--since, --last, --follow and --duration are for watching, not for subcommands"
        } else if matches!(self.command, Some(Command::Status)) && filters.are_of_events() {
            "--pid, --netns, --ipv4, --ipv6, --port, --cidr, --type and --not are of events, which a status has not"
        } else if self.command.is_some() && !filters.types.is_empty() {
            "--type is of events: connections have none"
        } else if agents.tls_cert.is_some() != agents.tls_key.is_some() {
            "--tls-cert and --tls-key need each other"
        } else if agents.tls_cert.is_some() && agents.tls_ca.is_none() {
            "--tls-cert needs --tls-ca"
        } else {
            return self.cluster.validate();
        };
        Err(Usage(why.into()))
    }
}

/// Filters that an agent takes in one list.
const MAX_NOT: usize = 32;

/// Which events.
#[derive(Clone, Debug, Default, Group)]
#[command(next_help_heading = "Filters")]
pub struct FilterArgs {
    /// Only these namespaces [default: the context's]
    #[arg(short, long, global = true, value_name = "NS", value_delimiter = ',', value_parser = name_of)]
    pub namespace: Vec<String>,

    /// All namespaces
    #[arg(short = 'A', long, global = true)]
    pub all_namespaces: bool,

    /// Only pods with these labels, such as 'app=cart,tier in (web,api),!canary'
    #[arg(short = 'l', long, global = true, value_name = "SELECTOR", value_parser = selector)]
    pub selector: Vec<String>,

    /// Only containers with these names
    #[arg(short, long, global = true, value_name = "NAME", value_delimiter = ',', value_parser = name_of)]
    pub container: Vec<String>,

    /// Only these nodes
    #[arg(long, global = true, value_name = "NAME", value_delimiter = ',', value_parser = name_of)]
    pub node: Vec<String>,

    /// Only connections that these processes own or close (ids on the node)
    #[arg(short, long, global = true, value_name = "PID", value_delimiter = ',', value_parser = number)]
    pub pid: Vec<u32>,

    /// Only sockets of these network namespaces (inode numbers)
    #[arg(short = 'N', long, global = true, value_name = "NETNS", value_delimiter = ',', value_parser = number)]
    pub netns: Vec<u32>,

    /// Only IPv4 sockets
    #[arg(short = '4', long, global = true)]
    pub ipv4: bool,

    /// Only IPv6 sockets, those with IPv4 peers included
    #[arg(short = '6', long, global = true)]
    pub ipv6: bool,

    /// Only where a side has one of these ports
    #[arg(long, global = true, value_name = "PORT", value_delimiter = ',', value_parser = port)]
    pub port: Vec<u16>,

    /// Only where a side's address is one of these or in one of these networks
    #[arg(long, global = true, value_name = "CIDR", value_delimiter = ',', value_parser = network)]
    pub cidr: Vec<IpNet>,

    /// Only these types of events [default: connect,accept,close]
    #[arg(
        long = "type",
        global = true,
        value_name = "TYPE",
        value_delimiter = ',',
        value_enum
    )]
    pub types: Vec<EventType>,

    /// Hide what passes this filter: one of namespace, selector, pod, container, node, pid, netns, port, cidr and type
    /// with its values, as in --not port=53,853, or one of ipv4, ipv6 and host (processes outside of pods)
    #[arg(long, global = true, value_name = "FILTER=VALUE")]
    pub not: Vec<Denied>,
}

impl FilterArgs {
    /// Whether something is asked for that pods do not have.
    fn are_of_events(&self) -> bool {
        let Self {
            namespace: _,
            all_namespaces: _,
            selector: _,
            container: _,
            node: _,
            pid,
            netns,
            ipv4,
            ipv6,
            port,
            cidr,
            types,
            not,
        } = self;
        *ipv4
            || *ipv6
            || !(pid.is_empty() && netns.is_empty() && port.is_empty())
            || !(cidr.is_empty() && types.is_empty() && not.is_empty())
    }
}

/// From when to when.
#[derive(Clone, Debug, Default, Group)]
#[command(next_help_heading = "Time")]
pub struct SpanArgs {
    /// Show the events of this long ago and later, as far as the agents remember, and end
    #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with = "last")]
    pub since: Option<Duration>,

    /// Show so many of the latest events, as far as the agents remember, and end
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_LAST)))]
    pub last: Option<u32>,

    /// Go on with what happens, after --since or --last
    #[arg(short, long)]
    pub follow: bool,

    /// End after this long
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub duration: Option<Duration>,
}

/// Events that `--last` may ask for: they are held to be sorted.
const MAX_LAST: u32 = 100_000;

/// Whom to ask.
#[derive(Clone, Debug, Group)]
#[command(next_help_heading = "Agents")]
pub struct AgentArgs {
    /// Ask this agent only, without a cluster: HOST:PORT or unix:PATH
    #[arg(long, global = true, value_name = "ADDRESS", value_parser = address)]
    pub server: Option<Address>,

    /// Use TLS with agents, and trust the certificates in this file (PEM)
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "KUBECTL_TCPTRACER_TLS_CA"
    )]
    pub tls_ca: Option<PathBuf>,

    /// Show agents this certificate (PEM)
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "KUBECTL_TCPTRACER_TLS_CERT"
    )]
    pub tls_cert: Option<PathBuf>,

    /// The key of that certificate (PEM)
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "KUBECTL_TCPTRACER_TLS_KEY"
    )]
    pub tls_key: Option<PathBuf>,

    /// The namespace of the agents [default: found by their labels]
    #[arg(long, global = true, value_name = "NS", value_parser = name_of)]
    pub agent_namespace: Option<String>,

    /// The port of the agents in their pods
    #[arg(long, global = true, value_name = "PORT", default_value_t = 50051, value_parser = clap::value_parser!(u16).range(1..))]
    pub agent_port: u16,

    /// Ask at most so many nodes at a time; each is a tunnel through the API server
    #[arg(long, global = true, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..))]
    pub max_nodes: u16,
}

/// How to reach the cluster: kubectl's flags.
#[derive(Clone, Debug, Default, Group)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterArgs {
    /// The kubeconfig [default: $KUBECONFIG, or ~/.kube/config]
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// The context in it
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,

    /// The cluster in it
    #[arg(long, global = true, value_name = "NAME")]
    pub cluster: Option<String>,

    /// The user in it
    #[arg(long, global = true, value_name = "NAME")]
    pub user: Option<String>,

    /// The API server's address (kubectl's --server)
    #[arg(short = 's', long, global = true, value_name = "URL", value_parser = url)]
    pub api_server: Option<String>,

    /// The bearer token for the API server
    #[arg(long, global = true, value_name = "TOKEN", value_parser = word)]
    pub token: Option<String>,

    /// The user name for the API server, with --password
    #[arg(long, global = true, value_name = "NAME")]
    pub username: Option<String>,

    /// The password for the API server
    #[arg(long, global = true, value_name = "PASSWORD")]
    pub password: Option<String>,

    /// The user to impersonate
    #[arg(long = "as", global = true, value_name = "NAME", value_parser = word)]
    pub as_user: Option<String>,

    /// The groups to impersonate
    #[arg(long, global = true, value_name = "NAME", value_parser = word)]
    pub as_group: Vec<String>,

    /// The uid to impersonate
    #[arg(long, global = true, value_name = "UID", value_parser = word)]
    pub as_uid: Option<String>,

    /// What else to impersonate; given again for more keys, or more values of a key
    #[arg(long, global = true, value_name = "KEY=VALUE", value_parser = extra)]
    pub as_user_extra: Vec<(String, String)>,

    /// Do not look at the API server's certificate
    #[arg(long, global = true)]
    pub insecure_skip_tls_verify: bool,

    /// Whose certificate the API server has
    #[arg(long, global = true, value_name = "FILE")]
    pub certificate_authority: Option<PathBuf>,

    /// The client certificate for the API server
    #[arg(long, global = true, value_name = "FILE")]
    pub client_certificate: Option<PathBuf>,

    /// The key of that certificate
    #[arg(long, global = true, value_name = "FILE")]
    pub client_key: Option<PathBuf>,

    /// The name in the certificate of the API server, or of the agent with --server
    #[arg(long, global = true, value_name = "NAME")]
    pub tls_server_name: Option<String>,

    /// Ask for answers that are not compressed
    #[arg(long, global = true)]
    pub disable_compression: bool,

    /// How long a server may take to answer: seconds, or with a unit; 0 is for ever
    #[arg(long, global = true, value_name = "DURATION", value_parser = timeout, default_value = "10s")]
    pub request_timeout: Timeout,
}

impl ClusterArgs {
    fn validate(&self) -> Result<(), Usage> {
        let more =
            !self.as_group.is_empty() || self.as_uid.is_some() || !self.as_user_extra.is_empty();
        let why = if more && self.as_user.is_none() {
            "--as-group, --as-uid and --as-user-extra need --as"
        } else if self.username.is_some() != self.password.is_some() {
            "--username and --password need each other"
        } else if self.username.is_some() && self.token.is_some() {
            "--username and --token exclude each other"
        } else if self.insecure_skip_tls_verify && self.certificate_authority.is_some() {
            "--insecure-skip-tls-verify and --certificate-authority exclude each other"
        } else {
            return Ok(());
        };
        Err(Usage(why.into()))
    }
}

/// A type of event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventType(pub Kind);

impl ValueEnum for EventType {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self(Kind::Connect),
            Self(Kind::Accept),
            Self(Kind::Close),
            Self(Kind::Failed),
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self.0 {
            Kind::Connect => "This side connected",
            Kind::Accept => "A process accepted",
            Kind::Close => "The connection ended",
            Kind::Failed => "A connect that failed",
            Kind::Existing => return None,
        };
        Some(PossibleValue::new(self.0.name()).help(help))
    }
}

impl From<EventType> for v1::EventType {
    fn from(kind: EventType) -> Self {
        kind.0.into()
    }
}

/// A limit on time; without one it is for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeout(pub Option<Duration>);

/// What `--not` hides.
#[derive(Clone, Debug, PartialEq)]
pub struct Denied(pub v1::Filter);

impl FromStr for Denied {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, values) = match text.split_once('=') {
            Some((name, values)) => (name, Some(values)),
            None => (text, None),
        };
        let mut filter = v1::Filter::default();
        match (name, values) {
            ("ipv4", None) => filter.families = vec![v1::IpFamily::V4.into()],
            ("ipv6", None) => filter.families = vec![v1::IpFamily::V6.into()],
            ("host", None) => filter.scope = v1::Scope::Host.into(),
            ("ipv4" | "ipv6" | "host", Some(_)) => return Err(format!("{name} takes no value")),
            ("selector", Some(text)) => filter.label_selector = selector(text)?,
            ("namespace", Some(v)) => filter.namespaces = list(v, name_of)?,
            ("pod", Some(v)) => filter.pods = list(v, name_of)?,
            ("container", Some(v)) => filter.containers = list(v, name_of)?,
            ("node", Some(v)) => filter.nodes = list(v, name_of)?,
            ("pid", Some(v)) => filter.pids = list(v, number)?,
            ("netns", Some(v)) => filter.netns = list(v, number)?,
            ("port", Some(v)) => filter.ports = list(v, |text| port(text).map(u32::from))?,
            ("cidr", Some(v)) => filter.cidrs = list(v, |text| Ok(network(text)?.to_string()))?,
            ("type", Some(v)) => {
                filter.types = list(v, |text| {
                    let kind = EventType::from_str(text, false).map_err(|_| {
                        format!("`{text}` is none of connect, accept, close and failed")
                    })?;
                    Ok(v1::EventType::from(kind).into())
                })?;
            }
            (
                "namespace" | "selector" | "pod" | "container" | "node" | "pid" | "netns" | "port"
                | "cidr" | "type",
                None,
            ) => return Err(format!("{name} takes a value, as in {name}=VALUE")),
            _ => {
                return Err(
                    "expected FILTER=VALUE with one of namespace, selector, pod, container, node, pid, netns, \
                     port, cidr and type, or one of ipv4, ipv6 and host"
                        .into(),
                );
            }
        }
        Ok(Self(filter))
    }
}

fn list<T>(values: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    values.split(',').map(parse).collect()
}

/// Of an agent. kubectl has a flag of this name for the API server's.
fn address(text: &str) -> Result<Address, String> {
    text.parse().map_err(|e| match e {
        InvalidAddress::Url => format!("{e}; the API server is for --api-server"),
        e => e.to_string(),
    })
}

/// The name of something in the cluster.
fn name_of(text: &str) -> Result<String, String> {
    let usual = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    match text {
        "" => Err("a name is empty".into()),
        text if text.chars().all(usual) => Ok(text.into()),
        text => Err(format!("`{text}` is not a name")),
    }
}

/// The name of a pod, also as `-o name` writes it.
fn pod(text: &str) -> Result<String, String> {
    name_of(text.strip_prefix("pod/").unwrap_or(text))
}

fn number(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("`{text}` is not a number from 1")),
    }
}

fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("`{text}` is not a number from 1 to {}", u16::MAX)),
    }
}

fn selector(text: &str) -> Result<String, String> {
    match text.parse::<LabelSelector>() {
        Ok(_) if text.trim().is_empty() => Err("it is empty".into()),
        Ok(_) => Ok(text.trim().into()),
        Err(e) => Err(e.to_string()),
    }
}

/// A network or an address.
fn network(text: &str) -> Result<IpNet, String> {
    let address = || text.parse().map(|ip: std::net::IpAddr| ip.into());
    text.parse()
        .or_else(|_| address())
        .map_err(|_| "neither a network, such as 10.0.0.0/8, nor an address".into())
}

/// `90`, `90s` or `1m30s`; more than nothing.
fn duration(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().map(Duration::from_secs);
    let with_unit = || {
        let duration: SignedDuration = text.parse().ok()?;
        Duration::try_from(duration).ok()
    };
    seconds
        .or_else(with_unit)
        .filter(|d| !d.is_zero() && *d <= MAX_DURATION)
        .ok_or_else(|| "expected a duration, such as 30s, 5m or 1h30m".into())
}

/// A year; what is longer overflows clocks.
const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 3600);

/// The address of the API server.
fn url(text: &str) -> Result<String, String> {
    let rest = ["http://", "https://"]
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme));
    match rest {
        Some(rest) if !rest.is_empty() => Ok(text.into()),
        _ => Err("expected a URL, such as https://HOST:PORT".into()),
    }
}

/// What goes into a header of a request. An empty one would say nothing: nobody would be impersonated.
fn word(text: &str) -> Result<String, String> {
    match text {
        "" => Err("it is empty".into()),
        text if text.chars().any(char::is_control) => Err("it has control characters".into()),
        text => Ok(text.into()),
    }
}

fn extra(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err("expected KEY=VALUE".into()),
    }
}

fn timeout(text: &str) -> Result<Timeout, String> {
    match text {
        "0" | "0s" => Ok(Timeout(None)),
        text => duration(text).map(|d| Timeout(Some(d))),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::render::Format;

    fn parse(line: &str) -> Result<Args, String> {
        let words = ["kubectl-tcptracer"]
            .into_iter()
            .chain(line.split(' ').filter(|w| !w.is_empty()));
        let args = Args::try_parse_from(words).map_err(|e| e.to_string())?;
        args.validate().map_err(|e| e.to_string())?;
        Ok(args)
    }

    #[test]
    fn the_definitions_are_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn values_are_separated_by_commas_or_repeated() {
        let args = parse("web-0 pod/web-1 -n a,b -n c --port 80,443 --port 22 --type close,failed")
            .expect("valid");
        assert_eq!(args.pods(), ["web-0", "web-1"]);
        assert_eq!(args.filters.namespace, ["a", "b", "c"]);
        assert_eq!(args.filters.port, [80, 443, 22]);
        assert_eq!(
            args.filters.types,
            [EventType(Kind::Close), EventType(Kind::Failed)]
        );
    }

    #[test]
    fn flags_stand_on_both_sides_of_a_subcommand() {
        for line in [
            "-n a -o json connections web-0",
            "connections web-0 -n a -o json",
        ] {
            let args = parse(line).expect("valid");
            assert_eq!(args.pods(), ["web-0"], "{line}");
            assert_eq!(args.filters.namespace, ["a"], "{line}");
            assert!(matches!(args.output.output, Format::Json), "{line}");
        }
        assert_eq!(parse("-- status").expect("valid").pods(), ["status"]);
    }

    #[test]
    fn durations() {
        for (text, seconds) in [("90", 90), ("90s", 90), ("5m", 300), ("1h30m", 5400)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "0", "0s", "-5m", "5 parsecs", "99999999999999", "inf"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert_eq!(timeout("0"), Ok(Timeout(None)));
        assert_eq!(timeout("3"), Ok(Timeout(Some(Duration::from_secs(3)))));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (line, why) in [
            ("-l =x", "expected the key of a label at character 1"),
            ("--cidr 10.0.0.0/33", "neither a network"),
            ("--cidr fe80::%eth0", "neither a network"),
            ("--port 0", "`0` is not a number from 1 to 65535"),
            ("--port 65536", "`65536` is not a number from 1 to 65535"),
            ("--port http", "`http` is not a number from 1 to 65535"),
            ("-p 0", "`0` is not a number from 1"),
            ("-N x", "`x` is not a number from 1"),
            ("deploy/web", "`deploy/web` is not a name"),
            ("pod/", "a name is empty"),
            ("connections pod/web/0", "`web/0` is not a name"),
            ("-n a,,b", "a name is empty"),
            ("-n a/../b", "`a/../b` is not a name"),
            ("-c=", "a name is empty"),
            ("--node a,", "a name is empty"),
            ("--agent-namespace=a?", "`a?` is not a name"),
            ("-s east:6443", "expected a URL"),
            ("-s https://", "expected a URL"),
            ("--token=", "it is empty"),
            ("--token=a\nb", "it has control characters"),
            ("--as=", "it is empty"),
            ("--type open", "invalid value 'open'"),
            ("-A -n a", "exclude each other"),
            ("-A connections -n a", "exclude each other"),
            ("-4 -6", "exclude each other"),
            ("--last 0", "0 is not in 1..=100000"),
            ("--last 5 --since 5m", "cannot be used with"),
            ("--since 5m connections", "for watching"),
            ("-f status", "for watching"),
            ("status --port 80", "which a status has not"),
            ("-6 status", "which a status has not"),
            ("status --not node=a", "which a status has not"),
            ("connections --type close", "connections have none"),
            ("--not port", "port takes a value"),
            ("--not port=", "not a number"),
            (
                "--not port=70000",
                "`70000` is not a number from 1 to 65535",
            ),
            ("--not host=a", "host takes no value"),
            ("--not colour=red", "expected FILTER=VALUE"),
            ("--not selector=a=b;", "expected `,` at character 4"),
            ("--not pod=a,,b", "a name is empty"),
            (
                "--not type=open",
                "`open` is none of connect, accept, close and failed",
            ),
            ("--tls-ca a --tls-cert b", "need each other"),
            ("--tls-cert b --tls-key c", "needs --tls-ca"),
            ("--as-group g", "need --as"),
            ("--as-user-extra k=v", "need --as"),
            ("--as a --as-user-extra k", "expected KEY=VALUE"),
            ("--as a --as-user-extra =v", "expected KEY=VALUE"),
            ("--username u", "need each other"),
            ("--password p", "need each other"),
            ("--token t --username u --password p", "exclude each other"),
            (
                "--insecure-skip-tls-verify --certificate-authority ca",
                "exclude each other",
            ),
            ("--server h", "expected HOST:PORT"),
            ("--server https://h:1", "the API server is for --api-server"),
            ("-o table=x", "unknown format"),
            ("--duration 0", "expected a duration"),
            ("--max-nodes 0", "0 is not in"),
        ] {
            let error = parse(line).expect_err(line);
            assert!(error.contains(why), "{line}: {error}");
        }
    }

    #[test]
    fn not_is_a_filter_of_its_own() {
        let args = parse(
            "--not port=53,853 --not selector=app=a,tier --not ipv6 --not host --not type=close",
        )
        .expect("valid");
        let denied: Vec<_> = args.filters.not.into_iter().map(|d| d.0).collect();
        let none = v1::Filter::default;
        assert_eq!(
            denied,
            [
                v1::Filter {
                    ports: vec![53, 853],
                    ..none()
                },
                v1::Filter {
                    label_selector: "app=a,tier".into(),
                    ..none()
                },
                v1::Filter {
                    families: vec![v1::IpFamily::V6.into()],
                    ..none()
                },
                v1::Filter {
                    scope: v1::Scope::Host.into(),
                    ..none()
                },
                v1::Filter {
                    types: vec![v1::EventType::Close.into()],
                    ..none()
                },
            ]
        );
    }
}
