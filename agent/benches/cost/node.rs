//! A node for an agent: pods with cgroups, each with a process, in one of which the load is, and a folder for pins. They go with
//! it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tcptracer_testing::{Cgroup, mount_points};
use tempfile::TempDir;

/// As many as a node of Kubernetes has at most, if nobody says otherwise.
pub const PODS: u32 = 110;

/// The namespace of the pod in which the load is.
pub const LOADED: &str = "loaded";

/// That of all others.
pub const OTHERS: &str = "others";

pub struct Node {
    /// One in each container, with mounts of its own. An agent looks for it again and again where there is none.
    processes: Vec<Child>,
    /// The innermost first: each is removed before the one it is in.
    containers: Vec<Cgroup>,
    _pods: Vec<Cgroup>,
    _above: [Cgroup; 3],
    folder: TempDir,
    pins: PathBuf,
}

impl Node {
    pub fn new() -> Result<Self> {
        let root = Cgroup::new();
        let kubepods = root.child("kubepods");
        let burstable = kubepods.child("burstable");
        let bpf = mount_points("bpf").into_iter().next();
        let pins = bpf.context("no bpf file system is mounted: mount -t bpf bpf /sys/fs/bpf")?;
        let pins = pins.join(format!("tcptracer-bench-{}", process::id()));
        let folder = TempDir::new().context("cannot make a folder")?;
        let list = json!({
            "kind": "PodList", "apiVersion": "v1", "items": (0..PODS).map(pod).collect::<Vec<_>>(),
        });
        fs::write(folder.path().join("pods.json"), list.to_string())?;
        let pods: Vec<Cgroup> = (0..PODS)
            .map(|number| burstable.child(format!("pod{}", uid(number))))
            .collect();
        let containers = pods.iter().zip(0..).map(|(pod, n)| pod.child(id(n)));
        let containers: Vec<Cgroup> = containers.collect();
        Ok(Self {
            processes: containers.iter().map(sleeper).collect::<Result<_>>()?,
            containers,
            _pods: pods,
            _above: [burstable, kubepods, root],
            folder,
            pins,
        })
    }

    /// That of the container in which the load is.
    pub fn cgroup(&self) -> &Cgroup {
        &self.containers[0]
    }

    /// The list of its pods, as a kubelet has it.
    pub fn pods(&self) -> PathBuf {
        self.folder.path().join("pods.json")
    }

    /// Where its agent pins.
    pub fn pins(&self) -> &Path {
        &self.pins
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
        // An agent that was killed has left them.
        let _ = fs::remove_dir_all(&self.pins);
    }
}

fn sleeper(container: &Cgroup) -> Result<Child> {
    let process = Command::new("unshare")
        .args(["--mount", "sleep", "infinity"])
        .stdin(Stdio::null())
        .spawn()
        .context("cannot run unshare")?;
    container.add(process.id());
    Ok(process)
}

fn pod(number: u32) -> Value {
    let namespace = if number == 0 { LOADED } else { OTHERS };
    json!({
        "metadata": {
            "name": format!("pod-{number}"), "namespace": namespace, "uid": uid(number),
            "labels": { "app": "web" },
        },
        "spec": {
            "nodeName": "bench", "containers": [{ "name": "main", "image": "registry/web:1" }],
        },
        "status": {
            "phase": "Running",
            "containerStatuses": [{
                "name": "main", "image": "registry/web:1", "imageID": "", "ready": true,
                "restartCount": 0, "containerID": format!("containerd://{}", id(number)),
            }],
        },
    })
}

fn uid(number: u32) -> String {
    format!("{:08x}-0000-4000-8000-{number:012x}", process::id())
}

/// Of a pod's only container.
fn id(number: u32) -> String {
    format!("{:032x}{number:032x}", process::id())
}
