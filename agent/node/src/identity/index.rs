//! What is known of containers and pods, and the rules that bring them together.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tcptracer::clock;
use tcptracer_event::Event;

use super::attribution::{Attributed, Attribution, ContainerKey, Encoded, Evidence, Names, Owner};
use crate::cgroup::{self, Cgroup};
use crate::kube::Pod;

/// How long containers, pods and cgroups stay known after they are gone: closes trail deletions.
pub const LINGER: Duration = Duration::from_secs(60);

/// How long the mount namespace of a container that is gone is selected, and held open for that: what is mounted there,
/// volumes, is wanted elsewhere.
pub const TRAIL: Duration = Duration::from_secs(2);

/// The root of every hierarchy: where cgroups say nothing, all processes are in it.
const ROOT: u64 = 1;

/// Cgroups to remember that lie outside of what this node can see.
const MAX_OUTSIDE: usize = 4096;

/// A container whose cgroup has been seen.
#[derive(Debug)]
pub struct Container {
    /// Its id.
    pub id: Arc<str>,
    /// Its own cgroup, from the root of the hierarchy.
    pub path: String,
    /// The id of its own cgroup; those below belong to it as well.
    pub cgroup: Option<u64>,
    /// The inode of its mount namespace, from when a process has been found in it until [`TRAIL`] after it is gone.
    pub mntns: Option<u64>,
    /// When its cgroup was removed.
    pub gone: Option<Instant>,
    pod_uid: String,
    /// What is before the kubelet's part of the path: tells the nodes on one kernel apart.
    prefix: String,
    seen: Instant,
    names: Option<Arc<Names>>,
}

#[derive(Debug)]
struct KnownPod {
    pod: Arc<Pod>,
    deleted: Option<Instant>,
}

/// How much is known; for metrics, and for tests that nothing grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Containers of this node, also those that are gone and not forgotten.
    pub containers: usize,
    /// Pods, likewise.
    pub pods: usize,
    /// Cgroups, of containers and others.
    pub cgroups: usize,
    /// Cgroups that were asked for and lie outside of what can be seen.
    pub outside: usize,
}

/// The containers of this node and what names them. One task owns it.
#[derive(Debug, Default)]
pub struct Index {
    containers: HashMap<ContainerKey, Container>,
    next_key: ContainerKey,
    by_id: HashMap<Arc<str>, ContainerKey>,
    /// Every cgroup that has been seen, and the container it belongs to, if any.
    cgroups: HashMap<u64, Option<ContainerKey>>,
    /// Containers by the inodes of their mount namespaces, which are used again: in the order in which they came.
    by_mntns: HashMap<u64, Vec<ContainerKey>>,
    pods: HashMap<String, KnownPod>,
    /// The uid in the paths of a static pod, and the uid of its mirror pod.
    static_uids: HashMap<String, String>,
    /// Prefixes below which a pod of this node has been found.
    own_prefixes: HashSet<String>,
    /// Containers that are gone and may have a mount namespace, oldest first.
    trailing: VecDeque<(Instant, ContainerKey)>,
    /// Cgroups that were removed and are no container's own, oldest first.
    removed: VecDeque<(Instant, u64)>,
    /// Cgroups that no scan finds, oldest first.
    outside: VecDeque<u64>,
    outside_ids: HashSet<u64>,
    /// Whether a scan sees every cgroup of the kernel.
    sees_all: bool,
    /// Whether a scan has found everything that was not told since.
    is_complete: bool,
    generation: u64,
}

impl Index {
    /// Knows nothing. `sees_all`: the cgroup file system is mounted from its very root, so that what
    /// a scan does not find is not there.
    pub fn new(sees_all: bool) -> Self {
        Self {
            sees_all,
            ..Self::default()
        }
    }

