//! Cgroups of the containers of pods as kubelets write them.

use std::time::Instant;

use super::{Index, Owner};
use crate::kube::Pod;
use crate::kube::fixtures::{CASES, pods};

/// Where cgroupfs and systemd have the cgroup of a container.
fn paths(pod: &Pod, scope: &str, id: &str) -> [String; 2] {
    let uid = pod.static_uid.as_ref().unwrap_or(&pod.uid);
    let slice = uid.replace('-', "_");
    [
        format!("/kubepods/burstable/pod{uid}/{id}"),
        format!(
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{slice}.slice/{scope}{id}.scope"
        ),
    ]
}

/// Every container, one that has been started again as well, by either driver.
#[test]
fn a_cgroup_is_the_containers_that_the_kubelet_gave_its_id() {
    let now = Instant::now();
    for case in &CASES {
        for pod in pods(case) {
            for (at, container) in pod.containers.iter().enumerate() {
                for id in container.id.iter().chain(&container.previous_id) {
                    for path in paths(&pod, case.scope, id) {
                        let mut index = Index::new(true);
                        index.pod_applied(pod.clone());
                        index.cgroup_made(10, &path, now);
                        let (_, who) = index.attribute(Owner {
                            cgroup: 10,
                            mntns: 0,
                            since: None,
                        });
                        let names = who.names().unwrap_or_else(|| panic!("{path}: {who:?}"));
                        assert_eq!((&names.pod, names.container), (&pod, Some(at)), "{path}");
                    }
                }
            }
        }
    }
}
