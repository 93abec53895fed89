//! What the kernel should let pass: from what is wanted to the content of pinned filter maps.

use std::collections::HashSet;
use std::str::FromStr;
use std::time::Instant;

use anyhow::Result;

use super::MapUse;
use crate::bpf::{Outcome, PinDir, PinnedSet, SetOf};
use crate::filter::{Filter, LabelSelector, Matcher, Scope, Whose};
use crate::identity::{Evidence, Index};

/// The root of every cgroup hierarchy. All cgroups count as its descendants, so with it everything passes.
const ROOT_CGROUP: u64 = 1;

/// The cgroup of an owner that is not known.
const NO_CGROUP: u64 = 0;

/// Members of a pair of maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Ids of cgroups.
    pub cgroups: HashSet<u64>,
    /// Inodes of mount namespaces.
    pub mounts: HashSet<u64>,
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
        [("cgroupmap", &self.cgroups), ("mntnsmap", &self.mounts)]
            .into_iter()
            .map(|(map, set)| MapUse {
                name: match &self.set {
                    None => map.into(),
                    Some(set) => format!("{set}/{map}"),
                },
                entries: set.len(),
                capacity: set.capacity() as usize,
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
