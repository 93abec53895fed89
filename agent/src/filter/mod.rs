/*!
Which events a subscription wants, compiled once.

A [`Filter`] has two halves. [`Whose`] looks at the container only, so its answer is kept per container and
decides what the kernel has to let pass; [`What`] looks at the event. Everything here is a pure function.
*/

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;

pub use tcptracer_proto::LabelSelector;

use crate::event::{Event, Kind};
use crate::identity::{Attribution, Names};
use crate::kube::Workload;

/// At most so many filters may be allowed, and as many denied: one bit each in [`Verdicts`].
pub const MAX_FILTERS: usize = 32;

/// What may be seen of the node's processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Containers in pods.
    Pods,
    /// Everything else.
    Host,
}

/// Conditions on the container; all that are given have to hold.
#[derive(Clone, Debug, Default)]
pub struct Whose {
    /// Pods or the host.
    pub scope: Option<Scope>,
    /// Namespaces of pods.
    pub namespaces: HashSet<String>,
    /// Names of pods.
    pub pods: HashSet<String>,
    /// Labels of pods.
    pub labels: Option<LabelSelector>,
    /// Names of containers.
    pub containers: HashSet<String>,
    /// What made the pods.
    pub workloads: Vec<Workload>,
    /// This node is not among those asked for.
    pub elsewhere: bool,
}

impl Whose {
    /// Whether only named containers can pass.
    fn needs_names(&self) -> bool {
        !self.namespaces.is_empty()
            || !self.pods.is_empty()
            || self.labels.is_some()
            || !self.containers.is_empty()
            || !self.workloads.is_empty()
    }

    /// Whether processes pass that are in no container, or in one that is not known.
    fn passes_host(&self) -> bool {
        !self.elsewhere && self.scope != Some(Scope::Pods) && !self.needs_names()
    }

    /// Whether the container passes.
    pub fn passes(&self, who: &Attribution) -> bool {
        if self.elsewhere {
            return false;
        }
        match who {
            Attribution::Resolved(names, _) => self.passes_names(names),
            Attribution::Pending(..) => self.scope != Some(Scope::Host) && !self.needs_names(),
            Attribution::Host | Attribution::Unknown => self.passes_host(),
            Attribution::Foreign => false,
        }
    }

    fn passes_names(&self, names: &Names) -> bool {
        let pod = &names.pod;
        let one_of = |set: &HashSet<String>, name: &str| set.is_empty() || set.contains(name);
        let container = || match names.container {
            Some(at) => one_of(&self.containers, &pod.containers[at].name),
            None => self.containers.is_empty(),
        };
        self.scope != Some(Scope::Host)
            && one_of(&self.namespaces, &pod.namespace)
            && one_of(&self.pods, &pod.name)
            && self.labels.as_ref().is_none_or(|l| l.selects(&pod.labels))
            && container()
            && (self.workloads.is_empty()
                || pod
                    .workload
                    .as_ref()
                    .is_some_and(|w| self.workloads.contains(w)))
    }
}

/// Conditions on the event; all that are given have to hold.
#[derive(Clone, Debug)]
pub struct What {
    /// Of the owner or the closer.
    pub pids: HashSet<u32>,
    /// Of the socket.
    pub netns: HashSet<u32>,
    /// IPv4 sockets pass.
    pub v4: bool,
    /// IPv6 sockets pass.
    pub v6: bool,
    /// Of either side.
    pub ports: HashSet<u16>,
    /// Of either side.
    pub networks: Vec<IpNet>,
    /// Kinds of events.
    pub kinds: Vec<Kind>,
}

/// The kinds that pass where none are asked for: those of established connections.
const ESTABLISHED: [Kind; 3] = [Kind::Connect, Kind::Accept, Kind::Close];

impl Default for What {
    fn default() -> Self {
        Self {
            pids: HashSet::new(),
            netns: HashSet::new(),
            v4: true,
            v6: true,
            ports: HashSet::new(),
            networks: Vec::new(),
            kinds: Vec::new(),
        }
    }
}