    /// Changes whenever containers or their names do.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// How much is known.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            containers: self
                .containers
                .values()
                .filter(|c| !self.is_foreign(c))
                .count(),
            pods: self.pods.len(),
            cgroups: self.cgroups.len(),
            outside: self.outside.len(),
        }
    }

    /// The id of the cgroup that was made last of all that are known; 0 if there are none.
    pub fn newest_cgroup(&self) -> u64 {
        self.cgroups.keys().copied().max().unwrap_or_default()
    }

    /// Pods that exist.
    pub fn pods(&self) -> usize {
        self.pods.values().filter(|p| p.deleted.is_none()).count()
    }

    /// Every container, of other nodes too.
    pub fn containers(&self) -> impl Iterator<Item = (ContainerKey, &Container)> {
        self.containers.iter().map(|(key, c)| (*key, c))
    }

    /// A container, as long as it is known.
    pub fn container(&self, key: ContainerKey) -> Option<&Container> {
        self.containers.get(&key)
    }

    // === cgroups

    /// A cgroup was made, or found by a scan.
    pub fn cgroup_made(&mut self, id: u64, path: &str, now: Instant) {
        let container = cgroup::parse(path).and_then(|found| {
            let key = match self.by_id.get(found.container_id) {
                Some(&key) => {
                    // Whoever may make cgroups can put any id into a path: a container has one path only.
                    let known = self.containers.get(&key)?;
                    (known.path == found.path).then_some(key)?
                }
                None => self.add_container(&found, now),
            };
            if found.path == path
                && let Some(container) = self.containers.get_mut(&key)
            {
                container.cgroup = Some(id);
                container.gone = None;
            }
            self.generation += 1;
            Some(key)
        });
        self.cgroups.insert(id, container);
    }

    /// A cgroup was removed. It stays known for a while.
    pub fn cgroup_removed(&mut self, id: u64, now: Instant) {
        let Some(&key) = self.cgroups.get(&id) else {
            return;
        };
        match key.and_then(|key| Some((key, self.containers.get_mut(&key)?))) {
            // Its own takes the container with it.
            Some((key, container)) if container.cgroup == Some(id) => {
                container.gone = Some(now);
                self.trailing.push_back((now, key));
                self.generation += 1;
            }
            _ => self.removed.push_back((now, id)),
        }
    }

    /// What a scan found: everything that is there.
    pub fn scanned(&mut self, found: &[Cgroup], now: Instant) {
        self.is_complete = true;
        for cgroup in found {
            if !matches!(self.cgroups.get(&cgroup.id), Some(known) if self.is_settled(*known)) {
                self.cgroup_made(cgroup.id, &cgroup.path, now);
            }
        }
        // Also where a scan sees a part only: no other cgroups than those of the part are kept here.
        let there: HashSet<u64> = found.iter().map(|c| c.id).collect();
        let missed: Vec<u64> = self.missing(&there);
        for id in missed {
            self.cgroup_removed(id, now);
        }
    }

    /// Cgroups whose removal was not seen.
    fn missing(&self, there: &HashSet<u64>) -> Vec<u64> {
        let removed: HashSet<u64> = self.removed.iter().map(|(_, id)| *id).collect();
        let is_there =
            |key: &ContainerKey| self.containers.get(key).is_some_and(|c| c.gone.is_none());
        self.cgroups
            .iter()
            .filter(|(id, _)| !there.contains(id) && !removed.contains(id))
            .filter(|(_, key)| key.as_ref().is_none_or(is_there))
            .map(|(id, _)| *id)
            .collect()
    }

    /// What the kernel told of cgroups may have been lost: until the next scan some may be there that are not known.
    pub fn doubt(&mut self) {
        self.is_complete = false;
    }

    /// Remembers that no scan finds this cgroup.
    pub fn note_outside(&mut self, id: u64) {
        if self.outside_ids.insert(id) {
            self.outside.push_back(id);
        }
        if self.outside.len() > MAX_OUTSIDE
            && let Some(oldest) = self.outside.pop_front()
        {
            self.outside_ids.remove(&oldest);
        }
    }

    /// A process of the container was found in this mount namespace.
    pub fn set_mount_namespace(&mut self, key: ContainerKey, inode: u64) {
        if let Some(container) = self.containers.get_mut(&key) {
            container.mntns = Some(inode);
            self.by_mntns.entry(inode).or_default().push(key);
            self.generation += 1;
        }
    }

    /// Gives up the mount namespaces of containers that have been gone for [`TRAIL`]. Whose they were stays known.
    pub fn let_go(&mut self, now: Instant) {
        while self.let_go_due().is_some_and(|due| due <= now) {
            let key = self.trailing.pop_front().map(|(_, key)| key);
            if let Some(container) = key.and_then(|key| self.containers.get_mut(&key))
                && container.gone.is_some()
            {
                container.mntns = None;
                self.generation += 1;
            }
        }
    }

    /// When the first is to be given up.
    pub fn let_go_due(&self) -> Option<Instant> {
        self.trailing.front().map(|(gone, _)| *gone + TRAIL)
    }

    /// Containers that are there and whose mount namespace is not known.
    pub fn without_mount_namespace(&self) -> impl Iterator<Item = (ContainerKey, &Container)> {
        self.containers()
            .filter(|(_, c)| c.mntns.is_none() && c.gone.is_none() && !self.is_foreign(c))
    }

    fn add_container(&mut self, found: &cgroup::ContainerPath<'_>, now: Instant) -> ContainerKey {
        let key = self.next_key;
        let id: Arc<str> = found.container_id.into();
        self.next_key = self.next_key.wrapping_add(1);
        self.by_id.insert(Arc::clone(&id), key);
        self.containers.insert(
            key,
            Container {
                id,
                path: found.path.into(),
                cgroup: None,
                mntns: None,
                gone: None,
                pod_uid: found.pod_uid.clone().into_owned(),
                prefix: found.prefix.into(),
                seen: now,
                names: None,
            },
        );
        self.name(key);
        key
    }

    /// Nothing is to be learned from seeing the cgroup again.
    fn is_settled(&self, known: Option<ContainerKey>) -> bool {
        known.is_none_or(|key| {
            self.containers
                .get(&key)
                .is_some_and(|c| c.cgroup.is_some())
        })
    }

    // === pods

    /// All pods of the node; others are gone.
    pub fn pods_replaced(&mut self, pods: Vec<Arc<Pod>>, now: Instant) {
        let there: HashSet<String> = pods.iter().map(|p| p.uid.clone()).collect();
        for (uid, known) in &mut self.pods {
            if !there.contains(uid) {
                known.deleted.get_or_insert(now);
            }
        }
        for pod in pods {
            self.pod_applied(pod);
        }
    }

    /// A pod is new or has changed.
    pub fn pod_applied(&mut self, pod: Arc<Pod>) {
        let uid = pod.uid.clone();
        if self
            .pods
            .get(&uid)
            .is_some_and(|k| k.deleted.is_none() && k.pod == pod)
        {
            return;
        }
        if let Some(static_uid) = &pod.static_uid {
            self.static_uids.insert(static_uid.clone(), uid.clone());
        }
        let deleted = None;
        self.pods.insert(uid, KnownPod { pod, deleted });
        self.name_all();
    }

    /// A pod is gone. It stays known for a while.
    pub fn pod_deleted(&mut self, uid: &str, now: Instant) {
        if let Some(known) = self.pods.get_mut(uid) {
            known.deleted.get_or_insert(now);
        }
    }

    /// Forgets what has been gone for [`LINGER`].
    pub fn forget(&mut self, now: Instant) {
        let over = |since: Option<Instant>| since.is_some_and(|s| now - s >= LINGER);

        let gone: HashSet<ContainerKey> = self
            .containers
            .iter()
            .filter(|(_, c)| over(c.gone))
            .map(|(key, _)| *key)
            .collect();
        if !gone.is_empty() {
            self.containers.retain(|key, _| !gone.contains(key));
            self.by_id.retain(|_, key| !gone.contains(key));
            self.by_mntns.retain(|_, keys| {
                keys.retain(|key| !gone.contains(key));
                !keys.is_empty()
            });
            self.cgroups
                .retain(|_, key| !key.is_some_and(|k| gone.contains(&k)));
            self.generation += 1;
        }
        while self.removed.front().is_some_and(|(s, _)| over(Some(*s))) {
            if let Some((_, id)) = self.removed.pop_front() {
                self.cgroups.remove(&id);
            }
        }
        let pods = self.pods.len();
        self.pods.retain(|_, known| !over(known.deleted));
        if self.pods.len() != pods {
            let pods = &self.pods;
            self.static_uids.retain(|_, uid| pods.contains_key(uid));
            self.name_all();
        }
    }

    fn pod(&self, path_uid: &str) -> Option<&Arc<Pod>> {
        let uid = self.static_uids.get(path_uid).map_or(path_uid, |u| u);
        self.pods.get(uid).map(|known| &known.pod)
    }

    fn name_all(&mut self) {
        let keys: Vec<_> = self.containers.keys().copied().collect();
        for key in keys {
            self.name(key);
        }
        self.generation += 1;
    }

    /// Works out the names of a container, and learns which prefix is this node's.
    fn name(&mut self, key: ContainerKey) {
        let Some(container) = self.containers.get(&key) else {
            return;
        };
        // What is known of a container outlives it, and its pod.
        if container.gone.is_some() && container.names.is_some() {
            return;
        }
        let names = self.pod(&container.pod_uid).map(|pod| Names {
            container: self.container_of(pod, &container.id),
            pod: Arc::clone(pod),
            container_id: Arc::clone(&container.id),
            encoded: Encoded::default(),
        });
        let Some(container) = self.containers.get_mut(&key) else {
            return;
        };
        match names {
            None => {}
            Some(names) if container.names.as_deref() == Some(&names) => {}
            Some(names) => {
                self.own_prefixes.insert(container.prefix.clone());
                container.names = Some(Arc::new(names));
            }
        }
    }

    /// Which container of the pod has this id. The kubelet reports ids late: in a pod with one container that is not
    /// running otherwise it can be no other, since the sandbox opens no connections.
    fn container_of(&self, pod: &Pod, id: &str) -> Option<usize> {
        let has_id = |c: &crate::kube::Container| {
            c.id.as_deref() == Some(id) || c.previous_id.as_deref() == Some(id)
        };
        let is_running = |id: &str| {
            let key = self.by_id.get(id);
            key.and_then(|key| self.containers.get(key))
                .is_some_and(|c| c.gone.is_none())
        };
        let guess = || match &pod.containers[..] {
            [only] if !only.id.as_deref().is_some_and(is_running) => Some(0),
            _ => None,
        };
        pod.containers.iter().position(has_id).or_else(guess)
    }

    // === attribution

    /// Whether a scan may help to tell whose the cgroup is.
    pub fn should_scan(&self, cgroup_id: u64) -> bool {
        cgroup_id != 0
            && !self.cgroups.contains_key(&cgroup_id)
            && !self.outside_ids.contains(&cgroup_id)
    }

    /// Whose a process is, and which container that is: by its cgroup or, if that is no container's, by its mount
    /// namespace. The only place that tells it.
    pub fn attribute(&self, owner: Owner) -> (Option<ContainerKey>, Attribution) {
        let since = || owner.since.and_then(clock::instant);
        self.whose(owner.cgroup, owner.mntns, since)
    }

    /// The same of an event.
    pub fn attributed(&self, event: Event) -> Attributed {
        let (container, who) = self.attribute(Owner::of(&event));
        Attributed {
            event,
            container,
            who,
        }
    }

    fn whose(
        &self,
        cgroup_id: u64,
        mntns: u64,
        since: impl FnOnce() -> Option<Instant>,
    ) -> (Option<ContainerKey>, Attribution) {
        let (key, evidence) = match self.cgroups.get(&cgroup_id) {
            Some(Some(key)) => (Some(*key), Evidence::Cgroup),
            known if known.is_some() || cgroup_id == ROOT => (
                self.in_mount_namespace(mntns, since()),
                Evidence::MountNamespace,
            ),
            _ => {
                // Another node's, or its host's: the kernel tells of a cgroup before its processes do anything, and a
                // scan has found those that were there.
                let is_outside = self.is_complete && cgroup_id != 0;
                let is_outside = is_outside || self.outside_ids.contains(&cgroup_id);
                return match is_outside && !self.sees_all {
                    true => (None, Attribution::Foreign),
                    false => (None, Attribution::Unknown),
                };
            }
        };
        match key {
            Some(key) => (Some(key), self.attribution(key, evidence)),
            None => (None, Attribution::Host),
        }
    }

    /// The container that had the mount namespace then. An inode is used again only after its container has gone.
    fn in_mount_namespace(&self, inode: u64, since: Option<Instant>) -> Option<ContainerKey> {
        let had_it = |key: &ContainerKey| {
            let gone = self.containers.get(key).map(|c| c.gone);
            gone.is_some_and(|gone| gone.is_none() || since.is_none() || since <= gone)
        };
        self.by_mntns.get(&inode)?.iter().copied().find(had_it)
    }

    /// Whose the processes in a container are.
    pub fn attribution(&self, key: ContainerKey, evidence: Evidence) -> Attribution {
        match self.containers.get(&key) {
            None => Attribution::Unknown,
            Some(container) => match &container.names {
                Some(names) => Attribution::Resolved(Arc::clone(names), evidence),
                None if self.is_foreign(container) => Attribution::Foreign,
                None => Attribution::Pending(Arc::clone(&container.id), evidence),
            },
        }
    }

    /// Another node's: not below a prefix of ours, once one is known.
    fn is_foreign(&self, container: &Container) -> bool {
        container.names.is_none()
            && !self.own_prefixes.is_empty()
            && !self.own_prefixes.contains(&container.prefix)
    }

    /// Whether the container's pod may still turn up: it is not named, not another node's, and young.
    pub fn may_be_named(&self, container: &Container, now: Instant) -> bool {
        container.names.is_none() && self.may_be_news(container, now)
    }

    /// Whether the source of pods may know more: of the pod, or which of its containers it is.
    pub fn lacks_names(&self, container: &Container, now: Instant) -> bool {
        let is_named = container.names().is_some_and(|n| n.container.is_some());
        !is_named && self.may_be_news(container, now)
    }

    fn may_be_news(&self, container: &Container, now: Instant) -> bool {
        !self.is_foreign(container) && container.age(now) < LINGER
    }
}

