//! What the agent tells a monitoring system, in the text format of OpenMetrics.
//!
//! The node's task counts events here; the rest is set from its report when somebody asks.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::event::{Event, Kind};
use crate::hub::{Loss, LossSource};
use crate::identity::Attribution;
use crate::node::{ProgramRuns, Report};

/// Type and namespace and, if asked for, the pod: there are many.
type EventLabels = Vec<(&'static str, String)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PlaceLabel {
    place: &'static str,
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

type Seconds = Gauge<f64, AtomicU64>;

/// All metrics of the agent.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    by_pod: bool,
    events: Family<EventLabels, Counter>,
    lost: Family<PlaceLabel, Counter>,
    attributions: Family<ResultLabel, Counter>,
    pod_errors: Counter,
    map_errors: Counter,
    map_entries: Family<MapLabel, Gauge>,
    map_capacity: Family<MapLabel, Gauge>,
    subscribers: Gauge,
    containers: Gauge,
    pods: Gauge,
    cgroups: Gauge,
    history: Gauge,
    pods_synced: Gauge,
    run_time: Family<HookLabel, Seconds>,
    runs: Family<HookLabel, Gauge>,
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
        Self {
            by_pod,
            events: register!("events", "Events that the kernel let pass"),
            lost: register!("lost", "Events, connections or containers lost, by place"),
            attributions: register!("attributions", "Events by how their process was attributed"),
            pod_errors: register!("pod_source_errors", "Times the source of pods failed"),
            map_errors: register!(
                "map_errors",
                "Members that could not be put in a filter map"
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
            runs: register!(
                "bpf_runs",
                "Runs of the programs of a hook, counted likewise"
            ),
            run_time,
            registry,
        }
    }

    /// Counts an event.
    pub fn count(&self, event: &Event, who: &Attribution) {
        let kind = match event.kind {
            Kind::Connect => "connect",
            Kind::Accept => "accept",
            Kind::Close => "close",
            Kind::Failed => "failed",
            Kind::Existing => "existing",
        };
        let pod = who.names().map(|names| &names.pod);
        let namespace = pod.map(|p| p.namespace.clone()).unwrap_or_default();
        let mut labels = vec![("type", kind.to_owned()), ("namespace", namespace)];
        if self.by_pod {
            labels.push(("pod", pod.map(|p| p.name.clone()).unwrap_or_default()));
        }
        self.events.get_or_create(&labels).inc();
        let result = match who {
            Attribution::Resolved(..) => "resolved",
            Attribution::Host => "host",
            Attribution::Pending(..) => "pending",
            Attribution::Foreign => "other_node",
            Attribution::Unknown => "unknown",
        };
        self.attributions
            .get_or_create(&ResultLabel { result })
            .inc();
    }

    /// Counts a loss.
    pub fn count_loss(&self, loss: Loss) {
        let place = match loss.source {
            LossSource::Ring => "ring",
            LossSource::Connections => "connections",
            LossSource::Untracked => "untracked",
            LossSource::Agent => "agent",
            LossSource::Subscriber => "subscriber",
            LossSource::History => "history",
            LossSource::FilterMap => "filter_map",
        };
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
        for map in &report.maps {
            let label = MapLabel {
                map: map.name.clone(),
            };
            set(&self.map_entries.get_or_create(&label), map.entries);
            set(&self.map_capacity.get_or_create(&label), map.capacity);
        }
        for program in programs {
            let label = HookLabel { hook: program.hook };
            let seconds = program.run_time.as_secs_f64();
            self.run_time.get_or_create(&label).set(seconds);
            set(&self.runs.get_or_create(&label), program.runs as usize);
        }
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
