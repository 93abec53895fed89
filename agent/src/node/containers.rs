//! What the file systems say of the node's containers, for the index.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use tracing::warn;

use crate::cgroup::{self, Hierarchy, MountNamespace};
use crate::identity::{ContainerKey, Index};

/// Between two scans. A scan is asked for by an event of a cgroup that nobody told of, which is rare.
const SCAN_INTERVAL: Duration = Duration::from_secs(1);

/// Between the first looks for the processes of a container; doubled each time.
const FIRST_LOOK: Duration = Duration::from_millis(5);

/// Between later looks.
const LAST_LOOK: Duration = Duration::from_secs(5);

/// Looks at cgroups and mount namespaces. It holds the namespaces that the index knows, so that none
/// of their inodes is used again meanwhile.
#[derive(Debug)]
pub struct Containers {
    hierarchy: Hierarchy,
    proc: PathBuf,
    host: Option<u64>,
    held: HashMap<ContainerKey, MountNamespace>,
    /// Containers without processes, when to look again, and how long to wait after that.
    looks: HashMap<ContainerKey, (Instant, Duration)>,
    scanned: Option<Instant>,
}

impl Containers {
    /// `proc` is where the host's processes are seen.
    pub fn new(hierarchy: Hierarchy, proc: PathBuf) -> Self {
        Self {
            host: cgroup::host_mount_namespace(&proc),
            hierarchy,
            proc,
            held: HashMap::new(),
            looks: HashMap::new(),
            scanned: None,
        }
    }

    /// Tells the index about every cgroup there is.
    pub fn scan(&mut self, index: &mut Index, now: Instant) -> Result<()> {
        self.scanned = Some(now);
        index.scanned(&self.hierarchy.scan()?, now);
        Ok(())
    }

    /// Scans if the last time is long enough ago; says whether it did.
    pub fn scan_again(&mut self, index: &mut Index, now: Instant) -> bool {
        let due = self.scanned.is_none_or(|at| now - at >= SCAN_INTERVAL);
        if due && let Err(e) = self.scan(index, now) {
            warn!("cannot look at the cgroups: {e:#}");
        }
        due
    }

    /// Looks for the mount namespaces that the index does not know, and lets go of those it forgot.
    pub fn look(&mut self, index: &mut Index, now: Instant) {
        let unknown = index.without_mount_namespace();
        for (key, path) in &unknown {
            let (due, wait) = self.looks.get(key).copied().unwrap_or((now, FIRST_LOOK));
            if now < due {
                continue;
            }
            let processes = self.hierarchy.processes(path);
            match cgroup::mount_namespace(&self.proc, path, &processes, self.host) {
                Some(found) => {
                    index.set_mount_namespace(*key, found.inode);
                    self.held.insert(*key, found);
                    self.looks.remove(key);
                }
                None => {
                    self.looks
                        .insert(*key, (now + wait, LAST_LOOK.min(wait * 2)));
                }
            }
        }
        self.looks
            .retain(|key, _| unknown.iter().any(|(k, _)| k == key));
    }

    /// Lets go of the namespaces of containers that are gone. The maps have to be without them.
    pub fn release(&mut self, index: &Index) {
        let there: HashMap<_, _> = index.containers().collect();
        self.held
            .retain(|key, _| there.get(key).is_some_and(|c| c.mntns.is_some()));
    }

    /// When to look next.
    pub fn due(&self) -> Option<Instant> {
        self.looks.values().map(|(due, _)| *due).min()
    }
}