impl Container {
    /// What it is called, once its pod is known.
    pub fn names(&self) -> Option<&Arc<Names>> {
        self.names.as_ref()
    }

    /// How long it has been known.
    pub fn age(&self, now: Instant) -> Duration {
        now - self.seen
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::kube::{Container as Spec, ContainerKind};

    fn uid(n: u32) -> String {
        format!("{n:08x}-0000-4000-8000-000000000000")
    }

    fn id(n: u32) -> String {
        format!("{n:064x}")
    }

    fn path(prefix: &str, pod: u32, container: u32) -> String {
        format!("{prefix}/kubepods/pod{}/{}", uid(pod), id(container))
    }

    fn pod(n: u32, containers: &[Option<u32>]) -> Arc<Pod> {
        Arc::new(Pod {
            uid: uid(n),
            static_uid: None,
            namespace: "shop".into(),
            name: format!("pod-{n}"),
            labels: BTreeMap::new(),
            host_network: false,
            workload: None,
            containers: containers
                .iter()
                .enumerate()
                .map(|(at, known)| Spec {
                    name: format!("c{at}"),
                    image: String::new(),
                    id: known.map(id),
                    previous_id: None,
                    kind: ContainerKind::Regular,
                })
                .collect(),
        })
    }

    fn index(now: Instant) -> Index {
        let mut index = Index::new(true);
        index.cgroup_made(ROOT, "/", now);
        index
    }

    /// Pod and container, if it is named.
    fn named(index: &Index, cgroup: u64) -> Option<(String, Option<usize>)> {
        let (_, who) = index.whose(cgroup, 0, || None);
        who.names().map(|n| (n.pod.name.clone(), n.container))
    }

    #[test]
    fn pod_and_cgroup_may_come_in_any_order() {
        let now = Instant::now();
        for pod_first in [true, false] {
            let mut index = index(now);
            if pod_first {
                index.pod_applied(pod(1, &[Some(7)]));
            }
            index.cgroup_made(10, &path("", 1, 7), now);
            if !pod_first {
                let (_, who) = index.whose(10, 0, || None);
                assert_eq!(who, Attribution::Pending(id(7).into(), Evidence::Cgroup));
                index.pod_applied(pod(1, &[Some(7)]));
            }
            assert_eq!(named(&index, 10), Some(("pod-1".into(), Some(0))));
        }
    }

    #[test]
    fn what_is_below_a_container_is_the_containers() {
        let now = Instant::now();
        let mut index = index(now);
        index.pod_applied(pod(1, &[Some(7), Some(8)]));
        index.cgroup_made(10, &path("", 1, 8), now);
        index.cgroup_made(11, &format!("{}/init.scope", path("", 1, 8)), now);
        assert_eq!(named(&index, 11), Some(("pod-1".into(), Some(1))));
        // It goes, and is forgotten; the container stays.
        index.cgroup_removed(11, now);
        assert_eq!(named(&index, 11), Some(("pod-1".into(), Some(1))));
        index.forget(now + LINGER);
        assert_eq!(named(&index, 11), None);
        assert_eq!(named(&index, 10), Some(("pod-1".into(), Some(1))));
        assert_eq!(index.sizes().cgroups, 2);
    }

    #[test]
    fn a_path_with_anothers_id_is_no_container() {
        let now = Instant::now();
        let mut index = index(now);
        index.pod_applied(pod(1, &[Some(7)]));
        index.cgroup_made(10, &path("", 1, 7), now);
        index.cgroup_made(66, &path("/user.slice/mallory", 1, 7), now);
        assert_eq!(named(&index, 10), Some(("pod-1".into(), Some(0))));
        assert_eq!(index.whose(66, 0, || None).1, Attribution::Host);
        index.cgroup_removed(66, now);
        let cgroups: Vec<_> = index
            .containers()
            .map(|(_, c)| (c.cgroup, c.gone))
            .collect();
        assert_eq!(cgroups, [(Some(10), None)]);
    }

    #[test]
    fn of_several_containers_none_is_guessed() {
        let now = Instant::now();
        let mut index = index(now);
        index.cgroup_made(10, &path("", 1, 7), now);
        index.pod_applied(pod(1, &[None, None]));
        assert_eq!(named(&index, 10), Some(("pod-1".into(), None)));
        index.pod_applied(pod(1, &[None, Some(7)]));
        assert_eq!(named(&index, 10), Some(("pod-1".into(), Some(1))));
        // The only one can be no other,
        index.cgroup_made(20, &path("", 2, 9), now);
        index.pod_applied(pod(2, &[None]));
        assert_eq!(named(&index, 20), Some(("pod-2".into(), Some(0))));
        // unless it is known to run: one that was added for debugging is reported later.
        index.pod_applied(pod(2, &[Some(9)]));
        index.cgroup_made(21, &path("", 2, 10), now);
        assert_eq!(named(&index, 21), Some(("pod-2".into(), None)));
        let lacks = |index: &Index, cgroup| {
            let mut all = index.containers();
            all.any(|(_, c)| c.cgroup == Some(cgroup) && index.lacks_names(c, now))
        };
        assert!(lacks(&index, 21) && !lacks(&index, 20));
        // One that is started again is the same one, and so is what it was before.
        index.cgroup_removed(20, now);
        index.cgroup_made(22, &path("", 2, 11), now);
        assert_eq!(named(&index, 22), Some(("pod-2".into(), Some(0))));
        index.pod_applied(pod(2, &[Some(11)]));
        assert_eq!(named(&index, 20), Some(("pod-2".into(), Some(0))));
    }

    /// With the pod 1, whose container has the cgroup 10 and the mount namespace 4000.
    fn index_with_mounts(now: Instant) -> Index {
        let mut index = index(now);
        index.pod_applied(pod(1, &[Some(7)]));
        index.cgroup_made(10, &path("", 1, 7), now);
        let (key, _) = index.whose(10, 0, || None);
        index.set_mount_namespace(key.expect("a container"), 4000);
        index
    }

    #[test]
    fn the_mount_namespace_tells_where_the_cgroup_does_not() {
        let now = Instant::now();
        let index = index_with_mounts(now);
        let by = |who: Attribution| match who {
            Attribution::Resolved(_, evidence) => Some(evidence),
            _ => None,
        };
        assert_eq!(by(index.whose(10, 4000, || None).1), Some(Evidence::Cgroup));
        assert_eq!(
            by(index.whose(ROOT, 4000, || None).1),
            Some(Evidence::MountNamespace)
        );
        assert_eq!(index.whose(ROOT, 4001, || None).1, Attribution::Host);
        assert_eq!(index.whose(99, 4001, || None).1, Attribution::Unknown);
        assert_eq!(index.whose(ROOT, 4001, || None).1, Attribution::Host);
        // What cannot be told by its cgroup, although it could be, is not guessed.
        assert_eq!(index.whose(99, 4000, || None).1, Attribution::Unknown);
    }

    #[test]
    fn a_mount_namespaces_inode_is_whose_it_was_then() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut index = index(start);
        for (n, cgroup) in [(1, 10), (2, 20)] {
            index.pod_applied(pod(n, &[Some(n)]));
            index.cgroup_made(cgroup, &path("", n, n), at(0));
        }
        let whose = |index: &Index, since| {
            let (_, who) = index.whose(ROOT, 4000, || Some(at(since)));
            who.names().map(|n| n.pod.name.clone())
        };
        let key = |index: &Index, cgroup| index.whose(cgroup, 0, || None).0.expect("a container");

        index.set_mount_namespace(key(&index, 10), 4000);
        index.cgroup_removed(10, at(5));
        // Closes trail.
        assert_eq!(whose(&index, 4), Some("pod-1".into()));
        // The inode may be another's by now: the host's,
        assert_eq!(whose(&index, 6), None);
        // or the next container's.
        index.set_mount_namespace(key(&index, 20), 4000);
        assert_eq!(whose(&index, 4), Some("pod-1".into()));
        assert_eq!(whose(&index, 6), Some("pod-2".into()));
        index.forget(at(5) + LINGER);
        assert_eq!(whose(&index, 6), Some("pod-2".into()));
        index.cgroup_removed(20, at(70));
        index.forget(at(70) + LINGER);
        assert_eq!(whose(&index, 6), None);
        assert!(index.by_mntns.is_empty());
    }

