//! What the kernel should let pass: from what is wanted to the content of pinned filter maps.

use std::collections::HashSet;
use std::str::FromStr;
use std::time::Instant;

use anyhow::Result;
use tcptracer::bpf::{Outcome, PinDir, PinnedSet, SetOf};

use crate::filter::{Filter, LabelSelector, Matcher, Scope, Whose};
use crate::identity::{Evidence, Index};
use crate::report::MapUse;

/// The root of every cgroup hierarchy. All cgroups count as its descendants, so with it everything passes.
const ROOT_CGROUP: u64 = 1;

/// The cgroup of an owner that is not known.
const NO_CGROUP: u64 = 0;

/// The maps of a pair.
const MAPS: [&str; 2] = ["cgroupmap", "mntnsmap"];

/// Members of a pair of maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Ids of cgroups.
    pub cgroups: HashSet<u64>,
    /// Inodes of mount namespaces.
    pub mounts: HashSet<u64>,
}

impl Wanted {
    /// Whether nobody of `others` is missing here.
    pub fn includes(&self, others: &Self) -> bool {
        others.cgroups.is_subset(&self.cgroups) && others.mounts.is_subset(&self.mounts)
    }
}

/// What those who want events need from the kernel. A container whose pod is not known yet passes as
/// long as it may turn out to be wanted.
pub fn for_subscribers<'a>(
    index: &Index,
    matchers: impl Iterator<Item = &'a Matcher> + Clone,
    now: Instant,
) -> Wanted {
    let mut wanted = Wanted::default();
    if matchers.clone().next().is_none() {
        return wanted;
    }
    if matchers.clone().any(Matcher::wants_host) {
        wanted.cgroups.extend([ROOT_CGROUP, NO_CGROUP]);
    }
    for (key, container) in index.containers() {
        let who = index.attribution(key, Evidence::Cgroup);
        let selected = || matchers.clone().any(|m| !m.judge(&who).is_nothing());
        if index.may_be_named(container, now) || selected() {
            wanted.cgroups.extend(container.cgroup);
            wanted.mounts.extend(container.mntns);
        }
    }
    wanted
}

/// The containers of a filter set that exist.
fn for_set(index: &Index, matcher: &Matcher) -> Wanted {
    let mut wanted = Wanted::default();
    for (key, container) in index.containers() {
        let who = index.attribution(key, Evidence::Cgroup);
        if container.gone.is_none() && !matcher.judge(&who).is_nothing() {
            wanted.cgroups.extend(container.cgroup);
            wanted.mounts.extend(container.mntns);
        }
    }
    wanted
}

/// A pair of pinned maps.
#[derive(Debug)]
pub struct Pair {
    /// The name of the set, if it is one's.
    set: Option<String>,
    cgroups: PinnedSet,
    mounts: PinnedSet,
}

impl Pair {
    /// Pins an empty pair; that of a set has a folder of its own.
    pub fn open(pins: &PinDir, set: Option<&str>, capacity: u32) -> Result<Self> {
        let folder = pins.path().join(set.unwrap_or_default());
        Ok(Self {
            set: set.map(Into::into),
            cgroups: PinnedSet::open(&folder, SetOf::Cgroups, capacity)?,
            mounts: PinnedSet::open(&folder, SetOf::MountNamespaces, capacity)?,
        })
    }

    /// Where ids of cgroups are.
    pub fn cgroups(&self) -> &PinnedSet {
        &self.cgroups
    }

    /// Where inodes of mount namespaces are.
    pub fn mounts(&self) -> &PinnedSet {
        &self.mounts
    }

    /// Makes the maps hold what is wanted.
    pub fn replace(&mut self, wanted: &Wanted) -> Outcome {
        let (cgroups, mounts) = (
            self.cgroups.replace(&wanted.cgroups),
            self.mounts.replace(&wanted.mounts),
        );
        Outcome {
            changed: cgroups.changed || mounts.changed,
            no_room: cgroups.no_room.max(mounts.no_room),
            failed: cgroups.failed + mounts.failed,
        }
    }

    /// Looks at what the maps really hold.
    pub fn refresh(&mut self) {
        self.cgroups.refresh();
        self.mounts.refresh();
    }

    /// How full the maps are.
    pub fn usage(&self) -> impl Iterator<Item = MapUse> {
        MAPS.into_iter()
            .zip([&self.cgroups, &self.mounts])
            .map(|(map, set)| MapUse {
                name: match &self.set {
                    None => map.into(),
                    Some(set) => format!("{set}/{map}"),
                },
                entries: set.len(),
                capacity: set.capacity() as usize,
                without_room: set.without_room(),
            })
    }
}

