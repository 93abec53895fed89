//! From options to running tasks, and to their end.

use std::future::Future;
use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use rustix::system::uname;
use tcptracer::bpf::{self, Consumer, Demand, Filter, NoRoom, PinDir, Plan, Tracer};
use tokio::net::TcpListener;
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::args::{Args, LogFormat};
use crate::cgroup::{self, Hierarchy};
use crate::filter::{Matcher, Scope, Whose};
use crate::hub::Hub;
use crate::identity::Index;
use crate::metrics::Metrics;
use crate::node::{self, Containers, Handle, Inputs, Node, Pair, PinnedFilterSet};
use crate::preflight::NO_OLDER_SOCKETS;
use crate::server::{self, About, Door, Listener, Service};
use crate::{http, kube};

/// Messages of the tracer that may wait: batches of up to 512 events.
const TRACER_QUEUE: usize = 256;

/// Questions and updates that may wait; those who have more wait themselves.
const QUEUE: usize = 64;

/// Runs the agent until a signal ends it or a task fails.
pub fn run(args: &Args) -> Result<()> {
    start_log(args)?;
    // The only provider; whoever finds one installed already finds the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(Box::pin(serve(args)))
}

fn start_log(args: &Args) -> Result<()> {
    let log = tracing_subscriber::fmt()
        .with_env_filter(args.log_filter()?)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

async fn serve(args: &Args) -> Result<()> {
    let signalled = signals()?;
    // What can be wrong with the options is, before anything is loaded.
    let listener = Listener::bind(&args.grpc_listen, args.tls()?).await?;
    let http_listener = TcpListener::bind(args.http_listen)
        .await
        .with_context(|| format!("--http-listen: cannot listen on {}", args.http_listen))?;

    let metrics = Arc::new(Metrics::new(args.metrics_by_pod));
    let wanted = Arc::new(Notify::new());
    let (tracer, tracer_messages, node) = start_node(args, &metrics, &wanted)?;
    let about = Arc::new(about(args, &tracer));
    let (commands, asked) = mpsc::channel(QUEUE);
    let handle = Handle::new(
        commands,
        tracer.connections().try_clone()?,
        tracer.programs(),
    );
    let (updates, pods) = mpsc::channel(QUEUE);
    let stop = CancellationToken::new();

    info!(
        "tracing on {}; gRPC on {}, HTTP on {}",
        about.node,
        listener.address(),
        http_listener.local_addr()?
    );
    let max_streams = args.max_streams as usize;
    let service = Service::new(Arc::clone(&about), handle.clone(), max_streams);
    let door = Door::new(max_streams, Arc::clone(&metrics));
    let mut tasks = Tasks::default();
    tasks.start(node.run(Inputs {
        tracer: tracer_messages,
        pods,
        commands: asked,
        stop: stop.clone(),
    }));
    tasks.start(server::serve(service, listener, door, stop.clone()));
    tasks.start(http::serve(http_listener, handle, metrics, stop.clone()));
    let source = kube::run(args.source(), about.node.clone(), wanted, updates);
    tasks.start(until(stop.clone(), source));

    let failed = tokio::select! {
        failed = tasks.first() => failed,
        () = signalled => Ok(()),
    };
    info!("ending");
    stop.cancel();
    // Detaching takes the kernel some milliseconds; the node's task hands out what is left meanwhile.
    let stopped = tokio::task::spawn_blocking(|| tracer.stop());
    let grace = Duration::from_secs(args.grace_period.into());
    let ended = tokio::time::timeout(grace, tasks.rest()).await;
    stopped.await.context("the tracer's thread has panicked")?;
    failed?;
    match ended {
        Ok(result) => result,
        // Clients that do not read their streams do not keep us.
        Err(_) => {
            info!("some streams did not end within {grace:?}");
            Ok(())
        }
    }
}

/// Loads and attaches, and finds out what is there.
fn start_node(
    args: &Args,
    metrics: &Arc<Metrics>,
    wanted: &Arc<Notify>,
) -> Result<(Tracer, mpsc::Receiver<bpf::Message>, Node)> {
    let hierarchy = Hierarchy::detect(&args.places.cgroupfs)?;
    let sets: Vec<_> = args
        .filter_set
        .iter()
        .map(|set| set.name.as_str())
        .collect();
    let pins = PinDir::open(&args.places.pin_dir, &sets)?;
    let maps = Pair::open(&pins, None, args.max_containers)?;
    let sets = args
        .filter_set
        .iter()
        .map(|set| PinnedFilterSet::open(set.clone(), &pins, args.max_containers))
        .collect::<Result<_>>()?;
    let (sender, messages) = mpsc::channel(TRACER_QUEUE);
    let consumer: Consumer = Box::new(move |message| match sender.try_send(message) {
        Err(TrySendError::Full(_)) => Err(NoRoom),
        // Nobody is left to miss it.
        Ok(()) | Err(TrySendError::Closed(_)) => Ok(()),
    });
    let number = hierarchy.number()?;
    // What is recorded has to be seen, whoever asks.
    let attached = match args.record {
        true => Demand::Connections,
        false => Demand::Nothing,
    };
    let config = bpf::Config {
        filter: Filter {
            cgroup_map: Some(maps.cgroups().path().into()),
            mntns_map: Some(maps.mounts().path().into()),
            either_map: true,
            owns_maps: true,
            ..Filter::default()
        },
        failed: true,
        on_demand: Some(attached),
        cgroups: Some(number),
        max_connections: args.max_connections,
        ..bpf::Config::default()
    };
    let tracer = Tracer::start_with(config, consumer)?;
    let (flush, attach) = (tracer.control(), tracer.control());
    let seeder = tracer.seeder();
    // After the tracer, which tells of what comes later.
    let mut index = Index::new(hierarchy.is_whole());
    let mut containers = Containers::new(hierarchy, args.places.proc.clone());
    containers.scan(&mut index, Instant::now())?;
    let generation = tracer.generation();
    let decided = generation.last_unreported(index.newest_cgroup())?;
    // The cgroups of a v1 hierarchy have ids of its own, by which the programs do not know a process.
    let decides = number == 0;
    let node = Node::new(node::Parts {
        index,
        containers,
        sets,
        maps,
        pins,
        hub: Hub::new(args.history as usize, args.queue as usize),
        metrics: Arc::clone(metrics),
        labels: args.pod_labels.clone(),
        shortcomings: shortcomings(tracer.plan(), &args.places.proc),
        wanted: Arc::clone(wanted),
        flush: Box::new(move || flush.flush()),
        attach: Box::new(move |demand| attach.attach(demand)),
        attached,
        keep_attached: Duration::from_secs(args.detach_after.into()),
        programs: Box::new(generation),
        decided: decides.then_some(decided),
        seed: Arc::new(move || seeder.seed()),
        record: args.record.then(all_pods),
    });
    Ok((tracer, messages, node))
}

/// What goes unseen on this node.
fn shortcomings(plan: &Plan, proc: &Path) -> Vec<String> {
    let mut all: Vec<String> = plan
        .shortcomings()
        .iter()
        .map(ToString::to_string)
        .collect();
    if !cgroup::shares_pids_with_host(proc) {
        all.push(NO_OLDER_SOCKETS.into());
    }
    all
}

fn all_pods() -> Matcher {
    let whose = Whose {
        scope: Some(Scope::Pods),
        ..Whose::default()
    };
    Matcher::new(
        vec![crate::filter::Filter {
            whose,
            ..Default::default()
        }],
        Vec::new(),
    )
}

fn about(args: &Args, tracer: &Tracer) -> About {
    let since_1970 = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    About {
        node: args.node(),
        // Later runs have larger ones, as long as nobody sets the clock back.
        epoch: since_1970.as_nanos() as u64,
        started: Timestamp::now(),
        kernel: uname().release().to_string_lossy().into_owned(),
        refused_hooks: tracer.plan().refused().collect(),
        labels: args.pod_labels.clone(),
        pod_source: args.source().name(),
    }
}

/// The tasks of the process.
#[derive(Default)]
struct Tasks(JoinSet<Result<()>>);

impl Tasks {
    fn start(&mut self, task: impl Future<Output = Result<()>> + Send + 'static) {
        self.0.spawn(task);
    }

    /// The first to end, which none should.
    async fn first(&mut self) -> Result<()> {
        match self.0.join_next().await {
            Some(ended) => {
                ended.context("a task has panicked")??;
                bail!("a task has ended too soon")
            }
            None => Ok(()),
        }
    }

    /// The rest, which have been told to end.
    async fn rest(&mut self) -> Result<()> {
        while let Some(ended) = self.0.join_next().await {
            ended.context("a task has panicked")??;
        }
        Ok(())
    }
}

/// A task that has nothing to hand over at its end.
async fn until(stop: CancellationToken, task: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        ended = task => ended,
    }
}

