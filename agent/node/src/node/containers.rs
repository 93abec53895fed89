//! What the file systems say of the node's containers, for the index.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use tracing::warn;

use crate::cgroup::{self, Hierarchy, MountNamespace};
use crate::identity::{Container, ContainerKey, Index};

/// Between two scans. A scan is asked for by an event of a cgroup that nobody told of, which is rare.
const SCAN_INTERVAL: Duration = Duration::from_secs(1);

/// After a scan that failed, until the next one.
const RETRY: Duration = Duration::from_secs(10);

/// Between the first looks for the processes of a container; doubled each time.
const FIRST_LOOK: Duration = Duration::from_millis(5);

/// The same where every process of the host has to be looked at.
const FIRST_SEARCH: Duration = Duration::from_millis(40);

/// Between later looks.
const LAST_LOOK: Duration = Duration::from_secs(5);

/// Looks at cgroups and mount namespaces. It holds the namespaces that the index knows, so that none
/// of their inodes is used again meanwhile.
#[derive(Debug)]
pub struct Containers {
    hierarchy: Hierarchy,
    /// All of it is mounted.
    is_whole: bool,
    /// Where the mount is from the kernel's root, once that is known; if it is not whole.
    above: Option<String>,
    proc: PathBuf,
    /// The pids in cgroups are those in `proc`: we are in the host's pid namespace.
    shows_our_pids: bool,
    host_mntns: Option<u64>,
    held: HashMap<ContainerKey, MountNamespace>,
    /// Containers without processes, when to look again, and how long to wait after that.
    looks: HashMap<ContainerKey, (Instant, Duration)>,
    /// When the first of these is due.
    due: Option<Instant>,
    /// The index's generation as of the last look: in the same, no other container lacks its namespace.
    looked_at: Option<u64>,
    /// Not before then.
    next_scan: Option<Instant>,
}

impl Containers {
    /// `proc` is where the host's processes are seen.
    pub fn new(hierarchy: Hierarchy, proc: PathBuf) -> Self {
        Self {
            host_mntns: cgroup::host_mount_namespace(&proc),
            shows_our_pids: cgroup::shows_our_pids(&proc),
            is_whole: hierarchy.is_whole(),
            above: None,
            hierarchy,
            proc,
            held: HashMap::new(),
            looks: HashMap::new(),
            due: None,
            looked_at: None,
            next_scan: None,
        }
    }

    /// Tells the index about every cgroup there is.
    pub fn scan(&mut self, index: &mut Index, now: Instant) -> Result<()> {
        self.next_scan = Some(now + SCAN_INTERVAL);
        index.scanned(&self.hierarchy.scan()?, now);
        Ok(())
    }

    /// Scans if the last time is long enough ago. Whether it has; after a scan that failed, not before long.
    pub fn scan_again(&mut self, index: &mut Index, now: Instant) -> bool {
        if self.next_scan.is_some_and(|at| now < at) {
            return false;
        }
        let scanned = self.scan(index, now);
        if let Err(e) = &scanned {
            warn!("cannot look at the cgroups: {e:#}");
            self.next_scan = Some(now + RETRY);
        }
        scanned.is_ok()
    }

    /// Where a scan finds the cgroup that the kernel tells of by its path from the kernel's root; `None` if
    /// it is none of those that can be seen.
    pub fn follow_path<'a>(&mut self, id: u64, path: &'a str) -> Option<&'a str> {
        if self.is_whole {
            return Some(path);
        }
        if let Some(above) = &self.above {
            let below = path.strip_prefix(above.as_str())?;
            return below.starts_with('/').then_some(below);
        }
        let below = self.hierarchy.find(id, path)?;
        self.above = Some(path[..path.len() - below.len()].into());
        Some(below)
    }

    /// Looks for the mount namespaces that the index does not know. Costs nothing while there is nothing to look for.
    pub fn look(&mut self, index: &mut Index, now: Instant) {
        let is_due = self.due.is_some_and(|due| due <= now);
        if !is_due && self.looked_at == Some(index.generation()) {
            return;
        }
        let first = match self.shows_our_pids {
            true => FIRST_LOOK,
            false => FIRST_SEARCH,
        };
        let mut due: HashMap<_, _> = index.without_mount_namespace().collect();
        self.looks.retain(|key, _| due.contains_key(key));
        due.retain(|key, _| self.looks.get(key).is_none_or(|(due, _)| *due <= now));
        for (key, found) in self.find(&due) {
            let Some(found) = found else {
                let wait = self.looks.get(&key).map_or(first, |(_, wait)| *wait);
                let next = LAST_LOOK.min(wait * 2);
                self.looks.insert(key, (now + wait, next));
                continue;
            };
            index.set_mount_namespace(key, found.inode);
            self.held.insert(key, found);
            self.looks.remove(&key);
        }
        self.due = self.looks.values().map(|(due, _)| *due).min();
        self.looked_at = Some(index.generation());
    }

    /// The mount namespaces of containers, where processes are found in them.
    fn find(
        &self,
        due: &HashMap<ContainerKey, &Container>,
    ) -> Vec<(ContainerKey, Option<MountNamespace>)> {
        let searched = match self.shows_our_pids {
            false if !due.is_empty() => {
                let ids = due.values().map(|c| &*c.id).collect();
                cgroup::processes_of(&self.proc, &ids)
            }
            _ => HashMap::new(),
        };
        let found = |container: &Container| {
            let processes = match self.shows_our_pids {
                true => self.hierarchy.processes(&container.path),
                false => searched.get(&*container.id).cloned().unwrap_or_default(),
            };
            cgroup::mount_namespace(&self.proc, &container.path, &processes, self.host_mntns)
        };
        due.iter().map(|(key, c)| (*key, found(c))).collect()
    }

    /// Lets go of the namespaces that the index has given up. The maps that others use have to be without them.
    pub fn release(&mut self, index: &Index) {
        self.held
            .retain(|key, _| index.container(*key).is_some_and(|c| c.mntns.is_some()));
    }

    /// When to look next.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }
}
