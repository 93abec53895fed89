/*!
Which events a subscription wants, compiled once.

A [`Filter`] has two halves. [`Whose`] looks at the container only, so its answer is kept per container and
decides what the kernel has to let pass; [`What`] looks at the event. Everything here is a pure function.
*/

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;

pub use tcptracer_proto::LabelSelector;

use tcptracer_event::{Event, Kind};

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
        self.answer(who, false)
    }

    /// Whether it passes or, as long as it is not known which container of its pod it is, may.
    pub fn may_pass(&self, who: &Attribution) -> bool {
        self.answer(who, true)
    }

    fn answer(&self, who: &Attribution, some_container: bool) -> bool {
        if self.elsewhere {
            return false;
        }
        match who {
            Attribution::Resolved(names, _) => self.passes_names(names, some_container),
            Attribution::Pending(..) => self.scope != Some(Scope::Host) && !self.needs_names(),
            Attribution::Host | Attribution::Unknown => self.passes_host(),
            Attribution::Foreign => false,
        }
    }

    fn passes_names(&self, names: &Names, some_container: bool) -> bool {
        let pod = &names.pod;
        let one_of = |set: &HashSet<String>, name: &str| set.is_empty() || set.contains(name);
        let container = || match names.container {
            Some(at) => one_of(&self.containers, &pod.containers[at].name),
            None => self.containers.is_empty() || some_container,
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

    /// The part of the answer that depends on whose the process is only. The kubelet tells late which container of a
    /// pod it is; what would be missed until then is shown, not hidden.
    pub fn judge(&self, who: &Attribution) -> Verdicts {
        let bits = |filters: &[Filter], passes: fn(&Whose, &Attribution) -> bool| {
            let pass = filters.iter().map(|f| passes(&f.whose, who));
            pass.rev().fold(0, |bits, pass| bits << 1 | u32::from(pass))
        };
        let deny = bits(&self.deny, Whose::passes);
        let denied = selected(&self.deny, deny).any(Filter::ignores_events);
        Verdicts {
            allow: if denied {
                0
            } else {
                bits(&self.allow, Whose::may_pass)
            },
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

    /// Whether failed connects may pass.
    pub fn wants_failures(&self) -> bool {
        self.allow
            .iter()
            .any(|f| f.what.kinds.contains(&Kind::Failed))
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::fixture;
    use crate::identity::{Encoded, Evidence};
    use tcptracer_event::{Closer, Comm};

    fn cart() -> Attribution {
        fixture::resolved(1)
    }

    /// In the same pod; which of its containers is not known.
    fn some_container() -> Attribution {
        let names = Names {
            pod: Arc::new(fixture::pod(1)),
            container: None,
            container_id: fixture::container_id(2).into(),
            encoded: Encoded::default(),
        };
        Attribution::Resolved(Arc::new(names), Evidence::MountNamespace)
    }

    fn pending() -> Attribution {
        Attribution::Pending("id".into(), Evidence::Cgroup)
    }

    fn set(values: &[&str]) -> HashSet<String> {
        values.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_filter_without_conditions_passes_everybody_but_another_nodes() {
        let all = Whose::default();
        for who in [
            cart(),
            some_container(),
            pending(),
            Attribution::Host,
            Attribution::Unknown,
        ] {
            assert!(all.passes(&who), "{who:?}");
        }
        assert!(!all.passes(&Attribution::Foreign));
    }

    #[test]
    fn scopes_part_pods_from_the_host() {
        let of = |scope| Whose {
            scope: Some(scope),
            ..Whose::default()
        };
        for (who, pods) in [
            (cart(), true),
            (pending(), true),
            (Attribution::Host, false),
            (Attribution::Unknown, false),
        ] {
            assert_eq!(of(Scope::Pods).passes(&who), pods, "{who:?}");
            assert_eq!(of(Scope::Host).passes(&who), !pods, "{who:?}");
        }
    }

    #[test]
    fn conditions_on_names_pass_who_has_them_and_nobody_unnamed() {
        let workload = |name: &str| Workload {
            kind: "Deployment".into(),
            name: name.into(),
        };
        let labels = |text: &str| Some(text.parse().expect("a selector"));
        let whose = Whose::default;
        for (condition, passes) in [
            (
                Whose {
                    namespaces: set(&["shop", "bank"]),
                    ..whose()
                },
                true,
            ),
            (
                Whose {
                    namespaces: set(&["bank"]),
                    ..whose()
                },
                false,
            ),
            (
                Whose {
                    pods: set(&["cart-1"]),
                    ..whose()
                },
                true,
            ),
            (
                Whose {
                    pods: set(&["cart"]),
                    ..whose()
                },
                false,
            ),
            (
                Whose {
                    labels: labels("app in (cart),!canary"),
                    ..whose()
                },
                true,
            ),
            (
                Whose {
                    labels: labels("app!=cart"),
                    ..whose()
                },
                false,
            ),
            (
                Whose {
                    containers: set(&["main"]),
                    ..whose()
                },
                true,
            ),
            (
                Whose {
                    containers: set(&["sidecar"]),
                    ..whose()
                },
                false,
            ),
            (
                Whose {
                    workloads: vec![workload("db"), workload("cart")],
                    ..whose()
                },
                true,
            ),
            (
                Whose {
                    workloads: vec![workload("db")],
                    ..whose()
                },
                false,
            ),
            // All have to hold.
            (
                Whose {
                    namespaces: set(&["shop"]),
                    pods: set(&["cart-2"]),
                    ..whose()
                },
                false,
            ),
            (
                Whose {
                    namespaces: set(&["shop"]),
                    scope: Some(Scope::Host),
                    ..whose()
                },
                false,
            ),
            (
                Whose {
                    namespaces: set(&["shop"]),
                    elsewhere: true,
                    ..whose()
                },
                false,
            ),
        ] {
            assert_eq!(condition.passes(&cart()), passes, "{condition:?}");
            for unnamed in [pending(), Attribution::Host, Attribution::Unknown] {
                assert!(!condition.passes(&unnamed), "{condition:?} {unnamed:?}");
            }
        }
        let main = Whose {
            containers: set(&["main"]),
            ..whose()
        };
        assert!(!main.passes(&some_container()));
        assert!(main.may_pass(&some_container()));
        let elsewhere = Whose {
            namespaces: set(&["bank"]),
            ..main.clone()
        };
        assert!(!elsewhere.may_pass(&some_container()));
        // It is shown who may be asked for, and not hidden who may not be meant.
        let filter = |whose| Filter {
            whose,
            ..Filter::default()
        };
        let shown = Matcher::new(vec![filter(main.clone())], Vec::new());
        assert!(!shown.judge(&some_container()).is_nothing());
        let hidden = Matcher::new(Vec::new(), vec![filter(main)]);
        assert!(!hidden.judge(&some_container()).is_nothing());
        assert!(hidden.judge(&cart()).is_nothing());
    }

    fn what(change: impl FnOnce(&mut What)) -> What {
        let mut what = What::default();
        change(&mut what);
        what
    }

    #[test]
    fn conditions_on_connections() {
        let mut event = fixture::event(Kind::Close, 1, 0);
        event.closer = Some(Closer {
            pid: 200,
            comm: Comm::new([0; 16]),
        });
        let network = |text: &str| -> IpNet { text.parse().expect("a network") };
        for (condition, passes) in [
            (what(|w| w.pids = [100].into()), true),
            (what(|w| w.pids = [200].into()), true),
            (what(|w| w.pids = [101].into()), false),
            (what(|w| w.netns = [4_026_531_992].into()), true),
            (what(|w| w.netns = [1].into()), false),
            (what(|w| w.v4 = false), false),
            (what(|w| w.v6 = false), true),
            (what(|w| w.ports = [40_000].into()), true),
            (what(|w| w.ports = [80, 1].into()), true),
            (what(|w| w.ports = [443].into()), false),
            (what(|w| w.networks = vec![network("10.0.0.2/32")]), true),
            (what(|w| w.networks = vec![network("10.0.0.0/30")]), true),
            (
                what(|w| w.networks = vec![network("10.0.0.4/30"), network("::/0")]),
                false,
            ),
            (
                what(|w| (w.ports, w.pids) = ([80].into(), [1].into())),
                false,
            ),
        ] {
            assert_eq!(condition.passes_connection(&event), passes, "{condition:?}");
        }
        // Mapped addresses count as IPv4, and their sockets as IPv6.
        event.local = "[::ffff:10.0.0.1]:40000".parse().expect("an address");
        event.remote = "[::ffff:10.0.0.2]:80".parse().expect("an address");
        assert!(what(|w| w.networks = vec![network("10.0.0.0/24")]).passes_connection(&event));
        assert!(!what(|w| w.v6 = false).passes_connection(&event));
    }

    #[test]
    fn failed_connects_have_to_be_asked_for() {
        let matcher = |kinds| {
            let what = what(|w| w.kinds = kinds);
            let whose = Whose::default();
            Matcher::new(vec![Filter { whose, what }], Vec::new())
        };
        let passing = |matcher: Matcher| {
            let verdicts = matcher.judge(&cart());
            [Kind::Connect, Kind::Accept, Kind::Close, Kind::Failed]
                .map(|kind| matcher.passes(verdicts, &fixture::event(kind, 1, 0)))
        };
        assert_eq!(passing(matcher(vec![])), [true, true, true, false]);
        let some = vec![Kind::Failed, Kind::Close];
        assert_eq!(passing(matcher(some)), [false, false, true, true]);
    }

    #[test]
    fn what_is_denied_for_a_kind_is_listed_still() {
        let closes = Filter {
            what: what(|w| w.kinds = vec![Kind::Close]),
            ..Filter::default()
        };
        let matcher = Matcher::new(Vec::new(), vec![closes]);
        let verdicts = matcher.judge(&cart());
        assert!(!verdicts.is_nothing());
        assert!(matcher.passes(verdicts, &fixture::event(Kind::Connect, 1, 0)));
        let close = fixture::event(Kind::Close, 1, 0);
        assert!(!matcher.passes(verdicts, &close));
        assert!(matcher.passes_connection(verdicts, &close));
    }

    #[test]
    fn who_is_denied_whole_needs_nothing_of_the_kernel() {
        let shop = Filter {
            whose: Whose {
                namespaces: set(&["shop"]),
                ..Whose::default()
            },
            ..Filter::default()
        };
        let others = Matcher::new(Vec::new(), vec![shop.clone()]);
        assert!(others.judge(&cart()).is_nothing());
        assert!(others.wants_host());
        let pods = Matcher::new(vec![shop], Vec::new());
        assert!(!pods.judge(&cart()).is_nothing());
        assert!(!pods.wants_host());
    }

    proptest! {
        /// The answer per container and the one per event are together what the words say: one of `allow`, none of
        /// `deny`.
        #[test]
        fn a_matcher_is_its_filters(
            allow in prop::collection::vec((any::<bool>(), any::<bool>()), 0..=MAX_FILTERS),
            deny in prop::collection::vec((any::<bool>(), any::<bool>()), 0..=MAX_FILTERS),
        ) {
            let filter = |(whose, what): (bool, bool)| Filter {
                whose: Whose {
                    namespaces: set(&[if whose { "shop" } else { "bank" }]),
                    ..Whose::default()
                },
                what: What {
                    ports: [if what { 80 } else { 443 }].into(),
                    ..What::default()
                },
            };
            let hit = |(whose, what): &(bool, bool)| *whose && *what;
            let expected = (allow.is_empty() || allow.iter().any(hit)) && !deny.iter().any(hit);
            let matcher = Matcher::new(
                allow.into_iter().map(filter).collect(),
                deny.into_iter().map(filter).collect(),
            );
            let event = fixture::event(Kind::Connect, 1, 0);
            let verdicts = matcher.judge(&cart());
            prop_assert_eq!(matcher.passes(verdicts, &event), expected);
            prop_assert_eq!(matcher.passes_connection(verdicts, &event), expected);
        }
    }
}
