//! What the agent tells a monitoring system, in the text format of OpenMetrics.
//!
//! The node's task counts events here; the rest is set from its report when somebody asks.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tcptracer_event::{Event, Kind};

use crate::hub::Loss;
use crate::identity::Attribution;
use crate::kube::Pod;
use crate::report::{ProgramRuns, Report};

/// Type and namespace and, if asked for, the pod: there are many.
type EventLabels = Vec<(&'static str, String)>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PlaceLabel {
    place: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HookLabel {
    hook: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MapLabel {
    map: String,
}

type Seconds = Counter<f64, AtomicU64>;

/// All metrics of the agent.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// The labels in use that name a pod; `None` if events are not counted by pod.
    pods_counted: Option<Mutex<HashSet<EventLabels>>>,
    events: Family<EventLabels, Counter>,
    lost: Family<PlaceLabel, Counter>,
    attributions: Family<ResultLabel, Counter>,
    /// Of these, those that were needed.
    results: [OnceLock<Counter>; 5],
    latest: Mutex<Latest>,
    pod_errors: Counter,
    map_errors: Counter,
    refused_connections: Counter,
    map_entries: Family<MapLabel, Gauge>,
    map_capacity: Family<MapLabel, Gauge>,
    subscribers: Gauge,
    containers: Gauge,
    pods: Gauge,
    cgroups: Gauge,
    history: Gauge,
    pods_synced: Gauge,
    idle: Gauge,
    paused: Seconds,
    attach_errors: Counter,
    run_time: Family<HookLabel, Seconds>,
    runs: Family<HookLabel, Counter>,
}

/// Where the latest event was counted, by its kind. To find that by labels takes memory for them, and the next event is
/// nearly always of the same pod.
#[derive(Debug, Default)]
struct Latest {
    namespace: String,
    pod: String,
    counters: [Option<Counter>; 5],
}

impl Latest {
    /// Nothing of this pod was counted yet; `None` is what is no pod's.
    fn of(pod: Option<&Pod>) -> Self {
        let [namespace, name] = namespace_and_name(pod);
        Self {
            namespace: namespace.to_owned(),
            pod: name.to_owned(),
            counters: Default::default(),
        }
    }

    /// Whether events of this pod are counted where those before were.
    fn is_of(&self, pod: Option<&Pod>, by_pod: bool) -> bool {
        let [namespace, name] = namespace_and_name(pod);
        self.namespace == namespace && (!by_pod || self.pod == name)
    }
}

fn namespace_and_name(pod: Option<&Pod>) -> [&str; 2] {
    pod.map_or_else(Default::default, |pod| [&*pod.namespace, &*pod.name])
}

impl Metrics {
    /// All at zero. `by_pod`: count events by pod as well as by namespace.
    pub fn new(by_pod: bool) -> Self {
        let mut registry = Registry::with_prefix("tcptracer");
        registry.register(
            "build",
            "The version of the agent",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        macro_rules! register {
            ($name:literal, $help:literal) => {{
                let metric = Default::default();
                registry.register($name, $help, Clone::clone(&metric));
                metric
            }};
        }
        let run_time: Family<HookLabel, Seconds> = Family::default();
        registry.register_with_unit(
            "bpf_run_time",
            "How long the programs of a hook have run; counted while kernel.bpf_stats_enabled is on",
            Unit::Seconds,
            run_time.clone(),
        );
        let paused = Seconds::default();
        registry.register_with_unit(
            "paused",
            "How long nothing was traced because no client was subscribed",
            Unit::Seconds,
            paused.clone(),
        );
        Self {
            pods_counted: by_pod.then(Mutex::default),
            results: Default::default(),
            latest: Mutex::default(),
            events: register!("events", "Events of this node that the kernel let pass"),
            lost: register!("lost", "Events, connections or containers lost, by place"),
            attributions: register!("attributions", "Events by how their process was attributed"),
            pod_errors: register!("pod_source_errors", "Times the source of pods failed"),
            map_errors: register!(
                "map_errors",
                "Members that could not be put in a filter map"
            ),
            refused_connections: register!(
                "refused_connections",
                "Connections of gRPC clients that were closed because too many were open"
            ),
            map_entries: register!("map_entries", "Entries in use"),
            map_capacity: register!("map_capacity", "Entries there is room for"),
            subscribers: register!("subscribers", "Open streams of events"),
            containers: register!("containers", "Containers of this node that are known"),
            pods: register!("pods", "Pods of this node"),
            cgroups: register!("cgroups", "Cgroups that are known"),
            history: register!("history_events", "Events in the history"),
            pods_synced: register!(
                "pods_synced",
                "1 if the pods are known and their source answers"
            ),
            idle: register!(
                "idle",
                "1 while nothing is traced because no client is subscribed"
            ),
            paused,
            attach_errors: register!(
                "attach_errors",
                "Times the hooks could not be attached when a client needed them"
            ),
            runs: register!(
                "bpf_runs",
                "Runs of the programs of a hook, counted likewise"
            ),
            run_time,
            registry,
        }
    }

    /// Counts an event; another node's as such only.
    pub fn count(&self, event: &Event, who: &Attribution) {
        let (at, result) = match who {
            Attribution::Resolved(..) => (0, "resolved"),
            Attribution::Host => (1, "host"),
            Attribution::Pending(..) => (2, "pending"),
            Attribution::Foreign => (3, "other_node"),
            Attribution::Unknown => (4, "unknown"),
        };
        let counter = || {
            self.attributions
                .get_or_create(&ResultLabel { result })
                .clone()
        };
        self.results[at].get_or_init(counter).inc();
        // Its own agent counts it by what it is.
        if *who == Attribution::Foreign {
            return;
        }
        let pod = who.names().map(|names| &*names.pod);
        let mut latest = locked(&self.latest);
        if !latest.is_of(pod, self.pods_counted.is_some()) {
            *latest = Latest::of(pod);
        }
        latest.counters[event.kind as usize]
            .get_or_insert_with(|| self.counter(event.kind, pod))
            .inc();
    }

    /// Counts the events of one kind and one namespace or pod.
    fn counter(&self, kind: Kind, pod: Option<&Pod>) -> Counter {
        let namespace = pod.map(|p| p.namespace.clone()).unwrap_or_default();
        let mut labels = vec![("type", kind.name().to_owned()), ("namespace", namespace)];
        if let Some(counted) = &self.pods_counted {
            labels.push(("pod", pod.map(|p| p.name.clone()).unwrap_or_default()));
            let mut counted = locked(counted);
            if pod.is_some() && !counted.contains(&labels) {
                counted.insert(labels.clone());
            }
        }
        self.events.get_or_create(&labels).clone()
    }

    /// Drops what was counted for other pods than these, if it is counted by pod.
    pub fn keep_pods<'a>(&self, pods: impl Iterator<Item = &'a Pod>) {
        let Some(counted) = &self.pods_counted else {
            return;
        };
        let known: HashSet<_> = pods
            .map(|p| (p.namespace.as_str(), p.name.as_str()))
            .collect();
        locked(counted).retain(|labels| {
            let value = |name| {
                labels
                    .iter()
                    .find(|(n, _)| *n == name)
                    .map(|(_, v)| v.as_str())
            };
            let is_known = value("namespace")
                .zip(value("pod"))
                .is_some_and(|pod| known.contains(&pod));
            if !is_known {
                self.events.remove(labels);
            }
            is_known
        });
        // It may have what was dropped.
        *locked(&self.latest) = Latest::default();
    }

    /// Counts a loss.
    pub fn count_loss(&self, loss: Loss) {
        // As such labels are spelled.
        let place = loss.source.name().replace('-', "_");
        self.lost
            .get_or_create(&PlaceLabel { place })
            .inc_by(loss.count);
    }

    /// Counts a failure of the source of pods.
    pub fn count_pod_error(&self) {
        self.pod_errors.inc();
    }

    /// Counts failures to change a filter map.
    pub fn count_map_errors(&self, errors: usize) {
        self.map_errors.inc_by(errors as u64);
    }

    /// Counts a failure to attach the hooks.
    pub fn count_attach_error(&self) {
        self.attach_errors.inc();
    }

    /// Counts a connection that was closed because too many were open.
    pub fn count_refused_connection(&self) {
        self.refused_connections.inc();
    }

    /// Everything as text, with what `report` and `programs` say now.
    pub fn text(&self, report: &Report, programs: &[ProgramRuns]) -> String {
        let set = |gauge: &Gauge, value: usize| {
            gauge.set(value as i64);
        };
        set(&self.subscribers, report.subscribers);
        set(&self.containers, report.sizes.containers);
        set(&self.pods, report.pods);
        set(&self.cgroups, report.sizes.cgroups);
        set(&self.history, report.history);
        set(&self.pods_synced, usize::from(report.is_synced()));
        set(&self.idle, usize::from(report.paused_since.is_some()));
        // Counters of f64 keep their bits. The node's task and the kernel count.
        let store = |seconds: &Seconds, value: Duration| {
            let bits = value.as_secs_f64().to_bits();
            seconds.inner().store(bits, Ordering::Relaxed);
        };
        store(&self.paused, report.paused_for);
        for map in &report.maps {
            let label = MapLabel {
                map: map.name.clone(),
            };
            set(&self.map_entries.get_or_create(&label), map.entries);
            set(&self.map_capacity.get_or_create(&label), map.capacity);
        }
        for program in programs {
            let label = HookLabel { hook: program.hook };
            store(&self.run_time.get_or_create(&label), program.run_time);
            let runs = self.runs.get_or_create(&label);
            runs.inner().store(program.runs, Ordering::Relaxed);
        }
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// Nothing that can panic is done while it is locked.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tcptracer_event::Kind;

    use super::*;
    use crate::fixture;
    use crate::hub::Status;
    use crate::identity::Sizes;

    /// The lines of the metric, in order.
    fn lines(metrics: &Metrics, name: &str) -> Vec<String> {
        let report = Report {
            status: Status::default(),
            sequence: 0,
            subscribers: 0,
            paused_since: None,
            paused_for: Duration::from_millis(2500),
            attach_error: None,
            history: 0,
            pods: 0,
            sizes: Sizes::default(),
            lost: Vec::new(),
            maps: Vec::new(),
        };
        let programs = [ProgramRuns {
            hook: "fentry/security_sock_graft",
            run_time: Duration::from_millis(1500),
            runs: 7,
        }];
        let text = metrics.text(&report, &programs);
        let mut lines: Vec<_> = text
            .lines()
            .filter(|line| line.contains(name))
            .map(Into::into)
            .collect();
        lines.sort();
        lines
    }

    #[test]
    fn what_only_grows_is_a_counter() {
        let metrics = Metrics::new(false);
        let expected = [
            "# HELP tcptracer_bpf_run_time_seconds How long the programs of a hook have run; counted while \
             kernel.bpf_stats_enabled is on.",
            "# TYPE tcptracer_bpf_run_time_seconds counter",
            "# UNIT tcptracer_bpf_run_time_seconds seconds",
            "tcptracer_bpf_run_time_seconds_total{hook=\"fentry/security_sock_graft\"} 1.5",
        ];
        assert_eq!(lines(&metrics, "bpf_run_time"), expected);
        let expected = [
            "# HELP tcptracer_bpf_runs Runs of the programs of a hook, counted likewise.",
            "# TYPE tcptracer_bpf_runs counter",
            "tcptracer_bpf_runs_total{hook=\"fentry/security_sock_graft\"} 7",
        ];
        assert_eq!(lines(&metrics, "bpf_runs"), expected);
        let expected = [
            "# HELP tcptracer_paused_seconds How long nothing was traced because no client was subscribed.",
            "# TYPE tcptracer_paused_seconds counter",
            "# UNIT tcptracer_paused_seconds seconds",
            "tcptracer_paused_seconds_total 2.5",
        ];
        assert_eq!(lines(&metrics, "paused"), expected);
        let version = env!("CARGO_PKG_VERSION");
        let info = format!("tcptracer_build_info{{version=\"{version}\"}} 1");
        assert_eq!(lines(&metrics, "tcptracer_build_info"), [info]);
    }

    #[test]
    fn events_of_other_nodes_are_counted_as_such_only() {
        let metrics = Metrics::new(true);
        let connect = fixture::event(Kind::Connect, 1, 0);
        metrics.count(&connect, &Attribution::Foreign);
        metrics.count(&connect, &Attribution::Host);
        let counted = |name: &str| {
            let mut lines = lines(&metrics, name);
            lines.retain(|line| !line.starts_with('#'));
            lines
        };
        assert_eq!(
            counted("tcptracer_attributions"),
            [
                "tcptracer_attributions_total{result=\"host\"} 1",
                "tcptracer_attributions_total{result=\"other_node\"} 1",
            ]
        );
        assert_eq!(
            counted("tcptracer_events"),
            ["tcptracer_events_total{type=\"connect\",namespace=\"\",pod=\"\"} 1"]
        );
    }

    #[test]
    fn pods_that_are_forgotten_take_what_was_counted_with_them() {
        let metrics = Metrics::new(true);
        let connect = fixture::event(Kind::Connect, 1, 0);
        let close = fixture::event(Kind::Close, 1, 0);
        for who in [
            fixture::resolved(1),
            fixture::resolved(2),
            Attribution::Host,
        ] {
            metrics.count(&connect, &who);
            metrics.count(&close, &who);
        }
        metrics.keep_pods([fixture::pod(2)].iter());
        let left = |kind: &str, namespace: &str, pod: &str| {
            format!(
                "tcptracer_events_total{{type=\"{kind}\",namespace=\"{namespace}\",pod=\"{pod}\"}} 1"
            )
        };
        let expected = [
            left("close", "", ""),
            left("close", "shop", "cart-2"),
            left("connect", "", ""),
            left("connect", "shop", "cart-2"),
        ];
        assert_eq!(lines(&metrics, "tcptracer_events_total"), expected);
    }
}