/// Ends when a signal asks us to end. The second one ends the process at once.
fn signals() -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let (asked, ask) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let mut asked = Some(asked);
        loop {
            let signal = tokio::select! {
                _ = terminate.recv() => 15,
                _ = interrupt.recv() => 2,
            };
            match asked.take() {
                Some(first) => {
                    let _ = first.send(());
                }
                None => std::process::exit(128 + signal),
            }
        }
    });
    Ok(async {
        let _ = ask.await;
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pending() -> Result<()> {
        std::future::pending().await
    }

    #[track_caller]
    fn said(ended: Result<()>) -> String {
        ended.expect_err("it has failed").to_string()
    }

    #[tokio::test]
    async fn the_first_task_to_end_says_why() {
        let mut tasks = Tasks::default();
        tasks.start(pending());
        tasks.start(async { bail!("no room") });
        assert_eq!(said(tasks.first().await), "no room");

        let mut tasks = Tasks::default();
        tasks.start(pending());
        tasks.start(async { Ok(()) });
        assert_eq!(said(tasks.first().await), "a task has ended too soon");

        let mut tasks = Tasks::default();
        tasks.start(async { panic!("a bug") });
        assert_eq!(said(tasks.first().await), "a task has panicked");
    }

    #[tokio::test]
    async fn tasks_that_were_told_to_end_may() {
        let stop = CancellationToken::new();
        let mut tasks = Tasks::default();
        tasks.start(until(stop.clone(), pending()));
        tasks.start(async { Ok(()) });
        stop.cancel();
        assert!(tasks.rest().await.is_ok());
    }
}
