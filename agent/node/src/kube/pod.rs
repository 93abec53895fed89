//! What is kept of a pod. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

/// Marks the mirror pod of a static one, and says which uid its cgroups have.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// The part of a ReplicaSet's name that its Deployment adds.
const TEMPLATE_HASH: &str = "pod-template-hash";

/// What makes pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// `Deployment`, `StatefulSet`, `CronJob`, …
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// When a container runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerKind {
    /// As long as the pod.
    Regular,
    /// Before the others, or beside them if it is a sidecar.
    Init,
    /// Added for debugging.
    Ephemeral,
}

/// A container of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its name in the pod.
    pub name: String,
    /// Its image, as the pod asks for it.
    pub image: String,
    /// Its id as in paths of cgroups, once the kubelet has reported it.
    pub id: Option<String>,
    /// The id it had before it was restarted.
    pub previous_id: Option<String>,
    /// When it runs.
    pub kind: ContainerKind,
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its uid in the API.
    pub uid: String,
    /// The uid in the paths of its cgroups, if it is another: a static pod's.
    pub static_uid: Option<String>,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// It uses the host's network.
    pub host_network: bool,
    /// What made it.
    pub workload: Option<Workload>,
    /// Its containers: init containers first, then the regular ones, then ephemeral ones.
    pub containers: Vec<Container>,
}

impl Pod {
    /// `None` if it lacks what every pod has: uid, namespace and name.
    pub fn new(pod: core::Pod) -> Option<Self> {
        let meta = pod.metadata;
        let spec = pod.spec.unwrap_or_default();
        let status = pod.status.unwrap_or_default();
        let uid = meta.uid?;
        let name = meta.name?;
        let labels = meta.labels.unwrap_or_default();
        let static_uid = meta
            .annotations
            .unwrap_or_default()
            .remove(CONFIG_HASH)
            .filter(|hash| *hash != uid);
        let host_network = spec.host_network.unwrap_or(false);
        Some(Self {
            workload: workload(meta.owner_references.unwrap_or_default(), &labels),
            containers: containers(spec, status),
            namespace: meta.namespace?,
            uid,
            static_uid,
            name,
            labels,
            host_network,
        })
    }
}

fn containers(spec: core::PodSpec, status: core::PodStatus) -> Vec<Container> {
    let mut all = Vec::new();
    let mut add = |kind,
                   specs: Vec<(String, Option<String>)>,
                   statuses: Option<Vec<core::ContainerStatus>>| {
        let mut statuses: BTreeMap<String, core::ContainerStatus> = statuses
            .unwrap_or_default()
            .into_iter()
            .map(|s| (s.name.clone(), s))
            .collect();
        all.extend(specs.into_iter().map(|(name, image)| {
            let status = statuses.remove(&name);
            container(kind, name, image, status)
        }));
    };
    let spec_of = |c: core::Container| (c.name, c.image);
    add(
        ContainerKind::Init,
        spec.init_containers
            .unwrap_or_default()
            .into_iter()
            .map(spec_of)
            .collect(),
        status.init_container_statuses,
    );
    add(
        ContainerKind::Regular,
        spec.containers.into_iter().map(spec_of).collect(),
        status.container_statuses,
    );
    add(
        ContainerKind::Ephemeral,
        spec.ephemeral_containers
            .unwrap_or_default()
            .into_iter()
            .map(|c| (c.name, c.image))
            .collect(),
        status.ephemeral_container_statuses,
    );
    all
}

fn container(
    kind: ContainerKind,
    name: String,
    image: Option<String>,
    status: Option<core::ContainerStatus>,
) -> Container {
    let previous = |s: &core::ContainerStatus| {
        s.last_state
            .as_ref()?
            .terminated
            .as_ref()?
            .container_id
            .as_deref()
            .and_then(id)
    };
    Container {
        name,
        image: image
            .or_else(|| status.as_ref().map(|s| s.image.clone()))
            .unwrap_or_default(),
        id: status
            .as_ref()
            .and_then(|s| s.container_id.as_deref())
            .and_then(id),
        previous_id: status.as_ref().and_then(previous),
        kind,
    }
}