/// A selection that is kept in maps of its own, for other tools.
#[derive(Clone, Debug)]
pub struct FilterSet {
    /// The folder of its maps.
    pub name: String,
    whose: Whose,
}

/// `NAME=[NAMESPACE:]SELECTOR`.
impl FromStr for FilterSet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, selection) = text
            .split_once('=')
            .ok_or("expected NAME=[NAMESPACE:]SELECTOR")?;
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.len() > 63 || !name.chars().all(fits) {
            return Err("the name may have 1 to 63 letters, digits, - and _".into());
        }
        if MAPS.contains(&name) {
            return Err(format!("{name} is the name of a map of the agent's own"));
        }
        // A selector has no colon.
        let (namespace, selector) = match selection.split_once(':') {
            Some((namespace, selector)) => (Some(namespace), selector),
            None => (None, selection),
        };
        let labels: LabelSelector = selector.parse().map_err(|e| format!("{e}"))?;
        Ok(Self {
            name: name.into(),
            whose: Whose {
                scope: Some(Scope::Pods),
                namespaces: namespace.map(Into::into).into_iter().collect(),
                labels: Some(labels),
                ..Whose::default()
            },
        })
    }
}

/// A filter set with its maps.
#[derive(Debug)]
pub struct PinnedFilterSet {
    matcher: Matcher,
    pair: Pair,
}

impl PinnedFilterSet {
    /// Pins the set's maps.
    pub fn open(set: FilterSet, pins: &PinDir, capacity: u32) -> Result<Self> {
        let filter = Filter {
            whose: set.whose,
            ..Filter::default()
        };
        Ok(Self {
            matcher: Matcher::new(vec![filter], Vec::new()),
            pair: Pair::open(pins, Some(&set.name), capacity)?,
        })
    }

    /// Brings the maps in step with what is known.
    pub fn follow(&mut self, index: &Index) -> Outcome {
        self.pair.replace(&for_set(index, &self.matcher))
    }

    /// The set's name.
    pub fn name(&self) -> &str {
        self.pair.set.as_deref().unwrap_or_default()
    }

    /// The maps.
    pub fn pair(&mut self) -> &mut Pair {
        &mut self.pair
    }