    #[test]
    fn a_mount_namespace_is_let_go_soon_after_its_container() {
        let now = Instant::now();
        let mut index = index_with_mounts(now);
        let selected = |index: &Index| index.containers().find_map(|(_, c)| c.mntns);
        index.let_go(now + TRAIL);
        assert_eq!((selected(&index), index.let_go_due()), (Some(4000), None));

        index.cgroup_removed(10, now);
        index.let_go(now + TRAIL - Duration::from_millis(1));
        assert_eq!(selected(&index), Some(4000));
        assert_eq!(index.let_go_due(), Some(now + TRAIL));
        index.let_go(now + TRAIL);
        assert_eq!((selected(&index), index.let_go_due()), (None, None));
        // Nobody looks for it again, and what was the container's is so still.
        assert_eq!(index.without_mount_namespace().count(), 0);
        let (_, who) = index.whose(ROOT, 4000, || Some(now));
        assert_eq!(who.names().map(|n| n.pod.name.as_str()), Some("pod-1"));
    }

    #[test]
    fn what_is_gone_is_known_for_a_minute_and_then_forgotten() {
        let now = Instant::now();
        let mut index = index(now);
        for n in 0..1000u32 {
            let cgroup = u64::from(n) + 100;
            index.pod_applied(pod(n, &[Some(n)]));
            index.cgroup_made(cgroup, &path("", n, n), now);
            index.cgroup_made(cgroup + 10_000, &format!("/system.slice/{n}"), now);
            index.pod_deleted(&uid(n), now);
            index.cgroup_removed(cgroup, now);
            index.cgroup_removed(cgroup + 10_000, now);
        }
        index.forget(now + LINGER - Duration::from_millis(1));
        assert_eq!(named(&index, 500), Some(("pod-400".into(), Some(0))));
        assert_eq!(index.sizes().containers, 1000);

        index.forget(now + LINGER);
        let empty = Sizes {
            cgroups: 1,
            ..Sizes::default()
        };
        assert_eq!(index.sizes(), empty);
        assert_eq!(index.containers().count(), 0);
        assert_eq!(named(&index, 500), None);
    }

