//! From the command line to what does the work.

use anyhow::{Context, Result};
use clap::Parser;
use tcptracer_client::dial::Dialer;
use tcptracer_client::error::Error;
use tcptracer_client::request::Filters;
use tcptracer_client::session::Question;
use tcptracer_client::tls::Tls;
use tokio::runtime::Runtime;
use tokio::sync::watch::{self as latest, Receiver};

use crate::args::{AgentArgs, Args, Command};
use crate::cluster;
use crate::complete;
use crate::connections;
use crate::discover::{self, Search};
use crate::exit::Code;
use crate::plan::Plan;
use crate::render::{Output, Printer};
use crate::report::{Report, Subject};
use crate::request::{Selection, filters, span};
use crate::signals;
use crate::status;
use crate::watch::{self, Watching};
use crate::way::{Target, Way};

/// Everything.
pub fn main() -> Result<Code> {
    if let Some(words) = complete::asked() {
        return runtime()?.block_on(complete::candidates(&words));
    }
    let args = Args::parse();
    args.validate()?;
    if let Some(Command::Completion { shell }) = args.command {
        return complete::script(shell);
    }
    runtime()?.block_on(ask(args))
}

fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start threads")
}

async fn ask(args: Args) -> Result<Code> {
    let scope = Scope::of(&args).await?;
    let dialer = scope.dialer;
    let output = || Output::start(&args.output, args.filters.netns.len() == 1);
    // Who asks once asks those of the first plan.
    let plan = scope.plans.borrow().clone();
    match &args.command {
        Some(Command::Connections { .. }) => {
            let report = Report::new(scope.subject);
            connections::run(dialer, scope.filters, &plan, output()?, report).await
        }
        Some(Command::Status) => {
            let report = Report::new(scope.subject);
            status::run(dialer, &plan, Printer::start(&args.output)?, report).await
        }
        Some(Command::Completion { .. }) | None => {
            let span = span(&args.span);
            let report = Report::new(Subject {
                waits: span.follow,
                ..scope.subject
            });
            let watching = Watching {
                question: Question {
                    dialer,
                    filters: scope.filters,
                    span,
                },
                plans: scope.plans,
                single: args.agents.server.is_some(),
                end: signals::end(args.span.duration)?,
            };
            watch::run(watching, output()?, report).await
        }
    }
}

/// Whom to ask for what.
struct Scope {
    dialer: Dialer<Way>,
    plans: Receiver<Plan>,
    filters: Filters,
    /// For people.
    subject: Subject,
}

impl Scope {
    async fn of(args: &Args) -> Result<Self> {
        match &args.agents.server {
            Some(_) => Self::of_server(args),
            None => Self::of_cluster(args).await,
        }
    }

    fn of_server(args: &Args) -> Result<Self> {
        let address = args.agents.server.clone().context("no address")?;
        let namespaces = args.filters.namespace.clone();
        let plan = Plan {
            ask: [(address.to_string(), Target::Server)].into(),
            ..Plan::default()
        };
        let tls = tls(&args.agents)?.map(|tls| match &args.cluster.tls_server_name {
            Some(name) => tls.named(name),
            None => tls,
        });
        Ok(Self {
            dialer: dialer(Way::Server { address, tls }, args),
            plans: latest::channel(plan).1,
            filters: filters(&args.filters, args.pods(), &namespaces),
            subject: Subject::default(),
        })
    }

    async fn of_cluster(args: &Args) -> Result<Self> {
        let reach = cluster::reach(&args.cluster)?;
        // Agents are those of nodes, whatever the namespace; a status is of all unless pods are selected.
        let status = matches!(args.command, Some(Command::Status));
        let namespaces = match &args.filters {
            filters if filters.all_namespaces => Vec::new(),
            filters if !filters.namespace.is_empty() => filters.namespace.clone(),
            _ if status => Vec::new(),
            _ => vec![reach.namespace.clone()],
        };
        let selection = Selection::new(&args.filters, args.pods(), &namespaces);
        let pods = selection.to_string();
        let search = Search {
            client: reach.client.clone(),
            selection,
            agent_namespace: args.agents.agent_namespace.clone(),
            max_nodes: args.agents.max_nodes.into(),
            timeout: args.cluster.request_timeout.0,
        };
        let subject = Subject {
            pods,
            agents: search.agents(),
            max_nodes: search.max_nodes,
            waits: false,
        };
        let way = Way::Cluster {
            client: reach.client,
            port: args.agents.agent_port,
            tls: tls(&args.agents)?,
        };
        let dialer = dialer(way, args);
        let plans = discover::follow(search)
            .await
            .with_context(|| format!("the cluster at {}", reach.address))?;
        Ok(Self {
            dialer,
            plans,
            filters: filters(&args.filters, args.pods(), &namespaces),
            subject,
        })
    }
}

fn dialer(way: Way, args: &Args) -> Dialer<Way> {
    Dialer {
        way,
        timeout: args.cluster.request_timeout.0,
    }
}

/// Without `--tls-ca` there is nobody to trust, so no TLS.
fn tls(args: &AgentArgs) -> Result<Option<Tls>, Error> {
    let Some(ca) = &args.tls_ca else {
        return Ok(None);
    };
    let shown = args.tls_cert.as_deref().zip(args.tls_key.as_deref());
    Tls::read(ca, shown).map(Some)
}
