//! Pods as kubelets and the API server write them, and what is kept of them.

use super::pod::{ContainerKind, Pod};
use super::source::parse;

/// What a kubelet says on a node, or the API server of one.
pub struct Case {
    json: &'static str,
    /// What the runtime has before the id in the names of scopes.
    pub scope: &'static str,
    /// A line for each pod and each of its containers.
    kept: &'static [&'static str],
}

macro_rules! json {
    ($name:literal) => {
        include_str!(concat!("../../tests/fixtures/pods/", $name, ".json"))
    };
}

pub const CASES: [Case; 5] = [
    Case {
        json: json!("containerd"),
        scope: "cri-containerd-",
        kept: &[
            "shop/checkout-6c9f7b8d54-x2kqp 113346db-f3d2-42b7-a7e9-dd29408e6ac3 of Deployment checkout",
            "Init migrate registry.example/shop/migrate:2.4.1 1499ea00",
            "Init mesh registry.example/mesh/proxy:1.9 6d768861",
            "Regular checkout registry.example/shop/checkout:2.4.1 6202c851 before f4f7e24b",
            "Regular metrics \
             registry.example/exporter@sha256:b734dad1d8cedf79f05a69b9c27f554d1493defdad71c50d4e137b169c9aeb30 a7f669f4",
            "Ephemeral debugger-7hk2x busybox:1.37 a4ec5816",
            "shop/db-0 d0dfd956-d48b-4f82-acf0-d6ef6d3fdf81 of StatefulSet db",
            "Regular postgres postgres:17",
        ],
    },
    Case {
        json: json!("crio"),
        scope: "crio-",
        kept: &[
            "kube-system/resolver-8mzkd 38590d0c-22ec-4191-a817-6704838aea37 of DaemonSet resolver on the host's network",
            "Init setup quay.example/dns/setup:v1.12.0 50483a5c",
            "Regular resolver quay.example/dns/resolver:v1.12.0 1d15c640",
            "Regular reload quay.example/dns/reload:v1.12.0 f1c0fdf8 before 61c22f05",
        ],
    },
    Case {
        json: json!("docker"),
        scope: "docker-",
        kept: &[
            "billing/report-29417280-7cw5n 6cc823f4-838b-44a3-ac07-ae6639ca1373 of CronJob report",
            "Regular report registry.example/billing/report:latest 81bab5cf",
            "default/shell f45ec8e2-9613-401b-a50f-b3e1c2da4fa9",
            "Regular shell alpine 1f4a74f4",
        ],
    },
    // At the kubelet it is what its file says; at the API server a mirror of it.
    Case {
        json: json!("static"),
        scope: "cri-containerd-",
        kept: &[
            "kube-system/kube-apiserver-control-plane-1 8ac3d423782d67f76a018908dbe10a6e on the host's network",
            "Regular kube-apiserver registry.k8s.io/kube-apiserver:v1.35.0 1fbe9732",
        ],
    },
    Case {
        json: json!("mirror"),
        scope: "cri-containerd-",
        kept: &[
            "kube-system/kube-apiserver-control-plane-1 53491e85-a9ad-4211-a1ed-2d279e9fd5bb static \
             8ac3d423782d67f76a018908dbe10a6e on the host's network",
            "Regular kube-apiserver registry.k8s.io/kube-apiserver:v1.35.0 1fbe9732",
        ],
    },
];

pub fn pods(case: &Case) -> Vec<std::sync::Arc<Pod>> {
    parse(case.json.as_bytes()).expect("a list of pods")
}

/// A pod and its containers, a line each; of ids the beginning.
fn lines(pod: &Pod) -> Vec<String> {
    let mut line = format!("{}/{} {}", pod.namespace, pod.name, pod.uid);
    if let Some(uid) = &pod.static_uid {
        line += &format!(" static {uid}");
    }
    if let Some(workload) = &pod.workload {
        line += &format!(" of {} {}", workload.kind, workload.name);
    }
    if pod.host_network {
        line += " on the host's network";
    }
    let mut lines = vec![line];
    lines.extend(pod.containers.iter().map(|container| {
        let kind = match container.kind {
            ContainerKind::Init => "Init",
            ContainerKind::Regular => "Regular",
            ContainerKind::Ephemeral => "Ephemeral",
        };
        let mut line = format!("{kind} {} {}", container.name, container.image);
        if let Some(id) = &container.id {
            line += &format!(" {}", &id[..8]);
        }
        if let Some(id) = &container.previous_id {
            line += &format!(" before {}", &id[..8]);
        }
        line
    }));
    lines
}

#[test]
fn what_is_kept_of_a_pod() {
    for case in &CASES {
        let kept: Vec<String> = pods(case).iter().flat_map(|pod| lines(pod)).collect();
        assert_eq!(kept, case.kept);
    }
}

#[test]
fn labels_are_kept() {
    let [checkout, _] = &pods(&CASES[0])[..] else {
        panic!("not two pods");
    };
    let labels: Vec<_> = checkout
        .labels
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    let expected = [
        ("app", "checkout"),
        ("pod-template-hash", "6c9f7b8d54"),
        ("tier", "web"),
    ];
    assert_eq!(labels, expected);
}