    #[test]
    fn a_pod_that_is_replaced_under_its_name_is_another() {
        let now = Instant::now();
        let mut index = index(now);
        index.pods_replaced(vec![pod(1, &[Some(7)])], now);
        index.cgroup_made(10, &path("", 1, 7), now);
        let mut again = Pod::clone(&pod(2, &[Some(8)]));
        again.name = "pod-1".into();
        index.pods_replaced(vec![Arc::new(again)], now);
        index.cgroup_made(20, &path("", 2, 8), now);
        let uid_of = |cgroup| {
            index
                .whose(cgroup, 0, || None)
                .1
                .names()
                .map(|n| n.pod.uid.clone())
        };
        assert_eq!((uid_of(10), uid_of(20)), (Some(uid(1)), Some(uid(2))));
        assert_eq!(index.pods(), 1);
    }

    #[test]
    fn containers_of_another_node_are_told_apart_once_one_of_ours_is_named() {
        let now = Instant::now();
        let mut index = index(now);
        index.cgroup_made(10, &path("/tbn2", 2, 8), now);
        assert!(matches!(
            index.whose(10, 0, || None).1,
            Attribution::Pending(..)
        ));
        index.pod_applied(pod(1, &[Some(7)]));
        index.cgroup_made(20, &path("", 1, 7), now);
        assert_eq!(index.whose(10, 0, || None).1, Attribution::Foreign);
        assert_eq!(index.sizes().containers, 1);
        let foreign = index.containers().find(|(_, c)| c.cgroup == Some(10));
        assert!(foreign.is_some_and(|(_, c)| !index.may_be_named(c, now)));
    }