    /// How full the maps are.
    pub fn usage(&self) -> impl Iterator<Item = MapUse> {
        self.pair.usage()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::fixture;
    use crate::identity::{LINGER, Owner, TRAIL};
    use crate::kube::Pod;

    /// Cgroups of the containers of the pods 1 to 5; their mount namespaces have numbers that are higher by 1000.
    const SHOP: u64 = 11;
    const GONE: u64 = 12;
    const OTHER: u64 = 13;
    const UNKNOWN: u64 = 14;
    const NO_PROCESS: u64 = 15;

    /// As it may be on a node: some containers of `shop`, one of which has gone, one of another namespace, and one whose
    /// pod has not been told of.
    fn index(now: Instant) -> Index {
        let mut index = Index::new(true);
        index.cgroup_made(ROOT_CGROUP, "/", now);
        index.cgroup_made(9, "/system.slice", now);
        for (n, cgroup) in [SHOP, GONE, OTHER, UNKNOWN, NO_PROCESS]
            .into_iter()
            .enumerate()
        {
            let n = n as u32 + 1;
            let namespace = match cgroup {
                OTHER => "other",
                _ => "shop",
            };
            if cgroup != UNKNOWN {
                index.pod_applied(Arc::new(Pod {
                    namespace: namespace.into(),
                    ..fixture::pod(n)
                }));
            }
            index.cgroup_made(cgroup, &fixture::cgroup_path(n), now);
            // What the container nests is no more to select.
            index.cgroup_made(
                cgroup + 100,
                &format!("{}/nested", fixture::cgroup_path(n)),
                now,
            );
            if cgroup != NO_PROCESS {
                let (mntns, since) = (0, None);
                let (key, _) = index.attribute(Owner {
                    cgroup,
                    mntns,
                    since,
                });
                index.set_mount_namespace(key.expect("a container"), cgroup + 1000);
            }
        }
        index.cgroup_removed(GONE, now);
        index
    }

    fn wanted(cgroups: &[u64]) -> Wanted {
        let is_told = |cgroup: &u64| ![ROOT_CGROUP, NO_CGROUP, NO_PROCESS].contains(cgroup);
        Wanted {
            cgroups: cgroups.iter().copied().collect(),
            mounts: cgroups
                .iter()
                .filter(|c| is_told(c))
                .map(|c| c + 1000)
                .collect(),
        }
    }

    fn of_namespace(namespace: &str) -> Filter {
        Filter {
            whose: Whose {
                namespaces: [namespace.to_owned()].into(),
                ..Whose::default()
            },
            ..Filter::default()
        }
    }

    fn allow(filter: Filter) -> Matcher {
        Matcher::new(vec![filter], Vec::new())
    }

    #[track_caller]
    fn assert_wanted(matchers: &[Matcher], cgroups: &[u64]) {
        let now = Instant::now();
        let selected = for_subscribers(&index(now), matchers.iter(), now);
        assert_eq!(selected, wanted(cgroups));
    }

    #[test]
    fn without_subscribers_nothing_passes() {
        assert_wanted(&[], &[]);
    }

    #[test]
    fn what_is_asked_for_passes_and_what_may_turn_out_to_be_it() {
        // Closes of what has gone trail.
        let shop = [SHOP, GONE, NO_PROCESS];
        assert_wanted(
            &[allow(of_namespace("shop"))],
            &[&shop[..], &[UNKNOWN]].concat(),
        );
        assert_wanted(&[allow(of_namespace("nobody's"))], &[UNKNOWN]);
        let not_other = Filter {
            whose: Whose {
                scope: Some(Scope::Pods),
                ..Whose::default()
            },
            ..Filter::default()
        };
        let not_other = Matcher::new(vec![not_other], vec![of_namespace("other")]);
        assert_wanted(&[not_other], &[&shop[..], &[UNKNOWN]].concat());
    }

    #[test]
    fn of_several_subscribers_each_gets_its_own() {
        let matchers = ["shop", "other", "shop"].map(|ns| allow(of_namespace(ns)));
        assert_wanted(&matchers, &[SHOP, GONE, NO_PROCESS, OTHER, UNKNOWN]);
    }

    #[test]
    fn for_the_hosts_own_processes_everything_passes() {
        let host = Filter {
            whose: Whose {
                scope: Some(Scope::Host),
                ..Whose::default()
            },
            ..Filter::default()
        };
        assert_wanted(&[allow(host)], &[ROOT_CGROUP, NO_CGROUP, UNKNOWN]);
        let all = [SHOP, GONE, OTHER, UNKNOWN, NO_PROCESS];
        assert_wanted(
            &[allow(Filter::default())],
            &[&all[..], &[ROOT_CGROUP, NO_CGROUP]].concat(),
        );
    }

    #[test]
    fn what_nobody_names_for_a_minute_is_given_up() {
        let start = Instant::now();
        let index = index(start);
        let shop = [allow(of_namespace("shop"))];
        let of_shop = wanted(&[SHOP, GONE, NO_PROCESS]);
        let after = |age| for_subscribers(&index, shop.iter(), start + age);
        assert_ne!(after(LINGER - std::time::Duration::from_millis(1)), of_shop);
        assert_eq!(after(LINGER), of_shop);
    }

    #[test]
    fn the_mount_namespace_of_what_is_gone_passes_for_a_moment() {
        let now = Instant::now();
        let mut index = index(now);
        index.let_go(now + TRAIL);
        let shop = [allow(of_namespace("shop"))];
        let selected = for_subscribers(&index, shop.iter(), now + LINGER);
        let all = wanted(&[SHOP, GONE, NO_PROCESS]);
        assert_eq!(selected.cgroups, all.cgroups);
        assert_eq!(selected.mounts, wanted(&[SHOP]).mounts);
    }

    #[test]
    fn a_set_has_what_exists_and_is_known() {
        let now = Instant::now();
        let set = |text: &str| {
            let set: FilterSet = text.parse().expect("a filter set");
            let filter = Filter {
                whose: set.whose,
                ..Filter::default()
            };
            for_set(&index(now), &allow(filter))
        };
        assert_eq!(set("carts=shop:app=cart"), wanted(&[SHOP, NO_PROCESS]));
        assert_eq!(set("carts=app=cart"), wanted(&[SHOP, OTHER, NO_PROCESS]));
        assert_eq!(set("carts=shop:app=db"), wanted(&[]));
        assert_eq!(set("carts=shop:"), wanted(&[SHOP, NO_PROCESS]));
    }
}
