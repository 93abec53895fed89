//! Whose a process is, and what tells it.

use std::sync::{Arc, OnceLock};

use tcptracer_event::{Event, Nanos};
use tcptracer_proto::EncodedIdentity;

use crate::kube::Pod;

/// Names a container as long as it is known; not used again.
pub type ContainerKey = u32;

/// What is said of a container of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Position in [`Pod::containers`]; `None` if it cannot be told yet.
    pub container: Option<usize>,
    /// The container's id.
    pub container_id: Arc<str>,
    /// The same as it is sent.
    pub encoded: Encoded,
}

/// An identity by each evidence, encoded when it is first sent: a container has many events. It follows from the names, so
/// it tells none apart.
#[derive(Debug, Default)]
pub struct Encoded {
    by_cgroup: OnceLock<EncodedIdentity>,
    by_mount_namespace: OnceLock<EncodedIdentity>,
}

impl Encoded {
    /// As `encode` encoded it the first time.
    pub fn by(
        &self,
        evidence: Evidence,
        encode: impl FnOnce() -> EncodedIdentity,
    ) -> &EncodedIdentity {
        let kept = match evidence {
            Evidence::Cgroup => &self.by_cgroup,
            Evidence::MountNamespace => &self.by_mount_namespace,
        };
        kept.get_or_init(encode)
    }
}

impl PartialEq for Encoded {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Encoded {}

/// A copy may be about to change.
impl Clone for Encoded {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// By what a container was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Evidence {
    /// The process' cgroup.
    Cgroup,
    /// Its mount namespace.
    MountNamespace,
}

/// Whose a process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attribution {
    /// A container's, of a pod of this node.
    Resolved(Arc<Names>, Evidence),
    /// The host's: it is in no container.
    Host,
    /// A container's whose pod is not known.
    Pending(Arc<str>, Evidence),
    /// Another node's, which shares the kernel with this one.
    Foreign,
    /// It cannot be told.
    Unknown,
}

impl Attribution {
    /// The container's names, if they are known.
    pub fn names(&self) -> Option<&Names> {
        match self {
            Self::Resolved(names, _) => Some(names),
            _ => None,
        }
    }
}

/// What tells whose a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// The id of its cgroup.
    pub cgroup: u64,
    /// The inode of its mount namespace.
    pub mntns: u64,
    /// When it was in both; long ago, if that is not known.
    pub since: Option<Nanos>,
}

impl Owner {
    /// The event's.
    pub fn of(event: &Event) -> Self {
        Self {
            cgroup: event.owner.cgroup_id,
            mntns: event.owner.mntns.into(),
            since: event.owned_since(),
        }
    }
}

/// An event, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributed {
    /// What happened.
    pub event: Event,
    /// The container. Within a generation of the index all events of one have the same attribution.
    pub container: Option<ContainerKey>,
    /// Whose it is.
    pub who: Attribution,
}