    #[test]
    fn a_static_pod_is_found_by_the_uid_in_its_paths() {
        let now = Instant::now();
        let mut index = index(now);
        let mut mirror = Pod::clone(&pod(1, &[Some(7)]));
        mirror.static_uid = Some("5f2d9a1be0c34c7788f06a1d2b3c4d5e".into());
        index.pod_applied(Arc::new(mirror));
        let path = format!("/kubepods/pod5f2d9a1be0c34c7788f06a1d2b3c4d5e/{}", id(7));
        index.cgroup_made(10, &path, now);
        assert_eq!(named(&index, 10), Some(("pod-1".into(), Some(0))));
    }

    #[test]
    fn a_scan_finds_what_was_not_told() {
        let now = Instant::now();
        for sees_all in [true, false] {
            let mut index = Index::new(sees_all);
            index.pod_applied(pod(1, &[Some(7)]));
            assert!(index.should_scan(10));
            let found = |id: u64, path: String| Cgroup { id, path };
            // That of a part is any cgroup.
            let root = found(if sees_all { ROOT } else { 5 }, "/".into());
            index.scanned(&[root.clone(), found(10, path("", 1, 7))], now);
            assert!(!index.should_scan(10));
            assert_eq!(named(&index, 10), Some(("pod-1".into(), Some(0))));
            // Nor was its removal.
            index.scanned(&[root], now);
            assert!(index.containers().all(|(_, c)| c.gone == Some(now)));
            index.forget(now + LINGER);
            assert_eq!(index.containers().count(), 0);
            assert_eq!(index.sizes().cgroups, 1);
        }
    }

    #[test]
    fn cgroups_out_of_sight_are_remembered_up_to_a_limit() {
        let mut index = Index::new(false);
        for id in 2..10_000 {
            index.note_outside(id);
        }
        assert_eq!(index.sizes().outside, MAX_OUTSIDE);
        assert!(index.should_scan(2) && !index.should_scan(9_999));
        assert_eq!(index.whose(9_999, 0, || None).1, Attribution::Foreign);
    }

    #[test]
    fn what_a_part_of_the_cgroups_lacks_is_outside() {
        let now = Instant::now();
        for sees_all in [true, false] {
            let mut index = Index::new(sees_all);
            let there = Cgroup {
                id: 10,
                path: "/system.slice".into(),
            };
            index.scanned(&[there], now);
            let is_outside = |index: &Index, id| {
                let (_, who) = index.whose(id, 0, || None);
                who == Attribution::Foreign
            };
            let outside = [0, 10, 11].map(|id| is_outside(&index, id));
            assert_eq!(outside, [false, false, !sees_all]);
            // Unless some of them may not have been told.
            index.doubt();
            assert!(!is_outside(&index, 11));
        }
    }
}