impl What {
    /// Whether the connection passes, whatever has happened to it.
    fn passes_connection(&self, event: &Event) -> bool {
        let v4 = event.local.is_ipv4();
        let port = || {
            self.ports.contains(&event.local.port()) || self.ports.contains(&event.remote.port())
        };
        let network = || {
            let within = |ip: IpAddr| self.networks.iter().any(|n| n.contains(&ip));
            within(event.local.ip().to_canonical()) || within(event.remote.ip().to_canonical())
        };
        let pid = || {
            self.pids.contains(&event.owner.pid)
                || event.closer.is_some_and(|c| self.pids.contains(&c.pid))
        };
        (if v4 { self.v4 } else { self.v6 })
            && (self.pids.is_empty() || pid())
            && (self.netns.is_empty() || self.netns.contains(&event.netns))
            && (self.ports.is_empty() || port())
            && (self.networks.is_empty() || network())
    }
}

/// One entry of a list.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Conditions on the container.
    pub whose: Whose,
    /// Conditions on the event.
    pub what: What,
}

impl Filter {
    /// Whether every event of the containers that pass does.
    fn ignores_events(&self) -> bool {
        let what = &self.what;
        what.pids.is_empty()
            && what.netns.is_empty()
            && what.v4
            && what.v6
            && what.ports.is_empty()
            && what.networks.is_empty()
            && what.kinds.is_empty()
    }
}

/// Which filters of a [`Matcher`] a container passes, a bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdicts {
    allow: u32,
    deny: u32,
}

impl Verdicts {
    /// No event can pass.
    pub fn is_nothing(self) -> bool {
        self.allow == 0
    }
}

/// Passes what one of `allow` passes and none of `deny`. At most [`MAX_FILTERS`] of each.
#[derive(Clone, Debug)]
pub struct Matcher {
    allow: Vec<Filter>,
    deny: Vec<Filter>,
}

impl Matcher {
    /// Without filters to allow, everything is. More than [`MAX_FILTERS`] are ignored: refuse them first.
    pub fn new(mut allow: Vec<Filter>, mut deny: Vec<Filter>) -> Self {
        if allow.is_empty() {
            allow.push(Filter::default());
        }
        allow.truncate(MAX_FILTERS);
        deny.truncate(MAX_FILTERS);
        Self { allow, deny }
    }

    /// The part of the answer that depends on whose the process is only.
    pub fn judge(&self, who: &Attribution) -> Verdicts {
        let bits = |filters: &[Filter]| {
            let pass = filters.iter().map(|f| f.whose.passes(who));
            pass.rev().fold(0, |bits, pass| bits << 1 | u32::from(pass))
        };
        let deny = bits(&self.deny);
        let denied = selected(&self.deny, deny).any(Filter::ignores_events);
        Verdicts {
            allow: if denied { 0 } else { bits(&self.allow) },
            deny,
        }
    }

    /// Whether the event passes, given what [`Self::judge`] said of its owner.
    pub fn passes(&self, verdicts: Verdicts, event: &Event) -> bool {
        let kind = |what: &What| match what.kinds.is_empty() {
            true => ESTABLISHED.contains(&event.kind),
            false => what.kinds.contains(&event.kind),
        };
        // Of what is denied without a kind, every kind is.
        let denied = |what: &What| what.kinds.is_empty() || what.kinds.contains(&event.kind);
        selected(&self.allow, verdicts.allow)
            .any(|f| kind(&f.what) && f.what.passes_connection(event))
            && !selected(&self.deny, verdicts.deny)
                .any(|f| denied(&f.what) && f.what.passes_connection(event))
    }

    /// Whether the connection passes, whatever has happened to it. What is denied for some kinds only
    /// is not denied.
    pub fn passes_connection(&self, verdicts: Verdicts, event: &Event) -> bool {
        selected(&self.allow, verdicts.allow).any(|f| f.what.passes_connection(event))
            && !selected(&self.deny, verdicts.deny)
                .any(|f| f.what.kinds.is_empty() && f.what.passes_connection(event))
    }

    /// Whether processes in no container may pass: then the kernel has to let everything pass.
    pub fn wants_host(&self) -> bool {
        !self.judge(&Attribution::Host).is_nothing()
    }
}

fn selected(filters: &[Filter], bits: u32) -> impl Iterator<Item = &Filter> {
    filters
        .iter()
        .enumerate()
        .filter(move |(at, _)| bits >> at & 1 == 1)
        .map(|(_, filter)| filter)
}