/// `containerd://<id>`, without the runtime.
fn id(text: &str) -> Option<String> {
    let (_, id) = text.split_once("://")?;
    (!id.is_empty()).then(|| id.into())
}

/// The controlling owner. Of a ReplicaSet the Deployment, and of a Job the CronJob that made it: both can be
/// told by the name, which nobody else gives.
fn workload(owners: Vec<OwnerReference>, labels: &BTreeMap<String, String>) -> Option<Workload> {
    let owner = owners
        .into_iter()
        .find(|owner| owner.controller == Some(true))?;
    let (kind, name) = match owner.kind.as_str() {
        // The kubelet owns mirror pods.
        "Node" => return None,
        "ReplicaSet" => labels
            .get(TEMPLATE_HASH)
            .and_then(|hash| owner.name.strip_suffix(hash)?.strip_suffix('-'))
            .map(|name| ("Deployment".into(), name.to_owned())),
        "Job" => owner
            .name
            .rsplit_once('-')
            .filter(|(name, time)| {
                !name.is_empty() && time.len() >= 8 && time.bytes().all(|b| b.is_ascii_digit())
            })
            .map(|(name, _)| ("CronJob".into(), name.to_owned())),
        _ => None,
    }
    .unwrap_or((owner.kind, owner.name));
    Some(Workload { kind, name })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const UID: &str = "0b1c7d2e-58a4-4f0e-9d36-7a1f2c3b4d5e";

    #[track_caller]
    fn pod(json: Value) -> Pod {
        Pod::new(serde_json::from_value(json).expect("a pod")).expect("it has all it needs")
    }

    /// With what every pod has.
    fn with(mut json: Value) -> Value {
        let meta = &mut json["metadata"];
        meta["uid"] = json!(UID);
        meta["namespace"] = json!("shop");
        if meta["name"].is_null() {
            meta["name"] = json!("cart-0");
        }
        json
    }

    fn owned_by(kind: &str, name: &str, labels: Value) -> Option<(String, String)> {
        let owner = json!({
            "apiVersion": "v1", "kind": kind, "name": name, "uid": "u", "controller": true,
        });
        let pod = pod(with(json!({
            "metadata": { "labels": labels, "ownerReferences": [
                { "apiVersion": "v1", "kind": "Other", "name": "other", "uid": "o" }, owner,
            ]},
        })));
        pod.workload.map(|w| (w.kind, w.name))
    }

    fn status(name: &str, id: Option<&str>) -> Value {
        json!({
            "name": name, "image": "registry/resolved", "imageID": "", "ready": true,
            "restartCount": 0, "containerID": id,
        })
    }

    #[test]
    fn every_kind_of_container_is_known_by_its_id() {
        let mut restarted = status("app", Some("containerd://22"));
        restarted["lastState"] = json!({
            "terminated": { "exitCode": 1, "containerID": "containerd://11" },
        });
        let pod = pod(with(json!({
            "metadata": { "labels": { "app": "cart" } },
            "spec": {
                "hostNetwork": true,
                "initContainers": [
                    { "name": "migrate", "image": "m:1" },
                    { "name": "proxy", "image": "p:1", "restartPolicy": "Always" },
                ],
                "containers": [{ "name": "app", "image": "a:1" }, { "name": "late" }],
                "ephemeralContainers": [{ "name": "debug", "image": "d:1" }],
            },
            "status": {
                "initContainerStatuses": [
                    status("proxy", Some("cri-o://44")), status("migrate", Some("cri-o://33")),
                ],
                "containerStatuses": [restarted, status("late", None)],
                "ephemeralContainerStatuses": [status("debug", Some("docker://55"))],
            },
        })));
        let container = |kind, name: &str, image: &str, id: Option<&str>| Container {
            name: name.into(),
            image: image.into(),
            id: id.map(Into::into),
            previous_id: (name == "app").then(|| "11".into()),
            kind,
        };
        assert_eq!(
            pod.containers,
            [
                container(ContainerKind::Init, "migrate", "m:1", Some("33")),
                container(ContainerKind::Init, "proxy", "p:1", Some("44")),
                container(ContainerKind::Regular, "app", "a:1", Some("22")),
                container(ContainerKind::Regular, "late", "registry/resolved", None),
                container(ContainerKind::Ephemeral, "debug", "d:1", Some("55")),
            ]
        );
        assert!(pod.host_network);
        assert_eq!(pod.labels.get("app").map(String::as_str), Some("cart"));
        assert_eq!(pod.static_uid, None);
    }

    #[test]
    fn a_pod_without_status_has_containers_without_ids() {
        let pod = pod(with(
            json!({ "spec": { "containers": [{ "name": "app", "image": "a:1" }] } }),
        ));
        assert_eq!(pod.containers.len(), 1);
        assert_eq!(pod.containers[0].id, None);
    }

    #[test]
    fn a_static_pod_is_known_by_the_hash_in_its_paths() {
        const HASH: &str = "5f2d9a1be0c34c7788f06a1d2b3c4d5e";
        let mirror = pod(with(json!({
            "metadata": {
                "annotations": { "kubernetes.io/config.hash": HASH, "kubernetes.io/config.mirror": HASH },
                "ownerReferences": [{
                    "apiVersion": "v1", "kind": "Node", "name": "node-1", "uid": "n", "controller": true,
                }],
            },
        })));
        assert_eq!(mirror.static_uid.as_deref(), Some(HASH));
        assert_eq!(mirror.workload, None);

        // The kubelet itself gives the hash as the uid.
        let mut at_the_kubelet = with(json!({
            "metadata": { "annotations": { "kubernetes.io/config.hash": HASH } },
        }));
        at_the_kubelet["metadata"]["uid"] = json!(HASH);
        let at_the_kubelet = pod(at_the_kubelet);
        assert_eq!(at_the_kubelet.uid, HASH);
        assert_eq!(at_the_kubelet.static_uid, None);
    }

    #[test]
    fn the_workload_is_what_a_person_made() {
        let some = |kind: &str, name: &str| Some((kind.to_owned(), name.to_owned()));
        let hash = json!({ "pod-template-hash": "7d9f" });
        for (kind, name, labels, expected) in [
            (
                "ReplicaSet",
                "cart-7d9f",
                hash.clone(),
                some("Deployment", "cart"),
            ),
            (
                "ReplicaSet",
                "cart-other",
                hash.clone(),
                some("ReplicaSet", "cart-other"),
            ),
            (
                "ReplicaSet",
                "cart7d9f",
                hash,
                some("ReplicaSet", "cart7d9f"),
            ),
            (
                "ReplicaSet",
                "cart-7d9f",
                json!({}),
                some("ReplicaSet", "cart-7d9f"),
            ),
            (
                "Job",
                "backup-29384756",
                json!({}),
                some("CronJob", "backup"),
            ),
            ("Job", "backup-once", json!({}), some("Job", "backup-once")),
            ("Job", "backup-1234", json!({}), some("Job", "backup-1234")),
            ("Job", "-29384756", json!({}), some("Job", "-29384756")),
            ("StatefulSet", "db", json!({}), some("StatefulSet", "db")),
            ("DaemonSet", "proxy", json!({}), some("DaemonSet", "proxy")),
            ("Node", "node-1", json!({}), None),
        ] {
            assert_eq!(owned_by(kind, name, labels), expected, "{kind} {name}");
        }
        assert_eq!(pod(with(json!({ "metadata": {} }))).workload, None);
    }

    #[test]
    fn what_lacks_a_name_is_no_pod() {
        for missing in ["uid", "namespace", "name"] {
            let mut json = with(json!({ "metadata": {} }));
            json["metadata"][missing] = Value::Null;
            let pod = serde_json::from_value(json).expect("JSON of a pod");
            assert_eq!(Pod::new(pod), None, "{missing}");
        }
    }

    proptest! {
        #[test]
        fn any_ids_and_owners_are_taken(id in any::<String>(), kind in "ReplicaSet|Job|X", name in any::<String>()) {
            let json = with(json!({
                "metadata": {
                    "labels": { "pod-template-hash": name },
                    "ownerReferences": [{
                        "apiVersion": "v1", "kind": kind, "name": name, "uid": "u", "controller": true,
                    }],
                },
                "spec": { "containers": [{ "name": "app" }] },
                "status": { "containerStatuses": [status("app", Some(&id))] },
            }));
            let _ = pod(json);
        }
    }
}
