//! Values for unit tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use tcptracer_event::{Comm, ConnectionId, Event, Kind, Process, Reason, Role, Source};

use crate::identity::{Attribution, Encoded, Evidence, Names};
use crate::kube::{Container, ContainerKind, Pod, Workload};

/// An event of the connection `cookie`, whose owner is in this cgroup.
pub fn event(kind: Kind, cookie: u64, cgroup_id: u64) -> Event {
    Event {
        kind,
        time: 0,
        id: ConnectionId { cookie, life: 0 },
        role: Role::Client,
        owner: Process {
            pid: 100,
            tid: 101,
            uid: 0,
            comm: Comm::new(*b"curl\0\0\0\0\0\0\0\0\0\0\0\0"),
            cgroup_id,
            mntns: 0,
        },
        source: Source::Connect,
        closer: None,
        netns: 4_026_531_992,
        local: "10.0.0.1:40000".parse().expect("an address"),
        remote: "10.0.0.2:80".parse().expect("an address"),
        syn: None,
        established: None,
        accepted: None,
        first_fin: None,
        reason: Reason::Unknown,
        errno: 0,
        errno_inferred: false,
        counters: None,
    }
}

fn uid(n: u32) -> String {
    format!("{n:08x}-0000-4000-8000-000000000000")
}

/// The id of the only container of the pod `n`.
pub fn container_id(n: u32) -> String {
    format!("{n:064x}")
}

/// The cgroup of the only container of the pod `n`.
pub fn cgroup_path(n: u32) -> String {
    format!("/kubepods/pod{}/{}", uid(n), container_id(n))
}

/// The pod `n`: `shop/cart-N` with the label `app=cart`, of the deployment `cart`.
pub fn pod(n: u32) -> Pod {
    Pod {
        uid: uid(n),
        static_uid: None,
        namespace: "shop".into(),
        name: format!("cart-{n}"),
        labels: BTreeMap::from([("app".into(), "cart".into())]),
        host_network: false,
        workload: Some(Workload {
            kind: "Deployment".into(),
            name: "cart".into(),
        }),
        containers: vec![Container {
            name: "main".into(),
            image: "registry/cart:1".into(),
            id: Some(container_id(n)),
            previous_id: None,
            kind: ContainerKind::Regular,
        }],
    }
}

/// What is said of a process in the only container of the pod `n`.
pub fn resolved(n: u32) -> Attribution {
    let names = Names {
        pod: Arc::new(pod(n)),
        container: Some(0),
        container_id: container_id(n).into(),
        encoded: Encoded::default(),
    };
    Attribution::Resolved(Arc::new(names), Evidence::Cgroup)
}
